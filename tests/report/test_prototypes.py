from __future__ import annotations

import re

import numpy as np
import pytest

from patchranking.data import load_data
from patchranking.data.images import UnreadableImageError
from patchranking.pretrain.prototypes import Prototypes
from patchranking.report.prototypes import write_prototypes

pytest.importorskip("jinja2")

ABOUT = {"model": "hog", "data": "demo", "split": "train", "davies_bouldin": 1.234, "clusters": 2}


def made(images, clusters, failed=()):
    """Images in clusters in turn, ever farther from the centre, some of them unusable."""
    data = load_data("demo:train", images)
    errors = ["empty <file>" if index in failed else "" for index in range(images)]
    own = np.array([-1 if error else index % clusters for index, error in enumerate(errors)], np.int32)
    distances = np.where(own < 0, np.nan, np.linspace(0, 1, images)).astype(np.float32)
    totals = {"in": images, "out": images - len(failed), "failed": len(failed)}
    about = ABOUT | {"totals": totals, "settings": {"clusters": "auto", "seed": 0}}
    return data, Prototypes(list(data.keys), own, distances, errors, about)


def rows(page):
    """Keys of the pictures of every row on the page."""
    found = re.findall(r'<div class="row">\n(.*?)</div>', page, re.DOTALL)
    return [re.findall(r'alt="([^"]+)" title="\1, distance [\d.]+"', row) for row in found]


def test_clusters_show_their_nearest_and_their_farthest_images(tmp_path):
    data, prototypes = made(40, 2)
    data.class_names, data.labels = ["a<b", "c"], [0] * 30 + [1] * 10
    out = write_prototypes(prototypes, data, tmp_path / "deep/page.html", "Prototypes & more")
    page = out.read_text()
    assert "<h1>Prototypes &amp; more</h1>" in page
    stages, clusters = rows(page)[:3], rows(page)[3:]
    assert [len(stage) for stage in stages] == [12, 12, 12]
    even = [data.keys[index] for index in range(0, 40, 2)]
    assert clusters[0] == even[:5]
    assert clusters[1] == even[::-1][:5]
    assert len(clusters) == 4
    assert (
        re.findall(r"<figcaption><b>(.*?)</b> <small>(.*?)</small>", page)
        == [
            ("20 images", "a&lt;b 75\xa0%, c 25\xa0%"),
        ]
        * 2
    )
    assert "63.7\xa0%" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count('src="data:image/jpeg;base64,') == 36 + 20


def test_a_training_sees_typical_images_first(tmp_path):
    data, prototypes = made(60, 3)
    page = write_prototypes(prototypes, data, tmp_path / "page.html", "x").read_text()
    means = [float(mean) for mean in re.findall(r"mean distance of those drawn ([\d.]+)", page)]
    assert means[0] < means[1] < means[2] == pytest.approx(0.5, abs=0.15)
    assert re.findall(r"([\d.]+)\xa0% of the images an epoch, (\w+)", page) == [
        ("10", "temperature"),
        ("36.8", "temperature"),
        ("63.5", "all"),
    ]


def test_images_without_a_distance_are_named(tmp_path):
    data, prototypes = made(30, 1, failed=range(1, 26))
    page = write_prototypes(prototypes, data, tmp_path / "page.html", "x").read_text()
    named = re.findall(r'<tr><th scope="row">(.*?)</th><td class="words">empty &lt;file&gt;</td></tr>', page)
    assert named == [data.keys[index] for index in range(1, 21)]
    assert "And 5 more." in page
    assert "25 cannot be used" in page
    assert [len(row) for row in rows(page)[3:]] == [5]


def test_many_clusters_are_the_largest(tmp_path):
    data, prototypes = made(30, 30)
    page = write_prototypes(prototypes, data, tmp_path / "page.html", "x").read_text()
    assert "The 24 largest of 30." in page
    assert page.count("<b>1 image</b>") == 24


def test_a_picture_that_is_gone_is_left_out(tmp_path, monkeypatch):
    data, prototypes = made(10, 1)
    read = data.image

    def gone(index):
        if index == 1:
            raise UnreadableImageError("gone")
        return read(index)

    monkeypatch.setattr(data, "image", gone)
    page = write_prototypes(prototypes, data, tmp_path / "page.html", "x").read_text()
    assert rows(page)[3] == [data.keys[index] for index in (0, 2, 3, 4)]
