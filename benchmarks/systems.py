r"""What three accelerations save, each beside its plain counterpart, and all of them in one line.

    python benchmarks/systems.py --out benchmarks/results/systems-demo.json

A tower is pretrained as a masked autoencoder (``mae``), goes on by MoCo (``moco``), becomes a CLIP on captions
(``clip``), and is pruned. The plain line draws all pictures alike and compresses nothing. Of every training, the
accelerated arm starts from the plain line's tower and has its budget: prototypes first, or the default schedule of
compression. What it saves is how much sooner its mean curve is where the plain one ends. The line of accelerated
trainings runs on its own, at a part of the plain budget, and its CLIP is pruned. Budgets are multiply-accumulates of
the image encoder by formula, the autoencoder's decoder and the momentum encoder included; text encoder and heads are
in the seconds alone. Seconds are those that the process had a core; prototypes are in them. A run that is killed goes
on within the training where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from common import Results, main
from mae_curriculum import find_in_seconds
from sooner import curves_of, own_seconds, sooner

from patchranking.data import ImageData, load_data
from patchranking.data.demo import by_colour
from patchranking.evaluation.environment import environment
from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
from patchranking.files import as_file_name, make_folder
from patchranking.fitting.fit import fit
from patchranking.fitting.settings import FitSettings
from patchranking.pretrain.clip import ClipSettings
from patchranking.pretrain.contrastive import ContrastiveSettings, contrastive
from patchranking.pretrain.image_text import image_text
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.masked import PROTOTYPES, MAESettings, mae
from patchranking.pretrain.prototypes import read_prototypes
from patchranking.pretrain.report import MODEL, PretrainReport
from patchranking.pruner import Pruner
from patchranking.pruning.macs import analytic_macs, keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers.load import LoadedModel, load_model

MEASURES = {"mae": ("knn", "linear_probe"), "moco": ("knn", "linear_probe"), "clip": ("zero_shot",)}
"""System that trains -> what its arms are compared by, in percent."""
PLAIN, FAST, LINE = "plain", "accelerated", "in line"
SIZES: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 6,
    "model_args": {"embed_dim": 96, "depth": 4, "num_heads": 3},
}
MASKED = MAESettings(**SIZES, decoder_width=64, decoder_depth=1, min_scale=0.5)
VIEWED = ContrastiveSettings(**SIZES, head=256, min_scale=0.3)
CAPTIONED = ClipSettings(features=64, context=16, width=64, depth=2, min_scale=0.5)
POINTS = 1.0
"""Of zero-shot accuracy, which pruning may cost."""
BATCH, REPEATS = 64, 20
"""Images and runs that are timed."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """What all trainings share."""

    images: ImageData
    unseen: ImageData
    work: Path
    training: TrainSettings
    epochs: Mapping[str, float]
    part: float
    prototype_seconds: float
    device: str

    def folder(self, system: str, arm: str, seed: int) -> Path:
        """Of a training."""
        return self.work / as_file_name(f"{system} {arm} {seed}")


def systems(
    out: Path = Path("benchmarks/results/systems-demo.json"),
    images: int = 1000,
    test_images: int = 500,
    seeds: int = 3,
    epochs: dict[str, float] = {"mae": 20, "moco": 4, "clip": 6},  # noqa: B006
    part: float = 0.5,
    batch_size: int = 64,
    learning_rate: float = 4e-3,
    evaluations: int = 4,
    clusters: int = 16,
    fit_steps: int = 200,
    macs: list[float] = [0.9, 0.8, 0.7, 0.6, 0.5],  # noqa: B006
    work: Path = Path("runs/systems"),
    device: str = "cpu",
) -> None:
    """Trains both lines with every seed, prunes the accelerated one, and says what was saved.

    Args:
        out: The JSON file.
        images: Scenes to train on.
        test_images: Scenes to measure on.
        seeds: Seeds 0, 1, ...
        epochs: System -> budget: the compute of so many epochs without compression.
        part: Of the plain budget, what every training of the accelerated line has.
        batch_size: Images per step.
        learning_rate: At 256 images per step.
        evaluations: How often a training is measured.
        clusters: How many prototypes' clusters.
        fit_steps: Of the pruner.
        macs: Shares of the dense multiply-accumulates at which the pruned encoder is measured.
        work: Folder for what is being trained.
        device: cpu, cuda, cuda:1, mps, ...
    """
    data, unseen = by_colour(load_data("demo:train", images)), by_colour(load_data("demo:val", test_images))
    results, training = Results(out), TrainSettings(1, batch_size, learning_rate, evaluations=evaluations)
    seconds = results.once("prototypes", partial(find_in_seconds, data, make_folder(work), clusters))
    job, rows = Job(data, unseen, work, training, epochs, part, seconds, device), list[dict[str, Any]]()
    for seed in range(seeds):
        for system in MEASURES:
            for arm in (PLAIN, FAST, LINE):
                rows += results.once(f"{system} {arm} {seed}", partial(_trained, job, system, arm, seed))
        rows += results.once(f"pruning {seed}", partial(_pruned, job, seed, fit_steps, macs))
    headline = [
        saving(rows, system, measure, against)
        for system, measures in MEASURES.items()
        for measure in measures
        for against in ("gmacs", "seconds")
    ]
    whole = {"pruning": pruning(rows), "lines": [line(rows, arm) for arm in (PLAIN, LINE)]}
    about = {"part": part, "epochs": epochs, "prototype_seconds": seconds}
    results.write(environment(torch.device(device)), rows, settings=about, headline=headline, **whole)


def _trained(job: Job, system: str, arm: str, seed: int) -> list[dict[str, Any]]:
    """The evaluations of a training, which starts from the tower of the step before: the plain line's, or its own."""
    epochs = job.epochs[system] * (job.part if arm == LINE else 1)
    training, folder = replace(job.training, epochs=epochs, seed=seed), job.folder(system, arm, seed)
    before = {"moco": "mae", "clip": "moco"}.get(system, "")
    tower = job.folder(before, LINE if arm == LINE else PLAIN, seed) / MODEL
    schedule = "none" if arm == PLAIN else "default"
    if system == "mae":
        settings = replace(MASKED, curriculum="uniform" if arm == PLAIN else "prototype")
        known = None if arm == PLAIN else read_prototypes(job.work / PROTOTYPES)
        report: PretrainReport = mae(job.images, job.unseen, folder, settings, training, job.device, known)
    elif system == "moco":
        views = replace(VIEWED, weights=str(tower))
        report = contrastive(job.images, job.unseen, folder, views, training, schedule, job.device)
    else:
        report = image_text(tower, job.images, job.unseen, folder, CAPTIONED, training, schedule, job.device)
    first = job.prototype_seconds if system == "mae" and arm != PLAIN else 0.0
    gmacs, rows = _gmacs_of_a_pass(job, seed), [own_seconds(row, job.device) for row in report.progress.rows]
    about = {"system": system, "arm": arm, "seed": seed}
    own = [{"gmacs": gmacs * row["budget"], "seconds": row["seconds"] + first} for row in rows]
    return [about | row | more for row, more in zip(rows, own, strict=True)]


