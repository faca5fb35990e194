"""The training objectives: the streamed one is what world.step computes, the mixture is ordered, gradients reach
every weight.
"""

from dataclasses import replace

import pytest
import torch
from tests.sanawm_env.training.small import CONFIG, GRID, clip

from sanawm_env.conditioning import Conditioning
from sanawm_env.errors import ConfigError
from sanawm_env.model.chunks import next_chunk
from sanawm_env.model.config import DenoiserConfig
from sanawm_env.model.denoiser import Denoiser, last_memory
from sanawm_env.model.initialise import initialise, randomise
from sanawm_env.training.objective import (
    AmongLevels,
    Levels,
    blank_memory,
    chunk_mixture,
    clip_loss,
    mixture_loss,
    noised,
    of_frames,
    streamed_loss,
    velocity,
)

READING = replace(CONFIG, caption_channels=12, caption_length=4, cross_heads=2)


def cut(given: Conditioning, begin: int, end: int) -> Conditioning:
    return Conditioning(
        to_ray=given.to_ray[:, begin:end],
        from_ray=given.from_ray[:, begin:end],
        plucker=given.plucker[:, begin:end],
        position=given.position[:, begin:end],
        text=given.text,
        text_mask=given.text_mask,
    )


def with_text(given: Conditioning) -> Conditioning:
    """Two worlds of which each reads a text of its own."""
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    return given.reading({"hidden": torch.randn(2, 4, 12), "mask": mask})


@pytest.mark.parametrize("config", [CONFIG, READING], ids=["without text", "with text"])
def test_streamed_objective_sees_what_streaming_sees(config: DenoiserConfig) -> None:
    denoiser = Denoiser(config).eval().requires_grad_(False)
    randomise(denoiser, torch.Generator().manual_seed(0))
    clean, given, chunks = clip()
    given = given if config is CONFIG else with_text(given)
    history = clean + 0.1 * torch.randn_like(clean)
    torch.manual_seed(5)
    ones = torch.ones(CONFIG.in_channels)
    _, seen = streamed_loss(denoiser, clean, history, given, chunks, Levels(full_share=1.0), ones)
    assert torch.equal(seen[:, 0], history[:, 0])
    torch.manual_seed(5)
    Levels(full_share=1.0).draw((2, len(chunks.lengths)), clean.device)
    noise = torch.randn_like(clean)
    memory = denoiser.memory(2, GRID, device=clean.device, dtype=torch.float32)
    for index, (begin, end) in enumerate(zip(chunks.starts, chunks.ends, strict=True)):
        grid, part = next_chunk(CONFIG.chunk_latents, (index, index), 1), cut(given, begin, end)
        level = torch.full((2, end - begin), 1000.0)
        x = noise[:, begin:end].clone()
        if index == 0:
            level[:, 0], x[:, 0] = 0, clean[:, 0]
        want = denoiser.predict_clean(x, level, part, grid, memory)
        new = slice(1 if index == 0 else 0, None)
        assert torch.allclose(seen[:, begin:end][:, new], want[:, new], atol=1e-5)
        memory = last_memory(
            denoiser(history[:, begin:end], torch.zeros_like(level), part, grid, memory, collect=True)[1]
        )


def test_only_what_started_from_pure_noise_becomes_history() -> None:
    denoiser = Denoiser(CONFIG).requires_grad_(False)
    randomise(denoiser, torch.Generator().manual_seed(0))
    clean, given, chunks = clip()
    history = clean + 0.1 * torch.randn_like(clean)
    ones = torch.ones(CONFIG.in_channels)
    for noise in (0.0, 0.2):
        _, kept = streamed_loss(denoiser, clean, history, given, chunks, Levels(full_share=0.0), ones, noise)
        assert torch.equal(kept, history)
    _, seen = streamed_loss(denoiser, clean, history, given, chunks, Levels(full_share=1.0), ones)
    assert torch.equal(seen[:, 0], history[:, 0]) and not bool((seen[:, 1:] == history[:, 1:]).any())


def test_gradients_reach_every_used_weight() -> None:
    denoiser = Denoiser(CONFIG)
    randomise(denoiser, torch.Generator().manual_seed(0))
    clean, given, chunks = clip()
    loss, _ = streamed_loss(denoiser, clean, clean, given, chunks, Levels(), torch.ones(CONFIG.in_channels))
    loss.backward()
    silent = {name for name, p in denoiser.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)}
    unused = (
        "raymap_embedder",
        "blocks.1.attn.beta_proj",
        "blocks.1.attn.gate_proj",
        "blocks.1.attn.A_log",
        "blocks.1.attn.dt_bias",
    )
    assert {name for name in silent if not name.startswith(unused)} == set()


def test_levels_of_a_few_are_drawn_alone() -> None:
    drawn = AmongLevels((1000, 600)).draw((400,), torch.device("cpu"))
    assert set(drawn.tolist()) == {1000.0, 600.0} and 150 < int((drawn == 600).sum()) < 250


