from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data import ImageData, load_data
from patchranking.errors import UserError
from patchranking.fitting import fit
from patchranking.fitting.cache import cache_tokens, with_mirrored
from patchranking.fitting.fit import match_by_keys
from patchranking.fitting.settings import FitSettings
from patchranking.predictor.distill import distill
from patchranking.predictor.imitate import imitate
from patchranking.predictor.losses import LOSSES
from patchranking.predictor.networks import Predictor
from patchranking.predictor.targets import FEATURE, HandedOn
from patchranking.pruner import Pruner
from patchranking.pruning.macs import keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.objectives import feature_damage
from patchranking.ranking.store import read_manifest, shard_name, write_manifest, write_shard
from patchranking.towers.identity import fingerprint


@pytest.fixture
def store(tiny, tmp_path):
    """Returns a function that writes ``key -> importance`` to a finished folder of two shards."""

    def write(name, importance, **changes):
        settings = {"search": "sketched", "score": "preservation", "block": 2, "model": "tiny"}
        settings |= {"fingerprint": fingerprint(tiny.tower), **changes}
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
def pictures(tiny, tmp_path):
    """A model and seven files of noise, one of which is no picture."""
    root, rng = tmp_path / "pictures", np.random.default_rng(0)
    root.mkdir()
    for index in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(root / f"{index}.png")
    (root / "broken.png").write_bytes(b"no picture")
    return tiny, load_data(str(root))


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
        self.name, self.split = data.name, data.split
        self.labels, self.class_names, self.templates = None, [], data.templates
        self.keys = [data.keys[index] for index in order]

    def image(self, index):
        return self._data.image(self._order[index])


def tokens_and_features(model, data, keys, block):
    """Of images and their mirror images, one at a time: ``(2, images, tokens, width)``, ``(2, images, features)``."""
    views = [[], []]
    for key in keys:
        image = model.preprocess(data.image(data.keys.index(key)))
        for own, pixels in zip(views, (image, torch.stack([*image.unbind(2)][::-1], 2)), strict=True):
            own.append((model.tower.embed(pixels[None], block)[0].half(), model.tower(pixels[None])[0]))
    stacked = ([torch.stack(part) for part in zip(*own, strict=True)] for own in views)
    return tuple(torch.stack(part) for part in zip(*stacked, strict=True))