def _gmacs_of_a_pass(job: Job, seed: int) -> float:
    """Of the forward and backward pass of an image; the backward pass is counted as two forward passes."""
    folder = job.folder("mae", PLAIN, seed) / MODEL
    return 3 * analytic_macs(load_model(f"timm:local-dir:{folder.resolve()}").tower, 0, Schedule({0: 1.0})) / 1e9


def _pruned(job: Job, seed: int, steps: int, macs: Sequence[float]) -> list[dict[str, Any]]:
    """The dense encoder of the accelerated line's CLIP, and the pruned one at every share of the MACs."""
    folder = job.folder("clip", LINE, seed)
    model = load_model(f"open_clip:local-dir:{(folder / MODEL).resolve()}", job.device)
    began = time.process_time()
    pruner, _ = fit(model, job.images, folder / "pruner", FitSettings(keep=0.5, steps=steps, seed=seed))
    about = {"system": "pruning", "seed": seed, "fit_seconds": time.process_time() - began}
    settings = EvaluationSettings(methods=["random"], macs=[*macs], timing_batch=0, examples=0, worst=0, seed=seed)
    found = evaluate(model, job.unseen, [pruner], settings)[0]["rows"]
    names, rows = ("method", "keep_rate", "macs_share", "top1", "feature_cosine"), list[dict[str, Any]]()
    shares = {1.0: 1.0} | {keep_at_macs(model.tower, pruner.fitted, share): share for share in macs}
    for row in found:
        row = {name: row[name] for name in names} | {"macs": shares[row["keep_rate"]]}
        if row["method"] != "random":
            own = None if row["method"] == "dense" else pruner.at(row["keep_rate"])
            row |= dict(zip(("seconds", "seconds_dense"), _seconds_of_a_batch(model, own), strict=True))
        rows.append(about | row)
    return rows


