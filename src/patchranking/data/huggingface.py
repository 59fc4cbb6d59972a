"""Pictures in data sets that the Hugging Face ``datasets`` library reads."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from patchranking.data.base import ImageData, printable, row_keys, sample
from patchranking.data.classnames import named, names_beside
from patchranking.data.images import UnreadableImageError, read_image, reason
from patchranking.errors import UserError
from patchranking.extras import import_extra

__all__ = ["KEYS", "HuggingFaceData", "Rows", "content", "is_text"]

KEYS = ("key", "id", "image_id", "__key__")
_LABELS = ("label", "labels", "fine_label", "class", "cls", "target")


class HuggingFaceData(ImageData):
    """Rows of one split of a data set; they stay in the library's memory-mapped files, undecoded, until they are read.

    ``classnames.txt`` in a local folder or beside it names the classes; numbers without names are numbers of its lines.

    Args:
        name: Data set on the Hub, or a local folder of Parquet files, of class folders, or of ``save_to_disk``.
        split: The split; empty for the only one, or else the default one.
        default_split: The split when none is named and there are several.
        limit: Maximum number of images.
        seed: Seed of their sample.

    Raises:
        UserError: If there is no such data set or split, or no column with pictures.
        MissingExtraError: If ``datasets`` is not installed.
    """

    def __init__(self, name: str, split: str, default_split: str, limit: int | None, seed: int) -> None:
        opened = Rows(name, split, default_split)
        library, rows, split = opened.library, opened.rows, opened.split
        chosen = sample(len(rows), limit, seed)
        folder = Path(os.path.realpath(os.path.expanduser(name)))
        classes, names = _classes(library, rows)
        if None not in classes and (lines := names_beside(folder) if folder.is_dir() else []):
            classes, names, note = _named(classes, names, lines)
            self.notes = [printable(note)] if note else []
        self._describe(folder.name, split, _keys(rows), classes, names, chosen)
        self._pictures = opened.pictures.select(chosen)

    def image(self, index: int) -> Image.Image:
        return read_image(content(self._pictures, index))


class Rows:
    """One split of a data set, opened; arguments and errors as of ``HuggingFaceData``.

    Attributes:
        library: The module ``datasets``.
        rows: The split.
        pictures: Its first column of pictures alone, undecoded.
        split: The split's name.
    """

    def __init__(self, name: str, split: str, default_split: str) -> None:
        self.library = library = import_extra("datasets", "Data from Hugging Face needs datasets", "data")
        try:
            splits = _splits(library, name)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"Could not load the data set 'hf:{name}': {reason(error)}") from error
        self.split = split = split or (default_split if len(splits) > 1 else next(iter(splits)))
        if split not in splits:
            raise UserError(f"'hf:{name}' has no split '{split}': choose one of {', '.join(splits)}.")
        self.rows = rows = splits[split]
        pictures = [column for column, kind in rows.features.items() if isinstance(kind, library.Image)]
        if not pictures or not len(rows):
            found = f"columns {', '.join(rows.column_names)}" if len(rows) else "no rows"
            raise UserError(f"'hf:{name}:{split}' has no pictures, but {found}: choose a data set of images.")
        self.pictures = rows.select_columns(pictures[0]).cast_column(pictures[0], library.Image(decode=False))


def content(pictures: Any, index: int) -> Path | bytes:
    """The file of a picture, or what is in it; UnreadableImageError where the row has none."""
    (picture,) = pictures[index].values()
    if picture is None:
        raise UnreadableImageError("the row has no picture")
    return Path(picture["path"]) if picture["bytes"] is None else picture["bytes"]


def _splits(library: ModuleType, name: str) -> dict[str, Any]:
    folder = Path(os.path.expanduser(name))
    if name.startswith(("/", ".", "~")) and not folder.is_dir():
        raise UserError(f"There is no folder '{folder}' to load 'hf:{name}' from.")
    if (folder / "dataset_dict.json").is_file():
        return library.load_from_disk(folder)
    if (folder / "state.json").is_file():
        return {"all": library.load_from_disk(folder)}
    return library.load_dataset(str(folder) if folder.is_dir() else name)


def _keys(rows: Any) -> list[str]:
    """The values of a column of names, where there is one and they tell the rows apart; else the rows' numbers."""
    for column in KEYS:
        if is_text(rows, column):
            keys: list[str] = rows[column][:]
            if all(keys) and len(set(keys)) == len(keys):
                return keys
    return row_keys(len(rows))


def _classes(library: ModuleType, rows: Any) -> tuple[list[Any], list[str]]:
    """Class of every row and the classes' names, none where the classes are their own names."""
    declared = [column for column, kind in rows.features.items() if isinstance(kind, library.ClassLabel)]
    usual = [column for column in _LABELS if _dtype(rows, column).removeprefix("u").startswith(("int", "string"))]
    columns = [column for column in _LABELS if column in declared] + declared + usual
    if not columns:
        return [None] * len(rows), []
    values = rows[columns[0]][:]
    names = rows.features[columns[0]].names if declared else []
    return [None if value in (-1, "") else value for value in values], names


def _named(classes: list[Any], names: list[str], lines: list[str]) -> tuple[list[Any], list[str], str]:
    """Classes and their names by the lines of ``classnames.txt``, and a note on what was assumed or left aside."""
    if names:
        own, note = named(names, lines)
        return classes, [own[name] for name in names], note
    if isinstance(classes[0], str):
        own, note = named(sorted(set(classes)), lines)
        return [own[kind] for kind in classes], [], note
    if (last := max(classes)) >= len(lines):
        return classes, [], f"classnames.txt is left aside: it has no line {last + 1} for class {last}."
    return classes, lines, ""


def is_text(rows: Any, column: str) -> bool:
    """Whether a column is there and of texts."""
    return _dtype(rows, column) in ("string", "large_string")


def _dtype(rows: Any, column: str) -> str:
    return getattr(rows.features.get(column), "dtype", "")
