"""The README and the docs: their Python runs, their commands parse and, where nothing else is needed, run."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tables
import torch

from patchranking import EvaluationSettings, cli, embed_to, load_data
from patchranking.commands import demo
from patchranking.commands.arguments import parse
from patchranking.demo import scene
from patchranking.demo.scenes import CLASSES
from patchranking.fitting.settings import FitSettings
from patchranking.predictor.doubt import Doubt
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PROSE = ("README", "limits", "recipes", "results")
"""Pages without a command on the demo, and the one that is run as a whole."""
NEEDS = {"open_clip:ViT": "needs the Hub", "org/": "needs the Hub", "photos/": "needs the photos"}


def commands():
    """Page, what stands before the command's block, and the command, of every command in the docs."""
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"```bash\n(.*?)```|(?:^    [^\n]+\n)+", text, re.MULTILINE | re.DOTALL):
            lines = re.sub(r"\\\n\s*", "", block[1] or block[0])
            for line in re.findall(r"^\s*((?:patchranking|python benchmarks/\w+\.py) .*?)\s*(?:#.*)?$", lines, re.M):
                yield pytest.param(text[: block.start()].rstrip()[-300:], line, id=f"{page.stem}: {line[:70]}")


@pytest.mark.parametrize(("before", "line"), commands())
def test_every_command_parses_and_says_what_it_needs(before, line):
    program, *arguments = shlex.split(line)
    if program == "python":
        name = Path(arguments.pop(0)).stem
        module = importlib.import_module(name)
        function = getattr(module, name, None) or module.main
    else:
        name, arguments = cli.command_of(arguments)
        own = cli.function_of(name)
        function = getattr(importlib.import_module(f"patchranking.commands.{own}"), own)
    if set(arguments) <= {"--help"} or "MODEL" in arguments:
        return
    assert parse(function, arguments, name)
    needs = {words for start, words in NEEDS.items() if any(start in argument for argument in arguments)}
    if "needs the Hub" in needs:
        needs.discard("needs the photos")  # photos/train stands for the reader's own pictures there
    assert all(words in " ".join(before.split()) for words in needs), f"say '{needs}' before: {line}"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working folder with photos/train and photos/val: scenes of the demo in two classes."""
    for split in ("train", "val"):
        for index in range(6):
            folder = tmp_path / "photos" / split / f"class_{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            scene(split, index).image.save(folder / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_three_lines_run_on_an_open_clip_model(tmp_path, monkeypatch, case):
    if not hasattr(case.model, "encode_image"):
        pytest.skip("the three lines call encode_image, as open_clip models have it")
    Pruner.unfitted(case.tower, "tiny", Schedule({3: 0.6})).save_pretrained(tmp_path / "runs/fit")
    monkeypatch.chdir(tmp_path)
    names = {"model": case.model, "images": case.pixels}
    exec(PYTHON[0], names)
    assert names["features"].shape == case.encode(case.pixels).shape
    assert not torch.equal(names["features"], case.encode(case.pixels))


def test_embedding_in_python_runs(capsys, tmp_path, monkeypatch):
    """Batch after batch, and the shards read back; other tools are not here."""
    embed, read, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "docs/embedding.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(embed.replace('"demo:test"', 'patchranking.load_data("demo:test", 3)'), names)
    assert capsys.readouterr().out == "3 (3, 128) []\n"
    monkeypatch.chdir(tmp_path)
    embed_to(names["model"], load_data("demo:test", 3), "runs/embed")
    exec(read, names)
    assert len(names["keys"]) == 3
    assert (names["vectors"].shape, names["vectors"].dtype.name) == ((3, 128), "float32")


def test_prototypes_and_their_sampler_in_python_run(capsys, tmp_path, monkeypatch):
    read, sample = re.findall(r"```python\n(.*?)```", (ROOT / "docs/prototypes.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    command = "pretrain prototypes demo:train --limit 8 --clusters 2 --out runs/prototypes"
    monkeypatch.setattr(sys, "argv", ["patchranking", *command.split()])
    cli.main()
    exec(read, {})
    assert capsys.readouterr().out.splitlines()[-1] == "2 {'in': 8, 'out': 8, 'failed': 0}"
    names: dict[str, Any] = {}
    exec(sample, names)
    assert [round(float(share), 2) for share in capsys.readouterr().out.split()] == [0.1, 0.37, 0.63]
    assert len(next(iter(names["loader"]))) == 100


@pytest.mark.parametrize("page", ["index", "choosing", "tuning"])
def test_the_python_of_a_page_runs(page, demo, tmp_path, monkeypatch):
    """With a pruner that learned nothing in place of those that the page's commands fit and tune."""
    monkeypatch.chdir(tmp_path)
    pruner = Pruner.unfitted(demo.tower, "demo", Schedule.default(demo.tower.depth, 0.5), merges=True)
    pruner.doubt = Doubt(demo.tower.feature_size)
    pruner.save_pretrained("runs/fit")
    widths = (demo.model.config.text_config.hidden_size, demo.tower.width)
    prompts = Prompts("both", *widths, num_tokens=2, class_names=CLASSES, features=128)
    pruner.tuned_by(prompts).save_pretrained("runs/tuned")
    block = "".join(re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL))
    pixels = demo.preprocess(scene("test", 0).image)[None]
    names: dict[str, Any] = {"pixels": pixels}
    exec(block, names)
    own = names["cheaper"] if page == "choosing" else names["pruner"]
    assert own.keep == (pytest.approx(0.56, abs=0.02) if page == "choosing" else 0.4 if page == "index" else 0.5)
    features = names.get("pruned", names.get("features"))
    assert page == "choosing" or not torch.equal(features, demo.tower(pixels))
    assert page != "choosing" or torch.equal(names["found"].features, demo.tower(pixels))


