'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const picture = document.getElementById('picture');
const movie = picture.tagName === 'VIDEO' ? picture : null;
const line = document.getElementById('timeline');
const cursors = document.querySelectorAll('.cursor');
const buttons = [...document.querySelectorAll('button[data-time]')];
const film = [...document.querySelectorAll('.film button')];
const span = Math.max(data.end - data.start, 1e-6);
let now = data.start;

function clock(seconds) {
  const tenths = Math.round(seconds * 10), minutes = Math.floor(tenths / 600);
  const rest = ((tenths - minutes * 600) / 10).toFixed(1).padStart(4, '0');
  return minutes + ':' + rest;
}
function last(times, time) {
  let low = 0, high = times.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (times[middle] <= time + 0.01) low = middle; else high = middle;
  }
  return low;
}
function put(id, value, text) {
  document.getElementById(id).textContent =
      value == null ? '\u2013' : text(value);
}
function show(time) {
  now = Math.min(Math.max(time, data.start), data.end);
  for (const cursor of cursors)
    cursor.style.left = 100 * (now - data.start) / span + '%';
  line.setAttribute('aria-valuenow', now.toFixed(3));
  line.setAttribute('aria-valuetext', clock(now));
  document.getElementById('now').textContent = clock(now);
  const i = last(data.times, now);
  put('focus', data.focus[i], value => value.toFixed(3));
  data.areas.forEach((values, k) => put('area' + k, values[i],
      value => (100 * value).toFixed(1) + ' %'));
  const moment = last(data.moments, now);
  film.forEach((button, k) => button.classList.toggle('on', k === moment));
  if (!movie && film[moment])
    picture.src = film[moment].querySelector('img').src;
}
function seek(time) {
  show(time);
  if (movie && movie.duration)
    movie.currentTime = Math.min((now - data.start) / span * movie.duration,
        movie.duration - 1e-3);
}
function follow() {
  if (movie.duration && !movie.seeking)
    show(data.start + movie.currentTime / movie.duration * span);
}
function point(event) {
  const box = line.querySelector('svg').getBoundingClientRect();
  seek(data.start + (event.clientX - box.left) / box.width * span);
}
line.addEventListener('pointerdown', event => {
  line.setPointerCapture(event.pointerId);
  point(event);
});
line.addEventListener('pointermove', event => {
  if (event.buttons & 1) point(event);
});
line.addEventListener('keydown', event => {
  const step = event.shiftKey ? 0.1 : 1;
  const to = {ArrowLeft: now - step, ArrowRight: now + step,
      Home: data.start, End: data.end}[event.key];
  if (to !== undefined) seek(to);
  else if (event.key === ' ' && movie)
    movie.paused ? movie.play() : movie.pause();
  else return;
  event.preventDefault();
});
buttons.forEach(button => button.addEventListener('click',
    () => seek(Number(button.dataset.time))));
if (movie) {
  movie.addEventListener('timeupdate', follow);
  movie.addEventListener('play', function frame() {
    follow();
    if (!movie.paused) requestAnimationFrame(frame);
  });
}
show(data.start);
