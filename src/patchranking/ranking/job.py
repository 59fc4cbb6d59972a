"""Ranks a whole data set: resumable shards, every image accounted for."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from patchranking.checkpoint import digest
from patchranking.data import ImageData, none_readable
from patchranking.errors import UserError
from patchranking.files import make_folder
from patchranking.ranking.ray_engine import rank_on_ray
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.shards import ShardRanker
from patchranking.ranking.store import read_manifest, read_shard_summary, write_manifest
from patchranking.towers.load import LoadedModel

__all__ = ["ENGINES", "EngineName", "rank"]

EngineName = Literal["local", "ray"]

_IMAGES_PER_SHARD = 128


def rank(
    model: LoadedModel,
    data: ImageData,
    out: str | Path,
    settings: SearchSettings = SearchSettings(),  # noqa: B008
    engine: EngineName = "local",
) -> dict[str, Any]:
    """Ranks every image and stores the rankings; run again after a kill, it resumes where it stopped.

    Args:
        model: The model.
        data: The images; their keys are all different.
        out: Folder for the shards and the manifest.
        settings: The search.
        engine: ``local``, this process, or ``ray``, a cluster.

    Returns:
        The manifest. Its ``totals`` say how many images came in, were ranked and were skipped, and how many other files
        lie among them; ``skipped`` has the reason of each image, ``left_out`` those of the files, with their numbers,
        and ``images_per_second`` how fast the last run was that had any work.

    Raises:
        UserError: If the settings do not suit the model, ``out`` holds rankings of other images or settings, no image
            could be ranked, or the engine left shards undone.
    """
    if engine not in ENGINES:
        raise UserError(f"Unknown engine '{engine}': choose from {', '.join(ENGINES)}.")
    out = make_folder(out)
    ranker = ShardRanker(model, data, settings, out, math.ceil(len(data) / _IMAGES_PER_SHARD))
    manifest = {
        "settings": ranker.record,
        "dataset": data.name,
        "split": data.split,
        "images": len(data),
        "keys_sha256": _digest(data.keys),
        "shards": ranker.count,
    }
    speed = _claim(out, manifest)
    pending = [shard for shard in range(ranker.count) if not ranker.path(shard).exists()]
    left = sum(len(ranker.images(shard)) for shard in pending)
    start = time.perf_counter()
    with tqdm(total=len(data), initial=len(data) - left, desc="rank", unit="image") as bar:
        for images in ENGINES[engine](ranker, pending):
            bar.update(images)
    if left:
        speed = left / (time.perf_counter() - start)
    manifest |= {"images_per_second": speed, **_account(ranker)}
    write_manifest(out, manifest)
    return manifest


def _rank_here(ranker: ShardRanker, shards: Sequence[int]) -> Iterator[int]:
    for shard in shards:
        yield from ranker.rank(shard)


ENGINES: dict[str, Callable[[ShardRanker, Sequence[int]], Iterator[int]]] = {"local": _rank_here, "ray": rank_on_ray}
"""Each ranks some shards and yields numbers of images done."""


def _digest(keys: Sequence[str]) -> str:
    if len(set(keys)) < len(keys):
        raise UserError("Some images have the same key, and rankings are told apart by key: give each one once.")
    return digest(keys)


def _claim(out: Path, manifest: dict[str, Any]) -> float | None:
    """Reserves a folder for a job, or finds that it is the job's already; returns the speed of an earlier run."""
    existing = read_manifest(out)
    if existing is not None and {key: existing.get(key) for key in manifest} == manifest:
        return existing.get("images_per_second")
    if any(out.glob("shard-*.parquet")):
        raise UserError(
            f"'{out}' holds rankings of other images, settings or weights: choose another folder for --out."
            if existing
            else f"'{out}' holds rankings without a manifest: choose another folder for --out."
        )
    write_manifest(out, manifest)
    return None


def _account(ranker: ShardRanker) -> dict[str, Any]:
    """Counts what the files hold: every image is ranked or skipped."""
    total, ranked = len(ranker.data), 0
    skipped: dict[str, str] = {}
    for shard in range(ranker.count):
        count, reasons = read_shard_summary(ranker.path(shard))
        ranked += count
        skipped |= reasons
    if ranked + len(skipped) != total:
        raise UserError(
            f"'{ranker.folder}' accounts for {ranked + len(skipped)} of {total} images: run the same command again, "
            "with another folder for --out."
        )
    if not ranked:
        raise none_readable(skipped)
    left_out = ranker.data.left_out
    return {
        "totals": {"in": total, "ranked": ranked, "skipped": len(skipped), "left_out": len(left_out)},
        "skipped": skipped,
        "left_out": dict(Counter(left_out.values())),
    }
