"""The loop of all pretraining: a budget in passes, schedules over its share, exact resumption, several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from patchranking.checkpoint import digest
from patchranking.errors import UserError, check_numbers
from patchranking.extras import import_extra
from patchranking.launch import launched
from patchranking.predictor.precision import TrainingPrecision
from patchranking.pretrain.budget import CostName, formula_costs, measured_costs
from patchranking.pretrain.objective import Objective, Step
from patchranking.pretrain.pictures import Batches, Pictures, drop_noise
from patchranking.pretrain.progress import Progress, ProgressFolder
from patchranking.pretrain.schedule import CompressionSchedule, cosine_rate, power_rate, warmed_up
from patchranking.seeding import nth_seed, seeded

__all__ = ["DecayName", "Measures", "TrainSettings", "fabric_for", "identity_of", "train"]

DecayName = Literal["cosine", "power"]
Measures = Callable[[nn.Module], Mapping[str, float | None]]
"""From an encoder in evaluation mode to what is measured of it."""

_RATES: dict[DecayName, Callable[[float], float]] = {"cosine": cosine_rate, "power": power_rate}
_SECONDS_PER_SAVE = 30.0
_MEMORY = 0.98
"""Weight of the past in the running mean of the loss."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train, whatever the method.

    Attributes:
        epochs: The budget: the compute of so many epochs without compression. Compressed steps cost less, so there are
            more of them.
        batch_size: Images per step, over all devices.
        learning_rate: Of AdamW at 256 images per step; it is scaled by batch_size / 256.
        decay: Of the learning rate over the budget: half a cosine to 0, or 1 - share^2, which stays higher for longer.
        warm_up: Share of the budget in which the learning rate rises.
        weight_decay: Of AdamW, on matrices alone; the method's own when omitted.
        cost: What a step spends: its multiply-accumulates by formula, or its seconds as measured before the first.
        evaluations: How often it is evaluated, evenly over the budget; weights are kept then, too.
        probe_images: At most so many of the training pictures are the neighbours and the probe's examples.
        in_memory: Keep pictures in memory, made small; false for more than some 100,000.
        precision: 32-true, or bf16-mixed with float32 master weights, the default on a GPU.
        workers: Processes that make views.
        seed: Random seed of weights, order, views and dropped patches.
    """

    epochs: float = 100.0
    batch_size: int = 256
    learning_rate: float = 1.5e-4
    decay: DecayName = "cosine"
    warm_up: float = 0.1
    weight_decay: float | None = None
    cost: CostName = "formula"
    evaluations: int = 4
    probe_images: int = 10_000
    in_memory: bool = True
    precision: TrainingPrecision | None = None
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(vars(self), batch_size=2, evaluations=1, probe_images=1, workers=0, seed=0)
        check_numbers(vars(self), epochs=0.0, learning_rate=0.0, warm_up=0.0)
        if self.weight_decay is not None:
            check_numbers(vars(self), weight_decay=0.0)
        if not self.epochs or not self.learning_rate:
            raise UserError("Without epochs or a learning rate nothing is learned: give both above 0.")
        if self.warm_up >= 1:
            raise UserError(f"'warm_up' is a share of the budget below 1, not {self.warm_up:g}.")


def identity_of(settings: Any, training: TrainSettings, pictures: Pictures) -> dict[str, Any]:
    """All that the result of a training depends on, ready for JSON.

    Args:
        settings: What is trained, a dataclass.
        training: How.
        pictures: On what.
    """
    images = digest([pictures.data.keys[index] for index in pictures.indices])
    of = asdict(settings) | asdict(training) | {"images": images}
    return {name: value for name, value in of.items() if name not in ("workers", "in_memory")}


def fabric_for(device: str, settings: TrainSettings) -> Any:
    """Lightning Fabric for a training, see ``launched``."""
    return launched(torch.device(device), settings.precision, "Pretraining needs lightning-fabric", "pretrain")


def train(
    objective: Objective,
    views: Dataset[list[Tensor]],
    schedule: CompressionSchedule,
    budget: float,
    settings: TrainSettings,
    kept: ProgressFolder,
    fabric: Any,
    measures: Measures,
) -> Progress:
    """Trains an objective in place until its budget is spent.

    Every step spends what its compression costs; learning rate, momentum and compression follow the share of the budget
    that is spent, not the steps. A killed training goes on from its folder and, on a CPU, ends with the same weights,
    bit for bit. Started by ``torchrun`` it runs on several processes, which share the batch.

    Args:
        objective: The method and its encoder.
        views: Endless items, each the views of one picture, in the order of the training; see ``Views``.
        schedule: Compression over the share of the budget.
        budget: In passes, see ``cost``.
        settings: How to train.
        kept: The folder of the progress.
        fabric: From ``fabric_for``.
        measures: Asked of the encoder at 0 and at every evaluation, in the first process.

    Returns:
        What was spent, and what was measured along the way.

    Raises:
        UserError: If the compression does not fit, the schedule tightens, the batch cannot be shared, or the loss is
            not finite.
    """
    processes, rank = fabric.world_size, fabric.global_rank
    schedule.check(objective.tower, objective.passes)
    if settings.batch_size % processes:
        raise UserError(f"A batch of {settings.batch_size} cannot be shared by {processes} processes: give a multiple.")
    objective.to(fabric.device).train()
    optimiser = _optimiser(objective, settings)
    progress = kept.resume(objective, optimiser)
    if not progress.costs:
        progress.costs = _costs(objective, schedule, settings, views, fabric)
    module, stepped = fabric.setup(objective, optimiser)
    batches = Batches(progress.step, settings.batch_size, rank, processes)
    loader = fabric.setup_dataloaders(
        DataLoader(views, batch_sampler=batches, num_workers=settings.workers), use_distributed_sampler=False
    )

    def evaluate() -> None:
        """Measures at every evaluation that the budget has come to, and saves."""
        while len(progress.rows) <= settings.evaluations:
            share = len(progress.rows) / settings.evaluations
            if progress.spent < share * budget:
                return
            spent = {"share": share, "budget": progress.spent, "step": progress.step, "loss": progress.loss}
            spent |= {"seconds": progress.seconds, "cpu_seconds": progress.cpu_seconds}
            progress.rows.append(spent | _measured(objective, measures, rank))
            if not rank:
                kept.save_stage(objective, share)
                kept.save(objective, optimiser, progress)
            fabric.barrier()

    evaluate()
    saved, began = time.monotonic(), _clocks()
    bar = tqdm(total=round(budget), initial=round(progress.spent), desc="pretrain", unit="pass", disable=bool(rank))
    with bar:
        for batch in loader if progress.spent < budget else ():
            share = progress.spent / budget
            compression = schedule.at(share)
            for group in stepped.param_groups:
                group["lr"] = _learning_rate(settings, share)
            noise = drop_noise(settings.seed, progress.step, settings.batch_size, rank, processes)
            with seeded(nth_seed(settings.seed, progress.step)):
                loss = module(batch, Step(compression, noise, share))
            if not loss.isfinite():
                raise UserError("The loss is no longer finite: choose a lower learning rate.")
            stepped.zero_grad()
            fabric.backward(loss)
            objective.after_backward(share)
            if objective.clip is not None:
                fabric.clip_gradients(module, stepped, max_norm=objective.clip)
            stepped.step()
            objective.after_step(share)
            progress.add(loss.item(), settings.batch_size * progress.costs[str(compression)], _MEMORY)
            progress.spend(*(now - then for now, then in zip(_clocks(), began, strict=True)))
            bar.update(min(round(progress.spent), bar.total) - bar.n)
            bar.set_postfix_str(f"loss {progress.loss:.3f}, {compression}")
            evaluate()
            if progress.spent >= budget:
                break
            if not rank and time.monotonic() - saved > _SECONDS_PER_SAVE:
                kept.save(objective, optimiser, progress)
                saved = time.monotonic()
            began = _clocks()
    return progress


def _clocks() -> tuple[float, float]:
    """Seconds of the wall and of this process's threads."""
    return time.monotonic(), time.process_time()