def stored(model, data, keys, block):
    """What a fit has of these images in its files."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = [data.keys.index(key) for key in keys]
        used, _, *files = cache_tokens(model, data, chosen, block, FEATURE, Path(folder), mirrored=True)
        assert used == chosen
        return [torch.stack([rows[view, torch.arange(len(used))] for view in range(2)]) for rows in files]


def same_weights(first, second):
    second = second.state_dict()
    return all(torch.equal(weight, second[name]) for name, weight in first.state_dict().items())


@pytest.mark.parametrize(("loss", "seed"), [("listnet", 0), ("margin", 3)])
def test_rankings_are_joined_by_key_and_mirrored_with_the_images(pictures, store, loss, seed):
    """The predictor is the one that imitates importance put together by hand."""
    model, data = pictures[0], Shuffled(pictures[1], [3, 5, 0, 1, 6, 4, 2])
    foreign = {"another.png": np.full(16, 9, np.float32)}
    folder = store("rankings", foreign | dict(reversed(IMPORTANCE.items())))
    schedule, settings = Schedule({2: 0.6}), {"epochs": 2, "seed": seed}
    pruner, report = fit_pruner(model, data, folder, schedule, steps=0, loss=loss, **settings)
    ranked = [index for index, key in enumerate(data.keys) if key in IMPORTANCE]
    keys = [data.keys[index] for index in ranked]
    tokens, _ = stored(model, data, keys, 2)
    rows = np.stack([IMPORTANCE[key] for key in keys])
    mirrored = np.stack([row.reshape(4, 4)[:, ::-1].ravel() for row in rows])
    torch.manual_seed(seed)
    expected = Predictor(32, 1, 16)
    figures = imitate(expected, tokens, torch.from_numpy(np.stack([rows, mirrored])), LOSSES[loss], **settings)
    assert same_weights(pruner.predictor(2), expected)
    assert report.imitation == figures


@pytest.mark.parametrize(("seed", "merge"), [(0, True), (3, True), (0, False)])
def test_distillation_sees_all_images_and_their_mirror_images_in_batches(pictures, seed, merge, monkeypatch):
    """The predictors are those that start from the keys and are distilled from these tokens and features."""
    monkeypatch.setattr("patchranking.fitting.cache._IMAGES_PER_BATCH", 4)
    model, data = pictures
    schedule = Schedule({2: 0.8, 3: 0.6})
    pruner, report = fit_pruner(model, data, schedule=schedule, steps=3, network="mlp", seed=seed, merge=merge)
    keys = [key for key in data.keys if key != "broken.png"]
    tokens, features = stored(model, data, keys, 2)
    torch.manual_seed(seed)
    expected = {block: Predictor(32, 1, 16, "mlp", merges=merge) for block in (2, 3)}
    match_by_keys(model.tower, expected, tokens[0], 2)
    figures = distill(expected, model.tower, tokens, features, schedule, steps=3, seed=seed)
    assert all(same_weights(pruner.predictor(block), expected[block]) for block in (2, 3))
    assert report.distillation == figures
    assert pruner.merges == merge


@torch.no_grad()
def test_patches_are_first_compared_by_the_keys_of_their_block(tiny, monkeypatch):
    tower, used = tiny.tower, {}
    predictors = {block: Predictor.for_tower(tower, "mlp", merges=True) for block in (1, 3)}
    for block, predictor in predictors.items():
        monkeypatch.setattr(predictor, "match_by", lambda *seen, block=block: used.update({block: seen}))
    pixels = torch.randn(3, 3, 32, 32)
    match_by_keys(tower, predictors, tower.embed(pixels, 1).half(), 1)
    for block, (tokens, keys) in used.items():
        torch.testing.assert_close(tokens, tower.embed(pixels, block), rtol=0, atol=0.02)
        attention = tower.blocks[block].attn
        weight, bias = attention.in_proj_weight.chunk(3)[1], attention.in_proj_bias.chunk(3)[1]
        expected = torch.nn.functional.linear(tower.blocks[block].ln_1(tokens)[:, 1:], weight, bias)
        torch.testing.assert_close(keys, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_where_keys_cannot_be_read_patches_are_compared_by_their_tokens(tiny, monkeypatch):
    def refuse(tokens, block):
        raise UserError("Attention cannot be read.")

    monkeypatch.setattr(tiny.tower, "attend", refuse)
    predictor, seen = Predictor.for_tower(tiny.tower, merges=True), []
    monkeypatch.setattr(predictor, "match_by", lambda tokens, keys: seen.append((tokens, keys)))
    tokens = torch.randn(2, 17, 32)
    match_by_keys(tiny.tower, {3: predictor}, tokens, 3)
    assert torch.equal(seen[0][0], tokens)
    assert torch.equal(seen[0][1], tokens[:, 1:])


def test_distillation_goes_on_from_imitation_and_both_hold_out_the_same_images(pictures, store):
    """Of each kind, ranked or not, one image is held out, and no part of the fit learns from it."""
    model, data = pictures
    folder, schedule = store("rankings", IMPORTANCE), Schedule({2: 0.6})
    both, report = fit_pruner(model, data, folder, schedule, steps=2, epochs=2, seed=1)
    begun, _ = fit_pruner(model, data, folder, schedule, steps=0, epochs=2, seed=1)
    expected = Predictor(32, 1, 16, merges=True)
    learned = {name: own for name, own in begun.predictor(2).state_dict().items() if "correction" not in name}
    assert expected.load_state_dict(learned, strict=False).unexpected_keys == []
    keys = [key for key in data.keys if key != "broken.png"]
    tokens, features = stored(model, data, keys, 2)
    ranked = [row for row, key in enumerate(keys) if key in IMPORTANCE]
    one = torch.randperm(5, generator=torch.Generator().manual_seed(1))[0]
    held_out = torch.tensor([0, ranked[one]])
    match_by_keys(model.tower, {2: expected}, tokens[0], 2)
    figures = distill({2: expected}, model.tower, tokens, features, schedule, steps=2, held_out=held_out, seed=1)
    assert same_weights(both.predictor(2), expected)
    assert (report.distillation, report.distillation.n_held_out) == (figures, 2)


def test_a_mirror_image_turns_left_to_right():
    importance = torch.tensor([[1.0, 2, 3, 4, 5, 6], [0, 0, 7, 0, 0, 0]])
    assert with_mirrored(importance, (2, 3)).tolist() == [
        [[1, 2, 3, 4, 5, 6], [0, 0, 7, 0, 0, 0]],
        [[3, 2, 1, 6, 5, 4], [7, 0, 0, 0, 0, 0]],
    ]


def test_the_order_of_the_stored_rankings_is_of_no_account(pictures, store):
    model, data = pictures
    folders = store("rankings", IMPORTANCE), store("turned", dict(reversed(IMPORTANCE.items())))
    (first, _), (second, _) = (fit_pruner(model, data, folder, steps=2, epochs=2) for folder in folders)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])


def test_the_features_cached_enter_the_block_that_was_ranked(pictures, store, monkeypatch):
    model, data = pictures
    monkeypatch.setattr(fit, "measure_held_out", lambda *_: None)
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


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(("network", "later"), [("transformer", "transformer"), ("mixer", "mlp")])
def test_the_error_reported_is_that_of_all_stages_together(pictures, network, later, merge):
    """The error reported is that of the pruner attached, on the images held out."""
    model, data = pictures
    pruner, report = fit_pruner(model, data, schedule=SCHEDULE, steps=2, network=network, merge=merge)
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


def test_distillation_holds_out_the_image_of_the_seed(pictures):
    """The error reported is nearest to that of the image the seed holds out."""
    model, data = pictures
    held_out, other = (torch.randperm(6, generator=torch.Generator().manual_seed(seed))[0] for seed in (2, 0))
    assert held_out != other
    pruner, report = fit_pruner(model, data, schedule=Schedule({2: 0.7, 4: 0.5}), steps=2, network="mlp", seed=2)
    readable = [index for index, key in enumerate(data.keys) if key != "broken.png"]
    pixels = torch.stack([model.preprocess(data.image(index)) for index in readable])
    full = model.tower(pixels)
    with pruner.attached(model.tower), torch.no_grad():
        errors = feature_damage(model.tower(pixels), full)
    assert (errors - report.distillation.feature_error["0.5"]).abs().argmin() == held_out


def test_by_default_every_stage_scores_again_where_there_is_distillation(pictures, store):
    model, data = pictures
    pruner, _ = fit_pruner(model, data, steps=2)
    assert pruner.schedule == Schedule.default(5, 0.5)
    assert list(pruner.predictors) == ["1", "2", "3"]
    imitating, _ = fit_pruner(model, data, store("rankings", IMPORTANCE), steps=0, epochs=1)
    assert imitating.schedule.to_dict() == {"2": 0.5}
    assert (pruner.merges, imitating.merges) == (True, False)


def test_a_pruner_is_stored_at_a_share_of_the_dense_macs(pictures):
    tower = pictures[0].tower
    pruner, _ = fit_pruner(*pictures, steps=1, macs=0.7)
    assert pruner.schedule == Schedule.default(5, keep_at_macs(tower, Schedule.default(5, 0.5), 0.7))
    with pytest.raises(UserError, match="--blocks, --keep and --macs"):
        FitSettings(macs=0.7, schedule={1: 0.5})
    with pytest.raises(UserError, match="at least"):
        fit_pruner(*pictures, steps=1, macs=0.1)


def test_a_block_that_the_model_lacks_is_refused(pictures):
    with pytest.raises(UserError, match="blocks 0 to 4"):
        fit_pruner(*pictures, schedule=Schedule({7: 0.6}), steps=1)


def test_it_ranks_what_it_imitates_and_saves_what_it_made(pictures, tmp_path):
    model, data = pictures
    settings = FitSettings("both", ranked=6, steps=2, epochs=1, seed=3)
    pruner, report = fit.fit(model, data, tmp_path / "fit", settings)
    manifest = read_manifest(tmp_path / "fit/rankings")
    assert (manifest["totals"]["in"], manifest["settings"]["block"], manifest["settings"]["seed"]) == (6, 1, 3)
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
        ({"target": "pixels"}, "choose from feature, tokens"),
        ({"target": "tokens", "objective": "imitate"}, "Only distillation has tokens"),
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


def test_a_model_with_a_pruner_attached_is_refused(pictures, tmp_path):
    model, data = pictures
    with (
        Pruner.unfitted(model.tower, "tiny", Schedule({2: 0.5})).attached(model.tower),
        pytest.raises(UserError, match="detach the pruner first"),
    ):
        fit.fit(model, data, tmp_path / "out", FitSettings("distill", steps=1))


def test_a_fit_takes_no_more_images_than_its_limit(pictures, tmp_path):
    _, report = fit.fit(*pictures, tmp_path / "out", FitSettings("distill", steps=1, network="mlp", limit=5, seed=1))
    assert report.n_images + len(report.skipped) == 5


class Killed(BaseException):
    pass


@pytest.fixture
def killed_at(monkeypatch):
    """Makes the process stop when a file has been replaced so many times; counts how often one was."""
    replace, seen = os.replace, []

    def stop_after(times):
        def counted(*paths):
            replace(*paths)
            seen.append(Path(paths[1]).name)
            if len(seen) == times:
                raise Killed

        seen.clear()
        monkeypatch.setattr("os.replace", counted)
        return seen

    return stop_after


def test_a_fit_that_is_killed_anywhere_ends_as_one_that_was_not(pictures, tmp_path, monkeypatch):
    """What a kill leaves after each file that was replaced is a copy of the folder at that moment."""
    for module in ("patchranking.fitting.cache", "patchranking.predictor.descent"):
        monkeypatch.setattr(f"{module}._SECONDS_PER_{'NOTE' if 'cache' in module else 'SAVE'}", -1)
    monkeypatch.setattr("patchranking.fitting.cache._IMAGES_PER_BATCH", 4)
    schedule = {1: 0.8, 3: 0.5}
    settings = FitSettings("both", ranked=5, steps=3, epochs=2, schedule=schedule, network="mlp")
    replace, left = os.replace, []

    def watched(*paths):
        replace(*paths)
        left.append(tmp_path / str(len(left)))
        shutil.copytree(tmp_path / "whole", left[-1], ignore=shutil.ignore_patterns("*.partial"))

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", watched)
        expected, report = fit.fit(*pictures, tmp_path / "whole", settings)
    assert len(left) > 12
    for out in left:
        pruner, again = fit.fit(*pictures, out, settings)
        assert again == report, out
        assert same_weights(pruner, expected)
        assert sorted(path.name for path in out.iterdir()) == sorted(
            path.name for path in (tmp_path / "whole").iterdir()
        )


def test_a_fit_does_not_go_on_from_the_progress_of_another(pictures, tmp_path, killed_at):
    settings = FitSettings("distill", steps=2, network="mlp")
    killed_at(3)
    with pytest.raises(Killed):
        fit.fit(*pictures, tmp_path, settings)
    killed_at(None)
    for other in (replace(settings, seed=1), replace(settings, steps=3)):
        with pytest.raises(UserError, match=r"the progress of another fit.*choose another folder"):
            fit.fit(*pictures, tmp_path, other)
    fit.fit(*pictures, tmp_path, settings)
    fit.fit(*pictures, tmp_path, replace(settings, seed=1))


def test_tokens_handed_on_are_the_target_where_they_are_asked_for(pictures, tmp_path):
    """The predictors are those that are distilled from the tokens that leave the block before the last one."""
    model, data = pictures
    settings = FitSettings("distill", target="tokens", steps=3, network="mlp", schedule={1: 0.8, 3: 0.5})
    pruner, report = fit.fit(model, data, tmp_path / "fit", settings)
    keys = [key for key in data.keys if key != "broken.png"]
    tokens, last = (tokens_and_features(model, data, keys, block)[0] for block in (1, 4))
    torch.manual_seed(0)
    expected = {block: Predictor(32, 1, 16, "mlp", merges=True) for block in (1, 3)}
    match_by_keys(model.tower, expected, tokens[0], 1)
    dense = torch.nn.functional.normalize(last[:, :, 1:].float(), dim=-1)
    schedule = Schedule({1: 0.8, 3: 0.5})
    figures = distill(expected, model.tower, tokens, dense, schedule, steps=3, target=HandedOn(4))
    for rate, error in report.distillation.feature_error.items():
        assert error == pytest.approx(figures.feature_error[rate], abs=1e-4)
    for block in (1, 3):
        for name, weight in pruner.predictor(block).state_dict().items():
            torch.testing.assert_close(weight, expected[block].state_dict()[name], rtol=0, atol=2e-3)
    assert (report.n_kept, report.n_patches, pruner.hands_on) == (8, 16, -2)
    assert Pruner.from_pretrained(tmp_path / "fit").hands_on == -2
    about = json.loads((tmp_path / "fit/fit.json").read_text())
    assert (about["n_kept"], about["settings"]["target"], about["settings"]["layer"]) == (8, "tokens", -2)


def test_stages_by_default_come_before_the_hidden_state_and_later_ones_are_refused(pictures):
    tower = pictures[0].tower
    assert FitSettings(target="tokens", layer=2).stages(tower, None) == Schedule.default(2, 0.5)
    with pytest.raises(UserError, match=r"hidden_states\[-2\] .* before block 3 at the latest"):
        fit_pruner(*pictures, steps=1, schedule=Schedule({2: 0.7, 4: 0.5}), target="tokens")
    with pytest.raises(UserError, match=r"5 blocks, and hidden_states\[9\]"):
        fit_pruner(*pictures, steps=1, target="tokens", layer=9)


def test_a_model_without_an_image_feature_is_fitted_by_its_tokens_alone(pictures, monkeypatch):
    model, data = pictures

    def none(tokens, gates=None):
        raise UserError("This model has no image feature.")

    monkeypatch.setattr(model.tower, "pool", none)
    with pytest.raises(UserError, match="this model has none: --objective distill"):
        fit.planned(model, FitSettings("both", target="tokens"))
    pruner, report = fit_pruner(model, data, steps=1, target="tokens")
    assert (pruner.hands_on, report.n_images) == (-2, 6)
