r"""Whether ToMe does better where blocks do not all merge the same number of patches, at equal MACs.

    python benchmarks/tome_schedules.py open_clip:local-dir:photos/photo-clip-s14 \
        photos/imagenette/train,photos/flowers/train,photos/flickr8k/train --limit 150 \
        --out benchmarks/results/tome_schedules-photos.json

Schedules are tried on training pictures, so that a better one could be chosen for the comparison. ``even`` is ToMe as
the comparison runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Results, main
from torch import Tensor
from torch.nn import functional as F

from patchranking.data import load_data, read_batches
from patchranking.evaluation.environment import environment
from patchranking.methods.method import Encoding
from patchranking.methods.tome import ToMe, tome_schedule
from patchranking.pruning.macs import analytic_macs, keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower
from patchranking.towers.load import load_model

SHAPES: dict[str, Callable[[float], float]] = {
    "falling slowly": lambda place: 1.5 - place,
    "falling to none": lambda place: 2 - 2 * place,
    "rising slowly": lambda place: 0.5 + place,
    "rising from none": lambda place: 2 * place,
    "first two thirds": lambda place: float(place < 2 / 3),
    "all but the first sixth": lambda place: float(place > 1 / 6),
    "middle": lambda place: 1 - abs(2 * place - 1),
}
"""Name -> how many patches a block merges beside the others, by its place between 0 and 1; ``even`` comes first."""


def tome_schedules(
    model: str,
    data: str,
    shares: list[float] = [0.7, 0.6, 0.5, 0.4],  # noqa: B006
    limit: int | None = None,
    out: Path = Path("benchmarks/results/tome_schedules.json"),
) -> None:
    """Measures the cosine to the dense feature under every schedule.

    Args:
        model: The MODEL argument of the command line.
        data: Images.
        shares: Of the dense MACs.
        limit: At most so many images.
        out: The JSON file.
    """
    results, loaded, images = Results(out), load_model(model), load_data(data, limit)
    tower = loaded.tower
    read = read_batches(images, loaded.preprocess, 32, {}, [*range(len(images))], "read images")
    batches = [pixels for _, pixels in read]
    dense, rows = _features(tower, batches), []
    for share in shares:
        shape = Schedule.default(tower.depth, 0.5)
        reference = shape.at(keep_at_macs(tower, shape, share))
        schedules = {"even": tome_schedule(tower, reference)}
        schedules |= {name: shaped(tower, reference, weight) for name, weight in SHAPES.items()}
        for name, schedule in schedules.items():
            cosine = partial(_cosine, ToMe().at(tower, schedule, 0), batches, dense)
            row: dict[str, Any] = {"dataset": images.name, "n_images": len(dense), "macs": share, "shape": name}
            row["macs_share"] = analytic_macs(tower, 0, schedule, inside=True) / analytic_macs(tower, 0, shape.at(1.0))
            row["schedule"] = schedule.to_dict()
            rows.append(row | {"feature_cosine": results.once(f"{name} {share:g}", cosine)})
    results.write(environment(tower.device), rows, model=model)


def shaped(tower: VisionTower, reference: Schedule, weight: Callable[[float], float]) -> Schedule:
    """Merges in proportion to a weight in every block, at most half of the patches, at the MACs of a reference."""
    weights = [weight(block / (tower.depth - 1)) for block in range(tower.depth)]
    aim = analytic_macs(tower, 0, reference)

    def merging(scale: float) -> Schedule:
        left, owed, shares = tower.num_patches, 0.0, {}
        for block, own in enumerate(weights):
            owed += scale * own
            merged = min(round(owed), left // 2)
            left, owed = left - merged, owed - round(owed)
            shares[block] = left / tower.num_patches
        return Schedule(shares)

    low, high = 0.0, float(tower.num_patches)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if analytic_macs(tower, 0, merging(middle), inside=True) > aim else (low, middle)
    return merging(high)


@torch.inference_mode()
def _features(encode: VisionTower | Encoding, batches: list[Tensor]) -> Tensor:
    return F.normalize(torch.cat([encode(pixels) for pixels in batches]), dim=-1)


def _cosine(encoding: Encoding, batches: list[Tensor], dense: Tensor) -> float:
    return (_features(encoding, batches) * dense).sum(1).mean().item()


if __name__ == "__main__":
    main(tome_schedules)
