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

A pruner for [patchranking](https://pypi.org/project/patchranking/): it makes the image encoder of `{model}` faster by
running it on the patches that matter. Small networks, fitted without labels, say which patches of a picture its
{target} depends on; the others {go} before {blocks}, inside the running model. The model itself
is not included. It keeps its classes and its weights, and is what it was once the pruner is detached.

| | |
|---|---|
| base model | `{model}`, {height} x {width} pixels, {patches} patches |
| keep rate | {keep:g}: {kept} of {patches} patches reach the end; may be changed at any time, without another fit |
| tuned tokens | {tuned} |
| fitted to | {fitted} |

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
Every command that takes `--pruner` takes it, too:

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
        go="merge into similar ones or are dropped" if merges else "are dropped",
        blocks=f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {', '.join(blocks[:-1])} and {blocks[-1]}",
        patches=patches,
        kept=list(schedule.kept(patches).values())[-1],
        tuned="none" if tuned == "none" else f"{tuned}, by few-shot tuning",
        fitted="not recorded" if measured is None else f"{measured.n_train:,} pictures of {_source(measured)}",
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
        return "No figures went with this pruner: measure it on your pictures, as below."
    columns = [one for key, one in _columns(measured).items() if any(row.get(key) is not None for row in measured.rows)]
    head = ["keep rate", *(column.head for column in columns)]
    rows = [[f"{row['keep_rate']:g}", *(column.show(row) for column in columns)] for row in measured.rows]
    dense = ["1 (dense)", *(column.dense(measured.rows[0]) for column in columns)]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---:"] * len(head), dense, *rows)]
    pictures = "1 picture" if measured.n_images == 1 else f"{measured.n_images:,} pictures"
    begin = f"On {pictures} of {_source(measured)} that were held out of the fit:"
    return "\n".join([begin, "", *lines, "", *(f"- **{column.head}**: {column.about}" for column in columns)])


def _columns(measured: Measured) -> dict[str, _Column]:
    """Key of a row -> its column."""
    about, batch = measured.environment, measured.timing_batch
    threads = f", {count} thread{'' if count == 1 else 's'}" if (count := about.get("threads")) else ""
    machine = f"{about.get('device') or 'an unknown machine'}{threads}, torch {about.get('torch')} {about.get('dtype')}"
    near = min(10, measured.n_images - 1)

    def speed(row: Mapping[str, float | None]) -> str:
        own, dense = row.get("images_per_second"), row.get("images_per_second_dense")
        return "–" if not own or not dense else f"{own / dense:.2f}x"

    return {
        "macs_share": _Column(
            "MACs",
            lambda row: _text(row.get("macs_share"), ".0%"),
            lambda row: "100%",
            "multiply-accumulates of the image encoder as a share of the dense one's, the pruner's own included.",
        ),
        "top1": _Column(
            "top-1",
            lambda row: _text(row.get("top1"), ".1f"),
            lambda row: _text(row.get("top1_dense"), ".1f"),
            f"zero-shot accuracy in percent, {measured.n_classes} classes. The fit saw no label.",
        ),
        "feature_cosine": _Column(
            "cosine",
            lambda row: _text(row.get("feature_cosine"), ".3f"),
            lambda row: "1",
            "mean cosine of a picture's feature to the dense one.",
        ),
        "token_cosine": _Column(
            "token cosine",
            lambda row: _text(row.get("token_cosine"), ".3f"),
            lambda row: "1",
            "mean cosine of the tokens that are left to the dense ones at their places.",
        ),
        "index_overlap_at_10": _Column(
            "same neighbours",
            lambda row: _text(row.get("index_overlap_at_10"), ".0%"),
            lambda row: "100%",
            f"share of the {near} nearest neighbours that stay, in an index of the dense features of these "
            f"{measured.n_images} pictures.",
        ),
        "images_per_second": _Column(
            "speed",
            speed,
            lambda row: "1x",
            f"relative to the dense encoder, timed in alternation with it, in batches of {batch} on {machine}.",
        ),
    }


def _limits(measured: Measured | None, command: str | None) -> str:
    """What does not follow from the figures."""
    source = "pictures that are not recorded" if measured is None else f"pictures of {_source(measured)}"
    said = [
        f"- It was fitted to {source}. On other kinds of pictures other patches may matter, and more may be lost: "
        "measure it on yours first."
    ]
    if measured is not None:
        said.append(
            f"- The figures are of {measured.n_images} pictures from the same source as those of the fit. That many "
            "cannot tell differences of a point or two apart."
        )
        if measured.timing_batch:
            said.append(
                "- Another machine, batch size or precision has other speeds: `patchranking benchmark` times yours."
            )
    said.append("- It works with this base model and these weights alone; any other is refused.")
    said.append("- Who uses it is bound by the licence of the base model, too.")
    return "\n".join([*said, *(["", command] if command else [])])


def _text(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
