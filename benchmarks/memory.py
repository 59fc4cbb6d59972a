"""Peak memory of fit on few and on many scenes of the demo, each in a process of its own.

    python benchmarks/memory.py --out benchmarks/results/memory-demo.json

The peak is that of the whole process, torch and model included.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from common import Results, main

from patchranking.evaluation.environment import environment

FIT = "fit demo demo:train --ranked 40 --steps 30 --epochs 3"


def memory(out: Path = Path("benchmarks/results/memory-demo.json"), sizes: list[int] = [2000, 20000]) -> None:  # noqa: B006
    """Fits to so many scenes and notes the peak resident memory.

    Args:
        out: The JSON file.
        sizes: Numbers of scenes.
    """
    results, rows = Results(out), []
    for size in sizes:
        rows.append({"scenes": size, "peak_rss_gib": peak_rss_mib([*FIT.split(), "--limit", str(size)]) / 1024})
    results.write(environment(torch.device("cpu")), rows)


def peak_rss_mib(command: Sequence[str]) -> float:
    """Peak resident memory of a command, without ``--out``, in a process of its own; its children do not count."""
    with tempfile.TemporaryDirectory() as folder:
        script = f"import resource; from patchranking.cli import main; main(); {_PRINT}"
        words = [sys.executable, "-c", script, *command, "--out", folder]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return int(said.split()[-1]) / UNITS_PER_MIB


_PRINT = "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
UNITS_PER_MIB = 2**20 if sys.platform == "darwin" else 2**10
"""Of what the system calls the peak."""


if __name__ == "__main__":
    main(memory)
