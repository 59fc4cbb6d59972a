from __future__ import annotations

import copy
import errno
import io
import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from patchranking import as_tower, detach
from patchranking.errors import UserError
from patchranking.predictor.networks import Predictor
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import best_first, gather_tokens
from patchranking.sharing.measured import Measured
from patchranking.towers.identity import BaseModel


def make(tower, keep=0.5, block=3, schedule=None):
    return Pruner.unfitted(tower, "tiny", schedule or Schedule({block: keep}))


@torch.inference_mode()
def test_attached_prunes_and_detached_is_bit_identical(case):
    pruner, dense = make(case.tower), case.encode(case.pixels)
    keys = list(case.model.state_dict())
    with pruner.attached(case.model):
        pruned = case.encode(case.pixels)
        assert not torch.equal(pruned, dense)
        pruner.keep = 1.0
        assert torch.equal(case.encode(case.pixels), dense)
        pruner.keep = 0.5
        assert torch.equal(case.encode(case.pixels), pruned)
    assert torch.equal(case.encode(case.pixels), dense)
    assert list(case.model.state_dict()) == keys


@torch.inference_mode()
def test_saved_and_loaded_it_gives_the_same_features(case, tmp_path):
    pruner = make(case.tower, keep=0.4, block=2)
    pruner.save_pretrained(tmp_path)
    loaded = Pruner.from_pretrained(tmp_path)
    assert loaded.schedule == pruner.schedule
    assert loaded.base == pruner.base
    with pruner.attached(case.model):
        expected = case.encode(case.pixels)
    with loaded.attached(case.model):
        assert torch.equal(case.encode(case.pixels), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_keep_follows_the_fitted_shape_whatever_was_set_before(tower, tmp_path):
    fitted = Schedule({1: 0.9, 2: 0.7, 4: 0.4})
    pruner = make(tower, schedule=fitted)
    for rate in (1.0, 0.2, 0.7):
        pruner.keep = rate
    assert pruner.schedule == fitted.at(0.7)
    assert pruner.at(0.4).schedule == fitted
    pruner.keep = 1.0
    pruner.save_pretrained(tmp_path)
    loaded = Pruner.from_pretrained(tmp_path)
    assert loaded.keep == 1.0
    assert loaded.fitted == fitted
    loaded.keep = 0.4
    assert loaded.schedule == fitted


@pytest.mark.parametrize("tokens", [0, 3])
def test_at_macs_has_the_share_of_the_dense_macs_visual_tokens_included(tower, tokens):
    pruner = make(tower, schedule=Schedule({1: 0.75, 3: 0.5}))
    prompts = Prompts("visual", 4, tower.width, num_tokens=tokens) if tokens else None
    chosen = pruner.tuned_by(prompts).at_macs(tower, 0.7)
    assert (chosen.fitted, chosen.prompts) == (pruner.fitted, prompts)
    dense = analytic_macs(tower, 24, Schedule({1: 1.0}))
    found = {left: analytic_macs(tower, 24, pruner.fitted.at(left / 16), tokens) / dense for left in range(1, 17)}
    assert chosen.keep == min(found, key=lambda left: abs(found[left] - 0.7)) / 16
    assert pruner.tuned_by(prompts).at_macs(tower, 0.7).keep == chosen.keep


def test_the_schedule_is_read_only(tower):
    with pytest.raises(AttributeError):
        make(tower).schedule = Schedule({3: 0.2})


def test_the_same_pruner_at_another_rate_or_schedule_shares_its_predictors(tower):
    pruner = make(tower, schedule=Schedule({1: 0.75, 3: 0.5}))
    other, third = pruner.at(0.3), pruner.scheduled(Schedule({1: 0.4}))
    assert other.predictor(1) is third.predictor(1) is pruner.predictor(1)
    assert (other.keep, other.fitted) == (0.3, pruner.fitted)
    assert (third.keep, third.fitted) == (0.4, Schedule({1: 0.4}))
    assert pruner.keep == 0.5


def test_a_schedule_whose_first_block_has_no_predictor_is_refused(tower):
    pruner = make(tower, block=3)
    with pytest.raises(UserError, match="before block 2 first, and the pruner has predictors for 3: start there"):
        pruner.scheduled(Schedule({2: 0.8, 3: 0.5}))
    with pytest.raises(UserError, match="predictors for none"):
        Pruner({}, pruner.base, pruner.fitted)


@torch.inference_mode()
def test_format_4_is_read(tower, tmp_path):
    first, later = Predictor.for_tower(tower), Predictor.for_tower(tower, "mlp")
    nn.init.normal_(later.correction.weight)
    context = torch.randn(1, 2, 6)
    config = {
        "format": 4,
        "base_model": asdict(BaseModel.of(tower, "tiny")),
        "schedule": {"1": 0.75, "3": 0.5},
        "predictor": {name: value for name, value in first.config.items() if name != "merges"},
        "later": {"3": {name: value for name, value in later.config.items() if name != "merges"}},
        "prompts": {"tokens": "text", "text_width": 6, "width": 32, "number": 2, "depth": 1, "coupled": True}
        | {"own_context": False, "class_names": [], "features": 0},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {f"predictor.{name}": value for name, value in first.state_dict().items()}
    weights |= {f"later.3.{name}": value for name, value in later.state_dict().items()}
    weights |= {"prompts.context": context, "prompts.class_features": torch.zeros(0, 0)}
    save_file(weights, tmp_path / "model.safetensors")
    pruner = Pruner.from_pretrained(tmp_path)
    assert (pruner.keep, pruner.schedule) == (0.5, Schedule({1: 0.75, 3: 0.5}))
    assert torch.equal(pruner.prompts.context, context)
    pixels = torch.randn(2, 3, 32, 32)
    with pruner.attached(tower):
        found = tower(pixels)
    with Pruner({1: first, 3: later}, pruner.base, pruner.fitted).eval().attached(tower):
        assert torch.equal(found, tower(pixels))


def test_a_half_precision_model_is_served_by_the_same_pruner(tower):
    pruner = make(tower)
    tower.module.bfloat16()
    tower._projection.bfloat16()
    with pruner.attached(tower), torch.inference_mode():
        features = tower(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16))
    assert features.dtype == torch.bfloat16


def test_detaching_after_an_error_inside_the_with_block(tower):
    pruner = make(tower)
    with pytest.raises(RuntimeError), pruner.attached(tower):
        raise RuntimeError
    assert not tower.blocks[3]._forward_pre_hooks


def test_attaching_twice_is_refused_and_detaching_twice_is_not(tower):
    pruner = make(tower).attach(tower)
    with pytest.raises(UserError, match="detach it first"):
        pruner.attach(tower)
    pruner.detach()
    pruner.detach()


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", (48, 48)), ("grid", (2, 8)), ("activation", "gelu"), ("num_prefix_tokens", 5), ("depth", 12)],
)
def test_another_base_is_refused_in_one_sentence(tower, field, value):
    pruner = make(tower)
    object.__setattr__(pruner.base, field, value)
    with pytest.raises(UserError, match=f"fitted to 'tiny' with {field.replace('_', ' ')}") as raised:
        pruner.attach(tower)
    assert "\n" not in str(raised.value)


