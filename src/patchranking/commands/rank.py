"""patchranking rank."""

from __future__ import annotations

from pathlib import Path

from patchranking.commands.common import number, print_left_out, print_skipped
from patchranking.data import load_data
from patchranking.ranking import job
from patchranking.ranking.search import SearchSettings
from patchranking.towers.load import load_model

__all__ = ["rank"]


def rank(
    model: str,
    data: str,
    settings: SearchSettings,
    out: Path = Path("runs/rank"),
    engine: job.EngineName = "local",
    limit: int | None = None,
    device: str = "cpu",
) -> None:
    """Finds which patches of each image matter (Phase I) and stores the rankings; resumes after a kill.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders joined by commas.
        settings: How to search.
        out: Folder for the Parquet shards and the manifest.
        engine: Where to compute: in this process, or on a Ray cluster, RAY_ADDRESS or this machine.
        limit: Maximum number of images, drawn by seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    loaded, images = load_model(model, device), load_data(data, limit, settings.seed, "train")
    manifest = job.rank(loaded, images, out, settings, engine)
    totals, speed = manifest["totals"], manifest["images_per_second"]
    print(
        f"{totals['in']} images in = {totals['ranked']} ranked + {totals['skipped']} skipped; "
        f"{number(speed, '.2f')} images/s; wrote {out}"
    )
    if manifest["settings"]["needs_labels"]:
        print("these rankings have seen the true classes: they need labels, and are an oracle on the images ranked")
    print_skipped(manifest["skipped"])
    print_left_out(images)
