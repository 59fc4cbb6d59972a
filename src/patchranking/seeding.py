"""Random numbers by seed that leave the caller's alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["nth_seed", "seeded", "seeded_everywhere"]

_APART = 1_000_003
"""Seeds of one training are so far from those of the training with the next seed."""


def nth_seed(seed: int, number: int) -> int:
    """The seed of one of many steps or items that are drawn alike whatever was drawn before."""
    return seed * _APART + number


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws torch's CPU random numbers from a seed for the length of a ``with`` block, then restores the caller's."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def seeded_everywhere(seed: int) -> Iterator[None]:
    """Does as ``seeded`` for numpy's and Python's own random numbers too, which transforms of other libraries draw."""
    before, python = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        with seeded(seed):
            yield
    finally:
        np.random.set_state(before)
        random.setstate(python)
