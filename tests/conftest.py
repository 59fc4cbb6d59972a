from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import patchranking  # noqa: F401  # first: makes torchvision importable beside a CPU-only torch

# isort: split
import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photos() -> Path:
    """A folder of photographs for tests on real images; these are skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "photos"
    folder = Path(os.environ.get("PATCHRANKING_PHOTOS") or beside)
    if not folder.is_dir():
        pytest.skip("no photographs: set PATCHRANKING_PHOTOS to a folder of images")
    return folder
