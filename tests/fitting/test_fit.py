from __future__ import annotations

import json
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import ImageData, load_data
from patchranking.errors import UserError
from patchranking.fitting import fit
from patchranking.fitting.fit import FitSettings
from patchranking.predictor.imitate import Imitation
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.objectives import feature_damage
from patchranking.ranking.store import read_manifest, shard_name, write_manifest, write_shard
from patchranking.towers.fingerprint import fingerprint


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
def pictures(loaded, tmp_path):
    """A model and seven files, one of which is no picture."""
    root = tmp_path / "pictures"
    root.mkdir()
    for index in range(6):
        Image.fromarray(np.full((32, 32, 3), 40 * index, np.uint8)).save(root / f"{index}.png")
    (root / "broken.png").write_bytes(b"no picture")
    return loaded, load_data(str(root))


def fit_pruner(model, data, rankings=None, schedule=None, steps=2, **settings):
    """Fits into a folder that is thrown away: by imitation and distillation where there are rankings and steps."""
    objective = "imitate" if not steps else "both" if rankings else "distill"
    stages = None if schedule is None else dict(schedule.stages)
    with tempfile.TemporaryDirectory() as out:
        chosen = FitSettings(objective, steps=max(1, steps), schedule=stages, **settings)
        return fit.fit(model, data, out, chosen, rankings)


SCHEDULE = Schedule({1: 0.9, 2: 0.7, 4: 0.5})
IMPORTANCE = {f"{index}.png": np.roll(np.arange(16, dtype=np.float32), 3 * index) for index in range(1, 6)}


@pytest.mark.parametrize("steps", [0, 2])
def test_the_pruner_attaches(pictures, store, steps):
    model, data = pictures
    pruner, report = fit_pruner(model, data, store("rankings", IMPORTANCE), Schedule({2: 0.5}), steps, epochs=2)
    assert report.imitation.n_train + report.imitation.n_held_out == 5
    if steps:
        assert report.n_images == report.distillation.n_train + report.distillation.n_held_out == 6
    else:
        assert (report.n_images, report.distillation) == (5, None)
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

    def spy(predictor, tokens, importance, *options, **others):
        seen.extend(zip(*tokens, *importance, strict=True))
        return Imitation(4, 1, 1, 0.0, 0.5, 0.5)

    monkeypatch.setattr(fit, "imitate", spy)
    foreign = {"another.png": np.zeros(16, np.float32)}
    fit_pruner(
        model,
        data,
        store("rankings", foreign | dict(reversed(IMPORTANCE.items()))),
        schedule=Schedule({2: 0.6}),
        steps=0,
    )
    assert len(seen) == 5
    for key, row in IMPORTANCE.items():
        image = model.preprocess(data.image(data.keys.index(key)))
        tokens, mirrored = model.tower.embed(torch.stack([image, image.flip(-1)]), 2).half()
        ((second, *found),) = [rest for cached, *rest in seen if torch.equal(cached, tokens)]
        assert torch.equal(second, mirrored)
        assert np.array_equal(found[0].numpy(), row)
        assert np.array_equal(found[1].numpy(), row.reshape(4, 4)[:, ::-1].ravel())


def test_the_order_of_the_stored_rankings_is_of_no_account(pictures, store):
    model, data = pictures
    folders = store("rankings", IMPORTANCE), store("turned", dict(reversed(IMPORTANCE.items())))
    (first, _), (second, _) = (fit_pruner(model, data, folder, steps=2, epochs=2) for folder in folders)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])


def test_the_features_cached_enter_the_block_that_was_ranked(pictures, store, monkeypatch):
    model, data = pictures
    seen = []
    embed = model.tower.embed
    monkeypatch.setattr(model.tower, "embed", lambda pixels, upto=0: seen.append(upto) or embed(pixels, upto))
    fit_pruner(model, data, store("rankings", IMPORTANCE), schedule=Schedule({2: 0.6}), steps=0, epochs=1)
    assert set(seen) == {2}


def test_rankings_of_another_model_or_other_images_are_refused(pictures, store):
    model, data = pictures
    with pytest.raises(UserError, match="None of these images"):
        fit_pruner(model, data, store("others", {"x": np.zeros(16), "y": np.zeros(16)}), schedule=Schedule({2: 0.6}))
    other = [value + 1 for value in fingerprint(model.tower)]
    with pytest.raises(UserError, match="weights differ"):
        fit_pruner(model, data, store("foreign", IMPORTANCE, fingerprint=other), schedule=Schedule({2: 0.6}))
    with pytest.raises(UserError, match="before block 2, not 3"):
        fit_pruner(model, data, store("elsewhere", IMPORTANCE), schedule=Schedule({3: 0.6}))


