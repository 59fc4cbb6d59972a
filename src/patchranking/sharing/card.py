"""The card of a pruner, the README.md of its folder and the front page of its repository on the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCardData

from patchranking.pruning.schedule import Schedule
from patchranking.sharing.measured import Measured
from patchranking.towers.identity import BaseModel

__all__ = ["card", "hub_id"]

_FOLDER = "path/to/this/folder"
_EXTRAS = {"demo": "demo", "open_clip": "open-clip", "hf": "transformers", "timm": "timm"}

_PAGE = """---
{metadata}
---

# Pruner for {model}

A pruner makes an image encoder faster by running it on the patches that matter. This one belongs to `{model}`. Small \
networks, fitted without labels, rank the patches of a picture by how much its {target} depends on them, as in \
[Patch Ranking](https://arxiv.org/abs/2409.14607). Before {blocks}, those at the end of the order {go}. The base model \
is not included. Its weights stay as they are, and detaching the pruner restores it exactly.

| | |
|---|---|
| base model | `{model}`: {height} x {width} pixels, {patches} patches |
| fitted to | {fitted} |
| keep rate | {keep:g}: {kept} of {patches} patches reach the end; it can be changed at any time, without another fit |
| tuned tokens | {tuned} |

## How to use it

```bash
pip install "patchranking{extra}"
```

```python
{program}
```
{more}
## What was measured

{measured}

## Limits

{limits}
"""

_PROGRAM = """import patchranking
from PIL import Image

loaded = patchranking.load_model("{model}")
pruner = patchranking.Pruner.from_pretrained("{where}")
pruner.keep = {keep:g}  # share of the patches that reaches the end; 1 is the dense model
picture = Image.open("picture.jpg").convert("RGB")
pixels = loaded.preprocess(picture)[None]
with pruner.attached(loaded.model):
    {run}"""

_OWN_PROGRAM = """import patchranking

pruner = patchranking.Pruner.from_pretrained("{where}")
pruner.keep = {keep:g}  # share of the patches that reaches the end; 1 is the dense model
with pruner.attached(model):  # the model that it was fitted to, from open_clip, transformers or timm
    {run}"""

_COMMAND = """
On the command line, wherever `--pruner` stands:

```bash
patchranking embed {model} your/pictures --pruner {where} --out runs/vectors
```
"""

_MEASURE = """```bash
patchranking evaluate {model} your/pictures --pruner {where} --out runs/evaluate
```"""


class _Column(NamedTuple):
    head: str
    show: Callable[[Mapping[str, float | None]], str]
    dense: Callable[[Mapping[str, float | None]], str]
    about: str


def card(
    base: BaseModel,
    schedule: Schedule,
    measured: Measured | None = None,
    repo_id: str | None = None,
    merges: bool = False,
    tuned: str = "none",
    hands_on: int | None = None,
) -> str:
    """Writes the card.

    Args:
        base: The model that the pruner was fitted to.
        schedule: Where patches go, at the current keep rate.
        measured: What was measured with the fit.
        repo_id: Where the pruner is on the Hub, ``org/name``; None in a folder.
        merges: Whether patches that go may merge into others.
        tuned: Which tokens are tuned.
        hands_on: The hidden state that it was fitted to preserve; None for the image feature.

    Returns:
        Markdown with the metadata of the Hub in front.
    """
    patches, (height, width), where = base.grid[0] * base.grid[1], base.image_size, repo_id or _FOLDER
    library, model, keep = base.name.partition(":")[0], _shown(base.name), schedule.keep
    known = library in _EXTRAS
    if hands_on is not None:
        run = f"...  # run the model as ever: hidden_states[{hands_on}] has fewer tokens"
    elif known:
        run = "features = loaded.tower(pixels)  # or as your library calls loaded.model"
    else:
        run = "features = model.encode_image(pixels)  # or as your library calls it"
    blocks = list(map(str, schedule.stages))
    told = {"model": model, "where": where, "keep": keep, "run": run}
    return _PAGE.format(
        metadata=_metadata(base.name, tuned),
        height=height,
        width=width,
        target="image feature" if hands_on is None else f"hidden_states[{hands_on}]",
        go="are merged into similar ones or dropped" if merges else "are dropped",
        blocks=f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {', '.join(blocks[:-1])} and {blocks[-1]}",
        patches=patches,
        kept=list(schedule.kept(patches).values())[-1],
        tuned="none" if tuned == "none" else f"{tuned}, by few-shot tuning",
        fitted="not recorded" if measured is None else f"{_counted(measured.n_train)} of {_source(measured)}",
        extra=f"[{_EXTRAS[library]}]" if known else "",
        program=(_PROGRAM if known else _OWN_PROGRAM).format(**told),
        more=_COMMAND.format(**told) if known and hands_on is None else "",
        measured=_figures(measured),
        limits=_limits(measured, _MEASURE.format(**told) if known and hands_on is None else None),
        **{name: told[name] for name in ("model", "keep")},
    )


def hub_id(name: str) -> str | None:
    """The repository on the Hub that a MODEL argument names; None where it names none."""
    library, _, rest = name.partition(":")
    marked = re.sub(r"^hf[-_]hub:", "", rest)
    if (library != "hf" and marked == rest) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", marked):
        return None
    return None if Path(marked).exists() else marked


def _metadata(name: str, tuned: str) -> str:
    """The YAML in front, without a licence: that is for those who publish to say."""
    base = hub_id(name)
    data = ModelCardData(
        library_name="patchranking",
        pipeline_tag="image-feature-extraction",
        base_model=base,
        base_model_relation=None if base is None else "adapter",
        tags=["clip", "vision-transformer", "token-pruning", *(["prompt-tuning"] if tuned != "none" else [])],
    )
    return data.to_yaml().strip()


def _shown(name: str) -> str:
    """A MODEL argument as others may read it: of a folder the last part alone."""
    library, _, rest = name.partition(":")
    folder = rest.removeprefix("local-dir:")
    if folder == rest and not rest.startswith(("/", ".", "~")) and not (rest and Path(rest).is_dir()):
        return name
    last = folder.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return f"{library}:{'local-dir:' if folder != rest else ''}path/to/{last}"


def _source(measured: Measured) -> str:
    return f"`{measured.dataset}` ({measured.split})" if measured.split else f"`{measured.dataset}`"


def _figures(measured: Measured | None) -> str:
    """A table of what was measured, and what its columns mean."""
    if measured is None or not measured.rows:
        return "No figures are stored with this pruner."
    columns = [one for key, one in _columns(measured).items() if any(row.get(key) is not None for row in measured.rows)]
    head = ["keep rate", *(column.head for column in columns)]
    rows = [[f"{row['keep_rate']:g}", *(column.show(row) for column in columns)] for row in measured.rows]
    dense = ["1 (dense)", *(column.dense(measured.rows[0]) for column in columns)]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---:"] * len(head), dense, *rows)]
    begin = f"On {_counted(measured.n_images)} of {_source(measured)} that the fit held out:"
    return "\n".join([begin, "", *lines, "", *(f"- **{column.head}**: {column.about}" for column in columns)])


def _columns(measured: Measured) -> dict[str, _Column]:
    """Key of a row -> its column."""
    about, batch = measured.environment, measured.timing_batch
    threads = f", {count} thread{'' if count == 1 else 's'}" if (count := about.get("threads")) else ""
    machine = (
        f"{about.get('device') or 'an unknown machine'}{threads}, torch {about.get('torch')}, {about.get('dtype')}"
    )
    near = min(10, measured.n_images - 1)

    def speed(row: Mapping[str, float | None]) -> str:
        own, dense = row.get("images_per_second"), row.get("images_per_second_dense")
        return "–" if not own or not dense else f"{own / dense:.2f}x"

    return {
        "macs_share": _Column(
            "MACs",
            _figure("macs_share", ".0%"),
            lambda row: "100%",
            "multiply-accumulates of the image encoder, the pruner's own included, as a share of the dense encoder's.",
        ),
        "top1": _Column(
            "top-1",
            _figure("top1", ".1f"),
            _figure("top1_dense", ".1f"),
            f"zero-shot accuracy in percent, {measured.n_classes} classes.",
        ),
        "feature_cosine": _Column(
            "cosine",
            _figure("feature_cosine", ".3f"),
            lambda row: "1",
            "mean cosine between a picture's feature and its dense feature.",
        ),
        "token_cosine": _Column(
            "token cosine",
            _figure("token_cosine", ".3f"),
            lambda row: "1",
            "mean cosine of the tokens that are left to the dense ones at their places.",
        ),
        "index_overlap_at_10": _Column(
            "same neighbours",
            _figure("index_overlap_at_10", ".0%"),
            lambda row: "100%",
            f"share of a picture's {near} nearest neighbours that stay the same, in an index of the dense features of "
            "these pictures.",
        ),
        "images_per_second": _Column(
            "speed",
            speed,
            lambda row: "1x",
            f"relative to the dense encoder, in batches of {batch}, in alternation with it, on {machine}.",
        ),
    }


def _limits(measured: Measured | None, command: str | None) -> str:
    """What does not follow from the figures."""
    source = "pictures that are not recorded" if measured is None else f"pictures of {_source(measured)}"
    where = "" if command is None else ", with the command below"
    said = [
        f"It was fitted to {source}. On other kinds of pictures, other patches may matter and more may be lost: "
        f"measure it on yours first{where}."
    ]
    if measured is not None:
        said.append(
            f"The figures come from {_counted(measured.n_images)} of the source that it was fitted to; a difference "
            "of a point or two may be chance."
        )
        if measured.timing_batch:
            said.append("Speed depends on machine, batch size and precision: `patchranking benchmark` measures yours.")
    said.append("It works with this base model and these weights only; any other is refused.")
    said.append("The licence of the base model applies as well.")
    return "\n".join([*(f"- {one}" for one in said), *([] if command is None else ["", command])])


def _counted(images: int) -> str:
    return "1 picture" if images == 1 else f"{images:,} pictures"


def _figure(name: str, spec: str) -> Callable[[Mapping[str, float | None]], str]:
    """What shows one value of a row."""
    return lambda row: _text(row.get(name), spec)


def _text(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
