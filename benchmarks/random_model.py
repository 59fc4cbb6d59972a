r"""Writes a CLIP of open_clip's sizes with random weights, and a pruner that nobody fitted; for times alone.

    python benchmarks/random_model.py ViT-B-16 --out runs/random_model/vit-b-16

Weights of open_clip are drawn by a seed, and the pruner takes as long as a fitted one.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common import main
from safetensors.torch import save_file

from patchranking.extras import declare_missing_operators
from patchranking.files import make_folder
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
    make_folder(out)
    shown = {"mean": model.visual.image_mean, "std": model.visual.image_std}
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": shown}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    save_file(
        {key: weight.contiguous() for key, weight in model.state_dict().items()}, out / "open_clip_model.safetensors"
    )
    tower = as_tower(model)
    Pruner.unfitted(tower, name, Schedule.default(tower.depth, keep), merges=True).save_pretrained(out / "pruner")
    print(f"wrote {out}")


if __name__ == "__main__":
    main(random_model)
