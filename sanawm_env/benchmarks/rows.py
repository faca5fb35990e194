"""What the benchmark of the released configuration is told, its worlds of random weights, and the rows it keeps."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sanawm_env.benchmarks.machine import peak_memory, percentiles, reset_peak, timed
from sanawm_env.benchmarks.streaming import check_finite
from sanawm_env.bundle import empty_parts
from sanawm_env.chunk_graphs import record
from sanawm_env.errors import ConfigError
from sanawm_env.model import causal_video
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.config import WorldConfig, tiny_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.initialise import randomise
from sanawm_env.model.public_keys import Variant
from sanawm_env.model.quantised import LayerList
from sanawm_env.placement import Precision, find_captured, find_dtype, find_quantisation
from sanawm_env.quantise import quantised
from sanawm_env.released import released_config
from sanawm_env.world import WorldModel

Part = Literal["distilled", "refiner", "teacher", "bidirectional", "diffusers", "sglang", "check"]
PARTS: tuple[Part, ...] = ("distilled", "refiner", "teacher", "bidirectional", "diffusers", "sglang", "check")
# What stands in for the released sizes when only the benchmark itself is tried out.
TINY_CAPTION = 12
TINY_REFINER: dict[str, Any] = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "num_layers": 2,
    "caption_channels": TINY_CAPTION,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 1,
    "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 16,
    "vae_scale_factors": (4, 8, 8),
}


@dataclass(frozen=True, kw_only=True)
class BenchSanaWM:
    """What to measure. size: the released one, or "tiny" to try the benchmark out on any machine. device: None for CUDA
    where there is one. parts: those that run, in the order of `PARTS`; the others are listed as skipped.

    repeats, warmup: calls that are timed and calls before them; public_repeats: timed calls of other implementations,
    which are slow. chunks: streamed and decoded in one go, warm-up included; marks: after how many of them memory is
    read. teacher_latents, teacher_steps, teacher_guidance: of the teacher's clip. lengths: latents of the bidirectional
    passes. check_chunks: length of the world that is saved, loaded and forked half way. scratch: folder for its file.
    precision, layers, captured: of `bundle.load`; captured worlds' passes are timed as graphs. out: file that gets one
    JSON line a run.
    """

    size: Literal["full", "tiny"] = "full"
    device: str | None = None
    precision: Precision = "auto"
    parts: tuple[Part, ...] = PARTS
    repeats: int = 10
    warmup: int = 5
    captured: bool | None = None
    layers: LayerList | None = None
    public_repeats: int = 3
    chunks: int = 40
    marks: tuple[int, ...] = (3, 10, 40)
    teacher_latents: int = 10
    teacher_steps: int = 8
    teacher_guidance: float = 5.0
    lengths: tuple[int, ...] = (11, 121)
    check_chunks: int = 10
    scratch: Path = Path("/tmp")
    seed: int = 0
    out: Path = Path("outputs/bench/sana_wm.jsonl")

    def __post_init__(self) -> None:
        for name in ("repeats", "warmup", "public_repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, allowed is 1 or more.")
        if self.chunks <= self.warmup or not all(1 <= mark <= self.chunks for mark in self.marks):
            raise ConfigError(
                f"chunks is {self.chunks} with warmup {self.warmup} and marks {list(self.marks)}; allowed are more "
                "chunks than warmup, and marks from 1 to chunks."
            )
        if self.check_chunks < 2:
            raise ConfigError(f"check_chunks is {self.check_chunks}, allowed is 2 or more: half before the snapshot.")
        if min(self.lengths, default=0) < 2:
            raise ConfigError(f"lengths are {list(self.lengths)}, allowed is one or more lengths of 2 latents or more.")


class Bench:
    """The measurements of one run. Each is guarded: what fails is kept as its error, and the others go on."""

    def __init__(self, config: BenchSanaWM, device: torch.device, progress: Callable[[str], None]) -> None:
        self.config, self.device, self.progress = config, device, progress
        # On a CPU diffusers refuses cameras in bf16, so "auto" is fp32 there.
        on_cpu = config.precision == "auto" and device.type == "cpu"
        self.dtype = find_dtype("fp32" if on_cpu else config.precision, device)
        self.quantisation = find_quantisation(config.precision, config.layers)
        if self.quantisation is not None:
            self.quantisation.check_runs(device)
        self.rows: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []

    def row(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Keeps and prints what `work` measures, with the peak of memory meanwhile. A False in its `holds` is a
        failure too.
        """
        self._forget()
        reset_peak(self.device)
        try:
            row = work()
        except Exception as error:  # whatever one measurement dies of, the others are still wanted
            row = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        else:
            if any(name.endswith("ms") for name in row):
                row.setdefault("peak_memory_bytes", peak_memory(self.device))
        if "error" in row or not all(row.get("holds", {}).values()):
            self.failed.append(name)
        self.rows[name] = row
        self.progress(f"{name}: {_sentence(row)}")

    def absent(self, name: str, error: Exception) -> None:
        """Says that another implementation cannot be measured here, which is no failure."""
        self.row(name, partial(dict, status=f"not importable ({error})"))

    def part(self, name: Part, work: Callable[[Bench], None]) -> None:
        """Every row of a part; when it cannot even be set up, one row with the error under the part's own name."""
        try:
            work(self)
        except Exception as error:  # as in `row`
            raised = error
            self.row(name, lambda: _raise(raised))
            del raised
        self._forget()

    def repeated(
        self, work: Callable[[], Tensor], repeats: int | None = None, *, captured: bool = False
    ) -> dict[str, Any]:
        """Milliseconds of `work`, or of its graph, after the warm-up, once its result is found to be finite."""
        count = self.config.repeats if repeats is None else repeats
        for _ in range(self.config.warmup if repeats is None else 1):
            result = work()
        check_finite(result, "the results")
        del result
        again = record(work).replay if captured else work
        return {"ms": percentiles([timed(again, self.device) for _ in range(count)]), "repeats": count}

    def world(self, variant: Variant, behaviour: str | None = None) -> WorldModel:
        """A world of random weights, made on the device itself. behaviour: in place of the variant's own."""
        config = config_of(self.config.size, variant)
        if behaviour is not None:
            config = replace(config, denoiser=replace(config.denoiser, behaviour=behaviour))
        parts = empty_parts(config)
        denoiser, autoencoder = (self.randomised(parts[name]) for name in ("denoiser", "autoencoder"))
        assert isinstance(denoiser, Denoiser)
        assert isinstance(autoencoder, Autoencoder)
        autoencoder.set_statistics(torch.zeros(()), torch.ones(()))
        causal_video.lay_out(autoencoder.vae)
        captured = find_captured(self.config.captured, self.device, None)
        model = WorldModel(config, denoiser, autoencoder, captured=captured)
        return model if self.quantisation is None else quantised(model, self.quantisation)

    def randomised(self, module: nn.Module) -> nn.Module:
        """A module of the meta device with random weights on the real one, which no copy on the CPU precedes."""
        module.to(self.dtype).to_empty(device=self.device)
        for buffer in module.buffers():
            buffer.zero_()
        return randomise(module, self.generator()).eval().requires_grad_(False)

    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.config.seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype, generator=self.generator())

    def text(self, model: WorldModel) -> dict[str, Tensor]:
        """A prompt that says nothing, the last quarter of its positions empty."""
        text = model.empty_text(1)
        for name, x in text.items():
            text[name] = self.normal(*x.shape) if name.endswith("hidden") else mask(x.shape[1], self.device)
        return text

    def _forget(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def config_of(size: str, variant: Variant) -> WorldConfig:
    """The released configuration of a variant, or a tiny one with all its parts."""
    if size == "full":
        return released_config(variant)
    tiny = tiny_config()
    changes: dict[str, Any] = {"depth": 4, "cross_heads": 2, "chunk_latents": 3, "sink_span": None}
    changes |= {"prediction": "velocity", "caption_channels": TINY_CAPTION, "caption_length": 8}
    config = released_config(variant, replace(tiny.denoiser, **changes), tiny.autoencoder, (tiny.height, tiny.width))
    return replace(config, refiner_caption_length=8)


def mask(length: int, device: torch.device) -> Tensor:
    """Which of `length` positions of text are read: [1, length], True for the first three quarters."""
    return (torch.arange(length, device=device) < max(1, 3 * length // 4))[None]


def _raise(error: Exception) -> dict[str, Any]:
    raise error


def _sentence(row: dict[str, Any]) -> str:
    """A row in words: its times in milliseconds, bytes in MiB, all else as it is."""
    return ", ".join(_phrase(name, value) for name, value in row.items())


def _phrase(name: str, value: Any) -> str:
    plain = name.replace("_", " ")
    if name.endswith("ms") and isinstance(value, dict):
        what = plain.removesuffix("ms").strip()
        return f"{what} {value['p50']:.2f} ms (p90 {value['p90']:.2f})".strip()
    if isinstance(value, dict):
        return ", ".join(_phrase(f"{key}_bytes" if name.endswith("bytes") else key, x) for key, x in value.items())
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "; ".join(_sentence(x) for x in value)
    if name.endswith("bytes") and value is not None:
        return f"{plain.removesuffix('bytes').strip()} {value / 2**20:.1f} MiB"
    return f"{plain} {value:.3g}" if isinstance(value, float) and abs(value) < 1 else f"{plain} {value}"