def test_the_readme_runs_from_top_to_bottom(photos, demo, monkeypatch):
    """From installing to a pruned model of one's own pictures: scenes saved as pictures, the demo model, few steps.

    The first Python on the page uses what the commands below it fit, and comes last here.
    """
    few = {
        "fit": "--limit 6 --steps 1 --epochs 1",
        "tune": "--shots 1 --epochs 1 --num_tokens 2",
        "evaluate": "--limit 4 --golden_images 1 --timing_batch 1 --keep 0.5 --examples 1 --worst 1",
    }
    extras = re.findall(r"\[([\w,-]+)\]", re.search(r"## Install\n(.*?)\n## ", README, re.DOTALL)[1])
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras
    assert {name for extra in extras for name in extra.split(",")} <= set(known)
    names = {"images": demo.preprocess(scene("test", 0).image)[None], "QUICK": _quick()}
    first, *rest = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
    ran = []
    for kind, text in [*rest, first]:
        text = text.replace("open_clip:ViT-B-16/openai", "demo")
        if kind == "python":
            if "encode_image" in text:
                names["model"] = demo.model
            text = text.replace("encode_image(images)", "get_image_features(images).pooler_output")
            exec(
                text.replace("keep=0.5)", "keep=0.5, steps=1, epochs=1)").replace("[pruner])", "[pruner], QUICK)"),
                names,
            )
            continue
        for line in re.findall(r"^patchranking (.*)$", text, re.MULTILINE):
            ran.append(line.split()[0])
            monkeypatch.setattr(sys, "argv", ["patchranking", *f"{line} {few[ran[-1]]}".split()])
            cli.main()
    assert ran == ["fit", "evaluate", "tune", "evaluate", "fit", "evaluate"]
    assert {row["method"] for row in names["results"]["rows"]} == {"dense", "patchranking", "random"}
    assert names["golden"].importance.shape == (1, 144)
    assert not torch.equal(names["features"], demo.tower(names["images"]))
    rows = json.loads((photos / "runs/evaluate/results.json").read_text())["rows"]
    assert {row["tuned"] for row in rows} == {"none", "both"}
    assert "patchranking" in (photos / "runs/evaluate/report.html").read_text()


