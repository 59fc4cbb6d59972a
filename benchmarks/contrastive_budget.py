r"""Contrastive pretraining at equal budgets: without compression, with constant ones, in two phases, and by gradients.

    python benchmarks/contrastive_budget.py --out benchmarks/results/contrastive_budget-demo.json

Every arm spends the same budget in measured seconds of its steps, and is measured along it on whole images. Its
learning rate is chosen on one seed and on other pictures than those reported. The search for the dynamic schedule is
part of its budget. A run that is killed goes on within the training where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Results, main
from sooner import curves_of, sooner

from patchranking.data import ImageData, load_data
from patchranking.errors import UserError
from patchranking.evaluation.environment import environment
from patchranking.files import as_file_name
from patchranking.pretrain.compression import Compression
from patchranking.pretrain.contrastive import ContrastiveSettings, MethodName, contrastive, make_objective
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.schedule import CompressionSchedule
from patchranking.pretrain.search import two_phase_schedule

ARMS = {
    "moco": ("base", "constant-patch", "constant-drop", "two-phase", "dynamic", "dynamic-steps"),
    "simclr": ("base", "two-phase", "dynamic"),
    "dino": ("base", "two-phase", "dynamic"),
}
"""``dynamic-steps`` takes as many steps as the base, at less of the budget."""
_DROP = 0.5


@dataclass(frozen=True)
class Job:
    """What all arms share."""

    images: ImageData
    tuned_on: ImageData
    reported: ImageData
    settings: ContrastiveSettings
    training: TrainSettings
    schedule: str
    work: Path
    device: str


def contrastive_budget(
    data: str = "demo:train",
    tune: str = "demo:val",
    test: str = "demo:test",
    out: Path = Path("benchmarks/results/contrastive_budget.json"),
    methods: list[MethodName] = ["moco", "simclr", "dino"],  # noqa: B006
    arms: list[str] = [],  # noqa: B006
    rates: list[float] = [1e-3, 4e-3],  # noqa: B006
    schedule: str = "auto",
    seeds: int = 3,
    epochs: float = 60.0,
    batch_size: int = 128,
    evaluations: int = 8,
    image_size: int = 96,
    patch_size: int = 12,
    width: int = 96,
    depth: int = 4,
    limit: int = 4000,
    test_limit: int = 1000,
    work: Path = Path("runs/contrastive_budget"),
    device: str = "cpu",
) -> None:
    """Trains every arm and measures it along the budget.

    Args:
        data: Pictures to train on, with classes that only measure.
        tune: Pictures of the same classes to choose learning rates on.
        test: Others to report.
        out: The JSON file.
        methods: Methods of pretraining.
        arms: Arms; all that a method has when empty.
        rates: Learning rates to choose from at 256 images a step; nothing is chosen from one.
        schedule: Of the dynamic arms: auto, default or a YAML file.
        seeds: Seeds 0, 1, ...
        epochs: The budget: the compute of so many epochs without compression.
        batch_size: Images per step.
        evaluations: How often each training is measured.
        image_size: Side of the images in pixels.
        patch_size: Side of the patches in pixels.
        width: Channels of the encoder.
        depth: Its blocks.
        limit: At most so many pictures to train on.
        test_limit: At most so many to measure on.
        work: Folder for what is being trained.
        device: cpu, cuda, cuda:1, mps, ...
    """
    if "dynamic-steps" in arms and "dynamic" not in arms:
        raise UserError("The arm dynamic-steps takes the schedule of dynamic: give both.")
    if unknown := set(arms) - set(ARMS["moco"]):
        raise UserError(f"Unknown arm '{unknown.pop()}': choose from {', '.join(ARMS['moco'])}.")
    model = {"embed_dim": width, "depth": depth, "num_heads": max(1, width // 32)}
    settings = ContrastiveSettings(image_size=image_size, patch_size=patch_size, model_args=model, min_scale=0.3)
    training = TrainSettings(epochs, batch_size, cost="measured", evaluations=evaluations)
    pictures = load_data(data, limit, 0, "train"), load_data(tune, test_limit), load_data(test, test_limit)
    job, results = Job(*pictures, settings, training, schedule, work, device), Results(out)
    rows: list[dict[str, Any]] = []
    for method in methods:
        chosen: dict[str, float] = {}
        for arm in (one for one in ARMS[method] if one in (arms or ARMS[method])):
            chosen[arm] = chosen["dynamic"] if arm == "dynamic-steps" else _chosen(job, results, method, arm, rates)
            for seed in range(seeds):
                unit = f"{method} {arm} seed {seed}"
                rows += results.once(unit, partial(_trained, job, method, arm, seed, chosen[arm], job.reported))
    headline = [
        speed_up(rows, method, arm, over, against)
        for method in methods
        for arm, over in (("dynamic", "base"), ("dynamic", "two-phase"), ("two-phase", "base"))
        for against in ("budget", "seconds")
    ]
    shown = [one for one in headline if one is not None]
    for one in shown:
        print(one)
    results.write(environment(torch.device(device)), rows, headline=shown)


def _chosen(job: Job, results: Results, method: MethodName, arm: str, rates: list[float]) -> float:
    """The learning rate with the best final k-NN accuracy of one seed, on the pictures that rates are chosen on."""
    if len(rates) == 1:
        return rates[0]

    def accuracy(rate: float) -> float:
        found: float = _trained(job, method, arm, 0, rate, job.tuned_on)[-1]["knn"]
        return found

    found = {rate: results.once(f"{method} {arm} rate {rate}", partial(accuracy, rate)) for rate in rates}
    return max(found, key=lambda rate: (found[rate], -rate))


def _trained(job: Job, method: MethodName, arm: str, seed: int, rate: float, test: ImageData) -> list[dict[str, Any]]:
    settings, training = replace(job.settings, method=method), replace(job.training, seed=seed, learning_rate=rate)
    folder = job.work / as_file_name(f"{method} {arm} {seed} {rate} {test.split}")
    schedule = job.schedule if arm.startswith("dynamic") else _schedule(settings, arm, folder)
    if arm == "dynamic-steps":
        schedule = str(job.work / as_file_name(f"{method} dynamic {seed} {rate} {test.split}") / "schedule.yaml")
        training = replace(training, epochs=training.epochs * _share_for_equal_steps(settings, schedule))
    report = contrastive(job.images, test, folder, settings, training, schedule, job.device)
    return report.rows({"method": method, "arm": arm, "seed": seed, "learning_rate": rate, "dataset": job.images.name})


def _schedule(settings: ContrastiveSettings, arm: str, folder: Path) -> str:
    """What the library calls the arm's schedule; constant ones are written to a file."""
    if arm in ("base", "two-phase"):
        return {"base": "none", "two-phase": "two-phase"}[arm]
    larger = two_phase_schedule(make_objective(settings)).stages[0].compression
    constant = larger if arm == "constant-patch" else Compression(settings.patch_size, _DROP)
    folder.mkdir(parents=True, exist_ok=True)
    CompressionSchedule.constant(constant).save(folder / "constant.yaml")
    return str(folder / "constant.yaml")


