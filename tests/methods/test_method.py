from __future__ import annotations

import pytest
import torch

from patchranking.errors import UserError
from patchranking.methods import METHODS, STYLES, Dense, PatchRanking, named
from patchranking.methods.batch import Batch
from patchranking.methods.evit import fuse
from patchranking.methods.method import Dropping, reducing
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.attach import Reduced, attach_reductions
from patchranking.pruning.macs import with_macs_of
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.pruning.stages import by_scores
from patchranking.towers.identity import BaseModel

SCHEDULE = Schedule({1: 0.75, 3: 0.5})
DROPPING = sorted(name for name, method in METHODS.items() if isinstance(method, Dropping))
NEED_A_CLASS_TOKEN = {"cls-attention", "evit"}
MATCHED_BY_MACS = {"tome", "pitome", "low-res"}
MIXING = {"evit", "tome", "pitome", "low-res"}


def pruner_for(tower):
    return Pruner({1: Predictor.for_tower(tower)}, BaseModel.of(tower, "tiny"), SCHEDULE).eval()


def everything(tower):
    """Every method that the tower supports."""
    found = [Dense(), PatchRanking(pruner_for(tower)), *METHODS.values()]
    return [method for method in found if tower.has_class_token or method.name not in NEED_A_CLASS_TOKEN]


def test_every_method_has_a_name_and_a_look_of_its_own():
    assert list(STYLES) == ["dense", "patchranking", *METHODS]
    assert len({style.colour for style in STYLES.values()}) == len(STYLES)
    assert len({style.marker for style in STYLES.values()}) == len(STYLES)
    assert all(method.name == name and STYLES[name] == method.style for name, method in METHODS.items())
    assert [name for name, method in METHODS.items() if method.oracle] == ["golden"]
    assert {(method.tuned, method.prompts) for method in (Dense(), *METHODS.values())} == {("none", None)}


def test_methods_are_found_by_name_in_the_order_asked():
    assert named(["random", "golden", "evit"]) == [METHODS["random"], METHODS["golden"], METHODS["evit"]]
    with pytest.raises(UserError, match=r"Unknown method 'dense': choose from tome, .*, golden"):
        named(["evit", "dense"])


