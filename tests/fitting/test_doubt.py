from __future__ import annotations

import pytest
import torch

from patchranking.data import load_data
from patchranking.fitting import doubt, fit
from patchranking.fitting.settings import FitSettings
from patchranking.predictor.doubt import spearman
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.objectives import feature_damage

SCHEDULE = Schedule({1: 0.75, 3: 0.5})


@torch.inference_mode()
def test_errors_are_those_of_single_images_and_ranks_those_of_images_held_out(tiny, monkeypatch):
    pruner, pixels = Pruner.unfitted(tiny.tower, "tiny", SCHEDULE), torch.randn(80, 3, 32, 32)
    tokens, dense, held_out = tiny.tower.embed(pixels, 1)[None], tiny.tower(pixels)[None], torch.arange(60, 80)
    learned = []
    monkeypatch.setattr(doubt.Doubt, "learned", lambda *given: learned.append(given) or LEARN(*given))
    pruner.doubt, report = doubt.learn_doubt(pruner, tiny.tower, tokens, dense, held_out, 150)
    ((signs, errors),) = learned
    assert (report.n_train, report.n_held_out) == (60, 15)
    true = {rate: pruner_error(pruner, tiny.tower, pixels, dense[0], rate) for rate in doubt._RATES}
    seen = sorted(errors.tolist())
    each = torch.stack([*true.values()])[:, :60]
    assert all((each - error).abs().min() < 1e-6 for error in seen)
    assert len({round(error, 9) for error in seen}) == len(seen) == 60
    assert signs[:, 1].unique().shape == (5,)
    assert [*report.spearman] == ["0.9", "0.7", "0.5", "0.3", "0.15"]
    monkeypatch.setattr(doubt, "_AT_LEAST", 1000)
    pruner.doubt, everything = doubt.learn_doubt(pruner, tiny.tower, tokens, dense, held_out, 1)
    for rate, rank in everything.spearman.items():
        estimated = pruner.at(float(rate)).encode(tiny.tower, pixels[60:]).errors
        assert rank == pytest.approx(spearman(estimated, true[float(rate)][60:]), abs=0.02)
    level = [(true[rate][60:] / pruner.at(rate).encode(tiny.tower, pixels[60:]).errors).log10() for rate in true]
    assert torch.cat(level).mean().abs() < 1e-3


LEARN = doubt.Doubt.learned


def pruner_error(pruner, tower, pixels, dense, rate):
    with pruner.at(rate).attached(tower):
        return feature_damage(tower(pixels), dense)


def test_a_fit_learns_it_at_the_end_and_nothing_else_changes(tiny, noise_folder, tmp_path, monkeypatch):
    data = load_data(str(noise_folder("birds", ["red tit", "blue tit"], 20)))
    settings = FitSettings(steps=2, network="mlp", schedule={1: 0.8, 3: 0.5})
    pruner, report = fit.fit(tiny, data, tmp_path / "with", settings)
    assert (report.doubt.n_train, report.doubt.n_held_out) == (36, 4)
    pixels = torch.randn(2, 3, 32, 32)
    stored = Pruner.from_pretrained(tmp_path / "with")
    assert torch.equal(stored.encode(tiny.model, pixels).errors, pruner.encode(tiny.model, pixels).errors)
    monkeypatch.setattr(fit, "learn_doubt", lambda *_: None)
    plain, other = fit.fit(tiny, data, tmp_path / "without", settings)
    assert (plain.doubt, other.doubt, other.distillation) == (None, None, report.distillation)
    weights = plain.state_dict()
    assert {*pruner.state_dict()} - {*weights} == {"doubt.weight"}
    assert all(torch.equal(pruner.state_dict()[name], weight) for name, weight in weights.items())


@torch.inference_mode()
def test_few_images_give_none(tiny):
    pruner, pixels = Pruner.unfitted(tiny.tower, "tiny", SCHEDULE), torch.randn(35, 3, 32, 32)
    tokens, dense = tiny.tower.embed(pixels, 1)[None], tiny.tower(pixels)[None]
    assert doubt.learn_doubt(pruner, tiny.tower, tokens, dense, torch.arange(4), 9) is None
    assert doubt.learn_doubt(pruner, tiny.tower, tokens, dense, torch.arange(3), 9) is not None
