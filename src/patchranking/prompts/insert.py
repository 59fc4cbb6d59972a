"""Puts learnable tokens into running encoders: hooks, so that classes, weights and kernels stay as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from patchranking.errors import UserError
from patchranking.prompts.tokens import Prompts
from patchranking.pruning.attach import Reduced, Reduction
from patchranking.towers import TextTower

__all__ = ["context_attached", "prompted_features", "tuned_class_features", "with_visual_tokens"]


def prompted_features(text: TextTower, context: Tensor, texts: list[str]) -> Tensor:
    """Features of "[context] text" (CoOp; the paper's section 3.3).

    Args:
        text: The text encoder.
        context: ``(depth, num_tokens, width)``, or ``(depth, texts, num_tokens, width)``, one for each.
        texts: Such as ``"tabby cat."``.

    Returns:
        Unit vectors ``(texts, features)``; gradients flow to ``context``.

    Raises:
        UserError: If the text encoder is of an unknown kind, or a text and the tokens together are too long for it.
    """
    ids, first = _with_room(text, texts, context.shape[-2])
    with context_attached(text, context, first):
        return text.encode(ids)


def tuned_class_features(prompts: Prompts, class_names: Sequence[str], text: TextTower | None = None) -> Tensor:
    """Features of classes under tuned tokens.

    Args:
        prompts: The tokens.
        class_names: Natural names. Features of the classes tuned on are stored with the tokens.
        text: The text encoder, needed for any other class.

    Returns:
        Unit vectors ``(classes, features)``.

    Raises:
        UserError: If other classes come that the tokens or the missing text encoder cannot serve.

    Warns:
        UserWarning: If other classes come.
    """
    if list(class_names) == prompts.class_names:
        return prompts.class_features
    known = {name: row for row, name in enumerate(prompts.class_names)}
    others = [name for name in class_names if name not in known]
    if not others:
        return prompts.class_features[[known[name] for name in class_names]]
    tuned_on = f"These tokens were tuned on {len(known)} classes, and '{others[0]}' is none of them"
    if prompts.context is None or prompts.config["class_specific"]:
        raise UserError(f"{tuned_on}: use the model's own text features for it.")
    if text is None:
        raise UserError(f"{tuned_on}: give the text encoder, patchranking.as_text_tower(model, tokenizer).")
    warnings.warn(f"{tuned_on}: the accuracy on it is not known.", stacklevel=3)
    return prompted_features(text, prompts.context, [f"{name}." for name in class_names])


def _with_room(text: TextTower, texts: list[str], number: int) -> tuple[Tensor, int]:
    """Ids of texts with room for ``number`` tokens after any start token, and where the room begins."""
    ids, empty = text.tokenize(texts), text.tokenize([""])
    first = int((ids[:, 0] == empty[0, 0]).all())
    end = empty[0, first]
    room = ids[:, first : first + 1].expand(-1, number)
    longer = torch.cat([ids[:, :first], room, ids[:, first:]], 1)[:, : text.context_length]
    lost = (longer[:, first + number :] != end).all(1)
    if lost.any():
        raise UserError(
            f"'{texts[int(lost.int().argmax())]}' and {number} tokens do not fit into the text encoder's "
            f"{text.context_length} positions: use fewer tokens."
        )
    return longer, first


@contextmanager
def context_attached(text: TextTower, context: Tensor, first: int) -> Iterator[None]:
    """Replaces what the text encoder sees at some positions, for the length of a ``with`` block.

    Args:
        text: The text encoder.
        context: ``(depth, num_tokens, width)`` or ``(depth, texts, num_tokens, width)``; level 0 replaces embeddings,
            level d what enters block d.
        first: The first of these positions.

    Raises:
        UserError: If the text encoder is of an unknown kind or has fewer blocks.
    """
    if text.embedding is None:
        raise UserError("Text tokens need the built-in text encoder of open_clip or transformers: tune visual tokens.")
    if len(context) > len(text.blocks):
        raise UserError(f"The text encoder has {len(text.blocks)} blocks; it cannot take tokens {len(context)} deep.")

    def replaced(tokens: Tensor, level: Tensor) -> Tensor:
        return _swap(tokens, level.to(tokens.dtype), first)

    def before(level: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda _, inputs: (replaced(inputs[0], level), *inputs[1:])

    with ExitStack() as hooks:
        embedded = text.embedding.register_forward_hook(lambda _, __, output: replaced(output, context[0]))
        hooks.callback(embedded.remove)
        for block, level in list(zip(text.blocks, context, strict=False))[1:]:
            hooks.callback(block.register_forward_pre_hook(before(level)).remove)
        yield


def with_visual_tokens(
    visual: Tensor, reductions: Mapping[int, Reduction], num_prefix_tokens: int, tower_depth: int
) -> dict[int, Reduction]:
    """Adds visual tokens to what happens before the blocks of an image encoder.

    They enter before block 0, after the position embedding and any norm before the blocks, right behind the prefix
    tokens. Other reductions do not see them, so they are never scored nor pruned, and after the last block they leave,
    so that an average over patches stays one over patches.

    Args:
        visual: ``(depth, num_tokens, width)``; level 0 enters before block 0, level d takes its place before block d.
        reductions: Block index -> reduction of the tokens without the visual ones.
        num_prefix_tokens: Tokens before the patches.
        tower_depth: Blocks of the image encoder.

    Returns:
        Block index -> reduction; ``tower_depth`` stands for "after the last block".

    Raises:
        UserError: If there are more levels than blocks.
    """
    if len(visual) > tower_depth:
        raise UserError(f"The image encoder has {tower_depth} blocks; it cannot take tokens {len(visual)} deep.")
    first, stop = num_prefix_tokens, num_prefix_tokens + visual.shape[1]

    def put(tokens: Tensor, among: Tensor) -> Tensor:
        return torch.cat([tokens[:, :first], among, tokens[:, first:]], 1)

    def taken(tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, :first], tokens[:, stop:]], 1)

    def insert(tokens: Tensor, sizes: Tensor | None) -> Reduced:
        level = visual[0].to(tokens).expand(tokens.shape[0], -1, -1)
        return Reduced(put(tokens, level), None, _each(sizes, lambda own: put(own, torch.ones_like(level[..., 0]))))

    def swap(level: Tensor) -> Reduction:
        return lambda tokens, sizes: Reduced(_swap(tokens, level.to(tokens), first), None, sizes)

    def remove(tokens: Tensor, sizes: Tensor | None) -> Reduced:
        return Reduced(taken(tokens), None, _each(sizes, taken))

    def beside(reduce: Reduction) -> Reduction:
        def reduced(tokens: Tensor, sizes: Tensor | None) -> Reduced:
            own = tokens[:, first:stop]
            kept, keep_indices, sizes = reduce(taken(tokens), _each(sizes, taken))
            ones = torch.ones_like(own[..., 0])
            return Reduced(put(kept, own), keep_indices, _each(sizes, lambda those: put(those, ones)))

        return reduced

    steps: dict[int, list[Reduction]] = {0: [insert], tower_depth: [remove]}
    for block in range(1, len(visual)):
        steps[block] = [swap(visual[block])]
    for block, reduce in reductions.items():
        steps[block] = [reduce, insert] if block == 0 else [*steps.get(block, []), beside(reduce)]
    return {block: _chain(own) for block, own in steps.items()}


def _chain(reductions: Sequence[Reduction]) -> Reduction:
    """One reduction after the other; at most one of them chooses patches."""

    def reduce(tokens: Tensor, sizes: Tensor | None) -> Reduced:
        keep_indices = None
        for reduction in reductions:
            tokens, chosen, sizes = reduction(tokens, sizes)
            keep_indices = keep_indices if chosen is None else chosen
        return Reduced(tokens, keep_indices, sizes)

    return reduce


def _each(sizes: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if sizes is None else change(sizes)


def _swap(tokens: Tensor, level: Tensor, first: int) -> Tensor:
    level = level.expand(tokens.shape[0], -1, -1)
    return torch.cat([tokens[:, :first], level, tokens[:, first + level.shape[1] :]], 1)
