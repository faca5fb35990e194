"""How many worlds fit into memory, asked before they are made."""

from __future__ import annotations

from pathlib import Path

import torch

from sanawm_env.errors import ConfigError

COPIES = 2  # of its state: a step holds a world as it was and as it becomes


def check_capacity(
    worlds: int, each: int, device: torch.device, what: str = "num_envs", visiting: int | None = None
) -> None:
    """ConfigError unless so many more worlds fit on the device. each: bytes of one. what: names the number. visiting:
    bytes of one that is there only while it is computed, where that can be asked for."""
    free = free_bytes(device)
    if free is None or worlds * each <= free:
        return
    swapping = ""
    if visiting is not None and device.type != "cpu" and free >= visiting:
        swapping = f", or pass resident={free // visiting}, which keeps their states in the host's memory"
    raise ConfigError(
        f"{what} is {worlds}: a world takes {each:,} bytes on {str(device)!r}, these {worlds * each:,}, and {free:,} "
        f"are free; allowed are at most {free // each}. Run fewer, or several batches one after another{swapping}."
    )


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device, None where that cannot be known."""
    if device.type == "cpu":
        return host_memory()["available_bytes"]
    # What torch holds on to without using it is free to us.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


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
