from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fallback import fallback
from matched import at_share, dense_point

from patchranking import Pruner, load_data
from patchranking.errors import UserError
from patchranking.evaluation.cost import count_macs, noise
from patchranking.methods import PatchRanking
from patchranking.predictor.doubt import Doubt
from patchranking.ranking.objectives import feature_damage


def test_some_images_run_densely_at_the_mean_macs(demo, pruner, tmp_path):
    own, other = Pruner.from_pretrained(pruner), tmp_path / "other"
    for path, scale in ((pruner, 1.0), (other, 2.0)):
        own.doubt = Doubt(demo.tower.feature_size)
        own.doubt.weight.copy_(scale * torch.randn_like(own.doubt.weight))
        own.save_pretrained(path)
    out = tmp_path / "fallback.json"
    fallback("demo", ["demo:test"], [pruner, other], out, [0.7], [0.0, 1 / 3], half="all", limit=6)
    rows = json.loads(out.read_text())["rows"]
    names = [(again, kind) for again in (0, 1 / 3) for kind in ("fallback", "random", "oracle", "pruned")]
    assert [(row["again"], row["kind"]) for row in rows] == names
    assert {row["oracle"] for row in rows if row["kind"] != "oracle"} == {False}
    assert all((row["dataset"], row["fits"], row["n_images"]) == ("demo/test", 2, 6) for row in rows)
    nothing, half = dict(zip(names, rows, strict=True)), 1 / 3
    base = nothing[0, "pruned"]
    for kind in ("fallback", "random", "oracle"):
        assert nothing[0, kind]["feature_cosine"] == base["feature_cosine"]
        assert nothing[0, kind]["feature_cosine_gain_interval"] == [0, 0]
    best, doubted, pruned = (nothing[half, kind] for kind in ("oracle", "fallback", "pruned"))
    tower, (dense, first) = demo.tower, macs_of(demo.tower)
    mean = base["macs_share"] + half * (dense - first) / dense
    assert doubted["macs_share"] == best["macs_share"] == pytest.approx(mean, abs=1e-3)
    assert pruned["macs_share"] == pytest.approx(mean, abs=0.01)
    assert best["feature_cosine"] >= doubted["feature_cosine"] > base["feature_cosine"]
    assert doubted["feature_cosine_gain"] == pytest.approx(doubted["feature_cosine"] - pruned["feature_cosine"])
    data = load_data("demo:test", 6)
    pixels = torch.stack([demo.preprocess(data.image(index)) for index in range(6)])
    keep, found = keep_at_70(tower, Pruner.from_pretrained(pruner)), []
    for path in (pruner, other):
        seen = Pruner.from_pretrained(path).at(keep).encode(demo.model, pixels)
        errors = feature_damage(seen.features, tower(pixels)).double()
        errors[seen.errors.topk(2).indices] = 0
        found.append(1 - errors.mean().item())
    assert doubted["feature_cosine"] == pytest.approx(np.mean(found), abs=1e-6)
    assert doubted["top1_loss"] == pytest.approx(doubted["top1_dense"] - doubted["top1"])


def macs_of(tower):
    """MACs of the dense model, and of what comes before the block where the pruner begins."""
    pixels = noise(tower, 1)
    return count_macs(tower, pixels), count_macs(lambda pixels: tower.embed(pixels, 3), pixels)


def keep_at_70(tower, pruner):
    """The keep rate at which 70 % of the dense MACs are counted."""
    dense = dense_point(tower, pruner.fitted)
    return at_share(PatchRanking(pruner), tower, pruner.fitted, 0.7, dense, 0).encoding.schedule.keep


def test_a_pruner_without_estimates_and_shares_that_are_none_are_refused(demo, pruner, tmp_path):
    with pytest.raises(UserError, match="no estimate of its errors"):
        fallback("demo", ["demo:test"], [pruner], tmp_path / "a.json")
    with pytest.raises(UserError, match="give one, or several fits, with --pruner"):
        fallback("demo", ["demo:test"], out=tmp_path / "a.json")
    with pytest.raises(UserError, match="from 0 to 1, not 2"):
        fallback("demo", ["demo:test"], [pruner], tmp_path / "a.json", again=[2.0])
    with pytest.raises(UserError, match="above 0 and below 1"):
        fallback("demo", ["demo:test"], [pruner], tmp_path / "a.json", shares=[1.0])
