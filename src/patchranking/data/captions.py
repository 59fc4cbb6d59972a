"""Pictures with captions, listed in a file beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from patchranking.data.base import ImageData, inside, printable, sample
from patchranking.data.images import read_image
from patchranking.errors import UserError

__all__ = ["SUFFIXES", "CaptionData", "captions_of"]

SUFFIXES = (".tsv", ".csv", ".json")


class CaptionData(ImageData):
    """Pictures and captions of a list; paths in it start at its folder.

    A ``.tsv`` or ``.csv`` file has a head line with the columns ``image`` and ``caption``. A ``.json`` file is a list
    of objects with ``image`` and ``caption`` or ``captions``, or has COCO's ``images`` and ``annotations``. An image
    may come again with another caption. Images without a caption, and paths that leave the folder, are left out.

    Args:
        file: The list.
        limit: Maximum number of images.
        seed: Seed of their sample.

    Raises:
        UserError: If the list cannot be read or names no image.
    """

    def __init__(self, file: Path, limit: int | None, seed: int) -> None:
        if not file.is_file():
            raise UserError(f"There is no list of captions '{file}': give a .tsv, .csv or .json file.")
        found: dict[str, list[str]] = {}
        for image, captions in captions_of(file):
            found.setdefault(image, []).extend(captions)
        if not found:
            raise UserError(f"'{file}' names no images: give one a line, or choose another list.")
        why = {name: _why_not(name, captions) for name, captions in found.items()}
        self.left_out = {printable(name): text for name, text in why.items() if text}
        found = {name: captions for name, captions in found.items() if not why[name]}
        if not found:
            name, text = next(iter(self.left_out.items()))
            raise UserError(f"'{file}' names no images that can be used: '{name}' is left out: {text}.")
        chosen = sample(len(found), limit, seed)
        names = list(found)
        self._paths = [file.parent / names[index] for index in chosen]
        self._describe(file.resolve().parent.name, file.stem, names, [None] * len(names), (), chosen)
        self.captions = [found[names[index]] for index in chosen]

    def image(self, index: int) -> Image.Image:
        return read_image(self._paths[index])


def captions_of(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Images of a list and their captions, in its order; an image may come again.

    Raises:
        UserError: If it is no such list.
    """
    try:
        for image, captions in _entries(file):
            yield _text(image), [_valid(_text(caption)).strip() for caption in captions]
    except (ValueError, csv.Error, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"'{file}' is no list of captions: it needs columns image and caption, or COCO's images and annotations."
        ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _valid(text: str) -> str:
    """A text with escapes where JSON has half a character."""
    return text.encode("utf-8", "backslashreplace").decode()


def _why_not(image: str, captions: list[str]) -> str:
    if not any(captions):
        return "no caption"
    return "" if inside(image) else "a path that leaves the folder of the list"


def _entries(file: Path) -> Iterator[tuple[Any, list[Any]]]:
    """Images with captions; one may come again."""
    if file.suffix.lower() != ".json":
        yield from _rows(file)
        return
    content: Any = json.loads(file.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict):
        names = {image["id"]: image["file_name"] for image in content["images"]}
        yield from ((name, []) for name in names.values())
        content = [{"image": names[a["image_id"]], "caption": a["caption"]} for a in content["annotations"]]
    for entry in content:
        captions = entry["captions"] if "captions" in entry else [entry["caption"]]
        if not isinstance(captions, list):
            raise TypeError(f"{captions!r} is no list")
        yield entry["image"], captions


def _rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    tabs = file.suffix.lower() == ".tsv"
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.reader(lines, "excel-tab", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
        head = next(rows, [])
        image, caption = (head.index("image"), head.index("caption")) if head else (0, 0)
        for row in filter(None, rows):
            if len(row) != len(head):
                raise UserError(
                    f"'{file}' has {len(row)} fields in line {rows.line_num} and {len(head)} in its head: put captions "
                    f"with a {'tab' if tabs else 'comma'} {'in a .csv file' if tabs else 'in quotes'}."
                )
            yield row[image], [row[caption]]
