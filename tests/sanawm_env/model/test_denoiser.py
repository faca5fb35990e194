"""The denoiser: equal to the public model, the same in every execution, causal across chunks."""

import dataclasses

import pytest
import torch
from diffusers import SanaWMTransformer3DModel

from sanawm_env.benchmarks.peers import diffusers_config
from sanawm_env.camera import pixel_rays, ray_transforms
from sanawm_env.conditioning import Conditioning, condition
from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import ChunkGrid, clip_chunks, next_chunk
from sanawm_env.model.config import DenoiserConfig, tiny_config
from sanawm_env.model.denoiser import Denoiser, last_memory
from sanawm_env.model.initialise import randomise

GRID = (4, 5)


def arc(batch: int, frames: int) -> torch.Tensor:
    """Camera-to-world poses that turn and advance, a different arc in each world."""
    turn = 0.03 * torch.arange(frames) * torch.arange(1, batch + 1)[:, None]
    poses = torch.eye(4).repeat(batch, frames, 1, 1)
    poses[..., 0, 0] = poses[..., 2, 2] = turn.cos()
    poses[..., 0, 2], poses[..., 2, 0] = turn.sin(), -turn.sin()
    poses[..., 2, 3] = 0.05 * torch.arange(frames)
    return poses


def build(config: DenoiserConfig) -> Denoiser:
    denoiser = Denoiser(config).eval().requires_grad_(False)
    randomise(denoiser, torch.Generator().manual_seed(0))
    return denoiser


def clip(config: DenoiserConfig, frames: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, frames, config.in_channels, *GRID, generator=draw)
    level = torch.randint(0, 1000, (batch, frames), generator=draw).float()
    given = condition(
        arc(batch, 1 + 4 * (frames - 1)),
        torch.tensor([[25.0, 25.0, 19.5, 15.5]]).expand(batch, 4),
        torch.arange(frames).expand(batch, -1),
        temporal_stride=4,
        spatial_stride=8,
        grid=GRID,
        first=True,
    )
    return latents, level, given


def part(given: Conditioning, begin: int, end: int) -> Conditioning:
    values = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    return Conditioning(**{name: None if x is None else x[:, begin:end] for name, x in values.items()})


