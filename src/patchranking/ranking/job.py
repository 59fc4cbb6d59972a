"""Ranks a whole data set: resumable shards, every image accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from patchranking.data import ImageData, read_batches
from patchranking.errors import UserError
from patchranking.pruning.fingerprint import fingerprint
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.search import leave_out
from patchranking.ranking.store import read_manifest, read_shard_summary, shard_name, write_manifest, write_shard
from patchranking.ranking.windows import windows
from patchranking.towers.load import LoadedModel

__all__ = ["SearchSettings", "rank_dataset"]

_IMAGES_PER_BATCH = 4
_IMAGES_PER_SHARD = 32


@dataclass(frozen=True)
class SearchSettings:
    """How the golden ranking is searched.

    Attributes:
        block: Patches are removed before this block.
        window: Side of the removed window in patches.
        stride: Step between windows in patches.
    """

    block: int = 3
    window: int = 2
    stride: int = 1


def rank_dataset(model: LoadedModel, data: ImageData, out: Path, settings: SearchSettings) -> dict[str, Any]:
    """Ranks every image and stores the rankings; run again after a kill, it goes on where it stopped.

    Args:
        model: The model.
        data: The images.
        out: Folder for the shards and the manifest.
        settings: The search.

    Returns:
        The manifest; its ``totals`` say how many images came in, were ranked and were skipped, with reasons.

    Raises:
        UserError: If the settings do not suit the model, ``out`` holds rankings of other images or settings, or no
            image could be ranked.
    """
    Schedule(settings.block, 1.0).check(model.tower)
    windows(model.tower.grid, settings.window, settings.stride)
    shards = [range(len(data))[i : i + _IMAGES_PER_SHARD] for i in range(0, len(data), _IMAGES_PER_SHARD)]
    manifest = {
        "settings": {
            "search": "leave-out",
            "score": "preservation",
            "needs_labels": False,
            **asdict(settings),
            "model": model.name,
            "fingerprint": fingerprint(model.tower),
        },
        "dataset": data.name,
        "split": data.split,
        "images": len(data),
        "keys_sha256": hashlib.sha256("\n".join(data.keys).encode()).hexdigest(),
        "shards": len(shards),
    }
    out.mkdir(parents=True, exist_ok=True)
    existing = read_manifest(out)
    if existing is None:
        if any(out.glob("shard-*.parquet")):
            raise UserError(f"'{out}' holds rankings without a manifest: choose another folder for --out.")
        write_manifest(out, manifest)
    elif {key: existing.get(key) for key in manifest} != manifest:
        raise UserError(
            f"'{out}' holds rankings of other images, settings or weights: choose another folder for --out."
        )
    paths = [out / shard_name(index, len(shards)) for index in range(len(shards))]
    done = sum(len(shard) for shard, path in zip(shards, paths, strict=True) if path.exists())
    with tqdm(total=len(data), initial=done, desc="rank", unit="image") as bar:
        for shard, path in zip(shards, paths, strict=True):
            if not path.exists():
                _rank_shard(model, data, shard, path, settings, bar)
    summaries = [read_shard_summary(path) for path in paths]
    skipped = {key: reason for _, part in summaries for key, reason in part.items()}
    ranked = sum(count for count, _ in summaries)
    if not ranked:
        raise UserError(f"None of the {len(data)} images could be read, for example: {next(iter(skipped.items()))}.")
    manifest["totals"] = {"in": len(data), "ranked": ranked, "skipped": len(skipped)}
    manifest["skipped"] = skipped
    write_manifest(out, manifest)
    return manifest


def _rank_shard(
    model: LoadedModel, data: ImageData, shard: Sequence[int], path: Path, settings: SearchSettings, bar: tqdm[Any]
) -> None:
    skipped: dict[str, str] = {}
    keys: list[str] = []
    importance = [np.empty((0, model.tower.num_patches), np.float32)]
    order = [np.empty((0, model.tower.num_patches), np.int64)]
    for indices, pixels in read_batches(data, model.preprocess, _IMAGES_PER_BATCH, skipped, shard):
        ranking = leave_out(model.tower, pixels.to(model.tower.device, model.tower.dtype), **asdict(settings))
        keys += [data.keys[index] for index in indices]
        importance.append(ranking.importance.float().cpu().numpy())
        order.append(ranking.removal_order.cpu().numpy())
        bar.update(len(indices))
    bar.update(len(skipped))
    write_shard(path, keys, np.concatenate(importance), np.concatenate(order), skipped)
