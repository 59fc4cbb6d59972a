"""Images of any number, listed one after the other and read by place, from a DATA argument."""

from __future__ import annotations

import os
from pathlib import Path

from patchranking.data.base import ImageData
from patchranking.data.captions import SUFFIXES as CAPTION_SUFFIXES
from patchranking.data.coop import split_file
from patchranking.data.datasets import folders, load_data
from patchranking.data.streams.base import Entry, ImageStream
from patchranking.data.streams.folder import FolderStream
from patchranking.data.streams.indexed import IndexedStream
from patchranking.data.streams.paths import SUFFIXES, PathStream

__all__ = ["Entry", "ImageStream", "load_stream", "stream_of"]

_INDEXED = ("demo", "torchvision")


def load_stream(data: str, limit: int | None = None, default_split: str = "test") -> ImageStream:
    """Opens images by their DATA argument, without listing them where there may be many.

    Folders, WebDataset shards, data sets of Hugging Face and lists of paths are never in memory as a whole; all else is
    loaded by ``load_data``.

    Args:
        data: As in ``load_data``; or a ``.txt`` file with a path in every line, or a ``.parquet`` file with a column of
            paths. All pictures of a folder count, with or without folders of classes.
        limit: How many scenes the demo has at least; no limit on anything else.
        default_split: Split when none is named.

    Raises:
        UserError: If the argument names nothing that can be opened.
    """
    source, colon, rest = data.partition(":")
    path = Path(os.path.expanduser(data))
    if colon and source == "wds":
        from patchranking.data.streams.webdataset import ShardStream

        return ShardStream(rest)
    if colon and source == "hf":
        from patchranking.data.streams.huggingface import RowStream

        return RowStream(rest, default_split)
    if source in _INDEXED or split_file(data) is not None:
        return IndexedStream(load_data(data, limit if source == "demo" else None, default_split=default_split), data)
    if path.suffix.lower() in (*SUFFIXES, *CAPTION_SUFFIXES) and not path.is_dir():
        return PathStream(path) if path.suffix.lower() in SUFFIXES else IndexedStream(load_data(data), str(path))
    return FolderStream(folders(data))


def stream_of(data: ImageStream | ImageData | str, limit: int | None = None) -> ImageStream:
    """A stream of what is one, a DATA argument, or images that are loaded."""
    if isinstance(data, ImageData):
        return IndexedStream(data, f"{data.name}:{data.split}")
    return load_stream(data, limit) if isinstance(data, str) else data
