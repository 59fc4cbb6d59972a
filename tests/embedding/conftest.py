from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking.data.images import read_image
from patchranking.embedding.job import embed_to
from patchranking.embedding.settings import EmbedSettings


@pytest.fixture
def pictures(tmp_path):
    """A folder with eight good pictures, each of another size and look, and three that cannot be read."""
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    for index in range(8):
        noise = np.random.default_rng(index).integers(0, 255, (3, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((40 + index, 30 + index), Image.Resampling.BICUBIC)
        picture.save(root / ("sub" if index % 2 else "") / f"good{index}.png")
    (root / "empty.png").touch()
    (root / "sub" / "text.jpg").write_text("no picture")
    (root / "torn.png").write_bytes((root / "good0.png").read_bytes()[:200])
    return root


@pytest.fixture
def expected(pictures, tiny):
    """Key -> the dense model's vector, of one picture at a time."""
    with torch.inference_mode():
        return {
            path.relative_to(pictures).as_posix(): tiny.tower(tiny.preprocess(read_image(path))[None])[0].numpy()
            for path in pictures.rglob("good*")
        }


@pytest.fixture
def contents():
    """Returns a function that reads all files below a folder: name -> content."""

    def read(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read


@pytest.fixture
def embedded(tiny, pictures, tmp_path):
    """Returns a function that embeds the pictures, or other data, in shards of four, and returns the folder."""

    def run(out, data=pictures, pruner=None, form="parquet", shard_size=4, **settings):
        own = EmbedSettings(dtype="float32", batch_size=4, workers=0, **settings)
        embed_to(tiny, str(data), tmp_path / out, pruner, own, form, shard_size)
        return tmp_path / out

    return run
