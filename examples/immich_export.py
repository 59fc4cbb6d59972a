"""An export in the layout that Immich reads, run by ONNX Runtime alone as a machine-learning server would.

    python examples/immich_export.py open_clip:local-dir:clip ViT-B-16__pruned photo.jpg "a red car" runs/fit

The last lines use onnxruntime, tokenizers, numpy and Pillow, and nothing of this package.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
from jsonargparse import auto_cli
from PIL import Image, ImageOps
from tokenizers import Tokenizer

import patchranking


def main(model: str, out: Path, photo: Path, words: str, pruner: Path, macs: float = 0.5) -> None:
    """Writes the folder and prints the cosine of a picture and some words.

    Args:
        model: As on the command line of patchranking.
        out: Folder for the export, named as Immich shall call the model.
        photo: A picture.
        words: What may be on it.
        pruner: Folder that ``patchranking fit`` wrote for this model.
        macs: Share of the dense multiply-accumulates.
    """
    loaded = patchranking.load_model(model)
    fitted = patchranking.Pruner.from_pretrained(pruner).at_macs(loaded.tower, macs)
    patchranking.export(loaded, out, fitted, patchranking.ExportSettings(layout="immich"))

    how = json.loads((out / "visual/preprocess_cfg.json").read_text())
    size, resampling = how["size"][::-1], Image.Resampling[how["interpolation"].upper()]
    picture = Image.open(photo).convert("RGB")
    squash = how["resize_mode"] == "squash"
    picture = picture.resize(size, resampling) if squash else ImageOps.fit(picture, size, resampling)
    levels = (np.asarray(picture, np.float32) / 255 - np.float32(how["mean"])) / np.float32(how["std"])
    image = run(out / "visual/model.onnx", levels.transpose(2, 0, 1)[None])

    ids = Tokenizer.from_file(str(out / "textual/tokenizer.json")).encode(words).ids  # padded already
    text = run(out / "textual/model.onnx", np.array([ids], np.int32))
    print(f"cosine of the picture and '{words}': {float(image @ text):.4f}")


def run(file: Path, array: np.ndarray) -> np.ndarray:
    """The first output of an ONNX file for one array."""
    session = onnxruntime.InferenceSession(file)
    first, *_ = session.run(None, {session.get_inputs()[0].name: array})
    return np.asarray(first[0])


if __name__ == "__main__":
    auto_cli(main)
