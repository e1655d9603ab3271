r"""A page for a trained model: drop a film, or let a camera run.

    python -m lsts_tf.app
    python -m lsts_tf.app --flagfile=RUN/experiment.flags --port=8000

It needs Gradio: `pip install "lsts_tf[app]"`. The page does what `predict` does
and shows it. docs/app.md says what a user sees, and what becomes of films.
"""

from collections.abc import Sequence
import functools
import html
import importlib.util
import os
import pathlib
import socket
import time
from typing import Any

from absl import app, flags, logging
import numpy as np

from lsts_tf import experiment, program
from lsts_tf.media import files
from lsts_tf.outputs import live, uploads

_TEMPLATES = pathlib.Path(live.__file__).with_name("templates")
# What is asked of a browser's camera, and frames a second in live use.
_CAMERA = {"video": {"width": {"ideal": 640}, "height": {"ideal": 360}}}
_CAMERA_FPS = 10
# Seconds after which a camera is stopped, so that the next user has a turn;
# and between two looks for files that nobody needs.
_TURN, _SWEEP = 300, 30


def define_flags() -> None:
    """Flags of this program."""
    flags.DEFINE_string(
        "host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all networks"
    )
    flags.DEFINE_integer("port", 7860, "Port of the page", 1, 65535)
    flags.DEFINE_integer("max_megabytes", 200, "Largest film in megabytes", 1)
    flags.DEFINE_integer("max_seconds", 60, "Longest film in seconds", 1)


def _result() -> tuple[Any, ...]:
    import gradio as gr

    sync = (_TEMPLATES / "app.js").read_text("utf-8")
    result = gr.HTML(js_on_load=sync, min_height=60)
    with gr.Row(visible=False) as tables:
        focus = gr.LinePlot(
            x="time",
            y="focus",
            x_title="seconds",
            label="Focus: 0 is evenly spread, 1 a single point",
            height=300,
        )
        regions = gr.Dataframe(
            label="Strongest region each second, and its share of attention",
            interactive=False,
            max_height=300,
        )
    return result, focus, regions, tables


def _film_tab(films: uploads.Uploads, limits: str) -> None:
    import gradio as gr

    with gr.Row():
        film = gr.File(label=f"Film: {limits}", height=190)
        shot = gr.Video(
            label="Or record one",
            sources="webcam",
            include_audio=False,
            webcam_options=gr.WebcamOptions(False, _CAMERA),
            height=190,
        )
    # Else Gradio makes a file more, or runs ffmpeg to mirror what was recorded.
    film.preprocess = shot.preprocess = lambda data: data and data.path
    stop = gr.Button("Stop", visible=False, size="sm")
    result, focus, regions, tables = _result()

    def take(path: str, request: gr.Request) -> Any:
        films.take(request.session_hash, pathlib.Path(path))
        return gr.update(visible=True), "", gr.update(visible=False)

    def predict(
        path: str,
        request: gr.Request,
        bar: Any = gr.Progress(),  # noqa: B008, as Gradio wants it
    ) -> list[Any]:
        begin = time.monotonic()

        def tell(done: int, total: int) -> None:
            share = min(done / total, 1) if total else 0
            bar(share, uploads.left(time.monotonic() - begin, done, total))

        try:
            name = request.session_hash
            found, damage = films.predict(name, pathlib.Path(path), tell)
            page, figures = uploads.shown(found, damage), uploads.figures(found)
        except uploads.Stopped:
            return [None, *[gr.skip()] * 4]
        except (ValueError, OSError, RuntimeError) as error:
            logging.warning("%s", error)
            message = html.escape(films.says(error))
            raise gr.Error(message, None, print_exception=False) from error
        return [None, page, *figures, gr.update(visible=True)]

    def stopped(request: gr.Request) -> Any:
        films.stop(request.session_hash)
        gr.Info("Stopped.")
        return None, None, gr.update(visible=False)

    jobs = []
    for source, begins in [(film, film.upload), (shot, shot.stop_recording)]:
        job = begins(take, source, [stop, result, tables], queue=False).then(
            predict,
            source,
            [source, result, focus, regions, tables],
            show_progress_on=result,
            concurrency_limit=1,
            concurrency_id="film",
        )
        job.then(lambda: gr.update(visible=False), None, stop, queue=False)
        jobs.append(job)
    cleared = [film, shot, stop]
    stop.click(stopped, None, cleared, cancels=jobs, concurrency_limit=None)


def _live_tab(camera: live.Live) -> None:
    import gradio as gr

    with gr.Row():
        frame = gr.Image(
            label="Camera",
            sources="webcam",
            streaming=True,
            webcam_options=gr.WebcamOptions(False, _CAMERA),
        )
        overlay = gr.HTML(elem_classes="live")

    def show(picture: np.ndarray | None, request: gr.Request) -> Any:
        if picture is None:
            return gr.skip()
        try:
            found = camera(picture, request.session_hash)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return uploads.overlay(*found) if found else gr.skip()

    frame.stream(
        show,
        frame,
        overlay,
        stream_every=1 / _CAMERA_FPS,
        time_limit=_TURN,
        concurrency_limit=1,
        show_progress="minimal",
    )


def _page(films: uploads.Uploads, camera: live.Live, limits: str) -> Any:
    import gradio as gr

    def leave(request: gr.Request) -> None:
        films.leave(request.session_hash)
        camera.end(request.session_hash)

    with gr.Blocks(title="Where people look", analytics_enabled=False) as page:
        gr.Markdown("# Where people look in a film")
        if note := films.predictor.note:
            gr.HTML(f'<p class="note">These maps mean nothing: {note}.</p>')
        with gr.Tab("Film"):
            _film_tab(films, limits)
        with gr.Tab("Live"):
            _live_tab(camera)
        page.unload(leave)
    return page


def _serve() -> None:
    values = flags.FLAGS
    chosen = experiment.chosen_run()
    if importlib.util.find_spec("gradio") is None:
        raise RuntimeError(
            'The page needs Gradio: pip install "lsts_tf[app]", or in a clone '
            "pip install -r requirements-app.txt"
        )
    place = values.host, values.port
    with files.naming("{}:{}".format(*place)):
        # In use by others? The model is not loaded for nothing.
        socket.create_server(place).close()
    # It takes seconds: help and errors above do not wait for it.
    from lsts_tf import predictor

    load = functools.partial(
        predictor.Predictor.load, chosen.folder, sources=chosen.sources
    )
    ahead = live.lookahead(chosen.front_end)
    camera = live.Live(functools.partial(load, lookahead=ahead))
    with uploads.folder() as folder:
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
        import gradio as gr

        films = uploads.Uploads(
            load(),
            folder,
            seconds=values.max_seconds,
            about={"run": chosen.run_name, "model": "last"},
        )
        limits = f"at most {values.max_seconds} s, {values.max_megabytes} MB"
        page = _page(films, camera, limits)
        page.launch(
            server_name=values.host,
            server_port=values.port,
            max_file_size=values.max_megabytes * 10**6,
            allowed_paths=[str(folder)],
            # The default fonts would come from another server.
            theme=gr.themes.Default(font="sans-serif", font_mono="monospace"),
            css_paths=_TEMPLATES / "app.css",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        logging.info("The page is at %s; Ctrl-C ends it.", page.local_url)
        try:
            while True:
                time.sleep(_SWEEP)
                films.sweep()
        finally:
            films.close()
            camera.end()
            page.close()


def main(_: Sequence[str]) -> None:
    """Serve the page until Ctrl-C."""
    with program.terminable(), program.exit_codes():
        _serve()


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
