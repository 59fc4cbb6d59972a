from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys

import pytest

import patchranking


@pytest.mark.parametrize("name", patchranking.__all__)
def test_every_public_name_is_there(name):
    assert getattr(patchranking, name) is not None
    assert name in dir(patchranking)


def test_what_the_commands_do_can_be_called_and_says_how():
    names = (
        "load_model",
        "load_data",
        "rank",
        "fit",
        "tune",
        "evaluate",
        "embed",
        "embed_to",
        "embed_texts",
        "search",
        "compare_index",
    )
    for name in (*names, "as_tower", "sketched", "leave_out"):
        function = getattr(patchranking, name)
        assert inspect.isfunction(function)
        assert "Args:" in inspect.getdoc(function)
    for name in ("FitSettings", "TuneSettings", "SearchSettings", "EvaluationSettings", "EmbedSettings"):
        assert "Attributes:" in inspect.getdoc(getattr(patchranking, name))


def test_help_is_a_table_of_contents():
    contents = pydoc.plain(pydoc.render_doc(patchranking)).partition("\nFUNCTIONS")[0]
    assert all(name in contents for name in patchranking.__all__ if name != "__version__")


def test_importing_has_no_side_effects():
    code = "import patchranking, sys; print(sorted({'torch', 'torchvision', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="attribute"):
        patchranking.prune  # noqa: B018
