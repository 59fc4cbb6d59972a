"""Learnable tokens of a CLIP's two encoders (paper, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from patchranking.errors import UserError

__all__ = ["TOKENS", "Prompts", "TokensName"]

TokensName = Literal["text", "visual", "both"]
TOKENS: tuple[str, ...] = get_args(TokensName)
_STD = 0.02


class Prompts(nn.Module):
    """Text context that replaces the template, visual tokens next to the patches, or both.

    Args:
        tokens: ``text``, ``visual`` or ``both``.
        text_width: Channels of the text encoder's tokens.
        width: Channels of the image encoder's tokens.
        num_tokens: Tokens of each encoder.
        depth: Levels: blocks before which fresh tokens replace the previous ones; 1 is shallow.
        coupled: Whether visual tokens are a learned linear map of the text tokens, the paper's ``M P_t``, or free.
        class_specific: Whether each class has a text context of its own, or all share one.
        class_names: The classes tuned on; none when tuned on captions.
        features: Size of a feature, when there are classes.

    Attributes:
        class_features: Unit features of the tuned classes, ``(classes, features)``, set when the tuning is done.

    Raises:
        UserError: If there is no such kind of tokens, there are none of them, contexts of the classes' own are to be
            mapped to visual tokens, or there are no classes to have them.
    """

    class_features: Tensor
    context: nn.Parameter | None
    free: nn.Parameter | None
    couplings: nn.ModuleList | None

    def __init__(
        self,
        tokens: str,
        text_width: int,
        width: int,
        num_tokens: int = 16,
        depth: int = 1,
        coupled: bool = True,
        class_specific: bool = False,
        class_names: Sequence[str] = (),
        features: int = 0,
    ) -> None:
        super().__init__()
        if tokens not in TOKENS:
            raise UserError(f"Unknown tokens '{tokens}': choose from {', '.join(TOKENS)}.")
        if num_tokens < 1 or depth < 1:
            raise UserError(f"Learnable tokens need num_tokens and a depth of 1 or more, not {num_tokens} and {depth}.")
        if class_specific and tokens == "both" and coupled:
            raise UserError("A context for each class cannot be mapped to visual tokens: choose free visual tokens.")
        if class_specific and not class_names:
            raise UserError("There are no classes to have a context of their own.")
        self.config: dict[str, Any] = {
            "tokens": tokens,
            "text_width": text_width,
            "width": width,
            "num_tokens": num_tokens,
            "depth": depth,
            "coupled": coupled,
            "class_specific": class_specific,
            "class_names": list(class_names),
            "features": features,
        }
        self.tokens, self.class_names = tokens, list(class_names)
        owners = (len(class_names),) if class_specific else ()
        self.register_buffer("class_features", torch.zeros(len(class_names), features))
        self.context = self.couplings = self.free = None
        if tokens != "visual":
            self.context = nn.Parameter(_STD * torch.randn(depth, *owners, num_tokens, text_width))
        if tokens == "both" and coupled:
            self.couplings = nn.ModuleList(nn.Linear(text_width, width) for _ in range(depth))
        elif tokens != "text":
            self.free = nn.Parameter(_STD * torch.randn(depth, num_tokens, width))

    def start_from(self, embedded: Tensor, patches: Tensor) -> None:
        """Begins where the model is at home, since random tokens throw it far off.

        Args:
            embedded: Embedding of a phrase, ``(words, text width)``: text tokens start as its repetitions, its end next
                to the class name.
            patches: Mean patch that enters each level, ``(depth, width)``: where visual tokens start.
        """
        with torch.no_grad():
            if self.context is not None:
                number = self.context.shape[-2]
                repeated = embedded.repeat(math.ceil(number / len(embedded)), 1)[-number:]
                self.context[0] = repeated
            if self.couplings is not None:
                for couple, patch in zip(self.couplings, patches, strict=True):
                    assert isinstance(couple, nn.Linear)
                    couple.bias.copy_(patch)
            if self.free is not None:
                self.free.add_(patches[:, None])

    def visual(self) -> Tensor | None:
        """The visual tokens, ``(depth, num_tokens, width)``, or None."""
        if self.couplings is not None and self.context is not None:
            return torch.stack([couple(own) for couple, own in zip(self.couplings, self.context, strict=True)])
        return self.free
