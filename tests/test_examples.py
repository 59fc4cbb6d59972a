"""The recipes run, on the demo model and small models of the real classes, as their docstrings say."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import open_clip
import pytest
import torch
from jsonargparse import auto_cli
from peft import PeftModel
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from patchranking import Pruner, as_tower, load_model
from patchranking.demo import MODEL_DIR, scene
from patchranking.demo.scenes import CLASSES
from patchranking.predictor.networks import Predictor
from patchranking.pruning.schedule import Schedule
from patchranking.towers.identity import BaseModel

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def script(name):
    """The ``main`` of a recipe."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the types of its arguments are looked up
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve scenes of the demo in a folder for each class."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(12):
        one = scene("val", index)
        (folder / CLASSES[one.label]).mkdir(exist_ok=True)
        one.image.save(folder / CLASSES[one.label] / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def photo(photos):
    return sorted(photos.glob("*/*.png"))[0]


@pytest.fixture(scope="module")
def pruner(tmp_path_factory):
    """Of the demo model, which keeps patches by weights that are drawn."""
    torch.manual_seed(0)
    folder, tower = tmp_path_factory.mktemp("pruner"), load_model("demo").tower
    Pruner.unfitted(tower, "demo", Schedule.default(tower.depth, 0.5), merges=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Folder of a small open_clip model, with a pruner in its sub-folder."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    config = {"model_cfg": sizes, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    weights = {name: 2 * value.clone() for name, value in open_clip.CLIP(**sizes).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    tower = load_model(f"open_clip:local-dir:{folder}").tower
    Pruner.unfitted(tower, "tiny", Schedule({1: 0.2})).save_pretrained(folder / "pruner")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that runs a recipe by its command line and returns what it prints."""

    def call(name, *arguments):
        capsys.readouterr()
        auto_cli(script(name), args=[str(argument) for argument in arguments])
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recipe_says_how_it_is_run_and_is_listed(name):
    text = (ROOT / f"examples/{name}.py").read_text()
    (command,) = re.findall(rf"^    python examples/{name}\.py ?(.*)$", text, re.MULTILINE)
    with pytest.raises(SystemExit) as ended:
        auto_cli(script(name), args=[*shlex.split(command), "--print_config"])
    assert ended.value.code == 0
    page = (ROOT / "docs/recipes.md").read_text()
    assert f"(../examples/{name}.py)" in page
    assert f"    python examples/{name}.py {command}".rstrip() + "\n" in page
    assert len(text.splitlines()) <= 62


def test_open_clips_evaluation_takes_a_pruned_model(run, photos, clip):
    out = run("open_clip_zero_shot", f"local-dir:{clip}", photos, clip / "pruner")
    found = re.findall(r"^(.*): top-1 ([\d.]+)% of 12 images$", out, re.MULTILINE)
    assert [what for what, _ in found] == ["dense", "20% of the patches"]
    assert found[0][1] != found[1][1]  # the weights were chosen so


def test_pipelines_take_a_pruner(run, photo, pruner):
    out = run("transformers_pipelines", MODEL_DIR, photo, pruner, "sun,cloud,star")
    dense, pruned, cosine = out.splitlines()
    assert dense.removeprefix("dense:") != pruned.removeprefix("pruned:")
    assert 0 < float(cosine.rpartition(" ")[2]) < 1


def test_sentence_transformers_search_with_a_pruner(run, photos, pruner):
    pytest.importorskip("sentence_transformers")
    found = run("sentence_transformers_search", MODEL_DIR, photos, "a photo of a sun.", pruner, "--k", 3)
    lines = [line.split("  ") for line in found.splitlines()]
    assert [float(cosine) for cosine, _ in lines] == sorted((float(cosine) for cosine, _ in lines), reverse=True)
    assert all((photos / name).is_file() for _, name in lines)


@pytest.fixture
def llava(tmp_path, demo):
    """A small LLaVA whose image tower has the weights of the demo model, with its processor, and a pruner for it."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    words = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    words.no_truncation()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=["<image>"])
    config = LlavaConfig(
        vision_config=demo.model.config.vision_config,
        text_config=LlamaConfig(**sizes, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(demo.tower.module.state_dict(), strict=False)
    model.save_pretrained(tmp_path / "llava")
    images = CLIPImageProcessor.from_pretrained(MODEL_DIR)
    LlavaProcessor(images, tokenizer, 8, "default", num_additional_image_tokens=1).save_pretrained(tmp_path / "llava")
    tower = as_tower(model.model.vision_tower)
    stages = Schedule({1: 0.5, 3: 0.25})
    own = {block: Predictor.for_tower(tower, "mlp") for block in stages.stages}
    Pruner(own, BaseModel.of(tower, "demo"), stages, hands_on=-2).save_pretrained(tmp_path / "tokens")
    return tmp_path


@pytest.mark.filterwarnings("error:This model is pruned")
def test_llava_reads_the_tokens_that_stay(run, photo, llava):
    out = run("llava", llava / "llava", photo, "what is this", llava / "tokens", "--max_new_tokens", 2)
    first, refused, *_ = out.splitlines()
    assert first == "36 of 144 image tokens go on"
    assert re.match("refused with all placeholders: Image features and image tokens do not match", refused)


def test_a_dense_index_is_queried_with_pruned_vectors(run, photos, pruner):
    pytest.importorskip("faiss")
    out = run("faiss_dense_index", "demo", photos, photos, pruner, "--k", 3, "--keep", 1)
    assert out == "12 pictures, 12 queries: 100.0% of the 3 nearest neighbours stay\n"
    out = run("faiss_dense_index", "demo", photos, photos, pruner, "--k", 3)
    assert float(re.search(r"([\d.]+)%", out)[1]) < 100


def test_copies_are_found_and_nothing_else(run, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    first, *_ = sorted((tmp_path / "photos").glob("*/*.png"))
    Image.open(first).resize((192, 192)).convert("RGB").save(tmp_path / "photos/copy.jpg", quality=90)
    (tmp_path / "photos/empty.jpg").touch()
    out = run("deduplicate", "demo", tmp_path / "photos", "--threshold", 0.97).splitlines()
    assert out[0].startswith("not read: empty.jpg: ")
    cosine, one, other = out[1].split("  ")
    assert {one, other} == {"copy.jpg", str(first.relative_to(tmp_path / "photos"))}
    assert float(cosine) >= 0.97
    assert out[2:] == ["compared 13 pictures"]


def test_pairs_are_found_across_blocks(monkeypatch):
    vectors = F.normalize(torch.randn(50, 3), dim=-1).numpy()
    pairs = script("deduplicate").__globals__
    monkeypatch.setitem(pairs, "ROWS", 7)
    found = [(one, other) for one, other, _ in pairs["pairs"](vectors, 0.9)]
    cosines = vectors @ vectors.T
    assert found == [(i, j) for i in range(50) for j in range(i + 1, 50) if cosines[i, j] >= 0.9]
    assert found


def test_an_adapter_is_trained_on_the_pruned_model_and_the_pruner_serves_it(run, photos, pruner, tmp_path):
    out = run("fine_tune", MODEL_DIR, photos, pruner, tmp_path / "lora", "--epochs", 3)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    tuned = PeftModel.from_pretrained(CLIPModel.from_pretrained(MODEL_DIR), tmp_path / "lora")
    with Pruner.from_pretrained(pruner).attached(tuned):
        pass


def test_shards_are_embedded_and_read(run, photos, pruner, tmp_path):
    files = sorted(photos.glob("*/*.png"))
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number, file in enumerate(files[6 * shard : 6 * shard + 6]):
                contents = file.read_bytes() if number else b"no picture"
                member = tarfile.TarInfo(f"{number:03}.png")
                member.size = len(contents)
                tar.addfile(member, io.BytesIO(contents))
    where = (tmp_path / "{0..1}.tar", tmp_path / "out", pruner, "--shard_size", 6)
    out = run("webdataset_embed", "demo", *where)
    assert "'in': 12, 'out': 10, 'failed': 2" in out
    assert "failed 2 times: " in out
    assert re.findall(r"(\S+) \.\.\. (\S+): 5 vectors of 128 numbers, float16", out) == [
        ("0/001", "0/005"),
        ("1/001", "1/005"),
    ]


def test_what_immich_reads_gives_the_cosine_of_the_pruned_model(run, photo, clip, tmp_path):
    model = f"open_clip:local-dir:{clip}"
    out = run("immich_export", model, tmp_path / "out", photo, "a sun", clip / "pruner", "--macs", 0.7)
    loaded = load_model(model)
    fitted = Pruner.from_pretrained(clip / "pruner").at_macs(loaded.tower, 0.7)
    with torch.inference_mode(), fitted.attached(loaded.model):
        image = loaded.tower(loaded.preprocess(Image.open(photo))[None])
        expected = F.cosine_similarity(image, loaded.text(["a sun"])).item()
    assert float(re.search(r"^cosine of the picture and 'a sun': (.*)$", out, re.M)[1]) == pytest.approx(
        expected, abs=2e-3
    )
