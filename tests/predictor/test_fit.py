from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import ImageData, load_data
from patchranking.errors import UserError
from patchranking.predictor import fit
from patchranking.predictor.fit import FitReport, fit_predictor, fit_pruner
from patchranking.predictor.networks import MixerPredictor
from patchranking.pruning.fingerprint import fingerprint
from patchranking.ranking.store import shard_name, write_manifest, write_shard


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
def store(tower, tmp_path):
    """Returns a function that writes ``key -> importance`` to a finished folder of two shards."""

    def write(name, importance, **changes):
        settings = {"search": "sketched", "score": "preservation", "block": 2, "model": "tiny"}
        settings |= {"fingerprint": fingerprint(tower), **changes}
        folder = tmp_path / name
        folder.mkdir()
        for index in range(2):
            keys = list(importance)[index::2]
            rows = np.stack([importance[key] for key in keys])
            write_shard(folder / shard_name(index, 2), keys, rows, np.argsort(rows), {}, settings)
        write_manifest(folder, {"settings": settings, "shards": 2, "totals": {}})
        return folder

    return write


@pytest.fixture
def pictures(tower, tmp_path):
    """A model and seven files, one of which is no picture."""
    root = tmp_path / "pictures"
    root.mkdir()
    for index in range(6):
        Image.fromarray(np.full((32, 32, 3), 40 * index, np.uint8)).save(root / f"{index}.png")
    (root / "broken.png").write_bytes(b"no picture")
    model = SimpleNamespace(
        tower=tower,
        name="tiny",
        preprocess=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255,
    )
    return model, load_data(str(root))


IMPORTANCE = {f"{index}.png": np.roll(np.arange(16, dtype=np.float32), 3 * index) for index in range(1, 6)}


def test_the_pruner_attaches(pictures, store):
    model, data = pictures
    pruner, report = fit_pruner(model, data, store("rankings", IMPORTANCE), keep=0.5, epochs=2)
    assert report.n_train + report.n_held_out == 5
    assert pruner.schedule.to_dict() == {"2": 0.5}
    with pruner.attached(model.tower):
        model.tower(torch.randn(1, 3, 32, 32))


class Shuffled(ImageData):
    """The same images in another order."""

    def __init__(self, data, order):
        self._data, self._order = data, order
        self.keys = [data.keys[index] for index in order]

    def image(self, index):
        return self._data.image(self._order[index])


def test_rankings_are_joined_by_key(pictures, store, monkeypatch):
    model, data = pictures[0], Shuffled(pictures[1], [3, 5, 0, 1, 6, 4, 2])
    seen = []

    def spy(predictor, tokens, importance, **options):
        seen.extend(zip(tokens, importance, strict=True))
        return FitReport(4, 1, 1, 0.0, 0.5, 0.5)

    monkeypatch.setattr(fit, "fit_predictor", spy)
    foreign = {"another.png": np.zeros(16, np.float32)}
    fit_pruner(model, data, store("rankings", foreign | dict(reversed(IMPORTANCE.items()))))
    assert len(seen) == 5
    for key, row in IMPORTANCE.items():
        image = model.preprocess(data.image(data.keys.index(key)))
        tokens = model.tower.embed(image[None], 2).half()
        (match,) = [found for cached, found in seen if torch.equal(cached, tokens[0])]
        assert np.array_equal(match.numpy(), row)


def test_the_order_of_the_stored_rankings_is_of_no_account(pictures, store):
    model, data = pictures
    folders = store("rankings", IMPORTANCE), store("turned", dict(reversed(IMPORTANCE.items())))
    (first, _), (second, _) = (fit_pruner(model, data, folder, epochs=2) for folder in folders)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])


def test_the_features_cached_enter_the_block_that_was_ranked(pictures, store, monkeypatch):
    model, data = pictures
    seen = []
    embed = model.tower.embed
    monkeypatch.setattr(model.tower, "embed", lambda pixels, upto=0: seen.append(upto) or embed(pixels, upto))
    fit_pruner(model, data, store("rankings", IMPORTANCE), epochs=1)
    assert set(seen) == {2}


def test_rankings_of_another_model_or_other_images_are_refused(pictures, store):
    model, data = pictures
    with pytest.raises(UserError, match="None of these images"):
        fit_pruner(model, data, store("others", {"x": np.zeros(16), "y": np.zeros(16)}))
    other = [value + 1 for value in fingerprint(model.tower)]
    with pytest.raises(UserError, match="weights differ"):
        fit_pruner(model, data, store("foreign", IMPORTANCE, fingerprint=other))
