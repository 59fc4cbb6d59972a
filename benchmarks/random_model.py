r"""Writes a CLIP of open_clip's sizes with random weights, and a pruner that nobody fitted; for times alone.

    python benchmarks/random_model.py ViT-B-16 --out runs/random_model/vit-b-16

Weights of open_clip are drawn by a seed, and the pruner takes as long as a fitted one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import main

from patchranking.extras import declare_missing_operators
from patchranking.pretrain.clip import save_clip
from patchranking.pretrain.objective import Normalisation
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower

declare_missing_operators()


def random_model(name: str, out: Path = Path("runs/random_model"), keep: float = 0.5, seed: int = 0) -> None:
    """Writes a checkpoint that ``open_clip:local-dir:OUT`` loads, and ``OUT/pruner``.

    Args:
        name: open_clip's name of the architecture.
        out: The folder.
        keep: Of the pruner's default schedule.
        seed: Of the weights.
    """
    import open_clip

    torch.manual_seed(seed)
    model = open_clip.create_model(name, pretrained=None)
    normalisation = Normalisation(model.visual.image_mean, model.visual.image_std)
    save_clip(model, open_clip.get_model_config(name), normalisation, out)
    tower = as_tower(model)
    Pruner.unfitted(tower, name, Schedule.default(tower.depth, keep), merges=True).save_pretrained(out / "pruner")
    print(f"wrote {out}")


if __name__ == "__main__":
    main(random_model)
