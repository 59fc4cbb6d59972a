from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from patchranking.report.found import write_found

pytest.importorskip("jinja2")


def test_pictures_stand_in_their_order_with_key_and_similarity(tmp_path):
    wide, small = Image.new("RGB", (448, 112), "red"), Image.new("L", (30, 20), 90)
    found = [("b<i>.png", 0.98764, wide), ("a.png", 0.5, "empty file"), ("c.png", -0.25, small)]
    out = write_found("red & wide", found, tmp_path / "deep/page.html")
    page = out.read_text()
    assert "<h1>red &amp; wide</h1>" in page
    captions = re.findall(r"<figcaption><b>(.*?)</b> <small>(.*?)</small>", page)
    assert captions == [("0.9876", "b&lt;i&gt;.png"), ("0.5000", "a.png"), ("-0.2500", "c.png")]
    assert re.findall(r'<p class="note">(.*?)</p>', page) == ["empty file"]
    sources = re.findall(r"base64,([^\"]+)", page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(source))).size for source in sources]
    assert sizes == [(224, 56), (30, 20)]
    assert wide.size == (448, 112)
