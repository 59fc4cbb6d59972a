from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import patchranking
from patchranking import UserError, attach, detach
from patchranking.methods import METHODS
from patchranking.methods.attach import attachable, pruner_or_method
from patchranking.methods.batch import Batch
from patchranking.methods.method import Attachable
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower

NAMES = [name for name, method in METHODS.items() if isinstance(method, Attachable)]
SCHEDULE = Schedule({1: 0.75, 3: 0.5})


def fitting(tower):
    return [name for name in NAMES if tower.has_class_token or not METHODS[name].needs_class_token]


def test_these_can_be_attached():
    assert NAMES == ["tome", "pitome", "cls-attention", "evit", "centre-crop", "random"]


@torch.inference_mode()
def test_the_library_returns_what_the_method_computes(case):
    tower, dense, keys = case.tower, case.encode(case.pixels), list(case.model.state_dict())
    found = {}
    for name in fitting(tower):
        batch = Batch(tower, case.pixels, [0] * len(case.pixels))
        expected = METHODS[name].at(tower, SCHEDULE, 4).run(batch).features
        with attach(case.model, name, schedule=SCHEDULE, seed=4):
            found[name] = case.encode(case.pixels)
            assert list(case.model.state_dict()) == keys
            again = case.encode(case.pixels[:2])
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again, expected[:2], rtol=1e-5, atol=1e-5)
        assert torch.equal(case.encode(case.pixels), dense)
    found["dense"] = dense
    for name, features in found.items():
        assert all((features - other).abs().max() > 1e-6 for key, other in found.items() if key != name)


@torch.inference_mode()
def test_keep_1_is_the_dense_model_bit_for_bit(case):
    dense = case.encode(case.pixels)
    for name in fitting(case.tower):
        with attach(case.model, name, keep=1.0):
            assert torch.equal(case.encode(case.pixels), dense)


@torch.inference_mode()
def test_by_default_patches_go_in_the_four_stages_of_a_fit(tower):
    pixels = torch.randn(2, 3, 32, 32)
    expected = METHODS["cls-attention"].at(tower, Schedule.default(5, 0.25), 0)(pixels)
    with attach(tower, keep=0.25):
        assert torch.equal(tower(pixels), expected)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["tome", "pitome"])
def test_after_merging_every_patch_has_the_token_that_it_is_in(tower, name):
    """Patches that are alike from the start merge and end alike, in their places; their number is that of the model."""
    pixels = torch.randn(1, 3, 32, 32)
    dense = tower.run(tower.embed(pixels), 0)[0, 1:]
    with attach(tower, name, keep=0.7):
        tokens = tower.run(tower.embed(pixels), 0)[0, 1:]
    assert tokens.shape == dense.shape
    distinct = tokens.unique(dim=0)
    assert len(distinct) == METHODS[name].at(tower, Schedule.default(5, 0.7), 0).schedule.kept(16)[4]
    near = F.normalize(tokens, dim=-1) @ F.normalize(dense, dim=-1).T
    alone = [row for row in range(16) if (tokens == tokens[row]).all(1).sum() == 1]
    assert alone
    assert near.argmax(1)[alone].tolist() == alone


class Encoder(nn.Module):
    """What an exported program holds of a case."""

    def __init__(self, case):
        super().__init__()
        self.model, self.encode = case.model, case.tower.__call__

    def forward(self, pixels):
        return self.encode(pixels)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize(
    ("case", "name"),
    [("open_clip", "evit"), ("transformers", "pitome"), ("timm-clip", "cls-attention")],
    indirect=["case"],
)
def test_compiled_and_exported_it_is_the_same(case, name):
    tower, dense = case.tower, case.encode(case.pixels)
    compiled = torch.compile(lambda pixels: tower(pixels), fullgraph=True, backend="eager")
    with attach(case.model, name, schedule=SCHEDULE):
        expected = case.encode(case.pixels)
        torch.testing.assert_close(compiled(case.pixels), expected)
        program = torch.export.export(Encoder(case).eval(), (case.pixels,), strict=False)
        torch.testing.assert_close(program.module()(case.pixels), expected)
    torch.testing.assert_close(compiled(case.pixels), dense)


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("case", ["transformers"], indirect=True)
def test_a_copy_is_pruned_by_its_own_weights(case, name, twin):
    pixels, model = case.pixels, case.model
    attach(model, name)
    other = twin(model)
    assert torch.equal(as_tower(other)(pixels), as_tower(model)(pixels))
    for layer in other.vision_model.encoder.layers:
        layer.self_attn.k_proj.weight.mul_(-30)
    found = as_tower(other)(pixels)
    detach(other)
    with attach(other, name):
        assert torch.equal(as_tower(other)(pixels), found)


@pytest.mark.parametrize("name", ["evit", "tome"])
@pytest.mark.parametrize("case", ["open_clip"], indirect=True)
def test_gradients_flow_and_gradient_checkpointing_is_refused(case, name):
    pixels = case.pixels.requires_grad_()
    with attach(case.model, name, schedule=SCHEDULE):
        case.encode(pixels)[:, 0].sum().backward()
        assert pixels.grad.abs().sum() > 0
        case.model.train().set_grad_checkpointing()
        with pytest.raises(UserError, match="switch checkpointing off"):
            case.encode(pixels)[:, 0].sum().backward()


@torch.inference_mode()
def test_a_model_is_pruned_once(tower):
    with attach(tower, "tome"), pytest.raises(UserError, match="pruned already"):
        attach(tower, "evit")
    hooks = attach(tower, "tome")
    detach(tower)
    assert not hooks.on
    tower.check_dense()


def test_what_cannot_be_attached_is_refused_and_what_can_is_named(tower):
    for name in ("low-res", "golden", "a-vit", "best"):
        with pytest.raises(UserError, match=f"'{name}'.*attach tome, pitome, cls-attention, evit, centre-crop, random"):
            attach(tower, name)
    with pytest.raises(UserError, match="keep rate"):
        attach(tower, keep=1.5)
    with pytest.raises(UserError, match="blocks 0 to 4"):
        attach(tower, schedule=Schedule({7: 0.5}))


@pytest.mark.parametrize("case", ["timm-average-pool", "timm-siglip"], indirect=True)
def test_without_a_class_token_the_sentence_names_methods_that_need_none(case):
    for name in ("cls-attention", "evit"):
        with pytest.raises(UserError, match=f"'{name}'.*has none: use tome, pitome, centre-crop, random"):
            attach(case.model, name)


def test_a_folder_goes_before_a_method_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pruner_or_method("tome") is METHODS["tome"] is attachable("tome")
    (tmp_path / "tome").mkdir()
    with pytest.raises(UserError, match="no readable pruner"):
        pruner_or_method("tome")


def test_it_is_public():
    assert patchranking.attach is attach
