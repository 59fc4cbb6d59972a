from __future__ import annotations

import signal
import socket
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from patchranking import load_data
from patchranking.errors import UserError
from patchranking.pretrain.budget import budget_of, formula_costs, measured_costs
from patchranking.pretrain.compression import Compression
from patchranking.pretrain.contrastive import ContrastiveSettings, contrastive, make_objective
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.masked import MAESettings, mae
from patchranking.pretrain.schedule import CompressionSchedule, Stage

SCHEDULE = CompressionSchedule(
    (Stage(0.0, Compression(8, 0.5)), Stage(0.4, Compression(8)), Stage(0.8, Compression(4)))
)
SMALL = ContrastiveSettings(
    image_size=16, patch_size=4, model_args={"embed_dim": 16, "depth": 1, "num_heads": 2}, head=16
)
TRAINING = TrainSettings(epochs=3, batch_size=4, evaluations=2)


@pytest.fixture
def data(noise_folder):
    return load_data(str(noise_folder("noise", ("cat", "dog"), 4)))


@pytest.fixture
def schedule(tmp_path):
    SCHEDULE.save(tmp_path / "schedule.yaml")
    return str(tmp_path / "schedule.yaml")


def weights_of(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_the_accounted_budget_is_the_summed_formula(data, schedule, tmp_path):
    report = contrastive(data, data, tmp_path / "run", SMALL, TRAINING, schedule)
    objective = make_objective(SMALL)
    budget = budget_of(objective, 3, 8)
    assert report.budget == budget == pytest.approx(3 * 8 * 4 / 3)
    spent, steps, used = 0.0, 0, []
    while spent < budget:
        used.append(SCHEDULE.at(spent / budget))
        spent += 4 * objective.passes(used[-1])
        steps += 1
    assert set(used) == set(SCHEDULE.compressions)
    assert (report.progress.step, report.progress.spent) == (steps, spent)
    assert [row["share"] for row in report.progress.rows] == [0, 0.5, 1]
    assert [row["step"] for row in report.progress.rows][::2] == [0, steps]
    assert report.progress.rows[-1]["budget"] == spent
    assert [row["cpu_seconds"] > 0 for row in report.progress.rows] == [False, True, True]
    assert all(0 <= row["knn"] <= 100 and 0 <= row["linear_probe"] <= 100 for row in report.progress.rows)


def test_the_rate_follows_the_budget(data, schedule, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def noted(self, *args, **kwargs):
        rates.append({group["lr"] for group in self.param_groups})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    training = replace(TRAINING, warm_up=0.5, learning_rate=0.64, decay="power")
    report = contrastive(data, None, tmp_path / "run", SMALL, training, schedule)
    assert len(rates) == report.progress.step
    assert rates[0] == {0.0}
    objective, spent = make_objective(SMALL), 0.0
    for rate in rates:
        share = spent / report.budget
        expected = 0.01 * (share / 0.5 if share < 0.5 else 1 - ((share - 0.5) / 0.5) ** 2)
        assert list(rate) == [pytest.approx(expected)]
        spent += 4 * objective.passes(SCHEDULE.at(share))


def test_constants_of_the_optimiser_are_the_methods(data, tmp_path, monkeypatch):
    made = []
    step = torch.optim.AdamW.step

    def noted(self, *args, **kwargs):
        made.append((self.param_groups[1]["betas"], self.param_groups[1]["weight_decay"]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    autoencoder = MAESettings(
        image_size=16,
        patch_size=4,
        model_args=SMALL.model_args,
        decoder_width=32,
        decoder_depth=1,
        curriculum="uniform",
    )
    contrastive(data, None, tmp_path / "moco", SMALL, TRAINING)
    mae(data, None, tmp_path / "mae", autoencoder, TRAINING)
    mae(data, None, tmp_path / "own", autoencoder, replace(TRAINING, weight_decay=0.3))
    assert list(dict.fromkeys(made)) == [((0.9, 0.999), 0.1), ((0.9, 0.95), 0.05), ((0.9, 0.95), 0.3)]


_RUN = """
import os, torch
from patchranking import load_data
from patchranking.extras import import_extra
from patchranking.pretrain import loop
from patchranking.pretrain.contrastive import contrastive, ContrastiveSettings
for name in ("lightly.loss", "lightly.transforms", "lightning_fabric", "timm.data", "timm.models", "timm.optim"):
    import_extra(name, "", "")
torch.set_num_threads(1)

def run(method, processes, port, data, out, schedule):
    rank = 0
    if port == "0":
        loop._SECONDS_PER_SAVE = 0.0
    if processes == "2":  # as torchrun starts them
        rank = 1 if (child := os.fork()) == 0 else 0
        os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"GROUP_RANK": "0"}
    model = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    settings = ContrastiveSettings(method, image_size=16, patch_size=4, model_args=model, head=16)
    training = loop.TrainSettings(epochs=3, batch_size=4, evaluations=2, learning_rate=1e-2)
    contrastive(load_data(data), None, out, settings, training, schedule)
    assert (torch.distributed.get_world_size() if processes == "2" else 1) == int(processes)
    if rank:
        os._exit(0)
    if processes == "2" and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(1)
"""


@pytest.fixture(scope="module")
def ask(killed_forks):
    """A process in which pretrainings are killed, or shared by two processes as torchrun starts them."""
    with killed_forks(_RUN) as ask:
        yield ask


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(ask, noise_folder, schedule, tmp_path):
    folder = noise_folder("noise", ("cat", "dog"), 4)
    assert ask(0, "moco", 1, 0, folder, tmp_path / "whole", schedule) == 0
    for fatal in (6, 13):
        assert ask(fatal, "moco", 1, 0, folder, tmp_path / "killed", schedule) == -signal.SIGKILL
    assert ask(0, "moco", 1, 0, folder, tmp_path / "killed", schedule) == 0
    for name in ("model/model.safetensors", "progress/stages/0500.safetensors", "progress/stages/1000.safetensors"):
        whole, resumed = (load_file(tmp_path / run / name) for run in ("whole", "killed"))
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.mark.parametrize("method", ["moco", "dino"])
def test_two_processes_are_one_with_the_same_batch(ask, noise_folder, schedule, tmp_path, method):
    folder = noise_folder("noise", ("cat", "dog"), 4)
    for processes in (1, 2):
        out = tmp_path / str(processes)
        assert ask(0, method, processes, free_port(), folder, out, schedule) == 0
    one, two = weights_of(tmp_path / "1"), weights_of(tmp_path / "2")
    start = make_objective(replace(SMALL, method=method)).encoder.state_dict()
    assert max((one[name] - start[name]).abs().max() for name in one) > 1e-3
    for weights in (one, two):  # what has no gradient but rounding, which AdamW makes steps of
        weights["blocks.0.attn.qkv.bias"] = weights["blocks.0.attn.qkv.bias"].view(3, -1)[[0, 2]]  # attention is blind
        if method == "moco":
            del weights["norm.bias"]  # so is a batch norm
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("method", ["moco", "simclr", "dino"])
def test_a_trained_tower_is_gone_on_from(data, tmp_path, method):
    contrastive(data, None, tmp_path / "first", SMALL, replace(TRAINING, seed=5))
    own = replace(SMALL, method=method, weights=str(tmp_path / "first/model"))
    trained, objective = weights_of(tmp_path / "first"), make_objective(own)
    assert all(torch.equal(value, trained[name]) for name, value in objective.encoder.state_dict().items())
    if method != "simclr":
        assert all(torch.equal(value, trained[name]) for name, value in objective.key_encoder.state_dict().items())
    first = contrastive(data, None, tmp_path / "run", own, TRAINING)
    (tmp_path / "first").rename(tmp_path / "moved")
    moved = replace(own, weights=str(tmp_path / "moved/model"))
    assert contrastive(data, None, tmp_path / "run", moved, TRAINING) == first
    with pytest.raises(UserError, match="holds the progress of another pretraining"):
        contrastive(data, None, tmp_path / "run", replace(own, weights=None), TRAINING)


def test_a_finished_training_does_nothing_again(data, schedule, tmp_path):
    first = contrastive(data, None, tmp_path / "run", SMALL, TRAINING, schedule)
    again = contrastive(data, None, tmp_path / "run", SMALL, TRAINING, schedule)
    assert again == first
    with pytest.raises(UserError, match="holds the progress of another pretraining"):
        contrastive(data, None, tmp_path / "run", SMALL, replace(TRAINING, seed=1), schedule)


def test_measured_costs_are_in_units_of_the_formula_and_leave_all_as_it_was():
    objective = make_objective(replace(SMALL, method="dino")).train()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    views = [torch.randn(8, 3, 16, 16) for _ in range(2)]
    found = measured_costs(objective, SCHEDULE.compressions, views, repeats=2)
    base = formula_costs(objective, [Compression(4)])
    assert found["patches of 4"] == base["patches of 4"] == pytest.approx(8 / 3)
    assert set(found) == {str(one) for one in SCHEDULE.compressions}
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert all(weight.grad is None for weight in objective.parameters())


def test_a_run_by_measured_costs_spends_them(data, schedule, tmp_path):
    report = contrastive(data, None, tmp_path / "run", SMALL, replace(TRAINING, cost="measured", epochs=1), schedule)
    costs, spent = report.progress.costs, 0.0
    for _ in range(report.progress.step):
        spent += 4 * costs[str(SCHEDULE.at(spent / report.budget))]
    assert report.progress.spent == spent


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "nothing is learned"),
        ({"learning_rate": 0}, "nothing is learned"),
        ({"warm_up": 1.0}, "share of the budget below 1"),
        ({"batch_size": 1}, "batch_size"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_wrong_settings_are_named(wrong, said):
    with pytest.raises(UserError, match=said):
        TrainSettings(**wrong)


def test_a_loss_that_is_not_finite_ends_with_a_sentence(data, schedule, tmp_path):
    with pytest.raises(UserError, match=r"no longer finite.*lower learning rate"):
        contrastive(data, None, tmp_path / "run", SMALL, replace(TRAINING, learning_rate=1e12, epochs=10), schedule)
