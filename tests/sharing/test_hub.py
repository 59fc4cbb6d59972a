"""Pushed and loaded over HTTP, from a Hub on this machine."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from patchranking.errors import UserError
from patchranking.methods.attach import fitted_pruner, pruner_or_method
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.sharing.measured import Measured

ROW = {"keep_rate": 0.5, "macs_share": 0.6, "feature_cosine": 0.98, "top1": None}
FIGURES = Measured("birds", "train", 90, 10, 0, 4, {"torch": "2.9"}, [ROW])


@pytest.fixture
def pruner(tower):
    made = Pruner.unfitted(tower, "hf:org/clip", Schedule({1: 0.8, 3: 0.5}))
    made.measured = FIGURES
    return made


def same(found, pruner):
    weights = found.state_dict()
    alike = all(torch.equal(weights[name], value) for name, value in pruner.state_dict().items())
    return alike and (found.base, found.fitted, found.keep, found.measured) == (
        pruner.base,
        pruner.fitted,
        pruner.keep,
        pruner.measured,
    )


def test_what_is_pushed_is_what_is_loaded(pruner, hub):
    address = pruner.push_to_hub("ann/bird-pruner", private=True)
    assert address.startswith(f"{hub.address}/ann/bird-pruner/commit/")
    assert hub.files("ann/bird-pruner").keys() == {"config.json", "model.safetensors", "README.md"}
    assert hub.private == {"ann/bird-pruner"}
    assert same(Pruner.from_pretrained("ann/bird-pruner"), pruner)
    card = ModelCard(hub.files("ann/bird-pruner")["README.md"].decode())
    assert card.data.base_model == "org/clip"
    assert 'from_pretrained("ann/bird-pruner")' in card.text
    assert "--pruner ann/bird-pruner" in card.text


def test_a_name_alone_is_of_ones_own_and_the_card_says_so(pruner, hub):
    pruner.push_to_hub("bird-pruner")
    assert b'from_pretrained("ann/bird-pruner")' in hub.files("ann/bird-pruner")["README.md"]


def test_saving_may_push_and_a_card_on_the_hub_may_stay(pruner, hub, tmp_path):
    pruner.save_pretrained(tmp_path / "bird", repo_id="ann/bird", push_to_hub=True)
    hub.files("ann/bird")["README.md"] = b"# My own"
    pruner.keep = 0.25
    pruner.push_to_hub("ann/bird", ignore_patterns="README.md")
    assert hub.files("ann/bird")["README.md"] == b"# My own"
    assert Pruner.from_pretrained("ann/bird").keep == 0.25
    assert Pruner.from_pretrained(tmp_path / "bird").keep == 0.5


def test_a_revision_is_loaded_by_its_branch_or_commit_and_a_wrong_one_is_named(pruner, hub):
    first = pruner.push_to_hub("ann/bird").rpartition("/")[2]
    pruner.keep = 0.25
    hub.repositories["ann/bird"]["less"] = dict(hub.files("ann/bird"))
    pruner.push_to_hub("ann/bird", branch="less")
    assert Pruner.from_pretrained("ann/bird").keep == 0.5
    assert Pruner.from_pretrained("ann/bird", revision="less").keep == 0.25
    assert Pruner.from_pretrained("ann/bird", revision=first).keep == 0.5
    with pytest.raises(UserError, match=r"'ann/bird' has no revision 'more': give a branch"):
        Pruner.from_pretrained("ann/bird", revision="more")
    with pytest.raises(UserError, match=r"'ann/bird' has no branch 'more'"):
        pruner.push_to_hub("ann/bird", branch="more")


def test_what_was_loaded_once_is_there_without_the_hub(pruner, hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between tries
    pruner.push_to_hub("ann/bird")
    Pruner.from_pretrained("ann/bird")
    hub.down = True
    seen = len(hub.seen)
    assert same(Pruner.from_pretrained("ann/bird", local_files_only=True), pruner)
    assert len(hub.seen) == seen
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(Pruner.from_pretrained("ann/bird"), pruner)
    with pytest.raises(UserError, match=r"'ann/tree' is not in the cache, and the Hub was not reached .*503"):
        Pruner.from_pretrained("ann/tree")


def test_without_a_network_one_sentence_says_so(pruner, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'ann/bird' is not in the cache, and the Hub was not reached"):
        Pruner.from_pretrained("ann/bird")
    with pytest.raises(UserError, match=r"The push to 'ann/bird' failed \(OfflineModeIsEnabled"):
        pruner.push_to_hub("ann/bird")


def test_repositories_that_are_missing_private_or_gated(pruner, hub, monkeypatch):
    with pytest.raises(UserError, match=r"The Hub has no repository 'ann/nothing', or shows it to its owners alone"):
        Pruner.from_pretrained("ann/nothing")
    pruner.push_to_hub("ann/bird", private=True)
    hub.gated.add("ann/bird")
    with pytest.raises(UserError, match=r"'ann/bird' is given to those alone who accept its terms"):
        Pruner.from_pretrained("ann/bird")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"no repository 'ann/bird', or shows it to its owners alone: .*hf auth login"):
        Pruner.from_pretrained("ann/bird")


def test_no_token_a_wrong_one_and_one_of_someone_else(pruner, hub, monkeypatch):
    with pytest.raises(UserError, match=r"The token may not do that with 'ann/bird'"):
        pruner.push_to_hub("ann/bird", token="hf_of_bob")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    for name in ("ann/bird", "bird"):
        with pytest.raises(UserError, match=rf"The Hub does not know who asks for '{name}'.*hf auth login"):
            pruner.push_to_hub(name)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"'ann/bird'.*hf auth login"):
        pruner.push_to_hub("ann/bird")
    with pytest.raises(UserError, match=r"Nothing was pushed to 'bird', since there is no token"):
        pruner.push_to_hub("bird")
    assert hub.repositories == {}


def test_a_name_that_can_be_none_is_refused(pruner, hub):
    with pytest.raises(UserError, match=r"'ann/my bird' can be no repository's name"):
        pruner.push_to_hub("ann/my bird")


def test_another_kind_of_model_is_refused_before_its_weights_are_downloaded(hub):
    hub.repositories["org/clip"] = {"main": {"config.json": b'{"model_type": "clip"}', "model.safetensors": b"large"}}
    with pytest.raises(UserError, match=r"'org/clip' holds another kind of model, and no pruner"):
        Pruner.from_pretrained("org/clip")
    assert not any("safetensors" in path for path in hub.seen)
    hub.repositories["org/data"] = {"main": {"README.md": b""}}
    with pytest.raises(UserError, match=r"'org/data' is on the Hub and holds no pruner: it lacks config\.json"):
        Pruner.from_pretrained("org/data")


def test_a_push_that_breaks_off_says_why(pruner, hub, monkeypatch):
    def broken(*_, **__):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", broken)
    with pytest.raises(UserError, match=r"The push to 'ann/bird' failed \(ConnectionError: reset by peer\)"):
        pruner.push_to_hub("ann/bird")


def test_every_command_takes_a_repository_where_it_takes_a_folder(demo, hub, run, tmp_path):
    pruner = Pruner.unfitted(demo.tower, "demo", Schedule({3: 0.5}))
    pruner.push_to_hub("ann/scenes")
    assert same(pruner_or_method("ann/scenes"), pruner)
    assert same(fitted_pruner("ann/scenes"), pruner)
    few = ("--batches", 1, "--repeats", 1, "--seconds", 0, "--keep", 0.5, "--out", tmp_path)
    assert run("benchmark", "demo", "--pruner", "ann/scenes", *few)[0] == 0
    assert {row["pruner"] for row in json.loads((tmp_path / "throughput.json").read_text())["rows"]} == {"ann/scenes"}
    status, _, said = run("benchmark", "demo", "--pruner", "ann/nothing", *few)
    assert (status, said.count("\n")) == (2, 1)
    assert "The Hub has no repository 'ann/nothing'" in said


def test_the_python_of_the_page_runs(pruner, hub, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs/sharing.md").read_text().replace("org/", "ann/")
    pruner.save_pretrained(tmp_path / "runs/fit")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert capsys.readouterr().out.splitlines() == ["birds 10", "0.5 0.6 0.98 None"]
    assert same(names["pruner"], pruner)
    assert hub.private == {"ann/bird-pruner"}
