"""What this machine can run of the released SANA-WM, and what is missing: `sanawm doctor`.

Asks neither the Hub nor a GPU that is not there. Sizes in memory are counted on the meta device from the modules that
would be loaded; download sizes are the published ones (spec rollout.md 1); speeds come from benchmarks run here or are
not told.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from sanawm_env import bundle
from sanawm_env.benchmarks.machine import machine
from sanawm_env.capacity import host_memory
from sanawm_env.hub import cached_repository, cached_snapshot
from sanawm_env.kernels.backend import fused_obstacle, native_bf16
from sanawm_env.model.quantised import LowPrecision
from sanawm_env.placement import find_device
from sanawm_env.requirements import executions, requirements
from sanawm_env.sana_wm import SOURCES, STREAMING, TEXT_ENCODER

BIDIRECTIONAL, TEACHER = SOURCES["bidirectional"], SOURCES["teacher"]
DIFFUSERS = "Efficient-Large-Model/SANA-WM_bidirectional-diffusers"
BENCH = Path("outputs/bench/sana_wm.jsonl")
# A run that the package brings along, for machines where the benchmark has not run.
BROUGHT = Path(__file__).parent / "benchmarks" / "measured.json"
# Rows of that table about one chunk, and the key of each that holds milliseconds. The refiner's comes on top.
MEASURED = {"distilled.decoded": "chunk_ms", "distilled.latents": "chunk_ms", "refiner.block": "ms"}
LIBRARIES = ("torch", "triton", "diffusers", "transformers", "gymnasium", "huggingface-hub")
# Optional packages of pyproject.toml by extra, and what each extra is for.
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "sana": (("transformers", "accelerate"), "text encoders of the released checkpoints"),
    "quant": (("nvidia-modelopt",), "FP8 and NVFP4 calibration and export"),
    "ray": (("ray",), "bulk generation beyond one process"),
    "s3": (("s3fs",), "episode stores in an object store"),
    "rl": (("stable-baselines3",), "reinforcement learning"),
    "annotate": (("pycolmap",), "structure from motion of own footage"),
    "mujoco": (("mujoco", "imageio"), "kinematic chains of robots, recording MuJoCo's scenes"),
    "export": (("pyarrow", "h5py", "minari"), "datasets of LeRobot and Minari"),
    "metrics": (("torchmetrics", "matplotlib"), "metrics of pictures and video"),
}
SANA_LICENCE = "Apache-2.0 as its documentation says; the model card decides"
LTX_LICENCE = "derived from LTX-2: LTX-2 Community License"
GEMMA_LICENCE = "Gemma Terms of Use"


@dataclass(frozen=True)
class Part:
    """A part of a release. folder: below its repository, "" for the top level. published_gb: its size on disk as
    published (spec rollout.md 1), None where none is.
    """

    folder: str
    what: str
    licence: str
    published_gb: float | None = None


RELEASES: dict[str, tuple[Part, ...]] = {
    STREAMING: (
        Part("sana_dit", "denoiser, distilled", SANA_LICENCE),
        Part("ltx2_causal_vae", "autoencoder", LTX_LICENCE),
        Part("refiner_diffusers", "refiner, built as the bidirectional one", LTX_LICENCE),
        Part("gemma3_12b", "the refiner's text encoder", GEMMA_LICENCE),
    ),
    BIDIRECTIONAL: (
        Part("dit", "denoiser, bidirectional", SANA_LICENCE, 10),
        Part("vae", "autoencoder", LTX_LICENCE, 2),
        Part("refiner/transformer", "refiner; size with its connectors", LTX_LICENCE, 38),
        Part("refiner/text_encoder", "the refiner's text encoder", GEMMA_LICENCE, 46),
    ),
    DIFFUSERS: (Part("transformer", "denoiser, bidirectional", SANA_LICENCE), Part("vae", "autoencoder", LTX_LICENCE)),
    TEACHER: (Part("dit", "denoiser, chunk-causal teacher", SANA_LICENCE),),
    TEXT_ENCODER: (Part("", "the denoiser's text encoder", GEMMA_LICENCE, 4.9),),
}


def examine(bench: Path = BENCH) -> dict[str, Any]:
    """Everything `sanawm doctor` tells, as JSON: sizes in bytes unless the key ends in _gb. bench: table of speeds."""
    device = find_device(None)
    gpus, reason = _gpus()
    memory = host_memory()
    free = gpus[0]["memory_free_bytes"] if gpus else memory["available_bytes"]
    # Without a GPU the weights are in host memory anyway, and offloading saves nothing.
    host = memory["available_bytes"] if gpus else 0
    facts = machine(device)
    return {
        "machine": {
            **{name: facts[name] for name in ("cpu", "cores", "python")},
            "native_bf16": native_bf16("cpu"),
            "device": str(device),
        },
        "memory": memory,
        "gpu": gpus,
        "no_gpu_because": reason,
        "kernels": fused_obstacle(device) or "Triton",
        "precisions": executions(device),
        "versions": {name: _version(name) for name in LIBRARIES},
        "extras": {name: _extra(name) for name in EXTRAS},
        "hub": _hub(),
        "weights": {name: _cached(name, parts) for name, parts in RELEASES.items()},
        "fits": [row | _verdict(row, free, host) for row in requirements()],
        "seconds_a_chunk": _speeds(bench) or _speeds(BROUGHT),
    }


def report(found: Mapping[str, Any]) -> str:
    """What `examine` found, as aligned text."""
    told, memory, hub = found["machine"], found["memory"], found["hub"]
    facts = [
        ("processor", f"{told['cpu']}, {told['cores']} cores, {_bf16(told['native_bf16'])}"),
        ("memory", f"{_size(memory['available_bytes'])} available of {_size(memory['total_bytes'])}"),
        *(("GPU", _gpu_line(gpu)) for gpu in found["gpu"]),
        *([("GPU", f"none: {found['no_gpu_because']}")] if not found["gpu"] else []),
        ("kernels", "Triton" if found["kernels"] == "Triton" else f"plain torch ({found['kernels']})"),
        *found["precisions"].items(),
        ("Hub cache", f"{hub['cache']}, {_size(hub['free_bytes'])} free{', offline' if hub['offline'] else ''}"),
        ("versions", ", ".join(f"{name} {version or '(missing)'}" for name, version in found["versions"].items())),
    ]
    missing = [
        (f"[{name}]", extra["for"], f"lacks {', '.join(extra['missing'])}", extra["install"])
        for name, extra in found["extras"].items()
        if extra["missing"]
    ]
    sections = {
        "This machine": _aligned(facts),
        "Missing extras": _aligned(missing) or ["  none"],
        "Released weights (GB on disk as published, rounded)": [
            *_aligned(_weight_rows(found["weights"])),
            "  Unknown sizes: sanawm_env.pretrained.plan(source, variant=...) asks the Hub and downloads nothing.",
        ],
        "Memory for one world (counted on the modules that are loaded)": [
            *_aligned(_fit_rows(found["fits"])),
            "  fp8 and nvfp4: large layers of denoiser and refiner, those of the list 'default'; what multiplies them",
            "  here, or why nothing does, is said above. The refiner may have another: refiner_precision.",
            "  On top, not measured: working memory of a step or, for bidirectional and teacher, of a whole clip;",
            "  and, while a new prompt is read, its text encoder in bf16: Gemma 2 (4.9 GB as published), with the",
            "  refiner then Gemma 3 (12 B parameters).",
        ],
        "Seconds a chunk (24 frames, 1.5 s of world time)": _aligned(_speed_rows(found["seconds_a_chunk"])),
        "Licences": _aligned(_licences()),
    }
    return "\n\n".join("\n".join([title, *lines]) for title, lines in sections.items())


def _gpus() -> tuple[list[dict[str, Any]], str | None]:
    """Every CUDA device; where there is none, why."""
    rows = []
    for index in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:
            return [], f"device {index} cannot be used ({' '.join(str(error).split()):.120}); is another process on it?"
        device = torch.device("cuda", index)
        name = torch.cuda.get_device_name(index)
        rows.append({"name": name, "memory_total_bytes": total, "memory_free_bytes": free, "bf16": native_bf16(device)})
    if rows:
        return rows, None
    if torch.version.cuda is None and torch.version.hip is None:
        return [], f"torch {torch.__version__} is a CPU build; install a CUDA build of torch to use one"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [], f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides all there may be; unset it"
    if not Path("/proc/driver/nvidia").exists():
        return [], "no NVIDIA driver is loaded here; install one, or pass the GPU into this container"
    return [], "the driver is loaded, but torch sees no device; update the driver to what this torch was built for"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extra(name: str) -> dict[str, Any]:
    packages, purpose = EXTRAS[name]
    missing = [package for package in packages if _version(package) is None]
    return {"for": purpose, "missing": missing, "install": f"pip install 'sanawm-env[{name}]'"}


def _hub() -> dict[str, Any]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    # Before the first download the folder is not there; its space is that of the nearest one that is.
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    return {"cache": str(cache), "free_bytes": free, "offline": bool(constants.HF_HUB_OFFLINE)}


def _cached(name: str, parts: Sequence[Part]) -> dict[str, Any]:
    """Bytes of each part of a repository in the Hub's cache, and of downloads that were cut short."""
    folder = cached_repository(name)
    # Where the revision that loads by default is not there, the one that was downloaded last.
    latest = max(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime, default=None)
    snapshot = cached_snapshot(name) or latest
    rows = [
        {
            "folder": part.folder,
            "what": part.what,
            "cached_bytes": 0 if snapshot is None else _bytes_below(snapshot / part.folder),
            "published_gb": part.published_gb,
            "licence": part.licence,
        }
        for part in parts
    ]
    unfinished = sum(path.stat().st_size for path in folder.glob("blobs/*.incomplete"))
    return {"parts": rows, "unfinished_bytes": unfinished}


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _verdict(row: Mapping[str, Any], free: int | None, host: int | None) -> dict[str, Any]:
    """Whether a world fits, and where it does not, the fastest mode of offloading with which it does, or None.

    host: bytes of host memory for the weights that are offloaded.
    """
    count = row["bytes"]
    left = None if free is None else free - count["total"]
    fits = None if left is None else left >= 0
    mode = None
    if free is not None and not fits and (host or 0) >= count["total"] - count["state"]["total"]:
        mode = next((name for name, least in row["offloaded"].items() if least <= free), None)
    return {"fits": fits, "left_bytes": left, "offload": mode}


