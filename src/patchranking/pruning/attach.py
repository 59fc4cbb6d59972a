"""Reduces tokens inside a model: by hooks on its blocks, or block by block through its tower."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchranking.errors import UserError
from patchranking.pruning.grid import check_grid, watch_hidden_states
from patchranking.pruning.masks import check_no_mask, take_masks_off
from patchranking.towers import VisionTower, as_tower
from patchranking.towers.hooks import TokenHook, token_hooks

__all__ = [
    "Hooks",
    "Reduced",
    "Reduction",
    "Scorer",
    "Stream",
    "attach_reductions",
    "composed",
    "detach",
    "in_backward",
    "run_reduced",
]

Scorer = Callable[[Tensor], Tensor]
"""Maps tokens ``(batch, prefix + patches, width)`` to importance ``(batch, patches)``, higher = keep."""


class Reduced(NamedTuple):
    """What a reduction leaves.

    Attributes:
        tokens: The tokens that go on, ``(batch, tokens, width)``.
        keep_indices: Which of the patches that came are kept, ``(batch, kept)``, in the order in which they go on;
            None where all are, or where patches were mixed. One that others merged into is kept where it was.
        sizes: How many patches each token stands for, ``(batch, tokens)``; None where each stands for itself.
    """

    tokens: Tensor
    keep_indices: Tensor | None = None
    sizes: Tensor | None = None


Reduction = Callable[[Tensor, Tensor | None], Reduced]
"""Maps tokens that enter a block, ``(batch, tokens, width)``, and their sizes to those that go on, usually fewer."""


class Hooks:
    """The hooks of one pruner on one model; a context manager that takes them off again."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self._handles = handles
        self._compiled_for = set[float]()
        _forget_compiled()

    @property
    def on(self) -> bool:
        """Whether any of them still is on a model that is alive."""
        return any(handle.id in (handle.hooks_dict_ref() or ()) for handle in self._handles)

    def runs_at(self, keep: float) -> None:
        """Has compiled code forgotten when it is of too many keep rates, at which PyTorch would refuse to compile.

        It takes as many versions of a function as ``torch._dynamo.config.recompile_limit`` says; half of them are for
        keep rates, and leave two of each for batches of one size and of others.
        """
        self._compiled_for.add(keep)
        if "torch._dynamo" in sys.modules and len(self._compiled_for) > torch._dynamo.config.recompile_limit // 2:
            self._compiled_for = {keep}
            _forget_compiled()

    def close(self) -> None:
        """Takes them off."""
        for handle in self._handles:
            handle.remove()
        _forget_compiled()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach_reductions(
    tower: VisionTower, reductions: Mapping[int, Reduction], sized: bool = False, warns: bool = True
) -> Hooks:
    """Hooks reductions before blocks of the model behind ``tower``.

    The model's classes and parameters stay untouched, and its attention kernels unless tokens have sizes; a reduction
    that returns its argument leaves the output bit-identical. Where tokens need no gradient, a reduction adds none. The
    model can be copied and pickled if the reductions can: its copies have hooks of their own, which ``detach`` takes
    off. Code that ``torch.compile`` made before is compiled anew, here and when the hooks come off.

    Args:
        tower: The image encoder.
        reductions: Block index -> reduction; the tower's depth stands for "after the last block".
        sized: Whether tokens may come to stand for several patches. In every block from the first reduction on, the
            logarithm of its size is then added to the attention logits towards a token, through the mask argument of
            the library. In a rotary model every block from there on gets the rotations of the patches that are left.
        warns: Whether a warning comes where the model returns hidden states of some of the patches only.

    Returns:
        The hooks; their ``close()`` restores the model.
    """
    stream, first = _Stream(), min(reductions)
    follows = sized or tower.rotary
    handles = [*(watch_hidden_states(tower) if warns else []), *take_masks_off(tower, first)]
    for block in range(first, tower.depth) if follows else [block for block in reductions if block < tower.depth]:
        hook = _Before(reductions.get(block), stream, block == first, tower if follows else None)
        handles.append(tower.blocks[block].register_forward_pre_hook(hook, with_kwargs=True))
        handles += tower.mask_hooks(block) if sized else []
    if tower.depth in reductions:
        handles.append(tower.blocks[-1].register_forward_hook(_After(reductions[tower.depth], stream)))
    return Hooks(handles)


def detach(model: nn.Module | VisionTower) -> None:
    """Restores a model exactly, whatever pruner was attached to it, also when that pruner is lost.

    Args:
        model: Any module; copies of attached models and wrappers of them too. One that is not pruned stays as it is.
    """
    part = model if isinstance(model, nn.Module) else as_tower(model).module
    for places, key in list(token_hooks(part)):
        for hooks in places:
            hooks.pop(key, None)
    _forget_compiled()


