from __future__ import annotations

import re

import pytest

from patchranking.errors import UserError
from patchranking.explore.disagree import Disagreement, Disagreements
from patchranking.explore.show import LABELS, caption_of, compared, shown, wrong


@pytest.mark.parametrize(
    ("method", "ranked", "words"),
    [
        ("patchranking", True, "of 16 patches"),
        ("cls-attention", True, "of 16 patches"),
        ("evit", True, "patches and 1 for the others"),
        ("tome", False, "tokens for 16 patches"),
        ("low-res", False, "9 patches, 3 × 3"),
    ],
)
def test_every_method_shows_what_is_left(explorer, noise, method, ranked, words):
    page = shown(explorer.look(noise.image(0), ["cat", "dog"], "a cat", method, 0.6), ["A note."])
    assert words in page
    assert ("the ranking" in page) == ranked
    assert ("Stage by stage" in page) == (method != "low-res")
    assert f"<h3>{LABELS[method]}</h3>" in page
    assert "A note." in page
    assert "cosine to the caption" in page
    assert page.count(" ms</b>") == 2
    assert all(alt for alt in re.findall(r'alt="([^"]*)"', page))
    assert set(re.findall(r'src="(.{15})', page)) == {"data:image/jpeg"}


def test_what_is_typed_is_no_html(explorer, noise):
    page = shown(explorer.look(noise.image(0), ["<script>alert(1)</script>"], "", "tome", 0.6), ["<b>"])
    assert "<script" not in page
    assert "<b>&lt;" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;" in wrong(UserError("<b>"))


def test_a_change_of_class_is_said(explorer, noise):
    look = explorer.look(noise.image(0), ["cat", "dog"], "", "tome", 0.6)
    look.said.dense[:], look.said.pruned[:] = [("cat", 0.9)], [("dog", 0.6)]
    assert "The class changes, from cat to dog." in shown(look)
    look.said.pruned[:] = [("cat", 0.6)]
    assert "Both say cat." in shown(look)


def test_a_comparison_is_put_in_words():
    found = Disagreements([], 50, 3, 0.9712, {"a.png": "empty file"})
    said = compared(found, "tome", 0.6)
    assert "ToMe at 60\N{NO-BREAK SPACE}% of the dense MACs, 50 images: 3 get another class" in said
    assert "mean cosine 0.971. 1 could not be used, such as a.png: empty file" in said
    assert caption_of(Disagreement(0, "a", 0.5, "cat", "dog")) == "0.500 · cat → dog"
    assert caption_of(Disagreement(0, "a", 0.5, "cat", "cat")) == "0.500 · cat"
    assert caption_of(Disagreement(0, "a", 0.5)) == "0.500"
