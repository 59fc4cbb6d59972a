"""View of a CLIP's text side: texts -> token ids -> unit features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["TextTower"]


@dataclass(frozen=True)
class TextTower:
    """The text encoder of a CLIP, whatever library it is from; calling it encodes texts.

    Attributes:
        tokenize: Turns texts into ids ``(texts, length)``, on the model's device.
        encode: Turns ids into normalised features ``(texts, features)``, as the library does.
        context_length: Maximum number of ids of a text.
        embedding: The module that embeds ids; None where the text encoder is of an unknown kind.
        blocks: The text encoder's transformer blocks, which take ``(texts, length, width)`` first.
        tokenizer: The library's own, by which ``tokenize`` does it.
    """

    tokenize: Callable[[list[str]], Tensor]
    encode: Callable[[Tensor], Tensor]
    context_length: int
    embedding: nn.Embedding | None = None
    blocks: Sequence[Any] = ()
    tokenizer: Any = None

    def __call__(self, texts: list[str]) -> Tensor:
        """Normalised features of texts, ``(texts, features)``."""
        return self.encode(self.tokenize(texts))
