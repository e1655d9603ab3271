// Two films of equal frames play as one.
const moved = new WeakSet();
for (const kind of ["play", "pause", "seeking", "ratechange"]) {
  element.addEventListener(kind, ({ target }) => {
    // What follows the other one must not lead it.
    if (kind === "seeking" && moved.delete(target)) return;
    for (const other of element.querySelectorAll("video")) {
      if (other === target) continue;
      other.playbackRate = target.playbackRate;
      if (Math.abs(other.currentTime - target.currentTime) > 0.1) {
        moved.add(other);
        other.currentTime = target.currentTime;
      }
      if (target.paused !== other.paused) {
        target.paused ? other.pause() : other.play();
      }
    }
  }, true);
}
