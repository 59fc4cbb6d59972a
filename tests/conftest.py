from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from patchranking.extras import declare_missing_operators

declare_missing_operators()

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import pytest  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402
from transformers import (  # noqa: E402
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
)

import patchranking  # noqa: E402
from patchranking import as_text_tower, cli, load_model  # noqa: E402
from patchranking.towers import VisionTower, as_tower  # noqa: E402
from patchranking.towers.load import LoadedModel  # noqa: E402
from patchranking.towers.preprocessing import Preprocessing  # noqa: E402


@dataclass
class Case:
    """A small random model of a real class: the library's own encoder and the tower that must equal it."""

    model: nn.Module
    encode: Callable[[Tensor], Tensor]
    tower: VisionTower
    pixels: Tensor


def _open_clip(custom_text: bool, **vision: object) -> Case:
    vision_cfg = {"image_size": (24, 32), "patch_size": 8, "width": 32, "head_width": 16, "layers": 5, **vision}
    text_cfg = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    model = kind(embed_dim=24, vision_cfg=vision_cfg, text_cfg=text_cfg)
    return Case(model, model.encode_image, as_tower(model), torch.randn(3, 3, 24, 32))


def _clip_config(**vision: object) -> CLIPConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 5}
    text = {**sizes, "num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 8}
    return CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8, **vision}, projection_dim=24
    )


def _transformers() -> Case:
    model = CLIPModel(_clip_config())
    return Case(model, lambda x: model.get_image_features(x).pooler_output, as_tower(model), torch.randn(3, 3, 32, 32))


def _transformers_vision() -> Case:
    config = _clip_config(hidden_act="gelu").vision_config
    config.projection_dim = 24
    model = CLIPVisionModelWithProjection(config)
    return Case(model, lambda x: model(x).image_embeds, as_tower(model), torch.randn(3, 3, 32, 32))


def _transformers_alone(kind: type, config: type, **changes: object) -> Case:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 5, "image_size": 32, "patch_size": 8}
    model = kind(config(**{**sizes, "intermediate_size": 64, **changes}))
    feature = "logits" if "Classification" in kind.__name__ else "pooler_output"
    return Case(model, lambda x: model(x)[feature], as_tower(model), torch.randn(3, 3, 32, 32))


def _timm(name: str, **changes: object) -> Case:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2}
    model = timm.create_model(name, pretrained=False, **{**sizes, **changes})
    return Case(model, model, as_tower(model), torch.randn(3, 3, 32, 32))


def _tiny_timm(name: str) -> str:
    """The name of a timm model that is ``name`` with few and narrow blocks, for what takes nothing but names."""

    def make(num_classes: int = 1000, global_pool: str | None = None, **_: object) -> nn.Module:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2}
        return timm.create_model(name, **sizes, num_classes=num_classes, global_pool=global_pool)

    make.__name__ = f"tiny_{name}"
    if not timm.is_model(make.__name__):
        timm.models.register_model(make)
    return make.__name__


def _open_clip_timm(name: str, **vision: object) -> Case:
    """A CLIP of open_clip whose image side is one of timm's, with open_clip's own projection if it has one."""
    vision = {"timm_model_name": _tiny_timm(name), "image_size": 32, **vision}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CustomTextCLIP(24, vision, text)
    return Case(model, model.encode_image, as_tower(model), torch.randn(3, 3, 32, 32))