def test_other_weights_are_refused(tower):
    pruner = make(tower)
    tower.blocks[-1].mlp.fc1.weight.normal_()
    with pytest.raises(UserError, match="other weights"):
        pruner.attach(tower)


@pytest.mark.parametrize("rate", [0, 1.5, "0.5", float("nan"), True, None])
def test_a_wrong_keep_rate_is_refused_and_changes_nothing(tower, rate):
    pruner = make(tower, keep=0.5)
    with pytest.raises(UserError, match="keep rate"):
        pruner.keep = rate
    assert pruner.keep == 0.5


def test_unreadable_artefacts_are_named(tower, tmp_path):
    with pytest.raises(UserError, match="no readable pruner"):
        Pruner.from_pretrained(tmp_path)
    make(tower).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        Pruner.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="no readable pruner"):
        Pruner.from_pretrained(tmp_path)


class FullDisk:
    """Fails with "No space left on device" at the n-th of the calls that write or replace a file."""

    def __init__(self, monkeypatch, fatal):
        self.left = fatal
        for owner, name in ((Path, "write_text"), (Path, "write_bytes"), (os, "replace")):
            monkeypatch.setattr(owner, name, self.failing(getattr(owner, name)))

    def failing(self, call):
        def attempt(*arguments, **options):
            self.left -= 1
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)

        return attempt


