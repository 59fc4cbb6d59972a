r"""Schedules at equal MACs: one-shot, in two stages by one scoring, and in two stages that re-score.

    python benchmarks/schedules.py open_clip:local-dir:photos/photo-clip-s14 photos/imagenette/val photos/flowers/val \
        --train photos/imagenette/train --early 0.5 --keep 0.6 0.583 0.5 \
        --out benchmarks/results/schedules-imagenette.json

One-shot and by one scoring, patches go by a pruner that is fitted to the first stage; another is fitted to both. A run
that is killed goes on after the last finished seed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from common import DEFAULTS, Results, main, training_data

from patchranking.data import ImageData, load_data, subset
from patchranking.evaluation.cost import noise
from patchranking.evaluation.environment import environment
from patchranking.evaluation.rows import encoding_macs
from patchranking.files import as_file_name
from patchranking.fitting.fit import fit
from patchranking.fitting.settings import FitSettings
from patchranking.methods import Encoding, PatchRanking
from patchranking.methods.measure import measure
from patchranking.methods.tally import DENSE
from patchranking.predictor.networks import NetworkName
from patchranking.pruner import Pruner
from patchranking.pruning.macs import nearest_in_macs
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.job import rank
from patchranking.ranking.search import SearchSettings
from patchranking.towers import VisionTower
from patchranking.towers.load import LoadedModel, load_model

Encodings = dict[tuple[str, float, float | None], Encoding]
"""(kind of schedule, keep rate, share dropped at stage 1) -> encoding."""


def schedules(
    model: str,
    data: list[str],
    train: str | None = None,
    out: Path = Path("benchmarks/results/schedules.json"),
    blocks: list[int] = [3, 6],  # noqa: B006
    keep: list[float] = [0.6, 0.5, 0.4],  # noqa: B006
    early: list[float] = [0.5, 0.7],  # noqa: B006
    network: NetworkName = "mixer",
    ranked: int = 400,
    steps: int = 600,
    seeds: int = 3,
    limit: int | None = None,
    train_limit: int | None = None,
    work: Path = Path("runs/schedules"),
) -> None:
    """Fits predictors for one stage and for two, and tests them.

    Args:
        model: The MODEL argument of the command line.
        data: DATA arguments to test on.
        train: Training images.
        out: The JSON file.
        blocks: The first stage and the second.
        keep: Keep rates of one-shot pruning, whose MACs the two stages have too.
        early: Shares of the dropped patches that are dropped at stage 1.
        network: mixer, mlp or transformer.
        ranked: So many training images are ranked and imitated before the first distillation; 0 leaves it out.
        steps: Steps of each distillation.
        seeds: Seeds 0, 1, ... of the weights and the order.
        limit: At most so many images of each test set.
        train_limit: At most so many training images.
        work: Folder for rankings and pruners.
    """
    images, results, loaded = training_data(train, train_limit), Results(out), load_model(model)
    tests = [load_data(name, limit) for name in data]
    folder, rankings = work / as_file_name(f"{model} {train} {train_limit} {blocks}"), None
    if ranked:
        rankings = folder / f"rankings-{ranked}"
        rank(loaded, subset(images, ranked, 0), rankings, SearchSettings(block=blocks[0]))

    def rows_of(seed: int) -> list[dict[str, Any]]:
        objective: Literal["both", "distill"] = "both" if ranked else "distill"
        settings = FitSettings(objective, network=network, steps=steps, seed=seed)
        once, both = (
            fit(loaded, images, folder / f"seed-{seed}-{len(stages)}", replace(settings, blocks=stages), rankings)[0]
            for stages in (blocks[:1], blocks)
        )
        encodings = _encodings(loaded.tower, once, both, keep, early)
        return [{"seed": seed} | row for test in tests for row in _measured(loaded, test, encodings)]

    rows = [row for seed in range(seeds) for row in results.once(f"seed {seed}", partial(rows_of, seed))]
    results.write(environment(loaded.tower.device), rows, defaults=DEFAULTS)


def _encodings(tower: VisionTower, once: Pruner, both: Pruner, keep: list[float], early: list[float]) -> Encodings:
    first, second = both.fitted.stages
    rescoring, scoring_once = PatchRanking(both), PatchRanking(once)
    encodings: Encodings = {}
    for rate in keep:
        one_shot = Schedule({first: rate})
        encodings["at once", rate, None] = scoring_once.at(tower, one_shot)
        for share in early:
            shapes = ({first: 1 - share * drop / 1000, second: 1 - drop / 1000} for drop in range(1, 1000))
            staged = nearest_in_macs(tower, map(Schedule, shapes), one_shot)
            encodings["one order", rate, share] = scoring_once.at(tower, staged)
            encodings["scored again", rate, share] = rescoring.at(tower, staged)
    return encodings


def _measured(model: LoadedModel, data: ImageData, encodings: Encodings) -> list[dict[str, Any]]:
    tally, pixels = measure(model, data, encodings), noise(model.tower, 1)
    return [
        {
            "dataset": f"{data.name}/{data.split}",
            "schedule": kind,
            "keep_rate": rate,
            "early": early,
            "stages": encoding.schedule.to_dict(),
            "gmacs": encoding_macs(encoding, pixels) / 1e9,
            "n_images": tally.count(DENSE),
            "top1": tally.mean((kind, rate, early), "top1"),
            "top1_dense": tally.mean(DENSE, "top1"),
            "feature_cosine": tally.mean((kind, rate, early), "feature_cosine"),
        }
        for (kind, rate, early), encoding in encodings.items()
    ]


if __name__ == "__main__":
    main(schedules)
