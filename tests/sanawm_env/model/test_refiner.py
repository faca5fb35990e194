"""The refiner against diffusers' own pipeline, its window frame by frame, and its state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers import transformer_sana_wm_refiner as oracle
from tests.refiner_parts import CAPTION, CHANNELS, GRID, WORDS, build, clips, prompts
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sanawm_env.kernels.philox import normal
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig, RefinerState

# Diffusers computes angles of up to theta radians in single precision, we in double: with the released theta the angles
# of one minute differ by up to 4e-3 at the fastest lanes, which bounds the agreement. A small theta shows the rest.
SLOW = {"rope_theta": 50.0}
OTHER = {
    "rope_type": "interleaved",
    "rope_double_precision": False,
    "causal_offset": 0,
    "gated_attn": True,
    "perturbed_attn": True,
}
CASES = [
    pytest.param({}, 1e-4, id="split"),
    pytest.param({"rope_type": "interleaved"}, 1e-4, id="interleaved"),
    pytest.param(SLOW, 5e-6, id="split-slow"),
    pytest.param(OTHER | SLOW, 5e-6, id="other-slow"),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(1)


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return build()


def stream(
    refiner: Refiner, latents: Tensor, noise: Tensor, text: Tensor, mask: Tensor
) -> Iterator[tuple[Tensor, RefinerState]]:
    """Refined block and state after it, for each block of latents [B, sink + 3k, C, h, w]."""
    sink = refiner.config.sink
    state = refiner.open(refiner.empty_state(len(latents), GRID), latents[:, :sink], text, mask)
    for block, eps in zip(latents[:, sink:].split(3, dim=1), noise.split(3, dim=1), strict=True):
        refined, state = refiner.refine(state, block, eps, text, mask)
        yield refined, state


def joined(*states: RefinerState) -> RefinerState:
    flat = [state.tensors() for state in states]
    return states[0].map(lambda name, _: torch.cat([tensors[name] for tensors in flat]))


def refined_by_diffusers(
    refiner: Refiner, latents: Tensor, text: Tensor, mask: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """What diffusers' pipeline makes of latents [B, sink + k * block, C, h, w], all of them, and the noise it draws."""
    pytest.importorskip("transformers", reason="diffusers' refiner pipeline imports it; it is an extra")
    from diffusers.pipelines.sana_wm.refiner import SanaWMLTX2Refiner

    class FromConnectors(SanaWMLTX2Refiner):
        """The pipeline behind its text encoder."""

        def _encode_prompt(self, prompt: str, **_: Any) -> tuple[Tensor, Tensor]:
            return text, mask

    pipeline = FromConnectors(
        transformer=refiner.transformer,
        connectors=None,
        tokenizer=None,
        text_encoder=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    config = refiner.config
    refined = pipeline(
        latents.transpose(1, 2),
        "",
        fps=config.fps,
        sink_size=config.sink,
        block_size=block,
        kv_max_frames=config.kv_max_frames,
        sigmas=config.sigmas,
        generator=torch.Generator().manual_seed(42),
        output_type="latent",
    )
    generator = torch.Generator().manual_seed(42)
    batch, frames = latents.shape[:2]
    draws = [
        torch.randn(batch, CHANNELS, block, *GRID, generator=generator) for _ in range((frames - config.sink) // block)
    ]
    return refined.transpose(1, 2), torch.cat(draws, dim=2).transpose(1, 2)


@pytest.mark.parametrize("changes, tolerance", CASES)
def test_streaming_equals_diffusers(changes: dict[str, Any], tolerance: float) -> None:
    refiner, latents, (text, mask) = build(**changes), clips(25), prompts()
    expected, noise = refined_by_diffusers(refiner, latents, text, mask, block=3)
    refined = torch.cat([block for block, _ in stream(refiner, latents, noise, text, mask)], dim=1)
    torch.testing.assert_close(refined, expected[:, 1:], atol=tolerance, rtol=0)
    assert torch.equal(expected[:, 0], latents[:, 0])


def test_other_window_steps_and_frame_rate_equal_diffusers() -> None:
    config = RefinerConfig(sink=2, kv_max_frames=6, fps=24.0, sigmas=(0.8, 0.3, 0.0))
    refiner, latents, (text, mask) = build(config, **SLOW), clips(20), prompts()
    expected, noise = refined_by_diffusers(refiner, latents, text, mask, block=3)
    refined = torch.cat([block for block, _ in stream(refiner, latents, noise, text, mask)], dim=1)
    torch.testing.assert_close(refined, expected[:, 2:], atol=5e-6, rtol=0)


@pytest.mark.parametrize("changes, tolerance", CASES)
def test_dense_equals_one_long_block_of_diffusers(changes: dict[str, Any], tolerance: float) -> None:
    refiner, latents, (text, mask) = build(**changes), clips(12), prompts()
    expected, noise = refined_by_diffusers(refiner, latents, text, mask, block=11)
    torch.testing.assert_close(refiner.refine_clip(latents, noise, text, mask), expected, atol=tolerance, rtol=0)


class TwoWayMask:
    """Self-attention of diffusers' transformer over all tokens at once, where `visible` [L, L] allows it."""

    def __init__(self, visible: Tensor) -> None:
        self.visible = visible

    def __call__(
        self, attn: Any, x: Tensor, _text: None, _mask: None, query_rotary_emb: tuple[Tensor, Tensor], *_: Any
    ) -> Tensor:
        q, k = (
            oracle.apply_split_rotary_emb(y, query_rotary_emb)
            for y in (attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)))
        )
        q, k, v = (y.unflatten(2, (attn.heads, -1)).transpose(1, 2) for y in (q, k, attn.to_v(x)))
        seen = scaled_dot_product_attention(q, k, v, attn_mask=self.visible)
        return attn.to_out[0](seen.transpose(1, 2).flatten(2))