def _speeds(path: Path) -> dict[str, Any] | None:
    """Newest seconds a chunk that `sanawm bench sana-wm` has measured at full size, and on what; None where there are
    none. All are of the machine that was measured last: a run leaves a line a part.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found: dict[str, Any] | None = None
    for line in reversed(lines):
        try:
            told = json.loads(line)
            settings = told["settings"]
            if settings["size"] != "full" or settings.get("precision") in get_args(LowPrecision):
                continue
            medians = {name: told["rows"][name][key]["p50"] for name, key in MEASURED.items() if name in told["rows"]}
            seconds = {name: float(median) / 1000 for name, median in medians.items()}
        except (ValueError, KeyError, TypeError):
            continue
        if seconds and found is None:
            found = {"rows": seconds} | {name: told.get(name) for name in ("dtype", "gpu", "cpu", "time", "commit")}
        elif found is not None and all(told.get(name) == found[name] for name in ("dtype", "gpu", "cpu")):
            found["rows"] = seconds | found["rows"]
    return found


def _licences() -> list[tuple[str, str]]:
    """Each licence and what it covers."""
    covered: dict[str, list[str]] = {bundle.LICENCE: ["sanawm-env, Rooms"]}
    for name, parts in RELEASES.items():
        for part in parts:
            covered.setdefault(part.licence, []).append("/".join(filter(None, (name.split("/")[1], part.folder))))
    return [(what, licence) for licence, all_of_it in covered.items() for what in all_of_it]


def _weight_rows(weights: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for name, told in weights.items():
        for part in told["parts"]:
            cached, gb = part["cached_bytes"], part["published_gb"]
            held = f"{_size(cached)} in the cache" if cached else "not in the cache"
            published = "size not known" if gb is None else f"{gb:g} GB"
            yield f"{name}{'/' if part['folder'] else ''}{part['folder']}", held, published, part["what"]
        if told["unfinished_bytes"]:
            left = "a download was cut short; start again, it goes on where it stopped"
            yield name, f"{_size(told['unfinished_bytes'])} unfinished", "", left


def _fit_rows(fits: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    yield "world", "precision", "weights", "state", "in all", "here"
    for row in fits:
        count, left = row["bytes"], row["left_bytes"]
        state, total = count["state"]["total"], count["total"]
        verdict = "free memory not known" if left is None else "fits, " if row["fits"] else "does not fit, "
        if left is not None:
            verdict += f"{_size(abs(left))} {'left' if row['fits'] else 'missing'}"
        if row["offload"]:
            verdict += f"; fits with offload={row['offload']!r}: {_size(row['offloaded'][row['offload']])}"
        name = f"{row['world']}{' + refiner' if row['refiner'] else ''}"
        yield name, row["precision"], _size(total - state), _size(state), _size(total), verdict


def _speed_rows(speeds: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for name, seconds in speeds["rows"].items():
        machine_told = f"{speeds['dtype']}, {speeds['gpu'] or speeds['cpu']}, {speeds['time']}"
        yield f"{seconds:.3f}", name, f"random weights, {machine_told}"


def _gpu_line(gpu: Mapping[str, Any]) -> str:
    memory = f"{_size(gpu['memory_free_bytes'])} free of {_size(gpu['memory_total_bytes'])}"
    return f"{gpu['name']}, {memory}, {_bf16(gpu['bf16'])}"


def _bf16(native: bool) -> str:
    return "native bf16" if native else "no native bf16"


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    table = [tuple(row) for row in rows]
    widths = [max(len(row[k]) for row in table if k < len(row)) for k in range(max(map(len, table), default=0))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
