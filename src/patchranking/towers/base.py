"""One view of many vision transformers: embed, run blocks, pool."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from patchranking.errors import UserError
from patchranking.towers.hooks import token_hooks

__all__ = ["Attended", "VisionTower", "activation_name", "masked", "weighted"]


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
    return tokens * F.pad(scale, (tokens.shape[1] - gates.shape[1], 0), value=1.0).unsqueeze(-1)


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


class Attended(NamedTuple):
    """What the first half of a block leaves, see ``VisionTower.attend``.

    Attributes:
        tokens: The tokens with what attention adds to them, ``(batch, tokens, width)``.
        queries: Queries of the attention, ``(batch, heads, tokens, head width)``.
        keys: Its keys, of the same shape.
    """

    tokens: Tensor
    queries: Tensor
    keys: Tensor


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
        mlp_layers: Its linear layers: 2, or 3 where one gates another; two in one count as two.
        activation: Name of the MLP activation, e.g. ``"gelu"`` or ``"quick_gelu"``.
        has_class_token: Whether token 0 is a class token.
        any_size: Whether the encoder fits its positions to images of any size, so that ``image_size`` is but the usual.
        rotary: Whether blocks rotate queries and keys by where their patches are, so that ``positions`` count.
    """

    has_class_token: bool = True
    any_size: bool = False
    rotary: bool = False
    mlp_layers: int = 2
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
        """Type of the tokens that blocks take: that of their matrices, whatever their norms are kept in."""
        weights = list(self.blocks.parameters())
        matrices = [weight for weight in weights if weight.ndim > 1][:1]
        return next(weight.dtype for weight in (*matrices, *weights) if weight.is_floating_point())

    def embed(self, pixels: Tensor, upto: int = 0) -> Tensor:
        """Returns the tokens that enter block ``upto``.

        Args:
            pixels: Preprocessed images ``(batch, 3, height, width)``.
            upto: Block index; 0 gives the tokens after position embedding and any pre-norm.

        Returns:
            Tokens ``(batch, prefix + patches, width)``.
        """
        return self.run(self._embed(pixels), 0, upto)

    def run(
        self,
        tokens: Tensor,
        start: int,
        stop: int | None = None,
        key_bias: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Runs blocks ``start`` to ``stop - 1`` on tokens of any number.

        Args:
            tokens: ``(batch, tokens, width)``, prefix tokens first.
            start: First block.
            stop: One past the last block; the tower's depth when omitted.
            key_bias: Added to the attention logits towards each token in each of these blocks, ``(batch, tokens)``,
                through the library's own mask argument; ``-inf`` hides a token from all others.
            positions: Cell of the grid that each patch is from, int64 ``(batch, patches)``, row by row; tokens between
                the prefix and these patches are in no cell. Only blocks that rotate ask for it, and take tokens for the
                prefix and all cells in order when it is omitted.

        Returns:
            Tokens of the same shape.

        Raises:
            UserError: If blocks rotate, and there are fewer patches than places.
        """
        if self.rotary and positions is None and tokens.shape[1] < self.num_prefix_tokens + self.num_patches:
            raise self._out_of_place(tokens, self.num_patches)
        blocks = range(self.depth)[start:stop]
        untouched = key_bias is None or torch.compiler.is_compiling()
        hooks = [] if untouched else [hook for block in blocks for hook in self.mask_hooks(block)]
        try:
            for block in blocks:
                turns = self.turns(block)
                if positions is not None:
                    turns = self.turns_at(turns, tokens, positions)
                tokens = self.blocks[block](tokens, **self.mask_arguments(tokens, key_bias), **turns)
        finally:
            for hook in hooks:
                hook.remove()
        return tokens

    def __call__(self, pixels: Tensor) -> Tensor:
        """Image features as the library returns them, ``(batch, features)``, not normalised."""
        return self.pool(self.run(self.embed(pixels), 0))

    def attend(
        self, tokens: Tensor, block: int, key_bias: Tensor | None = None, positions: Tensor | None = None
    ) -> Attended:
        """Runs the first half of a block, its attention, and shows the queries and keys that it computed.

        ``feed_forward(attend(tokens, block).tokens, block)`` is ``run(tokens, block, block + 1)``, up to rounding and
        without dropout; between the two, a method may merge or drop tokens. Both halves call the sub-modules of the
        block, not the block, so its hooks are passed by.

        Args:
            tokens: Tokens entering ``block``, ``(batch, tokens, width)``.
            block: Block index.
            key_bias: As in ``run``.
            positions: As in ``run``.

        Raises:
            UserError: If the block is not norm, attention, norm, MLP, each with plain projections, or patches of a
                rotary model have no place.
        """
        part = self.blocks[block]
        self._check_plain(part)
        self._check_places(tokens, positions)
        queries, keys, values = (some.transpose(1, 2) for some in self._queries_keys_values(part, tokens))
        turns = self.turns_at(self.turns(block), tokens, positions)
        queries, keys = self._turned(part, queries, turns), self._turned(part, keys, turns)
        mask = None if key_bias is None else key_bias[:, None, None].to(queries.dtype)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return Attended(self._add_attention(part, tokens, mixed.transpose(1, 2).flatten(2)), queries, keys)

    def feed_forward(self, tokens: Tensor, block: int) -> Tensor:
        """Runs the second half of a block, its MLP, on tokens of any number that ``attend`` has left."""
        return self._feed_forward(self.blocks[block], tokens)

    def class_attention(self, tokens: Tensor, block: int, positions: Tensor | None = None) -> Tensor:
        """Attention of the class token to every patch in one block, averaged over heads.

        Computed outside the block from its own norm and projections, so the attention kernel stays untouched.

        Args:
            tokens: Tokens entering ``block``, ``(batch, prefix + patches, width)``.
            block: Block index.
            positions: As in ``run``.

        Returns:
            Probabilities ``(batch, patches)``; they sum to less than one, the rest goes to prefix tokens.

        Raises:
            UserError: If the model has no class token, or patches of a rotary model have no place.
        """
        self._check_class_token()
        self._check_places(tokens, positions)
        part = self.blocks[block]
        self._check_plain(part)
        query, keys = self._class_query_and_keys(part, tokens)
        turns = self.turns_at(self.turns(block), tokens, positions)
        return self._class_row(query, self._turned(part, keys.transpose(1, 2), turns))

    def class_attention_in(self, attended: Attended) -> Tensor:
        """The same from a block whose first half has run: one row of its attention, computed from what that shows."""
        self._check_class_token()
        return self._class_row(attended.queries[:, :, 0], attended.keys)

    def _check_class_token(self) -> None:
        if not self.has_class_token:
            raise UserError("Class attention needs a class token, and this model has none; use another method.")

    def _check_places(self, tokens: Tensor, positions: Tensor | None) -> None:
        """Raises UserError when blocks rotate and not every patch among the tokens has a place in the model's grid."""
        places = self.num_patches if positions is None else positions.shape[1]
        if self.rotary and tokens.shape[1] != self.num_prefix_tokens + places:
            raise self._out_of_place(tokens, places)

    def _out_of_place(self, tokens: Tensor, places: int) -> UserError:
        return UserError(
            f"This model rotates {places} patches by their places, and {tokens.shape[1] - self.num_prefix_tokens} "
            "came: give it images of its own size here."
        )

    def _class_row(self, query: Tensor, keys: Tensor) -> Tensor:
        logits = torch.einsum("bhd,bhnd->bhn", query, keys) * query.shape[-1] ** -0.5
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

    def check_mask(self) -> None:
        """Raises UserError when the model takes no mask, before any work is done."""
        tokens = self._no_tokens()
        self.mask_arguments(tokens, torch.zeros(tokens.shape[:2], device=self.device))

    def check_gates(self) -> None:
        """Raises UserError when the model takes no mask, or no gates where it pools, before any work is done."""
        self.check_mask()
        self.pool(self._no_tokens(), gates=torch.ones(1, self.num_patches, device=self.device))

    def check_plain(self) -> None:
        """Raises UserError when some block is not norm, attention, norm, MLP, each with plain projections."""
        for block in self.blocks:
            self._check_plain(block)

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
    def position_embedding(self) -> Tensor | None:
        """The model's own position embedding, ``(..., positions, width)``; the patches' come last, row by row.

        None where positions are told by rotations alone.
        """

    @abstractmethod
    def identity(self) -> Sequence[Tensor]:
        """Weights that tell this model from others and are laid out alike in every library."""

    @abstractmethod
    def _embed(self, pixels: Tensor) -> Tensor: ...

    @abstractmethod
    def mask_arguments(self, tokens: Tensor, key_bias: Tensor | None) -> dict[str, Tensor | None]:
        """The arguments by which a block adds ``key_bias``, as in ``run``, to its attention logits."""

    def mask_hooks(self, block: int) -> list[RemovableHandle]:
        """Puts hooks on a block that a mask would slow down by more than its own work; they change no result."""
        return []

    def turns(self, block: int) -> dict[str, Any]:
        """The argument by which the library tells a block how to rotate all patches in order; empty where none does."""
        return {}

    def turns_at(self, given: Mapping[str, Any], tokens: Tensor, positions: Tensor | None) -> dict[str, Any]:
        """The same argument for some of the patches; empty where blocks do not rotate.

        Args:
            given: The arguments that a block is given for all patches in order, those of ``turns`` among them.
            tokens: What enters the block.
            positions: As in ``run``.
        """
        return {}

    def _turned(self, block: Any, heads: Tensor, turns: Mapping[str, Any]) -> Tensor:
        """Queries or keys, ``(batch, heads, tokens, head width)``, as the block rotates them."""
        return heads

    @abstractmethod
    def _check_plain(self, block: Any) -> None:
        """Raises UserError when a block is not what the methods below take it for."""

    @abstractmethod
    def _class_query_and_keys(self, block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The class token's query ``(batch, heads, head width)``, and all keys as ``_queries_keys_values`` has them."""

    @abstractmethod
    def _queries_keys_values(self, block: Any, tokens: Tensor) -> tuple[Tensor, ...]:
        """What a block's attention mixes, each ``(batch, tokens, heads, head width)``."""

    @abstractmethod
    def _add_attention(self, block: Any, tokens: Tensor, mixed: Tensor) -> Tensor:
        """Adds the mixed values of all heads, ``(batch, tokens, width)``, to tokens as the block does."""

    @abstractmethod
    def _feed_forward(self, block: Any, tokens: Tensor) -> Tensor: ...
