"""The page: Gradio's inputs around what ``show`` draws; nothing on it comes from elsewhere."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio
import uvicorn
from fastapi import FastAPI
from PIL import Image

from patchranking.data.images import UnreadableImageError
from patchranking.errors import UserError
from patchranking.explore.disagree import disagreements
from patchranking.explore.look import Explorer
from patchranking.explore.opening import opened, unusable
from patchranking.explore.says import named
from patchranking.explore.show import LABELS, caption_of, compared, shown, wrong

__all__ = ["served"]

_HOST = "127.0.0.1"
_SHARE = 0.6
_THUMBNAILS, _THUMBNAIL = 24, 160
_FONT = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Liberation Sans", "Arial", "sans-serif"]
_HEAD = "<div class='pr-head'><h1>What can go?</h1><p>{}</p></div>"
_GALLERY = {"allow_preview": False, "object_fit": "cover", "buttons": [], "interactive": False}


@contextmanager
def served(explorer: Explorer, about: str, port: int) -> Iterator[str]:
    """Serves the page to this machine alone, from a thread; pictures that were dropped are gone at the end.

    Args:
        explorer: What looks.
        about: A sentence below the title, HTML.
        port: The port; 0 for any that is free.

    Yields:
        Its address.

    Raises:
        UserError: If the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with TemporaryDirectory() as folder, socket.socket() as listening:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            listening.bind((_HOST, port))
        except OSError as error:
            raise UserError(f"Port {port} cannot be used ({error.strerror}): give another --port.") from error
        number = listening.getsockname()[1]
        app = gradio.mount_gradio_app(
            FastAPI(),
            _page(explorer, about),
            "/",
            server_name=_HOST,
            server_port=number,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            max_file_size="1gb",
            theme=gradio.themes.Default(font=_FONT, font_mono=["ui-monospace", "monospace"]),
            css=files("patchranking.explore").joinpath("page.css").read_text("utf-8"),
        )
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://{_HOST}:{number}"
        finally:
            server.should_exit = True
            thread.join()


def _page(explorer: Explorer, about: str) -> Any:
    data, first = explorer.data, next(iter(explorer.methods))
    images, thumbnails = _thumbnails(explorer)
    with gradio.Blocks(title="patchranking explore", analytics_enabled=False) as blocks:
        chosen, worst = gradio.State(images[0] if images else None), gradio.State([])
        gradio.HTML(_HEAD.format(about))
        with gradio.Row():
            with gradio.Column(scale=2, min_width=320):
                file = gradio.File(label="Drop a picture, or click to choose one", height=150, elem_id="picture")
                options = {"scale": 1, "visible": explorer.model.text is not None}
                some = ", ".join(data.class_names[:4])
                hint = f"those of the images: {some}, ..." if some else "cat, dog, bicycle"
                names = gradio.Textbox(label="Class names, with commas", placeholder=hint, elem_id="names", **options)
                said = data.templates[0].format(*data.class_names[:1] or ["cat"])
                caption = gradio.Textbox(label="Caption", placeholder=said, elem_id="caption", **options)
                labels = [(LABELS[name], name) for name in explorer.methods]
                method = gradio.Radio(labels, value=first, label="Method", elem_id="method")
                start = max(_SHARE, explorer.least)
                share = gradio.Slider(
                    explorer.least, 1, start, step=0.05, label="Share of the dense MACs", elem_id="share"
                )
                own = gradio.Gallery(
                    thumbnails, label=f"Pictures of {data.name}", columns=4, height=210, elem_id="own", **_GALLERY
                )
            with gradio.Column(scale=5, min_width=320):
                view = gradio.HTML(elem_id="view")
        ask = gradio.Button(f"Find those of {len(data)} images where dense and pruned disagree most", elem_id="ask")
        result = gradio.HTML(elem_id="result")
        found = gradio.Gallery(
            label="Worst first", columns=6, height="auto", visible=False, elem_id="found", **_GALLERY
        )

        def own_taken(event: gradio.SelectData) -> int:
            return images[event.index]

        def worst_taken(numbers: list[int], event: gradio.SelectData) -> int:
            return numbers[event.index]

        def dropped(path: str) -> tuple[str, None]:
            return path, None  # nothing lies where pictures are dropped, so that the next one can be

        settings, alone = [method, share], {"concurrency_id": "model", "concurrency_limit": 1}
        file.upload(dropped, file, [chosen, file])
        own.select(own_taken, None, chosen)
        found.select(worst_taken, worst, chosen)
        gradio.on(
            [blocks.load, chosen.change, method.change, share.change]
            + [event for box in (names, caption) for event in (box.submit, box.blur)],
            _looking(explorer),
            [chosen, names, caption, *settings],
            view,
            trigger_mode="always_last",
            show_progress="minimal",
            **alone,
        )
        ask.click(_comparing(explorer), settings, [result, found, worst], **alone)
    return blocks


def _looking(explorer: Explorer) -> Callable[..., str]:
    def look(chosen: int | str | None, names: str, caption: str, method: str, share: float) -> str:
        try:
            picture, notes = _picture(explorer, chosen)
            return shown(explorer.look(picture, named(names), caption, method, float(share)), notes)
        except UserError as error:
            return wrong(error)

    return look


def _comparing(explorer: Explorer) -> Callable[..., tuple[str, Any, list[int]]]:
    def compare(method: str, share: float) -> tuple[str, Any, list[int]]:
        data = explorer.data
        try:
            found = disagreements(explorer.model, data, explorer.entry(method, float(share)))
        except UserError as error:
            return wrong(error), gradio.update(visible=False), []
        cards = [(_thumbnail(data.image(one.image)), caption_of(one)) for one in found.worst]
        numbers = [one.image for one in found.worst]
        return compared(found, method, float(share)), gradio.update(value=cards, visible=True), numbers

    return compare


def _picture(explorer: Explorer, chosen: int | str | None) -> tuple[Image.Image, list[str]]:
    """The picture of the set with a number, or the one in a file."""
    if chosen is None:
        raise UserError("None of the first images can be used: drop a picture.")
    if isinstance(chosen, str):
        return opened(Path(chosen).read_bytes(), explorer.model.image_size)
    try:
        return explorer.data.image(chosen), []
    except UnreadableImageError as error:
        raise unusable(error) from error


def _thumbnails(explorer: Explorer) -> tuple[list[int], list[Image.Image]]:
    """The first images that can be read, as numbers and small."""
    images, small = [], []
    for image in range(min(_THUMBNAILS, len(explorer.data))):
        try:
            small.append(_thumbnail(explorer.data.image(image)))
            images.append(image)
        except UnreadableImageError:
            continue
    return images, small


def _thumbnail(picture: Image.Image) -> Image.Image:
    small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return small