def same(found, pruner):
    weights = pruner.state_dict()
    alike = found.state_dict().keys() == weights.keys()
    return alike and all(torch.equal(value, weights[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize("fatal", range(1, 8))
def test_on_a_full_disk_the_old_pruner_stays(tower, tmp_path, monkeypatch, fatal):
    old, new = make(tower, 0.4, block=2), make(tower, 0.6, block=3)
    old.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, fatal)
        if fatal < 7:
            with pytest.raises(UserError, match=r"stays as it was: .*No space left on device"):
                new.save_pretrained(tmp_path)
        else:
            new.save_pretrained(tmp_path)
            assert disk.left == 1
    found = Pruner.from_pretrained(tmp_path)
    if fatal < 5:
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert (found.keep, same(found, old)) == (0.4, True)
    else:
        assert (found.keep, same(found, new)) == (0.6, True)


def test_a_kill_between_the_two_files_leaves_the_new_pruner_whole(tower, tmp_path):
    make(tower, 0.4, block=2).save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    new = make(tower, 0.6, block=3)
    new.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(before)
    found = Pruner.from_pretrained(tmp_path)
    assert (found.schedule, same(found, new)) == (new.schedule, True)


def test_a_keep_rate_written_into_the_configuration_counts(tower, tmp_path):
    make(tower).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"keep": 0.3}))
    assert Pruner.from_pretrained(tmp_path).keep == 0.3


