from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_args, get_type_hints

import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from patchranking import cli, demo, load_data
from patchranking.commands.arguments import parse
from patchranking.embedding import job
from patchranking.errors import UserError
from patchranking.fitting.settings import FitSettings
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.job import ENGINES
from patchranking.ranking.search import SCORES, SEARCHES, ScoreName, SearchName
from patchranking.ranking.store import iter_rankings, write_manifest
from patchranking.towers.load import load_model

COMMANDS = {
    name: getattr(importlib.import_module(f"patchranking.commands.{own}"), own)
    for name in cli.COMMANDS
    for own in [cli.function_of(name)]
}


@pytest.fixture
def mistake(run, tmp_path, monkeypatch):
    """Returns a function that runs a command line that must fail with one sentence, and returns the sentence."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status, out, err = run(*arguments)
        assert status == 2
        assert out == ""
        assert err.startswith("patchranking: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err

    return call


def test_embed_explains_itself_without_torch():
    code = (
        "import sys; from patchranking.cli import main; sys.argv = ['patchranking', 'embed', '--help']\ntry: main()\n"
    )
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "--shard_size" in done.stdout
    assert done.stdout.splitlines()[-1] == "False", done


def test_help_lists_the_commands(run):
    status, out, _ = run("--help")
    assert status == 0
    words = " ".join(out.split())
    for name, function in COMMANDS.items():
        assert f"{name} {inspect.getdoc(function).splitlines()[0]}" in words


def test_help_and_version_import_no_torch(run):
    for option in ("--help", "--version"):
        code = f"import sys; sys.argv = ['patchranking', '{option}']; from patchranking.cli import main; main();"
        done = subprocess.run(
            [sys.executable, "-c", f"{code} print('torch' in sys.modules)"], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.splitlines()[-1] == "False", done
    assert run("--version")[1] == f"patchranking {version('patchranking')}\n"


def options(function):
    """Name -> type, default (or nothing) and sentence of every option, those of settings included."""
    hints, found = get_type_hints(function), {}
    documented = dict(re.findall(r"^    (\w+): (.+)$", inspect.getdoc(function).partition("Args:")[2], re.MULTILINE))
    for name, parameter in inspect.signature(function).parameters.items():
        if not dataclasses.is_dataclass(hints[name]):
            found[name] = hints[name], parameter.default, documented[name]
            continue
        sentences = inspect.getdoc(hints[name]).partition("Attributes:")[2]
        own = dict(re.findall(r"^    (\w+): (.+)$", sentences, re.MULTILINE))
        kinds = get_type_hints(hints[name])
        found |= {f.name: (kinds[f.name], f.default, own[f.name]) for f in dataclasses.fields(hints[name])}
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_documents_every_option(run, command):
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    words = " ".join(out.split())
    found = options(COMMANDS[command])
    for name, (_, default, sentence) in found.items():
        assert (name if default is inspect.Parameter.empty else f"--{name} ") in out
        assert " ".join(sentence.split()[:3]) in words
    assert {"out", "seed", "device"} <= set(found) or command in ("search", "compare-index", "export", "explore")
    assert "--config" in out


def test_options_come_from_a_file_and_the_command_line_wins(run, tmp_path):
    file = tmp_path / "fit.yaml"
    file.write_text("keep: 0.4\nblocks: [3, 5]\n")
    arguments = ("demo", "demo:train", "--config", str(file), "--blocks", "2", "4")
    found = parse(COMMANDS["fit"], arguments, "fit")
    assert (found["settings"].keep, found["settings"].blocks) == (0.4, [2, 4])
    status, shown, _ = run("fit", *arguments, "--print_config")
    assert status == 0
    file.write_text(shown)
    assert parse(COMMANDS["fit"], ("demo", "demo:train", "--config", str(file)), "fit") == found


def test_the_first_words_of_explore_may_stand_without_their_names():
    found = [parse(COMMANDS["explore"], words.split(), "explore") for words in ("", "m", "m d --port 1", "--data d")]
    assert [(one["model"], one["data"]) for one in found] == [
        ("demo", "demo:test"),
        ("m", "demo:test"),
        ("m", "d"),
        ("demo", "d"),
    ]
    assert [one["port"] for one in found] == [7860, 7860, 1, 7860]


def test_the_cause_of_a_mistake_is_shown_where_it_is_asked_for(run, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{no json")
    mistake = ("evaluate", "demo", "demo", "--pruner", tmp_path)
    assert "Traceback" not in run(*mistake)[2]
    assert "JSONDecodeError" in run(*mistake, "--traceback")[2].partition("Traceback")[2]
    monkeypatch.setenv("PATCHRANKING_TRACEBACK", "1")
    assert "JSONDecodeError" in run(*mistake)[2].partition("Traceback")[2]


def test_an_unknown_command_is_named(mistake):
    assert "There is no command 'fitt': choose from demo, rank" in mistake("fitt", "demo")


def test_a_group_lists_its_commands(run, mistake):
    for arguments in (["pretrain"], ["pretrain", "--help"]):
        status, out, _ = run(*arguments)
        assert status == 0
        assert {line.split()[0] for line in out.splitlines() if line.startswith("  ")} == {"pretrain"}
        assert "pretrain prototypes" in out
    assert "There is no command 'pretrain nonsense': choose from pretrain " in mistake("pretrain", "nonsense", "x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("rank nope demo", "Unknown model 'nope'"),
        ("rank demo:small demo", "Unknown model 'demo:small'"),
        ("rank open_clip:ViT-B-16 demo", "names no weights"),
        ("rank hf:./none demo", "no folder './none'"),
        ("rank open_clip:local-dir:none demo", "no folder 'none'"),
        ("rank demo none", "no folder 'none'"),
        ("rank demo .", "no pictures in '.'"),
        ("rank demo demo:holiday --limit 1", "splits train, val, test"),
        ("rank demo demo --limit 0", "'limit' is a whole number, 1 or more, not 0"),
        ("rank demo demo --limit 1 --search leave-out --window 12", "window of 12 x 12"),
        ("rank demo demo --limit 1 --search leave-out --stride 3", "stride"),
        ("rank demo demo --limit 1 --block 8", "blocks 0 to 7"),
        ("rank demo demo --device cuda:99", "'cuda:99' cannot be used"),
        ("rank demo demo --device nonsense", "'nonsense' cannot be used"),
        ("fit demo demo --keep 0", "keep rate"),
        ("fit demo demo --keep 1.5", "not 1.5"),
        ("fit demo demo --steps -5", "'steps' is a whole number, 0 or more, not -5"),
        ("fit demo demo --epochs 0", "'epochs' is a whole number, 1 or more, not 0"),
        ("fit demo demo --blocks 3 -1", "'blocks' is a whole number, 0 or more"),
        ("fit demo demo --seed -1", "'seed' is a whole number, 0 or more"),
        ("fit demo demo --limit 1 --out /dev/null", "Cannot make the folder '/dev/null'"),
        ("rank demo demo --stride 0", "'stride' is a whole number, 1 or more"),
        ("rank demo demo --group 0", "'group' is a whole number, 1 or more"),
        (f"rank demo {'long' * 100}", "File name too long"),
        ("tune demo demo --shots 0", "'shots' is a whole number, 1 or more"),
        ("tune demo demo --epochs 0", "'epochs' is a whole number, 1 or more"),
        ("tune demo demo --batch_size 0", "'batch_size' is a whole number, 1 or more"),
        ("tune demo demo --learning_rate -1", "'learning_rate' is a number, 0 or more, not -1.0"),
        ("tune demo demo --learning_rate .nan", "'learning_rate' is a number, 0 or more, not nan"),
        ("tune demo demo --learning_rate 0", "nothing is learned"),
        ("reproduce table5 --learning_rate 0", "nothing is learned"),
        ("rank demo demo --seed 99999999999999999999", "'seed' is too large"),
        ("rank demo demo --block x", "--block takes a whole number, not 'x'; patchranking rank --help shows all."),
        ("rank demo demo --block=", "--block takes a whole number, not ''"),
        ("rank demo demo --limit 1.5", "--limit takes a whole number, not '1.5'"),
        ("rank demo demo --engine spark", "--engine takes one of local, ray, not 'spark'"),
        ("rank demo", "the following arguments are required: data"),
        ("rank demo demo --blocc 3", "unrecognized arguments: --blocc 3"),
        ("rank demo demo --config none.yaml", "--config: File does not exist"),
        ("fit demo demo --blocks 3 x", "--blocks takes a whole number, or several, not 'x'"),
        ("fit demo demo --schedule 3", "--schedule takes a mapping such as '{3: 0.6}', not '3'"),
        ("fit demo demo --merge 7", "--merge takes true or false, not '7'"),
        ("fit demo demo --keep .nan", "a number above 0 and at most 1"),
        ("embed demo none", "no folder 'none'"),
        ("embed demo demo --keep 0.5", "give a pruner"),
        ("embed demo demo --pruner cls-attention --keep 0", "'keep' is a share above 0"),
        ("embed demo demo --batch_size x", "--batch_size takes a whole number or one of auto, not 'x'"),
        ("embed demo demo --workers -1", "'workers' is a whole number, 0 or more"),
        ("embed demo demo --limit 0", "'limit' is a whole number, 1 or more"),
        ("embed demo demo --limit 1 --retry failed", "nothing failed"),
        ("evaluate demo demo --keep x", "--keep takes a number, or several, not 'x'"),
        ("benchmark demo --batches x", "--batches takes a whole number, or several, not 'x'"),
        ("choose none demo --budget x", "A budget reads"),
        ("demo --images x", "--images takes a whole number, not 'x'"),
        ("evaluate demo demo --batch_size 0", "'batch_size' is a whole number, 1 or more"),
        (f"evaluate demo demo --pruner {'long' * 100}", "File name too long"),
        ("benchmark demo --seconds .inf", "'seconds' is a number, 0 or more, not inf"),
        ("reproduce table5 --epochs 0", "'epochs' is a whole number"),
        ("explore nope", "Unknown model 'nope'"),
        ("explore demo demo:holiday", "splits train, val, test"),
        ("explore demo demo:test more", "unrecognized arguments: more"),
        ("explore --limit 0", "'limit' is a whole number, 1 or more"),
        ("explore --port -1", "'port' is a whole number, 0 or more"),
        ("explore --pruner tome", "'tome' needs no fit"),
        ("choose none demo --seed -1", "'seed' is a whole number"),
        ("choose none demo", "There is no folder 'none'"),
        ("fit demo demo --objective both --rankings none", "no rankings in 'none'"),
        ("evaluate demo demo --keep 0.5 0", "keep rate"),
        ("evaluate demo demo --keep [0.5,1.5]", "not 1.5"),
        ("evaluate demo demo --limit 1 --methods random nonsense", "Unknown method 'nonsense'"),
        ("evaluate demo demo --pruner .", "no readable pruner in '.'"),
        ("evaluate demo demo --pruner none/at/all", "There is no folder 'none/at/all'"),
        ("benchmark demo --keep 1.5", "not 1.5"),
        ("pretrain prototypes none", "no folder 'none'"),
        ("pretrain prototypes .", "no pictures in '.'"),
        ("pretrain prototypes demo --clusters 0", "'clusters' is a whole number, 1 or more, not 0"),
        (
            "pretrain prototypes demo --clusters few",
            "--clusters takes a whole number or one of auto, labels, not 'few'",
        ),
        ("pretrain prototypes demo --features nope", "Unknown model 'nope'"),
        ("pretrain mae none", "no folder 'none'"),
        (
            "pretrain mae demo --curriculum easy",
            "'curriculum' is one of prototype, hard-first, fixed, uniform, or a file",
        ),
        ("pretrain mae demo --mask 1", "'mask' is a share above 0 and below 1"),
        ("pretrain mae demo --ramp step", "--ramp takes one of cosine, linear, not 'step'"),
        ("benchmark demo --batches 4 0", "1 image or more"),
        ("benchmark demo --macs 0.05", "of the dense MACs: ask for more than 5%"),
        ("reproduce table4 --data demo:test --train demo demo", "one --train for each of --data"),
    ],
)
def test_a_mistake_ends_with_one_sentence(mistake, arguments, words):
    assert words in mistake(*arguments.split())


def test_a_mistyped_folder_is_no_hub_repository(mistake, tmp_path):
    (tmp_path / "runs" / "fit").mkdir(parents=True)
    assert "There is no folder 'runs/fitt'; 'runs' holds fit." in mistake(
        "evaluate", "demo", "demo", "--pruner", "runs/fitt"
    )


def test_the_home_folder_is_meant_by_a_tilde(mistake, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = parse(COMMANDS["evaluate"], ["demo", "demo", "--pruner", "~/a", "~/b", "--out", "~/c"], "evaluate")
    assert (found["pruner"], found["out"]) == ([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    for model in ("hf:~/none", "open_clip:local-dir:~/none"):
        assert f"There is no folder '{tmp_path}/none'" in mistake("rank", model, "demo")


def test_figures_of_other_data_need_images_to_fit_to(mistake, tmp_path):
    for index in range(4):
        (tmp_path / "two" / f"class_{index % 2}").mkdir(parents=True, exist_ok=True)
        demo.scene("val", index).image.save(tmp_path / "two" / f"class_{index % 2}" / f"{index}.png")
    assert "give --train" in mistake("reproduce", "figure5", "--data", "two", "--limit", 2)


def test_a_quick_fit_caps_what_takes_long(run, tmp_path, monkeypatch):
    seen = []

    def spied(model, data, out, settings, rankings):
        seen.append((len(data), settings))
        raise UserError("enough")

    monkeypatch.setattr("patchranking.commands.fit.fit_pruner", spied)
    for more in ([], ["--limit", 50, "--steps", 5]):
        run("fit", "demo", "demo:train", "--preset", "quick", "--keep", 0.4, "--out", tmp_path, *more)
    run("fit", "demo", "demo:train", "--limit", 500, "--out", tmp_path)
    assert [images for images, _ in seen] == [200, 50, 500]
    quick, small, full = (settings for _, settings in seen)
    assert quick == FitSettings(keep=0.4, ranked=60, steps=60, epochs=10, limit=200)
    assert small == FitSettings(keep=0.4, ranked=60, steps=5, epochs=10, limit=50)
    assert full == FitSettings(limit=500)


def test_fit_says_beforehand_how_long_it_takes(run, tmp_path, monkeypatch):
    said = []

    def stop(*_):
        raise UserError("enough")

    monkeypatch.setattr("patchranking.commands.fit.fit_pruner", stop)
    for minutes in (0.4, 25.2):
        monkeypatch.setattr("patchranking.commands.fit.estimate_minutes", lambda *_, minutes=minutes: minutes)
        said.append(run("fit", "demo", "demo:train", "--limit", 9, "--out", tmp_path)[1])
    assert said == ["", "about 25 min for 9 images with these settings on this machine\n"]


def test_a_fit_by_tokens_says_how_many_go_on(run, mistake, tmp_path):
    fit = ["fit", "demo", "demo", "--objective", "distill", "--target", "tokens", "--limit", 5, "--steps", 1]
    status, out, _ = run(*fit, "--keep", 0.25, "--out", tmp_path)
    assert status == 0
    assert "1 - cosine to the dense tokens, 1 held-out images: " in out
    assert "\n36 of 144 image tokens go on in hidden_states[-2]\n" in out
    budget = "0.5 points", "demo:val"
    assert "--target tokens preserves none" in mistake(*fit, "--budget", budget[0], "--budget_data", budget[1])
    assert "hidden_states[99]" in mistake(*fit, "--layer", 99, "--out", tmp_path)


def test_ctrl_c_ends_with_one_line(run, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("patchranking.commands.rank.load_data", stop)
    assert run("rank", "demo", "demo") == (130, "", "patchranking: stopped by Ctrl-C.\n")


def test_errors_of_the_system_end_with_one_sentence(mistake, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "a.json")

    monkeypatch.setattr("patchranking.commands.rank.load_data", full)
    assert mistake("rank", "demo", "demo") == "patchranking: [Errno 28] No space left on device: 'a.json'.\n"


def test_benchmark_writes_what_it_times(run, tmp_path):
    arguments = ["--batches", "1", "2", "--keep", "0.5", "--seconds", "0", "--out", tmp_path]
    status, out, _ = run("benchmark", "demo", *arguments)
    assert status == 0
    assert f"wrote {tmp_path / 'throughput.json'}" in out
    results = json.loads((tmp_path / "throughput.json").read_text())
    assert [(row["batch"], row["keep_rate"]) for row in results["rows"]] == [(1, 1.0), (1, 0.5), (2, 1.0), (2, 0.5)]
    assert {row["pruner"] for row in results["rows"]} == {"not fitted"}
    assert results["parameters"] > 1e6


def test_reproduce_goes_on_where_it_stopped(run, tmp_path):
    arguments = ["reproduce", "figure5", "--limit", "8", "--ranked", "4", "--steps", "1", "--out", tmp_path]
    status, out, _ = run(*arguments)
    assert status == 0
    assert "# figure5, measured (published)" in out
    assert (tmp_path / "figure5.md").read_text() in out
    rows = json.loads((tmp_path / "figure5.json").read_text())["rows"]
    assert len(rows) == 10
    assert {row["published"] for row in rows} == {None}
    status, again, _ = run(*arguments)
    assert status == 0
    assert again == out


def test_searches_scores_and_engines_are_offered_by_name(run):
    assert get_args(SearchName) == SEARCHES
    assert get_args(ScoreName) == SCORES
    assert get_args(get_type_hints(COMMANDS["rank"])["engine"]) == tuple(ENGINES)
    assert get_args(get_type_hints(COMMANDS["embed"])["engine"]) == tuple(job.ENGINES)
    for option, names in (("search", SEARCHES), ("score", SCORES), ("engine", ENGINES)):
        status, out, err = run("rank", "demo", "demo", f"--{option}", "nonsense")
        assert (status, out) == (2, "")
        assert all(name in err for name in names)


def test_flat_folders_have_no_labels_to_score(mistake, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "needs classes" in mistake("rank", "demo", tmp_path, "--score", "label", "--out", tmp_path / "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["rank demo demo", "fit demo demo", "evaluate demo demo", "demo"])
def test_no_cuda(mistake, command):
    assert "'cuda' cannot be used" in mistake(*command.split(), "--device", "cuda")


@pytest.mark.parametrize("content", ["", "{no json", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_pruner(mistake, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    mistake("evaluate", "demo", "demo", "--pruner", tmp_path)


def test_unfinished_rankings(mistake, tmp_path):
    write_manifest(tmp_path, {"settings": {}, "shards": 1})
    assert "not finished" in mistake("fit", "demo", "demo", "--objective", "both", "--rankings", tmp_path)


@pytest.mark.parametrize(
    "command", ["rank demo demo --limit 1", "fit demo demo --limit 1", "evaluate demo demo --limit 1"]
)
def test_an_output_folder_that_cannot_be_made(mistake, tmp_path, command):
    (tmp_path / "file").touch()
    assert "Cannot make the folder" in mistake(*command.split(), "--out", tmp_path / "file")
    assert "Cannot make the folder" in mistake(*command.split(), "--out", tmp_path / "file" / "below")


def test_other_errors_are_not_hidden(run, monkeypatch):
    monkeypatch.setattr("patchranking.commands.rank.load_data", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("rank", "demo", "demo")


@pytest.mark.parametrize(
    ("arguments", "keep", "methods"),
    [
        ("", [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], ["random", "cls-attention", "evit", "tome", "golden"]),
        ("--keep 0.9 0.5 --methods random golden --seed 3", [0.9, 0.5], ["random", "golden"]),
        ("--keep [0.9,0.5] --methods=[random]", [0.9, 0.5], ["random"]),
        ("--seed 3 --methods golden --keep 1", [1.0], ["golden"]),
        ("--methods --keep 0.5", [0.5], []),
    ],
)
def test_list_options_take_several_values(arguments, keep, methods):
    found = parse(COMMANDS["evaluate"], ["demo", "demo", "--limit", "1", *arguments.split()], "evaluate")
    assert (found["settings"].keep, found["settings"].methods) == (keep, methods)
    assert (found["data"], found["limit"]) == ("demo", 1)


def test_templates_are_taken_as_they_are():
    templates = ["a photo, of: a {}.", "one {} - #2"]
    assert (
        parse(COMMANDS["evaluate"], ["demo", "demo", "--templates", *templates], "evaluate")["templates"] == templates
    )


def test_rank_fit_evaluate(run, tmp_path):
    ranked, fitted, evaluated = (tmp_path / name for name in ("rank", "fit", "evaluate"))
    status, out, err = run("rank", "demo", "demo", "--limit", 8, "--block", 6, "--out", ranked)
    assert status == 0
    assert re.fullmatch(rf"8 images in = 8 ranked \+ 0 skipped; \d+\.\d\d images/s; wrote {ranked}\n", out)
    assert "Loading" not in err
    assert set(dict(iter_rankings(ranked))) == {f"train/{index:07d}" for index in range(8)}

    data, options = ["demo:train", "--limit", 8], ["--objective", "both", "--rankings", ranked]
    status, out, err = run("fit", "demo", *data, *options, "--epochs", 2, "--steps", 2, "--out", fitted)
    assert status == 0
    assert f"8 images in = 8 used + 0 skipped + 0 without a ranking; wrote {fitted}" in out
    assert "matching rate" in out
    assert "1 - cosine to the dense feature, 1 held-out images: " in out
    assert re.search(r"at keep rate 0\.5, on 1 held-out images: \d+% of the MACs, cosine 0\.\d{4}, top-1 \d+\.0", out)
    assert {"config.json", "model.safetensors", "fit.json"} <= {path.name for path in fitted.iterdir()}

    rest = ["--keep", 0.5, "--methods", "random", "--timing_batch", 0, "--out", evaluated]
    status, out, err = run("evaluate", "demo", "demo", "--limit", 4, "--pruner", fitted, *rest)
    assert status == 0
    assert "4 images in = 4 evaluated + 0 skipped" in out
    assert (evaluated / "report.html").stat().st_size > 1000
    results = json.loads((evaluated / "results.json").read_text())
    assert {(row["method"], row["keep_rate"]) for row in results["rows"]} == {
        ("dense", 1.0),
        ("random", 0.5),
        ("patchranking", 0.5),
    }
    assert {row["schedule"] and tuple(row["schedule"]) for row in results["rows"]} == {None, ("6",)}


@pytest.mark.parametrize(
    ("architecture", "methods"),
    [
        ("vit_base_patch16_siglip_224", ["tome", "random"]),
        ("eva02_base_patch16_clip_224", ["cls-attention", "evit"]),
        ("vit_small_plus_patch16_dinov3", ["cls-attention", "low-res"]),
        ("vit_small_patch14_reg4_dinov2", ["cls-attention", "tome"]),
    ],
)
def test_fit_and_evaluate_on_models_of_other_families(run, tmp_path, architecture, methods):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    shown = {"input_size": [3, 32, 32], "num_classes": 0, "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": architecture, "num_classes": 0, "model_args": sizes, "pretrained_cfg": shown}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = timm.create_model(architecture, num_classes=0, **sizes)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    name, fitted, evaluated = f"timm:local-dir:{tmp_path}", tmp_path / "fit", tmp_path / "evaluate"
    few = ["--limit", 8, "--ranked", 4, "--epochs", 1, "--steps", 1]
    assert run("fit", name, "demo:train", *few, "--out", fitted)[0] == 0
    options = ["--methods", *methods, "--keep", 0.5, "--timing_batch", 0, "--out", evaluated]
    assert run("evaluate", name, "demo", "--limit", 2, "--pruner", fitted, *options)[0] == 0
    rows = json.loads((evaluated / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"dense", "patchranking", *methods}
    assert all(-1 <= row["feature_cosine"] < 1 for row in rows if row["method"] != "dense")


def test_evaluate_prints_the_oracle_apart_and_which_keep_rate_to_use(run, tmp_path):
    options = ["--methods", "cls-attention", "golden", "--golden_images", 2, "--keep", 0.5, "--timing_batch", 0]
    status, out, _ = run("evaluate", "demo", "demo", "--limit", 5, *options, "--out", tmp_path)
    assert status == 0
    first, second = out.split("the oracle, on fewer images")
    assert re.search(r"^method .* top-1 +change +95 % interval", first)
    assert re.search(r"^dense +100% +[\d.]+ +\+0\.00 +\+0\.00 to \+0\.00", first, re.M)
    assert "golden" not in first
    assert re.search(r"^golden \* +50% +2 +[\d.]+ +[\d.]+ +[+-][\d.]+ +[+-][\d.]+ to [+-][\d.]+ +[\d.]+$", second, re.M)
    assert json.loads((tmp_path / "results.json").read_text())["recommendation"]["text"] in second
    assert "<title>demo on demo (test)</title>" in (tmp_path / "report.html").read_text()


def test_prototypes_are_found_and_shown(run, tmp_path):
    pytest.importorskip("skimage")
    command = ("pretrain", "prototypes", "demo:train", "--limit", "12", "--out", tmp_path / "out")
    status, out, _ = run(*command, "--clusters", "3")
    assert status == 0
    assert re.search(r"^12 images in = 12 clustered \+ 0 skipped; 3 clusters, Davies-Bouldin index [\d.]+; wrote", out)
    first = pq.read_table(tmp_path / "out" / "prototypes.parquet")
    assert (first["key"].to_pylist(), set(first["cluster"].to_pylist())) == (
        load_data("demo:train", 12).keys,
        {0, 1, 2},
    )
    assert "Prototypes of demo (train) by gradients" in (tmp_path / "out" / "prototypes.html").read_text()
    assert run(*command, "--clusters", "3")[0] == 0
    assert pq.read_table(tmp_path / "out" / "prototypes.parquet").equals(first, check_metadata=True)
    (words,) = run(*command, "--clusters", "13")[2].splitlines()[-1:]
    assert words == "patchranking: 13 clusters are more than the 12 images: ask for fewer."
    (words,) = run(*command, "--features", "demo")[2].splitlines()[-1:]
    assert "holds vectors of another kind" in words


def test_a_masked_autoencoder_is_trained_and_shown(run, tmp_path, noise_folder):
    for library in ("lightly", "skimage"):
        pytest.importorskip(library)
    photos, out = noise_folder("photos", ("cat", "dog"), 5), tmp_path / "out"
    (photos / "cat" / "torn.png").write_bytes(b"\x89PNG")
    small = "--image_size 16 --patch_size 4 --decoder_width 32 --decoder_depth 1 --clusters 2 --epochs 2 --batch_size 5"
    sizes = "{embed_dim: 16, depth: 1, num_heads: 2}"
    arguments = ("pretrain", "mae", photos, "--test", photos, "--out", out, *small.split(), "--model_args", sizes)
    status, said, _ = run(*arguments)
    assert status == 0
    assert re.search(
        r"^k-NN [\d.]+ %, linear probe [\d.]+ % after 4 steps, \d+ s\n11 images in = 10 trained on \+ 1 skip", said
    )
    assert f"timm:local-dir:{out / 'model'}" in said
    results = json.loads((out / "results.json").read_text())
    assert {row["arm"] for row in results["rows"]} == {"prototype"}
    assert results["images"] == {"in": 11, "evaluated": 10, "skipped": 1, "left_out": 0}
    assert results["distinct"] == pytest.approx([0.2, 1 - 0.9**10], abs=0.01)
    assert "What it fills in" in (out / "report.html").read_text()
    assert "What a training sees" in (out / "prototypes.html").read_text()
    assert load_model(f"timm:local-dir:{out / 'model'}").tower.depth == 1


def test_fit_ranks_with_the_search_and_the_score_asked_for(run, tmp_path):
    options = ["--search", "sketched-quality", "--score", "label", "--blocks", 7, "--seed", 5, "--epochs", 1]
    options += ["--objective", "imitate"]
    assert run("fit", "demo", "demo:train", "--limit", 4, *options, "--out", tmp_path)[0] == 0
    settings = json.loads((tmp_path / "fit.json").read_text())["rankings"]
    shown = {key: settings[key] for key in ("search", "score", "needs_labels", "block", "seed")}
    assert shown == {
        "search": "sketched-quality",
        "score": "label",
        "needs_labels": True,
        "block": 7,
        "seed": 5,
    }


def test_fit_keeps_within_a_budget(run, mistake, tmp_path, monkeypatch):
    second = "patchranking.evaluation.budget.images_per_second"
    monkeypatch.setattr(second, lambda runs, pixels: dict.fromkeys(runs, 1.0))
    job = ["fit", "demo", "demo:train", "--limit", 8, "--ranked", 4, "--epochs", 1, "--steps", 1, "--out", tmp_path]
    assert "give --budget with --budget_data" in mistake(*job, "--budget", "0.9 cosine")
    assert "reads '0.5 points'" in mistake(*job, "--budget", "little", "--budget_data", "demo:val")
    said = mistake(*job, "--budget", "0.5 cosine", "--budget_data", "demo:train")
    assert "8 of the 500 images of --budget_data are among the 8 of the fit, too, such as 'train/0000000'" in said
    assert not (tmp_path / "rankings").exists()
    (tmp_path / "unseen").mkdir()
    for index in range(2):
        demo.scene("val", index).image.save(tmp_path / "unseen" / f"{index}.png")
    status, out, _ = run(*job, "--budget", "0.5 cosine", "--budget_data", tmp_path / "unseen")
    assert status == 0
    assert re.search(r"within 0.5 cosine: \d+% before block 1.* stay; cosine 0\.\d{4}, 0\.\d{3} GMACs", out)
    stages = json.loads((tmp_path / "config.json").read_text())["schedule"]
    assert float(list(stages.values())[-1]) < 0.5
    (tmp_path / "config.json").unlink()
    status, out, err = run(*job, "--budget", "0.0001 ms", "--budget_data", tmp_path / "unseen")
    assert status == 2
    assert "8 images in = 8 used" in out
    assert err.splitlines()[-1].endswith(
        f"Allow more time, or take a smaller model. The fitted pruner is kept in '{tmp_path}', at keep rate 0.5."
    )
    assert Pruner.from_pretrained(tmp_path).keep == 0.5
    assert "needs labelled images" in mistake(*job, "--budget", "1 points", "--budget_data", tmp_path / "unseen")


def test_choose_needs_no_new_fit(run, mistake, tmp_path):
    fitted, chosen = tmp_path / "fit", tmp_path / "chosen"
    Pruner.unfitted(load_model("demo").tower, "demo", Schedule({3: 0.5})).save_pretrained(fitted)
    before = Pruner.from_pretrained(fitted)
    job = ["choose", fitted, "demo:val", "--limit", 6]
    status, out, _ = run(*job, "--budget", "0.1 overlap", "--out", chosen)
    assert status == 0
    assert re.search(r"within 0.1 overlap: .*30% before block \d stay; cosine .* lost, \d\.\d\d index overlap, ", out)
    assert f"6 images in = 6 measured + 0 skipped; wrote {chosen}" in out
    after = Pruner.from_pretrained(chosen)
    assert after.keep == pytest.approx(0.3)
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value)
    assert Pruner.from_pretrained(fitted).keep == 0.5
    assert run(*job, "--budget", "0.1 cosine", "--model", "demo")[0] == 0
    assert Pruner.from_pretrained(fitted).keep == pytest.approx(0.3)
    assert "reads '0.5 points'" in mistake(*job, "--budget", "0.5")
    assert "captioned images" in mistake(*job, "--budget", "0.5 recall")


def test_a_method_goes_wherever_a_pruner_does(run, mistake, tmp_path):
    few = ["--limit", "2"]
    common = ["--methods", "tome", "--keep", "0.5", "--timing_batch", "0", "--out", tmp_path / "evaluate"]
    status, out, _ = run("evaluate", "demo", "demo:test", "--pruner", "cls-attention", "tome", *common, *few)
    assert status == 0
    rows = json.loads((tmp_path / "evaluate/results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["dense", "tome", "cls-attention"]
    timed = ["--batches", "1", "--repeats", "1", "--seconds", "0", "--keep", "0.5", "--out", tmp_path / "benchmark"]
    assert run("benchmark", "demo", "--pruner", "evit", *timed)[0] == 0
    rows = json.loads((tmp_path / "benchmark/throughput.json").read_text())["rows"]
    assert [(row["pruner"], row["keep_rate"]) for row in rows] == [("evit", 1.0), ("evit", 0.5)]
    status, out, _ = run("choose", "cls-attention", "demo:test", "--model", "demo", "--budget", "0.2 cosine", *few)
    assert status == 0
    assert re.search(r'patchranking.attach\(model, "cls-attention", schedule=patchranking.Schedule\(\{\d: ', out)
    assert "give --model" in mistake("choose", "tome", "demo:test")
    assert "needs no fit" in mistake("tune", "demo", "demo", "--pruner", "tome")
    assert "attach tome" in mistake("evaluate", "demo", "demo", "--pruner", "low-res")


def test_stages_of_a_schedule_score_again(run, mistake, tmp_path):
    job = ["fit", "demo", "demo:train", "--limit", 8, "--objective", "distill", "--steps", 1, "--out", tmp_path]
    job += ["--schedule", "{3: 0.6, 5: 0.5}", "--merge", "false"]
    assert run(*job)[0] == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["schedule"] == {"3": 0.6, "5": 0.5}
    assert {block: own["network"] for block, own in config["predictors"].items()} == {"3": "mixer", "5": "mlp"}
    assert {own["merges"] for own in config["predictors"].values()} == {False}
    rest = ["--keep", 0.5, "--methods", "random", "--timing_batch", 0, "--out", tmp_path / "evaluate"]
    assert run("evaluate", "demo", "demo", "--limit", 4, "--pruner", tmp_path, *rest)[0] == 0
    assert "give --schedule, or --blocks" in mistake(*job, "--blocks", 3)


def test_a_fit_that_ranks_nothing_is_refused(mistake, tmp_path):
    assert "At least 1 image must be ranked" in mistake("fit", "demo", "demo", "--ranked", 0, "--out", tmp_path)


def test_rankings_that_need_labels_say_so(run, tmp_path):
    job = ["rank", "demo", "demo", "--limit", 1, "--search", "leave-out", "--block", 7, "--stride", 2]
    assert "they need labels" in run(*job, "--score", "label", "--out", tmp_path / "label")[1]
    assert "need labels" not in run(*job, "--out", tmp_path / "preservation")[1]


def test_rank_again_with_other_settings(run, mistake, tmp_path):
    job = ["rank", "demo", "demo", "--limit", 1, "--block", 7, "--out", tmp_path]
    assert run(*job, "--search", "leave-out", "--stride", 2)[0] == 0
    assert "choose another folder" in mistake(*job).partition("holds rankings of other")[2]


COMMANDS_IN_A_ROW = """
import sys
from patchranking.cli import main
for line in sys.stdin:
    sys.argv = ["patchranking", *line.split()]
    main()
