"""Methods at equal shares of the dense multiply-accumulates (MACs), as counted, and their speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pictures import Setting

from patchranking.errors import UserError
from patchranking.evaluation.cost import images_per_second, noise
from patchranking.evaluation.rows import encoding_macs
from patchranking.methods import Dense, Encoding, Method
from patchranking.methods.tally import DENSE
from patchranking.pruning.macs import keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

_NEAR, _TRIES = 0.002, 4


@dataclass(frozen=True, eq=False)
class Point:
    """A method at a share of the dense MACs.

    Attributes:
        encoding: What encodes.
        macs: Counted, per image.
        dense_macs: Those of the dense model.
        oracle: Whether the method sees the result before it chooses.
    """

    encoding: Encoding
    macs: float
    dense_macs: float
    oracle: bool = False

    @property
    def share(self) -> float:
        """The counted share of the dense MACs."""
        return self.macs / self.dense_macs

    @property
    def cost(self) -> dict[str, Any]:
        """What a row says of cost."""
        schedule = self.encoding.schedule
        return {
            "macs_share": self.share,
            "gmacs": self.macs / 1e9,
            "gmacs_dense": self.dense_macs / 1e9,
            "keep_rate": schedule.keep,
            "schedule": schedule.to_dict(),
            "oracle": self.oracle,
        }


def dense_point(tower: VisionTower, shape: Schedule) -> Point:
    """The dense model."""
    encoding = Dense().at(tower, shape, 0)
    macs = encoding_macs(encoding, noise(tower, 1))
    return Point(encoding, macs, macs)


def at_share(method: Method, tower: VisionTower, shape: Schedule, share: float, dense: Point, seed: int) -> Point:
    """A method where its counted MACs, those of scoring included, are nearest to a share of the dense ones.

    The formula gives a first schedule; what counting finds beyond the formula is then taken off the aim. A method that
    has only a few schedules, as low-res has grids, gets the nearest of them.

    Args:
        method: The method.
        tower: The image encoder.
        shape: The reference, in which part of the dropped patches goes at each block.
        share: The share.
        dense: The dense model.
        seed: Seed of what is drawn at random.

    Raises:
        UserError: If the reference cannot have so few MACs.
    """
    keep_at_macs(tower, shape, share)
    aim, found, own_schedule = share, list[Point](), False
    while len(found) < _TRIES and not any(abs(point.share - share) < _NEAR for point in found):
        try:
            keep = keep_at_macs(tower, shape, aim)
        except UserError:
            if own_schedule and shape.block > 0:
                shape = Schedule({0: 1.0})  # it takes the MACs of the reference, not its blocks
                continue
            keep = 1 / tower.num_patches
        reference = shape.at(keep)
        encoding = method.beside(tower, reference, seed)
        own_schedule = encoding.schedule != reference
        found.append(Point(encoding, encoding_macs(encoding, noise(tower, 1)), dense.dense_macs, method.oracle))
        aim += share - found[-1].share
    return min(found, key=lambda point: abs(point.share - share))


def speeds_of(tower: VisionTower, points: Mapping[Setting, Point], batch: int) -> list[dict[str, Any]]:
    """Images per second of every method that can be deployed, each share in alternation with the dense model.

    Args:
        tower: The image encoder.
        points: The encodings; of several seeds, the first is timed.
        batch: Images per batch.
    """
    pixels, rows = noise(tower, batch), []
    (dense,) = (point for setting, point in points.items() if setting.method == DENSE)
    for share in sorted({setting.macs for setting in points} - {1.0}, reverse=True):
        timed = {s: p for s, p in points.items() if s.macs == share and s.fit == 0 and not p.oracle}
        found = images_per_second({DENSE: dense.encoding} | {s: p.encoding for s, p in timed.items()}, pixels)
        rows += [
            {
                "method": setting.method,
                "macs": share,
                "macs_share": point.share,
                "batch": batch,
                "images_per_second": found[setting],
                "images_per_second_dense": found[DENSE],
            }
            for setting, point in timed.items()
        ]
    return rows
