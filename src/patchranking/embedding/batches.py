"""The loop behind ``embed``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from patchranking.data import ImageData
from patchranking.data.streams import ImageStream, stream_of
from patchranking.embedding.decode import Work
from patchranking.embedding.embedded import Embedded
from patchranking.embedding.encoder import Encoder
from patchranking.embedding.pipeline import Clock, alive, decoded, decoder_of, encoded
from patchranking.embedding.settings import EmbedSettings
from patchranking.exporting.model import ReadyModel, open_model
from patchranking.methods.attach import pruner_or_method
from patchranking.methods.method import Attachable
from patchranking.pruner import Pruner

__all__ = ["embedded"]


def embedded(
    model: ReadyModel | str,
    data: ImageData | ImageStream | str,
    pruner: Pruner | Attachable | str | Path | None,
    settings: EmbedSettings,
) -> Iterator[Embedded]:
    """See ``embed``."""
    loaded, stream = open_model(model) if isinstance(model, str) else model, stream_of(data)
    given = pruner_or_method(pruner) if isinstance(pruner, str | Path) else pruner
    return _embedded(loaded, stream, Encoder(loaded, given, settings), settings)


def _embedded(model: ReadyModel, stream: ImageStream, encoder: Encoder, settings: EmbedSettings) -> Iterator[Embedded]:
    size, entries = encoder.batch_size, stream.entries()
    batches = iter(lambda: list(islice(entries, size)), [])
    work = (Work(0, number * size, batch) for number, batch in enumerate(batches))
    with alive():
        pictures = decoded(decoder_of(model, stream), work, settings, encoder.device)
        for found in encoded(pictures, encoder, Clock()):
            good = np.array([not error for error in found.errors])
            yield Embedded(
                [key for key, error in zip(found.keys, found.errors, strict=True) if not error],
                found.vectors[good],
                found.sizes[good],
                [(key, error) for key, error in zip(found.keys, found.errors, strict=True) if error],
            )
