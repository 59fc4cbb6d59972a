"""Hooks that change the tokens inside a model, and where they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["TokenHook", "token_hooks"]


class TokenHook:
    """A hook that changes the tokens inside a model, which is then no longer dense."""


def token_hooks(model: nn.Module) -> Iterator[tuple[tuple[dict[int, Any], ...], int]]:
    """Where the hooks are that change tokens: dictionaries of PyTorch's and the key in them."""
    for part in model.modules():
        before = part._forward_pre_hooks, part._forward_pre_hooks_with_kwargs
        after = part._forward_hooks, part._forward_hooks_with_kwargs
        for places in (before, after):
            yield from ((places, key) for key, hook in places[0].items() if isinstance(hook, TokenHook))
