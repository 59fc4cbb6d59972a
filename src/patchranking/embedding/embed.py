"""Vectors of images one batch after the other, for Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from patchranking.embedding.settings import EmbedSettings

if TYPE_CHECKING:
    from patchranking.data import ImageData
    from patchranking.data.streams import ImageStream
    from patchranking.embedding.embedded import Embedded
    from patchranking.exporting.model import ReadyModel
    from patchranking.methods.method import Attachable
    from patchranking.pruner import Pruner

__all__ = ["embed"]


def embed(
    model: ReadyModel | str,
    data: ImageData | ImageStream | str,
    pruner: Pruner | Attachable | str | Path | None = None,
    settings: EmbedSettings = EmbedSettings(),  # noqa: B008
) -> Iterator[Embedded]:
    """Encodes images of any number, decoded ahead of the model, in their order; the model stays as it is.

    Examples:
        >>> for batch in patchranking.embed("demo", "photos", pruner="cls-attention"):  # doctest: +SKIP
        ...     index.add(batch.keys, batch.vectors)

    Args:
        model: The model, or its MODEL argument.
        data: The images, or their DATA argument; see ``load_stream``.
        pruner: A pruner that was fitted to the model, its folder, or the name of a method that needs no fit.
        settings: How to embed.

    Returns:
        An iterator over batches. Every image is in one, embedded or failed.

    Raises:
        UserError: If the model, the data or the pruner cannot be used, here; or, later, if a worker process dies.
    """
    from patchranking.embedding.batches import embedded  # here, so that `embed --help` need not wait for torch

    return embedded(model, data, pruner, settings)
