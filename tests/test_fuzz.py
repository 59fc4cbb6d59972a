from __future__ import annotations

import pytest
from fuzz import KINDS, RARE, attempt


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_file_holds_the_promises_are_kept(kind):
    attempt(kind, 80 // RARE.get(kind, 1))
