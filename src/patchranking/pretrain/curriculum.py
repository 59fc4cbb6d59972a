"""Which images a training sees when: the share of distinct images an epoch rises, and a temperature gives it.

"From Prototypes to General Distributions: An Efficient Curriculum for Masked Image Modeling" (Lin, Wu, Li, Zhang, Hu,
Morgado, CVPR 2025, arXiv 2411.10685). Images are drawn with replacement, with probabilities softmax(-distance / t); low
temperatures t draw prototypes only, high ones every image alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from patchranking.errors import UserError, check_numbers

__all__ = [
    "ORDERS",
    "Curriculum",
    "OrderName",
    "RampName",
    "distinct_share",
    "probabilities",
    "ramp",
    "temperature_of",
    "uniform_share",
]

OrderName = Literal["prototype", "hard-first", "fixed", "uniform"]
RampName = Literal["cosine", "linear"]
ORDERS: tuple[str, ...] = get_args(OrderName)

_COLDEST, _HOTTEST = 1e-7, 1e7
"""Bounds of the bisection, in units of the distances' range."""
_HALVINGS = 100
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Curriculum:
    """In which order images are seen.

    Attributes:
        order: prototype, the most typical images first; hard-first, the least typical first; fixed, one temperature
            throughout; or uniform, every image alike. The last three are what the first is compared with.
        start: Expected share of distinct images in the first epoch, of prototype and hard-first.
        until: Share of the training after which every image is drawn alike, of these two.
        ramp: How the share of distinct images rises until then: cosine or linear.
        temperature: Of fixed, in units of the distances' range.
    """

    order: OrderName = "prototype"
    start: float = 0.1
    until: float = 0.5
    ramp: RampName = "cosine"
    temperature: float = 0.2

    def __post_init__(self) -> None:
        for name, known in (("order", ORDERS), ("ramp", get_args(RampName))):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"'{name}' is one of {', '.join(known)}, not '{value}'.")
        check_numbers(vars(self), start=0.0, until=0.0, temperature=0.0)
        for name in ("start", "until"):
            if getattr(self, name) > 1:
                raise UserError(f"'{name}' is a share, at most 1, not {getattr(self, name):g}.")
        if self.temperature == 0:
            raise UserError("'temperature' is above 0: the lower, the fewer images are drawn.")

    def temperature_at(self, progress: float, distance: np.ndarray, counts: np.ndarray | None = None) -> float:
        """The temperature at a share of the training, 0 at its start and 1 at its end; infinite for all alike.

        Args:
            progress: Share of the training that is over.
            distance: How far each image is from its prototype, ``(images,)``.
            counts: As in ``distinct_share``.
        """
        if self.order == "uniform":
            return math.inf
        if self.order == "fixed":
            return self.temperature * float(np.ptp(distance)) or math.inf
        if progress >= self.until:
            return math.inf
        most = uniform_share(len(distance) if counts is None else int(counts.sum()))
        share = ramp(progress / self.until, min(self.start, most), most, self.ramp)
        return temperature_of(share, distance, counts)


def probabilities(distance: np.ndarray, temperature: float, counts: np.ndarray | None = None) -> np.ndarray:
    """P = softmax(-distance / temperature), float64, of the shape of ``distance``.

    Args:
        distance: Distances, ``(images,)``, or the different ones among them, ``(levels,)``.
        temperature: Above 0; infinite for the uniform distribution.
        counts: How many images have each of the distances; the result is the probability of one of them.
    """
    weights = np.exp(-(distance - distance.min()) / temperature, dtype=np.float64)
    return np.asarray(weights / (weights if counts is None else weights * counts).sum())


def distinct_share(distance: np.ndarray, temperature: float, counts: np.ndarray | None = None) -> float:
    """Expected share of N images that N draws with replacement show: (1/N) sum of 1 - (1 - P)^N.

    Args:
        distance: As in ``probabilities``.
        temperature: As there.
        counts: As there.

    Returns:
        A share in 0 ... 1, exact in float64 also where P is tiny.
    """
    own = probabilities(distance, temperature, counts)
    number = len(distance) if counts is None else int(counts.sum())
    with np.errstate(divide="ignore"):
        seen = -np.expm1(number * np.log1p(-np.minimum(own, 1)))
    return float((seen if counts is None else seen * counts).sum() / number)


def uniform_share(images: int) -> float:
    """The largest expected share of distinct images an epoch, of draws from all alike: 1 - (1 - 1/N)^N."""
    return -math.expm1(images * math.log1p(-1 / images)) if images > 1 else 1.0


def temperature_of(share: float, distance: np.ndarray, counts: np.ndarray | None = None) -> float:
    """The temperature that shows an expected share of distinct images an epoch, by bisection on its logarithm.

    The share rises with the temperature: a softmax at a lower one majorises that at a higher one.

    Args:
        share: The share.
        distance: As in ``probabilities``.
        counts: As there.

    Returns:
        The temperature, in units of the distances: infinite where the share is what all images alike give, or more; the
        lowest, which draws the nearest images alone, where the share is less than these are.
    """
    spread = float(np.ptp(distance))
    hottest = spread * _HOTTEST
    if spread == 0 or share >= distinct_share(distance, hottest, counts):
        return math.inf
    low, high = math.log(spread * _COLDEST), math.log(hottest)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = distinct_share(distance, math.exp(middle), counts)
        if abs(found - share) < _TOLERANCE:
            break
        low, high = (middle, high) if found < share else (low, middle)
    return math.exp(middle)


def ramp(progress: float, start: float, end: float, shape: RampName = "cosine") -> float:
    """Rises from ``start`` at progress 0 to ``end`` at progress 1 and stays there.

    Args:
        progress: 0 or more.
        start: First value.
        end: Last value.
        shape: ``cosine``, end - (end - start)(1 + cos(pi progress)) / 2, or ``linear``.
    """
    place = min(max(progress, 0.0), 1.0)
    return end - (end - start) * ((1 + math.cos(math.pi * place)) / 2 if shape == "cosine" else 1 - place)
