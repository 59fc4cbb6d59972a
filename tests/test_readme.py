from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from patchranking import cli
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.towers.base_model import BaseModel

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_three_lines_run_on_an_open_clip_model(tmp_path, monkeypatch, case):
    if not hasattr(case.model, "encode_image"):
        pytest.skip("the three lines call encode_image, as open_clip models have it")
    tower = case.tower
    predictor = Predictor(tower.width, tower.num_prefix_tokens, tower.num_patches)
    Pruner(predictor, BaseModel.of(tower, "tiny"), Schedule({3: 0.6})).save_pretrained(tmp_path / "runs/fit")
    monkeypatch.chdir(tmp_path)
    names = {"model": case.model, "images": case.pixels}
    exec(PYTHON[0], names)
    assert names["features"].shape == case.encode(case.pixels).shape
    assert not torch.equal(names["features"], case.encode(case.pixels))


def test_the_python_example_runs():
    names: dict[str, object] = {}
    exec(PYTHON[1], names)
    assert names["golden"].importance.shape == (1, 144)


def test_the_commands_run_on_a_folder(tmp_path, monkeypatch):
    """`fit` and `evaluate` as in the README, on demo scenes saved as pictures and the demo model."""
    from patchranking.demo import scene

    for split in ("train", "val"):
        for index in range(6):
            drawn = scene(split, index)
            folder = tmp_path / "photos" / split / f"class_{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            drawn.image.save(folder / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    commands = re.findall(r"^patchranking (.*)$", block, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["fit", "evaluate"]
    for command in commands:
        arguments = command.replace("open_clip:ViT-B-16/openai", "demo").replace("--limit 300", "--limit 5")
        if arguments.startswith("evaluate"):
            arguments += " --golden_images 1 --timing_batch 1"
        monkeypatch.setattr(sys, "argv", ["patchranking", *arguments.split()])
        cli.main()
    assert (tmp_path / "runs/fit/config.json").is_file()
    assert "patchranking" in (tmp_path / "runs/evaluate/report.html").read_text()


def test_every_number_of_the_tables_comes_from_the_results():
    scope: dict[str, object] = {"__file__": str(ROOT / "benchmarks/tables.py"), "__name__": "tables"}
    exec((ROOT / "benchmarks/tables.py").read_text(), scope)
    for page in scope["PAGES"]:
        assert scope["fill"](page.read_text()) == page.read_text(), page


def test_links_lead_somewhere():
    for target in [*re.findall(r"\]\((?!https?:)([^)#]+)\)", README), *re.findall(r'src="([^"]+)"', README)]:
        assert (ROOT / target).exists(), target


def test_make_demo_runs_the_demo_command(tmp_path, monkeypatch):
    command = re.search(r"/patchranking (demo --out runs/demo)", (ROOT / "Makefile").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["patchranking", *command[1].split(), "--images", "8", "--scenes", "8"])
    cli.main()
    results = json.loads((tmp_path / "runs/demo/results.json").read_text())
    methods = {"dense", "random", "cls-attention", "evit", "tome", "patchranking", "golden"}
    assert {row["method"] for row in results["rows"]} == methods
    assert [row["oracle"] for row in results["rows"]].count(True) == 6
    assert (tmp_path / "runs/demo/report.html").is_file()
    assert (tmp_path / "runs/demo/pruner/model.safetensors").is_file()
