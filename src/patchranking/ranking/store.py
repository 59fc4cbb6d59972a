"""Rankings on disk: Parquet shards, one row an image, and a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchranking.errors import UserError
from patchranking.files import replacing, write_json

__all__ = [
    "Rankings",
    "read_manifest",
    "read_rankings",
    "read_shard_summary",
    "shard_name",
    "write_manifest",
    "write_shard",
]

MANIFEST = "manifest.json"
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("importance", pa.list_(pa.float32())),
        ("removal_order", pa.list_(pa.int32())),
    ]
)
_SKIPPED = b"skipped"


@dataclass(frozen=True)
class Rankings:
    """Golden rankings joined by key.

    Attributes:
        importance: Image key -> importance ``(patches,)`` float32, higher = keep.
        settings: How they were made: model fingerprint, search, score.
        skipped: Image key -> why it has no ranking.
    """

    importance: dict[str, np.ndarray]
    settings: dict[str, Any]
    skipped: dict[str, str]


def shard_name(index: int, count: int) -> str:
    """File name of shard ``index`` of ``count``."""
    return f"shard-{index:05d}-of-{count:05d}.parquet"


def write_shard(
    path: Path, keys: list[str], importance: np.ndarray, order: np.ndarray, skipped: dict[str, str]
) -> None:
    """Writes one shard, all or nothing.

    Args:
        path: The file.
        keys: Image keys.
        importance: ``(images, patches)`` float32.
        order: Removal order ``(images, patches)``.
        skipped: Key -> reason for the images of this shard that have no ranking.
    """
    table = pa.table([keys, list(importance), list(order)], schema=_SCHEMA)
    table = table.replace_schema_metadata({_SKIPPED: json.dumps(skipped)})
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_shard_summary(path: Path) -> tuple[int, dict[str, str]]:
    """Number of rankings in a shard and its skipped images, without reading the rankings."""
    with _intact(path, path):
        metadata = pq.read_metadata(path)
        return metadata.num_rows, json.loads(metadata.metadata[_SKIPPED])


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


def read_rankings(folder: Path) -> Rankings:
    """Reads a finished ranking folder.

    Raises:
        UserError: If the folder holds no rankings, they are damaged, or the job that writes it has not finished.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"There are no rankings in '{folder}': make them with patchranking rank.")
    if "totals" not in manifest:
        raise UserError(f"The rankings in '{folder}' are not finished: run the same patchranking rank again to go on.")
    importance: dict[str, np.ndarray] = {}
    skipped: dict[str, str] = {}
    for index in range(manifest["shards"]):
        path = folder / shard_name(index, manifest["shards"])
        with _intact(path, path):
            table = pq.read_table(path, columns=["key", "importance"])
        rows = table.column("importance").to_pylist()
        importance.update(zip(table.column("key").to_pylist(), (np.array(r, np.float32) for r in rows), strict=True))
        skipped.update(read_shard_summary(path)[1])
    return Rankings(importance, manifest["settings"], skipped)
