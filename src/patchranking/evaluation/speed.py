"""What pruning saves on this machine: latency, throughput and memory compared with the dense model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from patchranking.errors import UserError, check_numbers
from patchranking.evaluation.cost import count_macs, noise, time_in_turn
from patchranking.evaluation.memory import peak_activations
from patchranking.methods.attach import attach_copy, keep_at_share
from patchranking.methods.method import Attachable
from patchranking.pruner import Pruner
from patchranking.pruning.attach import detach
from patchranking.pruning.select import check_keep_rate
from patchranking.towers import VisionTower, as_tower
from patchranking.towers.copies import copied

__all__ = ["SpeedSettings", "compiled", "measure_speed", "speed_figures"]

BackendName = Literal["eager", "compile"]
PrecisionName = Literal["fp32", "bf16", "fp16"]
Encoder = Callable[[Tensor], Tensor]
Key = TypeVar("Key", bound=Hashable)
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}


@dataclass(frozen=True)
class SpeedSettings:
    """What to time.

    Attributes:
        keep: Keep rates; the dense model is always timed with them.
        batches: Batch sizes, in images.
        backends: eager, compile (fullgraph), or both; dense and pruned alike.
        precisions: Of weights and activations: fp32, bf16, fp16.
        repeats: Rounds of each batch size, at least.
        seconds: More rounds until this many seconds have passed, for percentiles of small batches.
        seed: Random seed of the pixels.
        macs: Shares of the dense multiply-accumulates, in place of keep rates.
    """

    keep: list[float] = field(default_factory=lambda: [0.7, 0.6, 0.5, 0.4])
    batches: list[int] = field(default_factory=lambda: [1, 8, 32])
    backends: list[BackendName] = field(default_factory=lambda: ["eager"])
    precisions: list[PrecisionName] = field(default_factory=lambda: ["fp32"])
    repeats: int = 7
    seconds: float = 5.0
    seed: int = 0
    macs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        for rate in self.keep:
            check_keep_rate(rate)
        check_numbers(vars(self), repeats=1, seconds=0.0, seed=0)
        if min(self.batches, default=0) < 1:
            raise UserError("A batch has 1 image or more: give --batches 1 8 32, for example.")


def measure_speed(
    model: nn.Module, pruner: Pruner | Attachable, name: str, settings: SpeedSettings
) -> list[dict[str, Any]]:
    """Times the dense and the pruned model in alternation, on random pictures.

    Time does not depend on what the predictor has learnt or the pictures show.

    Args:
        model: The model, from any supported library.
        pruner: Fitted to it, or a method that needs no fit.
        name: For the rows.
        settings: What to time.

    Returns:
        One row for every backend, precision, batch size and keep rate. ``macs`` is the share asked for, if one was, and
        ``gmacs`` are counted. ``ratio_to_stock`` is the speed relative to the
        dense model in the same round, the median over rounds; ``realised_share`` is that ratio over the ratio of
        multiply-accumulates, 1 where all that could be saved was.

    Raises:
        UserError: If the pruner is another model's, a batch does not fit into memory, or compiled encoders do not give
            the features that they give in eager mode.
    """
    if isinstance(pruner, Pruner):
        pruner.base.check(as_tower(model))
    rows: list[dict[str, Any]] = []
    shares = _shares(as_tower(model), pruner, settings)
    plans = [(backend, precision) for precision in settings.precisions for backend in settings.backends]
    with tqdm(total=len(plans) * len(settings.batches), desc="time", unit="batch size") as bar:
        for backend, precision in plans:
            encoders, macs = _encoders(model, pruner, shares, _TYPES[precision])
            about = {"model": name, "backend": backend, "precision": precision}
            for batch in settings.batches:
                runs = encoders if backend == "eager" else {rate: compiled(run) for rate, run in encoders.items()}
                found = _at_batch(runs, encoders, macs, model, batch, precision, settings)
                rows += [about | row | {"macs": shares.get(row["keep_rate"])} for row in found]
                bar.update()
                torch.compiler.reset()
    return rows


def _shares(tower: VisionTower, pruner: Pruner | Attachable, settings: SpeedSettings) -> dict[float, float | None]:
    """Keep rate -> the share of the dense MACs that was asked for, if one was."""
    if settings.macs:
        return {keep_at_share(tower, pruner, share): share for share in settings.macs}
    return dict.fromkeys((rate for rate in settings.keep if rate < 1), None)


def _encoders(
    model: nn.Module, pruner: Pruner | Attachable, rates: Iterable[float], dtype: torch.dtype
) -> tuple[dict[float, Encoder], dict[float, float]]:
    """Encoders by keep rate, each with hooks of its own on shared weights; and their MACs."""
    base = copied(model, dtype)
    detach(base)
    encoders: dict[float, Encoder] = {}
    macs = {}
    for rate in (1.0, *rates):
        tower = as_tower(copied(base, dtype))
        if rate < 1:
            attach_copy(tower, pruner, rate, dtype)
        macs[rate] = count_macs(tower, torch.zeros(1, 3, *tower.image_size, dtype=dtype, device=tower.device))
        encoders[rate] = tower
    return encoders, macs


def compiled(encoder: Encoder, dynamic: bool | None = False) -> Encoder:
    """The encoder compiled from code of its own: what is compiled is kept by code, and hooks do not tell it apart.

    Args:
        encoder: Maps pixels to features.
        dynamic: As in ``torch.compile``; by default anew for batches of every size.
    """

    def run(pixels: Tensor) -> Tensor:
        return encoder(pixels)

    own = FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=dynamic)


def _check_same(runs: dict[float, Encoder], eager: dict[float, Encoder], pixels: Tensor, tolerance: float) -> None:
    """Raises UserError unless each of ``runs`` gives the features of its eager encoder rather than the dense one's."""
    dense = eager[1.0](pixels).float()
    for rate, run in runs.items():
        found, expected = run(pixels).float(), eager[rate](pixels).float()
        allowed = min(tolerance * float(expected.norm()), float((found - dense).norm()))
        if not float((found - expected).norm()) <= allowed:
            raise UserError(
                f"The compiled encoder at keep rate {rate:g} gives other features than in eager mode, so its time "
                "means nothing: leave compile out of --backends, and report the versions of torch and of the model's "
                "library."
            )


