"""Weights that lie in host memory and are on the device only while they compute, for cards smaller than a model.

A part of a world (denoiser, autoencoder, refiner) says with `@on_demand` which of its methods compute with its weights.
What computes is the same on the same device, so results are those of the part without offloading, bit for bit. Weights
do not change while a world runs: nothing is ever copied back.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

Offload = Literal["parts", "blocks"]

P = ParamSpec("P")
Part = TypeVar("Part", bound=nn.Module)
Result = TypeVar("Result")

_RESIDENCE = "_residence"


class Residence:
    """Where some weights are: in host memory, and on `device` inside a `with` statement, which may be nested.

    Threads that share a model wait for one another, or one would take the weights from under the other.
    """

    def __init__(self, weights: Iterable[Tensor], device: torch.device) -> None:
        self.device = device
        self._depth = 0
        self._lock = threading.RLock()
        # From pinned memory a copy to a GPU runs beside the host, and about twice as fast.
        pinned = device.type == "cuda"
        self._weights = [(x, x.data.pin_memory() if pinned else x.data) for x in weights]
        self._leave()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            try:
                for x, host in self._weights:
                    x.data = host.to(self.device, non_blocking=True, copy=True)
            except BaseException:  # out of memory, or an interrupt: what has moved must not stay there
                self.__exit__()
                raise

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._leave()
        self._lock.release()

    def _leave(self) -> None:
        for x, host in self._weights:
            x.data = host


def home(mode: Offload | None, device: torch.device) -> torch.device:
    """Where the weights of a part that computes on `device` are to be loaded."""
    return device if mode is None else torch.device("cpu")


def offload_part(part: nn.Module, mode: Offload | None, device: torch.device) -> None:
    """Makes the weights of a part, which lie in host memory, be on `device` while they compute, and only then.

    mode: "parts" moves them together; "blocks" moves each of the part's transformer blocks, where it has such
    (`part.blocks`), in its turn, and the others together; None leaves all where they are.
    """
    for unit, weights in () if mode is None else _units(part, mode):
        setattr(unit, _RESIDENCE, Residence(weights, device))


def on_device(module: nn.Module) -> AbstractContextManager[None]:
    """A context in which the weights of an offloaded part or block are on its device; of other modules, nothing."""
    residence: Residence | None = getattr(module, _RESIDENCE, None)
    return nullcontext() if residence is None else residence


def on_demand(
    method: Callable[Concatenate[Part, P], Result],
) -> Callable[Concatenate[Part, P], Result]:
    """A method of a part or block that computes with its weights."""

    @functools.wraps(method)
    def run(self: Part, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        with on_device(self):
            return method(self, *args, **kwargs)

    return run


def is_offloaded(part: nn.Module) -> bool:
    """Whether weights of a part are on its device only while they compute."""
    return any(hasattr(module, _RESIDENCE) for module in part.modules())


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes."""
    residence: Residence | None = getattr(module, _RESIDENCE, None)
    return next(module.parameters()).device if residence is None else residence.device


def resident_bytes(part: nn.Module, mode: Offload) -> int:
    """The most bytes of a part's weights that `offload_part` in this mode has on the device at once."""
    *blocks, rest = (sum(x.nbytes for x in weights) for _, weights in _units(part, mode))
    return rest + max(blocks, default=0)


def _units(part: nn.Module, mode: Offload) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Modules whose weights move together, with those weights: blocks first, then the part with all that is left."""
    blocks: Any = getattr(part, "blocks", ()) if mode == "blocks" else ()
    taken: set[int] = set()
    for block in blocks:
        weights = _weights(block)
        taken |= {id(x) for x in weights}
        yield block, weights
    yield part, [x for x in _weights(part) if id(x) not in taken]


def _weights(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