def _quick():
    return EvaluationSettings(methods=["random"], keep=[0.5], timing_batch=0)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in PROSE], ids=lambda page: page.stem)
def test_the_commands_on_the_demo_run_in_their_order(page, tmp_path, monkeypatch):
    """With few images and steps, and without a cluster."""
    few = {
        "rank": "--limit 2",
        "fit": "--limit 6 --ranked 6 --steps 1 --epochs 1",
        "evaluate": "--limit 3 --golden_images 1 --timing_batch 0 --keep 0.5 --examples 1 --worst 1",
        "embed": "--limit 4 --workers 0",
        "search": "",
        "pretrain contrastive": "--limit 8 --epochs 1 --batch_size 8 --workers 0 --evaluations 1 --probe_images 8",
        "pretrain gradient-error": "--limit 8 --base_batches 4 --batches 3 --batch_size 4 --drops 0 --groups 2",
        "compare-index": "",
        "pretrain prototypes": "--limit 12 --clusters 3",
        "pretrain mae": "--limit 12 --clusters 3 --epochs 1 --evaluations 1 --batch_size 6",
        "choose": "--limit 4",
        "tune": "--shots 1 --epochs 1 --num_tokens 2",
        "benchmark": "--batches 1 --backends eager --precisions fp32 --keep 0.5 --seconds 0",
        "export": "--format torch --precision bf16 --calibration 20 --force true",
        "evaluate runs/export-int8": "--limit 4 --timing_batch 0",
        "benchmark runs/export-int8": "--batches 1 --repeats 1 --seconds 0",
    }
    lines = re.findall(
        r"^ *patchranking (\w+ demo .*|\w+ runs/export-int8.*|choose .*|search .*|compare-index .*|pretrain .* demo:.*|"
        r"fit timm:local.*)$",
        re.sub(r"\\\n\s*", "", page.read_text()),
        re.MULTILINE,
    )
    monkeypatch.chdir(tmp_path)
    for line in lines:
        if "--engine ray" not in line:
            words = shlex.split(line)
            less = few.get(" ".join(words[:2])) or few[cli.command_of(words)[0]]
            monkeypatch.setattr(sys, "argv", ["patchranking", *words, *less.split()])
            cli.main()
    assert lines


def test_every_number_of_the_tables_comes_from_the_results():
    for page in tables.PAGES:
        assert tables.fill(page.read_text()) == page.read_text(), page


def test_links_lead_somewhere():
    for page in PAGES:
        text = page.read_text()
        for target in [*re.findall(r"\]\((?!https?:)([^)#]+)", text), *re.findall(r'src="([^"]+)"', text)]:
            assert (page.parent / target).exists(), (page, target)


def test_make_demo_runs_the_demo_command(tmp_path, monkeypatch):
    command = re.search(r"/patchranking (demo --out runs/demo)", (ROOT / "Makefile").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "FitSettings", lambda **given: FitSettings(**given | {"steps": 2}))
    few = partial(EvaluationSettings, timing_batch=1, examples=1, worst=1)
    monkeypatch.setattr(demo, "EvaluationSettings", few)
    monkeypatch.setattr(sys, "argv", ["patchranking", *command[1].split(), "--images", "8", "--scenes", "4"])
    cli.main()
    results = json.loads((tmp_path / "runs/demo/results.json").read_text())
    methods = {"dense", "random", "cls-attention", "evit", "tome", "patchranking", "golden"}
    assert {row["method"] for row in results["rows"]} == methods
    assert [row["oracle"] for row in results["rows"]].count(True) == 6
    assert (tmp_path / "runs/demo/report.html").is_file()
    assert (tmp_path / "runs/demo/pruner/model.safetensors").is_file()
