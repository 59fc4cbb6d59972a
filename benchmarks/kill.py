"""Kills fit and evaluate at random moments and starts them again: they end as a run that was left alone.

    python benchmarks/kill.py --out benchmarks/results/kill-demo.json

The moments are drawn evenly from the time that a whole run takes, so that every part of it is hit.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Results, main
from safetensors.torch import load_file

from patchranking.evaluation.environment import environment

FIT = "fit demo demo:train --limit 120 --ranked 24 --steps 40 --epochs 4"
EVALUATE = "evaluate demo demo:test --limit 150 --golden_images 24 --keep 1 0.6 0.4 --timing_batch 0 --examples 2"


def kill(out: Path = Path("benchmarks/results/kill-demo.json"), kills: int = 20, seed: int = 0) -> None:
    """Kills both commands so many times each and compares what they made with what an uninterrupted run makes.

    Args:
        out: The JSON file.
        kills: Kills of each command that hit it while it runs.
        seed: Seed of the moments.
    """
    results, drawn = Results(out), random.Random(seed)
    rows, same = [], True
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        evaluate = f"{EVALUATE} --pruner {work / 'fit-whole'}"
        commands: list[tuple[str, Callable[[Path], object]]] = [(FIT, _pruner), (evaluate, _rows)]
        for command, read in commands:
            kind = command.split()[0]
            seconds = run(command, work / f"{kind}-whole")
            whole, done = read(work / f"{kind}-whole"), 0
            rounds: list[dict[str, Any]] = []
            while done < kills:
                folder = work / f"{kind}-{len(rounds)}"
                moments: list[float] = []
                while (moment := killed(command, folder, drawn.uniform(0.2, 1.0) * seconds)) is not None:
                    moments.append(moment)
                rounds.append({"kills": len(moments), "same": read(folder) == whole})
                same, done = same and rounds[-1]["same"], done + len(moments)
            rows.append({"command": kind, "seconds": seconds, "kills": done, "runs": rounds})
    results.write(environment(torch.device("cpu")), rows)
    if not same:
        sys.exit("a run that was killed ended otherwise")


def _start(command: str, out: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", "from patchranking.cli import main; main()", *command.split(), "--out", str(out)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run(command: str, out: Path) -> float:
    """Runs a command to its end, and returns the seconds that it took."""
    begun = time.perf_counter()
    if _start(command, out).wait():
        sys.exit(f"'{command}' failed")
    return time.perf_counter() - begun


def killed(command: str, out: Path, seconds: float) -> float | None:
    """Starts a command and kills it after some seconds, which are returned; None where it ended before."""
    process = _start(command, out)
    try:
        if process.wait(seconds):
            sys.exit(f"'{command}' failed where it was to go on")
        return None
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return seconds


def _pruner(folder: Path) -> tuple[dict[str, list[float]], Any]:
    weights = load_file(folder / "model.safetensors")
    return {name: value.flatten().tolist() for name, value in weights.items()}, _json(folder / "fit.json")


def _rows(folder: Path) -> Any:
    found = _json(folder / "results.json")
    return found["rows"], found["images"], found["skipped"]


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


if __name__ == "__main__":
    main(kill)
