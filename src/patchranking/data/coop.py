"""Data sets in CoOp's layout: pictures in a folder, and a file that splits them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import TypeVar

from PIL import Image

from patchranking.data.base import ImageData, inside, sample
from patchranking.data.images import read_image
from patchranking.errors import UserError

__all__ = ["CoopData", "split_file"]

_T = TypeVar("_T", str, int)
_PATTERN = "split_zhou_*.json"


def split_file(data: str) -> tuple[Path, str] | None:
    """The file of splits that a DATA argument names, ``FOLDER[:split]`` or ``FILE[:split]``, and the split, or None."""
    path, _, split = data.rpartition(":") if re.search(r":(train|val|test)$", data) else (data, "", "")
    place = Path(os.path.expanduser(path))
    found = sorted(place.glob(_PATTERN)) if place.is_dir() else [place] * place.match(_PATTERN)
    return next(((path, split) for path in found if path.is_file()), None)


class CoopData(ImageData):
    """One split of ``split_zhou_NAME.json``, which lists ``[picture, class number, class name]`` for each split.

    A picture that is listed twice counts once; several numbers may share a name, as ImageNet's two cranes do.

    Args:
        file: The file; the pictures lie in its folder or below.
        split: train, val or test.
        limit: Maximum number of images.
        seed: Seed of their sample.

    Raises:
        UserError: If the file cannot be read or has no such split, a class has two names or a picture two classes, or
            the pictures are not there.
    """

    def __init__(self, file: Path, split: str, limit: int | None, seed: int) -> None:
        try:
            splits = json.loads(file.read_text(encoding="utf-8"))
            entries = [(_of(str, path), _of(int, label), _of(str, name)) for path, label, name in splits[split]]
            names = {(_of(int, label), _of(str, name)) for part in splits.values() for _, label, name in part}
            class_names = dict(sorted(names))
            if list(class_names) != list(range(len(class_names))):
                raise ValueError("the classes are not numbered from 0 on")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{file}' is no split of CoOp with pictures for '{split}': give train, val or test."
            ) from error
        if len(class_names) < len(names):
            number = next(label for label, name in sorted(names) if class_names[label] != name)
            raise UserError(f"'{file}' has two names for the class {number}: give every class a number of its own.")
        entries = list(dict.fromkeys(entries))
        if len({path for path, _, _ in entries}) < len(entries):
            again = next(path for path, count in Counter(path for path, _, _ in entries).items() if count > 1)
            raise UserError(f"'{file}' lists '{again}' in two classes of '{split}': leave it in one.")
        if not entries:
            raise UserError(f"'{file}' lists no pictures for '{split}': choose another split.")
        if outside := next((path for path, _, _ in entries if not inside(path)), None):
            raise UserError(f"'{file}' names '{outside}', which is not in its folder: pictures lie in it or below.")
        folders = [file.parent, *sorted(path for path in file.parent.rglob("*") if path.is_dir())]
        root = next((folder for folder in folders if (folder / entries[0][0]).is_file()), None)
        if root is None:
            raise UserError(
                f"The pictures that '{file.name}' lists for '{split}' are not in '{file.parent}' or below: put them "
                "there."
            )
        chosen = sample(len(entries), limit, seed)
        keys, labels = [path for path, _, _ in entries], [label for _, label, _ in entries]
        self._describe(file.resolve().parent.name, split, keys, labels, list(class_names.values()), chosen)
        self._paths = [root / keys[index] for index in chosen]

    def image(self, index: int) -> Image.Image:
        return read_image(self._paths[index])


def _of(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