def _forget_compiled() -> None:
    """Has compiled code look at the hooks again: it has no guards on them (pytorch/pytorch#117758)."""
    if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
        torch.compiler.reset()


class Stream(threading.local):
    """What goes along with the tokens from hook to hook, in each thread for itself; a copy begins empty."""

    def __reduce__(self) -> tuple[type[Stream], tuple[()]]:
        return type(self), ()


class _Stream(Stream):
    sizes: Tensor | None = None
    positions: Tensor | None = None


class _Hook(TokenHook):
    """Reduces tokens inside a model, without a graph where the tokens have none."""

    def __init__(self, reduce: Reduction | None, stream: _Stream, rotary: bool = False) -> None:
        self.reduce, self.stream, self.rotary = reduce, stream, rotary

    def reduced(self, tokens: Tensor) -> Tensor:
        if self.reduce is None:
            return tokens
        with torch.set_grad_enabled(torch.is_grad_enabled() and tokens.requires_grad):
            reduced, chosen, self.stream.sizes = self.reduce(tokens, self.stream.sizes)
        if self.rotary:
            self.stream.positions = composed(self.stream.positions, chosen)
        if reduced.shape[1] < tokens.shape[1]:
            check_grid()
        return reduced


def in_backward() -> bool:
    """Whether a backward pass is running, as gradient checkpointing does when it runs blocks again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class _Before(_Hook):
    """Reduces the tokens that enter a block; with a tower, the block is told their sizes and positions."""

    def __init__(self, reduce: Reduction | None, stream: _Stream, first: bool, tower: VisionTower | None) -> None:
        super().__init__(reduce, stream, tower is not None and tower.rotary)
        self.first, self.tower = first, tower

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.first:
            self.stream.sizes = self.stream.positions = None
        elif self.tower is not None and in_backward():
            raise UserError(
                "Gradient checkpointing runs blocks again one by one, and here pruning needs them in a row: switch "
                "checkpointing off" + ("." if self.tower.rotary else ", or fit with --merge false.")
            )
        tokens = self.reduced(inputs[0])
        if tokens.shape[1] != inputs[0].shape[1]:
            check_no_mask(inputs, named)
        if self.tower is None:
            return (tokens, *inputs[1:]), named
        named = named | self.tower.turns_at(named, tokens, self.stream.positions)
        if self.stream.sizes is None:
            return (tokens, *inputs[1:]), named
        return (tokens,), named | self.tower.mask_arguments(tokens, _bias(self.stream.sizes, tokens))


class _After(_Hook):
    """Reduces the tokens that leave the last block."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], tokens: Tensor) -> Tensor:
        return self.reduced(tokens)


def run_reduced(
    tower: VisionTower, tokens: Tensor, start: int, reductions: Mapping[int, Reduction], stop: int | None = None
) -> Reduced:
    """Runs blocks ``start`` to ``stop - 1`` with reductions before them, as the model does once they are attached.

    Args:
        tower: The image encoder.
        tokens: Tokens that enter block ``start``, ``(batch, prefix + patches, width)``.
        start: First block.
        reductions: Block index, at least ``start`` -> reduction; the tower's depth stands for "after the last block".
        stop: One past the last block; the tower's depth when omitted.

    Returns:
        The tokens after block ``stop - 1``, and which patches of those in ``tokens`` are kept.
    """
    everywhere = None
    if tower.rotary:
        everywhere = torch.arange(tower.num_patches, device=tokens.device).expand(tokens.shape[0], -1)
    keep_indices, sizes, positions = None, None, everywhere
    for block, reduce in sorted(reductions.items()):
        tokens, chosen, sizes = reduce(tower.run(tokens, start, block, _bias(sizes, tokens), positions), sizes)
        keep_indices, start = composed(keep_indices, chosen), block
        positions = everywhere if keep_indices is None else keep_indices
    return Reduced(tower.run(tokens, start, stop, _bias(sizes, tokens), positions), keep_indices, sizes)


def composed(earlier: Tensor | None, chosen: Tensor | None) -> Tensor | None:
    """Which patches are left of all, where some of those were chosen that had been left before."""
    if earlier is None or chosen is None:
        return earlier if chosen is None else chosen
    return earlier.gather(1, chosen)


def _bias(sizes: Tensor | None, tokens: Tensor) -> Tensor | None:
    return None if sizes is None else sizes.log().to(tokens.dtype)
