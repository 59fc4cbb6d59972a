r"""Contrastive pretraining at equal budgets: without compression, with constant ones, in two phases, and by gradients.

    python benchmarks/contrastive_budget.py --arms base two-phase \
        --out benchmarks/results/contrastive_budget-photos.json

Every arm spends the same budget in measured seconds of its steps, and is measured along it on whole images. Its
learning rate is chosen on seed 0, by the final k-NN on half of the pictures to test on; the other half is reported. By
``--schedule analysis`` the dynamic arms take the schedule that ``pretrain gradient-error`` finds along the first
method's training without compression; what that took is told, and is in no budget. Seconds are those that the process
had a core, so other processes do not count. A run that is killed goes on within the training where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Results, main
from sooner import curves_of, own_seconds, sooner

from patchranking.data import ImageData, load_data
from patchranking.data.demo import by_colour
from patchranking.data.halves import of_half
from patchranking.errors import UserError
from patchranking.evaluation.environment import environment
from patchranking.files import as_file_name, make_folder
from patchranking.pretrain.analysis import analyse
from patchranking.pretrain.budget import budget_of
from patchranking.pretrain.compression import Compression
from patchranking.pretrain.contrastive import ContrastiveSettings, MethodName, contrastive, make_objective
from patchranking.pretrain.encoder import load_encoder
from patchranking.pretrain.gradients import GradientSettings, spent_on
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.probe import measures_on
from patchranking.pretrain.report import MODEL
from patchranking.pretrain.schedule import CompressionSchedule
from patchranking.pretrain.search import two_phase_schedule

ARMS = {
    "moco": ("base", "two-phase", "dynamic", "constant-patch", "constant-drop", "dynamic-steps"),
    "simclr": ("base", "two-phase", "dynamic"),
    "dino": ("base", "two-phase", "dynamic"),
}
"""``dynamic-steps`` takes as many steps as the base, at less of the budget."""
PAIRS = (
    *((arm, "base") for arm in ("constant-patch", "constant-drop", "two-phase", "dynamic")),
    ("dynamic", "two-phase"),
)
MEASURES = ("knn", "linear_probe")
SCHEDULE = "schedule.yaml"
STAGES = ("0000.safetensors", "0500.safetensors", "1000.safetensors")
"""Start, middle and end of a training, at which gradients are compared."""
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
    data: str = "photos/imagenette/train,photos/flowers/train",
    test: str = "photos/imagenette/val,photos/flowers/val",
    out: Path = Path("benchmarks/results/contrastive_budget.json"),
    methods: list[MethodName] = ["moco"],  # noqa: B006
    arms: list[str] = [],  # noqa: B006
    rates: list[float] = [4e-3, 1.2e-2],  # noqa: B006
    schedule: str = "analysis",
    base_batches: int = 200,
    batches: int = 50,
    drops: list[float] = [0.0, 0.5],  # noqa: B006
    seeds: int = 3,
    epochs: float = 6.0,
    batch_size: int = 64,
    evaluations: int = 4,
    image_size: int = 48,
    patch_size: int = 8,
    width: int = 96,
    depth: int = 4,
    head: int = 512,
    min_scale: float = 0.2,
    limit: int = 4000,
    test_limit: int = 2000,
    work: Path = Path("runs/contrastive_budget"),
    device: str = "cpu",
) -> None:
    """Trains every arm and measures it along the budget.

    Args:
        data: Pictures to train on, with classes that only measure; those of the demo are the colours of its objects.
        test: Others of the same classes: one half to choose learning rates on, the other to report.
        out: The JSON file.
        methods: Methods of pretraining: moco, simclr, dino.
        arms: Arms; all that a method has when empty.
        rates: Learning rates to choose from at 256 images a step; nothing is chosen from one.
        schedule: Of the dynamic arms: analysis, auto, default or a YAML file.
        base_batches: Batches whose mean gradient stands for the expected one in the analysis.
        batches: Batches of each compression there.
        drops: Shares of the patches dropped there.
        seeds: Seeds 0, 1, ...
        epochs: The budget: the compute of so many epochs without compression.
        batch_size: Images per step.
        evaluations: How often each training is measured.
        image_size: Side of the images in pixels.
        patch_size: Side of the patches in pixels.
        width: Channels of the encoder.
        depth: Its blocks.
        head: Hidden units of the heads.
        min_scale: Least share of a picture that a view shows.
        limit: At most so many pictures to train on.
        test_limit: At most so many in both halves of those to measure on.
        work: Folder for what is being trained.
        device: cpu, cuda, cuda:1, mps, ...
    """
    if "dynamic-steps" in arms and "dynamic" not in arms:
        raise UserError("The arm dynamic-steps takes the schedule of dynamic: give both.")
    if schedule == "analysis" and "base" not in (arms or ["base"]):
        raise UserError("--schedule analysis compares gradients along the arm base: leave it among the arms.")
    if unknown := set(arms) - set(ARMS["moco"]):
        raise UserError(f"Unknown arm '{unknown.pop()}': choose from {', '.join(ARMS['moco'])}.")
    model = {"embed_dim": width, "depth": depth, "num_heads": max(1, width // 32)}
    settings = ContrastiveSettings(
        image_size=image_size, patch_size=patch_size, model_args=model, head=head, min_scale=min_scale
    )
    training = TrainSettings(epochs, batch_size, cost="measured", evaluations=evaluations)
    images, unseen = by_colour(load_data(data, limit, 0, "train")), by_colour(load_data(test, test_limit))
    job = Job(images, of_half(unseen, "dev"), of_half(unseen, "test"), settings, training, schedule, work, device)
    analysis = GradientSettings(base_batches, batches, batch_size, drops=drops)
    results, rows, more = Results(out), list[dict[str, Any]](), dict[str, Any]()
    for method in methods:
        chosen: dict[str, float] = {}
        for arm in (one for one in ARMS[method] if one in (arms or ARMS[method])):
            chosen[arm] = chosen["dynamic"] if arm == "dynamic-steps" else _chosen(job, results, method, arm, rates)
            for seed in range(seeds):
                rows += _trained(job, results, method, arm, seed, chosen[arm])
            if arm == "base" and schedule == "analysis" and not more:
                more = results.once("analysis", partial(_analysed, job, method, chosen[arm], analysis))
                job = replace(job, schedule=more["schedule"])
    headline = [
        speed_up(rows, method, arm, over, against, measure)
        for method in methods
        for arm, over in PAIRS
        for measure in MEASURES
        for against in ("budget", "seconds")
    ]
    shown = [one for one in headline if one is not None]
    for one in shown:
        print(one)
    about = {"settings": asdict(settings) | asdict(training)} | more
    results.write(environment(torch.device(device)), rows, **about, headline=shown)


def _chosen(job: Job, results: Results, method: MethodName, arm: str, rates: list[float]) -> float:
    """The learning rate with the best final k-NN accuracy of one seed, on the pictures that rates are chosen on."""
    if len(rates) == 1:
        return rates[0]

    def accuracy(rate: float) -> float:
        _trained(job, results, method, arm, 0, rate)
        tower = load_encoder(_folder(job, method, arm, 0, rate) / MODEL).to(job.device)
        found = measures_on(tower, job.images, job.tuned_on, job.training.probe_images, 0)[0](tower.eval())["knn"]
        assert found is not None
        return found

    found = {rate: results.once(f"{method} {arm} rate {rate}", partial(accuracy, rate)) for rate in rates}
    return max(found, key=lambda rate: (found[rate], -rate))


def _folder(job: Job, method: MethodName, arm: str, seed: int, rate: float) -> Path:
    """Of a training."""
    return job.work / as_file_name(f"{method} {arm} {seed} {rate}")


def _trained(job: Job, results: Results, method: MethodName, arm: str, seed: int, rate: float) -> list[dict[str, Any]]:
    """The evaluations of a training, on the pictures that are reported."""
    settings, training = replace(job.settings, method=method), replace(job.training, seed=seed, learning_rate=rate)
    folder = _folder(job, method, arm, seed, rate)
    about = {"method": method, "arm": arm, "seed": seed, "learning_rate": rate, "dataset": job.images.name}

    def trained() -> list[dict[str, Any]]:
        own = training
        if arm == "dynamic-steps":
            schedule = str(_folder(job, method, "dynamic", seed, rate) / SCHEDULE)
            own = replace(training, epochs=training.epochs * _share_for_equal_steps(settings, schedule))
        else:
            schedule = job.schedule if arm == "dynamic" else _schedule(settings, arm, folder)
        report = contrastive(job.images, job.reported, folder, settings, own, schedule, job.device)
        return [own_seconds(row, job.device) for row in report.rows(about)]

    found: list[dict[str, Any]] = results.once(folder.name, trained)
    return found


def _analysed(job: Job, method: MethodName, rate: float, settings: GradientSettings) -> dict[str, Any]:
    """The errors of gradients along the training without compression, the schedule they suggest, what that took."""
    run, work = _folder(job, method, "base", 0, rate) / "progress", make_folder(job.work / "analysis")
    for stage in STAGES:
        shutil.copy(run / "stages" / stage, make_folder(work / "stages") / stage)
    found = analyse(work, job.images, settings, work, job.device)
    assert found.schedule is not None
    found.schedule.save(work / SCHEDULE)
    objective = make_objective(replace(job.settings, method=method))
    passes = {"analysis": len(STAGES) * spent_on(objective, settings)}
    passes["budget"] = budget_of(objective, job.training.epochs, len(job.images))
    stages = [{"start": stage.start, **asdict(stage.compression)} for stage in found.schedule.stages]
    about = {"passes": passes, "stages": stages, "gradients": asdict(settings), "errors": found.rows}
    return {"schedule": str(work / SCHEDULE), "analysis": about}


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
    rows: Sequence[Mapping[str, Any]],
    method: str,
    arm: str,
    over: str,
    against: str = "budget",
    measure: str = "knn",
) -> dict[str, Any] | None:
    """How many times sooner an arm reaches the final accuracy of another, by interpolation along its mean curve.

    Args:
        rows: Of all arms and seeds.
        method: Of both.
        arm: What may be sooner.
        over: What it is compared with.
        against: ``budget`` or ``seconds``.
        measure: ``knn`` or ``linear_probe``.

    Returns:
        The factor and its 95 % bootstrap interval over seeds of both, None as a factor where the accuracy is never
        reached; None where an arm is missing.
    """
    ours, theirs = (
        curves_of([row for row in rows if (row["method"], row["arm"]) == (method, name)], measure, against)
        for name in (arm, over)
    )
    if not len(ours) or not len(theirs):
        return None
    about = {"method": method, "arm": arm, "over": over, "measure": measure, "against": against}
    return about | sooner(ours, theirs, paired=False)


if __name__ == "__main__":
    main(contrastive_budget)
