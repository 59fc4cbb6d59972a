"""patchranking benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchranking.commands.common import number
from patchranking.errors import UserError
from patchranking.evaluation.environment import environment
from patchranking.evaluation.speed import SpeedSettings, measure_speed
from patchranking.exporting.method import ExportedFile
from patchranking.exporting.speed import measure_file_speed
from patchranking.files import make_folder, write_json
from patchranking.methods.attach import pruner_or_method
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.seeding import seeded
from patchranking.towers import VisionTower
from patchranking.towers.load import load_model

__all__ = ["benchmark"]


def benchmark(
    model: str,
    settings: SpeedSettings,
    out: Path = Path("runs/benchmark"),
    pruner: list[Path] = [],  # noqa: B006
    device: str = "cpu",
) -> None:
    """Times the dense and the pruned model in alternation on this machine; writes throughput.json.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME; or the folder of an
            exported model, which is timed beside the model that it was made of.
        settings: What to time.
        out: Folder for throughput.json.
        pruner: Folders written by fit or tune, repositories on the Hub, or names of methods that need no fit; without
            one, a default pruner that has learned nothing, which takes as long.
        device: cpu, cuda, cuda:1, mps, ...
    """
    given = {str(one): pruner_or_method(one) for one in pruner}
    file = ExportedFile.at_path(model)
    if file is not None and (given or device != "cpu"):
        raise UserError("An exported model holds its pruner and runs on the CPU: leave --pruner and --device out.")
    loaded = load_model(model if file is None else file.about.model, device)
    tower = loaded.tower
    if file is None and not given:
        with seeded(settings.seed):
            schedule = Schedule.default(tower.depth, 0.5)
            given["not fitted"] = Pruner.unfitted(tower, model, schedule, merges=_takes_mask(tower))
    folder = make_folder(out)
    rows: list[dict[str, Any]] = []
    if file is not None:
        rows += [row | {"pruner": str(model)} for row in measure_file_speed(loaded, file, settings)]
    for name, one in given.items():
        found = measure_speed(loaded.model, one.to(tower.device) if isinstance(one, Pruner) else one, model, settings)
        rows += [row | {"pruner": name} for row in found]
    parameters = sum(weight.numel() for weight in tower.module.parameters())
    results = {"environment": environment(tower.device), "parameters": parameters, "rows": rows}
    write_json(folder / "throughput.json", results)
    _print_table(rows)
    print(f"wrote {folder / 'throughput.json'}")


def _takes_mask(tower: VisionTower) -> bool:
    try:
        tower.check_mask()
    except UserError:
        return False
    return True


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
            number(row["peak_activations_mb"], ".1f"),
        )
        about = f"{row['backend']} {row['precision']}"
        print(f"{about:<14}{row['batch']:>6}{row['keep_rate']:>6.0%}" + "".join(f"{figure:>10}" for figure in figures))
    print("realised: speed-up as a share of what the multiply-accumulates allow")
