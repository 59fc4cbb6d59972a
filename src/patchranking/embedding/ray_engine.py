"""Embeds the shards of a job on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchranking.cluster import on_ray, unseen
from patchranking.data.streams import ImageStream
from patchranking.embedding.encoder import recorded
from patchranking.embedding.index import read_manifest
from patchranking.embedding.listed import Listed
from patchranking.embedding.settings import EmbedSettings
from patchranking.embedding.shards import ShardEmbedder
from patchranking.embedding.store import MANIFEST, store_of
from patchranking.exporting.model import open_model
from patchranking.towers.load import load_on_worker

__all__ = ["embed_on_ray"]


def embed_on_ray(embedder: ShardEmbedder, shards: Sequence[int], progress: Callable[[int], None]) -> None:
    """Embeds shards on Ray; see ``on_ray``.

    All nodes see the images, local models and the folder of the vectors under the same paths. Each actor loads the
    model once, by its name, and a fitted pruner from the folder. On CPUs of the same kind the files equal those of the
    local engine byte for byte: the same shards make the same batches.

    Args:
        embedder: The job.
        shards: Which shards.
        progress: Is told numbers of images done, shard by shard.

    Raises:
        UserError: As ``on_ray`` does, and if a worker cannot load the model or see the folder.
    """
    device = embedder.encoder.device
    job = _Job(
        model=embedder.model.name,
        device=device.type,
        stream=embedder.stream,
        settings=embedder.settings,
        batch_size=embedder.encoder.batch_size,
        failed=embedder.failed,
        folder=embedder.store.folder.resolve(),
    )
    for images in on_ray(job, shards, device):
        progress(images)


@dataclass(frozen=True)
class _Job:
    """All a worker needs to know."""

    model: str
    device: str
    stream: ImageStream
    settings: EmbedSettings
    batch_size: int
    failed: bool
    folder: Path

    def start(self) -> Callable[[int], int]:
        if not (self.folder / MANIFEST).exists():
            raise unseen(self.folder)
        model = load_on_worker(open_model, self.model, self.device)
        manifest = read_manifest(self.folder)
        encoder = recorded(model, self.folder, manifest, self.batch_size)
        store, listed = store_of(self.folder, manifest["format"]), Listed(self.folder / "_list")
        embedder = ShardEmbedder(model, self.stream, encoder, self.settings, store, listed, self.failed)

        def embed(shard: int) -> int:
            done: list[int] = []
            embedder.embed([shard], done.append)
            return sum(done)

        return embed
