from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.datasets import CIFAR10, FakeData, Imagenette, cifar

from patchranking.data import load_data, read_batches
from patchranking.data.images import UnreadableImageError
from patchranking.errors import MissingExtraError, UserError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHRANKING_DATA", str(tmp_path / "sets"))
    return tmp_path / "sets"


def save(path, red, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (red, 0, 0)).save(path, **options)


def sentence(data, **options):
    with pytest.raises(UserError) as caught:
        load_data(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reds(data):
    return [data.image(index).getpixel((0, 0))[0] for index in range(len(data))]


@pytest.fixture
def imagenette(root):
    """Two classes of three pictures in the folders and split of Imagenette; the second picture is damaged."""
    for number, wnid in enumerate(sorted(Imagenette._WNID_TO_CLASS)[:2]):
        for index in range(3):
            save(root / "imagenette2/val" / wnid / f"{index}.jpeg", 100 * number + 30 * index, quality=100)
    (root / "imagenette2/val" / min(Imagenette._WNID_TO_CLASS) / "1.jpeg").write_bytes(b"no picture")
    return root


def test_reads_a_data_set_of_files_with_a_split(imagenette):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(imagenette / "imagenette2/val" / min(Imagenette._WNID_TO_CLASS) / "0.jpeg", 50, exif=exif)
    data = load_data("torchvision:Imagenette:val")
    assert (data.name, data.split) == ("Imagenette", "val")
    assert data.keys == [f"row-{index:08d}" for index in range(6)]
    assert (data.class_names, data.labels) == (["tench", "English springer"], [0, 0, 0, 1, 1, 1])
    assert data.image(0).size == (6, 8)
    skipped = {}
    found = [i for images, _ in read_batches(data, lambda _: torch.zeros(3, 1, 1), 4, skipped) for i in images]
    assert found == [0, 2, 3, 4, 5]
    assert "cannot identify" in skipped["row-00000001"]


def test_reads_a_data_set_of_files_that_torchvision_opens(root):
    base = root / "oxford-iiit-pet"
    for index in range(3):
        save(base / "images" / f"red_fox_{index}.jpg", 40 * index)
    (base / "images" / "red_fox_1.jpg").write_bytes(b"no picture")
    (base / "annotations").mkdir()
    (base / "annotations" / "test.txt").write_text("".join(f"red_fox_{index} 1 1 1\n" for index in range(3)))
    data = load_data("torchvision:OxfordIIITPet")
    assert (data.split, data.class_names, data.labels) == ("test", ["Red Fox"], [0, 0, 0])
    assert data.templates == ("a photo of a {}, a type of pet.",)
    with pytest.raises(UnreadableImageError, match="UnidentifiedImageError"):
        data.image(1)
    assert abs(data.image(2).getpixel((0, 0))[0] - 80) < 3


@pytest.fixture
def cifar10(root, monkeypatch):
    """CIFAR10 with 8 training and 4 test images, whose red level is their number."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, length in (("data_batch_1", 8), ("test_batch", 4)):
        pixels = np.zeros((length, 3, 1024), np.uint8)
        pixels[:, 0] = np.arange(length)[:, None]
        content = {"data": pixels.reshape(length, -1), "labels": [index % 2 for index in range(length)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["air_plane", "car"]}))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", ""]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", ""]])
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)


def test_reads_a_data_set_with_a_train_switch(cifar10):
    data = load_data("torchvision:CIFAR10:train")
    assert (data.name, data.split, data.class_names) == ("CIFAR10", "train", ["air plane", "car"])
    assert data.labels == [0, 1] * 4
    assert reds(data) == list(range(8))
    assert (len(load_data("torchvision:CIFAR10")), len(load_data("torchvision:CIFAR10:test"))) == (4, 4)
    assert load_data("torchvision:CIFAR10", default_split="train").split == "train"
    assert "choose train or test" in sentence("torchvision:CIFAR10:val")


def test_the_limit_is_a_seeded_sample_in_order(cifar10):
    data = load_data("torchvision:CIFAR10:train", limit=4, seed=1)
    rows = [int(key[4:]) for key in data.keys]
    assert rows == sorted(set(rows)) == reds(data) != [0, 1, 2, 3]
    assert data.labels == [row % 2 for row in rows]
    assert data.keys == load_data("torchvision:CIFAR10:train", limit=4, seed=1).keys
    assert any(data.keys != load_data("torchvision:CIFAR10:train", limit=4, seed=seed).keys for seed in (2, 3, 4))


@pytest.mark.parametrize("name", ["CIFAR10:train", "Imagenette:val"])
def test_can_be_pickled(cifar10, imagenette, name):
    data = load_data(f"torchvision:{name}", limit=4)
    again = pickle.loads(pickle.dumps(data))
    assert (again.keys, again.labels) == (data.keys, data.labels)
    assert again.image(3).tobytes() == data.image(3).tobytes()


class Numbered(FakeData):
    """Random pictures that know their classes only together with the picture; one is damaged, one is not a picture."""

    classes = ()

    def __init__(self):
        super().__init__(size=6, image_size=(3, 4, 4), num_classes=3)

    def __getitem__(self, index):
        if index == 2:
            raise OSError("damaged")
        image, label = super().__getitem__(index)
        return (None if index == 3 else image), 2 * label


class Boxes(Numbered):
    def __getitem__(self, index):
        return super().__getitem__(index)[0], [{"box": index}]


class Unlabelled(Numbered):
    targets = (0, 1, 2, -1, 0, 1)


@pytest.fixture
def ours(monkeypatch):
    for kind in (Numbered, Boxes, Unlabelled):
        monkeypatch.setattr(torchvision.datasets, kind.__name__, kind, raising=False)


def test_reads_labels_that_are_not_listed(ours):
    data = load_data("torchvision:Numbered")
    assert (data.split, len(data)) == ("all", 6)
    known = [Numbered()[index][1] for index in (0, 1, 3, 4, 5)]
    assert data.class_names == [str(value) for value in sorted(set(known))]
    assert [data.class_names[label] for label in data.labels if label >= 0] == [str(value) for value in known]
    assert data.labels[2] == -1
    with pytest.raises(UnreadableImageError, match="OSError: damaged"):
        data.image(2)
    with pytest.raises(UnreadableImageError):
        data.image(3)
    assert data.image(0).size == (4, 4)
    assert load_data("torchvision:Numbered", limit=3).class_names == data.class_names


@pytest.mark.parametrize("name", ["Boxes", "Unlabelled"])
def test_other_targets_make_the_set_unlabelled(ours, name):
    data = load_data(f"torchvision:{name}")
    assert (data.labels, data.class_names, len(data)) == (None, [], 6)


@pytest.mark.parametrize("name", ["targets", "_labels", "labels", "y", "samples", "_samples"])
def test_listed_classes_are_taken_without_reading_a_picture(monkeypatch, name):
    class Listed(FakeData):
        categories = ("red_fox", ("bee", "honey bee"), "ant")

        def __init__(self):
            super().__init__(size=4)
            numbers = [2, 0, 0, 1]
            setattr(self, name, [("file", number) for number in numbers] if "samples" in name else np.array(numbers))

        def __getitem__(self, index):
            raise OSError("damaged")

    monkeypatch.setattr(torchvision.datasets, "Listed", Listed, raising=False)
    data = load_data("torchvision:Listed")
    assert (data.class_names, data.labels) == (["red fox", "bee", "ant"], [2, 0, 0, 1])


def test_files_are_opened_here_and_not_by_torchvision(imagenette):
    grey = Image.fromarray(np.full((4, 4), 40000, np.uint16))
    grey.save(imagenette / "imagenette2/val" / min(Imagenette._WNID_TO_CLASS) / "0.jpeg", "png")
    assert load_data("torchvision:Imagenette:val").image(0).getpixel((0, 0)) == (40000 >> 8,) * 3


def test_downloads_only_what_is_missing(root, monkeypatch):
    made = []

    class Remote(Numbered):
        def __init__(self, root, split="train", download=False):
            super().__init__()
            made.append((root, split, download))
            if not download and len(made) < 2:
                raise RuntimeError("Dataset not found.")

    monkeypatch.setattr(torchvision.datasets, "Remote", Remote, raising=False)
    load_data("torchvision:Remote:val")
    load_data("torchvision:Remote:val")
    assert made == [(str(root), "val", False), (str(root), "val", True), (str(root), "val", False)]


def test_passes_options_on_to_base_classes(monkeypatch):
    made = []

    class Base(Numbered):
        def __init__(self, root, train=True, download=False):
            super().__init__()
            made.append((train, download))

    class Letters(Base):
        def __init__(self, root, split, **options):
            assert split == "letters"
            super().__init__(root, **options)

    monkeypatch.setattr(torchvision.datasets, "Letters", Letters, raising=False)
    assert load_data("torchvision:Letters:letters").split == "letters"
    load_data("torchvision:Letters:letters", default_split="train")
    assert made == [(False, False), (True, False)]


def test_mistakes_have_one_sentence(ours, imagenette):
    for name in ("Nothing", "folder", "ImageNet1k", "__all__", "wrap_dataset_for_transforms_v2"):
        assert f"no data set '{name}'" in sentence(f"torchvision:{name}")
    assert "val" in sentence("torchvision:Imagenette:test")
    assert "no splits" in sentence("torchvision:Numbered:val")
    assert "annFile" in sentence("torchvision:CocoDetection")
    assert str(imagenette) in sentence("torchvision:DatasetFolder")
    assert "NotImplementedError" in sentence("torchvision:VisionDataset")
    assert "names no images" in sentence("torchvision:")


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(MissingExtraError, match=r"patchranking\[open-clip\]"):
        load_data("torchvision:CIFAR10")
