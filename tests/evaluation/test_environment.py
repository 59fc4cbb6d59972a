from __future__ import annotations

import datetime
import json
import platform
import re
import subprocess
import sys

import numpy
import torch

from patchranking.evaluation import environment as module
from patchranking.evaluation.environment import environment


def test_it_names_the_command_the_versions_and_the_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/patchranking", "evaluate", "--data", "my pictures"])
    found = environment(torch.device("cpu"))
    assert found["command"] == "patchranking evaluate --data 'my pictures'"
    assert found["python"] == platform.python_version()
    assert (found["torch"], found["numpy"]) == (torch.__version__, numpy.__version__)
    assert found["threads"] == torch.get_num_threads()
    assert abs(datetime.date.fromisoformat(found["date"]) - datetime.datetime.now(datetime.UTC).date()).days <= 1
    assert found["device"]
    assert found["git_commit"] is None or re.fullmatch(r"[0-9a-f]{12}(-dirty)?", found["git_commit"])
    json.dumps(found)


def test_what_is_not_there_is_none(monkeypatch):
    def missing(*_, **__):
        raise OSError

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(module, "_PACKAGES", ("no-such-package",))
    found = environment(torch.device("cpu"))
    assert found["git_commit"] is None
    assert found["no-such-package"] is None


def test_a_commit_that_is_not_told_is_none(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout="\n"))
    assert environment(torch.device("cpu"))["git_commit"] is None


def test_the_processor_is_named_even_where_the_system_does_not_tell(monkeypatch):
    def missing(*_):
        raise OSError

    monkeypatch.setattr(module.Path, "read_text", missing)
    assert module._processor() in (platform.processor(), platform.machine())