def test_a_fresh_model_learns_to_copy_a_still_clip() -> None:
    denoiser = initialise(Denoiser(CONFIG))
    clean, given, chunks = clip()
    clean = clean[:, :1].expand_as(clean).contiguous()
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, _ = streamed_loss(denoiser, clean, clean, given, chunks, Levels(), torch.ones(CONFIG.in_channels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_mixture_is_ordered_and_leaves_the_last_chunk_noisy() -> None:
    level = chunk_mixture(4000, 6, torch.device("cpu"), Levels(full_share=0.0, shift=1.0))
    assert bool((level.diff(dim=1) >= 0).all()) and float(level.min()) == 0 and float(level.max()) <= 1000
    assert bool((level[:, -1] > 0).all())
    same = (level == level[:, :1]).all(dim=1).float().mean()
    assert 0.12 < float(same) < 0.19
    clean_prefix = (level[:, 0] == 0).float().mean()
    assert 0.32 < float(clean_prefix) < 0.38


def test_mixture_starts_where_sampling_does_as_often_as_asked() -> None:
    level = chunk_mixture(4000, 6, torch.device("cpu"), Levels(full_share=0.5))
    assert 0.45 < float((level[:, -1] == 1000).float().mean()) < 0.65


def test_mixture_loss_counts_noisy_frames_alone() -> None:
    denoiser = Denoiser(CONFIG)
    randomise(denoiser, torch.Generator().manual_seed(0))
    clean, given, chunks = clip()
    loss = mixture_loss(denoiser, clean, clean, given, chunks, Levels(), torch.ones(CONFIG.in_channels))
    assert bool(torch.isfinite(loss)) and loss.requires_grad
    # By hand: one noisy chunk of four, the error of its velocity; the first frame counts at no level.
    level = of_frames(torch.tensor([[0.0, 0, 400, 0], [900.0, 0, 0, 0]]), chunks)
    assert level[0].tolist() == [0, 0, 0, 0, 0, 400, 400, 0, 0] and level[1].tolist() == [0, 900, 900, *[0] * 6]
    noisy = noised(clean, level)
    ones = torch.ones(CONFIG.in_channels)
    with torch.no_grad():
        loss = clip_loss(denoiser, clean, level, given, chunks, ones, velocity, noisy)
        seen = denoiser.predict_clean(noisy, level, given, chunks, blank_memory(denoiser, clean))
    error = (seen - clean).square()
    want = 0.5 * (error[0, 5:7].mean() / 0.4**2 + error[1, 1:3].mean() / 0.9**2)
    torch.testing.assert_close(loss, want)


def test_what_the_mixture_knows_already_is_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = Denoiser(CONFIG).requires_grad_(False)
    randomise(denoiser, torch.Generator().manual_seed(0))
    clean, given, chunks = clip()
    history = torch.cat([clean[:, :1], clean[:, 1:] + 1], dim=1)
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain = denoiser.predict_clean
    monkeypatch.setattr(
        denoiser, "predict_clean", lambda x, level, *rest: asked.append((x, level)) or plain(x, level, *rest)
    )
    behind = Levels(shares=(0.0, 0.0, 0.0, 1.0))
    for _ in range(8):
        mixture_loss(denoiser, clean, history, given, chunks, behind, torch.ones(CONFIG.in_channels))
    for x, level in asked:
        known = level == 0
        assert bool(known[:, 1:].any()) and not bool(known.all(1).any())
        assert torch.equal(x[known], history[known]) and not bool((x == history).flatten(2).all(2)[~known].any())
    # Roughened as the streamed objective's, but for the first frame.
    mixture_loss(denoiser, clean, history, given, chunks, behind, torch.ones(CONFIG.in_channels), 0.2)
    x, level = asked[-1]
    assert torch.equal(x[:, 0], clean[:, 0]) and not torch.equal(x[level == 0], history[level == 0])


def test_the_velocity_s_error_is_that_of_the_velocity() -> None:
    clean, level = torch.randn(2, 3, 4, 2, 2), torch.tensor([[0.0, 500, 1000], [0.0, 250, 250]])
    noise, ones = torch.randn_like(clean), torch.ones(4)
    sigma = (level / 1000)[..., None, None, None]
    x, seen = (1 - sigma) * clean + sigma * noise, torch.randn_like(clean)
    want = ((x - seen) / sigma - (noise - clean)).square().mean(2)[:, 1:]
    torch.testing.assert_close(velocity(seen, clean, level, ones)[:, 1:], want, rtol=1e-4, atol=1e-4)


def test_the_papers_shares_are_an_option() -> None:
    level = chunk_mixture(4000, 6, torch.device("cpu"), Levels(full_share=0.0, shares=(0.1, 0.4, 0.4, 0.1)))
    assert 0.08 < float((level[:, 0] == 0).float().mean()) < 0.12
    with pytest.raises(ConfigError, match="not all 0"):
        Levels(shares=(0.0, 0.0, 0.0, 0.0))
