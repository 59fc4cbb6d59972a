"""Measures whether images that are far from their prototype are the untypical ones, on scenes where that is known.

    python benchmarks/prototypes.py --features hog demo --out benchmarks/results/prototypes-demo.json

Scenes of the demo are untypical by how many shapes surround the object, by how far it is rotated, and by how small it
is. A row has Spearman's correlation of the distance with each of these, and with their sum after each was scaled to
mean 0 and deviation 1; its standard error is about ``1 / sqrt(images)``. ``purity`` is the share of images that are of
the most frequent class of their cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, main
from scipy.stats import spearmanr, zscore

from patchranking.data import load_data
from patchranking.demo import scene
from patchranking.evaluation.environment import environment
from patchranking.pretrain.features import HOG, compute_features
from patchranking.pretrain.prototypes import Prototypes, PrototypeSettings, find_prototypes
from patchranking.towers.load import load_model

CLUSTERS = (24, 64, "auto", "labels")


def prototypes(
    features: list[str] = [HOG, "demo"],  # noqa: B006
    out: Path = Path("benchmarks/results/prototypes-demo.json"),
    images: int = 2000,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Correlates distances with what is known of each scene.

    Args:
        features: hog, or models.
        out: The JSON file.
        images: Scenes of demo:train.
        seed: Random seed of the clusters.
        device: cpu, cuda, cuda:1, mps, ...
    """
    data, results = load_data("demo:train", images), Results(out)
    known = atypicality(images)
    rows = []
    for name in features:
        model = None if name == HOG else load_model(name, device)
        found = compute_features(data, model, out.with_suffix(".features") / name)
        for clusters in CLUSTERS:
            settings = PrototypeSettings(clusters, seed)  # type: ignore[arg-type]

            def measured(settings: PrototypeSettings = settings, found: Any = found) -> dict[str, Any]:
                return described(find_prototypes(data, found, settings), data.labels, known)

            about = {"features": name, "clusters": clusters, "seed": seed, "n_images": images}
            rows.append(about | results.once(f"{name} {clusters}", measured))
    results.write(environment(torch.device(device)), rows)


def atypicality(images: int) -> dict[str, np.ndarray]:
    """What makes each scene untypical: name -> how much, ``(images,)``."""
    scenes = [scene("train", index) for index in range(images)]
    found = {
        "clutter": np.array([float(one.clutter) for one in scenes]),
        "rotation": np.array([abs(one.rotation) for one in scenes]),
        "smallness": np.array([-one.extent for one in scenes]),
    }
    return found | {"all": sum(map(zscore, found.values()), np.zeros(images))}


def described(found: Prototypes, labels: list[int] | None, known: dict[str, np.ndarray]) -> dict[str, Any]:
    """The row of a clustering."""
    own, hits = np.asarray(labels), 0
    for cluster in range(found.about["clusters"]):
        hits += int(np.bincount(own[found.clusters == cluster]).max())
    return {
        "found": found.about["clusters"],
        "davies_bouldin": found.about["davies_bouldin"],
        "purity": hits / len(own),
        **{f"spearman_{name}": float(spearmanr(found.distances, values)[0]) for name, values in known.items()},
    }


if __name__ == "__main__":
    main(prototypes)
