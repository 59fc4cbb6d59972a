r"""Schedules at equal multiply-accumulates: at once, in two stages by one order, and in two stages that score again.

    python benchmarks/schedules.py MODEL TRAIN '[TEST, ...]' --blocks '[3,6]' \
        --out benchmarks/results/schedules-NAME.json

The first predictor is the same in all of them; a later one is an mlp where it is a mixer. Every finished fit is
written, and a run that is killed goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from patchranking.data import ImageData, load_data, subset
from patchranking.evaluation.budget import tally_pruners
from patchranking.evaluation.cost import count_macs
from patchranking.evaluation.environment import environment
from patchranking.files import as_file_name, write_json
from patchranking.fitting.fit import fit_pruner
from patchranking.pruner import Pruner
from patchranking.pruning.attach import attach_reductions
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.job import rank
from patchranking.ranking.search import SearchSettings
from patchranking.towers import VisionTower
from patchranking.towers.load import LoadedModel, load_model


def main(
    model: str,
    train: str,
    test: list[str],
    blocks: list[int] = [3, 6],  # noqa: B006
    keep: list[float] = [0.6, 0.5, 0.4],  # noqa: B006
    early: list[float] = [0.5, 0.7],  # noqa: B006
    network: str = "mixer",
    ranked: int = 400,
    steps: int = 300,
    seeds: int = 3,
    train_limit: int | None = None,
    limit: int | None = None,
    out: Path = Path("benchmarks/results/schedules.json"),
    work: Path = Path("runs/schedules"),
) -> None:
    """Runs the comparison.

    Args:
        model: The MODEL argument of the command line.
        train: Training images.
        test: DATA arguments to test on.
        blocks: The first stage and the second.
        keep: Keep rates of pruning at once, whose multiply-accumulates the stages have too.
        early: Shares of what goes that go in the first stage already.
        network: mixer, mlp or transformer.
        ranked: So many training images are ranked and imitated before the first distillation; 0 leaves it out.
        steps: Steps of distillation of each predictor.
        seeds: Seeds 0, 1, ... of the weights and the order.
        train_limit: At most so many training images.
        limit: At most so many images of each test set.
        out: The JSON file.
        work: Folder for the rankings.
    """
    loaded = load_model(model)
    images, tests = load_data(train, train_limit, 0), [load_data(name, limit, 0) for name in test]
    shape = Schedule.spread(blocks, 0.5)
    rankings = None
    if ranked:
        chosen = subset(images, ranked, 0)
        rankings = work / as_file_name(f"{loaded.name}-{images.name}-{images.split}-{len(chosen)}-{blocks[0]}")
        rank(loaded, chosen, rankings, SearchSettings(block=blocks[0]))
    partial = out.with_suffix(".partial")
    done: dict[str, list[dict[str, Any]]] = json.loads(partial.read_text()) if partial.is_file() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        if str(seed) in done:
            continue
        again, _ = fit_pruner(loaded, images, rankings, shape, steps, network=network, rescore=True, seed=seed)
        once = Pruner(again.predictor, again.base, again.schedule).eval()
        runs: dict[tuple[str, float, float | None], Pruner] = {}
        for rate in keep:
            runs["at once", rate, None] = once.scheduled(Schedule({blocks[0]: rate}))
            for share in early:
                staged = _as_costly(loaded.tower, blocks, rate, share)
                runs["one order", rate, share] = once.scheduled(staged)
                runs["scored again", rate, share] = again.scheduled(staged)
        done[str(seed)] = [{"seed": seed} | row for data in tests for row in _measure(loaded, data, runs)]
        write_json(partial, done)
        for row in done[str(seed)]:
            print({key: value for key, value in row.items() if not isinstance(value, dict)}, flush=True)
    rows = [row for own in done.values() for row in own]
    write_json(out, {"environment": environment(loaded.tower.device), "rows": rows})
    partial.unlink()


def _as_costly(tower: VisionTower, blocks: list[int], keep: float, early: float) -> Schedule:
    """Two stages with the multiply-accumulates of one that keeps ``keep``."""
    first, second = blocks
    aim = analytic_macs(tower, 0, Schedule({first: keep}))
    shapes = [Schedule({first: 1 - early * gone / 1000, second: 1 - gone / 1000}) for gone in range(1, 1000)]
    return min(shapes, key=lambda shape: abs(analytic_macs(tower, 0, shape) - aim))


@torch.inference_mode()
def _measure(
    model: LoadedModel, data: ImageData, runs: dict[tuple[str, float, float | None], Pruner]
) -> list[dict[str, Any]]:
    tally, pixels, _ = tally_pruners(model, data, list(runs.values()), 64)
    rows = []
    for number, ((kind, rate, early), run) in enumerate(runs.items()):
        with attach_reductions(model.tower, run.reductions()):
            macs = count_macs(model.tower, pixels[:1])
        key = (str(number), run.keep)
        rows.append(
            {
                "dataset": f"{data.name}/{data.split}",
                "schedule": kind,
                "keep_rate": rate,
                "early": early,
                "stages": run.schedule.to_dict(),
                "gmacs": macs / 1e9,
                "n_images": len(data),
                "top1": tally.mean(key, "top1"),
                "top1_dense": tally.mean(("dense", 1.0), "top1"),
                "feature_cosine": tally.mean(key, "feature_cosine"),
            }
        )
    return rows


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