@torch.inference_mode()
def test_every_method_encodes_alike_a_whole_batch_its_pixels_and_some_rows(case):
    tower = case.tower
    whole, rows = Batch(tower, case.pixels, [5, 3, 4]), [0, 2]
    for method in everything(tower):
        features = method.at(tower, SCHEDULE, 0).run(whole).features
        assert features.shape == whole.features.shape
        assert features.isfinite().all()
        assert torch.equal(features, whole.features) is (method.name == "dense")
        if method.name != "random":  # which draws by the images' indices
            assert torch.equal(method.at(tower, SCHEDULE, 0)(case.pixels), features)
        if method.name != "golden":  # which searches for the batch that comes
            some = method.at(tower, SCHEDULE, 0).run(whole.rows(rows)).features
            torch.testing.assert_close(some, features[rows], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_methods_tell_which_patches_reach_the_end_unless_they_mix_them(case):
    tower, batch = case.tower, Batch(case.tower, case.pixels)
    for method in everything(tower):
        found = method.at(tower, SCHEDULE, 0).run(batch).keep_indices
        if method.name in MIXING | {"dense"}:
            assert found is None
        else:
            assert [len(set(row)) for row in found.tolist()] == [tower.num_patches // 2] * 3


def test_an_encoding_has_the_schedule_it_really_runs_on_all_images(tower):
    for method in everything(tower):
        encoding = method.at(tower, SCHEDULE, 0)
        assert encoding.images is None
        assert encoding.classes is None
        assert encoding.tower is tower
        if method.name in MATCHED_BY_MACS:
            assert encoding.schedule != SCHEDULE
        else:
            assert encoding.schedule == (Schedule({1: 1.0, 3: 1.0}) if method.name == "dense" else SCHEDULE)


def test_methods_that_need_a_class_token_refuse_a_model_without(case):
    if not case.tower.has_class_token:
        for name in sorted(NEED_A_CLASS_TOKEN):
            with pytest.raises(UserError, match="needs a class token"):
                METHODS[name].at(case.tower, SCHEDULE, 0)(case.pixels)


@torch.inference_mode()
@pytest.mark.parametrize("stages", [{0: 0.6}, {1: 0.75, 3: 0.5}, {1: 1.0, 2: 1.0}])
def test_reducing_equals_attaching_by_hooks_bit_for_bit(case, stages):
    tower, schedule = case.tower, Schedule(stages)
    prefix, first = tower.num_prefix_tokens, schedule.block
    reductions = by_scores(tower, schedule, {first: lambda tokens: tokens[:, prefix:, 0]})
    batch = Batch(tower, case.pixels)
    features, keep_indices, _ = reducing(tower, schedule, reductions).run(batch)
    with attach_reductions(tower, reductions):
        assert torch.equal(case.encode(case.pixels), features)
    if schedule.keep == 1:
        assert keep_indices is None
        assert torch.equal(batch.features, features)
    else:
        scores = tower.embed(case.pixels, first)[:, prefix:, 0]
        best = scores.argsort(dim=1, descending=True)[:, : schedule.kept(tower.num_patches)[max(stages)]]
        assert torch.equal(keep_indices.sort(1).values, best.sort(1).values)


@torch.inference_mode()
def test_reducing_equals_attaching_where_tokens_are_added_mixed_and_taken_away(tower):
    pixels, added = torch.randn(2, 3, 32, 32), torch.randn(1, 3, 32)
    reductions = {
        0: lambda tokens, sizes: Reduced(torch.cat([tokens, added.expand(len(tokens), -1, -1)], 1)),
        2: lambda tokens, sizes: Reduced(fuse(tokens, tokens[:, 1:, 0].abs(), 9, 1)[0]),
        tower.depth: lambda tokens, sizes: Reduced(tokens + tokens.mean(1, keepdim=True)),
    }
    found = reducing(tower, SCHEDULE, reductions)(pixels)
    with attach_reductions(tower, reductions):
        assert torch.equal(tower(pixels), found)
    assert not torch.equal(tower(pixels), found)


@torch.inference_mode()
@pytest.mark.parametrize("name", DROPPING)
def test_every_baseline_drops_at_every_stage(tower, name):
    seen = {}
    hooks = [
        block.register_forward_hook(lambda _, inputs, __, number=number: seen.update({number: inputs[0].shape[1]}))
        for number, block in enumerate(tower.blocks)
    ]
    METHODS[name].at(tower, SCHEDULE, 0)(torch.randn(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert list(seen.values()) == [17, 13, 13, 9, 9]


@torch.inference_mode()
@pytest.mark.parametrize("name", sorted({*DROPPING} - {"cls-attention"}))
def test_later_stages_go_by_the_first_scores_unless_a_method_scores_again(tower, name):
    pixels = torch.randn(2, 3, 32, 32)
    found = METHODS[name].at(tower, SCHEDULE, 7).run(Batch(tower, pixels)).keep_indices
    tokens = tower.embed(pixels, 1)
    scores = METHODS[name].scorer(tower, 1, 7)(tokens)
    assert torch.equal(found.sort(1).values, top_patches(scores, 8))


@torch.inference_mode()
def test_class_attention_looks_again_at_the_second_stage(tower):
    pixels = torch.randn(2, 3, 32, 32)
    found = METHODS["cls-attention"].at(tower, SCHEDULE, 0).run(Batch(tower, pixels))
    tokens, stays = tower.embed(pixels, 1), torch.arange(16).expand(2, -1)
    for block, count, stop in ((1, 12, 3), (3, 8, None)):
        chosen = top_patches(tower.class_attention(tokens, block), count)
        tokens, stays = gather_tokens(tokens, chosen, 1), stays.gather(1, chosen)
        tokens = tower.run(tokens, block, stop)
    assert torch.equal(found.features, tower.pool(tokens))
    assert torch.equal(found.keep_indices, stays)


@torch.inference_mode()
def test_only_methods_with_a_choice_worth_a_look_are_shown():
    assert [name for name, method in METHODS.items() if method.shown] == ["cls-attention"]
    assert PatchRanking.shown


@pytest.mark.parametrize(("name", "blocks"), [("cls-attention", [0, 2, 3]), ("evit", [1, 2, 3])])
def test_beside_others_a_method_is_where_it_does_best_with_their_macs(tower, name, blocks):
    reference = Schedule({0: 0.9, 1: 0.8})
    found = METHODS[name].beside(tower, reference, 0)
    assert found.schedule == with_macs_of(tower, Schedule.even(blocks, 0.5), reference)
    pixels = torch.ones(1, 3, 32, 32)
    assert torch.equal(found(pixels), METHODS[name].at(tower, found.schedule, 0)(pixels))
    few = Schedule({0: 0.1})
    assert METHODS[name].beside(tower, few, 0).schedule == few
    assert METHODS["random"].beside(tower, reference, 0).schedule == reference