def _share_for_equal_steps(settings: ContrastiveSettings, schedule: str) -> float:
    """The share of the budget at which a schedule takes as many steps as training without compression, by formula."""
    objective, stages = make_objective(settings), CompressionSchedule.load(Path(schedule)).stages
    ends = [*(stage.start for stage in stages[1:]), 1.0]
    base = objective.passes(objective.base)
    return 1 / sum((e - s.start) * base / objective.passes(s.compression) for s, e in zip(stages, ends, strict=True))


def speed_up(
    rows: Sequence[Mapping[str, Any]], method: str, arm: str, over: str, against: str = "budget"
) -> dict[str, Any] | None:
    """How many times sooner an arm reaches the final k-NN accuracy of another, by interpolation along its mean curve.

    Args:
        rows: Of all arms and seeds.
        method: Of both.
        arm: What may be sooner.
        over: What it is compared with.
        against: ``budget`` or ``seconds``.

    Returns:
        The factor and its 95 % bootstrap interval over seeds of both, None as a factor where the accuracy is never
        reached; None where an arm is missing.
    """
    ours, theirs = (
        curves_of([row for row in rows if (row["method"], row["arm"]) == (method, name)], "knn", against)
        for name in (arm, over)
    )
    if not len(ours) or not len(theirs):
        return None
    about = {"method": method, "arm": arm, "over": over, "against": against}
    return about | sooner(ours, theirs, paired=False)


if __name__ == "__main__":
    main(contrastive_budget)
