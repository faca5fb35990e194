"""Whole clips: equal to the public pipeline, a wave of chunks for the teacher, plain steps for the distilled model."""

import dataclasses
import itertools

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaWMPipeline, SanaWMTransformer3DModel
from PIL import Image

from sanawm_env.benchmarks.peers import diffusers_config
from sanawm_env.chunk import told
from sanawm_env.clips import generate
from sanawm_env.errors import ConfigError, PoseError, SceneError
from sanawm_env.model.chunks import clip_chunks
from sanawm_env.model.clip_sampler import noise_levels, sample_clip
from sanawm_env.model.config import DenoiserConfig, Schedule, WorldConfig, tiny_config
from sanawm_env.world import WorldModel, initial, step

STEPS = 5


def path(batch: int, frames: int) -> torch.Tensor:
    """Camera-to-world poses that turn and advance, a different arc in each world."""
    count = torch.arange(frames, dtype=torch.float64)
    turn = 0.02 * count * torch.arange(1, batch + 1)[:, None]
    poses = torch.eye(4, dtype=torch.float64).repeat(batch, frames, 1, 1)
    poses[..., 0, 0] = poses[..., 2, 2] = turn.cos()
    poses[..., 0, 2], poses[..., 2, 0] = turn.sin(), -turn.sin()
    poses[..., 2, 3] = 0.03 * count
    return poses


def pictures(batch: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def prompt(batch: int, seed: int, channels: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(batch, 6, dtype=torch.bool)
    mask[:, -2:] = False
    return torch.randn(batch, 6, channels, generator=torch.Generator().manual_seed(seed)), mask


def embedded(batch: int, seed: int) -> dict[str, torch.Tensor]:
    return dict(zip(("hidden", "mask"), prompt(batch, seed), strict=True))


def config_of(variant: str, **denoiser: object) -> WorldConfig:
    tiny = tiny_config()
    shape = dataclasses.replace(tiny.denoiser, sink_span=None, prediction="velocity", window_chunks=None, **denoiser)
    schedule = Schedule(steps=STEPS, shift=9.8, guidance=1.0)
    return dataclasses.replace(tiny, denoiser=shape, variant=variant, schedule=schedule)


def test_the_bidirectional_variant_equals_the_public_pipeline() -> None:
    shape = DenoiserConfig(
        in_channels=8,
        hidden_size=64,
        depth=4,
        head_dim=16,
        softmax_every_n=2,
        plucker_channels=24,
        caption_channels=32,
        caption_length=6,
        cross_heads=4,
        chunk_latents=2,
        window_chunks=None,
        behaviour="diffusers",
    )
    config = dataclasses.replace(
        tiny_config(), denoiser=shape, variant="bidirectional", schedule=Schedule(steps=STEPS, guidance=3.0)
    )
    model = WorldModel.random(config)
    transformer = SanaWMTransformer3DModel(**diffusers_config(shape)).eval()
    transformer.load_state_dict(model.denoiser.state_dict())
    vae, scheduler = model.autoencoder.to_diffusers(), FlowMatchEulerDiscreteScheduler(shift=9.8)
    public = SanaWMPipeline(None, None, vae, transformer, scheduler)
    public.set_progress_bar_config(disable=True)

    poses, (text, mask), (none, none_mask) = path(1, 17), prompt(1, 4), prompt(1, 5)
    intrinsics = torch.tensor([[25.0, 25.0, 19.5, 15.5]])
    picture = pictures(1)
    want = public(
        Image.fromarray(picture[0].numpy()),
        "",
        c2w=poses[0].numpy(),
        intrinsics=intrinsics[0].numpy(),
        height=32,
        width=40,
        num_frames=17,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7),
        prompt_embeds=text[:, None],
        prompt_attention_mask=mask.long(),
        negative_prompt_embeds=none[:, None],
        negative_prompt_attention_mask=none_mask.long(),
        output_type="latent",
    ).latent
    noise = torch.randn(1, 8, 5, 4, 5, generator=torch.Generator().manual_seed(7)).transpose(1, 2)[:, 1:]
    got = generate(
        model,
        picture,
        poses,
        seeds=[0],
        intrinsics=intrinsics,
        text={"hidden": text, "mask": mask},
        negative=(none, none_mask),
        noise=noise,
        decode=False,
    )
    assert got.latents.shape == (1, 5, 8, 4, 5)
    assert float((got.latents.transpose(1, 2) - want).norm() / want.norm()) < 1e-3
    # Guidance, prompt and camera all reach the result; without any of them it is another clip.
    other = generate(
        model, picture, poses, seeds=[0], text={"hidden": none, "mask": mask}, negative=(text, mask), noise=noise
    )
    assert float((other.latents - got.latents).norm() / got.latents.norm()) > 1e-2
    assert other.frames is not None and other.frames.shape == (1, 17, 32, 40, 3)


def test_a_wave_of_interval_one_finishes_chunk_after_chunk() -> None:
    """With interval 1 a chunk starts when the one before is clean, so it equals sampling the growing prefix by hand."""
    model = WorldModel.random(config_of("teacher"))
    picture, poses = pictures(2), path(2, 17)
    noise = torch.randn(2, 4, 8, 4, 5, generator=torch.Generator().manual_seed(1))
    got = generate(model, picture, poses, seeds=[0, 1], noise=noise, interval=1.0).latents

    state, _ = initial(model, picture, seeds=[0, 1], poses=poses[:, 0])
    chunks = clip_chunks(5, 2)
    given = told(model, state, poses[:, 1:], chunks)
    levels = noise_levels(model.config.schedule)
    x = torch.cat([state.first_latent[:, None], noise], dim=1)
    memory = model.denoiser.memory(2, model.config.grid, device=x.device, dtype=x.dtype)
    for begin, end in ((0, 3), (3, 5)):
        for level, following in itertools.pairwise(levels):
            tau = torch.zeros(2, 5)
            tau[:, max(begin, 1) : end] = 1000 * level
            velocity, _ = model.denoiser(x, tau, given, chunks, memory)
            moving = slice(max(begin, 1), end)
            x[:, moving] = x[:, moving] - (level - following) * velocity[:, moving]
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)