def test_dense_equals_all_tokens_under_a_two_way_mask() -> None:
    refiner, latents, noise, (text, mask) = build(**SLOW), clips(7), clips(6), prompts()
    net, tokens, sigmas = copy.deepcopy(refiner.transformer), GRID[0] * GRID[1], refiner.config.sigmas
    visible = torch.ones(7 * tokens, 7 * tokens, dtype=torch.bool)
    visible[:tokens, tokens:] = False
    for block in net.transformer_blocks:
        block.attn1.set_processor(TwoWayMask(visible))
    rope = net.build_rotary_emb_for_absolute_positions(2, list(range(7)), *GRID, torch.device("cpu"), 16.0)
    sink, x = latents[:, :1], (1 - sigmas[0]) * latents[:, 1:] + sigmas[0] * noise
    for sigma, following in pairwise(sigmas):
        level = torch.cat([torch.zeros(2, tokens), torch.full((2, 6 * tokens), sigma)], dim=1)
        everything = torch.cat([sink, x], dim=1).permute(0, 1, 3, 4, 2).flatten(1, 3)
        velocity = net(everything, text, level * 1000, rope, mask, return_dict=False)[0]
        x = x + (following - sigma) * velocity.unflatten(1, (7, *GRID)).permute(0, 1, 4, 2, 3)[:, 1:]
    refined = refiner.refine_clip(latents, noise, text, mask)
    torch.testing.assert_close(refined, torch.cat([sink, x], dim=1), atol=5e-6, rtol=0)


def first_layer_keys(refiner: Refiner, latents: Tensor) -> Tensor:
    """Keys [1, S, inner] before rotation that finished latents [C, h, w] have in the first layer, where they depend on
    nothing else.
    """
    net = refiner.transformer
    block = net.transformer_blocks[0]
    x = net.proj_in(latents.flatten(1).T[None])
    modulation, _ = net.time_embed(torch.zeros(1), batch_size=1, hidden_dtype=x.dtype)
    shift, scale, *_ = (block.scale_shift_table + modulation.view(6, -1)).unbind(0)
    return block.attn1.norm_k(block.attn1.to_k(block.norm1(x) * (1 + scale) + shift))


def rotated_keys(refiner: Refiner, latents: Tensor, frame: int) -> Tensor:
    """The same keys at latent frame `frame` as diffusers rotates them, [S, heads, head_dim]."""
    net, fps = refiner.transformer, refiner.config.fps
    rope = net.build_rotary_emb_for_absolute_positions(1, [frame], *GRID, torch.device("cpu"), fps)
    keys = oracle.apply_split_rotary_emb(first_layer_keys(refiner, latents), rope)
    return keys[0].unflatten(-1, (net.config.num_attention_heads, -1))


