"""Vectors on disk: shards that are whole or not there, in Parquet or as clip-retrieval has them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchranking.embedding.settings import FormatName
from patchranking.errors import UserError
from patchranking.files import replacing

__all__ = ["DENSE", "MANIFEST", "NumpyStore", "ParquetStore", "Shard", "Store", "store_of", "writable"]

MANIFEST = "_manifest.json"
"""Readers of a Parquet folder, pandas among them, pass over names that begin with an underscore."""
_METADATA = b"patchranking"
DENSE = "ran_densely"
"""The column, 1 or null, of the images that a fallback ran densely."""


@dataclass
class Shard:
    """The rows of a shard, in the order of its entries.

    Attributes:
        keys: ``(rows,)``.
        vectors: ``(rows, features)``, float16 or float32; of no meaning where there is an error.
        errors: Why a row has no vector, empty where it has one.
        columns: More about each row: name -> int32 ``(rows,)``, 0 where it is unknown, or texts.
    """

    keys: list[str]
    vectors: np.ndarray
    errors: list[str]
    columns: dict[str, np.ndarray | list[str]]

    @property
    def good(self) -> np.ndarray:
        """Which rows have a vector, boolean ``(rows,)``."""
        return np.array([not error for error in self.errors], bool)


class Store(ABC):
    """Numbered shards in a folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def path(self, shard: int) -> Path:
        """The file that is there when the shard is finished."""

    @abstractmethod
    def _write(self, number: int, shard: Shard) -> None: ...

    @abstractmethod
    def _read(self, number: int) -> Shard: ...

    @abstractmethod
    def _keys(self, number: int) -> tuple[np.ndarray, list[str]]: ...

    @abstractmethod
    def _vectors(self, number: int) -> np.ndarray: ...

    @abstractmethod
    def _about(self, number: int) -> Path:
        """The file that holds the account of a shard."""

    def write(self, number: int, shard: Shard) -> None:
        """Writes a shard, all or nothing.

        Raises:
            UserError: If it cannot be written.
        """
        with writable(self.folder):
            self._write(number, shard)

    def read(self, number: int) -> Shard:
        """A finished shard; vectors of failed rows are zero."""
        with self._intact(number):
            return self._read(number)

    def keys(self, number: int) -> tuple[np.ndarray, list[str]]:
        """Which rows of a finished shard have a vector, ``(good,)``, and their keys."""
        with self._intact(number):
            return self._keys(number)

    def vectors(self, number: int) -> np.ndarray:
        """The vectors of these rows, ``(good, features)``, as they are stored."""
        with self._intact(number):
            return self._vectors(number)

    def account(self, number: int) -> tuple[int, Counter[str]]:
        """Rows of a finished shard, and how many of them failed for which reason, without reading the vectors."""
        with self._intact(number):
            told = json.loads(pq.read_metadata(self._about(number)).metadata[_METADATA])
            return told["rows"], Counter(told["failed"])

    def ran_densely(self, number: int) -> int:
        """Rows of a finished shard that a fallback ran densely."""
        with self._intact(number):
            return int(json.loads(pq.read_metadata(self._about(number)).metadata[_METADATA])[DENSE])

    @contextmanager
    def _intact(self, number: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"'{self.path(number)}' is missing or damaged: delete it and run the same command again."
            ) from error


class ParquetStore(Store):
    """One Parquet file a shard, failed rows included."""

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.parquet"

    def _about(self, number: int) -> Path:
        return self.path(number)

    def _write(self, number: int, shard: Shard) -> None:
        bad = ~shard.good
        width = shard.vectors.shape[1]
        flat = np.where(bad[:, None], 0, shard.vectors).astype(shard.vectors.dtype).reshape(-1)
        columns = {
            "key": pa.array(shard.keys, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), width, mask=pa.array(bad)),
            **_arrays(shard.columns),
            "status": pa.array(np.where(bad, "failed", "ok")),
            "error": pa.array([error or None for error in shard.errors], pa.string()),
        }
        _write_table(self.path(number), columns, shard)

    def _read(self, number: int) -> Shard:
        table = pq.read_table(self.path(number), partitioning=None).combine_chunks()
        embedding, bad = table["embedding"].chunk(0), table["error"].is_valid().to_numpy()
        vectors = embedding.values.to_numpy(zero_copy_only=False).reshape(-1, embedding.type.list_size)
        vectors = np.where(bad[:, None], 0, vectors).astype(vectors.dtype)
        names = [name for name in table.column_names if name not in ("key", "embedding", "status", "error")]
        return Shard(
            table["key"].to_pylist(),
            vectors,
            [error or "" for error in table["error"].to_pylist()],
            {name: _values(table[name]) for name in names},
        )

    def _keys(self, number: int) -> tuple[np.ndarray, list[str]]:
        table = pq.read_table(self.path(number), columns=["key", "error"], partitioning=None)
        rows = np.flatnonzero(table["error"].is_null())
        return rows, table["key"].take(pa.array(rows)).to_pylist()

    def _vectors(self, number: int) -> np.ndarray:
        table = pq.read_table(self.path(number), columns=["embedding"], partitioning=None).combine_chunks()
        embedding = table["embedding"].drop_null().combine_chunks()
        return np.asarray(embedding.flatten()).reshape(-1, embedding.type.list_size)


