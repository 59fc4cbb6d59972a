"""The embedded default: a small CLIP and the endless generated scenes it was trained on."""

from pathlib import Path

from patchranking.demo.scenes import Scene, scene

__all__ = ["MODEL_DIR", "Scene", "scene"]

MODEL_DIR = Path(__file__).parent / "model"
