"""Pictures with captions, listed in a file beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from patchranking.data.base import ImageData, printable, sample
from patchranking.data.images import read_image
from patchranking.errors import UserError

__all__ = ["SUFFIXES", "CaptionData"]

SUFFIXES = (".tsv", ".csv", ".json")


class CaptionData(ImageData):
    """Pictures and captions of a list; paths in it start at its folder.

    A ``.tsv`` or ``.csv`` file has a head line with the columns ``image`` and ``caption``. A ``.json`` file is a list
    of objects with ``image`` and ``caption`` or ``captions``, or has COCO's ``images`` and ``annotations``. An image
    may come again with another caption.

    Args:
        file: The list.
        limit: Maximum number of images.
        seed: Seed of their sample.

    Raises:
        UserError: If the list cannot be read or names no image.
    """

    def __init__(self, file: Path, limit: int | None, seed: int) -> None:
        if not file.is_file():
            raise UserError(f"There is no list of captions '{file}'.")
        found: dict[str, list[str]] = {}
        try:
            for image, caption in _pairs(file):
                found.setdefault(str(image), []).append(str(caption).strip())
        except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{file}' is no list of captions: it needs columns image and caption, or COCO's images and "
                "annotations."
            ) from error
        if not found:
            raise UserError(f"'{file}' names no images.")
        chosen = sample(len(found), limit, seed)
        names = list(found)
        self._paths = [file.parent / names[index] for index in chosen]
        keys = [printable(name) for name in names]
        self._describe(file.resolve().parent.name, file.stem, keys, [None] * len(keys), (), chosen)
        self.captions = [found[names[index]] for index in chosen]

    def image(self, index: int) -> Image.Image:
        return read_image(self._paths[index])


def _pairs(file: Path) -> Iterator[tuple[str, str]]:
    if file.suffix.lower() != ".json":
        with file.open(newline="", encoding="utf-8") as lines:
            tabs = file.suffix.lower() == ".tsv"
            rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.DictReader(lines)
            for row in rows:
                yield row["image"], row["caption"]
        return
    content: Any = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        names = {image["id"]: image["file_name"] for image in content["images"]}
        content = [{"image": names[a["image_id"]], "caption": a["caption"]} for a in content["annotations"]]
    for entry in content:
        for caption in entry["captions"] if "captions" in entry else [entry["caption"]]:
            yield entry["image"], caption
