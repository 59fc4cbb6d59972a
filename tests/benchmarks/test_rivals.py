from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rivals import Paper, TrainedToMe, leave_out_rankings, paper_pruner, trained_tome

from patchranking.data import load_data
from patchranking.fitting.settings import FitSettings
from patchranking.methods.batch import Batch
from patchranking.methods.tome import ToMe
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.leave_out import leave_out
from patchranking.ranking.store import golden_by_index
from patchranking.towers.load import load_model

SETTINGS = FitSettings(steps=3, epochs=1)
SHAPE = Schedule({1: 0.5, 3: 0.3})


@pytest.fixture(scope="module")
def demo():
    return load_model("demo"), load_data("demo:train", 8)


def test_the_papers_predictor_imitates_leave_out_in_one_order_without_a_correction(demo, tmp_path):
    model, data = demo
    rankings = leave_out_rankings(model, data, 6, tmp_path / "rankings")
    golden, block = golden_by_index(rankings, data.keys), model.tower.depth // 4
    image = next(iter(golden))
    pixels = model.preprocess(data.image(image))[None]
    torch.testing.assert_close(golden[image], leave_out(model.tower, pixels, block=block, window=1).importance[0])
    pruner = paper_pruner(model, data, SETTINGS, rankings, tmp_path / "pruner")
    assert [int(block) for block in pruner.predictors] == [block]
    assert not any(p.correction.weight.any() for p in pruner.predictors.values())
    again = paper_pruner(model, data, replace(SETTINGS, steps=1), rankings, tmp_path / "pruner")
    assert all((again.state_dict()[name] == value).all() for name, value in pruner.state_dict().items())


@pytest.mark.parametrize("kind", ["one shot", "progressive"])
def test_it_drops_patches_at_the_papers_blocks_with_the_macs_of_the_reference(demo, tmp_path, kind):
    model, data = demo
    rankings = leave_out_rankings(model, data, 4, tmp_path / "rankings")
    own = Paper(paper_pruner(model, data, SETTINGS, rankings, tmp_path / "pruner"), kind).at(model.tower, SHAPE)
    tower = model.tower
    assert list(own.schedule.stages) == sorted(
        {b * tower.depth // 12 for b in ((3,) if kind == "one shot" else (3, 5, 7, 9))}
    )
    share = analytic_macs(tower, tower.feature_size, own.schedule) / analytic_macs(tower, tower.feature_size, SHAPE)
    assert share == pytest.approx(1, abs=0.02)


def test_a_correction_is_nothing_at_first_and_brings_merging_nearer_once_it_is_trained(demo, tmp_path):
    model, data = demo
    tower, none = model.tower, torch.nn.ModuleDict()
    pixels = torch.stack([model.preprocess(data.image(index)) for index in range(len(data))])
    plain = ToMe().at(tower, SHAPE, 0).run(Batch(tower, pixels)).features
    assert (TrainedToMe(none).at(tower, SHAPE, 0).run(Batch(tower, pixels)).features == plain).all()
    trained = trained_tome(model, data, replace(SETTINGS, steps=40), SHAPE, tmp_path)
    dense = tower(pixels)
    found = trained.at(tower, SHAPE, 0).run(Batch(tower, pixels)).features

    def cosine(features):
        return torch.cosine_similarity(features, dense).mean()

    assert cosine(found) > cosine(plain)
    again = trained_tome(model, data, SETTINGS, SHAPE, tmp_path)
    assert (again.at(tower, SHAPE, 0).run(Batch(tower, pixels)).features == found).all()
