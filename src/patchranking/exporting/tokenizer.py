"""A tokenizer as one file that the library ``tokenizers`` reads by itself."""

from __future__ import annotations

from typing import Any

import torch

from patchranking.errors import MissingExtraError
from patchranking.extras import import_extra
from patchranking.towers import TextTower

__all__ = ["NEEDS_TOKENIZERS", "portable"]

NEEDS_TOKENIZERS = ("tokenizers", "Texts need tokenizers", "transformers")
_SAMPLES = ["a photo of a cat.", "Two café tables, 3 chairs & a dog's bowl!", "", "many words " * 100]


def portable(text: TextTower) -> Any | None:
    """The tokenizer of a text encoder, with padding and truncation to the length that this takes.

    Args:
        text: The text encoder.

    Returns:
        A ``tokenizers.Tokenizer`` that gives the same ids as the library's own; None where there is none, or the
        library also does something else to texts.
    """
    try:
        tokenizers = import_extra(*NEEDS_TOKENIZERS)
    except MissingExtraError:
        return None
    own = getattr(text.tokenizer, "tokenizer", text.tokenizer)
    if hasattr(own, "backend_tokenizer"):
        found, padding = tokenizers.Tokenizer.from_str(own.backend_tokenizer.to_str()), own.pad_token
    elif hasattr(own, "bpe_ranks"):
        found, padding = _of_open_clip(own, tokenizers), own.decoder[0]
    else:
        return None
    found.enable_truncation(text.context_length)
    found.enable_padding(length=text.context_length, pad_id=found.token_to_id(padding), pad_token=padding)
    return found if _same_ids(found, text) else None


def _same_ids(tokenizer: Any, text: TextTower) -> bool:
    """Whether texts get the same ids, padding of different lengths aside."""
    expected = text.tokenize(_SAMPLES).cpu()
    ids = torch.tensor([found.ids for found in tokenizer.encode_batch(_SAMPLES)])
    length = expected.shape[1]
    return torch.equal(ids[:, :length], expected) and bool((ids[:, length:] == tokenizer.padding["pad_id"]).all())


def _of_open_clip(own: Any, tokenizers: Any) -> Any:
    """CLIP's byte pairs, from the tables of open_clip's tokenizer."""
    start, end = (own.decoder[number] for number in own.all_special_ids[:2])
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    pieces = tokenizers.models.BPE(own.encoder, list(own.bpe_ranks), unk_token=end, end_of_word_suffix="</w>")
    found = tokenizers.Tokenizer(pieces)
    found.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
    )
    found.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found.post_processor = tokenizers.processors.TemplateProcessing(
        f"{start} $A {end}", special_tokens=[(token, own.encoder[token]) for token in (start, end)]
    )
    return found
