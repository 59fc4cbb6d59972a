from __future__ import annotations

import pytest
import torch

from patchranking.errors import UserError
from patchranking.prompts.insert import context_attached, prompted_features, with_visual_tokens
from patchranking.pruning.attach import Reduced, attach_reductions
from patchranking.pruning.select import gather_tokens
from patchranking.towers import TextTower

NAMES = ["red umbrella.", "sun."]


def embedded(text, phrase):
    """The embedding of a phrase, without start and end."""
    ids = text.tokenize([phrase, ""])
    return text.embedding(ids[0][~torch.isin(ids[0], ids[1])]).detach()


@torch.no_grad()
def test_the_embedding_of_a_phrase_is_the_phrase(text):
    context = embedded(text, "a photo of a")[None]
    plain = text([f"a photo of a {name}" for name in NAMES])
    torch.testing.assert_close(prompted_features(text, context, NAMES), plain, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_context_for_each_text_is_that_of_its_row(text):
    shared = torch.randn(1, 3, text.embedding.embedding_dim)
    own = torch.stack([shared, torch.randn_like(shared)], 1)
    rows = torch.cat([prompted_features(text, own[:, row], [name]) for row, name in enumerate(NAMES)])
    torch.testing.assert_close(prompted_features(text, own, NAMES), rows, rtol=0, atol=1e-5)


@torch.no_grad()
def test_deep_tokens_replace_what_enters_a_block(text):
    shallow = torch.randn(1, 2, text.embedding.embedding_dim)
    entering = []
    hook = text.blocks[1].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    expected = prompted_features(text, shallow, NAMES[:1])
    hook.remove()
    same = torch.cat([shallow, entering[0][:, 1:3]])
    torch.testing.assert_close(prompted_features(text, same, NAMES[:1]), expected, rtol=0, atol=1e-6)
    other = torch.cat([shallow, torch.randn_like(shallow)])
    assert (prompted_features(text, other, NAMES[:1]) - expected).abs().max() > 1e-4


@torch.no_grad()
def test_afterwards_the_encoder_is_as_before(text):
    before = text(NAMES)
    prompted_features(text, torch.randn(2, 2, text.embedding.embedding_dim), NAMES)
    assert torch.equal(text(NAMES), before)
    with pytest.raises(UserError, match="blocks"), context_attached(text, torch.randn(99, 2, 16), 1):
        pass
    assert torch.equal(text(NAMES), before)


def test_gradients_reach_the_context_alone(text):
    context = torch.randn(2, 2, text.embedding.embedding_dim, requires_grad=True)
    prompted_features(text, context, NAMES)[:, 0].sum().backward()
    assert context.grad.abs().amax((1, 2)).gt(0).all()
    assert text.embedding.weight.grad is None


def test_what_does_not_fit_is_named(text):
    room = text.context_length - 3
    prompted_features(text, torch.randn(1, room, text.embedding.embedding_dim), [""])
    with pytest.raises(
        UserError, match=r"'red umbrella\.' and \d+ tokens do not fit into the text encoder's 24 positions"
    ):
        prompted_features(text, torch.randn(1, room, text.embedding.embedding_dim), NAMES)


def test_an_unknown_text_encoder_takes_no_tokens():
    tower = TextTower(lambda texts: torch.zeros(len(texts), 8, dtype=torch.long), lambda ids: ids, 8)
    with pytest.raises(UserError, match="tune visual tokens"), context_attached(tower, torch.zeros(1, 2, 4), 1):
        pass


@torch.no_grad()
@pytest.mark.parametrize(("depth", "block"), [(1, 0), (3, 1), (1, 3), (3, 3)])
def test_visual_tokens_run_beside_the_patches_and_are_never_pruned(case, depth, block):
    tower, first, number = case.tower, case.tower.num_prefix_tokens, 2
    visual = torch.randn(depth, number, tower.width)
    chosen = torch.tensor([[0, 3, 5]]).expand(len(case.pixels), -1)
    seen = []

    def drop(tokens, sizes):
        seen.append(tokens.shape[1])
        return Reduced(gather_tokens(tokens, chosen, first), chosen)

    tokens = tower.embed(case.pixels)
    prefix, patches = tokens[:, :first], tokens[:, first:]
    beside = visual[0].expand(len(tokens), -1, -1)
    places = torch.arange(tower.num_patches).expand(len(tokens), -1)
    for index in range(tower.depth):
        if 0 < index < depth:
            beside = visual[index].expand(len(tokens), -1, -1)
        if index == block:
            patches, places = patches[:, chosen[0]], chosen
        out = tower.run(torch.cat([prefix, beside, patches], 1), index, index + 1, positions=places)
        prefix, beside, patches = out.split([first, number, patches.shape[1]], 1)
    expected = tower.pool(torch.cat([prefix, patches], 1))
    dense = case.encode(case.pixels)
    with attach_reductions(tower, with_visual_tokens(visual, {block: drop}, first, tower.depth)):
        torch.testing.assert_close(case.encode(case.pixels), expected, rtol=0, atol=1e-6)
    assert seen == [first + tower.num_patches]
    assert torch.equal(case.encode(case.pixels), dense)


def test_more_levels_than_blocks_are_refused():
    with pytest.raises(UserError, match="5 blocks; it cannot take tokens 6 deep"):
        with_visual_tokens(torch.zeros(6, 2, 4), {}, 1, 5)