"""


def test_a_process_of_its_own(tmp_path):
    """Ranks, then makes a mistake: nothing else comes out of the libraries it loads."""
    source = str(Path(cli.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    lines = "rank demo demo --limit 2 --block 7 --out here\nevaluate demo demo --pruner .\n"
    process = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", COMMANDS_IN_A_ROW], input=lines, check=False, **process)
    assert done.returncode == 2
    assert re.fullmatch(r"2 images in = 2 ranked \+ 0 skipped; \d+\.\d\d images/s; wrote here\n", done.stdout)
    *bars, mistake = done.stderr.replace("\r", "\n").splitlines()
    assert {line.partition(":")[0] for line in bars if line.strip()} == {"rank"}
    assert mistake.startswith("patchranking: There is no readable pruner in '.'")
    (shard,) = (tmp_path / "here").glob("*.parquet")
    assert pq.read_table(shard).num_rows == 2


def test_files_left_out_and_notes_are_printed_on_a_line_each(run, tmp_path):
    for name in ("train/a.png", "val/b.png", "val/c.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        demo.scenes.scene("train", 0).image.save(tmp_path / "set" / name)
    for name in ("1.txt", "2.txt", "3.txt", "4.txt", ".DS_Store"):
        (tmp_path / "set" / name).touch()
    status, out, _ = run("rank", "demo", tmp_path / "set", "--out", tmp_path / "out")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("3 images in = 3 ranked + 0 skipped")
    assert lines[1] == (
        "5 left out: 1 hidden (.DS_Store); 4 '.txt' is no suffix of a picture (1.txt, 2.txt, 3.txt, ...)"
    )
    assert lines[2].startswith("note: The classes train, val look like splits")
    assert len(lines) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_names_that_the_console_cannot_show_are_escaped(tmp_path, monkeypatch, encoding):
    demo.scenes.scene("train", 0).image.save(tmp_path / "good.png")
    (tmp_path / "\u732b.jpg").write_bytes(b"broken")
    (tmp_path / "\u732b.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["patchranking", "rank", "demo", ".", "--block", "7", "--out", "out"])
    console = io.TextIOWrapper(io.BytesIO(), encoding)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", console)
        cli.main()
    console.flush()
    shown = console.buffer.getvalue().decode(encoding)
    cat = "\u732b" if encoding == "utf-8" else "\\u732b"
    assert f"skipped {cat}.jpg" in shown
    assert f"({cat}.txt)" in shown


def test_evaluate_measures_the_images_asked_for(run, tmp_path, monkeypatch):
    seen = {}

    def measured(model, data, pruners, settings, progress, files):
        seen.update(model=model.name, data=data, pruners=pruners, seed=settings.seed)
        raise UserError("enough")

    monkeypatch.setattr("patchranking.commands.evaluate.run_evaluation", measured)
    arguments = ["--templates", "one {}", "the {}", "--classes", "new", "--limit", 40, "--seed", 3, "--out", tmp_path]
    assert run("evaluate", "demo", "demo:val", *arguments)[2] == "patchranking: enough\n"
    whole = load_data("demo:val", 40, 3)
    assert seen["data"].templates == ("one {}", "the {}")
    assert seen["data"].class_names == whole.class_names[34:]
    assert seen["data"].keys == [key for key, label in zip(whole.keys, whole.labels, strict=True) if label >= 34]
    assert (seen["model"], seen["pruners"], seen["seed"]) == ("demo", [], 3)


def test_tune_tunes_at_the_keep_rate_asked_for_and_on_the_training_split(run, tmp_path, monkeypatch):
    Pruner.unfitted(load_model("demo").tower, "demo", Schedule({3: 0.5})).save_pretrained(tmp_path / "fit")
    seen = {}

    def tuned(model, data, pruner, out, settings):
        seen.update(split=data.split, classes=len(data.class_names), keep=pruner.keep, settings=settings)
        raise UserError("enough")

    monkeypatch.setattr("patchranking.commands.tune.tune_tokens", tuned)
    arguments = ["--pruner", tmp_path / "fit", "--out", tmp_path, "--limit", 70, "--shots", 2, "--classes", "base"]
    assert run("tune", "demo", "demo", *arguments, "--keep", 0.25)[2] == "patchranking: enough\n"
    assert (seen["split"], seen["classes"], seen["keep"], seen["settings"].shots) == ("train", 34, 0.25, 2)
    run("tune", "demo", "demo", *arguments)
    assert seen["keep"] == 0.5


def test_fit_takes_the_training_split_the_limit_and_the_rankings(run, tmp_path, monkeypatch):
    seen = {}

    def fitted(model, data, out, settings, rankings):
        seen.update(split=data.split, images=len(data), out=out, settings=settings, rankings=rankings)
        raise UserError("enough")

    monkeypatch.setattr("patchranking.commands.fit.fit_pruner", fitted)
    monkeypatch.setattr("patchranking.commands.fit.planned", lambda *_: Schedule({3: 0.5}))
    arguments = ["--limit", 5, "--keep", 0.3, "--rankings", tmp_path / "rankings", "--out", tmp_path / "fit"]
    assert run("fit", "demo", "demo", *arguments)[2] == "patchranking: enough\n"
    assert (seen["split"], seen["images"], seen["settings"].keep) == ("train", 5, 0.3)
    assert (seen["rankings"], seen["out"]) == (tmp_path / "rankings", tmp_path / "fit")


def test_embed_accounts_for_every_file_and_text(run, tmp_path):
    for name in ("a.png", "b/c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        demo.scenes.scene("train", 0).image.save(tmp_path / "in" / name)
    (tmp_path / "in/bad.jpg").touch()
    (tmp_path / "in/notes.txt").touch()
    (tmp_path / "texts.txt").write_text("a red circle\na cat\n")
    command = ["embed", "demo", tmp_path / "in", "--pruner", "tome", "--out", tmp_path / "out", "--workers", 0]
    status, out, _ = run(*command, "--texts", tmp_path / "texts.txt")
    assert status == 0
    assert out.splitlines() == [
        f"3 images in = 2 embedded + 1 failed; wrote {tmp_path}/out",
        "1 failed: empty file",
        "1 left out: '.txt' is no suffix of a picture",
        f"2 texts in = 2 embedded + 0 failed; wrote {tmp_path}/out/_texts",
    ]
    assert pq.read_table(tmp_path / "out")["status"].to_pylist() == ["ok", "ok", "failed"]
    assert pq.read_table(tmp_path / "out/_texts")["caption"].to_pylist() == ["a red circle", "a cat"]


def test_what_was_embedded_is_searched_and_compared(run, mistake, tmp_path):
    """With words, and with a picture that finds itself; a pruned folder lacks one image."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        demo.scenes.scene("train", number).image.save(tmp_path / f"in/{number}.png")
    embed = ["embed", "demo", tmp_path / "in", "--workers", 0, "--out"]
    assert run(*embed, tmp_path / "dense")[0] == 0
    assert run(*embed, tmp_path / "pruned", "--pruner", "tome", "--limit", 2)[0] == 0
    status, out, _ = run("search", tmp_path / "dense", "a red circle", "-k", 2, "--out", tmp_path / "a/page.html")
    assert status == 0
    assert re.fullmatch(rf"0\.\d{{4}}  \d.png\n0\.\d{{4}}  \d.png\nwrote {tmp_path}/a/page.html\n", out)
    page = (tmp_path / "a/page.html").read_text()
    assert "<h1>a red circle</h1>" in page
    assert page.count("data:image/jpeg;base64") == 2
    out = run("search", tmp_path / "pruned", "--image", tmp_path / "in/1.png", "--out", tmp_path / "page.html")[1]
    assert out.startswith("1.0000  1.png\n0.")
    assert "Give words to look for, or a picture" in mistake("search", tmp_path / "dense")
    lines = run("compare-index", tmp_path / "dense", tmp_path / "pruned")[1].splitlines()
    assert lines[:2] == [
        "2 images in both, 2 of them asked with",
        "overlap@10 1.0000: so much of the 10 nearest neighbours is the same in both",
    ]
    assert re.fullmatch(r"cosine 0\.\d{4} on average, 0\.\d{4} at the lowest", lines[2])
    assert lines[3:] == [f"1 missing in {tmp_path}/pruned: 2.png"]
