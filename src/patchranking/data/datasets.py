"""Turns a DATA argument into images with keys, labels and class names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from patchranking.data.base import DATA_HELP, ImageData
from patchranking.data.captions import SUFFIXES as CAPTION_SUFFIXES
from patchranking.data.captions import CaptionData
from patchranking.data.coop import CoopData, split_file
from patchranking.data.folder import FolderData
from patchranking.errors import UserError, check_numbers

__all__ = ["FolderData", "folders", "load_data"]

_DEMO_SCENES = 500
_SHOWN = 200


def load_data(data: str, limit: int | None = None, seed: int = 0, default_split: str = "test") -> ImageData:
    """Loads images by their DATA argument.

    Args:
        data: ``demo:train``, ``hf:NAME:train`` (a data set on the Hugging Face Hub or in a local folder),
            ``wds:data/{000..003}.tar`` (WebDataset shards), ``torchvision:CIFAR10:test``, a folder, folders joined
            by commas, ``FOLDER[:split]`` with CoOp's ``split_zhou_*.json`` in it, or a list of captions (.tsv, .csv,
            .json).
        limit: Maximum number of images: a seeded sample, or the first scenes of the demo.
        seed: Seed of the sample.
        default_split: Split when none is named.

    Raises:
        UserError: If the argument names nothing that can be loaded, or the limit is below 1.
    """
    check_numbers({"limit": 1 if limit is None else limit, "seed": seed}, limit=1, seed=0)
    try:
        return _load(str(data), limit, seed, default_split)
    except OSError as error:
        raise UserError(f"The data '{str(data)[:_SHOWN]}' cannot be read: {error.strerror}.") from error


def _load(data: str, limit: int | None, seed: int, default_split: str) -> ImageData:
    source, colon, rest = data.partition(":")
    if source == "demo":
        from patchranking.data.demo import DemoData

        return DemoData(rest or default_split, _DEMO_SCENES if limit is None else limit)
    if colon and source in ("hf", "wds", "torchvision"):
        return _load_from(source, rest, limit, seed, default_split)
    if (listed := split_file(data)) is not None:
        return CoopData(listed[0], listed[1] or default_split, limit, seed)
    whole = Path(os.path.expanduser(data))
    if whole.suffix.lower() in CAPTION_SUFFIXES and not whole.is_dir():
        return CaptionData(whole, limit, seed)
    return FolderData(folders(data), limit, seed)


def folders(data: str) -> list[Path]:
    """The folders that a DATA argument names.

    Raises:
        UserError: If one has no name or is no folder, or the argument looks like another kind of data.
    """
    source, colon, _ = data.partition(":")
    parts = [data] if data and Path(os.path.expanduser(data)).is_dir() else data.split(",")
    if not all(parts):
        raise UserError(f"A folder in '{data}' has no name: give {DATA_HELP}.")
    if colon and re.fullmatch(r"\w+", source) and not Path(parts[0]).is_dir():
        raise UserError(f"There is no kind of data '{source}:' as in '{data}': give {DATA_HELP}.")
    found = [Path(os.path.expanduser(part)) for part in parts]
    for folder in found:
        if not folder.is_dir():
            wrong = f"'{folder}' is no folder" if folder.exists() else f"There is no folder '{folder}'"
            raise UserError(f"{wrong}: give {DATA_HELP}.")
    return found


def _load_from(source: str, rest: str, limit: int | None, seed: int, default_split: str) -> ImageData:
    if not rest.strip(":"):
        raise UserError(f"'{source}:' names no images: give {DATA_HELP}.")
    if source == "wds":
        from patchranking.data.webdataset import WebDatasetData

        return WebDatasetData(rest, limit, seed)
    name, _, split = rest.partition(":")
    if source == "hf":
        from patchranking.data.huggingface import HuggingFaceData

        return HuggingFaceData(name, split, default_split, limit, seed)
    from patchranking.data.torchvision import TorchvisionData

    return TorchvisionData(name, split, default_split, limit, seed)
