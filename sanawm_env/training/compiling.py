"""Parts of models compiled by torch for training, and how long that took, which no stage's clock counts."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sanawm_env.model.denoiser import Denoiser


class _Stopwatch:
    """Seconds between what torch reports as the beginnings and the ends of compilations."""

    def __init__(self) -> None:
        self.total, self._since = 0.0, 0.0

    def start(self, *_: Any) -> None:
        self._since = time.monotonic()

    def stop(self, *_: Any) -> None:
        self.total += time.monotonic() - self._since


_stopwatch = _Stopwatch()


def compiling_seconds() -> float:
    """Seconds that this process has spent compiling since this module compiled something first."""
    return _stopwatch.total


def compiled(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """A function that is compiled anew for every shape of its arguments. options: more of torch.compile's."""
    _watch()
    made: Callable[..., Tensor] = torch.compile(function, dynamic=False, **options)
    return made


def compile_blocks(denoiser: Denoiser) -> None:
    """Compiles the blocks, in place."""
    _watch()
    torch._dynamo.config.recompile_limit = 64  # two kinds of block, each in half a dozen shapes
    for block in denoiser.blocks:
        block.compile(dynamic=False)


@functools.cache
def _watch() -> None:
    # Imported here: the compiler takes seconds to import, and worlds that are stepped do without it.
    from torch._dynamo.callback import callback_handler

    callback_handler.register_start_callback(_stopwatch.start)
    callback_handler.register_end_callback(_stopwatch.stop)
