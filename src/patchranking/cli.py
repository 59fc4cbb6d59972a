"""The command line; every command is a function in patchranking.commands, imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "demo": "Fits, prunes and evaluates the embedded model on generated scenes, in minutes on two cores.",
    "rank": "Finds which patches of each image matter (Phase I) and stores the rankings; resumes after a kill.",
    "fit": "Fits a pruner (Phase II) by what its choice does to the image feature, by golden rankings, or by both.",
    "tune": "Tunes learnable tokens on the pruned model with a few shots (Phase III); resumes after a kill.",
    "evaluate": "Compares dense, pruner and baselines on labelled or captioned images; writes results.json and "
    "report.html.",
    "benchmark": "Times the dense and the pruned model in turn on this machine; writes throughput.json.",
    "reproduce": "Measures a table or figure of the paper on the data sets at hand, beside what it publishes; resumes "
    "after a kill.",
}
"""Command -> the first line of its docstring, known without importing it."""


def main() -> None:
    """Runs the command line."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        from importlib.metadata import version

        print(f"patchranking {version('patchranking')}")
    elif name in COMMANDS:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        from patchranking.commands.arguments import run

        module = importlib.import_module(f"patchranking.commands.{name}")
        run(getattr(module, name), arguments, f"patchranking {name}")
    else:
        print(f"patchranking: There is no command '{name}': choose from {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)


def _help() -> str:
    import textwrap

    lines = [
        textwrap.fill(text, 100, initial_indent=f"  {name:<11}", subsequent_indent=13 * " ")
        for name, text in COMMANDS.items()
    ]
    usage = ["usage: patchranking COMMAND ...", "", "Runs CLIP image encoders on the patches that matter.", ""]
    return "\n".join(
        [*usage, *lines, "", "COMMAND --help shows its options; patchranking --version shows the version."]
    )
