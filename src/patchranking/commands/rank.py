"""patchranking rank."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from patchranking.commands.common import load, make_folder, number, print_skipped
from patchranking.data import load_data
from patchranking.ranking.job import rank_dataset
from patchranking.ranking.search import ScoreName, SearchName, SearchSettings

__all__ = ["rank"]


def rank(
    model: str,
    data: str,
    out: Path = Path("runs/rank"),
    search: SearchName = "sketched",
    score: ScoreName = "preservation",
    engine: Literal["local", "ray"] = "local",
    block: int = 3,
    window: int = 2,
    stride: int = 1,
    group: int = 4,
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Finds which patches of each image matter (Phase I) and stores the rankings; resumes after a kill.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders joined by commas.
        out: Folder for the Parquet shards and the manifest.
        search: How the patches are ranked; sketched-quality takes twice as long as sketched, the others far longer.
        score: What counts as damage: to the image feature, to the true class (needs labels), to the likeliest class.
        engine: Where to compute: in this process, or on a Ray cluster, RAY_ADDRESS or this machine.
        block: Patches are removed before this block.
        window: For leave-out: side of the removed window in patches.
        stride: For leave-out: step between windows in patches.
        group: For iterative: patches removed a round.
        limit: At most so many images, drawn by seed.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    loaded = load(model, device, seed)
    images = load_data(data, limit, seed, "train")
    make_folder(out)
    settings = SearchSettings(search, score, block, window, stride, group, seed)
    manifest = rank_dataset(loaded, images, out, settings, engine)
    totals, speed = manifest["totals"], manifest["images_per_second"]
    print(
        f"{totals['in']} images in = {totals['ranked']} ranked + {totals['skipped']} skipped; "
        f"{number(speed, '.2f')} images/s; wrote {out}"
    )
    if manifest["settings"]["needs_labels"]:
        print("these rankings have seen the true classes: they need labels, and are an oracle on the images ranked")
    print_skipped(manifest["skipped"])
