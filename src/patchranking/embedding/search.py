"""Finds images among those that are embedded, by words or by an image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from patchranking.data.images import UnreadableImageError, read_image
from patchranking.data.streams import Entry, load_stream
from patchranking.data.streams.folder import FolderStream
from patchranking.embedding.decode import Work
from patchranking.embedding.encoder import another, recorded
from patchranking.embedding.index import Index, nearest, read_manifest
from patchranking.embedding.pipeline import decoder_of
from patchranking.errors import UserError, check_numbers
from patchranking.exporting.model import ReadyModel, open_model

__all__ = ["Found", "pictures", "search"]


class Found(NamedTuple):
    """An image that is like the query.

    Attributes:
        key: Its key.
        similarity: Cosine of its vector to the query's, in -1 ... 1.
        entry: Where its picture is.
    """

    key: str
    similarity: float
    entry: Entry


def search(folder: str | Path, query: str | Path, k: int = 20, model: ReadyModel | None = None) -> list[Found]:
    """The images of an embedded folder that are most like some words or a picture; every vector is compared.

    Words are encoded by the model's text encoder, a picture as those of the folder were, pruner included.

    Args:
        folder: A folder that ``embed`` wrote.
        query: Words, or the path of a picture, as a ``Path``.
        k: How many images to find, at most.
        model: The model, where it is loaded already; by default the one that the manifest names.

    Returns:
        The images, the most similar first.

    Raises:
        UserError: If the folder holds no vectors, the model cannot be loaded, is another or has no text encoder, or
            the picture cannot be read.
    """
    check_numbers({"k": k}, k=1)
    index = Index(folder)
    loaded = open_model(index.manifest["model"]) if model is None else model
    if isinstance(query, Path):
        vector = _of_picture(query, loaded, Path(folder).expanduser(), index.manifest)
    else:
        vector = _of_words(query, loaded, index.manifest)
    cosines, places = nearest(F.normalize(vector, dim=-1), index.blocks(), k)
    entries = map(index.entry, places[0].tolist())
    return [Found(entry.key, cosine, entry) for entry, cosine in zip(entries, cosines[0].tolist(), strict=True)]


def pictures(folder: str | Path, found: list[Found]) -> list[Image.Image | str]:
    """The picture of each image that was found, or the reason why it cannot be shown."""
    manifest = read_manifest(folder)
    try:
        stream = load_stream(manifest["data"], manifest["totals"]["in"])
    except (UserError, KeyError) as error:
        return [str(error)] * len(found)
    shown: list[Image.Image | str] = []
    for one in found:
        try:
            shown.append(read_image(stream.content(one.entry.place)))
        except UnreadableImageError as error:
            shown.append(str(error))
    return shown


def _of_words(words: str, model: ReadyModel, manifest: Mapping[str, Any]) -> Tensor:
    if model.text is None:
        raise UserError(f"'{model.name}' has no text encoder: look for images like another, with --image.")
    if model.fingerprint != manifest["fingerprint"]:
        raise another(model, manifest)
    with torch.inference_mode():
        return model.text([words]).float().cpu()


def _of_picture(path: Path, model: ReadyModel, folder: Path, manifest: Mapping[str, Any]) -> Tensor:
    encoder = recorded(model, folder, manifest)
    decoder = decoder_of(model, FolderStream([path.parent]))
    decoded = decoder.__getitems__(Work(0, 0, [Entry(path.name, os.fsencode(path))]))
    if decoded.errors[0]:
        raise UserError(f"'{path}' cannot be looked for: {decoded.errors[0]}.")
    return encoder(decoded.pixels).cpu()
