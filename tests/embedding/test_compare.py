from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patchranking.embedding.compare import compare_index
from patchranking.embedding.index import Index
from patchranking.errors import UserError
from patchranking.methods.attach import attachable


def of(folder):
    index = Index(folder)
    return dict(zip(index.keys(), torch.cat(list(index.blocks())), strict=True))


@pytest.fixture
def many(pictures):
    """Thirteen more pictures, so that ten neighbours are not all there are."""
    from PIL import Image

    for number in range(13):
        noise = np.random.default_rng(100 + number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 40)).save(pictures / f"more{number:02d}.png")
    return pictures


def test_the_same_vectors_agree(embedded, many):
    found = compare_index(embedded("a"), embedded("b", form="npy", shard_size=5))
    assert (found.images, found.queries, found.overlap_at_10) == (21, 21, 1)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.missing == ((0, []), (0, []))


def test_cosine_and_overlap_are_those_of_a_literal_computation(tiny, embedded, many):
    """Folders in another order, each with images that the other lacks."""
    names = [f"more{number:02d}.png" for number in range(13)] + ["good0.png", "good2.png"]
    (many / "list.txt").write_text("\n".join([*names[::-1], "sub/good1.png", names[3], "none.png"]))
    everything, listed = embedded("a"), embedded("b", many / "list.txt", attachable("tome"), keep=0.3)
    (many / "more05.png").unlink()
    found = compare_index(everything, listed)
    first, second = of(everything), of(listed)
    common = sorted(first.keys() & second.keys())
    assert (found.images, found.queries) == (len(common), len(common)) == (16, 16)
    a, b = (torch.stack([vectors[key] for key in common]) for vectors in (first, second))
    cosines = F.cosine_similarity(a, b)
    assert found.cosine == pytest.approx(cosines.mean().item(), abs=1e-6)
    assert found.lowest_cosine == pytest.approx(cosines.min().item(), abs=1e-6)
    near = [(v @ v.T).fill_diagonal_(-2).topk(10).indices.tolist() for v in (a, b)]
    shares = [len(set(one) & set(other)) / 10 for one, other in zip(*near, strict=True)]
    assert found.overlap_at_10 == pytest.approx(np.mean(shares), abs=1e-6)
    assert 0.5 < found.overlap_at_10 < 1
    assert found.missing[0] == (0, [])
    assert found.missing[1] == (5, ["good4.png", "good6.png", "sub/good3.png", "sub/good5.png", "sub/good7.png"])
    back = compare_index(listed, everything)
    assert back.missing == found.missing[::-1]
    assert back.overlap_at_10 == pytest.approx(found.overlap_at_10)


def test_the_draw_is_by_seed(tiny, embedded, many):
    folders = embedded("a"), embedded("b", pruner=attachable("tome"), keep=0.3)
    few = [compare_index(*folders, queries=4, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert few[0].queries == 4


def test_folders_that_cannot_be_compared(tiny, embedded, many, tmp_path):
    one = embedded("a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x.png").write_bytes((many / "good0.png").read_bytes())
    with pytest.raises(UserError, match="have 0 images in common"):
        compare_index(one, embedded("b", tmp_path / "other"))
    next(iter(tiny.tower.identity())).data.add_(1)
    with pytest.raises(UserError, match="vectors of different models"):
        compare_index(one, embedded("c"))
