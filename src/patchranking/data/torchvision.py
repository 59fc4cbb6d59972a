"""Pictures in the data sets of torchvision."""

from __future__ import annotations

import inspect
import operator
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from patchranking.data.base import ImageData, row_keys, sample
from patchranking.data.images import UnreadableImageError, read_image, reason
from patchranking.errors import UserError
from patchranking.extras import import_extra

__all__ = ["TorchvisionData"]


class TorchvisionData(ImageData):
    """One split of a data set of ``torchvision.datasets``, in the folder that PATCHRANKING_DATA names.

    What is missing there is downloaded if torchvision can. Classes without names are called by their number.

    Args:
        name: Class of ``torchvision.datasets``, e.g. ``"CIFAR10"``.
        split: The split; empty for the default one, or for ``"all"`` where there are no splits.
        default_split: The split when none is named.
        limit: Maximum number of images.
        seed: Seed of their sample.

    Raises:
        UserError: If there is no such data set or split, or torchvision cannot load it.
        MissingExtraError: If torchvision is not installed.
    """

    def __init__(self, name: str, split: str, default_split: str, limit: int | None, seed: int) -> None:
        library = import_extra("torchvision.datasets", "Data from torchvision needs torchvision", "open-clip")
        kind = getattr(library, name, None)
        if not (isinstance(kind, type) and issubclass(kind, Dataset)):
            raise UserError(f"torchvision has no data set '{name}': give the name of a class in torchvision.datasets.")
        arguments = _arguments(kind)
        split, options = _split_options(name, arguments, split, default_split)
        root = Path(os.environ.get("PATCHRANKING_DATA") or "~/.cache/patchranking/torchvision").expanduser()
        options |= {"root": str(root), "loader": Path, "download": False}
        try:
            self._dataset = _made(kind, {key: value for key, value in options.items() if key in arguments})
            length = len(self._dataset)
        except Exception as error:
            place = f"below '{root}' (PATCHRANKING_DATA names another folder)"
            raise UserError(f"torchvision cannot load {name} {place}: {reason(error)}") from error
        if not length:
            raise UserError(f"There are no pictures in 'torchvision:{name}' below '{root}'.")
        self._rows = sample(length, limit, seed)
        self._describe(name, split, row_keys(length), _classes(self._dataset), _names(self._dataset), self._rows)

    def image(self, index: int) -> Image.Image:
        try:
            picture = self._dataset[self._rows[index]][0]
        except Exception as error:
            raise UnreadableImageError(reason(error)) from error
        return read_image(picture)


def _arguments(kind: type) -> set[str]:
    """Names of a constructor's arguments, and of those it passes on to base classes by ``**kwargs``."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            found = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {argument.name for argument in found}
            if all(argument.kind is not argument.VAR_KEYWORD for argument in found):
                break
    return names


def _split_options(name: str, arguments: set[str], split: str, default_split: str) -> tuple[str, dict[str, Any]]:
    """The split's name and the constructor's options for it; EMNIST alone takes a split and ``train``."""
    if not arguments & {"split", "train"}:
        if split:
            raise UserError(f"torchvision's {name} has no splits: leave ':{split}' out.")
        return "all", {}
    split = split or default_split
    if "split" in arguments:
        return split, {"split": split, "train": default_split == "train"}
    if split not in ("train", "test"):
        raise UserError(f"torchvision's {name} has no split '{split}': choose train or test.")
    return split, {"train": split == "train"}


def _made(kind: type, options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except (RuntimeError, OSError):
        if "download" not in options:
            raise
        return kind(**options | {"download": True})


def _names(dataset: Any) -> list[str]:
    """Names of the classes, the first where a class has several; none where torchvision does not know them."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    return [name[0] if isinstance(name, tuple) else name for name in names]


def _classes(dataset: Any) -> list[int | None]:
    """Number of every image's class, without decoding the images where torchvision lists the numbers."""
    listed = [getattr(dataset, name, ()) for name in ("targets", "_labels", "labels", "y")]
    listed += [[entry[1] for entry in getattr(dataset, name, ())] for name in ("samples", "_samples")]
    for numbers in map(_numbers, listed):
        if len(numbers) == len(dataset):
            return [None if number < 0 else number for number in numbers]
    return [*_numbers(_read_classes(dataset))] or [None]


def _numbers(values: Iterable[Any]) -> list[int]:
    """The values where all are whole numbers, else nothing."""
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        return []


def _read_classes(dataset: Any) -> Iterator[Any]:
    for index in range(len(dataset)):
        try:
            yield dataset[index][1]
        except Exception:
            yield -1
