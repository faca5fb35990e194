"""How many worlds fit into memory, asked before they are made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sanawm_env.errors import ConfigError
from sanawm_env.visits import VISITING

COPIES = 2  # of its state: a step holds a world as it was and as it becomes
FEWER = "Run fewer, or several batches one after another"
FEWER_FUTURES = "Fork fewer (a planner takes at_once=, evaluations a smaller batch=)"
# Bytes by the number of worlds, or of what else is counted.
Needs = Callable[[int], int]


@dataclass(frozen=True, kw_only=True)
class Room:
    """The memory that worlds ask for which are stepped together.

    what: names their number. device: where they are computed, home: where their states lie. state, frames: bytes of one
    world. working: what a step takes on the device beside states. resident: as of the environment's config. fewer: how
    there can be fewer.
    """

    what: str
    device: torch.device
    home: torch.device
    state: int
    frames: int
    working: Needs
    resident: int | None
    fewer: str = FEWER

    def check(self, worlds: int) -> None:
        """ConfigError unless there is memory for so many more worlds."""
        if self.home == self.device:
            check_capacity(worlds, self.asked, self.device, self.what, self._remedy)
            return
        assert self.resident is not None
        check_capacity(worlds, self._states, self.home, self.what)
        check_capacity(self.resident, self._visiting, self.device, "resident")

    @contextlib.contextmanager
    def met(self, worlds: int) -> Iterator[None]:
        """ConfigError, with what was counted, where a GPU's memory runs out all the same."""
        try:
            yield
        except RuntimeError as error:
            if not _ran_out(error):
                raise
            here = self.home == self.device
            count, what = (worlds, self.what) if here else (self.resident or worlds, "resident")
            needs, free = self.asked if here else self._visiting, free_bytes(self.device) or 0
            told = _counted(what, count, needs(count), self.device)
            raise ConfigError(f"memory ran out: {told}, and {free:,} are free. {self._remedy(free)}.") from error

    def asked(self, worlds: int) -> int:
        """Bytes on the device of so many worlds whose states lie there."""
        return self._states(worlds) + self.working(worlds)

    def _states(self, worlds: int) -> int:
        return worlds * (COPIES * self.state + self.frames)

    def _visiting(self, worlds: int) -> int:
        return worlds * VISITING * self.state + self.working(worlds)

    def _remedy(self, free: int) -> str:
        most = 0 if self.resident is not None or self.device.type == "cpu" else _most(self._visiting, free)
        return (
            f"{self.fewer}, or pass resident={most}, which keeps their states in the host's memory"
            if most
            else self.fewer
        )


def check_capacity(
    count: int, needs: Needs, device: torch.device, what: str, remedy: Callable[[int], str] = lambda free: FEWER
) -> None:
    """ConfigError unless so many more fit on the device. what: names the number. remedy: what to do, with so many bytes
    free."""
    free = free_bytes(device)
    if free is None or (wanted := needs(count)) <= free:
        return
    raise ConfigError(
        f"{_counted(what, count, wanted, device)}, and {free:,} are free; allowed are at most "
        f"{_most(needs, free, count)}. {remedy(free)}."
    )


def _counted(what: str, count: int, wanted: int, device: torch.device) -> str:
    return f"{what} is {count}: each takes {-(-wanted // count):,} bytes on {str(device)!r}, all {wanted:,}"


def _most(needs: Needs, free: int, below: int = 1 << 20) -> int:
    """The largest number below which all fit, but for steps by which batches are padded."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needs(middle) <= free else (low, middle)
    return low


def _ran_out(error: BaseException | None) -> bool:
    """Whether a GPU's memory ran out; ending a capture that it cut off may be an error of its own."""
    while error is not None and not isinstance(error, torch.cuda.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device, None where that cannot be known."""
    if device.type == "cpu":
        return host_memory()["available_bytes"]
    # What torch holds on to without using it is free to us, but for the pools of graphs.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    place = torch.cuda.current_device() if device.index is None else device.index
    pools = (part for part in torch.cuda.memory_snapshot() if part["device"] == place)
    kept = sum(
        part["total_size"] - part["allocated_size"] for part in pools if tuple(part["segment_pool_id"]) != (0, 0)
    )
    return int(torch.cuda.mem_get_info(device)[0]) + unused - kept


def host_memory() -> dict[str, int | None]:
    """Bytes of the machine or, where that is less, of the control group this process is confined to."""
    total: int | None = None
    available: int | None = None
    listing = Path("/proc/meminfo")
    if listing.exists():
        lines = (line.split() for line in listing.read_text().splitlines())
        told = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
        total, available = told.get("MemTotal"), told.get("MemAvailable")
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None and (total is None or limit < total):
        # Cached files count as used, and go when memory is needed.
        left = limit - used + _cached_files()
        total, available = limit, min(left, limit if available is None else available)
    return {"total_bytes": total, "available_bytes": available}


def _cached_files() -> int:
    try:
        told = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return int(told.get("inactive_file", 0))
    except (OSError, ValueError):
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