def _coca() -> Case:
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 5, "output_tokens": True}
    vision |= {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    text |= {"embed_cls": True, "output_tokens": True}
    captions = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CoCa(16, captions, text, vision)
    nn.init.normal_(model.text_decoder.text_projection, std=0.25)  # the class leaves it to the checkpoint
    return Case(model, partial(model.encode_image, normalize=False), as_tower(model), torch.randn(3, 3, 32, 32))


def _eva(name: str) -> Case:
    """With weights as large as trained ones: at the start, timm's layer scales, heads and logits nearly are zero."""
    case = _timm(name, num_classes=24)
    with torch.no_grad():
        case.model.head.weight.normal_(std=0.2)
        for own, weight in case.model.named_parameters():
            if "gamma_" in own:
                weight.fill_(1.0)
            elif own.startswith("blocks.") and weight.ndim == 2:
                weight.mul_(4)
    return case


CASES: dict[str, Callable[[], Case]] = {
    "open_clip": lambda: _open_clip(False),
    "open_clip-layerscale-no-ln-pre": lambda: _open_clip(False, ls_init_value=1.0, no_ln_pre=True),
    "open_clip-custom-text": lambda: _open_clip(True, final_ln_after_pool=True),
    "open_clip-average-pool": lambda: _open_clip(False, pool_type="avg"),
    "transformers": _transformers,
    "transformers-vision": _transformers_vision,
    "transformers-siglip": lambda: _transformers_alone(SiglipVisionModel, SiglipVisionConfig),
    "transformers-vit": lambda: _transformers_alone(ViTForImageClassification, ViTConfig, num_labels=24),
    "transformers-dinov2": lambda: _transformers_alone(Dinov2Model, Dinov2Config, use_swiglu_ffn=True),
    "transformers-dinov3": lambda: _transformers_alone(
        DINOv3ViTModel, DINOv3ViTConfig, num_register_tokens=4, pos_embed_rescale=None
    ),
    "timm-clip": lambda: _timm("vit_base_patch16_clip_224", num_classes=24),
    "timm-dinov2-registers": lambda: _timm("vit_small_patch14_reg4_dinov2"),
    "timm-average-pool": lambda: _timm("vit_base_patch16_224", global_pool="avg", class_token=False, num_classes=0),
    "timm-eva02": lambda: _eva("eva02_base_patch16_clip_224"),
    "timm-dinov3": lambda: _eva("vit_small_plus_patch16_dinov3"),
    "timm-siglip": lambda: _timm("vit_base_patch16_siglip_224", num_classes=0),
    "open_clip-siglip": lambda: _open_clip_timm("vit_base_patch16_siglip_224", timm_pool="map", timm_proj="none"),
    "open_clip-coca": _coca,
    "open_clip-attention-pool": lambda: _open_clip(False, attentional_pool=True, attn_pooler_queries=4),
}


ROTARY: dict[str, Callable[[], Case]] = {
    "timm-eva02": CASES["timm-eva02"],
    "timm-dinov3": CASES["timm-dinov3"],
    "timm-pe": lambda: _eva("vit_pe_core_tiny_patch16_384"),
    "timm-mixed-rope": lambda: _eva("vit_small_patch16_rope_mixed_224"),
    "transformers-dinov3": CASES["transformers-dinov3"],
}


def _made(make: Callable[[], Case]) -> Case:
    torch.manual_seed(0)
    made = make()
    made.model.eval().requires_grad_(False)
    return made


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Every kind of model, small, with random weights."""
    return _made(CASES[request.param])


@pytest.fixture(
    params=[
        "open_clip",
        "open_clip-siglip",
        "transformers",
        "transformers-dinov3",
        "timm-dinov2-registers",
        "timm-eva02",
    ]
)
def one_of_each(request: pytest.FixtureRequest) -> Case:
    """A few kinds that differ most, for what takes seconds."""
    return _made(CASES[request.param])


@pytest.fixture(params=ROTARY)
def rotary_case(request: pytest.FixtureRequest) -> Case:
    """Models whose blocks rotate queries and keys."""
    return _made(ROTARY[request.param])


@pytest.fixture
def coca() -> Case:
    """A small CoCa."""
    return _made(_coca)


@pytest.fixture
def on_timm() -> Callable[..., Case]:
    """Makes a CLIP of open_clip from the name of a timm model, and open_clip's options."""
    return lambda name, **vision: _made(partial(_open_clip_timm, name, **vision))


@pytest.fixture
def tower() -> VisionTower:
    """A small transformers tower with 4 x 4 patches and 5 blocks."""
    torch.manual_seed(0)
    made = _transformers()
    made.model.eval().requires_grad_(False)
    return made.tower


@cache
def _tokenizer() -> open_clip.SimpleTokenizer:
    """The tokenizer of CLIP for 24 tokens; to make one takes longer than a small model."""
    return open_clip.SimpleTokenizer(context_length=24)


def make_loaded(layers: int) -> LoadedModel:
    """A small random CLIP with 4 x 4 patches, which takes 32 x 32 pixels as they are."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": layers, "pool_type": "avg"}
    text = {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2}
    model = open_clip.CLIP(24, vision, text).eval().requires_grad_(False)
    model.token_embedding.weight *= 30  # so that texts differ
    for block in model.transformer.resblocks:
        block.attn.out_proj.weight *= 10

    def preprocess(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1

    def tokenize(texts):
        words = [[62, *(1 + zlib.crc32(word.encode()) % 60 for word in text.split()), 63] for text in texts]
        return torch.tensor([[*ids, *[0] * (12 - len(ids))] for ids in words])

    half = (0.5, 0.5, 0.5)
    return LoadedModel("tiny", model, as_tower(model), preprocess, as_text_tower(model, tokenize), 100.0, half, half)


@pytest.fixture
def loaded() -> LoadedModel:
    """A small random CLIP with 5 blocks and 4 x 4 patches; its features differ from picture to picture."""
    return make_loaded(5)


@pytest.fixture
def loaded_deep() -> LoadedModel:
    """A small random CLIP with the 12 blocks that the paper's schedules are for."""
    return make_loaded(12)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photos() -> Path:
    """A folder of photographs for tests on real images; these are skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "photos"
    folder = Path(os.environ.get("PATCHRANKING_PHOTOS") or beside)
    if not folder.is_dir():
        pytest.skip("no photographs: set PATCHRANKING_PHOTOS to a folder of images")
    return folder


@pytest.fixture(scope="session")
def demo():
    return load_model("demo")


@pytest.fixture(params=["transformers", "open_clip", "open_clip-custom-text"])
def text(request, demo):
    """Text sides of every kind, with their tokenizers."""
    if request.param == "transformers":
        return demo.text
    torch.manual_seed(0)
    vision_cfg = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
    text_cfg = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
    kind = open_clip.CLIP if request.param == "open_clip" else open_clip.CustomTextCLIP
    model = kind(embed_dim=24, vision_cfg=vision_cfg, text_cfg=text_cfg).eval().requires_grad_(False)
    return as_text_tower(model, _tokenizer())


def make_tiny(layers: int, text_layers: int) -> LoadedModel:
    """A small random open_clip model with all that belongs to one, and 4 x 4 patches."""
    vision_cfg = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": layers}
    text_cfg = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": text_layers}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision_cfg, text_cfg=text_cfg).eval().requires_grad_(False)
    text = as_text_tower(model, _tokenizer())
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)

    def preprocess(image: Image.Image) -> Tensor:
        levels = torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) / 255
        return (levels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    numbers = Preprocessing((32, 32), mean, std, resize_mode="squash")
    return LoadedModel("tiny", model, as_tower(model), preprocess, text, 10.0, mean, std, numbers)


@pytest.fixture
def tiny() -> LoadedModel:
    """``make_tiny`` with 5 blocks, and 3 for texts."""
    return make_tiny(5, 3)


@pytest.fixture(scope="session")
def tinier() -> LoadedModel:
    """``make_tiny`` with 2 blocks, and 1 for texts; one for all tests, which leave it as it is."""
    torch.manual_seed(0)
    return make_tiny(2, 1)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, whose ``downloads`` go to a folder; tests with it are skipped where there is none."""
    selenium = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: install Debian's chromium and chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    running = selenium.Chrome(options, selenium.ChromeService(driver))
    running.downloads = tmp_path_factory.mktemp("downloads")
    running.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(running.downloads)}
    )
    yield running
    running.quit()


