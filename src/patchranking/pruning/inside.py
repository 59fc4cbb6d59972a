"""Reduces tokens inside blocks, between attention and MLP: block by block through a tower, or by hooks on its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patchranking.errors import UserError
from patchranking.pruning.attach import Hooks, Stream, composed, in_backward
from patchranking.pruning.grid import check_grid, watch_hidden_states
from patchranking.pruning.masks import check_no_mask, take_masks_off
from patchranking.pruning.select import gather_tokens
from patchranking.towers import VisionTower
from patchranking.towers.base import Attended
from patchranking.towers.hooks import TokenHook

__all__ = ["Inside", "Left", "attach_inside", "run_inside"]


class Left(NamedTuple):
    """What a reduction inside a block leaves.

    Attributes:
        tokens: The tokens that go on, ``(batch, tokens, width)``.
        places: The patches of those that came, at whose places the patches that go on are, ``(batch, kept)``; None
            where all are in their own.
        sizes: How many patches each token stands for, ``(batch, tokens)``; None where each stands for itself.
        into: Each gives, for every patch that came, which of those that go on it is in, ``(batch, patches)``: one for
            every time that patches merged. They are asked only where a model pools by itself.
    """

    tokens: Tensor
    places: Tensor | None = None
    sizes: Tensor | None = None
    into: tuple[Callable[[], Tensor], ...] = ()


Inside = Callable[[Attended, Tensor | None], Left]
"""Maps the first half of a block, and the sizes of its tokens, to the tokens that its second half takes."""


def run_inside(tower: VisionTower, tokens: Tensor, start: int, reductions: Mapping[int, Inside]) -> Left:
    """Runs the blocks from ``start`` to the end with reductions inside some of them.

    Args:
        tower: The image encoder.
        tokens: Tokens that enter block ``start``, ``(batch, prefix + patches, width)``.
        start: First block.
        reductions: Block index, at least ``start`` -> reduction. After one that merges, every block has one.

    Returns:
        What is left after the last block; ``places``, which only rotary models have, and ``into`` are of the patches
        in ``tokens``.
    """
    left = Left(tokens)
    for block, reduce in sorted(reductions.items()):
        left = left._replace(tokens=tower.run(left.tokens, start, block, positions=left.places))
        left, start = _through(tower, block, reduce, left), block + 1
    return left._replace(tokens=tower.run(left.tokens, start, positions=left.places))


def _through(tower: VisionTower, block: int, reduce: Inside, came: Left) -> Left:
    bias = None if came.sizes is None else came.sizes.log()
    tokens, places, sizes, into = reduce(tower.attend(came.tokens, block, bias, came.places), came.sizes)
    places = composed(came.places, places) if tower.rotary else None
    return Left(tower.feed_forward(tokens, block), places, sizes, (*came.into, *into))


def attach_inside(tower: VisionTower, reductions: Mapping[int, Inside]) -> Hooks:
    """Hooks reductions into blocks of the model behind ``tower``.

    A block with a reduction runs by its halves before it is called; it is then called with a single patch, and what it
    returns gives way to what the halves left. That patch costs little, and nothing in compiled code. Where patches
    merge, the last block ends with as many as the first began with, each as the token that it has merged into, so that
    the model's own pooling counts tokens by their sizes.

    Args:
        tower: The image encoder.
        reductions: As in ``run_inside``; none leaves the model as it is.

    Returns:
        The hooks; their ``close()`` restores the model.
    """
    if not reductions:
        return Hooks([])
    stream, first = _Stream(), min(reductions)
    handles = [*watch_hidden_states(tower), *take_masks_off(tower, first)]
    for block in range(first, tower.depth) if tower.rotary else reductions:
        hook = _Before(tower, block, reductions.get(block), stream, block == first)
        handles.append(tower.blocks[block].register_forward_pre_hook(hook, with_kwargs=True))
        if block in reductions:
            after = _After(stream, tower.num_prefix_tokens if block == tower.depth - 1 else None)
            handles.append(tower.blocks[block].register_forward_hook(after, prepend=True))
    return Hooks(handles)


class _Stream(Stream):
    left: Left | None = None


class _Before(TokenHook):
    """Runs a block by its halves, and has the block itself run on one patch; without a reduction, passes positions."""

    def __init__(self, tower: VisionTower, block: int, reduce: Inside | None, stream: _Stream, first: bool) -> None:
        self.tower, self.block, self.reduce, self.stream, self.first = tower, block, reduce, stream, first

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tokens, prefix = inputs[0], self.tower.num_prefix_tokens
        if self.first:
            self.stream.left = Left(tokens)
            if (patches := tokens.shape[1] - prefix) != self.tower.num_patches:
                raise UserError(
                    f"This method is attached for {self.tower.num_patches} patches, not {patches}: give images of the "
                    "model's own size, or attach cls-attention."
                )
        elif in_backward():
            raise UserError(
                "Gradient checkpointing runs blocks again one by one, and a method that works inside blocks needs them "
                "in a row: switch checkpointing off."
            )
        assert self.stream.left is not None
        places = self.stream.left.places
        if self.reduce is not None:
            check_grid()
            check_no_mask(inputs, named)
            came = self.stream.left._replace(tokens=tokens)
            self.stream.left = _through(self.tower, self.block, self.reduce, came)
            tokens, places = tokens[:1, : prefix + 1], torch.zeros(1, 1, dtype=torch.long, device=tokens.device)
        return (tokens, *inputs[1:]), named | self.tower.turns_at(named, tokens, places)


class _After(TokenHook):
    """Hands on what the halves left; after the last block every patch, as the token that it is in."""

    def __init__(self, stream: _Stream, prefix: int | None) -> None:
        self.stream, self.prefix = stream, prefix

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        assert self.stream.left is not None
        tokens, into = self.stream.left.tokens, self.stream.left.into
        self.stream.left = self.stream.left._replace(tokens=output)
        if self.prefix is None or not into:
            return tokens
        first, *later = into
        where = first()
        for then in later:
            where = then().gather(1, where)
        return gather_tokens(tokens, where, self.prefix)
