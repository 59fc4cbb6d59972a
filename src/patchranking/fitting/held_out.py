"""The figures that go with a pruner, measured on the images that its fit held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from patchranking.data import ImageData
from patchranking.data.base import chosen_from, sample
from patchranking.evaluation.cost import images_per_second, noise
from patchranking.evaluation.environment import environment
from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
from patchranking.methods.patchranking import PatchRanking
from patchranking.predictor.distill import Distillation
from patchranking.pruner import Pruner
from patchranking.sharing.measured import FIGURES, Measured
from patchranking.towers import VisionTower
from patchranking.towers.load import LoadedModel

__all__ = ["measure_held_out"]

_RATES = (0.7, 0.5, 0.3)
_IMAGES = 200
_TEXTS = 2000
"""Classes times templates at most, so that a text encoder takes no longer than the images."""
_TIMING_BATCH, _TIMING_ROUNDS = 4, 5
_LEFT_OUT = ("command", "git_commit")
"""Of the environment: they may name folders, and a card is for others to read."""


def measure_held_out(
    model: LoadedModel,
    data: ImageData,
    held_out: Sequence[int],
    pruner: Pruner,
    n_train: int,
    distillation: Distillation | None,
    seed: int = 0,
) -> Measured:
    """Measures a pruner at its own keep rate and at three others; it costs some hundred passes of the model.

    A pruner that preserves tokens has no feature to compare: its figures are those of its distillation.

    Args:
        model: The model it was fitted to.
        data: The images of the fit.
        held_out: Indices of those that were held out; 200 of them are measured on.
        pruner: As fitted.
        n_train: Images fitted to.
        distillation: What the distillation reached, if there was one.
        seed: Of the choice among many images, and of the pixels that are timed.

    Returns:
        The figures.

    Raises:
        UserError: If no image can be read.
    """
    if pruner.hands_on is not None:
        errors: Mapping[str, float] = {} if distillation is None else distillation.feature_error
        rows: list[dict[str, float | None]] = [
            {"keep_rate": float(rate), "token_cosine": 1 - error} for rate, error in errors.items()
        ]
        about = environment(model.tower.device)
        return Measured(data.name, data.split, n_train, len(held_out), 0, 0, _told(about), rows)
    images = chosen_from(data, [held_out[place] for place in sample(len(held_out), _IMAGES, seed)])
    images.captions = None
    classes = len(images.class_names)
    if classes > _TEXTS:
        images.labels = None
    elif classes:
        images.templates = images.templates[: max(1, _TEXTS // classes)]
    rates = sorted({*_RATES, pruner.keep}, reverse=True)
    settings = EvaluationSettings([], rates, timing_batch=0, examples=0, worst=0, seed=seed)
    results, _ = evaluate(model, images, [pruner], settings)
    speeds = _speeds(model.tower, pruner, rates, seed)
    found = [row | speeds[row["keep_rate"]] for row in results["rows"] if row["method"] == "patchranking"]
    return Measured(
        data.name,
        data.split,
        n_train,
        results["images"]["evaluated"],
        0 if found[0]["top1"] is None else classes,
        _TIMING_BATCH,
        _told(results["environment"]),
        [{"keep_rate": row["keep_rate"], **{name: row.get(name) for name in FIGURES}} for row in found],
    )


def _speeds(tower: VisionTower, pruner: Pruner, rates: Sequence[float], seed: int) -> dict[float, dict[str, float]]:
    """What rows say of speed, by keep rate."""
    method, pixels = PatchRanking(pruner), noise(tower, _TIMING_BATCH, seed)
    runs: dict[float, Callable[[Tensor], object]] = {1.0: tower}
    runs |= {rate: method.at(tower, pruner.fitted.at(rate), seed) for rate in rates if rate < 1}
    found = images_per_second(runs, pixels, _TIMING_ROUNDS)
    return {rate: {"images_per_second": one, "images_per_second_dense": found[1.0]} for rate, one in found.items()}


def _told(about: Mapping[str, str | int | None]) -> dict[str, str | int | None]:
    return {name: value for name, value in about.items() if name not in _LEFT_OUT}