@torch.inference_mode()
def _seconds_of_a_batch(model: LoadedModel, pruner: Pruner | None) -> tuple[float, float]:
    """Median seconds of a core for a batch with a pruner, None for none, and without, one after the other."""
    pixels = torch.randn(BATCH, 3, *model.image_size, device=model.device)
    found: tuple[list[float], list[float]] = [], []
    for turn in range(REPEATS + 1):
        for own, seconds in zip((pruner, None), found, strict=True):
            with nullcontext() if own is None else own.attached(model.model):
                began = time.process_time()
                model.tower.module(pixels)
                if turn:
                    seconds.append(time.process_time() - began)
    return median(found[0]), median(found[1])


def saving(rows: Sequence[Row], system: str, measure: str, against: str) -> dict[str, Any]:
    """How many times sooner the accelerated arm of a training is where the plain one ends; see ``sooner``."""
    own = [row for row in rows if row["system"] == system]
    ours, theirs = (curves_of([row for row in own if row["arm"] == arm], measure, against) for arm in (FAST, PLAIN))
    return {"system": system, "measure": measure, "against": against} | sooner(ours, theirs, paired=True)


def pruning(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The lowest share of the MACs at which, as at every higher one, the mean accuracy is within a point of dense.

    Returns:
        Means over the seeds there; None where no share is.
    """
    means = _means([row for row in rows if row["system"] == "pruning" and row["method"] in ("dense", "patchranking")])
    best = None
    for share in sorted(means, reverse=True)[1:]:
        if means[share]["top1"] < means[1.0]["top1"] - POINTS:
            break
        best = {"macs": share} | means[share] | {"top1_dense": means[1.0]["top1"]}
    return best


def _means(rows: Sequence[Row]) -> dict[float, dict[str, float]]:
    """Share of the MACs -> means over the seeds."""
    found = {}
    for share in {row["macs"] for row in rows}:
        own = [row for row in rows if row["macs"] == share]
        faster = fmean(row["seconds_dense"] / row["seconds"] for row in own)
        names = ("top1", "macs_share", "feature_cosine", "fit_seconds")
        means = {name: fmean(row[name] for row in own) for name in names}
        found[share] = means | {"times_faster": faster}
    return found


def line(rows: Sequence[Row], arm: str) -> dict[str, Any]:
    """What all trainings of a line took together, and the zero-shot accuracy of its CLIP: means over the seeds."""
    ends = [row for row in rows if row.get("arm") == arm and row["share"] == 1]
    seeds = len({row["seed"] for row in ends})
    total = {name: sum(row[name] for row in ends) / seeds for name in ("gmacs", "seconds")}
    return {"arm": arm} | total | {"zero_shot": fmean(row["zero_shot"] for row in ends if row["system"] == "clip")}


if __name__ == "__main__":
    main(systems)
