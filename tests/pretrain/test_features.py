from __future__ import annotations

import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.pretrain.features import compute_features

pytest.importorskip("skimage")


@pytest.fixture
def folder(tmp_path, noise_folder):
    """Two classes of two pictures each, and two files that are none."""
    found = noise_folder("pictures", ["a", "b"], 2)
    (found / "a" / "empty.png").touch()
    (found / "b" / "torn.png").write_bytes((found / "a" / "0.png").read_bytes()[:90])
    return found


def test_histograms_of_gradients_tell_directions_apart(tmp_path):
    rows, columns = np.indices((90, 120))
    for name, wave in (("upright", columns), ("lying", rows), ("upright-too", columns + 3)):
        picture = Image.fromarray((127 + 120 * np.sin(wave / 4)).astype(np.uint8))
        (tmp_path / "waves").mkdir(exist_ok=True)
        picture.save(tmp_path / "waves" / f"{name}.png")
    found = compute_features(load_data(str(tmp_path / "waves")), None, tmp_path / "out", workers=0)
    assert found.keys == ["lying.png", "upright-too.png", "upright.png"]
    assert (found.vectors.shape, found.vectors.dtype) == ((3, 324), np.float32)
    unit = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert cosines[1, 2] > 0.9
    assert cosines[0, 1:].max() < 0.3


def test_an_encoder_gives_its_own_features(tmp_path, tiny, folder):
    data = load_data(str(folder))
    found = compute_features(data, tiny, tmp_path / "out", workers=0)
    expected = [tiny.tower(tiny.preprocess(data.image(data.keys.index(key)))[None])[0].detach() for key in found.keys]
    assert found.vectors == pytest.approx(np.stack(expected), abs=1e-5)
    assert found.about["model"] == "tiny"
    assert len(found.about["fingerprint"]) > 30


@pytest.mark.parametrize("encoder", [False, True])
def test_every_image_is_accounted_for(tmp_path, tiny, folder, encoder):
    data, model = load_data(str(folder)), tiny if encoder else None
    found = compute_features(data, model, tmp_path / "out", workers=0)
    assert found.keys == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert found.failed.keys() == {"a/empty.png", "b/torn.png"}
    assert found.failed["a/empty.png"] == "empty file"
    again = compute_features(data, model, tmp_path / "out", workers=0)
    assert (again.keys, again.failed) == (found.keys, found.failed)
    assert (again.vectors == found.vectors).all()


def test_features_of_another_model_or_other_images_are_refused(tmp_path, tiny, folder):
    data = load_data(str(folder))
    compute_features(data, None, tmp_path / "out", workers=0)
    with pytest.raises(UserError, match="holds vectors of another kind"):
        compute_features(data, tiny, tmp_path / "out", workers=0)
    shutil.copy(folder / "a" / "0.png", folder / "a" / "00.png")
    with pytest.raises(UserError, match="holds features of other images: choose another folder for --out"):
        compute_features(load_data(str(folder)), None, tmp_path / "out", workers=0)


def test_nothing_to_read_is_said_in_one_sentence(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").touch()
    with pytest.raises(UserError, match=r"None of the 1 images can be read, for example 'a.png': empty file"):
        compute_features(load_data(str(tmp_path / "bad")), None, tmp_path / "out", workers=0)


def test_equal_keys_are_refused(tmp_path):
    data = load_data("demo:train", 3)
    data.keys = ["a", "b", "a"]
    with pytest.raises(UserError, match="Some images have the same key"):
        compute_features(data, None, tmp_path / "out")


KILLED = """
import torch
from patchranking import load_data
from patchranking.pretrain import features
from patchranking.pretrain.prototypes import PrototypeSettings, find_prototypes

torch.set_num_threads(1)
features._SHARD = 3
data = load_data("demo:train", 10)
import skimage.feature, sklearn.cluster

def run(folder):
    found = features.compute_features(data, None, Path(folder) / "features", workers=0)
    find_prototypes(data, found, PrototypeSettings(clusters=3)).write(Path(folder) / "prototypes.parquet")
"""


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, killed_forks):
    def contents(folder):
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    with killed_forks(KILLED) as server:
        for fatal in (3, 5, 6):
            assert server(fatal, tmp_path / "killed") == -signal.SIGKILL
        assert server(0, tmp_path / "killed") == 0
        killed = contents(tmp_path / "killed")
        shutil.rmtree(tmp_path / "killed")
        assert server(0, tmp_path / "killed") == 0
    assert contents(tmp_path / "killed") == killed
    assert "prototypes.parquet" in killed
