from __future__ import annotations

import json

import figures
import numpy as np
import pytest
import tables
import torch
from PIL import Image
from torch.nn import functional as F

from patchranking.data import load_data
from patchranking.methods.batch import Batch
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule

IMAGES = tables.ROOT / "docs/images"


def test_the_charts_in_the_docs_are_those_of_the_file():
    rows = json.loads((tables.ROOT / "benchmarks/results/figures-demo.json").read_text())["rows"]
    for name, svg in figures.charts(rows).items():
        assert (IMAGES / f"which-{name}.svg").read_text() == svg
    drawn = {f"which-{name}" for name in ("orders", "work", "ranking", "stages", "methods")}
    assert {path.stem for path in IMAGES.glob("which-*")} == drawn
    assert all(path.stat().st_size < 100_000 for path in IMAGES.glob("which-*"))


def test_everything_is_drawn(demo, tmp_path):
    stages = Schedule.default(demo.tower.depth, 0.5)
    Pruner.unfitted(demo.tower, "demo", stages, merges=True).save_pretrained(tmp_path / "pruner")
    (tmp_path / "images").mkdir()
    out = tmp_path / "figures.json"
    figures.figures("demo", "demo:test", tmp_path / "pruner", out, tmp_path / "images", limit=2, shown=1)
    rows = json.loads(out.read_text())["rows"]
    assert {path.name for path in (tmp_path / "images").iterdir()} == {path.name for path in IMAGES.glob("which-*")}
    assert {row["n_images"] for row in rows if "order" in row} == {2}
    at_half = {row["order"]: row["feature_cosine"] for row in rows if row.get("keep_rate") == 0.5}
    assert at_half["golden"] > at_half["random"] > at_half["golden, backwards"]
    once, staged = (next(row for row in rows if row.get("schedule") == name) for name in ("at once", "in stages"))
    assert once["macs_share"] == pytest.approx(staged["macs_share"], abs=0.01)


@torch.inference_mode()
def test_the_cosine_is_of_the_patches_that_score_highest(demo):
    tower, pixels = demo.tower, demo.preprocess(load_data("demo:test", 1).image(0))[None]
    scores = torch.rand(1, tower.num_patches)
    assert figures.cosine(Batch(tower, pixels), scores, 1.0) == pytest.approx(1, abs=1e-6)
    tokens = tower.embed(pixels, figures.BLOCK)
    best = sorted(range(tower.num_patches), key=lambda place: -scores[0, place])[:36]
    kept = tower.pool(tower.run(tokens[:, [0, *(1 + place for place in sorted(best))]], figures.BLOCK))
    expected = F.cosine_similarity(kept, tower(pixels)).item()
    assert figures.cosine(Batch(tower, pixels), scores, 0.25) == pytest.approx(expected, abs=1e-6)


def test_merged_patches_have_one_mean_colour(tower):
    levels = np.zeros((4, 4, 3), np.uint8)
    levels[0, 0], levels[3, 3] = (200, 100, 0), (100, 0, 200)
    place = torch.arange(16)
    place[15] = 0
    picture = figures.merged_view(Image.fromarray(levels).resize((32, 32), Image.Resampling.NEAREST), place, tower)
    assert picture.getpixel((4, 4)) == picture.getpixel((28, 28)) == (150, 50, 100)
    assert picture.getpixel((12, 12)) == (0, 0, 0)


def test_a_patch_passes_the_stages_up_to_the_one_that_drops_it(demo):
    pruner = Pruner.unfitted(demo.tower, "demo", Schedule({1: 0.75, 3: 0.5}), merges=True)
    pixels = demo.preprocess(load_data("demo:test", 1).image(0))[None]
    with torch.inference_mode():
        passed = figures.passing(pruner, Batch(demo.tower, pixels))
    assert np.bincount(passed.flatten()).tolist() == [36, 36, 72]