class NumpyStore(Store):
    """The layout of clip-retrieval: vectors in ``img_emb``, keys of the same rows in ``metadata``, both numbered.

    Failed rows are in ``failed``, with their place in the shard.

    Args:
        folder: The folder.
        kind: ``img`` or ``text``.
    """

    def __init__(self, folder: Path, kind: str = "img") -> None:
        super().__init__(folder)
        self._kind = kind

    def path(self, shard: int) -> Path:
        return self._place(f"{self._kind}_emb", shard, "npy")

    def _about(self, number: int) -> Path:
        return self._place("failed", number, "parquet")

    def _place(self, name: str, number: int, suffix: str) -> Path:
        return self.folder / name / f"{name}_{number:05d}.{suffix}"

    def _write(self, number: int, shard: Shard) -> None:
        """Vectors come last, and old ones go first: where they are, the shard is finished."""
        self.path(number).unlink(missing_ok=True)
        good = shard.good
        for name in ("failed", "metadata", f"{self._kind}_emb"):
            (self.folder / name).mkdir(exist_ok=True)
        rows = np.flatnonzero(~good)
        failed = {
            "row": pa.array(rows, pa.int32()),
            "key": pa.array([shard.keys[row] for row in rows], pa.string()),
            **{name: values.take(pa.array(rows)) for name, values in _arrays(shard.columns).items()},
            "error": pa.array([shard.errors[row] for row in rows], pa.string()),
        }
        kept = pa.array(np.flatnonzero(good))
        own = {name: values.take(kept) for name, values in _arrays(shard.columns).items()}
        key = "image_path" if self._kind == "img" else "key"
        metadata = {key: pa.array(shard.keys, pa.string()).take(kept), **own}
        _write_table(self._about(number), failed, shard)
        _write_table(self._place("metadata", number, "parquet"), metadata, shard)
        with replacing(self.path(number)) as partial, partial.open("wb") as file:
            np.save(file, shard.vectors[good])

    def _read(self, number: int) -> Shard:
        vectors = np.load(self.path(number))
        failed = pq.read_table(self._about(number), partitioning=None)
        metadata = pq.read_table(self._place("metadata", number, "parquet"), partitioning=None)
        bad = failed["row"].to_numpy()
        good, kept = self._keys(number)
        order = np.argsort(np.concatenate([good, bad]))
        names = [name for name in failed.column_names if name not in ("row", "key", "error")]
        every = np.zeros((len(order), vectors.shape[1]), vectors.dtype)
        every[good] = vectors
        keys = [*kept, *failed["key"].to_pylist()]
        errors = [*[""] * len(good), *failed["error"].to_pylist()]
        both = pa.concat_tables([metadata.select(names), failed.select(names)]).take(pa.array(order))
        return Shard(
            [keys[place] for place in order],
            every,
            [errors[place] for place in order],
            {name: _values(both[name]) for name in names},
        )

    def _keys(self, number: int) -> tuple[np.ndarray, list[str]]:
        keys = pq.read_table(self._place("metadata", number, "parquet"), partitioning=None).column(0).to_pylist()
        bad = pq.read_table(self._about(number), columns=["row"], partitioning=None)["row"].to_numpy()
        return np.setdiff1d(np.arange(len(keys) + len(bad)), bad), keys

    def _vectors(self, number: int) -> np.ndarray:
        vectors: np.ndarray = np.load(self.path(number), mmap_mode="r")
        return vectors


def store_of(folder: Path, form: FormatName, kind: str = "img") -> Store:
    """The store of a format."""
    return ParquetStore(folder) if form == "parquet" else NumpyStore(folder, kind)


def _arrays(columns: Mapping[str, np.ndarray | Sequence[str]]) -> dict[str, Any]:
    """Columns as Arrow has them, unknown numbers as nulls."""
    return {
        name: pa.array(values, pa.int32(), mask=values == 0)
        if isinstance(values, np.ndarray)
        else pa.array(values, pa.string())
        for name, values in columns.items()
    }


def _values(column: Any) -> np.ndarray | list[str]:
    """The inverse of ``_arrays``."""
    if pa.types.is_string(column.type):
        return list(column.to_pylist())
    return np.array([value or 0 for value in column.to_pylist()], np.int32)


def _write_table(path: Path, columns: Mapping[str, Any], shard: Shard) -> None:
    reasons = Counter(filter(None, shard.errors))
    told: dict[str, Any] = {"rows": len(shard.keys), "failed": dict(sorted(reasons.items()))}
    if DENSE in shard.columns:
        told[DENSE] = int(np.sum(np.asarray(shard.columns[DENSE])))
    table = pa.table(dict(columns)).replace_schema_metadata({_METADATA: json.dumps(told)})
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Says in one sentence that a folder cannot be written to, for example because the disk is full."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"'{folder}' cannot be written to ({error.strerror or error}): make space there and run the same command "
            "again, which goes on where this one stopped."
        ) from error
