from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchranking import Pruner, Schedule


@pytest.fixture
def pruner(demo, tmp_path):
    """Folder of a pruner of the demo model that has learned nothing."""
    folder = tmp_path / "pruner"
    Pruner.unfitted(demo.tower, "demo", Schedule({3: 0.5})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def keys():
    """Returns a function that gives the keys of every kind of row in a published file."""
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    return lambda name: {frozenset(row) for row in json.loads((results / f"{name}.json").read_text())["rows"]}
