"""Peak memory of an encoder's activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_activations"]


class _Tracker(TorchDispatchMode):
    """Adds up the storages that operations return for as long as they live."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.peak = 0
        self._given = given.untyped_storage()._cdata
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        known = {self._given} | {
            leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in known | self._live.keys():
                    self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return found


@torch.no_grad()
def peak_activations(run: Callable[[Tensor], object], pixels: Tensor) -> int:
    """Bytes that the tensors made by a pass take at most at once, weights and the batch itself not counted.

    On a GPU it is what the allocator handed out; elsewhere the sum of what operations returned, so that the scratch
    memory inside a kernel is not seen.

    Args:
        run: Encodes a batch, not compiled.
        pixels: The batch ``(batch, 3, height, width)``.
    """
    if pixels.device.type == "cuda":
        torch.cuda.synchronize(pixels.device)
        before = torch.cuda.memory_allocated(pixels.device)
        torch.cuda.reset_peak_memory_stats(pixels.device)
        run(pixels)
        torch.cuda.synchronize(pixels.device)
        return torch.cuda.max_memory_allocated(pixels.device) - before
    with _Tracker(pixels) as tracker:
        run(pixels)
    return tracker.peak
