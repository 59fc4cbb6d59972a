"""Pretrain a vision transformer without labels, then make it run on fewer patches.

    python examples/pretrain_then_prune.py

The pictures are the demo's generated scenes; give a folder of your own in their place. The numbers are small, so that
it ends within minutes: for real use, raise ``epochs`` and the size of the encoder.
"""

from __future__ import annotations

from pathlib import Path

from patchranking import FitSettings, fit, load_data, load_model
from patchranking.pretrain.contrastive import ContrastiveSettings, contrastive
from patchranking.pretrain.loop import TrainSettings


def main(out: Path = Path("runs/pretrain_then_prune"), images: int = 1000, epochs: float = 6, steps: int = 100) -> None:
    """Trains, loads what was trained as any model of timm, and fits a pruner to it."""
    scenes, unseen = load_data("demo:train", images), load_data("demo:val", max(2, images // 4))
    encoder = ContrastiveSettings(
        method="moco",
        image_size=48,
        patch_size=6,
        model_args={"embed_dim": 96, "depth": 3, "num_heads": 3},
        head=256,
        min_scale=0.3,
    )
    training = TrainSettings(epochs=epochs, batch_size=min(64, images), learning_rate=4e-3, evaluations=2)
    report = contrastive(scenes, unseen, out, encoder, training, schedule="default")
    for row in report.progress.rows:
        print(f"{row['share']:.0%} of the budget, {row['step']} steps: k-NN {row['knn']:.1f} %")

    model = load_model(f"timm:local-dir:{(out / 'model').resolve()}")
    pruner, fitted = fit(model, scenes, out / "pruner", FitSettings(keep=0.5, blocks=[1], steps=steps))
    assert fitted.distillation is not None
    print(f"1 - cosine to the dense feature at keep rate 0.5: {fitted.distillation.feature_error['0.5']:.4f}")
    pruner.attach(model.model)
    print("features of a pruned model:", tuple(model.model(model.preprocess(unseen.image(0))[None]).shape))


if __name__ == "__main__":
    main()