@pytest.fixture
def optimiser_steps() -> Iterator[list[dict[str, float]]]:
    """What every optimiser does: ``lr``, ``weight_decay``, ``momentum`` and the gradient's ``norm``, step by step."""
    steps: list[dict[str, float]] = []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        (group,) = optimiser.param_groups
        gradients = [weight.grad.flatten() for weight in group["params"] if weight.grad is not None]
        numbers = {name: group.get(name) for name in ("lr", "weight_decay", "momentum")}
        steps.append(numbers | {"norm": torch.cat(gradients).norm().item()})

    hook = register_optimizer_step_pre_hook(note)
    yield steps
    hook.remove()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Returns a function that runs the command line here and returns its exit status, output and error output."""

    def call(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["patchranking", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return (status, *capfd.readouterr())

    return call


@pytest.fixture
def noise_folder(tmp_path: Path) -> Callable[[str, Sequence[str], int], Path]:
    """Returns a function that makes a folder with as many pictures of noise in each of some classes."""

    def fill(name: str, classes: Sequence[str], each: int) -> Path:
        rng = np.random.default_rng(0)
        for own in classes:
            (tmp_path / name / own).mkdir(parents=True)
            for index in range(each):
                picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
                picture.save(tmp_path / name / own / f"{index}.png")
        return tmp_path / name

    return fill


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes of one CPU each; this process computes with one thread, as the workers do."""
    pytest.importorskip("ray.data", exc_type=ImportError)
    import ray
    from ray.cluster_utils import Cluster

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", made.address)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        torch.set_num_threads(threads)


