"""The published list of models that work, and the checks behind it on one model of each kind."""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata

import pytest
import tables
import torch
from coverage import CHECKS, SCHEDULE, masked_features, row_of
from cut_models import BLOCKS, of_open_clip, of_timm
from families import listed

from patchranking.pruner import Pruner
from patchranking.towers import as_tower
from patchranking.towers.transformers.families import CLASSES

LISTED = {(one.library, one.name): one for one in listed()}
KINDS = [
    ("open_clip", "ViT-S-32-alt"),
    ("open_clip", "coca_ViT-B-32"),
    ("open_clip", "EVA02-B-16"),
    ("open_clip", "PE-Core-T-16-384"),
    ("open_clip", "MobileCLIP-B"),
    ("open_clip", "ViTamin-S"),
    ("open_clip", "vit_medium_patch16_gap_256"),
    ("open_clip", "ViT-B-32-SigLIP2-256"),
    ("transformers", "Siglip2VisionModel"),
    ("transformers", "DINOv3ViTModel"),
    ("timm", "vit_small_plus_patch16_dinov3"),
]
QUICK = ("dense", "keep_1", "masked", "detached")


@cache
def published():
    return json.loads((tables.ROOT / "benchmarks/results/coverage.json").read_text())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[1])
def test_one_model_of_each_kind_works(kind):
    row = row_of(LISTED[kind], QUICK)
    assert row["supported"]
    assert not row["errors"]
    assert [row[name] for name in CHECKS] == [True] * len(QUICK) + [None, None]


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_pruned_it_compiles_to_one_graph_and_is_exported():
    row = row_of(LISTED["open_clip", "ViT-S-32-alt"], ("compiled", "exported"))
    assert not row["errors"]
    assert row["compiled"]
    assert row["exported"]


@pytest.mark.parametrize(
    ("library", "name", "tower"),
    [
        ("open_clip", "RN50", "ModifiedResNet"),
        ("open_clip", "MobileCLIP-S1", "FastVit"),
        ("open_clip", "vit_relpos_medium_patch16_cls_224", "VisionTransformerRelPos"),
        ("transformers", "SwinModel", "SwinModel"),
        ("timm", "naflexvit_base_patch16_gap", "NaFlexVit"),
    ],
)
def test_another_image_tower_is_refused_by_its_name(library, name, tower):
    row = row_of(LISTED[library, name])
    assert not row["supported"]
    assert row["image_tower"] == tower
    assert tower in row["sentence"]
    assert {row[check] for check in CHECKS} == {None}


@pytest.mark.parametrize(("make", "name"), [(of_open_clip, "ViT-M-16"), (of_timm, "vit_base_patch14_reg4_dinov2")])
def test_models_are_cut_in_depth_and_in_patches_alone(make, name):
    tower = as_tower(make(name).model)
    assert (tower.depth, tower.grid) == (BLOCKS, (4, 4))
    assert tower.width == {"ViT-M-16": 512}.get(name, 768)


@torch.no_grad()
def test_the_checks_see_what_is_wrong(monkeypatch):
    one, wrong = LISTED["open_clip", "ViT-S-32-alt"], 1 + 1e-4
    cut = of_open_clip(one.name)
    tower = as_tower(cut.model)
    pool = type(tower).pool
    monkeypatch.setattr(type(tower), "pool", lambda *given: pool(*given) * wrong)
    row = row_of(one, QUICK)
    assert [row[name] for name in QUICK] == [False, True, False, True]
    assert row["errors"].keys() == {"dense", "masked"}


@torch.no_grad()
def test_hidden_patches_are_those_that_the_pruner_drops():
    tower = as_tower(of_open_clip("ViT-S-32-alt").model)
    pruner, pixels = Pruner.unfitted(tower, "cut", SCHEDULE), torch.randn(2, 3, *tower.image_size)
    hidden = masked_features(tower, pruner.reductions(), pixels)
    for wrong in ({1: 0.75}, {1: 0.5, 2: 0.5}):
        other = Pruner.unfitted(tower, "cut", SCHEDULE)
        other.load_state_dict(pruner.state_dict())
        reductions = Pruner({1: other.predictor(1)}, other.base, type(SCHEDULE)(wrong)).reductions()
        assert (masked_features(tower, reductions, pixels) - hidden).abs().max() > 1e-3


def test_the_list_is_whole():
    """All configurations and classes that the installed libraries have, where they are those that were tried."""
    environment, rows = published()["environment"], published()["rows"]
    if any(
        environment[package] != metadata.version(package) for package in ("open_clip_torch", "transformers", "timm")
    ):
        pytest.skip("other versions are installed: run benchmarks/coverage.py anew")
    assert [(row["library"], row["name"]) for row in rows] == list(LISTED)
    assert [(row["family"], row["model"]) for row in rows] == [(one.family, one.model) for one in LISTED.values()]


def test_what_works_works_in_every_way_and_what_is_refused_is_named():
    works = [row for row in published()["rows"] if row["supported"]]
    assert sum(row["library"] == "open_clip" for row in works) >= 110
    assert {row["name"] for row in works if row["library"] == "transformers"} == set(CLASSES)
    for row in published()["rows"]:
        assert {row[name] for name in CHECKS} == {True if row["supported"] else None}, row["name"]
        assert not row["errors"], row["name"]
        assert row["supported"] or row["image_tower"] in row["sentence"]


def test_the_table_counts_families_and_names_the_towers_that_are_refused():
    row = {"library": "timm", "family": "ViT", "image_tower": "Vit", "model": "timm:vit", "supported": True}
    row |= dict.fromkeys(CHECKS, True)
    refused = row | {"supported": False, "image_tower": "Net", "sentence": "No Net."}
    shown = tables.table("coverage", {"rows": [row | {"model": None}, row, row | {"exported": None}, refused]})
    assert "| ViT | 3 of 4 | `timm:vit` | not exported: 1 |" in shown
    assert "| Net | timm | No Net. |" in shown
    assert "| ViT | 1 of 1 | from Python | all |" in tables.table("coverage", {"rows": [row | {"model": None}]})
