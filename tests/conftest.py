"""What all tests share: one thread, fixed seeds, a tiny model, scratch memory full of NaN, and what runs where."""

from __future__ import annotations

import os

# Before torch is imported: tests have tiny shapes, and several threads only make them slower and less repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# For the processes that are started from here, workers of pytest-xdist too: freed memory is kept for the next pictures.
# Returned to the system and zeroed anew for each of them it takes a third of the time that rooms are drawn in.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**28))
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
# Before mujoco is imported, by whichever test or library comes first: without a screen it draws with EGL.
os.environ.setdefault("MUJOCO_GL", "egl")

import gc
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel

# Before triton is imported: without a GPU its kernels run in the interpreter, when a test asks for them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files go to the workers in this order: those that hold slow tests first, so that none of them begins last.
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; this machine has none"))


@pytest.fixture(autouse=True, scope="module")
def _old_objects_are_left_alone() -> None:
    """Libraries leave millions of objects that live to the end; looked through again and again by the collector of
    cycles, they made long tests three times as long.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    threads = torch.get_num_threads()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may draw from the global generator
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model() -> WorldModel:
    """A world with random weights that steps in milliseconds. Shared: a step never changes it."""
    from sanawm_env.model.config import tiny_config
    from sanawm_env.world import WorldModel

    return WorldModel.random(tiny_config(), seed=0)


@pytest.fixture
def nan_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised floating-point memory holds NaN, so that a kernel which reads what it did not write is found."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        memory = allocate(*args, **kwargs)
        return memory.fill_(float("nan")) if memory.is_floating_point() else memory

    return allocate_poisoned
