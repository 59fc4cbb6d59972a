from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("lightly")
pytest.importorskip("jinja2")

from patchranking.data import load_data
from patchranking.pretrain.filled import reconstructions
from patchranking.pretrain.masked import MAESettings, make_mae
from patchranking.report.pretraining import write_pretraining

SMALL = MAESettings(
    image_size=32, patch_size=8, model_args={"embed_dim": 16, "depth": 1, "num_heads": 2}, decoder_width=32
)


@pytest.fixture
def shown(noise_folder):
    folder = noise_folder("noise", ("cat",), 3)
    (folder / "cat" / "0.png").write_bytes(b"")
    return reconstructions(make_mae(SMALL), load_data(str(folder)), 5, seed=1)


def test_what_is_seen_stays_as_it_is(shown):
    assert [one.key for one in shown] == ["cat/1.png", "cat/2.png"]
    for one in shown:
        assert (one.visible.shape, one.visible.sum()) == ((4, 4), 4)
        seen = np.kron(one.visible, np.ones((8, 8))) > 0
        image, filled = np.asarray(one.image, int), np.asarray(one.filled, int)
        assert (image[seen] == filled[seen]).all()
        assert abs(image[~seen] - filled[~seen]).mean() > 20
    assert (shown[0].visible != shown[1].visible).any()


def test_a_page_shows_it_and_how_many_pictures_are_distinct(shown, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"arm": "prototype", "seed": 0, "share": share, "budget": 9 * share, "seconds": share, "step": int(8 * share)}
        | {"loss": 1 - share / 2, "knn": None, "linear_probe": None}
        for share in (0.0, 0.5, 1.0)
    ]
    results = {"rows": rows, "environment": {"command": "x", "threads": 1}, "distinct": [0.1, 0.4, 0.63]}
    page = write_pretraining(results, tmp_path / "page.html", "A & b", shown).read_text()
    assert "<h1>A &amp; b</h1>" in page
    assert "Distinct pictures an epoch" in page
    assert re.findall(r"<figcaption><small>(.*?)</small>", page) == ["cat/1.png", "cat/2.png"]
    assert page.count('src="data:image/jpeg;base64,') == 6
    assert "What it fills in" not in write_pretraining(results, tmp_path / "none.html", "x").read_text()
