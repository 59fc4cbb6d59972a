"""What is compared in an evaluation, and how each method prunes and encodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor

from patchranking.data import ImageData
from patchranking.methods import ENCODERS
from patchranking.methods.tally import Tally
from patchranking.pruner import Pruner
from patchranking.pruning.attach import Reduction, Scorer, attach_reductions
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.stages import Survivors, by_scores
from patchranking.report.wall import WallImage
from patchranking.towers.load import LoadedModel

__all__ = [
    "ORACLES",
    "TUNED",
    "EvaluationSettings",
    "Run",
    "encoder",
    "macs_by_formula",
    "pruned",
    "schedule_of",
]

ORACLES = ("golden",)
"""Methods that look at the result before they choose; no deployable method."""

TUNED = " + "
"""Between a method and the kind of its tuned tokens, in the names that a run keeps them by."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What to compare.

    Attributes:
        methods: Baselines and ``golden``; ``dense`` and the pruners given are always there.
        keep_rates: Shares of the patches kept; 1.0 is the dense row.
        schedule: Where patches go when no pruner is given; every method drops patches there, as many of them.
        golden_images: Images, drawn by seed, for the golden oracle, which runs the model many times on each.
        index_images: Images, drawn by seed, whose features are kept for nearest neighbours and retrieval.
        batch_size: Images a batch.
        timing_batch: Images a batch when timing; 0 leaves timing out.
        wall: Images on the report's wall.
        seed: Seed of the random baseline and of the golden images.
    """

    methods: Sequence[str] = ("random", "cls-attention", "evit", "tome", "golden")
    keep_rates: Sequence[float] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    schedule: Schedule = field(default_factory=lambda: Schedule({3: 0.6}))
    golden_images: int = 100
    index_images: int = 10_000
    batch_size: int = 32
    timing_batch: int = 16
    wall: int = 8
    seed: int = 0


@dataclass
class Run:
    """State of one evaluation; methods go by name, a tuned one by ``method + kind``."""

    model: LoadedModel
    data: ImageData
    settings: EvaluationSettings
    schedule: Schedule
    rates: list[float]
    reductions: dict[str, dict[float, dict[int, Reduction]]]
    encoders: dict[str, dict[float, Schedule]]
    pruner: Pruner | None
    survivors: Survivors
    tuned: dict[str, Pruner]
    tuned_classes: dict[str, Tensor | None]
    tally: Tally
    golden: set[int]
    wall: list[WallImage] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def schedule_of(run: Run, name: str, rate: float) -> Schedule:
    """Where a method drops or merges patches, and how many stay."""
    return run.encoders[name][rate] if name in run.encoders else run.schedule.at(rate)


def macs_by_formula(run: Run, name: str, rate: float, features: int) -> float:
    """MACs of an image by formula, scoring and merging left out; ``features`` is the size of a feature."""
    kind = name.partition(TUNED)[2]
    beside = run.tuned[kind].visual_tokens if kind else 0
    return analytic_macs(run.model.tower, features, schedule_of(run, name, rate), beside)


def pruned(run: Run, name: str, rate: float) -> AbstractContextManager[object]:
    """Makes the tower prune as the method does; the oracle's scores, made before, cost nothing here."""
    tower = run.model.tower
    kind = name.partition(TUNED)[2]
    if kind:
        return attach_reductions(tower, run.tuned[kind].scheduled(schedule_of(run, name, rate)).reductions())
    if name in ORACLES:
        free: dict[int, Scorer] = {run.schedule.block: lambda tokens: tokens[:, tower.num_prefix_tokens :, 0]}
        return attach_reductions(tower, by_scores(tower, run.schedule.at(rate), free))
    return attach_reductions(tower, run.reductions[name][rate])


def encoder(run: Run, name: str, rate: float) -> Callable[[Tensor], Tensor]:
    """The image encoder as a method makes it, from pixels to features."""
    tower = run.model.tower
    if name == "dense":
        return tower
    if name in run.encoders:
        schedule, encode_merged = schedule_of(run, name, rate), ENCODERS[name][1]
        return lambda pixels: encode_merged(tower, pixels, schedule)

    def encode(pixels: Tensor) -> Tensor:
        with pruned(run, name, rate):
            return tower(pixels)

    return encode
