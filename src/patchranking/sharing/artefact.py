"""The files of an artefact: weights with their configuration, ``config.json``, and its card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from patchranking.checkpoint import digest
from patchranking.errors import UserError
from patchranking.files import replacing

__all__ = ["check_place", "read", "write"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
FORMAT = 5
_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""A repository on the Hub."""


def check_place(where: str) -> None:
    """Raises UserError where a name is neither that of a folder nor one that a repository on the Hub may have."""
    if Path(where).is_dir():
        return
    if not _NAME.fullmatch(where):
        raise UserError(f"There is no folder '{where}', and it is no Hub repository: fit a pruner first.")
    if (parent := Path(where).parent).is_dir():
        there = ", ".join(sorted(path.name for path in parent.iterdir() if path.is_dir())) or "no folders"
        raise UserError(f"There is no folder '{where}'; '{parent}' holds {there}.")


def write(
    folder: Path, config: Mapping[str, Any], figures: Mapping[str, Any], weights: Mapping[str, Tensor], page: str
) -> None:
    """Writes all files beside the old ones, then replaces these, weights first.

    The weights carry the configuration, too, without figures: it counts where a kill came before that of
    ``config.json``.

    Args:
        folder: Where; a README.md that a user has written or changed stays.
        config: What is made of the weights, ready for JSON.
        figures: What is known about it besides.
        weights: By name.
        page: The README.md.
    """
    stored, own = {"format": FORMAT, **config}, _own_card(folder)
    about = {**stored, **figures, "card": digest([page]) if own else None}
    with ExitStack() as files:
        configured = files.enter_context(replacing(folder / CONFIG_FILE))
        if own:
            files.enter_context(replacing(folder / CARD_FILE)).write_text(page, encoding="utf-8")
        kept = files.enter_context(replacing(folder / WEIGHTS_FILE))
        configured.write_text(json.dumps(about, indent=2) + "\n")
        kept.write_bytes(save(dict(weights), {"config": json.dumps(stored)}))


def read(where: str, **options: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads the configuration and the weights, in today's format.

    Args:
        where: A folder, or a repository on the Hub.
        **options: ``revision``, ``cache_dir``, ``token`` and the like, as for every Hub model.

    Returns:
        The configuration, and float32 weights by name.

    Raises:
        UserError: If it is another kind of artefact, its format is none that is known, or its weights are not finite.
    """

    def file(name: str) -> str:
        if Path(where).is_dir():
            return str(Path(where) / name)
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        return hf_hub_download(where, name, **{key: options[key] for key in known if key in options})

    config = json.loads(Path(file(CONFIG_FILE)).read_text())
    if "format" not in config or "base_model" not in config:
        raise UserError(f"'{where}' holds another kind of model, and no pruner: give one that fit wrote.")
    with safe_open(file(WEIGHTS_FILE), "pt") as stored:
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        own = json.loads((stored.metadata() or {}).get("config", "{}"))
    if config.get("weights") != own.get("weights"):
        config = own or config
    if config.get("format") == 4:
        config, weights = _from_format_4(config, weights)
    if config.get("format") != FORMAT:
        raise UserError(
            f"'{where}' has pruner format {config.get('format')}, and this version reads formats 4 and {FORMAT}: "
            "install the version of patchranking that wrote it, or fit again."
        )
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise UserError(f"The pruner in '{where}' has weights that are no finite numbers: fit again.")
    return config, {name: weight.to(torch.float32, copy=True) for name, weight in weights.items()}  # not the file's


def _own_card(folder: Path) -> bool:
    """Whether a folder's README.md is missing or still what was written there, not a user's own."""
    if not (folder / CARD_FILE).exists():
        return True
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads((folder / CONFIG_FILE).read_text())["card"]
        return bool(digest([(folder / CARD_FILE).read_text("utf-8")]) == known)
    return False


def _from_format_4(config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Format 4 had the first predictor apart from later ones, and its schedule at the current keep rate."""
    block = min(config["schedule"], key=int)
    keep = min(config["schedule"].values())
    predictors = {block: config["predictor"], **config.get("later", {})}
    prompts = config["prompts"]
    if prompts is not None:
        renamed = {"number": "num_tokens", "own_context": "class_specific"}
        prompts = {renamed.get(name, name): value for name, value in prompts.items()}
    places = {"predictor": f"predictors.{block}", "later": "predictors"}

    def renamed_weight(name: str) -> str:
        room, _, rest = name.partition(".")
        return f"{places.get(room, room)}.{rest}"

    return (
        config | {"format": FORMAT, "keep": keep, "predictors": predictors, "prompts": prompts},
        {renamed_weight(name): value for name, value in weights.items()},
    )
