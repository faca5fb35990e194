"""The one path along which a world advances: `initial` starts worlds from pictures, `step` moves them by one chunk.

No Gymnasium, no files, no globals: weights and config are in `WorldModel`, everything that outlives a step is in
`WorldState`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sanawm_env.advance import refiner_text, stages_of
from sanawm_env.camera import check_intrinsics, check_rigid
from sanawm_env.chunk import run_stages
from sanawm_env.chunk_graphs import ChunkGraphs
from sanawm_env.errors import ConfigError, SceneError, StateError
from sanawm_env.model.autoencoder import Autoencoder, to_uint8
from sanawm_env.model.config import WorldConfig
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.initialise import randomise
from sanawm_env.model.offload import device_of, on_device
from sanawm_env.model.quantised import execution
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.sampler import denoise
from sanawm_env.state import StepOutput, WorldState, fresh_fields
from sanawm_env.visits import computed_at_once, together


class WorldModel:
    """Weights and configuration of a world; shared between worlds and never changed by a step.

    fingerprint: SHA-256 of the bundle the weights came from, "" for a model made in memory. refiner: adds detail to
    finished latents before they are decoded, or None. licence: of the weights, "" where the bundle does not say.
    captured: replay steps from CUDA graphs (chunk_graphs.py); `placement.find_captured` says where that can be.
    sampler: what denoises a chunk; training puts its own in place of `denoise`.
    ConfigError when the refiner's blocks are no chunks.
    """

    def __init__(
        self,
        config: WorldConfig,
        denoiser: Denoiser,
        autoencoder: Autoencoder,
        fingerprint: str = "",
        refiner: Refiner | None = None,
        licence: str = "",
        *,
        captured: bool = False,
    ) -> None:
        if refiner is not None and (refiner.config.block_latents, refiner.config.sink) != (config.chunk_latents, 1):
            raise ConfigError(
                f"the refiner has blocks of {refiner.config.block_latents} latents, a sink of {refiner.config.sink}; "
                f"allowed are {config.chunk_latents} (a chunk) and 1; set block_latents and sink of its RefinerConfig."
            )
        self.refiner = None if refiner is None else refiner.eval().requires_grad_(False)
        self.config = config
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.fingerprint = fingerprint
        self.licence = licence
        self.graphs = ChunkGraphs() if captured else None
        self.sampler: Callable[..., Tensor] = denoise

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from CUDA graphs."""
        return self.graphs is not None

    def with_refiner(self, refiner: Refiner) -> WorldModel:
        """The same weights, with a refiner behind them. ConfigError as for the model itself."""
        return WorldModel(
            self.config,
            self.denoiser,
            self.autoencoder,
            self.fingerprint,
            refiner=refiner,
            licence=self.licence,
            captured=self.captured,
        )

    @classmethod
    def random(cls, config: WorldConfig, seed: int = 0, device: torch.device | str = "cpu") -> WorldModel:
        """A model with random weights, for tests and for measuring speed."""
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            denoiser, autoencoder = Denoiser(config.denoiser), Autoencoder(config.autoencoder)
        randomise(denoiser, generator)
        return cls(config, denoiser.to(device), autoencoder.to(device))

    @property
    def device(self) -> torch.device:
        """Where worlds compute and their states lie; offloaded weights are there only while they compute."""
        return device_of(self.denoiser)

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @property
    def execution(self) -> str:
        """What multiplies its large matrices: "bf16", "fp32", "fp8 scaled matmul", "nvfp4 weight-only (fused)" or
        "(reference)", or, only where it was asked for, "fp8 simulated (reference)". With a refiner, what multiplies
        there follows: "bf16; refiner: fp8 scaled matmul".
        """
        own = execution(self.denoiser)
        return own if self.refiner is None else f"{own}; refiner: {execution(self.refiner)}"

    @property
    def settled(self) -> int:
        """Chunks after which a world's windows are full, so that all later chunks are computed alike."""
        config = self.config
        full = 1 + config.denoiser.previous_latents // config.chunk_latents
        return full if self.refiner is None else max(full, -(-self.refiner.config.history // config.chunk_latents))

    @property
    def reads_text(self) -> bool:
        """Whether its worlds start with an embedded prompt."""
        return self.config.denoiser.caption_channels is not None or self._refiner_reads

    @property
    def _refiner_reads(self) -> bool:
        return self.refiner is not None and self.refiner.config.reads_text

    def empty_state(self, batch: int, *, decoder: bool = True, device: torch.device | str | None = None) -> WorldState:
        """A state of the right shapes in which nothing has happened yet; on the model's device by default."""
        config, grid = self.config, self.config.grid
        place = self.device if device is None else torch.device(device)
        cache = self.autoencoder.initial_cache(batch, *grid, self.dtype, place) if decoder else None
        window = None
        if self.refiner is not None and decoder:
            window = self.refiner.empty_state(batch, grid, device=place)
        return WorldState(
            **fresh_fields(batch, config),
            first_latent=torch.zeros(batch, config.denoiser.in_channels, *grid, device=place),
            text=self.empty_text(batch, place),
            memory=self.denoiser.memory(batch, grid, device=place, dtype=self.dtype),
            decoder=cache,
            refiner=window,
            fingerprint=self.fingerprint,
            frames_per_chunk=config.frames_per_chunk,
        )

    def empty_text(self, batch: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Text of the right shapes that says nothing yet; on the model's device by default."""
        place = self.device if device is None else device
        config, sizes = self.config.denoiser, {}
        if config.caption_channels is not None:
            sizes[""] = (config.caption_length, config.caption_channels)
        if self.refiner is not None and self._refiner_reads:
            sizes["refiner_"] = (self.config.refiner_caption_length, self.refiner.caption_channels)
        text = {}
        for name, (length, channels) in sizes.items():
            text[f"{name}hidden"] = torch.zeros(batch, length, channels, dtype=self.dtype, device=place)
            text[f"{name}mask"] = torch.zeros(batch, length, dtype=torch.bool, device=place)
        return text


@torch.no_grad()
def initial(
    model: WorldModel,
    images: Tensor | np.ndarray,
    *,
    seeds: Sequence[int] | Tensor,
    poses: Tensor | np.ndarray | None = None,
    intrinsics: Tensor | np.ndarray | None = None,
    horizon: int | None = None,
    text: Mapping[str, Tensor] | None = None,
    units: float | None = None,
    resident: int | None = None,
) -> tuple[WorldState, StepOutput]:
    """Worlds that start at the given pictures.

    images: uint8 [B, H, W, 3] RGB. seeds: [B], each world's noise. poses: [B, 4, 4] camera-to-world of the pictures
    in the caller's world (identity by default). intrinsics: [B, 4] in frame pixels (the bundle's by default).
    horizon: frames after which an episode is cut. text: embedded prompts as `WorldState.text` holds them, for a
    model that reads text. units: model units a metre (the bundle's by default). resident: where there are more worlds,
    their state lies in the host's memory, and so many at a time are on the device. Returns the state and the first
    frame as the autoencoder shows it, frames [B, 1, H, W, 3]. Raises SceneError or PoseError.
    """
    pictures = _check_images(model.config, images)
    batch = pictures.shape[0]
    home = torch.device("cpu") if resident is not None and batch > resident else model.device
    state = set_out(model.empty_state(batch, device=home), seeds, poses, intrinsics, horizon, units)
    state.text = check_text(state.text, text)
    groups = computed_at_once(model, state.chunk, resident)
    return together(groups, state, model.device, lambda part, rows: _open(model, part, pictures[rows]))


def set_out(
    state: WorldState,
    seeds: Sequence[int] | Tensor,
    poses: Tensor | np.ndarray | None,
    intrinsics: Tensor | np.ndarray | None,
    horizon: int | None,
    units: float | None,
) -> WorldState:
    """An empty state with the facts of worlds that begin, as `initial` takes them. Raises like it."""
    batch = state.batch_size
    state.seed = check_seeds(seeds, batch)
    if poses is not None:
        state.origin = check_rigid(_per_world("poses", torch.as_tensor(poses, dtype=torch.float64), batch, (4, 4)))
    state.pose = state.origin.clone()
    if intrinsics is not None:
        given = _per_world("intrinsics", torch.as_tensor(intrinsics, dtype=torch.float32), batch, (4,))
        state.intrinsics = check_intrinsics(given)
    if horizon is not None:
        if horizon < 1:
            raise StateError(f"horizon is {horizon}, allowed is >= 1 frame, or None for an episode without end.")
        state.horizon = torch.full((batch,), int(horizon), dtype=torch.int64)
    if units is not None:
        if not 0 < units < math.inf:
            raise SceneError(f"units is {units!r}, allowed is a number of model units a metre, above 0, or None.")
        state.units[:] = units
    return state


@torch.no_grad()
def step(
    model: WorldModel,
    state: WorldState,
    poses: Tensor | np.ndarray,
    *,
    noise: Tensor | None = None,
    decode: bool = True,
    resident: int | None = None,
) -> tuple[WorldState, StepOutput]:
    """Every world advanced by one chunk along the given camera poses; spends `state`.

    poses: [B, F, 4, 4] camera-to-world in the caller's world; row k is where new frame k is seen. noise: [B, n,
    channels, h, w] instead of each world's own, for parity tests. decode=False gives latents only and a state of the
    "plan" tier. resident: most worlds that are computed at once; those of a state in the host's memory come to the
    device for it, and what the step gives lies on the host as well. Raises PoseError, SpentStateError, or StateError
    when frames are asked of a "plan" state. On any error the state stays as it was.
    """
    state.check_usable()
    path = check_step(model, state, poses, decode)
    if noise is not None:
        check_noise(model.config, noise, state.batch_size, chunks=1)
    stages = stages_of(model, decode=decode)
    advanced, output = run_stages(model, state, path, stages, noise=noise, resident=resident)
    state.spend()
    return advanced, output


def _open(model: WorldModel, state: WorldState, pictures: Tensor) -> tuple[WorldState, StepOutput]:
    """`initial` once every world has its seed and pose."""
    pixels = pictures.to(model.device).permute(0, 3, 1, 2)[:, :, None].to(model.dtype) / 127.5 - 1
    assert state.decoder is not None
    with on_device(model.autoencoder):
        # World by world: on a GPU convolutions round by how many pictures share a call.
        latents = torch.cat([model.autoencoder.encode(one) for one in pixels.split(1)])
        shown, cache = model.autoencoder.decode(latents.to(model.dtype), state.decoder)
    opened = replace(state, first_latent=latents[:, 0], decoder=cache)
    if model.refiner is not None and state.refiner is not None:
        # The first picture is the refiner's sink and stays as it is.
        opened.refiner = model.refiner.open(state.refiner, latents, *refiner_text(state.text))
    return opened, StepOutput(to_uint8(shown), latents, state.pose[:, None].clone())


def check_step(model: WorldModel, state: WorldState, poses: Tensor | np.ndarray, decode: bool) -> Tensor:
    """The poses as float64 on the host, once they, the state and the model are found to fit. Raises as `step`."""
    path = torch.as_tensor(poses, dtype=torch.float64).cpu()
    path = check_rigid(_per_world("poses", path, state.batch_size, (model.config.frames_per_chunk, 4, 4)))
    if state.fingerprint != model.fingerprint:
        raise StateError(
            f"state is of bundle {state.fingerprint[:12]!r}, the model is {model.fingerprint[:12]!r}; "
            "step it with its own model."
        )
    if decode and state.decoder is None:
        raise StateError(
            'frames were asked of a state of tier "plan"; pass decode=False, or step a "full" state all along.'
        )
    return path


def check_text(empty: dict[str, Tensor], text: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The text where `empty` lies, once it is found to be what `empty` has room for. Raises SceneError."""
    if text is not None and not isinstance(text, Mapping):
        raise SceneError(f"text is a {type(text).__name__}, allowed is a mapping such as `WorldState.text`, or None.")
    given = dict(text or {})
    if given.keys() != empty.keys():
        raise SceneError(
            f"text holds {sorted(given) or 'nothing'}, this model reads {sorted(empty) or 'none'}; embed a prompt for "
            "exactly what the model reads (sanawm_env.text)."
        )
    for name, x in given.items():
        if x.shape != empty[name].shape:
            raise SceneError(
                f"text {name!r} has shape {tuple(x.shape)}, expected {tuple(empty[name].shape)}: one embedded prompt a "
                "world."
            )
        if name.endswith("mask") and not bool(x.bool().any(dim=1).all()):
            raise SceneError(f"text {name!r} marks no position of a prompt, allowed is one or more; embed at least ''.")
    return {name: x.to(empty[name]) for name, x in given.items()}


def check_seeds(seeds: Sequence[int] | Tensor, batch: int) -> Tensor:
    """The seeds as int64 [B]. StateError unless they are whole numbers of 64 bits, one a world."""
    values = seeds.tolist() if isinstance(seeds, Tensor) else [*seeds]
    wrong = [seed for seed in values if int(seed) != seed or not -(2**63) <= seed < 2**63]
    if wrong:
        raise StateError(
            f"seeds hold {wrong[0]!r}, allowed are whole numbers of 64 bits; draw them with randrange(2**63)."
        )
    return _per_world("seeds", torch.tensor([int(seed) for seed in values], dtype=torch.int64), batch, ())


def check_noise(config: WorldConfig, noise: Tensor, batch: int, chunks: int) -> tuple[Tensor, ...]:
    """The noise of each chunk. StateError unless there is one draw for each new latent."""
    shape = (batch, chunks * config.chunk_latents, config.denoiser.in_channels, *config.grid)
    if tuple(noise.shape) != shape:
        raise StateError(f"noise has shape {tuple(noise.shape)}, expected {shape}: one draw for each new latent.")
    return noise.split(config.chunk_latents, dim=1)


def _check_images(config: WorldConfig, images: Tensor | np.ndarray) -> Tensor:
    allowed = (config.height, config.width, 3)
    if not isinstance(images, Tensor | np.ndarray) or not len(images):
        raise SceneError(f"first pictures are {images!r:.40}, allowed is an array uint8 [B, *{allowed}] with B >= 1.")
    pictures = torch.as_tensor(images)
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or tuple(pictures.shape[1:]) != allowed:
        raise SceneError(
            f"first pictures are {pictures.dtype} of shape {tuple(pictures.shape)}, allowed is uint8 "
            f"[B, {config.height}, {config.width}, 3]; resize to this size and drop an alpha channel."
        )
    return pictures


def _per_world(name: str, value: Tensor, batch: int, shape: tuple[int, ...]) -> Tensor:
    if tuple(value.shape) != (batch, *shape):
        raise StateError(
            f"{name} has shape {tuple(value.shape)}, expected {(batch, *shape)}: one row a world for {batch} worlds."
        )
    return value
