"""The artefact: predictors, their schedule, tuned tokens, and the identity of the model they belong to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import HfApi, ModelCard, ModelHubMixin
from safetensors.torch import save
from torch import Tensor, nn

from patchranking.errors import UserError, reason
from patchranking.files import make_folder
from patchranking.predictor.doubt import Doubt
from patchranking.predictor.fallback import Doubted, check_fallback, with_fallback
from patchranking.predictor.networks import Predictor
from patchranking.predictor.targets import check_handed_on
from patchranking.prompts.insert import tuned_class_features, with_visual_tokens
from patchranking.prompts.tokens import Prompts
from patchranking.pruning.attach import Hooks, Reduced, Reduction, attach_reductions
from patchranking.pruning.macs import keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.stages import staged
from patchranking.sharing.artefact import check_place, read, write
from patchranking.sharing.card import card
from patchranking.sharing.hub import not_loaded, not_pushed
from patchranking.sharing.measured import Measured
from patchranking.towers import TextTower, VisionTower, as_tower
from patchranking.towers.identity import BaseModel

__all__ = ["Pruner"]


class Pruner(nn.Module, ModelHubMixin):
    """Drops the patches that its predictors rank lowest, inside the model it was fitted to.

    Examples:
        >>> pruner = Pruner.from_pretrained("runs/fit")  # doctest: +SKIP
        >>> with pruner.attached(model):  # doctest: +SKIP
        ...     features = model.encode_image(images)

    Args:
        predictors: Block -> what scores the tokens that enter it. The first block of the schedule needs one; at a later
            block without one, patches go by their last scores.
        base: The model it was fitted to.
        schedule: Where patches are dropped and how many stay, as fitted.
        keep: Share of the patches that reaches the end, where it is not that of the schedule.
        prompts: Tuned tokens, if there are any; they learn no more.
        hands_on: The hidden state whose patch tokens it was fitted to preserve, such as LLaVA's -2; None where it was
            fitted to the image feature.

    Attributes:
        doubt: Estimates how far a pruned feature is from the dense one, as its fit learned it; None where it did not.
        measured: What its fit measured on held-out images, which goes with it into a folder and onto its card; None
            where nothing did, or what it does has changed since.

    Raises:
        UserError: If the first block of the schedule has no predictor, the keep rate is not above 0 and at most 1, or
            patches are dropped too late for the hidden state.
    """

    def __init__(
        self,
        predictors: Mapping[int, Predictor],
        base: BaseModel,
        schedule: Schedule,
        keep: float | None = None,
        prompts: Prompts | None = None,
        hands_on: int | None = None,
    ) -> None:
        super().__init__()
        if schedule.block not in predictors:
            raise UserError(
                f"This schedule drops patches before block {schedule.block} first, and the pruner has predictors for "
                f"{', '.join(map(str, sorted(predictors))) or 'none'}: start there, or fit for this schedule."
            )
        if hands_on is not None:
            check_handed_on(schedule, hands_on, base.depth)
        self.predictors = nn.ModuleDict({str(block): predictors[block] for block in sorted(predictors)})
        self.prompts = None if prompts is None else prompts.requires_grad_(False)
        self.base = base
        self.fitted = schedule
        self.hands_on = hands_on
        self.doubt: Doubt | None = None
        self.measured: Measured | None = None
        self._hooks: Hooks | None = None
        self.keep = schedule.keep if keep is None else keep

    @classmethod
    def unfitted(cls, tower: VisionTower, name: str, schedule: Schedule, merges: bool = False) -> Self:
        """A pruner that has learned nothing, for a model called ``name``: it takes as long as a fitted one.

        Args:
            tower: The image encoder.
            name: Of the model.
            schedule: Where patches are dropped.
            merges: Whether they may merge, as by default in ``fit``, with a predictor for every stage; else one scores.
        """
        schedule.check(tower)
        blocks = list(schedule.stages) if merges else [schedule.block]
        predictors = Predictor.for_stages(tower, blocks, merges=merges)
        return cls(predictors, BaseModel.of(tower, name), schedule).eval().to(tower.device)

    @property
    def keep(self) -> float:
        """Share of the patches that reaches the end, above 0 and at most 1; may be set at any time, attached or not.

        Compiled code is kept for four keep rates, half of ``torch._dynamo.config.recompile_limit``; with the next one
        all is compiled anew.
        """
        return self._schedule.keep

    @keep.setter
    def keep(self, rate: float) -> None:
        self._schedule = self.fitted.at(rate)
        if self._hooks is not None:
            self._hooks.runs_at(rate)

    @property
    def schedule(self) -> Schedule:
        """Where patches are dropped and how many stay at the current keep rate, in the fitted proportions."""
        return self._schedule

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores the patches of tokens that enter the first pruned block, in the predictor's precision.

        Args:
            tokens: ``(batch, prefix + patches, width)``.

        Returns:
            Importance ``(batch, patches)``, higher = keep.
        """
        return self.predictor(self.fitted.block)(tokens)

    def predictor(self, block: int) -> Predictor:
        """The predictor of a block."""
        return cast(Predictor, self.predictors[str(block)])

    def attach(self, model: nn.Module | VisionTower) -> Self:
        """Makes ``model`` prune from now on; its keys and classes stay as they are.

        So do its attention kernels, unless patches merge: then attention gets the sizes of tokens as a mask.

        Args:
            model: The model this pruner was fitted to, from any supported library.

        Returns:
            Itself.

        Raises:
            UserError: If it is another model or pruned already, or the pruner is attached already.
        """
        if self._hooks is not None and self._hooks.on:
            raise UserError("This pruner is attached already: detach it first.")
        tower = as_tower(model)
        tower.check_dense()
        self.base.check(tower)
        self.fitted.check(tower)
        self.to(tower.device)
        steps: dict[int, Reduction] = {block: _Step(self, block) for block in self.reductions()}
        self._hooks = attach_reductions(tower, steps, sized=self.merges, warns=self.hands_on is None)
        self._hooks.runs_at(self.keep)
        return self

    def detach(self) -> None:
        """Restores the model exactly; does nothing when not attached.

        ``patchranking.detach(model)`` does so when the pruner is lost, and for copies of an attached model.
        """
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

    @torch.no_grad()
    def encode(self, model: nn.Module | VisionTower, pixels: Tensor, fallback: float | None = None) -> Doubted:
        """Encodes images pruned, estimates the error of each, and runs those in doubt once more, densely.

        It runs the model block by block and attaches nothing, since the library's own pass takes one number of patches
        for all images of a batch. Estimates are for pictures of the kinds that it was fitted to.

        Args:
            model: The model it was fitted to, to which nothing is attached.
            pixels: Preprocessed images ``(batch, 3, height, width)``, on the model's device.
            fallback: The estimated 1 - cosine above which an image runs densely, 0 for every image that loses a patch;
                none does when omitted.

        Returns:
            Features, estimated errors, and which images ran densely.

        Raises:
            UserError: If the pruner has no estimate of its errors, the model is another or pruned already, or the
                fallback is below 0.
        """
        tower, doubt = as_tower(model), self.check_doubt()
        if fallback is not None:
            check_fallback(fallback)
        tower.check_dense()
        self.base.check(tower)
        self.to(tower.device)
        return with_fallback(tower, pixels, self.schedule, self.reductions(), doubt, fallback)

    def check_doubt(self) -> Doubt:
        """Returns what estimates its errors; raises UserError where there is nothing."""
        if self.visual_tokens:
            raise UserError(
                "Errors are estimated without visual tokens: take the pruner as it was before it was tuned."
            )
        if self.doubt is None:
            raise UserError(
                "This pruner has no estimate of its errors: fit again to the image feature, by distillation, to 36 "
                "images or more."
            )
        return self.doubt

    def reductions(self) -> dict[int, Reduction]:
        """What it does before each block, at the current keep rate.

        Stages with a predictor score and correct the tokens; the others cut off what was scored last. Visual tokens run
        alongside the patches from block 0 on.
        """
        drops = {block: self.predictor(block).prune for block in map(int, self.predictors)}
        patches, prefix = self.base.grid[0] * self.base.grid[1], self.base.num_prefix_tokens
        pruning = staged(lambda: self.schedule, patches, prefix, drops)
        visual = None if self.prompts is None else self.prompts.visual()
        return pruning if visual is None else with_visual_tokens(visual, pruning, prefix, self.base.depth)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is attached to nothing."""
        return self.__dict__ | {"_hooks": None}

    @property
    def merges(self) -> bool:
        """Whether patches that go may merge into others, so that attention has to count these by their sizes."""
        return any(self.predictor(block).merges for block in map(int, self.predictors))

    @property
    def tuned(self) -> str:
        """The tokens that were tuned: ``none``, ``text``, ``visual`` or ``both``."""
        return "none" if self.prompts is None else self.prompts.tokens

    @property
    def visual_tokens(self) -> int:
        """Learnable tokens that run alongside the patches."""
        visual = None if self.prompts is None else self.prompts.visual()
        return 0 if visual is None else visual.shape[1]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights."""
        return hashlib.sha256(save(self._tensors())).hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value.contiguous().cpu() for name, value in self.state_dict().items()}

    @property
    def untuned(self) -> Self:
        """The same pruner without tuned tokens; it shares the predictors."""
        return self.tuned_by(None)

    def tuned_by(self, prompts: Prompts | None) -> Self:
        """The same pruner with other tokens, or none; it shares the predictors."""
        return self._with(self.fitted, self.keep, prompts)

    def at(self, keep: float) -> Self:
        """The same pruner at another keep rate; it shares the predictors and the tokens."""
        return self._with(self.fitted, keep, self.prompts)

    def at_macs(self, model: nn.Module | VisionTower, share: float) -> Self:
        """The same pruner where the encoder has a share of its dense MACs, by formula; see ``keep_at_macs``.

        Args:
            model: The model it was fitted to.
            share: Above 0 and at most 1.

        Raises:
            UserError: If the share is none, or below what the fitted schedule can reach.
        """
        return self.at(keep_at_macs(as_tower(model), self.fitted, share, self.visual_tokens))

    def scheduled(self, schedule: Schedule) -> Self:
        """The same pruner on another schedule; it shares the predictors and the tokens.

        Raises:
            UserError: If the first block of the schedule has no predictor.
        """
        return self._with(schedule, schedule.keep, self.prompts)

    def _with(self, schedule: Schedule, keep: float, prompts: Prompts | None) -> Self:
        predictors = {block: self.predictor(block) for block in map(int, self.predictors)}
        other = type(self)(predictors, self.base, schedule, keep, prompts, self.hands_on).eval()
        other.measured = self.measured if (schedule, prompts) == (self.fitted, self.prompts) else None
        other.doubt = self.doubt
        return other

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
        return tuned_class_features(self.prompts, class_names, text)

    def generate_model_card(self, repo_id: str | None = None, **kwargs: Any) -> ModelCard:
        """The README.md that goes with the artefact.

        Args:
            repo_id: Where it is on the Hub, ``"org/name"``.
            **kwargs: Taken for the sake of ``ModelHubMixin``, and left alone.
        """
        about = (self.base, self.schedule, self.measured, repo_id, self.merges, self.tuned, self.hands_on)
        return ModelCard(card(*about))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Saves the pruner in a folder, in place of one that is there; on an error, that one stays as it was.

        A README.md that you have written or changed stays, too.

        Args:
            save_directory: The folder.
            repo_id: Repository on the Hugging Face Hub; the folder's name when omitted.
            push_to_hub: Whether to upload it, too.
            model_card_kwargs: For ``generate_model_card``.
            **kwargs: For ``push_to_hub``.

        Returns:
            The address of the upload, where there was one.

        Raises:
            UserError: If the folder cannot be written to, or the disk is full; or as ``push_to_hub`` does.
        """
        folder = make_folder(save_directory)
        try:
            self._save_pretrained(folder, str(self.generate_model_card(**(model_card_kwargs or {}))))
        except OSError as error:
            raise UserError(f"The pruner was not saved in '{folder}', which stays as it was: {error}.") from error
        return self.push_to_hub(repo_id or folder.name, **kwargs) if push_to_hub else None

    def _save_pretrained(self, save_directory: Path, page: str = "") -> None:
        config = {
            "base_model": asdict(self.base),
            "schedule": self.fitted.to_dict(),
            "keep": self.keep,
            "target": "feature" if self.hands_on is None else "tokens",
            "layer": self.hands_on,
            "predictors": {block: own.config for block, own in self.predictors.items()},
            "prompts": None if self.prompts is None else self.prompts.config,
            "doubt": None if self.doubt is None else self.doubt.config,
            "weights": self.fingerprint,
        }
        more = {"measured": None if self.measured is None else asdict(self.measured)}
        write(save_directory, config, more, self._tensors(), page)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Uploads the pruner and its card to the Hugging Face Hub, into a repository that is made if there is none.

        The card there is replaced; ``ignore_patterns="README.md"`` leaves it as it is.

        Args:
            repo_id: ``"org/name"``, or ``"name"`` for one of your own.
            **kwargs: ``private``, ``token``, ``branch``, ``commit_message``, ``create_pr`` and the like, as for every
                Hub model.

        Returns:
            The address of the commit.

        Raises:
            UserError: If the Hub cannot be reached or refuses, for example without a token.
        """
        try:
            if "/" not in repo_id:
                repo_id = f"{HfApi(token=kwargs.get('token')).whoami()['name']}/{repo_id}"
            told = {"repo_id": repo_id} | (kwargs.pop("model_card_kwargs", None) or {})
            return super().push_to_hub(repo_id, model_card_kwargs=told, **kwargs)
        except UserError:
            raise
        except Exception as error:
            raise UserError(not_pushed(error, repo_id, kwargs.get("branch"))) from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads a pruner from a folder or the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: A folder written by ``save_pretrained``, or a Hub repository, ``"org/name"``.
            **kwargs: ``revision``, ``cache_dir``, ``token`` and the like, as for every Hub model.

        Raises:
            UserError: If there is no pruner there, its files are damaged, or the Hub cannot be reached or refuses.
        """
        where = os.path.expanduser(pretrained_model_name_or_path)
        try:
            check_place(where)
            return super().from_pretrained(where, **kwargs)
        except UserError:
            raise
        except Exception as error:
            said = not_loaded(error, where, kwargs.get("revision"))
            raise UserError(said or f"There is no readable pruner in '{where}' ({reason(error)}).") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **kwargs: Any) -> Self:
        config, weights = read(model_id, **kwargs)
        base, schedule = BaseModel.from_dict(config["base_model"]), Schedule.from_dict(config["schedule"])
        with torch.device("meta"):  # so that a damaged configuration takes no memory
            prompts = None if config["prompts"] is None else Prompts(**config["prompts"])
            predictors = {int(block): Predictor(**own) for block, own in config["predictors"].items()}
            doubt = None if config.get("doubt") is None else Doubt(**config["doubt"])
        pruner = cls(predictors, base, schedule, config["keep"], prompts, config.get("layer"))
        pruner.doubt = doubt
        if config.get("measured") is not None:
            pruner.measured = Measured.from_dict(config["measured"])
        pruner.load_state_dict(weights, assign=True)
        return pruner.eval()


class _Step:
    """What an attached pruner does before one block, where the tokens are; a copy belongs to a copy of the pruner."""

    def __init__(self, pruner: Pruner, block: int) -> None:
        self._pruner, self._block = pruner, block
        self._reduce = pruner.reductions()[block]

    def __reduce__(self) -> tuple[type[_Step], tuple[Pruner, int]]:
        return type(self), (self._pruner, self._block)

    def __call__(self, tokens: Tensor, sizes: Tensor | None) -> Reduced:
        if next(self._pruner.parameters()).device != tokens.device:
            self._pruner.to(tokens.device)
        return self._reduce(tokens, sizes)
