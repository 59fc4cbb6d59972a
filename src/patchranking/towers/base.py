"""One view of many vision transformers: embed, run blocks, pool."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from patchranking.errors import UserError

__all__ = ["TokenHook", "VisionTower", "activation_name", "masked", "token_hooks", "weighted"]


class TokenHook:
    """A hook that changes the tokens inside a model, which is then no longer dense."""


def token_hooks(model: nn.Module) -> Iterator[tuple[dict[int, Any], int]]:
    """Where the hooks are that change tokens: a dictionary of PyTorch's and the key in it."""
    for part in model.modules():
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            yield from ((hooks, key) for key, hook in hooks.items() if isinstance(hook, TokenHook))


def activation_name(module: nn.Module) -> str:
    """Names an activation module as transformers configs do: ``gelu``, ``gelu_pytorch_tanh``, ``quick_gelu``, ..."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    known = {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}
    return known.get(type(module).__name__, type(module).__name__.lower())


def weighted(tokens: Tensor, gates: Tensor) -> Tensor:
    """Scales patch tokens so that their plain mean is the mean weighted by their gates.

    Args:
        tokens: ``(batch, prefix + patches, width)``.
        gates: Weights of the patches, ``(batch, patches)``.
    """
    scale = gates * (gates.shape[1] / gates.sum(1, keepdim=True))
    return tokens * nn.functional.pad(scale, (tokens.shape[1] - gates.shape[1], 0), value=1.0).unsqueeze(-1)


@contextmanager
def masked(attention: nn.Module, gates: Tensor, per_query: tuple[int, int] | None = None) -> Iterator[None]:
    """Hands a pooling attention the logarithms of gates as its ``attn_mask``, for the length of a ``with`` block.

    Args:
        attention: Takes an additive ``attn_mask``.
        gates: Weights of its keys, ``(batch, keys)``.
        per_query: Heads and queries of an ``nn.MultiheadAttention``, which wants ``(batch x heads, queries, keys)``.
    """
    mask = gates.clamp_min(torch.finfo(gates.dtype).tiny).log()[:, None]
    if per_query is None:
        mask = mask[:, None]
    else:
        mask = mask.repeat_interleave(per_query[0], dim=0).expand(-1, per_query[1], -1)
    hook = attention.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"attn_mask": mask}), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()


class VisionTower(ABC):
    """A pre-norm vision transformer seen as ``embed -> run -> pool``.

    A tower owns nothing: it calls the library's own modules, so hooks on them keep working and the composition
    ``pool(run(embed(pixels), 0, depth))`` returns bit for bit what the library returns.

    Attributes:
        module: The vision module of the library, an ``nn.Module``.
        blocks: The module's own container of transformer blocks, a ``ModuleList`` or ``Sequential``.
        num_prefix_tokens: Tokens before the patches (class token, registers).
        grid: Patch rows and columns.
        image_size: Height and width of the input in pixels.
        width: Channels of a token.
        num_heads: Attention heads of a block.
        mlp_width: Hidden units of a block's MLP.
        activation: Name of the MLP activation, e.g. ``"gelu"`` or ``"quick_gelu"``.
        has_class_token: Whether token 0 is a class token.
    """

    has_class_token: bool = True
    module: Any
    blocks: Any
    num_prefix_tokens: int
    grid: tuple[int, int]
    image_size: tuple[int, int]
    width: int
    num_heads: int
    mlp_width: int
    activation: str

    @property
    def num_patches(self) -> int:
        """Patch tokens of one image, prefix tokens excluded."""
        return self.grid[0] * self.grid[1]

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.module.parameters()).dtype

    def embed(self, pixels: Tensor, upto: int = 0) -> Tensor:
        """Returns the tokens that enter block ``upto``.

        Args:
            pixels: Preprocessed images ``(batch, 3, height, width)``.
            upto: Block index; 0 gives the tokens after position embedding and any pre-norm.

        Returns:
            Tokens ``(batch, prefix + patches, width)``.
        """
        return self.run(self._embed(pixels), 0, upto)

    def run(self, tokens: Tensor, start: int, stop: int | None = None, key_bias: Tensor | None = None) -> Tensor:
        """Runs blocks ``start`` to ``stop - 1`` on tokens of any number.

        Args:
            tokens: ``(batch, tokens, width)``, prefix tokens first.
            start: First block.
            stop: One past the last block; the tower's depth when omitted.
            key_bias: Added to the attention logits towards each token in each of these blocks, ``(batch, tokens)``,
                through the library's own mask argument; ``-inf`` hides a token from all others.

        Returns:
            Tokens of the same shape.
        """
        for block in list(self.blocks)[start:stop]:
            tokens = self._run_block(block, tokens, key_bias)
        return tokens

    def __call__(self, pixels: Tensor) -> Tensor:
        """Image features as the library returns them, ``(batch, features)``, not normalised."""
        return self.pool(self.run(self.embed(pixels), 0))

    def keys(self, tokens: Tensor, block: int) -> Tensor:
        """Keys of a block's attention, all heads concatenated, ``(batch, tokens, width)``; computed outside the block.

        Args:
            tokens: Tokens entering ``block``, ``(batch, tokens, width)``.
            block: Block index.
        """
        return self._class_query_and_keys(self.blocks[block], tokens)[1]

    def class_attention(self, tokens: Tensor, block: int) -> Tensor:
        """Attention of the class token to every patch in one block, averaged over heads.

        Computed outside the block from its own norm and projections, so the attention kernel stays untouched.

        Args:
            tokens: Tokens entering ``block``, ``(batch, prefix + patches, width)``.
            block: Block index.

        Returns:
            Probabilities ``(batch, patches)``; they sum to less than one, the rest goes to prefix tokens.

        Raises:
            UserError: If the model has no class token.
        """
        if not self.has_class_token:
            raise UserError("Class attention needs a class token, and this model has none; use another method.")
        query, keys = self._class_query_and_keys(self.blocks[block], tokens)
        query = query.view(len(tokens), self.num_heads, -1)
        keys = keys.view(*tokens.shape[:2], self.num_heads, -1)
        logits = torch.einsum("bhd,bnhd->bhn", query, keys) * query.shape[-1] ** -0.5
        return logits.float().softmax(-1).mean(1)[:, self.num_prefix_tokens :]

    @abstractmethod
    def pool(self, tokens: Tensor, gates: Tensor | None = None) -> Tensor:
        """Turns the tokens after the last block into features ``(batch, features)``.

        Args:
            tokens: ``(batch, prefix + patches, width)``.
            gates: Weights of the patches where patches are averaged or attended to, ``(batch, patches)``.

        Raises:
            UserError: If gates are given and the model pools by anything but its class token, a mean or attention.
        """

    def check_gates(self) -> None:
        """Raises UserError when the model's pooling cannot be gated, before any work is done."""
        self.pool(self._no_tokens(), gates=torch.ones(1, self.num_patches, device=self.device))

    def check_dense(self) -> None:
        """Raises UserError when a pruner is attached to the model, at whatever keep rate."""
        if next(token_hooks(self.module), None) is not None:
            raise UserError("This model is pruned already: detach the pruner first, patchranking.detach(model).")

    @property
    def feature_size(self) -> int:
        """Channels of a feature."""
        with torch.no_grad():
            return self.pool(self._no_tokens()).shape[-1]

    def _no_tokens(self) -> Tensor:
        tokens = torch.zeros(1, self.num_prefix_tokens + self.num_patches, self.width)
        return tokens.to(self.device, self.dtype)

    def _no_gated_pool(self) -> UserError:
        return UserError(
            "This model pools its tokens in a way that cannot be gated: rank with the leave-out or the iterative "
            "search, and fit with --objective imitate."
        )

    @property
    @abstractmethod
    def position_embedding(self) -> Tensor:
        """The model's own position embedding, ``(..., positions, width)``; the patches' come last, row by row."""

    @abstractmethod
    def identity(self) -> Sequence[Tensor]:
        """Weights that tell this model from others and are laid out alike in every library."""

    @abstractmethod
    def _embed(self, pixels: Tensor) -> Tensor: ...

    @abstractmethod
    def _run_block(self, block: Any, tokens: Tensor, key_bias: Tensor | None) -> Tensor: ...

    @abstractmethod
    def _class_query_and_keys(self, block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The class token's query ``(batch, width)`` and all keys ``(batch, tokens, width)`` of a block's attention."""
