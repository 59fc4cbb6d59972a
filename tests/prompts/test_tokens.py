from __future__ import annotations

import pytest
import torch

from patchranking.errors import UserError
from patchranking.prompts.tokens import Prompts


@pytest.mark.parametrize(
    ("arguments", "context", "visual"),
    [
        ({"tokens": "text"}, (1, 16, 6), None),
        ({"tokens": "visual", "num_tokens": 4}, None, (1, 4, 8)),
        ({"tokens": "both", "num_tokens": 2, "depth": 3}, (3, 2, 6), (3, 2, 8)),
        ({"tokens": "both", "coupled": False}, (1, 16, 6), (1, 16, 8)),
        ({"tokens": "text", "class_specific": True, "class_names": ["a", "b"]}, (1, 2, 16, 6), None),
    ],
)
def test_shapes(arguments, context, visual):
    prompts = Prompts(text_width=6, width=8, **arguments)
    assert (None if prompts.context is None else tuple(prompts.context.shape)) == context
    assert (None if prompts.visual() is None else tuple(prompts.visual().shape)) == visual


def test_tokens_begin_small():
    for tokens in (Prompts("text", 64, 8, num_tokens=32).context, Prompts("visual", 6, 64, num_tokens=32).free):
        assert tokens.mean().item() == pytest.approx(0, abs=2e-3)
        assert tokens.std().item() == pytest.approx(0.02, rel=0.1)


def test_coupled_tokens_are_a_linear_map_of_the_text_tokens():
    prompts = Prompts("both", 6, 8, num_tokens=3, depth=2)
    for level in range(2):
        couple = prompts.couplings[level]
        torch.testing.assert_close(
            prompts.visual()[level], prompts.context[level] @ couple.weight.T + couple.bias, rtol=0, atol=1e-6
        )
    prompts.visual().sum().backward()
    assert prompts.context.grad.abs().min() > 0


@pytest.mark.parametrize(("number", "words"), [(2, [1, 2]), (3, [0, 1, 2]), (8, [1, 2, 0, 1, 2, 0, 1, 2])])
def test_text_tokens_start_as_the_phrase_again_and_again(number, words):
    prompts, phrase = Prompts("text", 6, 8, num_tokens=number, depth=2), torch.randn(3, 6)
    deeper = prompts.context[1].clone()
    prompts.start_from(phrase, torch.zeros(2, 8))
    assert torch.equal(prompts.context[0], phrase[words])
    assert torch.equal(prompts.context[1], deeper)


@pytest.mark.parametrize("arguments", [{"tokens": "visual"}, {"tokens": "both"}])
def test_visual_tokens_start_around_the_mean_patch_of_their_level(arguments):
    prompts, patches = (
        Prompts(text_width=6, width=8, depth=2, **arguments),
        torch.tensor([[30.0], [-70.0]]).expand(2, 8),
    )
    prompts.start_from(0.02 * torch.randn(4, 6), patches)
    assert (prompts.visual() - patches[:, None]).abs().max() < 1
    assert len(prompts.visual()[0].unique(dim=0)) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": "audio"}, "choose from text, visual, both"),
        ({"tokens": "text", "num_tokens": 0}, "1 or more"),
        ({"tokens": "text", "depth": 0}, "1 or more"),
        ({"tokens": "both", "class_specific": True, "class_names": ["a"]}, "choose free visual tokens"),
        ({"tokens": "text", "class_specific": True}, "no classes"),
    ],
)
def test_what_cannot_be_is_said(arguments, message):
    with pytest.raises(UserError, match=message):
        Prompts(text_width=6, width=8, **arguments)
