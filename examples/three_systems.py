"""The three systems in one line: prototypes first, then few tokens first, then a CLIP of it that runs on few patches.

    python examples/three_systems.py

The pictures are generated scenes with captions, and their classes are the colours of the objects. The numbers are
small, so that it ends within minutes; ``--images 200 --epochs 2 --steps 20`` shows the way in less than one.
``benchmarks/systems.py`` measures what each step saves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from patchranking import EvaluationSettings, FitSettings, evaluate, fit, load_data, load_model
from patchranking.data.demo import by_colour
from patchranking.pretrain.clip import ClipSettings
from patchranking.pretrain.contrastive import ContrastiveSettings, contrastive
from patchranking.pretrain.image_text import image_text
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.masked import MAESettings, mae

TOWER: dict[str, Any] = {"image_size": 48, "patch_size": 6, "model_args": {"embed_dim": 96, "depth": 4, "num_heads": 3}}


def main(out: Path = Path("runs/three_systems"), images: int = 1000, epochs: float = 10, steps: int = 300) -> None:
    """Pretrains a tower twice, makes a CLIP of it and prunes it.

    Args:
        out: Folder for every step's.
        images: Scenes to train on.
        epochs: Of each of the three trainings.
        steps: Of fitting the pruner.
    """
    scenes, unseen = by_colour(load_data("demo:train", images)), by_colour(load_data("demo:val", max(24, images // 4)))
    training = TrainSettings(epochs=epochs, batch_size=min(64, images), learning_rate=4e-3, evaluations=1)

    masked = MAESettings(**TOWER, decoder_width=64, decoder_depth=1, min_scale=0.5, clusters=16, curriculum="prototype")
    first, last = mae(scenes, unseen, out / "mae", masked, training).progress.rows
    print(f"masked, typical scenes first: linear probe {first['linear_probe']:.1f} -> {last['linear_probe']:.1f} %")

    views = ContrastiveSettings(**TOWER, head=256, min_scale=0.3, weights=str(out / "mae/model"))
    first, last = contrastive(scenes, unseen, out / "moco", views, training, schedule="default").progress.rows
    print(f"contrastive, few tokens first: linear probe {first['linear_probe']:.1f} -> {last['linear_probe']:.1f} %")

    sizes = ClipSettings(features=64, context=16, width=64, depth=2, min_scale=0.5)
    first, last = image_text(out / "moco/model", scenes, unseen, out / "clip", sizes, training, "default").progress.rows
    print(f"captions, few tokens first: zero-shot {first['zero_shot']:.1f} -> {last['zero_shot']:.1f} %")

    clip = load_model(f"open_clip:local-dir:{(out / 'clip/model').resolve()}")
    pruner, _ = fit(clip, scenes, out / "pruner", FitSettings(keep=0.5, steps=steps))
    settings = EvaluationSettings(methods=["random"], keep=[0.7, 0.5, 0.3], timing_batch=0)
    for row in evaluate(clip, unseen, [pruner], settings)[0]["rows"]:
        print(f"{row['method']}: {row['macs_share']:.0%} of the MACs, zero-shot {row['top1']:.1f} %")


if __name__ == "__main__":
    auto_cli(main)