_FORKS = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from patchranking import load_model

load_model("demo")  # what is imported and made once is not in every fork
steps, fatal = 0, 0

def deadly(function, last_breath=lambda *_: None):
    def step(*arguments, **options):
        global steps
        steps += 1
        if steps == fatal:
            last_breath(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return step

def forked(work, *arguments):
    process = os.fork()
    if process == 0:
        work(*arguments)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)

def serve(code):
    exec(code, globals())
    pq.write_table = deadly(pq.write_table, lambda table, path: path.write_bytes(b"PAR1 half a shard"))
    os.replace = deadly(os.replace)
    print(0, flush=True)
    for line in iter(sys.stdin.readline, "end\\n"):
        number, *words = line.split()
        globals()["fatal"] = int(number)
        forked(run, *words)

for line in iter(sys.stdin.readline, ""):
    forked(serve, eval(line))
"""


@pytest.fixture(scope="session")
def fork_server() -> Iterator[Callable[[str], int]]:
    """Returns a function that sends a line to a process that forks, and returns the exit code, 0 once it is ready."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork and SIGKILL")
    environment = os.environ | {"PYTHONPATH": str(Path(patchranking.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", _FORKS], env=environment, text=True, **pipes) as process:

        def send(line: str) -> int:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield send


@pytest.fixture(scope="session")
def killed_forks(fork_server: Callable[..., int]) -> Callable[[str], Any]:
    """Returns a context manager of a process that runs code and then forks on demand; forks may be killed on the way.

    The code defines ``run(*words)``. It may mark functions by ``deadly``; writing a Parquet file and ``os.replace`` are
    marked already. What comes out maps a number and words to the exit code of a fork that runs ``run(*words)`` and is
    killed when it enters so many deadly functions, or never at 0. One at a time: the process is a fork, too, of one
    that a session starts once.
    """

    @contextmanager
    def forks(prepared: str) -> Iterator[Callable[..., int]]:
        assert fork_server(repr(prepared)) == 0
        yield lambda fatal, *words: fork_server(" ".join(map(str, [fatal, *words])))
        assert fork_server("end") == 0

    return forks
