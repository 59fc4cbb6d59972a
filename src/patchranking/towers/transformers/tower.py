"""View of the image encoders of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from patchranking.errors import UserError
from patchranking.towers.base import VisionTower
from patchranking.towers.transformers.families import FAMILIES, Kind, family_name

__all__ = ["TransformersTower"]

_MASKED_ATTENTION = ("eager", "sdpa")


def _pair(size: int | Iterable[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class TransformersTower(VisionTower):
    """The image side of a transformers model; ``families.CLASSES`` says what its features are.

    ``CLIPModel`` and its like have ``image_embeds``, image encoders their ``pooler_output``, and classifiers, as those
    of timm, their logits.
    """

    def __init__(self, model: Any, kind: Kind) -> None:
        self._parts, self._pool = FAMILIES[family_name(model)], kind.pool
        self.module = getattr(model, kind.encoder, model)
        self.blocks = attrgetter(self._parts.blocks)(self.module)
        self.norm = attrgetter(self._parts.norm)(self.module)
        self._projection = nn.Identity() if kind.head is None else getattr(model, kind.head)
        config = self.module.config
        self.num_prefix_tokens = self._parts.prefix + getattr(config, "num_register_tokens", 0)
        self.has_class_token = self._parts.prefix > 0
        self.any_size = self._parts.any_size
        self.image_size = _pair(self._size(config))
        height, width = _pair(config.patch_size)
        self.grid = (self.image_size[0] // height, self.image_size[1] // width)
        self.width = config.hidden_size
        self.num_heads = config.num_attention_heads
        mlp = self.blocks[0].mlp
        self.mlp_width = mlp.fc2.in_features if hasattr(mlp, "fc2") else mlp.down_proj.in_features
        self.mlp_layers = 3 if hasattr(mlp, "gate_proj") else 2
        self.activation = "silu" if getattr(config, "use_swiglu_ffn", False) else config.hidden_act

    def pool(self, tokens: Tensor, gates: Tensor | None = None) -> Tensor:
        return self._projection(self._pool(self, tokens, gates))

    @property
    def position_embedding(self) -> Tensor | None:
        if self._parts.positions is None:
            return None
        embedding = attrgetter(self._parts.positions)(self.module)
        weight = embedding.weight if isinstance(embedding, nn.Embedding) else embedding
        if weight.shape[-2] != self._parts.prefix + self.num_patches:
            raise UserError("This model fits its positions to the size of the image, and low-res cannot: leave it out.")
        return weight

    def identity(self) -> Sequence[Tensor]:
        patches, mlp = attrgetter(self._parts.patches)(self.module), self.blocks[-1].mlp
        first = mlp.fc1 if hasattr(mlp, "fc1") else mlp.up_proj
        return patches.weight, first.weight, self.norm.weight

    def mask_arguments(self, tokens: Tensor, key_bias: Tensor | None) -> dict[str, Tensor | None]:
        if key_bias is None:
            return {"attention_mask": None} if self._parts.maskable else {}
        if not self._parts.maskable:
            raise UserError(
                f"The attention of {type(self.module).__name__} takes no mask: rank with the leave-out or the "
                "iterative search, and fit with --objective imitate --merge false."
            )
        kernel = self.module.config._attn_implementation
        if kernel not in _MASKED_ATTENTION:
            raise UserError(
                f"The attention kernel '{kernel}' takes no mask that weighs tokens: load the model with "
                "attn_implementation='sdpa', or use a pruner fitted with --merge false."
            )
        return {"attention_mask": key_bias[:, None, None]}

    def _size(self, config: Any) -> int | Iterable[int]:
        size: int | Iterable[int] = config.image_size
        return size

    def _embed(self, pixels: Tensor) -> Tensor:
        tokens = self.module.embeddings(pixels)
        return tokens if self._parts.pre_norm is None else getattr(self.module, self._parts.pre_norm)(tokens)

    def _check_plain(self, block: Any) -> None:
        """All blocks of these models are alike."""

    def _class_query_and_keys(self, block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if len(self._parts.projections) == 1:
            queries, keys, _ = self._queries_keys_values(block, tokens)
            return queries[:, 0], keys
        query, key, _ = self._projections(block)
        normed = getattr(block, self._parts.norms[0])(tokens)
        return self._by_head(query(normed[:, 0])), self._by_head(key(normed))

    def _queries_keys_values(self, block: Any, tokens: Tensor) -> tuple[Tensor, ...]:
        normed = getattr(block, self._parts.norms[0])(tokens)
        together = torch.cat([project(normed) for project in self._projections(block)], -1)
        return tuple(self._by_head(part) for part in together.chunk(3, -1))

    def _projections(self, block: Any) -> list[nn.Linear]:
        attention = getattr(block, self._parts.attention)
        return [getattr(attention, name) for name in self._parts.projections]

    def _by_head(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1))

    def _add_attention(self, block: Any, tokens: Tensor, mixed: Tensor) -> Tensor:
        attention = getattr(block, self._parts.attention)
        return tokens + self._passed(block, 0, getattr(attention, self._parts.out)(mixed))

    def _feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        return tokens + self._passed(block, 1, block.mlp(getattr(block, self._parts.norms[1])(tokens)))

    def _passed(self, block: Any, half: int, tokens: Tensor) -> Tensor:
        return reduce(lambda passing, name: getattr(block, name)(passing), self._parts.after[half], tokens)
