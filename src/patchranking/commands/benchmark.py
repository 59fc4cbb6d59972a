"""patchranking benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchranking.commands.common import load, make_folder
from patchranking.evaluation.environment import environment
from patchranking.evaluation.speed import BackendName, PrecisionName, SpeedSettings, measure_speed
from patchranking.files import write_json
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import check_keep_rate
from patchranking.towers.base_model import BaseModel

__all__ = ["benchmark"]


def benchmark(
    model: str,
    out: Path = Path("runs/benchmark"),
    pruner: list[Path] = [],  # noqa: B006
    keep: list[float] = [0.7, 0.6, 0.5, 0.4],  # noqa: B006
    batches: list[int] = [1, 8, 32],  # noqa: B006
    backends: list[BackendName] = ["eager"],  # noqa: B006
    precisions: list[PrecisionName] = ["fp32"],  # noqa: B006
    block: int = 3,
    seconds: float = 5.0,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Times the dense and the pruned model in turn on this machine; writes throughput.json.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        out: Folder for throughput.json.
        pruner: Folders written by fit or tune; without one, a predictor that has learnt nothing, which takes as long.
        keep: Keep rates; the dense model is always timed beside them.
        batches: Images a batch.
        backends: eager, compile, or both.
        precisions: fp32, bf16, fp16.
        block: Where patches go when no pruner is given.
        seconds: At least so long for each batch size.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    for rate in keep:
        check_keep_rate(rate)
    artefacts = {str(folder): Pruner.from_pretrained(folder) for folder in pruner}
    loaded = load(model, device, seed)
    tower = loaded.tower
    if not artefacts:
        predictor = Predictor(tower.width, tower.num_prefix_tokens, tower.num_patches)
        blank = Pruner(predictor, BaseModel.of(tower, model), Schedule({block: 0.5})).eval().to(tower.device)
        blank.schedule.check(tower)
        artefacts["not fitted"] = blank
    make_folder(out)
    settings = SpeedSettings(keep, batches, backends, precisions, seconds=seconds)
    rows: list[dict[str, Any]] = []
    for name, artefact in artefacts.items():
        found = measure_speed(loaded.model, artefact.to(tower.device), model, settings)
        rows += [row | {"pruner": name} for row in found]
    parameters = sum(weight.numel() for weight in tower.module.parameters())
    write_json(
        out / "throughput.json", {"environment": environment(tower.device), "parameters": parameters, "rows": rows}
    )
    _print_table(rows)
    print(f"wrote {out / 'throughput.json'}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    heads = ("images/s", "p50 ms", "p99 ms", "speed-up", "realised", "peak MB")
    print(f"{'':<14}{'batch':>6}{'keep':>6}" + "".join(f"{head:>10}" for head in heads))
    for row in rows:
        figures = (
            f"{row['images_per_second']:.1f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['ratio_to_stock']:.2f}x",
            f"{row['realised_share']:.2f}",
            f"{row['peak_activations_mb']:.1f}",
        )
        about = f"{row['backend']} {row['precision']}"
        print(f"{about:<14}{row['batch']:>6}{row['keep_rate']:>6.0%}" + "".join(f"{figure:>10}" for figure in figures))
    print("realised: speed-up as a share of what the multiply-accumulates allow")
