"""Reduces tokens inside blocks, between attention and MLP: block by block through a tower, or by hooks on its model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from patchranking.errors import UserError
from patchranking.pruning.attach import Hooks, in_backward
from patchranking.pruning.grid import check_grid
from patchranking.pruning.select import gather_tokens
from patchranking.towers import VisionTower
from patchranking.towers.base import Attended
from patchranking.towers.hooks import TokenHook

__all__ = ["Inside", "Left", "attach_inside", "run_inside"]


class Left(NamedTuple):
    """What a reduction inside a block leaves.

    Attributes:
        tokens: The tokens that go on, ``(batch, tokens, width)``.
        sizes: How many patches each token stands for, ``(batch, tokens)``; None where each stands for itself.
        into: For every patch that came, which of the patches that go on it is in, ``(batch, patches)``; None where
            patches do not merge.
    """

    tokens: Tensor
    sizes: Tensor | None = None
    into: Tensor | None = None


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
        What is left after the last block; ``into`` is of the patches in ``tokens``.
    """
    left = Left(tokens)
    for block, reduce in sorted(reductions.items()):
        left = _through(tower, block, reduce, left._replace(tokens=tower.run(left.tokens, start, block)))
        start = block + 1
    return left._replace(tokens=tower.run(left.tokens, start))


def _through(tower: VisionTower, block: int, reduce: Inside, came: Left) -> Left:
    bias = None if came.sizes is None else came.sizes.log()
    tokens, sizes, into = reduce(tower.attend(came.tokens, block, bias), came.sizes)
    if into is None:
        into = came.into
    elif came.into is not None:
        into = into.gather(1, came.into)
    return Left(tower.feed_forward(tokens, block), sizes, into)


def attach_inside(tower: VisionTower, reductions: Mapping[int, Inside]) -> Hooks:
    """Hooks reductions into blocks of the model behind ``tower``.

    A block with a reduction runs by its halves before it is called; it is then called with a single token, and what it
    returns gives way to what the halves left. That token costs little, and nothing in compiled code. Where patches
    merge, the last block ends with as many as the first began with, each as the token that it has merged into, so that
    the model's own pooling counts tokens by their sizes.

    Args:
        tower: The image encoder.
        reductions: As in ``run_inside``; none leaves the model as it is.

    Returns:
        The hooks; their ``close()`` restores the model.
    """
    stream = _Stream()
    handles = []
    for block, reduce in reductions.items():
        before = _Before(tower, block, reduce, stream, block == min(reductions))
        handles.append(tower.blocks[block].register_forward_pre_hook(before, with_kwargs=True))
        prefix = tower.num_prefix_tokens if block == tower.depth - 1 else None
        handles.append(tower.blocks[block].register_forward_hook(_After(stream, prefix), prepend=True))
    return Hooks(handles)


class _Stream(threading.local):
    """What goes from hook to hook, in each thread for itself."""

    left: Left | None = None

    def __reduce__(self) -> tuple[type[_Stream], tuple[()]]:
        return type(self), ()


class _Before(TokenHook):
    """Runs a block by its halves, and has the block itself run on one token."""

    def __init__(self, tower: VisionTower, block: int, reduce: Inside, stream: _Stream, first: bool) -> None:
        self.tower, self.block, self.reduce, self.stream, self.first = tower, block, reduce, stream, first

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        check_grid()
        left = Left(inputs[0]) if self.first or self.stream.left is None else self.stream.left
        if not self.first and in_backward():
            raise UserError(
                "Gradient checkpointing runs blocks again one by one, and a method that works inside blocks needs them "
                "in a row: switch checkpointing off."
            )
        self.stream.left = _through(self.tower, self.block, self.reduce, left._replace(tokens=inputs[0]))
        return (inputs[0][:1, :1], *inputs[1:]), named


class _After(TokenHook):
    """Hands on what the halves left; after the last block every patch, as the token that it is in."""

    def __init__(self, stream: _Stream, prefix: int | None) -> None:
        self.stream, self.prefix = stream, prefix

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        assert self.stream.left is not None
        tokens, sizes, into = self.stream.left
        if self.prefix is not None and into is not None:
            tokens = gather_tokens(tokens, into, self.prefix)
        self.stream.left = None if self.prefix is not None else Left(output, sizes, into)
        return tokens