def test_the_default_wave_starts_chunks_in_turn_and_reads_no_later_one() -> None:
    model = WorldModel.random(config_of("teacher"))
    picture, poses = pictures(1), path(1, 25)
    noise = torch.randn(1, 6, 8, 4, 5, generator=torch.Generator().manual_seed(1))
    seen: list[tuple[int, int]] = []
    before = generate(model, picture, poses, seeds=[0], noise=noise, progress=lambda *x: seen.append(x)).latents
    assert seen == [(tick + 1, 8) for tick in range(8)]  # starts at 0, 1 and 3 of 5 steps each
    changed = noise.clone()
    changed[:, -2:] += 1
    after = generate(model, picture, poses, seeds=[0], noise=changed).latents
    assert torch.equal(before[:, :5], after[:, :5]) and not torch.allclose(before[:, 5:], after[:, 5:])


def test_the_first_latent_is_the_encoded_picture_untouched() -> None:
    for variant in ("bidirectional", "teacher"):
        model = WorldModel.random(config_of(variant))
        state, _ = initial(model, pictures(2), seeds=[4, 5])
        output = generate(model, pictures(2), path(2, 9), seeds=[4, 5])
        assert torch.equal(output.latents[:, 0], state.first_latent)
        assert torch.isfinite(output.latents).all()


def test_a_distilled_model_generates_what_stepping_gives() -> None:
    model = WorldModel.random(tiny_config())
    poses = path(2, 17)
    clip = generate(model, pictures(2), poses, seeds=[8, 9])
    state, opened = initial(model, pictures(2), seeds=[8, 9], poses=poses[:, 0])
    state, one = step(model, state, poses[:, 1:9])
    state, two = step(model, state, poses[:, 9:])
    frames = [output.frames for output in (opened, one, two) if output.frames is not None]
    assert clip.frames is not None and torch.equal(clip.frames, torch.cat(frames, dim=1))


def test_bad_requests_name_the_remedy() -> None:
    teacher = WorldModel.random(config_of("teacher"))
    with pytest.raises(PoseError, match=r"\[B, 1 \+ 8 k, 4, 4\]"):
        generate(teacher, pictures(1), path(1, 13), seeds=[0])
    with pytest.raises(ConfigError, match="interval is 0"):
        generate(teacher, pictures(1), path(1, 9), seeds=[0], interval=0.0)
    reader = WorldModel.random(config_of("teacher", caption_channels=32, caption_length=6, cross_heads=2))
    with pytest.raises(SceneError, match=r"holds nothing, this model reads"):
        generate(reader, pictures(1), path(1, 9), seeds=[0])
    with pytest.raises(SceneError, match="one embedded prompt a world"):
        generate(reader, pictures(1), path(1, 9), seeds=[0], text=embedded(2, 0))
    guided = dataclasses.replace(reader.config, schedule=Schedule(steps=2, guidance=4.0))
    with pytest.raises(ConfigError, match="no negative text"):
        generate(
            WorldModel(guided, reader.denoiser, reader.autoencoder),
            pictures(1),
            path(1, 9),
            seeds=[0],
            text=embedded(1, 0),
        )
    with pytest.raises(ConfigError, match="steps 0"):
        Schedule(steps=0)


def test_text_is_part_of_the_state(tmp_path) -> None:
    config = dataclasses.replace(
        tiny_config(),
        denoiser=dataclasses.replace(tiny_config().denoiser, caption_channels=32, caption_length=6, cross_heads=2),
    )
    model = WorldModel.random(config)
    poses = path(2, 9)[:, 1:]
    state, _ = initial(model, pictures(2), seeds=[0, 1], text=embedded(2, 1))
    state.save(tmp_path / "world")
    loaded = type(state).load(tmp_path / "world", model)
    other, _ = initial(model, pictures(2), seeds=[0, 1], text=embedded(2, 2))
    plain = step(model, state, poses)[1].latents
    assert torch.equal(plain, step(model, loaded, poses)[1].latents)
    assert not torch.allclose(plain, step(model, other, poses)[1].latents)


def test_one_chunk_and_one_step_move_by_hand() -> None:
    model = WorldModel.random(config_of("bidirectional"))
    state, _ = initial(model, pictures(1), seeds=[0])
    chunks = clip_chunks(3, 2)
    given = told(model, state, path(1, 9)[:, 1:], chunks)
    noise = torch.randn(1, 2, 8, 4, 5, generator=torch.Generator().manual_seed(1))
    got = sample_clip(model.denoiser, Schedule(steps=1, guidance=1.0), noise, state.first_latent, given, chunks)
    memory = model.denoiser.memory(1, model.config.grid, device=noise.device, dtype=noise.dtype)
    x = torch.cat([state.first_latent[:, None], noise], dim=1)
    velocity, _ = model.denoiser(x, torch.tensor([[0.0, 1000.0, 1000.0]]), given, chunks, memory)
    torch.testing.assert_close(got[:, 1:], noise - velocity[:, 1:])
