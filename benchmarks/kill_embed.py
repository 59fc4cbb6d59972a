"""Kills embed at random moments and starts it again: it ends with the bytes of a run that was left alone.

    python benchmarks/kill_embed.py --out benchmarks/results/kill_embed-demo.json

A shard that is finished when a kill comes is never made again: its file stays as it is.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import Results, main
from kill import killed, run

from patchranking.evaluation.environment import environment

EMBED = "embed demo demo:test --limit 600 --shard_size 50 --batch_size 10 --pruner cls-attention --workers 1"


def kill_embed(out: Path = Path("benchmarks/results/kill_embed-demo.json"), kills: int = 100, seed: int = 0) -> None:
    """Kills the command so many times in both formats and compares the files with those of an uninterrupted run.

    Args:
        out: The JSON file.
        kills: Kills that hit it while it runs, of both formats together.
        seed: Seed of the moments.
    """
    results, drawn = Results(out), random.Random(seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for form in ("parquet", "npy"):
            command, work = f"{EMBED} --format {form}", Path(name) / form
            seconds = run(command, work / "whole")
            whole, done = _contents(work / "whole"), 0
            while done < kills // 2:
                folder = work / str(len(rows))
                hits, again = 0, 0
                before = _finished(folder)
                while killed(command, folder, drawn.uniform(0.2, 1.0) * seconds) is not None:
                    now = _finished(folder)
                    again += sum(now.get(shard) != time for shard, time in before.items())
                    before, hits = now, hits + 1
                same = _contents(folder) == whole
                rows.append({"format": form, "kills": hits, "finished_shards_made_again": again, "same": same})
                done += hits
    results.write(environment(torch.device("cpu")), rows)
    if not all(row["same"] and not row["finished_shards_made_again"] for row in rows):
        sys.exit("a run that was killed ended otherwise")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _finished(folder: Path) -> dict[str, int]:
    """Finished shards and when they were written."""
    paths = [*folder.glob("shard-*.parquet"), *folder.glob("img_emb/*.npy")]
    return {path.name: path.stat().st_mtime_ns for path in paths}


if __name__ == "__main__":
    main(kill_embed)