def disturbed(change: Tensor, name: str, x: Tensor) -> Tensor:
    return x + change if "history" in name else x


def test_every_block_reads_the_last_ten_refined_frames_and_no_other() -> None:
    refiner, latents, noise, (text, _) = build(**SLOW), clips(25, batch=1), clips(24, batch=1), prompts(1)
    state = refiner.open(refiner.empty_state(1, GRID), latents[:, :1], text, None)
    keys: dict[int, Tensor] = {}
    for start in range(1, 25, 3):
        block, eps = latents[:, start : start + 3], noise[:, start - 1 : start + 2]
        refined, after = refiner.refine(state, block, eps, text, None)
        seen = set()
        for slot in range(10):
            # A slot that must not be read may hold anything.
            change = torch.zeros(10, 1, 1, 1)
            change[slot] = 1.0 if slot < state.filled else torch.nan
            other, _ = refiner.refine(state.map(partial(disturbed, change)), block, eps, text, None)
            if not torch.equal(other, refined):
                held = state.layers[0]["history_k"][0, slot]
                seen |= {frame for frame, key in keys.items() if torch.allclose(held, key, atol=1e-4)}
        assert seen == set(range(max(1, start - 10), start))
        keys |= {start + k: rotated_keys(refiner, refined[0, k], start + k) for k in range(3)}
        state = after
    assert len(keys) == 24


def test_sink_slides_right_before_the_history(refiner: Refiner) -> None:
    state = refiner.empty_state(9, GRID)
    state.position = torch.tensor([1, 4, 7, 10, 13, 16, 19, 22, 100])
    assert state.filled.tolist() == [0, 3, 6, 9, 10, 10, 10, 10, 10]
    assert refiner.sink_positions(state.position)[:, 0].tolist() == [0, 0, 0, 0, 2, 5, 8, 11, 89]


def test_refining_depends_on_distances_in_time_and_has_no_last_position(refiner: Refiner) -> None:
    latents, noise, (text, mask) = clips(4), clips(3), prompts()
    state = refiner.open(refiner.empty_state(2, GRID), latents[:, :1], text, mask)
    # Histories of zeros have no angle, so that the sink and the block alone carry the position.
    near, far = (
        refiner.refine(replace(state, position=torch.full((2,), at)), latents[:, 1:], noise, text, mask)[0]
        for at in (13, 10_000_003)
    )
    torch.testing.assert_close(far, near, atol=1e-5, rtol=0)


def test_sink_is_the_raw_first_latent_and_stays(refiner: Refiner) -> None:
    latents, noise, (text, mask) = clips(13), clips(12), prompts()
    opened = refiner.open(refiner.empty_state(2, GRID), latents[:, :1], text, mask)
    expected = first_layer_keys(refiner, latents[0, 0])
    torch.testing.assert_close(opened.layers[0]["sink_k"][0, 0].flatten(1), expected[0], atol=1e-5, rtol=0)
    *_, (_, last) = stream(refiner, latents, noise, text, mask)
    for layer, kept in zip(opened.layers, last.layers, strict=True):
        assert torch.equal(layer["sink_k"], kept["sink_k"]) and torch.equal(layer["sink_v"], kept["sink_v"])


def test_state_has_one_shape_for_ever(refiner: Refiner) -> None:
    latents, noise, (text, mask) = clips(61), clips(60), prompts()
    empty = refiner.empty_state(2, GRID)
    shapes, size = {name: x.shape for name, x in empty.tensors().items()}, empty.nbytes()
    frame = 2 * GRID[0] * GRID[1] * 32 * 4  # bytes of one frame's keys of two worlds in one layer
    assert size == {"sink": 2 * 2 * frame, "history": 2 * 2 * 10 * frame, "total": 44 * frame + 16}
    for blocks, (refined, state) in enumerate(stream(refiner, latents, noise, text, mask), start=1):
        assert {name: x.shape for name, x in state.tensors().items()} == shapes
        assert state.nbytes() == size
        assert state.position.tolist() == [1 + 3 * blocks] * 2
        assert refined.isfinite().all()
    assert blocks == 20


