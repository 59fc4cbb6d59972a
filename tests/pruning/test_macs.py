from __future__ import annotations

import open_clip
import pytest
import timm
import torch
from transformers import CLIPConfig, CLIPModel

from patchranking.errors import UserError
from patchranking.evaluation.cost import count_macs
from patchranking.methods.centre_crop import CentreCrop
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.macs import analytic_macs, keep_at_macs, nearest_in_macs, with_macs_of
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower
from patchranking.towers.identity import BaseModel


def vit_b16(library):
    with torch.device("meta"):
        if library == "open_clip":
            vision = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12}
            text = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1}
            return open_clip.CLIP(512, vision, text)
        if library == "transformers":
            vision = {"patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
            return CLIPModel(CLIPConfig(vision_config={**vision, "intermediate_size": 3072}, projection_dim=512))
        return timm.create_model("vit_base_patch16_clip_224", pretrained=False, num_classes=512)


@pytest.mark.parametrize("library", ["open_clip", "transformers", "timm"])
def test_vit_b16_counts_17_56_gmacs_in_every_library_and_by_formula(library):
    tower = as_tower(vit_b16(library).eval())
    pixels = torch.empty(1, 3, 224, 224, device="meta")
    counted = count_macs(tower, pixels)
    assert counted / 1e9 == pytest.approx(17.56, rel=0.005)
    assert analytic_macs(tower, 512, Schedule({3: 1.0})) == pytest.approx(counted, rel=0.005)


def test_pruned_counts_agree_with_the_formula(case):
    tower = case.tower
    features = tower(case.pixels).shape[-1]
    pooling_attention = getattr(tower.module, "attn_pool", None)
    if "Pooling" in type(head := getattr(tower.module, "head", None)).__name__:
        pooling_attention = head
    for rate in (1.0, 0.5):
        schedule = Schedule({2: rate})
        counted = count_macs(CentreCrop().at(tower, schedule, 0), case.pixels)
        if pooling_attention is not None:
            stays = tower.num_prefix_tokens + schedule.kept(tower.num_patches)[2]
            counted -= count_macs(pooling_attention, tower.embed(case.pixels)[:, :stays])
        assert counted == pytest.approx(analytic_macs(tower, features, schedule), rel=0.01)


def test_inside_a_block_its_attention_still_sees_the_patches_that_go(tower):
    """Attention of 17, 17, 13, 13, 9 tokens and MLPs of 17, 13, 13, 9, 9: widths 32 and 64."""

    def attention(tokens):
        return 4 * tokens * 32**2 + 2 * tokens**2 * 32

    blocks = sum(map(attention, (17, 17, 13, 13, 9))) + sum(2 * tokens * 32 * 64 for tokens in (17, 13, 13, 9, 9))
    schedule = Schedule({1: 0.75, 3: 0.5})
    assert analytic_macs(tower, 24, schedule, inside=True) == 16 * 3 * 64 * 32 + blocks + 32 * 24
    near = [Schedule({1: rate, 3: 0.5}) for rate in (0.5, 0.75, 1.0)]
    assert nearest_in_macs(tower, near, Schedule({1: 0.75, 4: 0.5}), inside=True).stages[1] == 0.75


@torch.inference_mode()
@pytest.mark.parametrize("merges", [True, False])
def test_progressive_counts_agree_with_the_formula(tower, merges):
    schedule = Schedule({1: 0.8, 3: 0.4})
    pruner = Pruner({1: Predictor(tower.width, 1, 16, merges=merges)}, BaseModel.of(tower, "tiny"), schedule)
    pixels = torch.randn(2, 3, 32, 32)
    scoring = count_macs(lambda tokens: pruner.predictor(1).prune(tokens, 13), tower.embed(pixels, 1))
    with pruner.attached(tower):
        counted = count_macs(tower, pixels)
    assert counted - scoring == pytest.approx(analytic_macs(tower, 24, schedule), rel=0.01)


@torch.inference_mode()
@pytest.mark.parametrize(("stages", "extra"), [({2: 1.0}, 0), ({0: 0.5}, 3), ({1: 0.8, 3: 0.4}, 0), ({4: 0.1}, 3)])
def test_the_formula_equals_counting_every_multiplication_of_every_layer(case, stages, extra):
    """Projections and convolutions by the size of what comes out, attention by its two products of matrices."""
    tower, schedule = case.tower, Schedule(stages)
    prefix, found = tower.num_prefix_tokens, []

    def product(layer, inputs, output):
        found.append(output[0].numel() * layer.weight[0].numel())

    def attention(block, inputs):
        tokens = inputs[0].shape[1]
        found.append(2 * tokens**2 * tower.width + 4 * tokens * tower.width**2)

    for part in (tower.module, *(block.mlp for block in tower.blocks)):
        for layer in part.modules():
            if isinstance(layer, torch.nn.Conv2d if part is tower.module else torch.nn.Linear):
                layer.register_forward_hook(product)
    for block in tower.blocks:
        block.register_forward_pre_hook(attention)
    tokens, kept = tower.embed(case.pixels), tower.num_patches
    tokens = torch.cat([tokens[:, :1].expand(-1, extra, -1), tokens], 1)
    for block in range(tower.depth):
        kept = round(schedule.stages.get(block, kept / tower.num_patches) * tower.num_patches)
        positions = torch.arange(kept).expand(len(tokens), -1)
        tokens = tower.run(tokens[:, : prefix + extra + kept], block, block + 1, positions=positions)
    features = tower.pool(tokens).shape[-1]
    assert analytic_macs(tower, features, schedule, extra) == sum(found) + tower.width * features


def test_the_formula_is_the_sum_over_the_blocks(tower):
    """Width 32, MLP 64, patches of 8 x 8 pixels, 16 of them and a class token."""

    def block(tokens):
        return 4 * tokens * 32 * 32 + 2 * tokens * 32 * 64 + 2 * tokens * tokens * 32

    embedding, head = 16 * 3 * 8 * 8 * 32, 32 * 24
    assert analytic_macs(tower, 24, Schedule({0: 1.0})) == embedding + 5 * block(17) + head
    assert analytic_macs(tower, 24, Schedule({0: 0.5})) == embedding + 5 * block(9) + head
    stages = embedding + block(17) + 2 * block(13) + 2 * block(5) + head
    assert analytic_macs(tower, 24, Schedule({1: 0.75, 3: 0.25})) == stages
    assert analytic_macs(tower, 0, Schedule({4: 0.5}), 3) == embedding + 4 * block(20) + block(12)


def test_the_nearest_may_be_above_or_below_and_the_first_of_equals_wins(tower):
    candidates = [Schedule({2: rate}) for rate in (1.0, 0.75, 0.5, 0.25)]
    for place, rate in ((0, 0.94), (1, 0.8), (1, 0.7), (3, 0.1)):
        assert nearest_in_macs(tower, iter(candidates), Schedule({2: rate})) is candidates[place]
    twins = [Schedule({2: 0.5, 4: 0.5}), Schedule({2: 0.5})]
    assert nearest_in_macs(tower, twins, Schedule({2: 0.5})) is twins[0]


@pytest.mark.parametrize("stages", [{3: 0.75, 6: 0.5}, {3: 1.0, 6: 1.0}, {2: 0.4}])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.73, 0.6, 0.45])
def test_a_share_of_the_dense_macs_is_met_as_nearly_as_whole_patches_allow(stages, share):
    tower = as_tower(vit_b16("open_clip").eval())
    shape = Schedule(stages)
    dense = analytic_macs(tower, 512, Schedule({0: 1.0}))
    off = {left: abs(analytic_macs(tower, 512, shape.at(left / 196)) / dense - share) for left in range(1, 197)}
    keep = keep_at_macs(tower, shape, share)
    assert round(196 * keep) == min(off, key=off.get)
    assert off[round(196 * keep)] < 0.003
    assert keep_at_macs(tower, shape, share, visual_tokens=4) <= keep - 3 / 196 or share == 0.45


def test_a_share_that_no_schedule_can_have_is_refused():
    tower = as_tower(vit_b16("open_clip").eval())
    for share in (0, -0.5, 1.1):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            keep_at_macs(tower, Schedule({3: 0.5}), share)
    with pytest.raises(UserError, match="before block 6 leaves at least 51% of the dense MACs: ask for more than 40%"):
        keep_at_macs(tower, Schedule({6: 0.5}), 0.4)
    assert keep_at_macs(tower, Schedule({6: 0.5}), 0.515) < 0.03


def test_a_schedule_takes_the_macs_of_another(tower):
    reference = Schedule({1: 0.75, 3: 0.25})
    found = with_macs_of(tower, Schedule({2: 0.5}), reference)
    assert list(found.stages) == [2]
    share = analytic_macs(tower, 24, found) / analytic_macs(tower, 24, reference)
    assert share == pytest.approx(1, abs=0.02)
    with pytest.raises(UserError, match="at least"):
        with_macs_of(tower, Schedule({4: 0.5}), reference)
