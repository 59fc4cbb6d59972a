"""Vectors of WebDataset shards, and a reader of what was written: for as many pictures as there are.

    python examples/webdataset_embed.py open_clip:local-dir:clip "shards/{00000..00099}.tar" runs/vectors runs/fit

Shards are listed and read one after the other, and never held in memory. Run again after a kill, it goes on; run again
with more shards, it takes what is new. Each key is shard/sample, whatever was damaged in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from jsonargparse import auto_cli

import patchranking


def read(folder: Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """Keys and vectors, ``(images, features)``, batch after batch; failed images have none and are left out."""
    for batch in ds.dataset(folder).to_batches(filter=ds.field("status") == "ok"):
        if len(batch):
            yield batch["key"].to_pylist(), np.stack(batch["embedding"].to_numpy(zero_copy_only=False))


def main(model: str, shards: str, out: Path, pruner: Path, shard_size: int = 4096) -> None:
    """Embeds and prints where the pictures went.

    Args:
        model: As on the command line of patchranking.
        shards: Tar files, such as ``shards/{00000..00099}.tar``.
        out: Folder for the vectors.
        pruner: Folder that ``patchranking fit`` wrote for this model.
        shard_size: Images of a Parquet file, at most.
    """
    fitted = patchranking.Pruner.from_pretrained(pruner)
    manifest = patchranking.embed_to(
        patchranking.load_model(model), f"wds:{shards}", out, fitted, shard_size=shard_size
    )
    print(f"in = out + failed: {manifest['totals']}")
    for reason, number in manifest["failed"].items():
        print(f"failed {number} times: {reason}")
    for keys, vectors in read(out):
        print(f"{keys[0]} ... {keys[-1]}: {vectors.shape[0]} vectors of {vectors.shape[1]} numbers, {vectors.dtype}")


if __name__ == "__main__":
    auto_cli(main)
