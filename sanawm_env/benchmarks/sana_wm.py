"""Speed, memory and sameness of the released configuration at full size, on random weights: `sanawm bench sana-wm`.

On a machine without the command line's packages: `PYTHONPATH=. python3 -m sanawm_env.benchmarks.sana_wm`. Needs torch,
numpy, safetensors and diffusers.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sanawm_env.benchmarks.machine import (
    append_line,
    machine,
    peak_memory,
    percentiles,
    reset_peak,
    synchronise,
    timed,
)
from sanawm_env.benchmarks.streaming import (
    batch_tolerance,
    check_finite,
    pictures,
    relative_difference,
    stream,
    turning_path,
)
from sanawm_env.bundle import Precision, empty_parts, find_device, find_dtype
from sanawm_env.camera import latent_intrinsics, relative_poses
from sanawm_env.clips import generate
from sanawm_env.conditioning import Conditioning
from sanawm_env.config import from_mapping, parse_overrides
from sanawm_env.errors import BackendError, ConfigError, SanaWMError
from sanawm_env.model import causal_video
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.chunks import ChunkGrid, next_chunk
from sanawm_env.model.config import WorldConfig, tiny_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.initialise import randomise
from sanawm_env.model.public_keys import RENAMED, Variant
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig
from sanawm_env.pretrained import FPS, released_config
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.world import WorldModel, initial, step, told

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
    out: file that gets one JSON line a run.
    """

    size: Literal["full", "tiny"] = "full"
    device: str | None = None
    precision: Precision = "auto"
    parts: tuple[Part, ...] = PARTS
    repeats: int = 10
    warmup: int = 3
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

    def part(self, name: Part) -> None:
        """Every row of a part; when it cannot even be set up, one row with the error under the part's own name."""
        try:
            _RUN[name](self)
        except Exception as error:  # as in `row`
            raised = error
            self.row(name, lambda: _raise(raised))
            del raised
        self._forget()

    def repeated(self, work: Callable[[], Tensor], repeats: int | None = None) -> dict[str, Any]:
        """Milliseconds of `work` after the warm-up, once its result is found to be finite."""
        count = self.config.repeats if repeats is None else repeats
        for _ in range(self.config.warmup if repeats is None else 1):
            result = work()
        check_finite(result, "the results")
        del result
        return {"ms": percentiles([timed(work, self.device) for _ in range(count)]), "repeats": count}

    def world(self, variant: Variant) -> WorldModel:
        """A world of random weights, made on the device itself."""
        config = config_of(self.config.size, variant)
        parts = empty_parts(config)
        denoiser, autoencoder = (self.randomised(parts[name]) for name in ("denoiser", "autoencoder"))
        assert isinstance(denoiser, Denoiser)
        assert isinstance(autoencoder, Autoencoder)
        autoencoder.set_statistics(torch.zeros(()), torch.ones(()))
        causal_video.lay_out(autoencoder.vae)
        return WorldModel(config, denoiser, autoencoder)

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
            text[name] = self.normal(*x.shape) if name.endswith("hidden") else _mask(x.shape[1], self.device)
        return text

    def _forget(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@torch.no_grad()
def run(config: BenchSanaWM, progress: Callable[[str], None] = lambda line: print(line, flush=True)) -> dict[str, Any]:
    """Measures the parts that the config asks for, appends one JSON line to `config.out` and returns it.

    `progress` gets one line of text a measurement, as it comes. What failed stands under `failed`.
    """
    device = find_device(config.device)
    if device.type != "cuda" and config.size == "full":
        raise BackendError(
            "size is 'full' on a CPU, allowed is a CUDA device: one pass would take minutes; pass device=cuda on a "
            "machine with a GPU, or size=tiny to try the benchmark out."
        )
    bench = Bench(config, device, progress)
    for name in PARTS:
        if name in config.parts:
            bench.part(name)
        else:
            progress(f"{name}: skipped, parts does not name it")
    report = {
        "benchmark": "sana_wm",
        **machine(device),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "settings": json.loads(json.dumps(asdict(config), default=str)),
        "rows": bench.rows,
        "real_time_factor": real_time_factors(bench.rows),
        "skipped": [name for name in PARTS if name not in config.parts],
        "failed": bench.failed,
    }
    append_line(config.out, report)
    return report


def config_of(size: str, variant: Variant) -> WorldConfig:
    """The released configuration of a variant, or a tiny one with all its parts."""
    if size == "full":
        return released_config(variant)
    tiny = tiny_config()
    changes: dict[str, Any] = {"depth": 4, "cross_heads": 2, "chunk_latents": 3, "sink_span": None}
    changes |= {"prediction": "velocity", "caption_channels": TINY_CAPTION, "caption_length": 8}
    config = released_config(variant, replace(tiny.denoiser, **changes), tiny.autoencoder, (tiny.height, tiny.width))
    return replace(config, refiner_caption_length=8)


def real_time_factors(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Seconds of video a second of computing, one stage after another, as far as its stages were measured."""
    decoded = rows.get("distilled.decoded", {})
    chunk, without = 1000 * decoded.get("frames_per_chunk", 0) / FPS, decoded.get("chunk_ms", {}).get("p50")
    refining = rows.get("refiner.block", {}).get("ms", {}).get("p50")
    factors = {}
    if without is not None:
        factors["without_refiner"] = round(chunk / without, 3)
        if refining is not None:
            factors["with_refiner"] = round(chunk / (without + refining), 3)
    return factors


def _distilled(bench: Bench) -> None:
    """A chunk as an environment steps it, its parts, and what a world keeps."""
    config, model = bench.config, bench.world("distilled")
    text, world = bench.text(model), model.config

    def decoded() -> dict[str, Any]:
        row = stream(model, 1, config.chunks - config.warmup, config.warmup, text=text, marks=config.marks)
        return row | {"holds": {"memory_flat": row.pop("memory_flat", True)}}

    bench.row(
        "distilled.memory",
        lambda: (
            _weight_bytes(denoiser=model.denoiser, autoencoder=model.autoencoder)
            | {"state_bytes": model.empty_state(1).nbytes()}
        ),
    )
    bench.row("distilled.latents", lambda: stream(model, 1, config.repeats, config.warmup, decode=False, text=text))
    bench.row("distilled.decoded", decoded)
    # Three chunks fill the window: sink, previous and current.
    age, frames = 3, world.frames_per_chunk
    path = turning_path(1, (age + 1) * frames, world.fps)
    state, outputs = _follow(model, _start(model, text), path[:, : age * frames])
    poses, latents = path[:, age * frames :], outputs[-1].latents
    chunks = next_chunk(world.chunk_latents, (age,), world.denoiser.previous_latents // world.chunk_latents)
    given = told(model, state, poses, chunks)
    noisy, quiet = (torch.full((1, world.chunk_latents), level, device=model.device) for level in (500.0, 0.0))
    decoder = state.decoder
    assert decoder is not None
    bench.row("distilled.conditioning", lambda: bench.repeated(lambda: told(model, state, poses, chunks).plucker))
    bench.row(
        "distilled.denoiser_pass",
        lambda: bench.repeated(lambda: model.denoiser(latents, noisy, given, chunks, state.memory)[0]),
    )
    bench.row(
        "distilled.commit_pass",
        lambda: bench.repeated(lambda: model.denoiser(latents, quiet, given, chunks, state.memory, collect=True)[0]),
    )
    bench.row(
        "distilled.decode",
        lambda: bench.repeated(lambda: model.autoencoder.decode(latents.to(model.dtype), decoder)[0]),
    )


def _refiner(bench: Bench) -> None:
    """One block behind a full window: its denoising steps and the pass that captures what later blocks read."""
    config = config_of(bench.config.size, "distilled")
    settings = RefinerConfig(
        block_latents=config.chunk_latents,
        fps=config.fps,
        temporal_stride=config.temporal_stride,
        spatial_stride=config.spatial_stride,
    )
    with torch.device("meta"):
        refiner = Refiner(settings, TINY_REFINER if bench.config.size == "tiny" else {})
    bench.randomised(refiner)
    shape = (config.denoiser.in_channels, *config.grid)
    hidden = bench.normal(1, config.refiner_caption_length, refiner.caption_channels)
    # As LTX-2's connectors give it: padded on the left.
    text = (hidden, _mask(config.refiner_caption_length, bench.device).flip(1))
    latents = bench.normal(1, settings.block_latents, *shape)
    state = refiner.open(refiner.empty_state(1, config.grid), bench.normal(1, settings.sink, *shape), *text)
    while int(state.filled[0]) < settings.history:
        _, state = refiner.refine(state, latents, latents, *text)
    bench.row("refiner.memory", lambda: _weight_bytes(refiner=refiner) | {"state_bytes": state.nbytes()})
    bench.row("refiner.block", lambda: bench.repeated(lambda: refiner.refine(state, latents, latents, *text)[0]))


def _teacher(bench: Bench) -> None:
    """A clip from its first picture to its frames, and the passes of the denoiser on the way."""
    config, model = bench.config, bench.world("teacher")
    schedule = replace(model.config.schedule, steps=config.teacher_steps, guidance=config.teacher_guidance)
    model.config = replace(model.config, schedule=schedule)
    text, world = bench.text(model), model.config
    path = turning_path(1, 1 + (config.teacher_latents - 1) * world.temporal_stride, world.fps)
    moments: list[float] = []

    def note(done: int, total: int) -> None:
        synchronise(bench.device)
        moments.append(time.perf_counter())

    def clip() -> None:
        moments.clear()
        negative = (text["hidden"], text["mask"])
        output = generate(
            model, pictures(model, 1), path, seeds=[config.seed], text=text, negative=negative, progress=note
        )
        check_finite(output.latents, "the latents of the clip")

    def measured() -> dict[str, Any]:
        clip()
        seconds = timed(clip, bench.device)
        passes = [after - before for before, after in pairwise(moments)]
        return {
            "ms": percentiles([seconds]),
            # Chunks start one after another, so that later passes are longer; the longest holds the whole clip.
            "pass_ms": percentiles(passes),
            "longest_pass_ms": round(1000 * max(passes), 3),
            "passes": len(moments),
            "latents": config.teacher_latents,
            "guidance": config.teacher_guidance,
        }

    bench.row("teacher.clip", measured)


def _bidirectional(bench: Bench) -> None:
    """One pass over a clip, without guidance."""
    model = bench.world("bidirectional")
    for length in bench.config.lengths:
        bench.row(f"bidirectional.{length}", partial(_forward, bench, model, length))


def _diffusers(bench: Bench) -> None:
    """Diffusers' own model and decoder on our weights and inputs, and how far its results are from ours."""
    try:
        diffusers = importlib.import_module("diffusers")
        model_class, autoencoder_class = diffusers.SanaWMTransformer3DModel, diffusers.AutoencoderKLLTX2Video
    except (ImportError, AttributeError) as error:
        bench.absent("diffusers", error)
        return
    model = bench.world("bidirectional")
    shape = model.config.denoiser
    with torch.device("meta"):
        transformer = model_class(
            in_channels=shape.in_channels,
            num_layers=shape.depth,
            hidden_size=shape.hidden_size,
            num_attention_heads=shape.cross_heads,
            softmax_every_n=shape.softmax_every_n,
            linear_head_dim=shape.head_dim,
            conv_kernel_size=shape.conv_kernel,
            chunk_plucker_channels=shape.plucker_channels,
            chunk_plucker_post_attn_blocks=shape.depth,
            caption_channels=shape.caption_channels,
            mlp_ratio=shape.mlp_ratio,
        )
        autoencoder = autoencoder_class.from_config(model.autoencoder.vae.config)
    # The table of rotations is no weight, and on the meta device it holds nothing.
    rope = transformer.rope
    transformer.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    transformer.load_state_dict(model.denoiser.state_dict(), assign=True)
    # Its convolutions want another order in memory than ours.
    weights = {name: x.contiguous() for name, x in model.autoencoder.vae.state_dict().items()}
    autoencoder.load_state_dict(weights, assign=True)
    for public in (transformer, autoencoder):
        public.eval().requires_grad_(False)
    repeats = bench.config.public_repeats

    def forward(length: int) -> dict[str, Any]:
        clip = _Clip(bench, model, length)
        given = clip.public_arguments()

        def work() -> Tensor:
            out: Tensor = transformer(**given, return_dict=False)[0]
            return out

        difference = relative_difference(work().transpose(1, 2), clip.forward())
        return {**bench.repeated(work, repeats), "latents": length, "difference": difference}

    def decode() -> dict[str, Any]:
        latents = bench.normal(1, 1 + model.config.chunk_latents, shape.in_channels, *model.config.grid)
        raw = latents.transpose(1, 2)

        def theirs() -> Tensor:
            pixels: Tensor = autoencoder.decode(raw, return_dict=False)[0]
            return pixels

        def ours() -> Tensor:
            return model.autoencoder.decode_clip(latents)

        difference = relative_difference(theirs(), ours())
        row = {**bench.repeated(theirs, repeats), "ours_ms": bench.repeated(ours, repeats)["ms"]}
        return row | {"latents": latents.shape[1], "difference": difference}

    for length in bench.config.lengths:
        bench.row(f"diffusers.{length}", partial(forward, length))
    bench.row("diffusers.decode", decode)


def _sglang(bench: Bench) -> None:
    """SGLang's model on our weights and inputs, where SGLang is installed."""
    try:
        importlib.import_module("sglang")
    except ImportError as error:
        bench.absent("sglang", error)
        return
    root = "sglang.multimodal_gen"
    configs = importlib.import_module(f"{root}.configs.models.dits.sana_wm")
    settings = importlib.import_module(f"{root}.runtime.server_args")
    context = importlib.import_module(f"{root}.runtime.managers.forward_context")
    dits = importlib.import_module(f"{root}.runtime.models.dits.sana_wm")
    model = bench.world("bidirectional")
    shape = model.config.denoiser
    architecture = configs.SanaWMArchConfig(
        in_channels=shape.in_channels,
        out_channels=shape.in_channels,
        num_layers=shape.depth,
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_dim,
        linear_head_dim=shape.head_dim,
        num_cross_attention_heads=shape.cross_heads,
        cross_attention_head_dim=shape.hidden_size // shape.cross_heads,
        cross_attention_dim=shape.hidden_size,
        caption_channels=shape.caption_channels,
        model_max_length=shape.caption_length,
        softmax_every_n=shape.softmax_every_n,
        chunk_plucker_channels=shape.plucker_channels,
        mlp_ratio=shape.mlp_ratio,
    )
    # Its layers read these settings of a server, of which there is none here.
    settings.set_global_server_args(
        SimpleNamespace(
            comfyui_mode=False, enable_cfg_parallel=False, enable_torch_compile=False, attention_backend=None
        )
    )
    with torch.device(bench.device):
        transformer = dits.SanaWMTransformer3DModel(configs.SanaWMConfig(arch_config=architecture))
    # It keeps the original release's names.
    weights = dict(model.denoiser.state_dict())
    for theirs, ours in RENAMED.items():
        weights = {name.replace(ours, theirs): x for name, x in weights.items()}
    transformer.load_state_dict(weights, assign=True, strict=False)
    transformer.to(bench.dtype).eval().requires_grad_(False)

    def forward(length: int) -> dict[str, Any]:
        clip = _Clip(bench, model, length)
        given = clip.public_arguments()

        def work() -> Tensor:
            with context.set_forward_context(current_timestep=0, attn_metadata=None):
                out: Tensor = transformer(**given)
            return out

        difference = relative_difference(work().transpose(1, 2), clip.forward())
        return {**bench.repeated(work, bench.config.public_repeats), "latents": length, "difference": difference}

    for length in bench.config.lengths:
        bench.row(f"sglang.{length}", partial(forward, length))


def _check(bench: Bench) -> None:
    """Whether a world goes on the same after a snapshot, from a file and in a fork."""
    config, model = bench.config, bench.world("distilled")
    text, frames = bench.text(model), model.config.frames_per_chunk
    half = config.check_chunks // 2
    path = turning_path(1, config.check_chunks * frames, model.config.fps)
    before, after = path[:, : half * frames], path[:, half * frames :]

    def compared() -> dict[str, Any]:
        state, _ = _follow(model, _start(model, text), before)
        with tempfile.TemporaryDirectory(dir=config.scratch) as folder:
            file = Path(folder) / "world.safetensors"
            saving = timed(lambda: state.save(file), bench.device)
            begun = time.perf_counter()
            loaded = WorldState.load(file, model)
            synchronise(bench.device)
            loading, size = time.perf_counter() - begun, file.stat().st_size
        forks = state.fork(2)
        single = [forks.select([row]) for row in range(2)]
        again = state.clone()
        _, wanted = _follow(model, state, after)
        holds = {
            "snapshot_identical": _same(_follow(model, again, after)[1], wanted),
            "load_identical": _same(_follow(model, loaded, after)[1], wanted),
            "fork_identical": all(_same(_follow(model, fork, after)[1], wanted) for fork in single),
        }
        # Side by side in one batch, products may round otherwise than for a world alone.
        _, together = step(model, forks, after[:, :frames].expand(2, -1, -1, -1), decode=False)
        difference = max(relative_difference(x, wanted[0].latents[0]) for x in together.latents)
        holds["fork_in_a_batch_within_tolerance"] = difference <= batch_tolerance(model)
        return {
            "holds": holds,
            "chunks": [half, config.check_chunks - half],
            "fork_in_a_batch_difference": difference,
            "save_ms": round(1000 * saving, 3),
            "load_ms": round(1000 * loading, 3),
            "file_bytes": size,
        }

    bench.row("check", compared)


_RUN: dict[Part, Callable[[Bench], None]] = {
    "distilled": _distilled,
    "refiner": _refiner,
    "teacher": _teacher,
    "bidirectional": _bidirectional,
    "diffusers": _diffusers,
    "sglang": _sglang,
    "check": _check,
}


class _Clip:
    """Inputs of one bidirectional pass over `length` latents, the first of them clean; ours, and in public words."""

    def __init__(self, bench: Bench, model: WorldModel, length: int) -> None:
        config = model.config
        state = _start(model, bench.text(model))
        path = turning_path(1, (length - 1) * config.temporal_stride, config.fps)
        self.model = model
        self.chunks = ChunkGrid((length,), opening=True)
        self.given: Conditioning = told(model, state, path, self.chunks)
        self.latents = bench.normal(1, length, config.denoiser.in_channels, *config.grid)
        self.level = torch.full((1, length), 500.0, device=model.device)
        self.level[:, 0] = 0
        self.memory = model.denoiser.memory(1, config.grid, device=model.device, dtype=model.dtype)
        keyframes = torch.cat([state.pose[:, None], path], dim=1)[:, :: config.temporal_stride]
        lens = latent_intrinsics(state.intrinsics, config.spatial_stride)[:, None].expand(-1, length, -1)
        seen = relative_poses(state.origin, keyframes).flatten(2)
        # The public pipelines round it to the weights' format; their layers take nothing else.
        self.camera = torch.cat([seen.to(lens), lens], dim=-1).to(model.device, model.dtype)

    def forward(self) -> Tensor:
        out: Tensor = self.model.denoiser(self.latents, self.level, self.given, self.chunks, self.memory)[0]
        return out

    def public_arguments(self) -> dict[str, Tensor]:
        text, mask = self.given.text, self.given.text_mask
        assert text is not None and mask is not None
        rays = self.given.plucker.unflatten(2, self.model.config.grid).permute(0, 4, 1, 2, 3)
        return {
            "hidden_states": self.latents.transpose(1, 2),
            "timestep": self.level[:, None],
            "encoder_hidden_states": text[:, None],
            "encoder_attention_mask": mask.long(),
            "camera_conditions": self.camera,
            "chunk_plucker": rays.to(self.model.dtype),
        }


def _forward(bench: Bench, model: WorldModel, length: int) -> dict[str, Any]:
    clip = _Clip(bench, model, length)
    return {**bench.repeated(clip.forward), "latents": length}


def _start(model: WorldModel, text: dict[str, Tensor]) -> WorldState:
    return initial(model, pictures(model, 1), seeds=[0], text=text)[0]


def _follow(model: WorldModel, state: WorldState, path: Tensor) -> tuple[WorldState, list[StepOutput]]:
    """The world after the chunks along a path [1, k F, 4, 4], and what each gave."""
    outputs = []
    for poses in path.split(model.config.frames_per_chunk, dim=1):
        state, output = step(model, state, poses)
        outputs.append(output)
    return state, outputs


def _same(outputs: list[StepOutput], wanted: list[StepOutput]) -> bool:
    """Whether frames and latents are equal bit for bit."""
    pairs = [(a.latents, b.latents) for a, b in zip(outputs, wanted, strict=True)]
    pairs += [(a.frames, b.frames) for a, b in zip(outputs, wanted) if a.frames is not None and b.frames is not None]
    return len(pairs) == 2 * len(wanted) and all(torch.equal(a, b) for a, b in pairs)


def _mask(length: int, device: torch.device) -> Tensor:
    """[1, length], True for the first three quarters."""
    return (torch.arange(length, device=device) < max(1, 3 * length // 4))[None]


def _weight_bytes(**modules: nn.Module) -> dict[str, Any]:
    return {"weight_bytes": {name: sum(x.nbytes for x in module.parameters()) for name, module in modules.items()}}


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


def main(arguments: list[str]) -> int:
    """Runs the benchmark that `key=value` arguments describe and prints its JSON line last. Exit status: 0 all went
    well, 1 a measurement failed, 2 refused.
    """
    try:
        report = run(from_mapping(BenchSanaWM, parse_overrides(arguments)))
    except SanaWMError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
