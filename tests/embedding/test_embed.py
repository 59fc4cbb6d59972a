from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch

import patchranking
from patchranking import EmbedSettings, load_data
from patchranking.embedding import pipeline
from patchranking.embedding.pipeline import Clock, alive
from patchranking.errors import UserError

HERE = EmbedSettings(dtype="float32", batch_size=3, workers=0)


def collected(batches):
    batches = list(batches)
    keys = [key for batch in batches for key in batch.keys]
    return (
        keys,
        np.concatenate([batch.vectors for batch in batches]),
        [one for batch in batches for one in batch.failed],
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_vector_is_that_of_its_key_whatever_comes_between(tiny, pictures, expected, tmp_path, workers):
    """A list that is shuffled, names pictures again, and names some that are not there or cannot be read."""
    names = [path.relative_to(pictures).as_posix() for path in pictures.rglob("*") if path.is_file()]
    lines = [*names, *names[:5], "none.png", *names[::-1]]
    np.random.default_rng(0).shuffle(lines)
    (pictures / "list.txt").write_text("\n".join(lines))
    settings = EmbedSettings(dtype="float32", batch_size=4, workers=workers)
    keys, vectors, failed = collected(patchranking.embed(tiny, str(pictures / "list.txt"), settings=settings))
    assert keys == [line for line in lines if "good" in line]
    assert [key for key, _ in failed] == [line for line in lines if "good" not in line]
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.stack([expected[key] for key in keys]), atol=1e-5)


def test_sizes_and_reasons_come_along(tiny, pictures):
    batches = list(patchranking.embed(tiny, str(pictures), settings=HERE))
    assert [len(batch.keys) + len(batch.failed) for batch in batches] == [3, 3, 3, 2]
    sizes = {key: tuple(size) for batch in batches for key, size in zip(batch.keys, batch.sizes, strict=True)}
    assert sizes == {f"{'sub/' if i % 2 else ''}good{i}.png": (40 + i, 30 + i) for i in range(8)}
    reasons = dict(one for batch in batches for one in batch.failed)
    assert reasons["empty.png"] == "empty file"
    assert set(reasons) == {"empty.png", "torn.png", "sub/text.jpg"}


def test_good_pictures_have_the_same_vectors_bit_for_bit_among_bad_ones(tiny, pictures, tmp_path):
    """A bad picture leaves its place in the batch to a black one."""
    (pictures / "list.txt").write_text("good0.png\ngood2.png\nsub/good1.png\ngood4.png\n")
    (pictures / "bad.txt").write_text("good0.png\nnone.png\nsub/good1.png\ngood4.png\n")
    four = EmbedSettings(dtype="float32", batch_size=4, workers=0)
    keys, vectors, _ = collected(patchranking.embed(tiny, str(pictures / "list.txt"), settings=four))
    few, beside, _ = collected(patchranking.embed(tiny, str(pictures / "bad.txt"), settings=four))
    np.testing.assert_array_equal(beside, vectors[[keys.index(key) for key in few]])


def test_images_that_are_loaded_and_a_pruner_by_its_name(tiny):
    data = load_data("demo:val", 4)
    pixels = torch.stack([tiny.preprocess(data.image(index)) for index in range(4)])
    keys, vectors, _ = collected(patchranking.embed(tiny, data, "cls-attention", HERE))
    assert keys == data.keys
    with patchranking.attach(tiny.model, "cls-attention"):
        np.testing.assert_allclose(vectors, tiny.model.encode_image(pixels), atol=1e-5)


def test_mistakes_are_said_before_the_first_batch(tiny):
    for arguments in (("none", "demo"), (tiny, "none"), (tiny, "demo", "none")):
        with pytest.raises(UserError):
            patchranking.embed(*arguments)


def test_the_model_may_be_used_and_pruned_between_batches(tiny, pictures):
    dense = tiny.model.encode_image(torch.ones(1, 3, 32, 32))
    for _ in patchranking.embed(tiny, str(pictures), "tome", HERE):
        assert torch.equal(tiny.model.encode_image(torch.ones(1, 3, 32, 32)), dense)


def test_a_vector_that_is_not_finite_has_failed(tiny, pictures):
    settings = EmbedSettings(dtype="float16", workers=0)
    tiny.model.visual.proj.mul_(1e6)
    keys, _, failed = collected(patchranking.embed(tiny, str(pictures), settings=settings))
    assert keys == []
    assert dict(failed)["good0.png"] == "the vector is not finite"


class _Deadly:
    def __init__(self, preprocess):
        self.preprocess = preprocess

    def __call__(self, image):
        if image.width == 46:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.preprocess(image)


def test_a_worker_that_dies_ends_the_run_with_one_sentence(tiny, pictures):
    tiny.preprocess = _Deadly(tiny.preprocess)
    settings = EmbedSettings(batch_size=2, workers=1)
    with pytest.raises(UserError, match=r"was killed.*fewer --workers"):
        list(patchranking.embed(tiny, str(pictures), settings=settings))


def test_a_worker_that_took_a_batch_along_is_one_too():
    for error in (ConnectionResetError(), EOFError()):
        with pytest.raises(UserError, match="was killed"), alive():
            raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="mat1"), alive():
        raise RuntimeError("mat1 and mat2")


def test_what_cannot_be_sent_to_workers_is_said(tiny, pictures, monkeypatch):
    spawn = torch.multiprocessing.get_context("spawn")
    loader = pipeline.DataLoader
    monkeypatch.setattr(pipeline, "DataLoader", lambda *a, **k: loader(*a, **k, multiprocessing_context=spawn))
    with pytest.raises(UserError, match="give workers=0"):
        list(patchranking.embed(tiny, str(pictures), settings=EmbedSettings(workers=1)))


def test_a_clock_tells_shares():
    clock = Clock()
    clock.seconds |= {"model": 3.0, "decode": 1.0}
    assert clock.shares() == "decode 25%, model 75%"
    with clock.waiting("write"):
        pass
    assert 0 < clock.seconds["write"] < 1