def test_without_rankings_every_readable_image_is_distilled_from(pictures):
    model, data = pictures
    pruner, report = fit_pruner(model, data, schedule=Schedule({2: 0.8, 4: 0.6}), steps=2, network="mlp")
    assert report.n_images == report.distillation.n_train + report.distillation.n_held_out == 6
    assert list(report.skipped) == ["broken.png"]
    assert report.imitation is None
    assert pruner.schedule.to_dict() == {"2": 0.8, "4": 0.6}
    assert pruner.predictor(2).config["network"] == "mlp"


@pytest.mark.parametrize(("network", "later"), [("transformer", "transformer"), ("mixer", "mlp")])
def test_stages_that_score_again_are_fitted_to_what_the_ones_before_them_leave(pictures, network, later):
    """The error reported is that of the pruner attached, on the images held out."""
    model, data = pictures
    pruner, report = fit_pruner(model, data, schedule=SCHEDULE, steps=2, network=network, rescore=True)
    networks = {block: own.config["network"] for block, own in pruner.predictors.items()}
    assert networks == {"1": network, "2": later, "4": later}
    held_out = torch.randperm(6, generator=torch.Generator().manual_seed(0))[:1].tolist()
    readable = [index for index, key in enumerate(data.keys) if key != "broken.png"]
    pixels = torch.stack([model.preprocess(data.image(readable[index])) for index in held_out])
    full = model.tower(pixels).detach()
    for rate, error in report.distillation.feature_error.items():
        pruner.keep = float(rate)
        with pruner.attached(model.tower), torch.inference_mode():
            found = feature_damage(model.tower(pixels), full).mean().item()
        assert error == pytest.approx(found, abs=1e-4)


def test_by_default_a_second_stage_scores_again_where_there_is_distillation(pictures, store):
    model, data = pictures
    pruner, _ = fit_pruner(model, data, steps=2)
    assert pruner.schedule.to_dict() == {"3": 0.75, "4": 0.5}
    assert list(pruner.predictors) == ["3", "4"]
    imitating, _ = fit_pruner(model, data, store("rankings", IMPORTANCE), steps=0, epochs=1)
    assert imitating.schedule.to_dict() == {"2": 0.5}
    by_one_order, _ = fit_pruner(model, data, steps=2, rescore=False)
    assert list(by_one_order.predictors) == ["3"]


@pytest.mark.parametrize("changes", [{"schedule": Schedule({2: 0.5})}, {"steps": 0}])
def test_what_cannot_score_again_is_refused(pictures, changes):
    model, data = pictures
    with pytest.raises(UserError, match="To re-score takes two stages or more"):
        fit_pruner(model, data, **{"schedule": SCHEDULE, "network": "mlp", "rescore": True, "steps": 2} | changes)


def test_a_block_that_the_model_lacks_is_refused(pictures):
    with pytest.raises(UserError, match="blocks 0 to 4"):
        fit_pruner(*pictures, schedule=Schedule({7: 0.6}), steps=1)


def test_it_ranks_what_it_imitates_and_saves_what_it_made(pictures, tmp_path):
    model, data = pictures
    settings = FitSettings(ranked=6, steps=2, epochs=1, seed=3)
    pruner, report = fit.fit(model, data, tmp_path / "fit", settings)
    manifest = read_manifest(tmp_path / "fit/rankings")
    assert (manifest["totals"]["in"], manifest["settings"]["block"], manifest["settings"]["seed"]) == (6, 3, 3)
    saved = Pruner.from_pretrained(tmp_path / "fit")
    for name, weight in pruner.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight)
    about = json.loads((tmp_path / "fit/fit.json").read_text())
    assert about["settings"]["ranked"] == 6
    assert about["rankings"] == manifest["settings"]
    assert about["imitation"]["n_train"] == report.imitation.n_train


def test_a_fit_leaves_the_callers_random_numbers_alone(pictures):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_pruner(*pictures, steps=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"keep": 1.5}, "keep rate"),
        ({"loss": "hinge"}, "choose from listnet, bce, margin, top-list"),
        ({"ranked": 0}, "at least 1|At least 1"),
        ({"steps": 0}, "objective imitate has none"),
        ({"blocks": [3], "schedule": {3: 0.5}}, "names its blocks"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(wrong, says):
    with pytest.raises(UserError, match=says):
        FitSettings(**wrong)


def test_rankings_that_nothing_imitates_are_refused(pictures, store, tmp_path):
    folder = store("rankings", IMPORTANCE)
    with pytest.raises(UserError, match="Distillation alone needs no rankings"):
        fit.fit(*pictures, tmp_path / "out", FitSettings("distill"), folder)


def test_an_unknown_network_is_refused(pictures):
    with pytest.raises(UserError, match="Unknown network"):
        fit_pruner(*pictures, steps=1, network="cnn")
