"""Rankings on disk: Parquet shards, one row an image, and a manifest."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from patchranking.errors import UserError
from patchranking.files import replacing, write_json

__all__ = [
    "finished_manifest",
    "golden_by_index",
    "iter_rankings",
    "read_manifest",
    "read_shard_summary",
    "shard_name",
    "write_manifest",
    "write_shard",
]

MANIFEST = "_manifest.json"
"""Readers of a Parquet folder, pandas among them, pass over names that begin with an underscore."""
_NAME = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("importance", pa.list_(pa.float32())),
        ("removal_order", pa.list_(pa.int16())),
        ("search", _NAME),
        ("score", _NAME),
    ]
)
_METADATA = b"patchranking"


def shard_name(index: int, count: int) -> str:
    """File name of shard ``index`` of ``count``."""
    return f"shard-{index:05d}-of-{count:05d}.parquet"


def write_shard(
    path: Path,
    keys: list[str],
    importance: np.ndarray,
    order: np.ndarray,
    skipped: dict[str, str],
    settings: dict[str, Any],
) -> None:
    """Writes one shard, all or nothing.

    Args:
        path: The file.
        keys: Image keys.
        importance: ``(images, patches)`` float32.
        order: Removal order ``(images, patches)``.
        skipped: Key -> reason for the images of this shard that have no ranking.
        settings: How the rankings were made; kept in the file's metadata, ``search`` and ``score`` also as columns.
    """
    names = ([settings[name]] * len(keys) for name in ("search", "score"))
    table = pa.table([keys, list(importance), list(order), *names], schema=_SCHEMA)
    table = table.replace_schema_metadata({_METADATA: json.dumps({"settings": settings, "skipped": skipped})})
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def read_shard_summary(path: Path) -> tuple[int, dict[str, str]]:
    """Number of rankings in a shard and its skipped images with reasons, without reading the rankings."""
    with _intact(path, path):
        metadata = pq.read_metadata(path)
        return metadata.num_rows, json.loads(metadata.metadata[_METADATA])["skipped"]


@contextmanager
def _intact(path: Path, delete: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{path}' is missing or damaged: delete '{delete}' and run the same patchranking rank again."
        ) from error


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest, all or nothing."""
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, None when there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    with _intact(path, folder):
        return dict(json.loads(path.read_text()))


def finished_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose rankings are complete.

    Raises:
        UserError: If the folder holds no rankings, they are damaged, or the job that writes it has not finished.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"There are no rankings in '{folder}': make them with patchranking rank.")
    if "totals" not in manifest:
        raise UserError(f"The rankings in '{folder}' are not finished: run the same patchranking rank again to go on.")
    with _intact(folder / MANIFEST, folder):
        operator.index(manifest["shards"])
        operator.index(manifest["settings"]["block"])
    return manifest


def iter_rankings(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Reads the rankings of a finished folder, one shard in memory at a time.

    Args:
        folder: The folder.

    Yields:
        An image's key and its importance ``(patches,)`` float32, higher = keep.

    Raises:
        UserError: If the folder holds no rankings, they are damaged, or the job that writes it has not finished.
    """
    shards = finished_manifest(folder)["shards"]
    for index in range(shards):
        path = folder / shard_name(index, shards)
        with _intact(path, path):
            table = pq.read_table(path, columns=["key", "importance"], page_checksum_verification=True)
            rows = [np.array(row.values, np.float32) for row in table["importance"]]
        yield from zip(table["key"].to_pylist(), rows, strict=True)


def golden_by_index(folder: Path, keys: Sequence[str]) -> dict[int, Tensor]:
    """Index of an image -> golden importance of its patches, ``(patches,)``, for the keys that have a ranking.

    Raises:
        UserError: As ``iter_rankings`` does.
    """
    index_of = {key: index for index, key in enumerate(keys)}
    return {index_of[key]: torch.from_numpy(row) for key, row in iter_rankings(folder) if key in index_of}
