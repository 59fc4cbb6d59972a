from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from patchranking.embedding.encoder import PRUNER, Encoder, recorded
from patchranking.embedding.settings import EmbedSettings
from patchranking.errors import UserError
from patchranking.methods.attach import attach, attachable
from patchranking.pruner import Pruner
from patchranking.pruning.attach import run_reduced
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule

SETTINGS = EmbedSettings(dtype="float32")


@pytest.fixture
def pixels():
    return torch.randn(5, 3, 32, 32)


@pytest.fixture
def pruner(tiny):
    return Pruner.unfitted(tiny.tower, "tiny", Schedule({1: 0.75, 3: 0.5}))


def test_the_dense_model_is_the_librarys(tiny, pixels):
    expected = tiny.model.encode_image(pixels)
    encoder = Encoder(tiny, None, SETTINGS)
    assert torch.equal(encoder(pixels), expected)
    unit = Encoder(tiny, None, replace(SETTINGS, normalize=True))(pixels)
    assert torch.allclose(unit, F.normalize(expected, dim=-1), atol=1e-6)
    assert encoder.record["pruner"] is None
    assert encoder.features == 24


def test_a_pruner_runs_in_a_copy_on_the_same_weights(tiny, pruner, pixels):
    dense = tiny.model.encode_image(pixels)
    encoder = Encoder(tiny, pruner, replace(SETTINGS, keep=0.25))
    with pruner.at(0.25).attached(tiny.model):
        expected = tiny.model.encode_image(pixels)
    assert torch.equal(encoder(pixels), expected)
    assert torch.equal(tiny.model.encode_image(pixels), dense)
    assert not torch.allclose(dense, expected)
    own = {weight.data_ptr() for weight in encoder.encode.module.parameters()}
    assert own <= {weight.data_ptr() for weight in tiny.model.parameters()}
    assert pruner.keep == 0.5


def test_a_method_runs_by_its_name_and_seed(tiny, pixels):
    for seed in (0, 1):
        encoder = Encoder(tiny, attachable("random"), replace(SETTINGS, keep=0.3, seed=seed))
        with attach(tiny.model, "random", keep=0.3, seed=seed):
            assert torch.equal(encoder(pixels), tiny.model.encode_image(pixels))
        assert (encoder.record["pruner"], encoder.record["seed"], encoder.record["keep"]) == ("random", seed, 0.3)


def test_macs_are_met(tiny, pruner):
    dense = analytic_macs(tiny.tower, 24, Schedule({1: 1.0}))
    for given in (pruner, attachable("cls-attention")):
        record = Encoder(tiny, given, replace(SETTINGS, macs=0.8)).record
        schedule = Schedule({int(block): rate for block, rate in record["schedule"].items()})
        assert abs(analytic_macs(tiny.tower, 24, schedule) / dense - 0.8) < 0.03


def test_bf16_is_near_and_leaves_the_model_in_its_precision(tiny, pruner, pixels):
    encoder = Encoder(tiny, pruner, replace(SETTINGS, precision="bf16", keep=1.0))
    found, expected = encoder(pixels), tiny.model.encode_image(pixels)
    assert found.dtype == expected.dtype == torch.float32
    assert 0.999 < F.cosine_similarity(found, expected).min() < 1 - 1e-7
    assert {weight.dtype for weight in tiny.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("how", ["dense", "pruner", "cls-attention", "tome"])
def test_kept_patches_do_not_depend_on_the_batch_and_vectors_hardly(tiny, pruner, pixels, how):
    given = {"dense": None, "pruner": pruner}.get(how) if how in ("dense", "pruner") else attachable(how)
    encoder = Encoder(tiny, given, SETTINGS)
    alone = torch.cat([encoder(one[None]) for one in pixels])
    assert (F.cosine_similarity(encoder(pixels), alone) > 1 - 1e-6).all()
    if how == "pruner":
        tokens = tiny.tower.embed(pixels, 1)
        kept = run_reduced(tiny.tower, tokens, 1, pruner.reductions()).keep_indices
        for row, one in enumerate(tokens):
            assert torch.equal(run_reduced(tiny.tower, one[None], 1, pruner.reductions()).keep_indices[0], kept[row])


def test_records_tell_models_and_pruners_apart(tiny, pruner):
    record = Encoder(tiny, pruner, SETTINGS).record
    assert record == Encoder(tiny, pruner, SETTINGS).record
    with torch.no_grad():
        next(pruner.parameters()).add_(1e-3)
    assert record["pruner"] != Encoder(tiny, pruner, SETTINGS).record["pruner"]
    assert record["keep"] == 0.5
    assert "0x" not in record["preprocessing"]["steps"]
    assert record["preprocessing"]["std"] == [0.2, 0.3, 0.25]


def test_what_cannot_run_is_refused(tiny, pruner):
    with pytest.raises(UserError, match="give a pruner"):
        Encoder(tiny, None, replace(SETTINGS, keep=0.5))
    with pruner.attached(tiny.model), pytest.raises(UserError, match="pruned already"):
        Encoder(tiny, None, SETTINGS)
    of_tokens = Pruner({1: pruner.predictor(1)}, pruner.base, Schedule({1: 0.5}), hands_on=-2)
    with pytest.raises(UserError, match="--target tokens and preserves no image feature"):
        Encoder(tiny, of_tokens, SETTINGS)
    tiny.tower.identity()[0].mul_(2)
    with pytest.raises(UserError, match="fitted to 'tiny'"):
        Encoder(tiny, pruner, SETTINGS)


@pytest.mark.parametrize("how", ["dense", "pruner", "random"])
def test_what_is_recorded_runs_again(tiny, pruner, pixels, tmp_path, how):
    given = {"dense": None, "pruner": pruner, "random": attachable("random")}[how]
    settings = replace(SETTINGS, normalize=True, **({} if given is None else {"keep": 0.3, "seed": 2}))
    encoder = Encoder(tiny, given, settings)
    pruner.save_pretrained(tmp_path / PRUNER)
    again = recorded(tiny, tmp_path, json.loads(json.dumps(encoder.record)), 5)
    assert torch.equal(again(pixels), encoder(pixels))
    assert again.batch_size == 5
    for name, other in (("fingerprint", [0.0]), ("preprocessing", {}), ("precision", "bf16")):
        with pytest.raises(UserError, match="'tiny' is not what made these vectors"):
            recorded(tiny, tmp_path, encoder.record | {name: other, "features": 0})
