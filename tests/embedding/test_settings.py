from __future__ import annotations

import pytest

from patchranking.embedding.settings import EmbedSettings
from patchranking.errors import UserError


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"keep": 0.5, "macs": 0.5}, "give one of them"),
        ({"keep": 0.0}, "'keep' is a share above 0"),
        ({"macs": 1.5}, "not 1.5"),
        ({"keep": float("nan")}, "not nan"),
        ({"batch_size": 0}, "'batch_size' is a whole number, 1 or more"),
        ({"workers": -1}, "'workers' is a whole number, 0 or more"),
        ({"seed": -1}, "'seed'"),
    ],
)
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        EmbedSettings(**wrong)


def test_a_number_of_workers_may_be_none():
    assert EmbedSettings(workers=0, batch_size=1).workers == 0
