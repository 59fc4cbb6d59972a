from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchranking.errors import UserError
from patchranking.ranking.windows import coverage, patch_means, survivors, windows

shapes = st.tuples(st.integers(2, 7), st.integers(2, 7), st.integers(1, 3)).flatmap(
    lambda s: st.tuples(st.just(s[:2]), st.just(min(s[2], *s[:2])), st.integers(1, min(s[2], *s[:2])))
)


def literal_windows(grid, size, stride):
    rows, columns = grid
    tops = [t for t in range(rows) if t + size <= rows and (t % stride == 0 or t + size == rows)]
    lefts = [c for c in range(columns) if c + size <= columns and (c % stride == 0 or c + size == columns)]
    return [[(t + i) * columns + c + j for i in range(size) for j in range(size)] for t in tops for c in lefts]


@given(shapes)
@settings(deadline=None)
def test_windows_survivors_and_coverage_equal_literal_loops(shape):
    grid, size, stride = shape
    patches = grid[0] * grid[1]
    if size * size == patches:
        return
    found = windows(grid, size, stride)
    expected = literal_windows(grid, size, stride)
    assert found.tolist() == expected
    counts = [sum(patch in window for window in expected) for patch in range(patches)]
    assert coverage(found, patches).tolist() == counts
    assert min(counts) >= 1
    assert survivors(found, patches).tolist() == [[p for p in range(patches) if p not in w] for w in expected]


@given(shapes)
@settings(deadline=None)
def test_patch_means_average_the_windows_that_contain_the_patch(shape):
    grid, size, stride = shape
    patches = grid[0] * grid[1]
    if size * size == patches:
        return
    removed = windows(grid, size, stride)
    values = torch.randn(2, len(removed), dtype=torch.double)
    found = patch_means(values, removed, patches)
    for row in range(2):
        for patch in range(patches):
            covering = [values[row, w] for w in range(len(removed)) if patch in removed[w]]
            assert found[row, patch].item() == pytest.approx(sum(covering).item() / len(covering))


def test_paper_counts_on_a_14_grid():
    assert [len(windows((14, 14), size, 1)) for size in (1, 2, 3)] == [196, 169, 144]
    assert len(windows((14, 14), 2, 2)) == 49


@pytest.mark.parametrize(("size", "stride"), [(0, 1), (5, 1), (4, 4), (2, 3), (2, 0)])
def test_windows_that_do_not_fit_or_leave_gaps_are_refused(size, stride):
    with pytest.raises(UserError, match=r"window|stride"):
        windows((4, 4), size, stride)
