"""The artefact: a predictor, its schedule, tuned tokens, and the identity of the model it belongs to."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchranking.errors import UserError
from patchranking.files import replacing, write_json
from patchranking.predictor.networks import Predictor
from patchranking.prompts.insert import prompted_features, with_visual_tokens
from patchranking.prompts.tokens import Prompts
from patchranking.pruning.attach import Reduction, attach_reductions
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.stages import Survivors, staged
from patchranking.towers import TextTower, VisionTower, as_tower
from patchranking.towers.base_model import BaseModel

__all__ = ["Pruner"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = 4


_CARD = """---
library_name: patchranking
tags: [clip, token-pruning]
---
# Pruner for {name}

Drops the patches that matter least before block {blocks} of `{name}` ({height} x {width} pixels, {rows} x {columns}
patches), inside the running model:

    import patchranking
    pruner = patchranking.Pruner.from_pretrained("THIS_FOLDER_OR_REPOSITORY")
    pruner.keep = {keep:g}
    with pruner.attached(model):
        features = model.encode_image(images)

The base model is not included; any other is refused.
"""


class Pruner(nn.Module, ModelHubMixin):
    """Drops the patches a predictor ranks lowest inside the model it was fitted to.

    Example:
        >>> pruner = Pruner.from_pretrained("runs/fit/pruner")  # doctest: +SKIP
        >>> with pruner.attached(model):  # doctest: +SKIP
        ...     features = model.encode_image(images)

    Args:
        predictor: Scores the tokens that enter the pruned block.
        base: The model it was fitted to.
        schedule: Where patches go and how many stay.
        prompts: Tuned tokens, if there are any; they learn no more.
        later: Predictors of later blocks, where a stage before one of them scores again.
    """

    def __init__(
        self,
        predictor: Predictor,
        base: BaseModel,
        schedule: Schedule,
        prompts: Prompts | None = None,
        later: Mapping[int, Predictor] | None = None,
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.later = nn.ModuleDict({str(block): own for block, own in (later or {}).items()})
        self.prompts = None if prompts is None else prompts.requires_grad_(False)
        self.base = base
        self.schedule = schedule
        self._fitted = schedule
        self._hooks: ExitStack | None = None

    @property
    def keep(self) -> float:
        """Share of the patches that reaches the end, above 0 and at most 1; may be set at any time, attached or not."""
        return self.schedule.keep

    @keep.setter
    def keep(self, rate: float) -> None:
        self.schedule = self._fitted.at(rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores the patches of tokens entering the pruned block, in the predictor's precision.

        Args:
            tokens: ``(batch, prefix + patches, width)``.

        Returns:
            Importance ``(batch, patches)``, higher = keep.
        """
        return self.predictor(tokens)

    def attach(self, model: nn.Module | VisionTower) -> Self:
        """Makes ``model`` prune from now on; its keys, classes and attention kernels stay as they are.

        Args:
            model: The model this pruner was fitted to, from any supported library.

        Returns:
            Itself.

        Raises:
            UserError: If it is another model, or the pruner is attached already.
        """
        if self._hooks is not None:
            raise UserError("This pruner is attached already: detach it first.")
        tower = as_tower(model)
        self.base.check(tower)
        self.schedule.check(tower)
        self.to(tower.device)
        self._hooks = attach_reductions(tower, self.reductions())
        return self

    def detach(self) -> None:
        """Restores the model exactly; does nothing when not attached."""
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None

    @contextmanager
    def attached(self, model: nn.Module | VisionTower) -> Iterator[Self]:
        """Attaches for the length of a ``with`` block."""
        self.attach(model)
        try:
            yield self
        finally:
            self.detach()

    def reductions(self, watch: Survivors | None = None) -> dict[int, Reduction]:
        """What it does before which block, at the keep rate of the moment.

        It scores and corrects before the first stage, and before every later one that has a predictor of its own. From
        there the patches go on in the order of their scores, and stages without one cut the end off. Visual tokens run
        beside the patches from block 0 on.

        Args:
            watch: Told which patches stay.
        """
        visual = None if self.prompts is None else self.prompts.visual()
        if visual is None:
            return self._pruning(watch)
        return with_visual_tokens(visual, self._pruning(watch), self.base.num_prefix_tokens, self.base.depth)

    def _pruning(self, watch: Survivors | None) -> dict[int, Reduction]:
        drops = {block: own.prune for block, own in self._later().items()}
        drops[self.schedule.block] = self.predictor.prune
        num_patches, prefix = self.predictor.num_patches, self.base.num_prefix_tokens
        return staged(lambda: self.schedule, num_patches, prefix, drops, watch)

    @property
    def tuned(self) -> str:
        """The tokens that were tuned: ``none``, ``text``, ``visual`` or ``both``."""
        return "none" if self.prompts is None else self.prompts.tokens

    @property
    def visual_tokens(self) -> int:
        """Learnable tokens that run beside the patches."""
        visual = None if self.prompts is None else self.prompts.visual()
        return 0 if visual is None else visual.shape[1]

    @property
    def untuned(self) -> Self:
        """The same pruner without tuned tokens; it shares the predictors."""
        return self.tuned_by(None)

    def tuned_by(self, prompts: Prompts | None) -> Self:
        """The same pruner with other tokens, or none; it shares the predictors."""
        return self._with(self.schedule, prompts)

    def scheduled(self, schedule: Schedule) -> Self:
        """The same pruner on another schedule; it shares the predictors and the tokens."""
        return self._with(schedule, self.prompts)

    def _with(self, schedule: Schedule, prompts: Prompts | None) -> Self:
        return type(self)(self.predictor, self.base, schedule, prompts, self._later()).eval()

    def _later(self) -> dict[int, Any]:
        """Predictors of later stages, by block."""
        return {int(block): own for block, own in self.later.items()}

    @torch.no_grad()
    def text_features(self, class_names: Sequence[str], text: TextTower | None = None) -> Tensor:
        """Features to compare images with when tokens have been tuned.

        Args:
            class_names: Natural names. Features of the classes tuned on are stored with the pruner.
            text: The text encoder, needed for any other class: ``patchranking.as_text_tower(model, tokenizer)``.

        Returns:
            Unit vectors ``(classes, features)``.

        Raises:
            UserError: If no tokens have been tuned, or other classes come that the tokens or the missing text encoder
                cannot serve.

        Warns:
            UserWarning: If other classes come.
        """
        if self.prompts is None:
            raise UserError("This pruner holds no tuned tokens: use the model's own text features.")
        known = {name: row for row, name in enumerate(self.prompts.class_names)}
        others = [name for name in class_names if name not in known]
        if not others:
            return self.prompts.class_features[[known[name] for name in class_names]]
        tuned_on = f"These tokens were tuned on {len(known)} classes, and '{others[0]}' is none of them"
        if self.prompts.context is None or self.prompts.config["class_specific"]:
            raise UserError(f"{tuned_on}: use the model's own text features for it.")
        if text is None:
            raise UserError(f"{tuned_on}: give the text encoder, patchranking.as_text_tower(model, tokenizer).")
        warnings.warn(f"{tuned_on}: the accuracy on it is not known.", stacklevel=2)
        return prompted_features(text, self.prompts.context, [f"{name}." for name in class_names])

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README.md that goes with the artefact."""
        (height, width), (rows, columns) = self.base.image_size, self.base.grid
        sizes = {"height": height, "width": width, "rows": rows, "columns": columns}
        blocks = " and ".join(map(str, self.schedule.stages))
        return ModelCard(_CARD.format(name=self.base.name, blocks=blocks, keep=self.keep, **sizes))

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {
            "format": FORMAT,
            "base_model": asdict(self.base),
            "schedule": self.schedule.to_dict(),
            "predictor": self.predictor.config,
            "later": {block: own.config for block, own in self.later.items()},
            "prompts": None if self.prompts is None else self.prompts.config,
        }
        weights = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        with replacing(save_directory / WEIGHTS_FILE) as partial:
            save_file(weights, partial)
        write_json(save_directory / CONFIG_FILE, config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads a pruner from a folder or the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: A folder written by ``save_pretrained``, or a Hub repository.
            **kwargs: ``revision``, ``cache_dir``, ``token`` and the like, as for every Hub model.

        Raises:
            UserError: If there is no pruner there, or its files are damaged.
        """
        where = str(pretrained_model_name_or_path)
        if not Path(where).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", where):
            raise UserError(f"There is no folder '{where}', and it is no Hub repository: fit a pruner first.")
        try:
            return super().from_pretrained(where, **kwargs)
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"There is no readable pruner in '{where}' ({type(error).__name__}: {reason}).") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **kwargs: Any) -> Self:
        def file(name: str) -> str:
            if Path(model_id).is_dir():
                return str(Path(model_id) / name)
            download = {
                key: kwargs[key] for key in ("revision", "cache_dir", "force_download", "token") if key in kwargs
            }
            return hf_hub_download(model_id, name, **download)

        config = json.loads(Path(file(CONFIG_FILE)).read_text())
        if config.get("format") != FORMAT:
            raise UserError(
                f"'{model_id}' has pruner format {config.get('format')}, and this version reads format {FORMAT}: "
                "install the version of patchranking that wrote it, or fit again."
            )
        base, schedule = BaseModel.from_dict(config["base_model"]), Schedule.from_dict(config["schedule"])
        prompts = None if config["prompts"] is None else Prompts(**config["prompts"])
        later = {int(block): Predictor(**own) for block, own in config.get("later", {}).items()}
        pruner = cls(Predictor(**config["predictor"]), base, schedule, prompts, later)
        pruner.load_state_dict(load_file(file(WEIGHTS_FILE)))
        return pruner.eval()
