"""Multiply-accumulates, counted and computed, and throughput measured in alternation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["analytic_macs", "count_macs", "images_per_second", "time_in_turn"]


@torch.no_grad()
def count_macs(run: Callable[[Tensor], object], pixels: Tensor) -> float:
    """Counts the multiply-accumulates of one image, matrix products and convolutions.

    The fused attention kernels and the inference fast path of ``nn.MultiheadAttention`` hide their work from the
    counter, so it runs with both switched off.

    Args:
        run: Encodes a batch.
        pixels: Any batch ``(batch, 3, height, width)``.

    Returns:
        MACs per image.
    """
    fast_path = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run(pixels)
    finally:
        mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() / 2 / len(pixels)


def analytic_macs(tower: VisionTower, features: int, schedule: Schedule, visual_tokens: int = 0) -> float:
    """MACs of one image by formula, without the predictor.

    Per block with T tokens of width D and MLP width H: ``4 T D^2 + 2 T D H`` for the projections and the MLP and
    ``2 T^2 D`` for attention. What a pooling attention costs is left out.

    Args:
        tower: The image encoder.
        features: Size of the output feature.
        schedule: Where patches go and how many stay.
        visual_tokens: Learnable tokens that run beside the patches.
    """
    width, mlp = tower.width, tower.mlp_width

    def one_block(tokens: int) -> int:
        return 4 * tokens * width**2 + 2 * tokens * width * mlp + 2 * tokens**2 * width

    area = (tower.image_size[0] // tower.grid[0]) * (tower.image_size[1] // tower.grid[1])
    embedding = tower.num_patches * 3 * area * width
    stages = schedule.kept(tower.num_patches)
    patches, blocks = tower.num_patches, 0
    for block in range(tower.depth):
        patches = stages.get(block, patches)
        blocks += one_block(tower.num_prefix_tokens + visual_tokens + patches)
    return embedding + blocks + width * features


def images_per_second(
    runs: Mapping[str, Callable[[Tensor], object]], pixels: Tensor, repeats: int = 7
) -> dict[str, float]:
    """Median throughput of several encoders, measured in turn so that a noisy machine disturbs all alike.

    Args:
        runs: Name -> encoder of a batch.
        pixels: The batch ``(batch, 3, height, width)``.
        repeats: Rounds; the first of one more is a warm-up.

    Returns:
        Name -> images per second.
    """
    return {
        name: len(pixels) / float(np.median(seconds)) for name, seconds in time_in_turn(runs, pixels, repeats).items()
    }


@torch.inference_mode()
def time_in_turn(
    runs: Mapping[str, Callable[[Tensor], object]], pixels: Tensor, repeats: int, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Seconds that each encoder takes for a batch, round after round, every encoder once a round.

    Args:
        runs: Name -> encoder of a batch.
        pixels: The batch ``(batch, 3, height, width)``.
        repeats: Rounds at least; the first of one more is a warm-up.
        seconds: More rounds until so much time has gone.

    Returns:
        Name -> seconds of every round but the first.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while min(map(len, found.values()), default=repeats + 1) <= repeats or time.perf_counter() - start < seconds:
        for name, run in runs.items():
            _synchronise(pixels.device)
            began = time.perf_counter()
            run(pixels)
            _synchronise(pixels.device)
            found[name].append(time.perf_counter() - began)
    return {name: times[1:] for name, times in found.items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
