"""Embeds a data set into a folder: resumable shards, every image accounted for."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from patchranking.data import ImageData
from patchranking.data.streams import ImageStream, stream_of
from patchranking.embedding.decode import Work
from patchranking.embedding.encoder import PRUNER, Encoder
from patchranking.embedding.listed import Listed
from patchranking.embedding.pipeline import Clock, Vectors, alive, decoded, decoder_of, encoded
from patchranking.embedding.settings import EmbedSettings, FormatName
from patchranking.embedding.store import MANIFEST, Shard, Store, store_of, writable
from patchranking.errors import UserError, check_numbers
from patchranking.files import locked, make_folder, write_json
from patchranking.methods.method import Attachable
from patchranking.pruner import Pruner
from patchranking.towers.load import LoadedModel

__all__ = ["RetryName", "account", "claim", "embed_to", "pending"]

RetryName = Literal["none", "failed"]
_PACKAGES = ("patchranking", "torch", "numpy", "pillow", "pyarrow", "open_clip_torch", "transformers", "timm")
_UNSPEAKABLE = ("fingerprint", "pruner")
_REASONS = 100
"""Reasons of failures that a manifest lists, the most frequent first; shards have those of every image."""


def embed_to(
    model: LoadedModel,
    data: ImageStream | ImageData | str,
    out: str | Path,
    pruner: Pruner | Attachable | None = None,
    settings: EmbedSettings = EmbedSettings(),  # noqa: B008
    form: FormatName = "parquet",
    shard_size: int = 4096,
    retry: RetryName = "none",
    limit: int | None = None,
) -> dict[str, Any]:
    """Embeds every image and stores the vectors; run again, it goes on after a kill, and takes what is new.

    Args:
        model: The model.
        data: The images, or their DATA argument.
        out: Folder for the shards and the manifest.
        pruner: A pruner that was fitted to the model, or a method that needs no fit.
        settings: How to embed.
        form: ``parquet``, or ``npy`` for the layout of clip-retrieval.
        shard_size: Images of a shard, at most.
        retry: ``failed`` takes the images that failed, and no others.
        limit: The first so many images.

    Returns:
        The manifest. Its ``totals`` say how many images came in, have a vector and failed; ``failed`` and
        ``left_out`` have the reasons, with numbers.

    Raises:
        UserError: If ``out`` holds vectors of other images or settings, another run is writing there, the disk is full,
            there are no images, or none can be read.
    """
    check_numbers({"shard_size": shard_size, "limit": 1 if limit is None else limit}, shard_size=1, limit=1)
    stream, out = stream_of(data, limit), make_folder(out)
    with locked(out / "_lock"):
        encoder = Encoder(model, pruner, settings)
        store, listed = store_of(out, form), Listed(out / "_list")
        manifest = {"format": form, "data": stream.identity, **encoder.record}
        known = claim(out, manifest, retry)
        if isinstance(pruner, Pruner):
            pruner.save_pretrained(out / PRUNER)
        if retry == "none":
            with writable(out):
                entries = tqdm(islice(stream.entries(), limit), desc="list", unit="image")
                listed.extend(entries, shard_size)
        if not len(listed):
            why = "".join(f"; {number} left out: {reason}" for reason, number in stream.left_out.items())
            raise UserError(f"There are no pictures in '{stream.identity}'{why}.")
        left = pending(store, listed)
        if retry == "failed" and left:
            raise UserError(f"'{out}' is not finished: run the same command without --retry first.")
        run = _Run(model, stream, encoder, settings, store, listed)
        run(_failed(store, listed) if retry == "failed" else dict.fromkeys(left))
        manifest |= account(store, listed.shards, len(listed))
        left_out = known.get("left_out", {}) if retry == "failed" else dict(sorted(stream.left_out.items()))
        manifest |= {"left_out": left_out, "batch_size": encoder.batch_size, "versions": _versions()}
        with writable(out):
            write_json(out / MANIFEST, manifest)
        if not manifest["totals"]["out"]:
            reason = next(iter(manifest["failed"]))
            raise UserError(f"None of the {len(listed)} images can be embedded, for example: {reason}.")
        return manifest


def claim(out: Path, manifest: Mapping[str, Any], retry: RetryName = "none") -> dict[str, Any]:
    """Reserves a folder for vectors of a kind, or finds that it is for that kind already; returns the manifest there.

    A folder in which nothing is listed yet is free. The caller holds the folder's lock: what a killed run left half
    written goes.

    Raises:
        UserError: If it holds others, or there is nothing to retry.
    """
    for pattern in ("*.partial", "*/*.partial"):
        for left in out.glob(pattern):
            left.unlink(missing_ok=True)
    path = out / MANIFEST
    if not path.is_file():
        if any(out.glob("shard-*.parquet")) or any(out.glob("*_emb/*.npy")):
            raise UserError(f"'{out}' holds vectors without a manifest: choose another folder for --out.")
        if retry == "failed":
            raise UserError(f"'{out}' holds no vectors, so nothing failed: run the command without --retry.")
        with writable(out):
            write_json(path, manifest)
        return dict(manifest)
    try:
        known = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"'{path}' is damaged: choose another folder for --out.") from error
    if not any(out.glob("_list/list-*.parquet")):
        known = dict(manifest)
        with writable(out):
            write_json(path, manifest)
    for name, own in json.loads(json.dumps(manifest)).items():
        if name != "model" and known.get(name) != own:
            shown = "another" if name in _UNSPEAKABLE else f"{_shown(known.get(name))}, not {_shown(own)}"
            raise UserError(
                f"'{out}' holds vectors of another kind ({name}: {shown}): choose another folder for --out, or give "
                "the command that made it."
            )
    return known


def pending(store: Store, listed: Listed) -> list[int]:
    """Shards that are not finished."""
    return [shard for shard in range(listed.shards) if not store.path(shard).exists()]


def account(store: Store, shards: int, total: int) -> dict[str, Any]:
    """Counts what the shards hold: every row has a vector or a reason why not.

    Raises:
        UserError: If a shard is damaged, or rows are missing.
    """
    rows, reasons = 0, Counter[str]()
    for shard in range(shards):
        count, found = store.account(shard)
        rows += count
        reasons += found
    if rows != total:
        raise UserError(f"'{store.folder}' accounts for {rows} of {total}: embed again, with another folder for --out.")
    ordered = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
    shown, others = dict(ordered[:_REASONS]), sum(number for _, number in ordered[_REASONS:])
    failed = sum(reasons.values())
    return {
        "totals": {"in": total, "out": total - failed, "failed": failed},
        "failed": shown | ({"other reasons": others} if others else {}),
    }


def written(shards: Iterable[tuple[int, Shard]], store: Store, clock: Clock) -> Iterator[int]:
    """Writes shards while the next are made, one at a time; yields each number when its shard is there."""
    with ThreadPoolExecutor(1) as writer:
        before: tuple[int, Future[None]] | None = None
        for number, shard in shards:
            if before is not None:
                with clock.waiting("write"):
                    before[1].result()
                yield before[0]
            before = number, writer.submit(store.write, number, shard)
        if before is not None:
            with clock.waiting("write"):
                before[1].result()
            yield before[0]


class _Run:
    """Embeds shards: all rows of one, or some of a finished one anew."""

    def __init__(
        self,
        model: LoadedModel,
        stream: ImageStream,
        encoder: Encoder,
        settings: EmbedSettings,
        store: Store,
        listed: Listed,
    ) -> None:
        self._model, self._stream, self._encoder, self._settings = model, stream, encoder, settings
        self._store, self._listed, self._clock = store, listed, Clock()

    def __call__(self, wanted: Mapping[int, np.ndarray | None]) -> None:
        """Embeds the rows of each shard, boolean ``(rows,)``, or all of them where it says None."""
        if not wanted:
            return
        total = len(self._listed)
        rows = sum(self._listed.sizes[shard] if own is None else int(own.sum()) for shard, own in wanted.items())
        with alive(), tqdm(total=total, initial=total - rows, desc="embed", unit="image") as bar:
            decoder = decoder_of(self._model, self._stream)
            batches = decoded(decoder, self._work(wanted), self._settings, self._encoder.tower.device)
            vectors = self._shown(encoded(batches, self._encoder, self._clock), wanted, bar)
            shards = ((number, self._shard(list(own), wanted[number])) for number, own in groupby(vectors, _number))
            for _ in written(shards, self._store, self._clock):
                pass

    def _work(self, wanted: Mapping[int, np.ndarray | None]) -> Iterator[Work]:
        """Batches of the shards; an image is in the same place of the same batch whatever else is wanted."""
        size = self._encoder.batch_size
        for shard, rows in wanted.items():
            entries = self._listed.entries(shard)
            for start in range(0, len(entries), size):
                batch = entries[start : start + size]
                if rows is None:
                    yield Work(shard, start, batch)
                elif (own := rows[start : start + size]).any():
                    yield Work(shard, start, [entry if keep else None for entry, keep in zip(batch, own, strict=True)])

    def _shown(
        self, batches: Iterator[Vectors], wanted: Mapping[int, np.ndarray | None], bar: Any
    ) -> Iterator[Vectors]:
        for batch in batches:
            rows = wanted[batch.shard]
            own = len(batch.keys) if rows is None else int(rows[batch.start : batch.start + len(batch.keys)].sum())
            bar.set_postfix_str(self._clock.shares(), refresh=False)
            bar.update(own)
            yield batch

    def _shard(self, batches: Sequence[Vectors], wanted: np.ndarray | None) -> Shard:
        """A shard of all its batches, or a finished one in which the wanted rows are new."""
        if wanted is None:
            sizes = np.concatenate([batch.sizes for batch in batches])
            return Shard(
                [key for batch in batches for key in batch.keys],
                np.concatenate([batch.vectors for batch in batches]),
                [error for batch in batches for error in batch.errors],
                {"width": sizes[:, 0].copy(), "height": sizes[:, 1].copy()},
            )
        shard = self._store.read(batches[0].shard)
        for batch in batches:
            for place in np.flatnonzero(wanted[batch.start : batch.start + len(batch.keys)]):
                row = batch.start + place
                shard.vectors[row], shard.errors[row] = batch.vectors[place], batch.errors[place]
                for column, size in zip(("width", "height"), batch.sizes[place], strict=True):
                    shard.columns[column][row] = size
        return shard


def _number(batch: Vectors) -> int:
    return batch.shard


def _failed(store: Store, listed: Listed) -> dict[int, np.ndarray | None]:
    """Shard -> which of its rows failed, for shards where some did."""
    some = [shard for shard in range(listed.shards) if store.account(shard)[1]]
    return {shard: ~store.read(shard).good for shard in some}


def _shown(value: Any) -> str:
    return str(value)[:80] if isinstance(value, str) else json.dumps(value)[:80]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
