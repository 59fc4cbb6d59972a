"""Features in which images are typical or not: of an encoder, or histograms of gradients, which know of no network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from patchranking.data import ImageData
from patchranking.data.streams import ImageStream, stream_of
from patchranking.embedding.decode import Decoder, Work
from patchranking.embedding.index import read_manifest
from patchranking.embedding.job import account, claim, embed_to, pending
from patchranking.embedding.listed import Listed
from patchranking.embedding.pipeline import Clock, Vectors, alive, decoded, written
from patchranking.embedding.settings import EmbedSettings
from patchranking.embedding.store import MANIFEST, ParquetStore, Shard, Store, store_of, writable
from patchranking.errors import UserError
from patchranking.extras import import_extra
from patchranking.files import locked, make_folder, write_json
from patchranking.towers.load import LoadedModel

__all__ = ["HOG", "Features", "compute_features"]

HOG = "hog"
"""The name of histograms of oriented gradients among the models."""

_SIDE, _CELL, _BLOCK, _ORIENTATIONS = 64, 16, 2, 9
_LENGTH = _ORIENTATIONS * _BLOCK**2 * (_SIDE // _CELL - _BLOCK + 1) ** 2
_SHARD = 512


class Features(NamedTuple):
    """Features of the images that have any, in the data set's order.

    Attributes:
        keys: ``(images,)``.
        vectors: Float32 ``(images, features)``, as the encoder gives them.
        failed: Key -> why an image has none.
        about: The model's ``name`` and ``fingerprint``, and whatever else the features depend on, ready for JSON.
    """

    keys: list[str]
    vectors: np.ndarray
    failed: dict[str, str]
    about: dict[str, Any]


def compute_features(
    data: ImageData,
    model: LoadedModel | None,
    out: str | Path,
    workers: int | Literal["auto"] = "auto",
) -> Features:
    """Computes features in resumable shards, every image accounted for; run again, it takes what is there.

    Args:
        data: The images; their keys are all different.
        model: An encoder, or None for histograms of gradients: 9 orientations in 4 x 4 cells of the grey picture at 64
            pixels, in overlapping blocks of 2 x 2 cells, L2-Hys normalised (Dalal and Triggs, CVPR 2005; scikit-image).
        out: Folder for the shards, as ``embed`` writes it.
        workers: Processes that decode pictures.

    Raises:
        MissingExtraError: If scikit-image is not installed.
        UserError: If images share a key, none can be read, or ``out`` holds features of another model or other images.
    """
    if len(set(data.keys)) < len(data.keys):
        raise UserError("Some images have the same key, and features are told apart by key: give each one once.")
    folder = make_folder(out)
    _check_listed(folder, data)
    settings = EmbedSettings(dtype="float32", workers=workers)
    if model is None:
        _hog_to(stream_of(data), folder, settings)
    else:
        embed_to(model, data, folder, None, settings, shard_size=_SHARD)
    return _read(folder)


def _check_listed(folder: Path, data: ImageData) -> None:
    """Raises UserError where a folder lists other images: an image is found again by its number among all."""
    listed = Listed(folder / "_list")
    known = [entry.key for shard in range(listed.shards) for entry in listed.entries(shard)]
    if known and known != list(data.keys):
        raise UserError(f"'{folder}' holds features of other images: choose another folder for --out, or delete it.")


def _hog_to(stream: ImageStream, folder: Path, settings: EmbedSettings) -> None:
    extract = _Hog(stream)
    manifest = {"format": "parquet", "data": stream.identity, **extract.record}
    with locked(folder / "_lock"):
        store, listed = ParquetStore(folder), Listed(folder / "_list")
        claim(folder, manifest)
        with writable(folder):
            listed.extend(stream.entries(), _SHARD)
        left = pending(store, listed)
        sizes = [listed.sizes[shard] for shard in left]
        work = (Work(shard, 0, listed.entries(shard)) for shard in left)
        with alive(), tqdm(total=len(listed), initial=len(listed) - sum(sizes), desc=HOG, unit="image") as bar:
            found: Iterator[Any] = decoded(extract, work, settings, torch.device("cpu"))  # type: ignore[arg-type]
            shards = ((one.shard, Shard(one.keys, one.vectors, one.errors, {})) for one in found)
            for shard in written(shards, store, Clock()):
                bar.update(listed.sizes[shard])
        manifest |= account(store, listed.shards, len(listed))
        with writable(folder):
            write_json(folder / MANIFEST, manifest)


@dataclass(frozen=True)
class _Hog:
    """Reads pictures and makes histograms of their gradients; takes the place of a ``Decoder`` in its processes."""

    stream: ImageStream

    @property
    def record(self) -> dict[str, Any]:
        skimage = import_extra("skimage", "Histograms of gradients need scikit-image", "pretrain")
        shape = {"side": _SIDE, "cell": _CELL, "block": _BLOCK, "orientations": _ORIENTATIONS}
        about = {"preprocessing": shape, "version": skimage.__version__}
        return {"model": HOG, "fingerprint": [HOG, *shape.values()], "features": _LENGTH, **about}

    def __getitems__(self, work: Work) -> Vectors:
        from skimage.feature import hog

        grey = Decoder(self.stream, _grey, (_SIDE, _SIDE), draft=True).__getitems__(work)
        vectors = np.zeros((len(grey.keys), _LENGTH), np.float32)
        for row, (pixels, error) in enumerate(zip(grey.pixels.numpy(), grey.errors, strict=True)):
            if not error:
                vectors[row] = hog(pixels[0], _ORIENTATIONS, (_CELL, _CELL), (_BLOCK, _BLOCK))
        return Vectors(work.shard, work.start, grey.keys, vectors, grey.sizes.numpy(), grey.errors)


def _grey(image: Image.Image) -> Tensor:
    """The middle of a picture, grey, three times ``(3, side, side)``, in 0 ... 1."""
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    box = (left, top, left + short, top + short)
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box)
    return torch.from_numpy(np.array(small, np.float32) / 255).expand(3, -1, -1)


def _read(folder: Path) -> Features:
    """What a finished folder holds."""
    manifest = read_manifest(folder)
    store: Store = store_of(folder, manifest["format"])
    shards = [store.read(shard) for shard in range(Listed(folder / "_list").shards)]
    failed = {key: error for shard in shards for key, error in zip(shard.keys, shard.errors, strict=True) if error}
    keys = [key for shard in shards for key in shard.keys if key not in failed]
    if not keys:
        key, why = next(iter(failed.items()))
        raise UserError(f"None of the {len(failed)} images can be read, for example '{key}': {why}")
    named = ("model", "fingerprint", "preprocessing")
    return Features(
        keys, np.concatenate([shard.vectors[shard.good] for shard in shards]), failed, {k: manifest[k] for k in named}
    )
