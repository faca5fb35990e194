"""What is measured of our own model: a chunk and its parts, the refiner, whole clips, and sameness after a snapshot."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sanawm_env.benchmarks.machine import percentiles, synchronise, timed
from sanawm_env.benchmarks.rows import TINY_REFINER, Bench, config_of, mask
from sanawm_env.benchmarks.streaming import (
    batch_tolerance,
    check_finite,
    pictures,
    relative_difference,
    stream,
    turning_path,
)
from sanawm_env.camera import latent_intrinsics, relative_poses
from sanawm_env.chunk import told
from sanawm_env.clips import generate
from sanawm_env.conditioning import Conditioning
from sanawm_env.model.chunks import ChunkGrid, next_chunk
from sanawm_env.model.config import WorldConfig
from sanawm_env.model.quantised import execution
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig
from sanawm_env.quantise import quantised_refiner
from sanawm_env.rollout import rollout
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.world import WorldModel, initial, step


def measure_distilled(bench: Bench) -> None:
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
            | {"state_bytes": model.empty_state(1).nbytes(), "execution": model.execution, "captured": model.captured}
        ),
    )
    bench.row("distilled.latents", lambda: stream(model, 1, config.repeats, config.warmup, decode=False, text=text))
    bench.row("distilled.decoded", decoded)
    bench.row("distilled.pipelined", lambda: _pipelined(bench, model))
    # Three chunks fill the window: sink, previous and current.
    age, frames = 3, world.frames_per_chunk
    path = turning_path(1, (age + 1) * frames, world.fps)
    state, outputs = _follow(model, _start(model, text), path[:, : age * frames])
    poses, latents = path[:, age * frames :], outputs[-1].latents
    chunks = next_chunk(world.chunk_latents, (age,), world.denoiser.previous_latents // world.chunk_latents)
    given, graphs = model.denoiser.read(told(model, state, poses, chunks), world.grid), model.captured
    noisy, quiet = (torch.full((1, world.chunk_latents), level, device=model.device) for level in (500.0, 0.0))
    decoder = state.decoder
    assert decoder is not None
    bench.row("distilled.conditioning", lambda: bench.repeated(lambda: told(model, state, poses, chunks).plucker))
    bench.row(
        "distilled.denoiser_pass",
        lambda: bench.repeated(lambda: model.denoiser(latents, noisy, given, chunks, state.memory)[0], captured=graphs),
    )
    bench.row(
        "distilled.commit_pass",
        lambda: bench.repeated(
            lambda: model.denoiser(latents, quiet, given, chunks, state.memory, collect=True)[0], captured=graphs
        ),
    )
    bench.row(
        "distilled.decode",
        lambda: bench.repeated(
            lambda: model.autoencoder.decode(latents.to(model.dtype), decoder, started=True)[0], captured=graphs
        ),
    )


def measure_refiner(bench: Bench) -> None:
    """One block by itself, and whole worlds that it refines."""
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
    if bench.quantisation is not None:
        refiner = quantised_refiner(refiner, bench.quantisation)
    _measure_block(bench, config, refiner)
    plain = bench.world("distilled")
    model = WorldModel(plain.config, plain.denoiser, plain.autoencoder, refiner=refiner, captured=plain.captured)
    bench.row("refiner.pipelined", lambda: _pipelined(bench, model))


def _measure_block(bench: Bench, config: WorldConfig, refiner: Refiner) -> None:
    """One block behind a full window: its denoising steps and the pass that captures what later blocks read."""
    settings, shape = refiner.config, (config.denoiser.in_channels, *config.grid)
    hidden = bench.normal(1, config.refiner_caption_length, refiner.caption_channels)
    # As LTX-2's connectors give it: padded on the left.
    text = (hidden, mask(config.refiner_caption_length, bench.device).flip(1))
    latents = bench.normal(1, settings.block_latents, *shape)
    state = refiner.open(refiner.empty_state(1, config.grid), bench.normal(1, settings.sink, *shape), *text)
    while int(state.filled[0]) < settings.history:
        _, state = refiner.refine(state, latents, latents, *text)
    bench.row(
        "refiner.memory",
        lambda: _weight_bytes(refiner=refiner) | {"state_bytes": state.nbytes(), "execution": execution(refiner)},
    )
    bench.row("refiner.block", lambda: bench.repeated(lambda: refiner.refine(state, latents, latents, *text)[0]))


def _pipelined(bench: Bench, model: WorldModel) -> dict[str, Any]:
    """A world along a known path with its stages overlapped, and chunk after chunk, from the first pose to the last."""
    if bench.device.type != "cuda":
        return {"status": "not measured: stages overlap on a CUDA device"}
    config, world, text = bench.config, model.config, bench.text(model)
    warmup, chunks = max(config.warmup, model.settled + 1), config.chunks - config.warmup
    path = turning_path(1, (warmup + chunks) * world.frames_per_chunk, world.fps)
    before, after = path.split([warmup * world.frames_per_chunk, chunks * world.frames_per_chunk], dim=1)
    outputs: dict[bool, list[StepOutput]] = {}
    milliseconds = {}
    for pipeline in (False, True):
        state, _ = _follow(model, _start(model, text), before, pipeline)

        def roll(state: WorldState = state, pipeline: bool = pipeline) -> None:
            outputs[pipeline] = _follow(model, state, after, pipeline)[1]

        milliseconds[pipeline] = percentiles([timed(roll, bench.device) / chunks])
    check_finite(outputs[True][-1].latents, "the latents of the last chunk")
    rate = 1000 * world.frames_per_chunk / milliseconds[True]["p50"]
    return {
        "chunk_ms": milliseconds[True],
        "in_turn_chunk_ms": milliseconds[False],
        "frames_per_second": round(rate, 2),
        "real_time_factor": round(rate / world.fps, 3),
        "chunks": chunks,
        "holds": {"identical": _same(outputs[True], outputs[False])},
    }


def measure_teacher(bench: Bench) -> None:
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


def measure_bidirectional(bench: Bench) -> None:
    """One pass over a clip, without guidance."""
    model = bench.world("bidirectional")
    for length in bench.config.lengths:
        bench.row(f"bidirectional.{length}", partial(_forward, bench, model, length))


def measure_check(bench: Bench) -> None:
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


class Clip:
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
    clip = Clip(bench, model, length)
    return {**bench.repeated(clip.forward), "latents": length}


def _start(model: WorldModel, text: dict[str, Tensor]) -> WorldState:
    return initial(model, pictures(model, 1), seeds=[0], text=text)[0]


def _follow(
    model: WorldModel, state: WorldState, path: Tensor, pipeline: bool = False
) -> tuple[WorldState, list[StepOutput]]:
    """The world after the chunks along a path [1, k F, 4, 4], and what each gave."""
    outputs = []
    for made in rollout(model, state, path, pipeline=pipeline):
        state, output = made
        outputs.append(output)
    return state, outputs


def _same(outputs: list[StepOutput], wanted: list[StepOutput]) -> bool:
    """Whether frames and latents are equal bit for bit."""
    pairs = [(a.latents, b.latents) for a, b in zip(outputs, wanted, strict=True)]
    pairs += [(a.frames, b.frames) for a, b in zip(outputs, wanted) if a.frames is not None and b.frames is not None]
    return len(pairs) == 2 * len(wanted) and all(torch.equal(a, b) for a, b in pairs)


def _weight_bytes(**modules: nn.Module) -> dict[str, Any]:
    return {"weight_bytes": {name: sum(x.nbytes for x in module.parameters()) for name, module in modules.items()}}
