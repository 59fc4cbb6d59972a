"""patchranking pretrain prototypes."""

from __future__ import annotations

from pathlib import Path

from patchranking.commands.common import number, print_left_out, print_skipped
from patchranking.data import load_data
from patchranking.files import make_folder
from patchranking.pretrain.features import HOG, compute_features
from patchranking.pretrain.prototypes import PrototypeSettings, find_prototypes
from patchranking.report.prototypes import write_prototypes
from patchranking.report.text import model_name
from patchranking.towers.load import load_model

__all__ = ["pretrain_prototypes"]


def pretrain_prototypes(
    data: str,
    settings: PrototypeSettings,
    out: Path = Path("runs/prototypes"),
    features: str = HOG,
    limit: int | None = None,
    device: str = "cpu",
) -> None:
    """Clusters images, says how typical each is, and writes a page of the most and the least typical ones.

    Args:
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], or folders joined by commas.
        settings: How to cluster.
        out: Folder for prototypes.parquet, prototypes.html and the features.
        features: What images are compared by: hog, histograms of gradients, which know of no network; or a model, demo,
            open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        limit: Maximum number of images, drawn by seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    images = load_data(data, limit, settings.seed, "train")
    model = None if features == HOG else load_model(features, device)
    folder = make_folder(out)
    found = find_prototypes(images, compute_features(images, model, folder / "features"), settings, print)
    found.write(folder / "prototypes.parquet")
    title = (
        f"Prototypes of {images.name} ({images.split}) by {'gradients' if features == HOG else model_name(features)}"
    )
    write_prototypes(found, images, folder / "prototypes.html", title)
    totals = found.about["totals"]
    print(
        f"{totals['in']} images in = {totals['out']} clustered + {totals['failed']} skipped; "
        f"{found.about['clusters']} clusters, Davies-Bouldin index {number(found.about['davies_bouldin'], '.3f')}; "
        f"wrote {folder}"
    )
    print_skipped({key: error for key, error in zip(found.keys, found.errors, strict=True) if error})
    print_left_out(images)
