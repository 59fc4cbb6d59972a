"""Tokens of images and what is to be preserved of them, read once for a fit and kept in files."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from patchranking.data import ImageData, none_readable, read_batches
from patchranking.errors import UserError
from patchranking.files import write_json
from patchranking.predictor.targets import Target
from patchranking.towers.load import LoadedModel

__all__ = ["FileRows", "cache_tokens", "with_mirrored"]

VIEWS = 2
"""An image and its mirror image."""
_IMAGES_PER_BATCH = 32
_SECONDS_PER_NOTE = 5.0
"""How often a run notes how far it is."""
_SPARED = 2**30
"""Bytes of disk that are left free."""
_NOTE = "cached.json"


def with_mirrored(importance: Tensor, grid: tuple[int, int]) -> Tensor:
    """Golden importance of images and of their mirror images, ``(images, patches)`` to ``(2, images, patches)``."""
    return torch.stack([importance, importance.unflatten(1, grid).flip(-1).flatten(1)])


class FileRows:
    """An array ``(views, images, ...)`` in a .npy file ``(images, views, ...)``; what is read of it is a copy.

    The file is mapped for the length of a read only, so that a process never holds more than it asked for.

    Args:
        path: The file.
        images: Its rows that count, in order.
    """

    def __init__(self, path: Path, images: Tensor) -> None:
        self._path, self._images = path, images
        _, views, *rest = np.load(path, mmap_mode="r").shape
        self.shape = (views, len(images), *rest)

    def __getitem__(self, key: tuple[int, Tensor]) -> Tensor:
        view, rows = key
        return torch.from_numpy(np.load(self._path, mmap_mode="r")[self._images[rows].numpy(), view])

    def of(self, rows: Sequence[int]) -> FileRows:
        """Some of the images."""
        return FileRows(self._path, self._images[list(rows)])


@torch.no_grad()
def cache_tokens(
    model: LoadedModel,
    data: ImageData,
    chosen: Sequence[int] | None,
    block: int,
    target: Target | None,
    folder: Path,
    mirrored: bool = False,
) -> tuple[list[int], dict[str, str], FileRows, FileRows | None]:
    """Reads images once for a fit; called again after a kill, it goes on where it stopped.

    Args:
        model: The model.
        data: The images.
        chosen: Indices to read; all when omitted.
        block: The block whose entering tokens are kept.
        target: What to compute of the dense model too, such as its features, if anything.
        folder: Folder for the files, which holds those of the same call or none.
        mirrored: Whether every image is seen mirrored too, as a second view.

    Returns:
        Indices read; key -> reason of those skipped; tokens ``(views, images, prefix + patches, width)``
        float16; what ``target`` says, ``(views, images, ...)``, or None. Both are in files.

    Raises:
        UserError: If no image can be read, or the disk has no room for the tokens.
    """
    tower, wanted = model.tower, list(range(len(data)) if chosen is None else chosen)
    views = VIEWS if mirrored else 1
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "tokens": (np.float16, (tower.num_prefix_tokens + tower.num_patches, tower.width))
    }
    if target is not None:
        shapes["target"] = (target.stored, target.shape(tower))
    files = {name: folder / f"{name}.npy" for name in shapes}
    used, skipped = _noted(folder, files)
    if not used:
        a_view = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in shapes.values())
        _check_room(folder, len(wanted), views * a_view)
        for name, (kind, shape) in shapes.items():
            open_memmap(files[name], "w+", kind, (len(wanted), views, *shape))
    done, noted = set(used), time.monotonic()
    left = [index for index in wanted if index not in done and data.keys[index] not in skipped]
    for found, pixels in read_batches(data, model.preprocess, _IMAGES_PER_BATCH, skipped, left, "cache tokens"):
        seen = torch.cat([pixels, pixels.flip(-1)]) if mirrored else pixels
        entering = tower.embed(seen.to(tower.device, tower.dtype), block)
        rows = {"tokens": entering.half()}
        if target is not None:
            rows["target"] = target.dense(tower, tower.run(entering, block, target.stop)).float()
        for name, values in rows.items():
            _write(files[name], len(used), values.unflatten(0, (views, -1)).transpose(0, 1).cpu().numpy())
        used += found
        if time.monotonic() - noted > _SECONDS_PER_NOTE:
            _note(folder, used, skipped)
            noted = time.monotonic()
    if not used:
        raise none_readable(skipped)
    _note(folder, used, skipped)
    stored_rows = {name: FileRows(path, torch.arange(len(used))) for name, path in files.items()}
    return used, skipped, stored_rows["tokens"], stored_rows.get("target")


def _write(path: Path, row: int, values: np.ndarray) -> None:
    """Writes rows of a .npy file, not through a map, where a full disk would end the process."""
    stored = np.load(path, mmap_mode="r")
    with path.open("r+b") as file:
        file.seek(stored.offset + row * stored[0].nbytes)
        file.write(values.astype(stored.dtype, copy=False).tobytes())


def _noted(folder: Path, files: dict[str, Path]) -> tuple[list[int], dict[str, str]]:
    """What an earlier run has read."""
    note = folder / _NOTE
    if not note.is_file() or not all(path.is_file() for path in files.values()):
        return [], {}
    told = json.loads(note.read_text())
    return told["used"], told["skipped"]


def _note(folder: Path, used: list[int], skipped: dict[str, str]) -> None:
    write_json(folder / _NOTE, {"used": used, "skipped": skipped})


def _check_room(folder: Path, images: int, bytes_per_image: int) -> None:
    need, free = bytes_per_image * images, shutil.disk_usage(folder).free
    if need > free - _SPARED:
        raise UserError(
            f"The tokens of {images} images take {need / 1e9:.1f} GB in '{folder}', and {free / 1e9:.1f} GB are "
            "free there: fit to fewer images (--limit; some 1,000 are enough), or choose another disk for --out."
        )