@torch.inference_mode()
def _at_batch(
    runs: dict[float, Encoder],
    eager: dict[float, Encoder],
    macs: dict[float, float],
    model: nn.Module,
    batch: int,
    precision: PrecisionName,
    settings: SpeedSettings,
) -> list[dict[str, Any]]:
    tower = as_tower(model)
    pixels = noise(tower, batch, settings.seed).to(_TYPES[precision])
    try:
        if runs is not eager:
            _check_same(runs, eager, pixels, _TOLERANCE[precision])
        found = time_in_turn(runs, pixels, settings.repeats, settings.seconds)
    except torch.OutOfMemoryError as error:
        raise UserError(f"A batch of {batch} does not fit into memory: leave it out of --batches.") from error
    figures = speed_figures(found, macs, batch, 1.0)
    return [
        {"keep_rate": rate} | own | {"peak_activations_mb": peak_activations(eager[rate], pixels) / 2**20}
        for rate, own in figures.items()
    ]


def speed_figures(
    found: Mapping[Key, Sequence[float]], macs: Mapping[Key, float], batch: int, dense: Key
) -> dict[Key, dict[str, Any]]:
    """What times measured in alternation say.

    Args:
        found: Key -> seconds of a batch, round by round.
        macs: Key -> MACs of an image.
        batch: Images of a batch.
        dense: Key of the model to compare with.
    """
    seconds = {key: np.array(times) for key, times in found.items()}
    ratios = {key: float(np.median(seconds[dense] / times)) for key, times in seconds.items()}
    return {
        key: {
            "batch": batch,
            "rounds": len(times),
            "images_per_second": batch / float(np.median(times)),
            "p50_ms": 1000 * float(np.median(times)),
            "p99_ms": 1000 * float(np.quantile(times, 0.99)),
            "ratio_to_stock": ratios[key],
            "gmacs": macs[key] / 1e9,
            "realised_share": ratios[key] / (macs[dense] / macs[key]),
        }
        for key, times in seconds.items()
    }
