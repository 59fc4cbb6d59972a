"""A pruner whose stages merge patches, attached to models of every library."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from torch import nn

from patchranking import detach
from patchranking.errors import UserError
from patchranking.evaluation.cost import count_macs
from patchranking.predictor.networks import Predictor
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.attach import run_reduced
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers.identity import BaseModel

SCHEDULE = Schedule({1: 0.75, 3: 0.5})


def make(tower, merges=True, visual=False):
    """Stages with predictors that have learned something, and a last one that cuts."""
    predictors = {
        block: Predictor.for_tower(tower, network, merges=merges) for block, network in ((1, "mixer"), (3, "mlp"))
    }
    for predictor in predictors.values():
        nn.init.normal_(predictor.correction.weight, std=0.1)
        if merges:
            nn.init.normal_(predictor.fate.weight)
            nn.init.zeros_(predictor.fate.bias)
    pruner = Pruner(predictors, BaseModel.of(tower, "tiny"), SCHEDULE).eval()
    return pruner.tuned_by(Prompts("visual", 8, tower.width, 2, depth=2)) if visual else pruner


@torch.inference_mode()
@pytest.mark.parametrize("visual", [True, False])
def test_attached_it_equals_running_block_by_block(case, visual):
    tower, pruner, dense = case.tower, make(case.tower, visual=visual), case.encode(case.pixels)
    found = run_reduced(tower, tower.embed(case.pixels), 0, pruner.reductions())
    assert found.tokens.shape[1] == found.sizes.shape[1] == tower.num_prefix_tokens + tower.num_patches // 2
    assert (found.sizes[:, : tower.num_prefix_tokens] == 1).all()
    assert found.sizes.max() > 1.5
    with pruner.attached(case.model):
        pruned = case.encode(case.pixels)
        torch.testing.assert_close(pruned, tower.pool(found.tokens), rtol=0, atol=1e-5)
        assert torch.equal(case.encode(case.pixels), pruned)
    assert not torch.allclose(pruned, dense, atol=1e-3)
    assert torch.equal(case.encode(case.pixels), dense)


@torch.inference_mode()
def test_keep_1_is_the_dense_model_bit_for_bit_and_so_is_the_model_detached(case):
    pruner, dense = make(case.tower), case.encode(case.pixels)
    keys = list(case.model.state_dict())
    with pruner.attached(case.model):
        pruned = case.encode(case.pixels)
        pruner.keep = 1.0
        assert torch.equal(case.encode(case.pixels), dense)
        pruner.keep = 0.5
        assert torch.equal(case.encode(case.pixels), pruned)
        assert list(case.model.state_dict()) == keys
        twin = pickle.loads(pickle.dumps(case.tower.module))
    assert torch.equal(case.encode(case.pixels), dense)
    pruner.attach(case.model)
    detach(case.model)
    assert torch.equal(case.encode(case.pixels), dense)
    for module in (case.model, twin):
        detach(module)
        parts = [part for part in module.modules() if part._forward_pre_hooks_with_kwargs]
        assert not any({*part._forward_pre_hooks_with_kwargs} - {*part._forward_pre_hooks} for part in parts)


@torch.inference_mode()
def test_images_do_not_influence_each_other(case):
    with make(case.tower).attached(case.model):
        one_by_one = torch.cat([case.encode(pixels[None]) for pixels in case.pixels])
        torch.testing.assert_close(case.encode(case.pixels), one_by_one, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_copy_has_sizes_of_its_own(tower):
    """A batch that runs through the copy between two stages of the model leaves the model alone."""
    pixels, pruner = torch.randn(2, 3, 32, 32), make(tower).attach(tower)
    expected = tower(pixels)
    twin = copy.deepcopy(tower.module)
    tower.blocks[2].register_forward_pre_hook(lambda *_: twin(torch.randn(5, 3, 32, 32)) and None)
    assert torch.equal(tower(pixels), expected)
    pruner.detach()


@torch.inference_mode()
def test_under_autocast_it_stays_near(tower):
    pixels = torch.randn(2, 3, 32, 32)
    with make(tower).attached(tower):
        expected = tower(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            found = tower(pixels)
    assert torch.nn.functional.cosine_similarity(found.float(), expected).min() > 0.99


@torch.inference_mode()
@pytest.mark.parametrize("case", ["open_clip", "open_clip-siglip", "timm-eva02"], indirect=True)
def test_compiled_in_one_graph_it_equals_eager(case):
    """Models of other kinds become one graph when they are exported."""
    tower = case.tower
    with make(tower).attached(case.model):
        compiled = torch.compile(lambda pixels: tower(pixels), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(case.pixels), tower(case.pixels), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_code_compiled_before_sees_attach_detach_and_the_keep_rate(tower):
    pixels = torch.randn(3, 3, 32, 32)
    dense, compiled = tower(pixels), torch.compile(lambda pixels: tower(pixels), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pixels), dense, rtol=0, atol=1e-5)
    with make(tower).attached(tower) as pruner:
        for keep in (0.5, 0.25, 0.5):
            pruner.keep = keep
            pruned = tower(pixels)
            torch.testing.assert_close(compiled(pixels), pruned, rtol=0, atol=1e-5)
            assert not torch.allclose(pruned, dense, rtol=0, atol=1e-3)
    torch.testing.assert_close(compiled(pixels), dense, rtol=0, atol=1e-5)


class Together(nn.Module):
    """A model and its pruner, so that an exported program holds the weights of both."""

    def __init__(self, tower, pruner):
        super().__init__()
        self.module, self.pruner, self.encode = tower.module, pruner, tower.__call__
        self.projection = getattr(tower, "_projection", None)

    def forward(self, pixels):
        return self.encode(pixels)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize(
    ("case", "strict"),
    [
        ("open_clip", False),
        ("open_clip-siglip", False),
        ("transformers", False),
        ("transformers-dinov3", True),
        ("timm-dinov2-registers", True),
        ("timm-eva02", False),
    ],
    indirect=["case"],
)
def test_it_is_exported(case, strict):
    pruner = make(case.tower)
    with pruner.attached(case.model):
        expected = case.tower(case.pixels)
        program = torch.export.export(Together(case.tower, pruner).eval(), (case.pixels,), strict=strict)
    torch.testing.assert_close(program.module()(case.pixels), expected, rtol=0, atol=1e-5)


def gradients(case, pruner, checkpointing):
    case.model.train().requires_grad_().zero_grad()
    if checkpointing and hasattr(case.model, "gradient_checkpointing_enable"):
        case.model.gradient_checkpointing_enable()
    elif checkpointing:
        case.model.set_grad_checkpointing()
    with pruner.attached(case.model):
        case.encode(case.pixels)[:, 0].sum().backward()
    return [weight.grad.clone() for weight in case.tower.module.parameters() if weight.grad is not None]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize("merges", [True, False])
def test_gradient_checkpointing_is_right_or_refused_in_one_sentence(case, merges):
    """Refused where a block's hooks run again with it, in open_clip and timm, if patches merge or keep rotations."""
    pruner = make(case.tower, merges)
    expected = gradients(case, pruner, False)
    assert any(own.any() for own in expected)
    if (merges or case.tower.rotary) and not hasattr(case.model, "gradient_checkpointing_enable"):
        advice = r"checkpointing off\." if case.tower.rotary else r"--merge false\."
        with pytest.raises(UserError, match=rf"^Gradient checkpointing .* {advice}$"):
            gradients(case, pruner, True)
    else:
        found = gradients(case, pruner, True)
        assert len(found) == len(expected) > 10
        assert all(torch.allclose(own, plain, atol=1e-5) for own, plain in zip(found, expected, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("merges", [True, False])
def test_saved_and_loaded_it_merges_as_before(tower, tmp_path, merges):
    pruner, pixels = make(tower, merges), torch.randn(2, 3, 32, 32)
    pruner.save_pretrained(tmp_path)
    loaded = Pruner.from_pretrained(tmp_path)
    assert loaded.merges == merges
    with pruner.attached(tower):
        expected = tower(pixels)
    with loaded.attached(tower):
        assert torch.equal(tower(pixels), expected)


@torch.inference_mode()
def test_what_was_saved_before_there_was_merging_gives_the_same_features(tower, tmp_path):
    pruner, pixels = make(tower, merges=False), torch.randn(2, 3, 32, 32)
    with pruner.attached(tower):
        expected = tower(pixels)
    pruner.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for own in config["predictors"].values():
        assert own.pop("merges") is False
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = Pruner.from_pretrained(tmp_path)
    assert not loaded.merges
    with loaded.attached(tower):
        assert torch.equal(tower(pixels), expected)


@torch.inference_mode()
def test_it_counts_what_merging_costs_and_little_beside_the_formula(tower):
    """Matching, similarities and fates of both stages, and one more channel of the corrections: 12 and 8 stay."""
    pixels, counts = torch.randn(2, 3, 32, 32), []
    for merges in (True, False):
        with make(tower, merges).attached(tower):
            counts.append(count_macs(tower, pixels))
    stages = sum(
        came * 32 * 32 + (came - left) * (left * 32 + 33) + (1 + left) * 32 for came, left in ((16, 12), (12, 8))
    )
    assert counts[0] - counts[1] == stages
    scoring = sum(
        count_macs(lambda tokens, own=own, left=left: own.prune(tokens, left), torch.randn(1, 1 + came, 32))
        for own, came, left in zip(make(tower).predictors.values(), (16, 12), (12, 8), strict=True)
    )
    assert counts[0] - scoring == pytest.approx(analytic_macs(tower, 24, SCHEDULE), rel=0.01)


@torch.inference_mode()
def test_shapes_depend_on_the_keep_rate_alone(tower):
    lengths = []
    with make(tower).attached(tower) as pruner:
        for block in (1, 3, 4):
            tower.blocks[block].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
        for pixels in (torch.randn(2, 3, 32, 32), torch.zeros(1, 3, 32, 32)):
            tower(pixels)
        pruner.keep = 0.25
        tower(torch.randn(1, 3, 32, 32))
    assert lengths == [13, 9, 9] * 2 + [10, 5, 5]
