from __future__ import annotations

import pytest
import torch

from patchranking.methods import journal
from patchranking.methods.journal import Journal
from patchranking.methods.tally import DENSE, MEASURES, Tally

NAMES = {DENSE: "dense", ("m", 0.5): "m 0.5"}


def filled(images, journal=None, seed=0):
    """A tally of some images, each noted on its own; what an image has depends on the image alone."""
    tally = Tally([0] * 9, {1, 2, 4})
    for image in images:
        generator = torch.Generator().manual_seed(image)
        full, own = torch.randn(2, 1, 5, generator=generator)
        tally.add(DENSE, [image], full, full, torch.eye(5))
        if image % 2 == 0:
            tally.add(("m", 0.5), [image], own, full, torch.eye(5), torch.tensor([0.1 * image]))
        if image == 3:
            tally.skipped["x.png"] = "torn"
        if journal is not None:
            journal.note(tally, [image])
    return tally


def same(one, other):
    for key in NAMES:
        for measure in MEASURES:
            assert one.values(key, measure) == other.values(key, measure)
        assert set(one._values[key]) <= set(MEASURES), "a measure that is not stored"
        assert one.features(key)[0] == other.features(key)[0]
        assert torch.equal(one.features(key)[1], other.features(key)[1])
    assert one.skipped == other.skipped


@pytest.mark.parametrize("seconds", [-1.0, 1e9])
def test_what_is_restored_is_what_was_noted(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(journal, "_SECONDS_PER_PART", seconds)
    first = Journal(tmp_path, NAMES)
    tally = filled(range(6), first)
    first.note(tally, [], last=True)
    assert len(list(tmp_path.iterdir())) == (6 if seconds < 0 else 1)
    restored = Tally([0] * 9, {1, 2, 4})
    Journal(tmp_path, NAMES).restore(restored)
    same(restored, tally)


def test_a_run_that_goes_on_adds_to_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_SECONDS_PER_PART", -1)
    filled(range(4), Journal(tmp_path, NAMES))
    filled(range(4, 6), Journal(tmp_path, NAMES))
    restored = Tally([0] * 9, {1, 2, 4})
    Journal(tmp_path, NAMES).restore(restored)
    same(restored, filled(range(6)))


def test_nothing_is_written_where_nothing_is_new(tmp_path):
    Journal(tmp_path, NAMES).note(Tally(), [], last=True)
    assert not list(tmp_path.iterdir())
