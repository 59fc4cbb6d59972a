"""patchranking demo."""

from __future__ import annotations

from pathlib import Path

from patchranking.commands.evaluate import evaluate
from patchranking.commands.fit import fit
from patchranking.evaluation.evaluate import EvaluationSettings
from patchranking.files import make_folder
from patchranking.fitting.settings import FitSettings

__all__ = ["demo"]


def demo(
    out: Path = Path("runs/demo"), images: int = 600, scenes: int = 400, seed: int = 0, device: str = "cpu"
) -> None:
    """Fits, prunes and evaluates the embedded model on generated scenes, within minutes on two cores.

    Args:
        out: Folder for everything the demo makes.
        images: Training scenes to fit to.
        scenes: Test scenes to evaluate on.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    folder = make_folder(out)
    fit("demo", "demo:train", FitSettings(seed=seed, limit=images, steps=500), folder / "pruner", device=device)
    settings = EvaluationSettings(golden_images=40, seed=seed)
    evaluate("demo", "demo:test", settings, folder, [folder / "pruner"], limit=scenes, device=device)
