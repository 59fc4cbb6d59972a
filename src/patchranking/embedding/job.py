"""Embeds a data set into a folder: resumable shards, every image accounted for."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from patchranking.data import ImageData
from patchranking.data.streams import ImageStream, stream_of
from patchranking.embedding.encoder import PRUNER, Encoder
from patchranking.embedding.listed import Listed
from patchranking.embedding.ray_engine import embed_on_ray
from patchranking.embedding.settings import EmbedSettings, EngineName, FormatName, RetryName
from patchranking.embedding.shards import ShardEmbedder
from patchranking.embedding.store import MANIFEST, Store, store_of, writable
from patchranking.errors import UserError, check_numbers
from patchranking.exporting.model import ReadyModel
from patchranking.files import locked, make_folder, write_json
from patchranking.methods.method import Attachable
from patchranking.pruner import Pruner

__all__ = ["ENGINES", "account", "claim", "embed_to", "pending"]

ENGINES: dict[str, Callable[[ShardEmbedder, Sequence[int], Callable[[int], None]], None]] = {
    "local": ShardEmbedder.embed,
    "ray": embed_on_ray,
}
"""Each embeds some shards and tells numbers of images done."""
_PACKAGES = ("patchranking", "torch", "numpy", "pillow", "pyarrow", "open_clip_torch", "transformers", "timm")
_UNSPEAKABLE = ("fingerprint", "pruner")
_REASONS = 100
"""Reasons of failures that a manifest lists, the most frequent first; shards have those of every image."""


def embed_to(
    model: ReadyModel,
    data: ImageStream | ImageData | str,
    out: str | Path,
    pruner: Pruner | Attachable | None = None,
    settings: EmbedSettings = EmbedSettings(),  # noqa: B008
    form: FormatName = "parquet",
    shard_size: int = 4096,
    retry: RetryName = "none",
    limit: int | None = None,
    engine: EngineName = "local",
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
        engine: ``local``, this process, or ``ray``, a cluster.

    Returns:
        The manifest. Its ``totals`` say how many images came in, have a vector and failed, and with a fallback how many
        of the vectors are dense; ``failed`` and ``left_out`` have the reasons, with numbers.

    Raises:
        UserError: If ``out`` holds vectors of other images or settings, another run is writing there, the disk is full,
            there are no images, none can be read, or the engine cannot run.
    """
    if engine not in ENGINES:
        raise UserError(f"Unknown engine '{engine}': choose from {', '.join(ENGINES)}.")
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
        if retry == "failed":
            if left:
                raise UserError(f"'{out}' is not finished: run the same command without --retry first.")
            left = [shard for shard in range(listed.shards) if store.account(shard)[1]]
        embedder = ShardEmbedder(model, stream, encoder, settings, store, listed, retry == "failed")
        _embed(embedder, left, engine)
        manifest |= account(store, listed.shards, len(listed))
        if settings.fallback is not None:
            manifest["totals"]["dense"] = sum(map(store.ran_densely, range(listed.shards)))
        left_out = known.get("left_out", {}) if retry == "failed" else dict(sorted(stream.left_out.items()))
        manifest |= {"left_out": left_out, "batch_size": encoder.batch_size, "versions": _versions()}
        with writable(out):
            write_json(out / MANIFEST, manifest)
        if not manifest["totals"]["out"]:
            reason = next(iter(manifest["failed"]))
            raise UserError(f"None of the {len(listed)} images can be embedded, for example: {reason}.")
        return manifest


def _embed(embedder: ShardEmbedder, shards: Sequence[int], engine: EngineName) -> None:
    if not shards:
        return
    total = len(embedder.listed)
    rows = sum(map(embedder.rows, shards))
    with tqdm(total=total, initial=total - rows, desc="embed", unit="image") as bar:

        def progress(images: int) -> None:
            bar.set_postfix_str(embedder.clock.shares(), refresh=False)
            bar.update(images)

        ENGINES[engine](embedder, shards, progress)


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
