from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from patchranking.commands import embed, evaluate
from patchranking.commands.arguments import parse
from patchranking.pruning.schedule import Schedule
from patchranking.sharing.card import card, hub_id
from patchranking.sharing.measured import Measured
from patchranking.towers.identity import BaseModel

BASE = BaseModel("hf:openai/clip-vit-base-patch16", (224, 224), (14, 14), 1, 768, 12, "quick_gelu", [0.5])
SCHEDULE = Schedule({1: 0.9, 4: 0.7, 8: 0.5})
ROWS = [
    {"keep_rate": 0.7, "macs_share": 0.8, "top1": 91.04, "top1_dense": 92.0, "feature_cosine": 0.9951}
    | {"index_overlap_at_10": 0.93, "images_per_second": 30.0, "images_per_second_dense": 25.0},
    {"keep_rate": 0.5, "macs_share": 0.625, "top1": 90.0, "top1_dense": 92.0, "feature_cosine": 0.98}
    | {"index_overlap_at_10": 0.9, "images_per_second": 40.0, "images_per_second_dense": 25.0},
]
MACHINE = {"device": "A fast one", "threads": 2, "torch": "2.9", "dtype": "float32"}
FIGURES = Measured("birds", "train", 1800, 200, 30, 4, MACHINE, ROWS)


def table(text):
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def test_it_says_what_was_measured_on_what_and_where():
    text = card(BASE, SCHEDULE, FIGURES, "org/name", merges=True)
    *_, head, _, dense, first, second = table(text)
    assert head == ["keep rate", "MACs", "top-1", "cosine", "same neighbours", "speed"]
    assert dense == ["1 (dense)", "100%", "92.0", "1", "100%", "1x"]
    assert first == ["0.7", "80%", "91.0", "0.995", "93%", "1.20x"]
    assert second == ["0.5", "62%", "90.0", "0.980", "90%", "1.60x"]
    assert "On 200 pictures of `birds` (train) that the fit held out:" in text
    assert "in batches of 4, in alternation with it, on A fast one, 2 threads, torch 2.9, float32." in text
    assert "30 classes" in text
    assert "It was fitted to pictures of `birds` (train). On other kinds of pictures" in text
    assert "Before blocks 1, 4 and 8, those at the end of the order are merged into similar ones or dropped." in text
    assert "| 0.5: 98 of 196 patches" in text


def test_its_metadata_are_those_of_the_hub():
    text = card(BASE, SCHEDULE, FIGURES, "org/name")
    data = ModelCard(text).data.to_dict()
    assert data == {
        "library_name": "patchranking",
        "pipeline_tag": "image-feature-extraction",
        "base_model": "openai/clip-vit-base-patch16",
        "base_model_relation": "adapter",
        "tags": ["clip", "vision-transformer", "token-pruning"],
    }
    assert str(ModelCard(text)) == text
    tuned = ModelCard(card(replace(BASE, name="demo"), SCHEDULE, tuned="both")).data.to_dict()
    assert "base_model" not in tuned
    assert "prompt-tuning" in tuned["tags"]


def test_only_what_was_measured_has_a_column():
    rows = [{"keep_rate": 0.5, "token_cosine": 0.97, "top1": None}]
    text = card(BASE, SCHEDULE, replace(FIGURES, rows=rows, timing_batch=0, n_images=1), hands_on=-2)
    *_, head, _, dense, only = table(text)
    assert (head, dense, only) == (["keep rate", "token cosine"], ["1 (dense)", "1"], ["0.5", "0.970"])
    assert "top-1" not in text
    assert "Speed" not in text
    assert "On 1 picture of" in text
    assert "by how much its hidden_states[-2] depends" in text


def test_without_figures_it_says_so():
    text = card(BASE, SCHEDULE)
    assert "No figures are stored with this pruner." in text
    assert "| fitted to | not recorded |" in text
    assert 'from_pretrained("path/to/this/folder")' in text


@pytest.mark.parametrize("name", ["hf:org/clip", "open_clip:ViT-B-16/openai", "demo", "tiny", "a model of ours"])
@pytest.mark.parametrize("hands_on", [None, -2])
def test_its_programs_are_programs_and_its_commands_parse(name, hands_on):
    text = card(replace(BASE, name=name), SCHEDULE, FIGURES, "org/name", hands_on=hands_on)
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(program, "card", "exec")
    assert len(program.splitlines()) <= 10
    commands = re.findall(r"^patchranking (\w+) (.*)$", text, re.MULTILINE)
    assert len(commands) == (2 if name.startswith(("hf", "open_clip", "demo")) and hands_on is None else 0)
    for command, arguments in commands:
        assert parse({"embed": embed.embed, "evaluate": evaluate.evaluate}[command], arguments.split(), command)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("open_clip:local-dir:/home/me/secret/bird-clip/", "open_clip:local-dir:path/to/bird-clip"),
        ("hf:~/secret/bird-clip", "hf:path/to/bird-clip"),
        ("timm:local-dir:secret\\bird-clip", "timm:local-dir:path/to/bird-clip"),
        ("hf:secret/bird-clip", "hf:path/to/bird-clip"),
    ],
)
def test_it_names_no_folder_of_its_author(name, shown, tmp_path, monkeypatch):
    (tmp_path / "secret/bird-clip").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = card(replace(BASE, name=name), SCHEDULE, FIGURES)
    assert "secret" not in text
    assert f'load_model("{shown}")' in text
    assert "base_model:" not in text


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hf:org/clip", "org/clip"),
        ("open_clip:hf-hub:org/clip", "org/clip"),
        ("timm:hf-hub:org/vit.x_1", "org/vit.x_1"),
        ("timm:hf_hub:org/vit", "org/vit"),
        ("open_clip:ViT-B-16/openai", None),
        ("timm:vit_base_patch16_clip_224.openai", None),
        ("hf:/models/clip", None),
        ("hf:clip", None),
        ("demo", None),
    ],
)
def test_a_repository_is_known_by_its_name(name, found):
    assert hub_id(name) == found