@pytest.mark.skipif(os.name == "nt", reason="needs a umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664)])
def test_modes_follow_the_umask(tower, tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        make(tower).save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_weights_that_are_no_numbers_are_refused(tower, tmp_path):
    pruner = make(tower)
    next(pruner.parameters()).data[0] = torch.nan
    pruner.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no finite numbers"):
        Pruner.from_pretrained(tmp_path)


def test_a_tilde_is_the_home_folder_and_a_long_name_no_folder(tower, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tower).save_pretrained("~/one")
    assert Pruner.from_pretrained("~/one").keep == 0.5
    with pytest.raises(UserError, match="File name too long"):
        Pruner.from_pretrained("a" * 300)
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(UserError, match=r"no folder '.*/two'; '.*' holds one\."):
        Pruner.from_pretrained(f"{tmp_path.name}/two")


def test_what_is_uploaded_is_what_is_saved(tower, tmp_path, monkeypatch):
    uploaded = {}
    monkeypatch.setattr(
        Pruner, "push_to_hub", lambda self, repo_id, **options: uploaded.update(options, repo=repo_id) or "address"
    )
    assert make(tower).save_pretrained(tmp_path / "bird", push_to_hub=True, private=True) == "address"
    assert uploaded == {"repo": "bird", "private": True}


def test_the_weights_are_safetensors_of_the_predictors_alone(tower, tmp_path):
    pruner = make(tower)
    pruner.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == {f"predictors.3.{name}" for name in pruner.predictor(3).state_dict()}
    for name, value in pruner.predictor(3).state_dict().items():
        assert torch.equal(weights[f"predictors.3.{name}"], value)


def test_the_model_card_names_the_base(tower, tmp_path):
    make(tower, schedule=Schedule({1: 0.75, 3: 0.5})).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Before blocks 1 and 3, those" in card
    assert "library_name: patchranking" in card
    assert "# Pruner for tiny" in card


def test_the_card_follows_the_pruner_until_someone_writes_another(tower, tmp_path):
    make(tower, 0.4).save_pretrained(tmp_path)
    make(tower, 0.6).save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    assert "| 0.6: 10 of 16 patches" in card.read_text()
    card.write_text("# My own")
    for rate in (0.4, 0.7):
        make(tower, rate).save_pretrained(tmp_path)
        assert card.read_text() == "# My own"


def test_figures_go_where_the_pruner_goes_and_not_with_what_does_something_else(tower, tmp_path):
    pruner = make(tower)
    assert pruner.measured is None
    pruner.measured = figures = Measured("birds", "train", 90, 10, 0, 4, {}, [{"keep_rate": 0.5, "macs_share": 0.6}])
    assert pruner.at(0.3).measured is pruner.untuned.measured is figures
    assert pruner.scheduled(Schedule({3: 0.4})).measured is None
    assert pruner.tuned_by(Prompts("visual", 4, tower.width, num_tokens=2)).measured is None
    pruner.save_pretrained(tmp_path)
    assert Pruner.from_pretrained(tmp_path).measured == figures
    assert "10 pictures of `birds` (train)" in (tmp_path / "README.md").read_text()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("measured")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Pruner.from_pretrained(tmp_path).measured is None
    (tmp_path / "config.json").write_text(json.dumps(config | {"measured": {"rows": "many"}}))
    with pytest.raises(UserError, match="no figures of a fit"):
        Pruner.from_pretrained(tmp_path)


def test_a_folder_with_another_kind_of_model_is_said_to_hold_one(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="another kind of model, and no pruner"):
        Pruner.from_pretrained(tmp_path)


def test_compiles_without_graph_breaks(tower):
    predictors = {block: Predictor.for_tower(tower, "mlp") for block in (1, 3)}
    pruner = Pruner(predictors, BaseModel.of(tower, "tiny"), Schedule.spread([1, 3], 0.5)).eval()
    with pruner.attached(tower), torch.inference_mode():
        pixels = torch.randn(2, 3, 32, 32)
        expected = tower(pixels)
        compiled = torch.compile(tower.__call__, fullgraph=True, backend="eager")
        assert torch.equal(compiled(pixels), expected)


@torch.inference_mode()
def test_stages_reuse_the_first_order(case):
    tower, schedule = case.tower, Schedule({1: 0.8, 2: 0.5, 4: 0.3})
    pruner = make(tower, schedule=schedule)
    tokens, prefix = tower.embed(case.pixels, 1), tower.num_prefix_tokens
    order = pruner(tokens).argsort(dim=1, descending=True)
    here = torch.arange(tower.num_patches).expand_as(order)
    for (block, count), stop in zip(schedule.kept(tower.num_patches).items(), (2, 4, 5), strict=True):
        best = order[:, :count].sort(dim=1).values
        places = torch.stack([torch.searchsorted(*rows) for rows in zip(here.contiguous(), best, strict=True)])
        tokens = tower.run(gather_tokens(tokens, places, prefix), block, stop, positions=best)
        here = best
    with pruner.attached(case.model):
        torch.testing.assert_close(case.encode(case.pixels), tower.pool(tokens), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_stage_with_a_predictor_of_its_own_scores_again(case, tmp_path):
    tower, schedule = case.tower, Schedule({1: 0.8, 2: 0.5, 4: 0.3})
    first, later = (Predictor.for_tower(tower, "mlp") for _ in range(2))
    nn.init.normal_(later.correction.weight)
    Pruner({1: first, 2: later}, BaseModel.of(tower, "tiny"), schedule).save_pretrained(tmp_path)
    counts = schedule.kept(tower.num_patches)
    tokens, places, _ = first.prune(tower.embed(case.pixels, 1), counts[1])
    tokens, again, _ = later.prune(tower.run(tokens, 1, 2, positions=places), counts[2], best_first)
    places = places.gather(1, again)
    tokens = tower.run(tokens, 2, 4, positions=places)[:, : tower.num_prefix_tokens + counts[4]]
    expected = tower.pool(tower.run(tokens, 4, positions=places[:, : counts[4]]))
    with Pruner.from_pretrained(tmp_path).attached(case.model) as pruner:
        torch.testing.assert_close(case.encode(case.pixels), expected, rtol=0, atol=1e-5)
        pruner.keep = 1.0
        assert torch.equal(case.encode(case.pixels), tower(case.pixels))


def test_keep_may_change_while_attached_and_every_stage_follows(tower):
    lengths = []
    pruner = make(tower, schedule=Schedule({1: 0.75, 3: 0.5})).attach(tower)
    for block in (1, 3):
        tower.blocks[block].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    for rate in (0.5, 0.25, 1.0):
        pruner.keep = rate
        tower(torch.randn(1, 3, 32, 32))
    assert lengths == [13, 9, 10, 5, 17, 17]


def test_another_number_of_patches_is_refused(tower):
    with make(tower).attached(tower), pytest.raises(UserError, match="16 patches"):
        tower.run(torch.randn(1, 10, tower.width), 0)


def test_a_stage_the_tower_lacks_is_refused(tower):
    with pytest.raises(UserError, match="before block 7"):
        make(tower, schedule=Schedule({3: 0.8, 7: 0.5})).attach(tower)


SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2, "num_classes": 24}


def near(found, expected):
    return found.shape == expected.shape and (found - expected).norm() < 1e-3 * expected.norm()


@torch.inference_mode()
def test_code_compiled_before_sees_attach_detach_and_keep(tower):
    """With hooks where patches go alone; those on every block are in the tests of merging, for all libraries."""
    pixels = torch.randn(3, 3, 32, 32)
    pruner, dense = make(tower), tower(pixels)
    compiled = torch.compile(lambda pixels: tower(pixels), fullgraph=True, backend="eager")
    assert near(compiled(pixels), dense)
    with pruner.attached(tower):
        for keep in (0.5, 1.0, 0.5):
            pruner.keep = keep
            assert near(compiled(pixels), tower(pixels))
            assert near(compiled(pixels), dense) == (keep == 1)
    assert near(compiled(pixels), dense)
    pruner.attach(tower)
    assert not near(compiled(pixels), dense)
    detach(tower)
    assert near(compiled(pixels), dense)


@torch.inference_mode()
@torch._dynamo.config.patch(recompile_limit=4)
def test_any_number_of_keep_rates_runs_compiled_and_half_the_limit_without_compiling_again():
    tower = as_tower(timm.create_model("vit_base_patch16_224", pretrained=False, **(SIZES | {"depth": 2})).eval())
    graphs, pixels = [], torch.randn(2, 3, 32, 32)

    def note(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda pixels: tower(pixels), fullgraph=True, backend=note)
    with Pruner.unfitted(tower, "tiny", Schedule({1: 0.5})).attached(tower) as pruner:
        for rate, made in ((0.5, 1), (0.9, 2), (0.5, 2), (0.9, 2), (0.8, 3), (0.7, 4), (0.6, 5)):
            pruner.keep = rate
            assert torch.allclose(compiled(pixels), tower(pixels), atol=1e-5)
            assert len(graphs) == made
    assert torch.allclose(compiled(pixels), tower(pixels), atol=1e-5)


def tuned(tower):
    """A pruner with stages of every kind and visual tokens."""
    pruner = make(tower, schedule=Schedule({1: 0.75, 3: 0.5}))
    return pruner.tuned_by(Prompts("visual", 8, tower.width, 2, depth=2))


def merging(tower):
    """A pruner whose stages merge, with visual tokens."""
    predictors = {
        block: Predictor.for_tower(tower, network, merges=True) for block, network in ((1, "mixer"), (3, "mlp"))
    }
    for predictor in predictors.values():
        nn.init.zeros_(predictor.fate.bias)
    pruner = Pruner(predictors, BaseModel.of(tower, "tiny"), Schedule({1: 0.75, 3: 0.5})).eval()
    return pruner.tuned_by(Prompts("visual", 8, tower.width, 2, depth=2))


def test_copies_of_an_attached_model_prune_until_detached(case):
    """With hooks on every block; the pruner has visual tokens."""
    check_copies(case, merging)


def test_copies_of_a_model_with_hooks_where_patches_go_alone_prune_until_detached(one_of_each):
    check_copies(one_of_each, make)


@torch.inference_mode()
def check_copies(case, kind):
    pruner, dense = kind(case.tower), case.tower(case.pixels)
    with pruner.attached(case.model):
        pruned = case.tower(case.pixels)
        file = io.BytesIO()
        torch.save(case.model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        copies = [copy.deepcopy(case.model), AveragedModel(case.model).module, loaded]
        pruner.keep = 0.25
        for model in copies:
            tower = as_tower(model)
            assert torch.equal(tower(case.pixels), pruned)
            with pytest.raises(UserError, match=r"pruned already: .* patchranking\.detach\(model\)"):
                kind(tower).attach(model)
            detach(model)
            assert torch.equal(tower(case.pixels), dense)
        assert not torch.equal(case.tower(case.pixels), dense)
    assert torch.equal(case.tower(case.pixels), dense)
    with kind(case.tower).attached(copies[0]):
        assert not torch.equal(as_tower(copies[0])(case.pixels), dense)


@torch.inference_mode()
@pytest.mark.parametrize("again", [copy.deepcopy, lambda pruner: pickle.loads(pickle.dumps(pruner))])
def test_a_copy_of_an_attached_pruner_is_attached_to_nothing(tower, again):
    pixels = torch.randn(2, 3, 32, 32)
    pruner, dense = make(tower).attach(tower), tower(pixels)
    other = again(pruner)
    other.detach()
    other.keep = 1.0
    assert torch.equal(tower(pixels), dense)
    pruner.detach()
    assert not torch.equal(tower(pixels), dense)
    with pruner.attached(tower):
        assert torch.equal(tower(pixels), dense)


@torch.inference_mode()
def test_a_second_pruner_is_refused_and_the_first_goes_on(case):
    dense = case.encode(case.pixels)
    make(case.tower).attach(case.model)
    pruned = case.encode(case.pixels)
    second = make(case.tower)
    with pytest.raises(UserError, match="pruned already"):
        second.attach(case.model)
    assert torch.equal(case.encode(case.pixels), pruned)
    detach(case.model)
    assert torch.equal(case.encode(case.pixels), dense)
    with second.attached(case.model):
        assert not torch.equal(case.encode(case.pixels), dense)


def test_detach_takes_off_no_other_hooks_and_may_be_called_any_time(tower):
    seen = []
    tower.blocks[3].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    pruner = make(tower).attach(tower)
    detach(tower.module)
    detach(tower.module)
    tower(torch.randn(1, 3, 32, 32))
    assert seen == [17]
    other = make(tower).attach(tower)
    pruner.detach()
    with pytest.raises(UserError, match="pruned already"):
        pruner.attach(tower)
    other.detach()
    pruner.attach(tower).detach()


def test_a_frozen_model_stays_frozen_and_others_learn_as_before(case):
    pruner = make(case.tower)
    nn.init.normal_(pruner.predictor(3).correction.weight)
    with pruner.attached(case.model):
        features = case.encode(case.pixels)
        assert not features.requires_grad
        features.numpy()
        first, last = (case.tower.blocks[block].requires_grad_(True) for block in (0, 4))
        (case.encode(case.pixels) * torch.randn_like(features)).sum().backward()
    assert all(weight.requires_grad for weight in pruner.parameters())
    for block in (first, last):
        assert any(weight.grad is not None and weight.grad.any() for weight in block.parameters())


@torch.inference_mode()
@pytest.mark.parametrize("kind", [make, merging])
def test_the_precision_of_the_model_may_change_while_attached(case, kind):
    pruner = kind(case.tower).attach(case.model)
    expected = case.encode(case.pixels)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        case.model.to(dtype)
        features = case.encode(case.pixels.to(dtype))
        assert features.dtype == dtype
        assert torch.nn.functional.cosine_similarity(features.float(), expected).median() > 0.95
    assert next(pruner.parameters()).dtype == torch.float32


def test_the_predictor_follows_a_model_that_moves(tower):
    pruner = tuned(tower).attach(tower)
    tower.module.to("meta")
    tokens = tower.run(torch.zeros(2, 17, tower.width, device="meta"), 0)
    assert tokens.shape == (2, 9, tower.width)
    assert {weight.device.type for weight in pruner.parameters()} == {"meta"}


@torch.inference_mode()
def test_a_compiled_wrapper_prunes_from_attaching_on():
    model = timm.create_model("vit_base_patch16_224", pretrained=False, **SIZES).eval()
    compiled, pixels = torch.compile(model, backend="eager"), torch.randn(2, 3, 32, 32)
    dense = compiled(pixels)
    with make(as_tower(model)).attached(compiled):
        assert near(compiled(pixels), model(pixels))
        assert not near(compiled(pixels), dense)
    assert near(compiled(pixels), dense)


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore")
def test_quantised_after_or_before_attaching_it_prunes(case):
    pruner, dense = make(case.tower), case.encode(case.pixels)
    with pruner.attached(case.model):
        pruned = case.encode(case.pixels)
        quantised = torch.ao.quantization.quantize_dynamic(case.model, {nn.Linear}, dtype=torch.qint8)
    tower = as_tower(quantised)

    def error(expected):
        return (tower(case.pixels) - expected).norm()

    assert error(pruned) < error(dense)
    detach(quantised)
    assert error(dense) < error(pruned)
    pruner.attach(quantised)
    assert error(pruned) < error(dense)


def test_a_configuration_that_claims_huge_sizes_takes_no_memory(tower, tmp_path):
    make(tower).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    next(iter(config["predictors"].values()))["width"] = 10**12
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no readable pruner"):
        Pruner.from_pretrained(tmp_path)


def test_gradients_are_the_same_with_checkpointing(case):
    if case.tower.rotary:
        return  # see test_pruner_merging.py
    pruner, found = make(case.tower), []
    for on in (False, True):
        case.model.train().requires_grad_().zero_grad()
        if on and hasattr(case.model, "gradient_checkpointing_enable"):
            case.model.gradient_checkpointing_enable()
        elif on:
            case.model.set_grad_checkpointing()
        with pruner.attached(case.model):
            case.encode(case.pixels).sum().backward()
        found.append([weight.grad.clone() for weight in case.tower.module.parameters() if weight.grad is not None])
    assert len(found[0]) == len(found[1]) > 10
    assert all(torch.allclose(plain, again, atol=1e-5) for plain, again in zip(*found, strict=True))
