"""Progress of a training on disk, so that a killed one goes on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from patchranking.errors import UserError
from patchranking.files import make_folder, replacing, write_json

__all__ = ["claim", "digest", "load_training", "notes", "save_training"]

_CLAIM = "belongs-to.json"


def digest(parts: Mapping[str, Tensor] | Sequence[str]) -> str:
    """A fingerprint of tensors or of texts, in their order."""
    found = hashlib.sha256()
    for part in parts.values() if isinstance(parts, Mapping) else parts:
        found.update(f"{part}\n".encode() if isinstance(part, str) else part.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def claim(folder: Path, work: str, of: Mapping[str, Any]) -> Path:
    """Makes a folder for the progress of one piece of work, or finds that it is that work's already.

    Args:
        folder: The folder.
        work: What to call it in a message, such as ``fit``.
        of: All that the result depends on, ready for JSON.

    Raises:
        UserError: If the folder holds the progress of another.
    """
    known, told = make_folder(folder) / _CLAIM, json.loads(json.dumps(of))
    if known.is_file() and json.loads(known.read_text()) != told:
        raise UserError(
            f"'{folder}' holds the progress of another {work}, of other images or with other settings, which did not "
            f"end: run that one again, choose another folder for --out, or delete '{folder}'."
        )
    write_json(known, told)
    return folder


def save_training(
    path: Path,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    about: Mapping[str, str],
    best: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes weights, the optimiser's state and the best weights so far into one file, whole or not at all.

    Args:
        path: The file.
        module: What is trained.
        optimiser: Of all its parameters, in their order.
        about: Texts to keep.
        best: The module's state at its best.
    """
    tensors = {f"now.{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in (best or {}).items()}
    for place, weight in enumerate(module.parameters()):
        state = optimiser.state[weight].items()
        tensors |= {f"optimiser.{place}.{name}": value for name, value in state if value is not None}
    with replacing(path) as partial:
        partial.write_bytes(save({n: v.detach().cpu().contiguous().clone() for n, v in tensors.items()}, dict(about)))


def notes(path: Path) -> dict[str, str] | None:
    """The texts that ``save_training`` kept; None where there is no file."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def load_training(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Restores what ``save_training`` wrote, and returns the best weights."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    module.load_state_dict(_under("now.", tensors))
    for place, weight in enumerate(module.parameters()):
        for name, value in _under(f"optimiser.{place}.", tensors).items():
            optimiser.state[weight][name] = value if name == "step" else value.to(weight)
    return _under("best.", tensors)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
