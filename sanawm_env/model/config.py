"""Configuration of a world model: denoiser, its behaviour switches, autoencoder and units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sanawm_env.errors import ConfigError, nearest
from sanawm_env.model.autoencoder import AutoencoderConfig

Variant = Literal["bidirectional", "teacher", "distilled"]


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Arithmetic in which the public implementations differ on equal weights (spec dit.md 0.3).

    A softmax scale of "head" is head_dim ** -0.5; "pad128" is the scale of a head zero-padded to a multiple of 128
    lanes.
    """

    downscale_gdn: bool
    downscale_softmax: bool
    scale_main: Literal["head", "pad128"]
    scale_camera: Literal["head", "pad128"]
    camera_conv_cached: bool


BEHAVIOURS = {
    "diffusers": Behaviour(
        downscale_gdn=True, downscale_softmax=True, scale_main="head", scale_camera="pad128", camera_conv_cached=False
    ),
    "sglang_dense": Behaviour(
        downscale_gdn=True, downscale_softmax=True, scale_main="head", scale_camera="head", camera_conv_cached=False
    ),
    "sglang_stream": Behaviour(
        downscale_gdn=True, downscale_softmax=True, scale_main="pad128", scale_camera="pad128", camera_conv_cached=False
    ),
    "nvlabs_release_stream": Behaviour(
        downscale_gdn=False,
        downscale_softmax=False,
        scale_main="pad128",
        scale_camera="pad128",
        camera_conv_cached=False,
    ),
    "nvlabs_train": Behaviour(
        downscale_gdn=False, downscale_softmax=False, scale_main="head", scale_camera="head", camera_conv_cached=True
    ),
}


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Shape of a SANA-WM denoiser; the defaults are the released 2.66 B model (spec dit.md 1.1).

    caption_channels: width of text embeddings, None for a model without text. caption_length: text positions.
    chunk_latents: latent frames a chunk; the
    first chunk has one more. window_chunks: chunks whose keys softmax blocks read beside the current one, the sink
    (chunk 0) among them; None keeps all, which only the one-pass execution can. sink_span: latent frames beyond which
    the sink's distance no longer grows, None for no limit. gdn_time_rope: whether the recurrent blocks rotate by the
    frame index (off makes their memory independent of age). prediction: what the final layer gives, the velocity (noise
    - clean) or the clean latents.
    """

    in_channels: int = 128
    hidden_size: int = 2240
    depth: int = 20
    head_dim: int = 112
    softmax_every_n: int = 4
    conv_kernel: int = 4
    mlp_ratio: float = 3.0
    plucker_channels: int = 48
    caption_channels: int | None = 2304
    caption_length: int = 300
    cross_heads: int = 20
    chunk_latents: int = 3
    window_chunks: int | None = 2
    sink_span: int | None = None
    gdn_time_rope: bool = True
    prediction: Literal["velocity", "clean"] = "velocity"
    behaviour: str = "nvlabs_train"

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise ConfigError(f"behaviour is {self.behaviour!r}; {nearest(self.behaviour, BEHAVIOURS)}")
        if self.hidden_size % self.head_dim or self.head_dim % 8:
            raise ConfigError(
                f"head_dim is {self.head_dim} for hidden_size {self.hidden_size}; "
                "it must be a multiple of 8 that divides hidden_size."
            )
        if self.chunk_latents < 2:
            raise ConfigError(
                f"chunk_latents is {self.chunk_latents}, allowed >= 2: one frame leaves the backward scan unused."
            )
        if self.window_chunks is not None and self.window_chunks < 2:
            raise ConfigError(f"window_chunks is {self.window_chunks}, allowed >= 2 (sink and previous chunk) or None.")

    @property
    def heads(self) -> int:
        return self.hidden_size // self.head_dim

    @property
    def switches(self) -> Behaviour:
        return BEHAVIOURS[self.behaviour]

    @property
    def previous_latents(self) -> int:
        """Latent frames of the window's slots for chunks other than the sink."""
        if self.window_chunks is None:
            raise ConfigError("window_chunks is None: streaming needs a finite window; set it to 2 or more.")
        return (self.window_chunks - 1) * self.chunk_latents

    def is_softmax(self, block: int) -> bool:
        return (block + 1) % self.softmax_every_n == 0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Many-step sampling of whole clips (spec rollout.md 6.1 - 6.3): Euler steps, flow shift of their noise levels,
    weight of classifier-free guidance (1 for none).
    """

    steps: int = 60
    shift: float = 9.8
    guidance: float = 5.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.shift <= 0 or self.guidance < 1:
            raise ConfigError(
                f"schedule has steps {self.steps}, shift {self.shift}, guidance {self.guidance}; "
                "allowed are steps >= 1, shift > 0, guidance >= 1."
            )

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The levels as a few-step sampler takes them, 1 .. 1000; of a multiple of the steps, a part of its levels."""
        shares = [1 - step / self.steps for step in range(self.steps)]
        return tuple(round(1000 * self.shift * u / (1 + (self.shift - 1) * u)) for u in shares)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """One world model: its parts, its clock and its units.

    fps: frames a second of world time. height, width: frame size in pixels. intrinsics: default (fx, fy, cx, cy) in
    frame pixels. variant: how it was trained to run; whether it can be stepped says `steppable`, the others generate
    whole clips. refiner_caption_length: text positions of its refiner, if it has one. timesteps: noise levels at which
    a step denoises, 1 .. 1000, falling. schedule: of whole clips. units_per_metre: model units a metre, None
    when unknown.
    """

    name: str
    fps: float
    height: int
    width: int
    intrinsics: tuple[float, float, float, float]
    timesteps: tuple[int, ...]
    units_per_metre: float | None
    denoiser: DenoiserConfig
    autoencoder: AutoencoderConfig
    variant: Variant = "distilled"
    schedule: Schedule = Schedule()
    refiner_caption_length: int = 1024

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False))
        if not self.timesteps or not falling or not 0 < self.timesteps[-1] <= self.timesteps[0] <= 1000:
            raise ConfigError(f"timesteps are {self.timesteps}, allowed is a falling list within 1 .. 1000.")
        if self.height % self.spatial_stride or self.width % self.spatial_stride:
            raise ConfigError(
                f"frame size is {self.height}x{self.width}, allowed are multiples of the spatial stride, "
                f"{self.spatial_stride}."
            )

    @property
    def steppable(self) -> bool:
        """Whether worlds advance chunk by chunk: a distilled model, and a teacher that has levels for doing so."""
        return self.variant == "distilled" or (self.variant == "teacher" and len(self.timesteps) > 1)

    @property
    def temporal_stride(self) -> int:
        return self.autoencoder.temporal_stride

    @property
    def spatial_stride(self) -> int:
        return self.autoencoder.spatial_stride

    @property
    def chunk_latents(self) -> int:
        return self.denoiser.chunk_latents

    @property
    def frames_per_chunk(self) -> int:
        return self.chunk_latents * self.temporal_stride

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        return self.height // self.spatial_stride, self.width // self.spatial_stride


