from __future__ import annotations

import json
import sys

import numpy as np
import prototypes
import pytest

from patchranking.data import load_data
from patchranking.pretrain.prototypes import Prototypes

pytest.importorskip("skimage")


def test_distances_that_know_the_scene_correlate_with_it(tmp_path):
    known, data = prototypes.atypicality(60), load_data("demo:train", 60)
    distances = (known["clutter"] - 3).astype(np.float32) / 4
    clusters = np.unique(data.labels, return_inverse=True)[1].astype(np.int32)
    about = {"clusters": clusters.max() + 1, "davies_bouldin": 1.0}
    row = prototypes.described(Prototypes(data.keys, clusters, distances, [""] * 60, about), data.labels, known)
    assert row["purity"] == 1
    assert row["spearman_clutter"] == pytest.approx(1)
    assert 0.3 < row["spearman_all"] < 0.9
    assert abs(row["spearman_rotation"]) < 0.4


def test_a_row_for_each_way_to_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prototypes.py"])
    monkeypatch.setattr(prototypes, "CLUSTERS", (2, "labels"))
    prototypes.prototypes(["hog"], tmp_path / "p.json", images=40)
    rows = json.loads((tmp_path / "p.json").read_text())["rows"]
    assert [row["clusters"] for row in rows] == [2, "labels"]
    assert rows[1]["purity"] == 1
    assert set(rows[0]) >= {
        "features",
        "seed",
        "n_images",
        "spearman_clutter",
        "spearman_rotation",
        "spearman_smallness",
    }
