from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """Says which instructions the processor has; none unless a test asks, so that distillation is exact anywhere."""

    def has(*names):
        for name in ("avx512_bf16", "amx_tile"):
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in names, raising=False)

    has()
    return has
