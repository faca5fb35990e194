"""Resolution of backends: explicit choices are kept or refused, "auto" never picks what cannot run."""

from __future__ import annotations

import contextlib
import importlib

import pytest
import torch

from sanawm_env.errors import BackendError
from sanawm_env.kernels import backend


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    # Imported without the variable, Triton's own functions would be compiled ones in every test that follows.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend._resolve.cache_clear()


def test_auto_on_a_cpu_is_the_reference() -> None:
    assert backend.resolve("auto", "cpu") == "reference"
    assert backend.resolve("reference", torch.device("cpu")) == "reference"


def test_fused_that_cannot_run_is_an_error() -> None:
    with pytest.raises(BackendError, match="'fused' of scan cannot run on cpu"):
        backend.resolve("fused", "cpu", op="scan")


def test_fused_without_triton_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="triton is not installed"):
        backend.resolve("fused", "cpu")


def test_interpreter_is_used_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # Before triton is imported: its own kernels are compiled or interpreted by what this says then.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="the interpreter is part of triton")
    assert backend.resolve("fused", "cpu") == "fused"
    assert backend.resolve("auto", "cpu") == "reference"


def test_auto_inside_a_compiled_function_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_resolve", lambda *asked: "fused")
    assert backend.resolve("auto", "cuda") == "fused"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert backend.resolve("auto", "cuda") == "reference"
    assert backend.resolve("fused", "cuda") == "fused"


def test_unknown_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(BackendError, match="did you mean 'reference'"):
        backend.resolve("referance", "cpu")


@pytest.mark.parametrize(("flags", "native"), [({"avx2"}, False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True)])
def test_native_bf16_follows_the_flags(monkeypatch: pytest.MonkeyPatch, flags: set[str], native: bool) -> None:
    backend.native_bf16.cache_clear()
    monkeypatch.setattr(backend, "_cpu_flags", lambda: flags)
    assert backend.native_bf16("cpu") is native
    backend.native_bf16.cache_clear()
