"""What a schedule counts: work, over all runs, and no compiling."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from sanawm_env.training import loop
from sanawm_env.training.compiling import compiled, compiling_seconds
from sanawm_env.training.loop import WallClock


def test_the_clock_leaves_out_what_torch_compiles() -> None:
    opened = time.monotonic()
    clock = WallClock(1.0, spent=30.0, compiled=5.0)
    before, began = compiling_seconds(), time.monotonic()
    function = compiled(lambda x: (x.sin() * 2).relu(), backend="aot_eager")
    x = torch.linspace(0, 1, 8, requires_grad=True)
    torch.testing.assert_close(function(x), (x.sin() * 2).relu())
    function(x).sum().backward()
    passed, compiling = time.monotonic() - began, compiling_seconds() - before
    assert 0 < compiling < passed
    assert clock.compiling == pytest.approx(5.0 + compiling)
    assert 30.0 + passed - compiling <= clock.seconds <= 30.0 + time.monotonic() - opened - compiling
    known = compiling_seconds()
    function(x)
    assert compiling_seconds() == known  # nothing new to compile


def test_a_clock_can_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock = WallClock(1.0, spent=30.0)
    now[0] += 40.0
    assert clock.seconds == pytest.approx(70.0) and clock.expired
    clock.begin()
    assert clock.seconds == pytest.approx(30.0) and clock.progress == pytest.approx(0.5) and not clock.expired
