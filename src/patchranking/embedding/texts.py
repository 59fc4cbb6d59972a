"""Vectors of captions, beside those of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from patchranking.data.base import printable
from patchranking.data.captions import SUFFIXES, captions_of
from patchranking.data.streams import Entry
from patchranking.embedding.job import account, claim, pending
from patchranking.embedding.listed import Listed
from patchranking.embedding.pipeline import Clock, written
from patchranking.embedding.settings import EmbedSettings, FormatName
from patchranking.embedding.store import MANIFEST, Shard, store_of, writable
from patchranking.errors import UserError, reason
from patchranking.exporting.model import ReadyModel
from patchranking.files import locked, make_folder, write_json
from patchranking.towers.text import TextTower

__all__ = ["embed_texts"]

_BATCH = 256


def embed_texts(
    model: ReadyModel,
    file: str | Path,
    out: str | Path,
    settings: EmbedSettings = EmbedSettings(),  # noqa: B008
    form: FormatName = "parquet",
    shard_size: int = 4096,
) -> dict[str, Any]:
    """Embeds captions with the model's text encoder; run again, it goes on after a kill, and takes what is new.

    Args:
        model: The model; its text encoder runs as it is, in its own precision, and its vectors have length 1.
        file: A ``.txt`` file with a caption in every line, whose keys are the lines' numbers, or a list of captions
            (.tsv, .csv, .json), whose keys are the images.
        out: Folder for the shards, which have a column ``caption``, and the manifest.
        settings: Type of the vectors.
        form: As in ``embed_to``.
        shard_size: As in ``embed_to``.

    Returns:
        The manifest.

    Raises:
        UserError: If the model has no text encoder, the file cannot be read, or as ``embed_to`` does.
    """
    if model.text is None:
        raise UserError(f"'{model.name}' has no text encoder: leave --texts out.")
    file, out = Path(os.path.abspath(os.path.expanduser(file))), make_folder(out)
    if not file.is_file() or file.suffix.lower() not in (".txt", *SUFFIXES):
        raise UserError(f"'{file}' is no list of captions: give a .txt, .tsv, .csv or .json file.")
    with locked(out / "_lock"):
        store, listed, clock = store_of(out, form, "text"), Listed(out / "_list"), Clock()
        manifest: dict[str, Any] = {"format": form, "data": printable(str(file)), "model": model.name}
        manifest |= {"fingerprint": model.fingerprint, "dtype": settings.dtype}
        claim(out, manifest)
        with writable(out):
            listed.extend(_entries(file), shard_size)
        if not len(listed):
            raise UserError(f"'{file}' holds no captions.")
        left = pending(store, listed)
        rows = sum(listed.sizes[shard] for shard in left)
        with tqdm(total=len(listed), initial=len(listed) - rows, desc="embed texts", unit="text") as bar:
            shards = ((number, _shard(model.text, listed.entries(number), settings)) for number in left)
            for number in written(shards, store, clock):
                bar.update(listed.sizes[number])
        manifest |= account(store, listed.shards, len(listed))
        with writable(out):
            write_json(out / MANIFEST, manifest)
        return manifest


def _entries(file: Path) -> Iterator[Entry]:
    if file.suffix.lower() != ".txt":
        for image, captions in captions_of(file):
            yield from (Entry(printable(image), caption.encode()) for caption in captions)
        return
    with file.open(encoding="utf-8-sig", errors="backslashreplace") as lines:
        for number, line in enumerate(lines):
            if text := line.strip():
                yield Entry(f"row-{number:08d}", text.encode())


@torch.inference_mode()
def _shard(tower: TextTower, entries: list[Entry], settings: EmbedSettings) -> Shard:
    texts = [entry.place.decode() for entry in entries]
    batches = [_vectors(tower, texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
    vectors = np.concatenate(batches).astype(settings.dtype)
    errors = ["" if finite else "the vector is not finite" for finite in np.isfinite(vectors).all(1).tolist()]
    return Shard([entry.key for entry in entries], vectors, errors, {"caption": texts})


def _vectors(tower: TextTower, texts: list[str]) -> np.ndarray:
    try:
        found: np.ndarray = tower(texts).float().cpu().numpy()
    except Exception as error:
        some = f"'{texts[0][:80]}' and {len(texts) - 1} more"
        raise UserError(f"The text encoder cannot take the captions {some}: {reason(error)}.") from error
    return found