def rooms_config() -> WorldConfig:
    """The embedded Rooms world: 128x160 frames at 10 a second, chunks of 8 frames."""
    denoiser = DenoiserConfig(
        in_channels=48,
        hidden_size=320,
        depth=8,
        head_dim=64,
        softmax_every_n=2,
        mlp_ratio=2.5,
        plucker_channels=24,
        caption_channels=None,
        chunk_latents=2,
        sink_span=12,
        gdn_time_rope=False,
        prediction="clean",
    )
    return WorldConfig(
        name="rooms",
        fps=10.0,
        height=128,
        width=160,
        intrinsics=(100.0, 100.0, 79.5, 63.5),
        timesteps=(1000,),
        units_per_metre=1.0,
        denoiser=denoiser,
        autoencoder=AutoencoderConfig(latent_channels=48, decoder_layers=(1, 2, 2)),
    )


def tiny_config() -> WorldConfig:
    """A world that builds and steps within a second, for tests: 32x40 frames, the Rooms strides, chunks of two
    latents.
    """
    denoiser = DenoiserConfig(
        in_channels=8,
        hidden_size=32,
        depth=3,
        head_dim=16,
        softmax_every_n=2,
        mlp_ratio=2.0,
        plucker_channels=24,
        caption_channels=None,
        chunk_latents=2,
        sink_span=6,
        prediction="clean",
    )
    return WorldConfig(
        name="tiny",
        fps=10.0,
        height=32,
        width=40,
        intrinsics=(25.0, 25.0, 19.5, 15.5),
        timesteps=(1000, 600),
        units_per_metre=1.0,
        denoiser=denoiser,
        autoencoder=AutoencoderConfig(latent_channels=8, encoder_widths=(8, 16), decoder_widths=(8, 16)),
    )
