"""The command line; every command is a function in patchranking.commands, imported when it is called.

A command of two words, such as ``pretrain prototypes``, is one of a group.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

__all__ = ["COMMANDS", "command_of", "function_of", "main"]

COMMANDS = (
    "demo",
    "rank",
    "fit",
    "choose",
    "tune",
    "evaluate",
    "explore",
    "embed",
    "search",
    "compare-index",
    "benchmark",
    "export",
    "reproduce",
    "pretrain contrastive",
    "pretrain gradient-error",
    "pretrain mae",
    "pretrain prototypes",
)


def main() -> None:
    """Runs the command line; Ctrl-C ends it with one line and status 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the console cannot show never ends a run
    try:
        _main()
    except KeyboardInterrupt:
        print("patchranking: stopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)


def _main() -> None:
    name, arguments = command_of(sys.argv[1:] or ["--help"])
    if name in ("-h", "--help"):
        print(_help(COMMANDS))
    elif name == "--version":
        from patchranking.version import __version__

        print(f"patchranking {__version__}")
    elif name in COMMANDS:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        from patchranking.commands.arguments import run

        own = function_of(name)
        module = importlib.import_module(f"patchranking.commands.{own}")
        run(getattr(module, own), arguments, f"patchranking {name}")
    else:
        group = [command for command in COMMANDS if command.startswith(f"{name} ")]
        if group and arguments[:1] in ([], ["-h"], ["--help"]):
            print(_help(group))
            return
        given, known = " ".join([name, *arguments[: bool(group)]]), ", ".join(group or COMMANDS)
        print(f"patchranking: There is no command '{given}': choose from {known}.", file=sys.stderr)
        sys.exit(2)


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """Splits a command line into the command, which may be two words, and its arguments."""
    two = " ".join(words[:2])
    return (two, words[2:]) if two in COMMANDS else (words[0], words[1:])


def function_of(command: str) -> str:
    """Name of a command's function and of its module."""
    return command.replace("-", "_").replace(" ", "_")


def _help(commands: Sequence[str]) -> str:
    """What commands do, the first lines of their docstrings, read without importing what they need."""
    import ast
    from importlib.resources import files

    lines = ["usage: patchranking COMMAND ...", "", "Runs CLIP image encoders on the patches that matter.", ""]
    for name in commands:
        own = function_of(name)
        tree = ast.parse(files("patchranking").joinpath("commands", f"{own}.py").read_text("utf-8"))
        (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == own)
        lines.append(f"  {name:<25}{str(ast.get_docstring(function)).partition(chr(10))[0]}")
    return "\n".join([*lines, "", "COMMAND --help shows its options; patchranking --version shows the version."])
