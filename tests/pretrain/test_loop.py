from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import patchranking
from patchranking import load_data
from patchranking.errors import UserError
from patchranking.pretrain.budget import budget_of, formula_costs, measured_costs
from patchranking.pretrain.compression import Compression
from patchranking.pretrain.contrastive import ContrastiveSettings, contrastive, make_objective
from patchranking.pretrain.loop import TrainSettings
from patchranking.pretrain.schedule import CompressionSchedule, Stage

SCHEDULE = CompressionSchedule(
    (Stage(0.0, Compression(8, 0.5)), Stage(0.4, Compression(8)), Stage(0.8, Compression(4)))
)
SMALL = ContrastiveSettings(
    epochs=3,
    batch_size=4,
    evaluations=2,
    image_size=16,
    patch_size=4,
    model_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    head=16,
)


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
    report = contrastive(data, data, tmp_path / "run", SMALL, schedule)
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
    assert all(0 <= row["knn"] <= 100 and 0 <= row["linear_probe"] <= 100 for row in report.progress.rows)


def test_the_rate_follows_the_budget(data, schedule, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def noted(self, *args, **kwargs):
        rates.append({group["lr"] for group in self.param_groups})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    settings = replace(SMALL, warm_up=0.5, learning_rate=0.64, decay="power")
    report = contrastive(data, None, tmp_path / "run", settings, schedule)
    assert len(rates) == report.progress.step
    assert rates[0] == {0.0}
    objective, spent = make_objective(SMALL), 0.0
    for rate in rates:
        share = spent / report.budget
        expected = 0.01 * (share / 0.5 if share < 0.5 else 1 - ((share - 0.5) / 0.5) ** 2)
        assert list(rate) == [pytest.approx(expected)]
        spent += 4 * objective.passes(SCHEDULE.at(share))


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(killed_forks, data, schedule, tmp_path):
    """DINO has all there is to keep: momentum encoder, centre, optimiser, order, views and dropped patches."""
    prepared = f"""
import lightly.loss, lightly.transforms, lightly.utils.dist, lightning_fabric, timm.data, timm.models, timm.optim, torch
from patchranking import load_data
from patchranking.pretrain import loop
from patchranking.pretrain.contrastive import contrastive, ContrastiveSettings
torch.set_num_threads(1)
loop._SECONDS_PER_SAVE = 0.0
settings = ContrastiveSettings(
    method="dino", epochs=3, batch_size=4, evaluations=2, image_size=16, patch_size=4,
    model_args={SMALL.model_args}, head=16,
)
data = load_data("{Path(schedule).parent / "noise"}")

def run(out):
    contrastive(data, None, out, settings, "{schedule}")
"""
    with killed_forks(prepared) as ask:
        assert ask(0, tmp_path / "whole") == 0
        for fatal in (6, 13):
            assert ask(fatal, tmp_path / "killed") == -signal.SIGKILL
        assert ask(0, tmp_path / "killed") == 0
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    for name in ("stages/1000.safetensors", "stages/0500.safetensors"):
        whole, resumed = (load_file(tmp_path / run / "progress" / name) for run in ("whole", "killed"))
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_finished_training_does_nothing_again(data, schedule, tmp_path):
    first = contrastive(data, None, tmp_path / "run", SMALL, schedule)
    again = contrastive(data, None, tmp_path / "run", SMALL, schedule)
    assert again == first
    with pytest.raises(UserError, match="holds the progress of another pretraining"):
        contrastive(data, None, tmp_path / "run", replace(SMALL, seed=1), schedule)


_TWO = """
import sys
from pathlib import Path
import torch
from patchranking import load_data
from patchranking.pretrain.contrastive import contrastive, ContrastiveSettings
torch.set_num_threads(1)
for method in ("moco", "dino"):
    settings = ContrastiveSettings(
        method=method, epochs=3, batch_size=4, evaluations=1, image_size=16, patch_size=4, learning_rate=1e-2,
        model_args={"embed_dim": 16, "depth": 1, "num_heads": 2}, head=16,
    )
    contrastive(load_data(sys.argv[1]), None, Path(sys.argv[2]) / method, settings, sys.argv[3])
"""


def test_two_processes_are_one_with_the_same_batch(noise_folder, schedule, tmp_path):
    folder = noise_folder("noise", ("cat", "dog"), 4)
    (tmp_path / "run.py").write_text(_TWO)
    environment = os.environ | {"PYTHONPATH": str(Path(patchranking.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launcher in (("one", [sys.executable]), ("two", two)):
        command = [*launcher, str(tmp_path / "run.py"), str(folder), str(tmp_path / name), schedule]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    for method in ("moco", "dino"):
        one, two = weights_of(tmp_path / "one" / method), weights_of(tmp_path / "two" / method)
        start = make_objective(replace(SMALL, method=method)).encoder.state_dict()
        assert max((one[name] - start[name]).abs().max() for name in one) > 1e-3
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5, msg=f"{method} {name}")


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
    report = contrastive(data, None, tmp_path / "run", replace(SMALL, cost="measured", epochs=1), schedule)
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
    ],
)
def test_wrong_settings_are_named(wrong, said):
    with pytest.raises(UserError, match=said):
        TrainSettings(**wrong)


def test_a_loss_that_is_not_finite_ends_with_a_sentence(data, schedule, tmp_path):
    with pytest.raises(UserError, match=r"no longer finite.*lower learning rate"):
        contrastive(data, None, tmp_path / "run", replace(SMALL, learning_rate=1e12, epochs=10), schedule)