def _measured(objective: Objective, measures: Measures, rank: int) -> dict[str, float | None]:
    if rank:
        return {}
    objective.encoder.eval()
    found = dict(measures(objective.encoder))
    objective.encoder.train()
    return found


def _learning_rate(settings: TrainSettings, share: float) -> float:
    peak = settings.learning_rate * settings.batch_size / 256
    return peak * warmed_up(share, settings.warm_up, _RATES[settings.decay])


def _optimiser(objective: Objective, settings: TrainSettings) -> torch.optim.Optimizer:
    timm = import_extra("timm.optim", "Pretraining needs timm", "pretrain")
    decay = objective.weight_decay if settings.weight_decay is None else settings.weight_decay
    groups = timm.param_groups_weight_decay(objective, decay)
    return torch.optim.AdamW(groups, settings.learning_rate, objective.betas)


def _costs(
    objective: Objective,
    schedule: CompressionSchedule,
    settings: TrainSettings,
    views: Dataset[list[Tensor]],
    fabric: Any,
) -> dict[str, float]:
    if settings.cost == "formula":
        return formula_costs(objective, schedule.compressions)
    items = zip(*(views[item] for item in range(settings.batch_size)), strict=True)
    with fabric.autocast():
        found = measured_costs(objective, schedule.compressions, [torch.stack(view) for view in items])
    return dict(fabric.broadcast(found))
