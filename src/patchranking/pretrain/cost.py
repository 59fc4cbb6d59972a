"""What a step costs, in passes: one forward and backward pass of one uncompressed image through the encoder.

A forward pass alone is a third of it. A budget in forward passes, as the paper's figures have it, is three times as
large a number.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from patchranking.pretrain.compression import Compression
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["FORWARD", "forward_share", "measured_seconds"]

FORWARD = 1 / 3
"""A forward pass without a backward pass, in passes: the backward pass costs about two forward passes."""


def forward_share(tower: VisionTower, compression: Compression) -> float:
    """Multiply-accumulates of a compressed pass as a share of those of an uncompressed one, by formula.

    See ``analytic_macs``; the patch embedding costs the same at every patch size, and is paid for dropped patches too.

    Args:
        tower: The image encoder.
        compression: Patch size and share dropped.
    """
    left = compression.kept(tower.image_size[0]) / tower.num_patches
    return analytic_macs(tower, 0, Schedule({0: left})) / analytic_macs(tower, 0, Schedule({0: 1.0}))


def measured_seconds(steps: Sequence[Callable[[], object]], device: torch.device, repeats: int = 20) -> list[float]:
    """Median seconds of each of some steps, run in alternation so that what slows the machine slows them all.

    Args:
        steps: What to time; each runs once before.
        device: Waited for around each run.
        repeats: Timed runs of each.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found: list[list[float]] = [[] for _ in steps]
    for turn in range(repeats + 1):
        for own, step in zip(found, steps, strict=True):
            wait()
            began = time.perf_counter()
            step()
            wait()
            if turn:
                own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in found]
