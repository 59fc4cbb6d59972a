from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from patchranking import Encoder, ExportSettings, Pruner, UserError, export
from patchranking.embedding.encoder import Encoder as Embedder
from patchranking.embedding.job import embed_to
from patchranking.embedding.search import search
from patchranking.embedding.settings import EmbedSettings
from patchranking.embedding.texts import embed_texts
from patchranking.exporting.model import ExportedModel, open_model
from patchranking.pruning.schedule import Schedule
from patchranking.towers.load import LoadedModel

SETTINGS = EmbedSettings(workers=0, dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def folder(tinier, tmp_path_factory):
    """A pruned export with its text encoder."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("exported") / "out"
    export(tinier, out, Pruner.unfitted(tinier.tower, "tiny", Schedule({1: 0.5})), ExportSettings("torch"))
    return out


def test_a_folder_of_pictures_is_embedded_and_searched_by_the_file(folder, tmp_path, pictures):
    model, out = open_model(str(folder)), tmp_path / "vectors"
    assert isinstance(model, ExportedModel)
    manifest = embed_to(model, str(pictures), out, settings=SETTINGS)
    assert manifest["totals"] == {"in": 11, "out": 8, "failed": 3}
    assert (manifest["model"], manifest["pruner"], manifest["keep"]) == (str(folder), None, 0.5)
    (best, *_) = search(out, pictures / "good0.png", 3)
    assert (best.key, best.similarity) == ("good0.png", pytest.approx(1, abs=1e-4))
    (best, *_) = search(out, "a red car", 3)
    assert -1 <= best.similarity <= 1
    (tmp_path / "texts.txt").write_text("a cat\ntwo dogs\n")
    assert embed_texts(model, tmp_path / "texts.txt", tmp_path / "t", SETTINGS)["totals"]["out"] == 2


def test_vectors_are_those_of_the_encoder(folder):
    model, pixels = open_model(str(folder)), torch.randn(3, 3, 32, 32)
    found = Embedder(model, None, SETTINGS)(pixels)
    np.testing.assert_array_equal(found.numpy(), Encoder.from_pretrained(folder).run(pixels.numpy())[0])
    unit = Embedder(model, None, replace(SETTINGS, normalize=True))(pixels)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(3))


def test_what_an_exported_model_has_already_is_refused(folder):
    model = open_model(str(folder))
    for changes in ({"keep": 0.4}, {"macs": 0.5}, {"precision": "bf16"}):
        with pytest.raises(UserError, match="with its own pruner, keep rate and precision"):
            Embedder(model, None, replace(SETTINGS, **changes))
    with pytest.raises(UserError, match="runs in one pass, without an estimate of errors: leave --fallback out"):
        Embedder(model, None, replace(SETTINGS, fallback=0.1))
    with pytest.raises(UserError, match="leave --device out"):
        open_model(str(folder), "meta")
    assert isinstance(open_model("demo"), LoadedModel)
