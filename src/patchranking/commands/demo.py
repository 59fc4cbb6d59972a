"""patchranking demo."""

from __future__ import annotations

from pathlib import Path

from patchranking.commands.evaluate import evaluate
from patchranking.commands.fit import fit

__all__ = ["demo"]


def demo(
    out: Path = Path("runs/demo"), images: int = 600, scenes: int = 400, seed: int = 0, device: str = "cpu"
) -> None:
    """Fits, prunes and evaluates the embedded model on generated scenes, in minutes on two cores.

    Args:
        out: Folder for everything the demo makes.
        images: Training scenes to fit to.
        scenes: Test scenes to evaluate on.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    fit("demo", "demo:train", out / "pruner", limit=images, seed=seed, device=device)
    evaluate("demo", "demo:test", out, [out / "pruner"], golden_images=40, limit=scenes, seed=seed, device=device)
