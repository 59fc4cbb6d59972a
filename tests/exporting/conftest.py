from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from patchranking import Pruner
from patchranking.pruning.schedule import Schedule


@pytest.fixture(scope="session")
def images(tinier):
    """A model without its text encoder."""
    return replace(tinier, text=None)


@pytest.fixture(scope="session")
def pruner(tinier):
    """One that has learned nothing, for that model."""
    torch.manual_seed(0)
    return Pruner.unfitted(tinier.tower, "tiny", Schedule({1: 0.5}))
