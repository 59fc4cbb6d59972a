"""The embedded default: a small CLIP and an endless set of generated scenes it was trained on."""

from pathlib import Path

__all__ = ["MODEL_DIR"]

MODEL_DIR = Path(__file__).parent / "model"
