"""View of an open_clip image encoder with the built-in vision transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from open_clip import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.towers.base import VisionTower, activation_name, masked, weighted
from patchranking.towers.text import TextTower

__all__ = ["OpenClipTower", "wrap", "wrap_text"]


def wrap(model: nn.Module) -> OpenClipTower | None:
    """Returns a tower for a CLIP (or its ``visual``) whose image side is open_clip's own transformer, else None."""
    visual = model.visual if isinstance(model, CLIP | CustomTextCLIP) else model
    return OpenClipTower(visual) if isinstance(visual, VisionTransformer) else None


def wrap_text(model: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> TextTower | None:
    """Returns the text side of a CLIP with its tokenizer, else None."""
    if not isinstance(model, CLIP | CustomTextCLIP):
        return None
    built_in: Any = model if isinstance(model, CLIP) else model.text
    known = isinstance(built_in, CLIP | TextTransformer)
    return TextTower(
        tokenize=lambda texts: tokenizer(texts).to(model.logit_scale.device),
        encode=lambda ids: model.encode_text(ids, normalize=True),
        context_length=model.context_length,
        embedding=built_in.token_embedding if known else None,
        blocks=built_in.transformer.resblocks if known else (),
    )


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

    def _run_block(self, block: Any, tokens: Tensor, key_bias: Tensor | None) -> Tensor:
        if key_bias is None:
            return block(tokens, attn_mask=None)
        per_head = key_bias.repeat_interleave(self.num_heads, dim=0)
        return block(tokens, attn_mask=per_head[:, None].expand(-1, tokens.shape[1], -1))

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
