"""Views of open_clip's image encoders: the built-in vision transformer, and those of timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from open_clip import CLIP, CoCa, CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from timm import create_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from patchranking.errors import UserError
from patchranking.towers import timm
from patchranking.towers.base import VisionTower, activation_name, masked, weighted
from patchranking.towers.hooks import TokenHook
from patchranking.towers.text import TextTower

__all__ = ["OpenClipTower", "check_configuration", "wrap", "wrap_text"]


def wrap(model: nn.Module) -> VisionTower | None:
    """Returns a tower for a CLIP, a CoCa or its ``visual``, open_clip's own transformer or one of timm's, else None.

    Raises:
        UserError: If the image side is anything but a vision transformer.
    """
    visual: Any = model.visual if isinstance(model, CLIP | CustomTextCLIP | CoCa) else model
    if isinstance(visual, VisionTransformer):
        return OpenClipTower(visual)
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    if trunk is not visual and (tower := timm.wrap(trunk, visual.head)) is not None:
        return tower
    if trunk is not model:
        raise _unsupported(f"This {type(model).__name__}", type(trunk).__name__)
    return None


def check_configuration(name: str, configuration: Mapping[str, Any]) -> None:
    """Raises UserError, before any weights are there, where a model would be refused by its configuration.

    Args:
        name: For the sentence.
        configuration: As ``open_clip.get_model_config`` returns it.
    """
    vision = configuration["vision_cfg"]
    if trunk := vision.get("timm_model_name"):
        with torch.device("meta"):
            model = create_model(trunk)
        if timm.wrap(model) is None:
            raise _unsupported(name, type(model).__name__)
    elif isinstance(vision["layers"], Sequence):
        raise _unsupported(name, "ModifiedResNet")


def _unsupported(model: str, tower: str) -> UserError:
    return UserError(
        f"{model} is not supported, its image tower is a {tower}: patchranking needs a vision transformer with one "
        "grid of absolute or rotary positions, as ViT-B-16, ViT-B-16-SigLIP2 and PE-Core-B-16 have."
    )


def wrap_text(model: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> TextTower | None:
    """Returns the text side of a CLIP or CoCa with its tokenizer, else None."""
    if not isinstance(model, CLIP | CustomTextCLIP | CoCa):
        return None
    built_in: Any = model if isinstance(model, CLIP) else model.text
    known = isinstance(built_in, CLIP | TextTransformer)
    return TextTower(
        tokenize=lambda texts: tokenizer(texts).to(model.logit_scale.device),
        encode=lambda ids: model.encode_text(ids, normalize=True),
        context_length=built_in.context_length,
        embedding=built_in.token_embedding if known else None,
        blocks=built_in.transformer.resblocks if known else (),
        tokenizer=tokenizer,
    )


class _SequenceFirst(TokenHook):
    """Lays out what enters PyTorch's attention as it goes through it when there is a mask, sequence before batch.

    Otherwise it projects queries, keys and values of each position in a multiplication of its own.
    """

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tokens = inputs[0].transpose(0, 1).contiguous().transpose(0, 1)
        return (tokens, tokens, tokens), named


class OpenClipTower(VisionTower):
    """The image side of an open_clip CLIP; features are those of ``encode_image``, not normalised."""

    num_prefix_tokens = 1

    def __init__(self, visual: VisionTransformer) -> None:
        if not visual.transformer.batch_first:
            raise UserError("patchranking needs an open_clip vision transformer with batch_first=True.")
        self.module = visual
        self.blocks = visual.transformer.resblocks
        self.grid = tuple(visual.grid_size)
        self.image_size = tuple(visual.image_size)
        self.width = visual.transformer.width
        self.num_heads = self.blocks[0].attn.num_heads
        self.mlp_width = self.blocks[0].mlp.c_fc.out_features
        self.activation = activation_name(self.blocks[0].mlp.gelu)

    def pool(self, tokens: Tensor, gates: Tensor | None = None) -> Tensor:
        module = self.module
        if gates is None or (module.pool_type == "tok" and module.attn_pool is None):
            pooled, _ = module._pool(tokens)
        elif module.attn_pool is not None and module.attn_pool_contrastive is None:
            attention, everything = module.attn_pool.attn, F.pad(gates, (self.num_prefix_tokens, 0), value=1.0)
            with masked(attention, everything, (attention.num_heads, len(module.attn_pool.query))):
                pooled, _ = module._pool(tokens)
        elif module.attn_pool is not None or module.pool_type != "avg":
            raise self._no_gated_pool()
        elif module.final_ln_after_pool:
            pooled, _ = module._pool(weighted(tokens, gates))
        else:
            pooled, _ = module._global_pool(weighted(module.ln_post(tokens), gates))
        return pooled if module.proj is None else pooled @ module.proj

    @property
    def position_embedding(self) -> Tensor:
        return self.module.positional_embedding

    def identity(self) -> Sequence[Tensor]:
        return self.module.conv1.weight, self.blocks[-1].mlp.c_fc.weight, self.module.ln_post.weight

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.module._embeds(pixels)

    def mask_arguments(self, tokens: Tensor, key_bias: Tensor | None) -> dict[str, Tensor | None]:
        if key_bias is None:
            return {"attn_mask": None}
        per_head = key_bias.repeat_interleave(self.num_heads, dim=0)
        return {"attn_mask": per_head[:, None].expand(-1, tokens.shape[1], -1)}

    def mask_hooks(self, block: int) -> list[RemovableHandle]:
        attention = self.blocks[block].attn
        if not isinstance(attention, nn.MultiheadAttention):
            return []
        return [attention.register_forward_pre_hook(_SequenceFirst(), with_kwargs=True)]

    def _check_plain(self, block: Any) -> None:
        if not isinstance(block, ResidualAttentionBlock):
            raise UserError("Attention cannot be read in open_clip's custom blocks: use another method.")

    def _class_query_and_keys(self, block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        attention, normed = block.attn, block.ln_1(tokens)
        q_weight, k_weight, _ = attention.in_proj_weight.chunk(3)
        q_bias, k_bias, _ = attention.in_proj_bias.chunk(3)
        query, keys = F.linear(normed[:, 0], q_weight, q_bias), F.linear(normed, k_weight, k_bias)
        return query.unflatten(-1, (self.num_heads, -1)), keys.unflatten(-1, (self.num_heads, -1))

    def _queries_keys_values(self, block: Any, tokens: Tensor) -> tuple[Tensor, ...]:
        together = F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias)
        return together.unflatten(-1, (3, self.num_heads, -1)).unbind(2)

    def _add_attention(self, block: Any, tokens: Tensor, mixed: Tensor) -> Tensor:
        return tokens + block.ls_1(block.attn.out_proj(mixed))

    def _feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