def test_refine_changes_nothing_that_it_was_given(refiner: Refiner) -> None:
    latents, (text, mask) = clips(19), prompts()
    noise = normal(torch.tensor([3, 4]), torch.zeros(2, dtype=torch.int64), 1, (18, CHANNELS, *GRID))
    *_, (_, state) = stream(refiner, latents[:, :16], noise[:, :15], text, mask)
    given = [latents[:, 16:], noise[:, 15:], text, mask]
    before, inputs = state.clone(), [x.clone() for x in given]
    first, after = refiner.refine(state, *given)
    for name, x in state.tensors().items():
        assert torch.equal(x, before.tensors()[name]), name
    assert all(torch.equal(x, y) for x, y in zip(given, inputs, strict=True))
    again, branch = refiner.refine(before, *given)
    assert torch.equal(first, again)
    for name, x in after.tensors().items():
        assert torch.equal(x, branch.tensors()[name]), name


def test_branches_of_one_state_part_only_by_their_latents(refiner: Refiner) -> None:
    latents, noise, (text, mask) = clips(19), clips(18), prompts()
    blocks = [block for block, _ in stream(refiner, latents, noise, text, mask)]
    *_, (_, kept) = stream(refiner, latents[:, :10], noise[:, :9], text, mask)
    branch = kept.clone()
    other, _ = refiner.refine(kept, latents[:, 10:13] + 1, noise[:, 9:12], text, mask)
    assert not torch.allclose(other, blocks[3], atol=1e-2)
    for index in (3, 4, 5):
        at = 3 * index
        refined, branch = refiner.refine(branch, latents[:, 1 + at : 4 + at], noise[:, at : at + 3], text, mask)
        assert torch.equal(refined, blocks[index])


def test_worlds_of_different_ages_share_a_batch(refiner: Refiner) -> None:
    (text, mask), worlds = prompts(3), []
    for index, blocks in enumerate((5, 1, 5)):
        row = slice(index, index + 1)
        latents, noise = clips(1 + 3 * blocks, batch=1), clips(3 * blocks, batch=1)
        *_, (_, state) = stream(refiner, latents, noise, text[row], mask[row])
        worlds.append(state)
    latents, noise = clips(3, batch=3), clips(3, batch=3)
    together, after = refiner.refine(joined(*worlds), latents, noise, text, mask)
    assert after.position.tolist() == [19, 7, 19]
    assert after.filled.tolist() == [10, 6, 10]
    for index, world in enumerate(worlds):
        row = slice(index, index + 1)
        alone, own = refiner.refine(world, latents[row], noise[row], text[row], mask[row])
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)
        for name, x in own.tensors().items():
            torch.testing.assert_close(after.tensors()[name][row], x, atol=1e-5, rtol=0)


def test_masked_words_are_not_read(refiner: Refiner) -> None:
    latents, noise, (text, _) = clips(7), clips(6), prompts()
    mask = torch.ones(2, WORDS)
    full = refiner.refine_clip(latents, noise, text, None)
    torch.testing.assert_close(refiner.refine_clip(latents, noise, text, mask), full, atol=1e-5, rtol=0)
    longer = torch.cat([text, torch.randn(2, 2, CAPTION)], dim=1)
    assert not torch.allclose(refiner.refine_clip(latents, noise, longer, None), full, atol=1e-2)
    masked = refiner.refine_clip(latents, noise, longer, torch.cat([mask, torch.zeros(2, 2)], dim=1))
    torch.testing.assert_close(masked, full, atol=1e-5, rtol=0)


def test_bf16_weights_keep_their_state_in_bf16_and_the_latents_in_fp32(refiner: Refiner) -> None:
    latents, noise, (text, mask) = clips(13), clips(12), prompts()
    half = copy.deepcopy(refiner).bfloat16()
    expected = torch.cat([block for block, _ in stream(refiner, latents, noise, text, mask)], dim=1)
    blocks, states = zip(*stream(half, latents, noise, text, mask))
    refined = torch.cat(blocks, dim=1)
    assert refined.dtype == torch.float32
    assert {x.dtype for name, x in states[-1].tensors().items() if name != "position"} == {torch.bfloat16}
    assert (refined - expected).square().mean() < 1e-4 * expected.square().mean()
