"""Multiply-accumulates as counted, and time measured in alternation."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from patchranking.towers import VisionTower

__all__ = ["count_macs", "images_per_second", "noise", "time_in_turn"]

Key = TypeVar("Key", bound=Hashable)


def noise(tower: VisionTower, batch: int, seed: int = 0) -> Tensor:
    """Random pixels ``(batch, 3, height, width)`` to time and count with; neither depends on the picture."""
    generator = torch.Generator(tower.device).manual_seed(seed)
    return torch.empty(batch, 3, *tower.image_size, dtype=tower.dtype, device=tower.device).normal_(generator=generator)


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


def images_per_second(
    runs: Mapping[Key, Callable[[Tensor], object]], pixels: Tensor, repeats: int = 7
) -> dict[Key, float]:
    """Median throughput of several encoders, in alternation, so that a noisy machine affects all of them equally.

    Args:
        runs: Key -> encoder of a batch.
        pixels: The batch ``(batch, 3, height, width)``.
        repeats: Rounds; the first of one more is a warm-up.

    Returns:
        Key -> images per second.
    """
    return {
        name: len(pixels) / float(np.median(seconds)) for name, seconds in time_in_turn(runs, pixels, repeats).items()
    }


@torch.inference_mode()
def time_in_turn(
    runs: Mapping[Key, Callable[[Tensor], object]], pixels: Tensor, repeats: int, seconds: float = 0.0
) -> dict[Key, list[float]]:
    """Seconds that each encoder takes for a batch, round after round, every encoder once per round.

    Args:
        runs: Key -> encoder of a batch.
        pixels: The batch ``(batch, 3, height, width)``.
        repeats: Rounds at least; the first of one more is a warm-up.
        seconds: More rounds until this much time has passed.

    Returns:
        Key -> seconds of every round but the first.
    """
    found: dict[Key, list[float]] = {name: [] for name in runs}
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