def empty(denoiser: Denoiser, batch: int = 2) -> list[dict[str, torch.Tensor]]:
    return denoiser.memory(batch, GRID, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("span", [None, 6])
@pytest.mark.parametrize("behaviour", ["nvlabs_train", "sglang_stream"])
def test_streaming_equals_one_pass(window: int, span: int | None, behaviour: str) -> None:
    base = tiny_config().denoiser
    config = dataclasses.replace(base, window_chunks=window, sink_span=span, behaviour=behaviour)
    denoiser = build(config)
    latents, level, given = clip(config, 13)
    chunks = clip_chunks(13, config.chunk_latents)
    memory = empty(denoiser)
    shapes = [{name: x.shape for name, x in block.items()} for block in memory]
    whole, after = denoiser(latents, level, given, chunks, memory, collect=True)
    for index, (begin, end) in enumerate(zip(chunks.starts, chunks.ends, strict=True)):
        grid = next_chunk(config.chunk_latents, (index, index), window - 1)
        out, ends = denoiser(
            latents[:, begin:end], level[:, begin:end], part(given, begin, end), grid, memory, collect=True
        )
        assert float((out - whole[:, begin:end]).norm() / whole[:, begin:end].norm()) < 1e-5
        memory = last_memory(ends)
        assert [{name: x.shape for name, x in block.items()} for block in memory] == shapes
        for block, one_pass in zip(memory, after, strict=True):
            for name, x in block.items():
                assert torch.allclose(x, one_pass[name][:, index], atol=1e-5), name


def test_noise_of_later_chunks_does_not_reach_earlier_ones() -> None:
    config = tiny_config().denoiser
    denoiser = build(config)
    latents, level, given = clip(config, 9)
    chunks = clip_chunks(9, config.chunk_latents)
    before, _ = denoiser(latents, level, given, chunks, empty(denoiser))
    latents[:, 5:] += 1.0
    after, _ = denoiser(latents, level, given, chunks, empty(denoiser))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_a_pass_only_reads_its_memory_and_repeats_exactly() -> None:
    config = tiny_config().denoiser
    denoiser = build(config)
    latents, level, given = clip(config, 3)
    grid = next_chunk(config.chunk_latents, (0, 0), 1)
    memory = last_memory(denoiser(latents, level, given, grid, empty(denoiser), collect=True)[1])
    kept = [{name: x.clone() for name, x in block.items()} for block in memory]
    second = next_chunk(config.chunk_latents, (1, 1), 1)
    passes = [
        denoiser(latents[:, 1:], level[:, 1:], part(given, 1, 3), second, memory, collect=True)[0] for _ in range(2)
    ]
    assert torch.equal(*passes)
    assert all(torch.equal(x, kept[i][name]) for i, block in enumerate(memory) for name, x in block.items())


def test_full_size_model_has_the_public_layout() -> None:
    with torch.device("meta"):
        denoiser = Denoiser(DenoiserConfig())
    assert len(denoiser.state_dict()) == 870
    assert sum(p.numel() for p in denoiser.parameters()) == 2_661_800_448


def test_bidirectional_equals_diffusers() -> None:
    config = DenoiserConfig(
        in_channels=8,
        hidden_size=64,
        depth=4,
        head_dim=16,
        softmax_every_n=2,
        plucker_channels=48,
        caption_channels=32,
        cross_heads=4,
        window_chunks=None,
        behaviour="diffusers",
    )
    reference = SanaWMTransformer3DModel(**diffusers_config(config)).eval()
    randomise(reference, torch.Generator().manual_seed(0))
    denoiser = Denoiser(config).eval()
    denoiser.load_state_dict(reference.state_dict(), strict=True)
    draw = torch.Generator().manual_seed(2)
    x, plucker = (torch.randn(2, channels, 5, 3, 4, generator=draw) for channels in (8, 48))
    text, mask = torch.randn(2, 1, 6, 32, generator=draw), torch.ones(2, 6, dtype=torch.int64)
    mask[0, -2:] = 0
    level = torch.tensor([0.0, 500, 500, 500, 500]).repeat(2, 1, 1)
    poses, intrinsics = arc(2, 5), torch.tensor([[3.0, 3.0, 2.0, 1.5]]).expand(2, 4)
    camera = torch.cat([poses.flatten(2), intrinsics[:, None].expand(2, 5, 4)], dim=-1)
    to_ray, from_ray = ray_transforms(poses, pixel_rays(intrinsics, 3, 4))
    given = Conditioning(
        to_ray=to_ray,
        from_ray=from_ray,
        plucker=plucker.flatten(3).permute(0, 2, 3, 1),
        position=torch.arange(5).expand(2, -1),
        text=text[:, 0],
        text_mask=mask,
    )
    memory = denoiser.memory(2, (3, 4), device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        want = reference(x, level, text, mask=mask, camera_conditions=camera, chunk_plucker=plucker).sample
        got, _ = denoiser(x.transpose(1, 2), level[:, 0], given, ChunkGrid((5,), opening=True), memory)
    # Diffusers rounds the softmax blocks' q, k, v to bf16 even in an fp32 model; 3e-4 covers that and nothing else.
    assert float((got.transpose(1, 2) - want).norm() / want.norm()) < 3e-4


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="behaviour"):
        DenoiserConfig(behaviour="nvlabs_trian")
    with pytest.raises(ConfigError, match="latent frames"):
        clip_chunks(6, 2)
    with pytest.raises(ConfigError, match="window_chunks"):
        DenoiserConfig(window_chunks=1)
