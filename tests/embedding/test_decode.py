from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms

from patchranking.data.streams import Entry, load_stream
from patchranking.embedding.decode import Decoder, Work, shrinks


@pytest.fixture
def decoder(pictures, tiny):
    return Decoder(load_stream(str(pictures)), tiny.preprocess, (32, 32), False)


def test_a_batch_keeps_places_and_says_what_failed(decoder, tiny):
    entries = [*decoder.stream.entries()]
    entries = [entries[3], None, entries[0], Entry("lost", b"", "was lost"), entries[3]]
    found = decoder.__getitems__(Work(7, 20, entries))
    assert (found.shard, found.start) == (7, 20)
    assert found.keys == ["good4.png", "", "empty.png", "lost", "good4.png"]
    assert found.errors == ["", "", "empty file", "was lost", ""]
    assert found.sizes.tolist() == [[44, 34], [0, 0], [0, 0], [0, 0], [44, 34]]
    picture = Image.open(decoder.stream.content(entries[0].place))
    assert torch.equal(found.pixels[0], tiny.preprocess(picture))
    assert torch.equal(found.pixels[4], found.pixels[0])
    assert not found.pixels[1:4].any()


def test_a_picture_that_cannot_be_preprocessed_fails_alone(pictures, tiny):
    def picky(image):
        if image.width == 40:
            raise ValueError("too small")
        return tiny.preprocess(image)[:, : 31 if image.width == 44 else 32]

    stream = load_stream(str(pictures))
    entries = [entry for entry in stream.entries() if entry.key in ("good0.png", "good2.png", "good4.png")]
    found = Decoder(stream, picky, (32, 32), False).__getitems__(Work(0, 0, entries))
    assert "40 x 30 pixels: ValueError: too small" in found.errors[0]
    assert found.errors[1] == ""
    assert "(3, 31, 32), not (3, 32, 32)" in found.errors[2]
    assert found.sizes.tolist() == [[40, 30], [42, 32], [44, 34]]


@pytest.mark.parametrize(
    ("steps", "shrink"),
    [
        ([transforms.Resize(24, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(24)], True),
        ([transforms.Resize(30, transforms.InterpolationMode.BILINEAR), transforms.CenterCrop(24)], True),
        ([transforms.Resize((24, 24))], True),
        ([transforms.CenterCrop(24)], False),
        ([transforms.CenterCrop(72), transforms.Resize(24)], False),
    ],
)
def test_a_preprocessing_that_shrinks_is_told_from_one_that_cuts(steps, shrink):
    whole = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)])
    assert shrinks(whole, (24, 24)) is shrink


def test_a_preprocessing_that_fails_on_the_probe_does_not_shrink():
    assert not shrinks(lambda image: 1 / 0, (24, 24))


def test_drafts_change_features_by_less_than_a_thousandth(demo, tmp_path):
    for index in range(4):
        levels = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(levels).resize((1600, 1200), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{index}.jpg", quality=90)
    stream, size = load_stream(str(tmp_path)), demo.tower.image_size
    assert shrinks(demo.preprocess, size)
    work = Work(0, 0, [*stream.entries()])
    whole, draft = (Decoder(stream, demo.preprocess, size, drafts).__getitems__(work) for drafts in (False, True))
    assert not torch.equal(draft.pixels, whole.pixels)
    assert draft.sizes.tolist() == [[1600, 1200]] * 4
    assert (F.cosine_similarity(demo.tower(draft.pixels), demo.tower(whole.pixels)) > 0.999).all()


@pytest.mark.parametrize(
    ("size", "seen"), [((800, 600), (200, 150)), ((800, 420), (400, 210)), ((800, 250), (800, 250))]
)
def test_a_draft_has_twice_the_pixels_that_the_model_wants(tmp_path, size, seen):
    Image.new("RGB", size).save(tmp_path / "a.jpg")
    given = []

    def preprocess(image):
        given.append(image.size)
        return torch.zeros(3, 64, 56)

    stream = load_stream(str(tmp_path))
    found = Decoder(stream, preprocess, (64, 56), True).__getitems__(Work(0, 0, [*stream.entries()]))
    assert given == [seen]
    assert found.sizes.tolist() == [list(size)]


SENT = """
import pickle, sys
decoder, work = pickle.load(sys.stdin.buffer)
pickle.dump(decoder.__getitems__(work).pixels.numpy(), sys.stdout.buffer)
"""


def test_a_process_that_knows_nothing_decodes_the_same(demo, pictures):
    stream = load_stream(str(pictures))
    decoder = Decoder(stream, demo.preprocess, demo.tower.image_size, True)
    work = Work(0, 0, [*stream.entries()][:4])
    done = subprocess.run(
        [sys.executable, "-c", SENT], input=pickle.dumps((decoder, work)), capture_output=True, check=True, timeout=300
    )
    np.testing.assert_array_equal(pickle.loads(done.stdout), decoder.__getitems__(work).pixels.numpy())
