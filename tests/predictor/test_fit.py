from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data.datasets import FolderData
from patchranking.errors import UserError
from patchranking.predictor.fit import fit_predictor, fit_pruner
from patchranking.predictor.networks import MixerPredictor
from patchranking.pruning.fingerprint import fingerprint
from patchranking.ranking.store import Rankings


def test_it_learns_a_readable_importance_and_reports_the_held_out_images():
    tokens = torch.randn(160, 13, 16)
    importance = tokens[:, 1:, 3] + 0.05 * torch.randn(160, 12)
    network = MixerPredictor(16, 1, 12)
    report = fit_predictor(network, tokens, importance, epochs=60)
    assert (report.n_train, report.n_held_out, report.chance) == (144, 16, 0.5)
    assert report.matching_rate > 0.85
    fresh = torch.randn(50, 13, 16)
    agreement = torch.corrcoef(torch.stack([network(fresh).flatten(), fresh[:, 1:, 3].flatten()]))[0, 1]
    assert agreement > 0.85


def test_the_epoch_kept_is_the_best_on_held_out_images():
    tokens, importance = torch.randn(20, 13, 16), torch.randn(20, 12)
    network = MixerPredictor(16, 1, 12)
    report = fit_predictor(network, tokens, importance, epochs=40, learning_rate=1e-2)
    assert report.epoch < 40


def test_the_same_seed_gives_the_same_predictor():
    tokens, importance, weights = torch.randn(20, 13, 16), torch.randn(20, 12), []
    for _ in range(2):
        torch.manual_seed(1)
        network = MixerPredictor(16, 1, 12)
        fit_predictor(network, tokens, importance, epochs=3, seed=5)
        weights.append(network.score[1].weight.clone())
    assert torch.equal(*weights)


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="at least 4"):
        fit_predictor(MixerPredictor(16, 1, 12), torch.randn(3, 13, 16), torch.randn(3, 12))


@pytest.fixture
def ranked(tower, tmp_path):
    for index in range(6):
        Image.fromarray(np.full((32, 32, 3), 40 * index, np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = FolderData([tmp_path], None, 0)
    model = SimpleNamespace(
        tower=tower,
        name="tiny",
        preprocess=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255,
    )
    importance = {f"{index}.png": np.arange(16, dtype=np.float32) * index for index in range(1, 6)}
    settings = {"block": 2, "fingerprint": fingerprint(tower), "model": "tiny"}
    return model, data, Rankings(importance, settings, {"broken.png": "no picture"})


def test_rankings_are_joined_by_key_and_the_pruner_attaches(ranked):
    model, data, rankings = ranked
    shuffled = Rankings(dict(reversed(rankings.importance.items())), rankings.settings, rankings.skipped)
    (pruner, report), (other, _) = (fit_pruner(model, data, r, keep=0.5, epochs=2) for r in (rankings, shuffled))
    assert report.n_train + report.n_held_out == 5
    assert pruner.schedule.to_dict() == {"2": 0.5}
    for name, weight in pruner.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    with pruner.attached(model.tower):
        model.tower(torch.randn(1, 3, 32, 32))


def test_the_features_cached_enter_the_block_that_was_ranked(ranked, monkeypatch):
    model, data, rankings = ranked
    seen = []
    embed = model.tower.embed
    monkeypatch.setattr(model.tower, "embed", lambda pixels, upto=0: seen.append(upto) or embed(pixels, upto))
    fit_pruner(model, data, rankings, epochs=1)
    assert set(seen) == {2}


def test_rankings_of_another_model_or_other_images_are_refused(ranked):
    model, data, rankings = ranked
    with pytest.raises(UserError, match="None of these images"):
        fit_pruner(model, data, Rankings({"x": np.zeros(16)}, rankings.settings, {}))
    foreign = rankings.settings | {"fingerprint": [value + 1 for value in rankings.settings["fingerprint"]]}
    with pytest.raises(UserError, match="weights differ"):
        fit_pruner(model, data, Rankings(rankings.importance, foreign, {}))
