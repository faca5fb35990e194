"""The state contract: fixed shapes, batch = singles, fork, select, write, save and load, spent states, tiers."""

from pathlib import Path

import pytest
import torch

from sanawm_env.errors import PoseError, SceneError, SpentStateError, StateError, StorageError
from sanawm_env.model.config import tiny_config
from sanawm_env.state import StepOutput, WorldState
from sanawm_env.world import WorldModel, initial, step

FRAMES = 8


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.random(tiny_config())


def pictures(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def poses(batch: int, chunk: int) -> torch.Tensor:
    """World b drives an arc of its own; row k of chunk c is frame 8 c + k + 1."""
    frame = torch.arange(1, FRAMES + 1, dtype=torch.float64) + FRAMES * chunk
    turn = 0.02 * frame * torch.arange(1, batch + 1, dtype=torch.float64)[:, None]
    path = torch.eye(4, dtype=torch.float64).repeat(batch, FRAMES, 1, 1)
    path[..., 0, 0] = path[..., 2, 2] = turn.cos()
    path[..., 0, 2], path[..., 2, 0] = turn.sin(), -turn.sin()
    path[..., 2, 3] = 0.01 * frame
    return path


def roll(
    model: WorldModel, state: WorldState, chunks: range, rows: slice = slice(None), batch: int = 3
) -> tuple[WorldState, list[StepOutput]]:
    outputs = []
    for chunk in chunks:
        state, output = step(model, state, poses(batch, chunk)[rows])
        outputs.append(output)
    return state, outputs


def start(model: WorldModel, batch: int = 3) -> WorldState:
    return initial(model, pictures(batch), seeds=range(batch))[0]


def frames_of(outputs: list[StepOutput]) -> torch.Tensor:
    return torch.cat([output.frames for output in outputs if output.frames is not None], dim=1)


def equal_states(a: WorldState, b: WorldState) -> bool:
    return all(torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items())


def test_every_step_gives_whole_chunks_and_fixed_shapes(model: WorldModel) -> None:
    state, first = initial(model, pictures(2), seeds=[5, 6])
    assert first.frames.shape == (2, 1, 32, 40, 3) and first.frames.dtype == torch.uint8
    shapes = {name: (x.shape, x.dtype) for name, x in state.tensors().items()}
    for chunk in range(4):
        state, output = step(model, state, poses(2, chunk))
        assert output.frames.shape == (2, FRAMES, 32, 40, 3)
        assert {name: (x.shape, x.dtype) for name, x in state.tensors().items()} == shapes
    assert state.chunk.tolist() == [4, 4] and state.frame.tolist() == [32, 32]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_world_alone_equals_the_same_world_in_a_batch(model: WorldModel, threads: int) -> None:
    torch.set_num_threads(threads)
    _, together = roll(model, start(model), range(3))
    for row in range(3):
        alone = initial(model, pictures(3)[row : row + 1], seeds=[row])[0]
        _, single = roll(model, alone, range(3), slice(row, row + 1))
        assert torch.equal(frames_of(together)[row], frames_of(single)[0])
        assert torch.equal(together[-1].latents[row], single[-1].latents[0])


def test_fork_then_same_actions_gives_the_same_frames(model: WorldModel) -> None:
    state, _ = roll(model, start(model, 1), range(2), batch=1)
    forked = state.fork(3)
    _, original = step(model, state, poses(1, 2))
    _, copies = step(model, forked, poses(1, 2).expand(3, -1, -1, -1))
    assert all(torch.equal(copies.frames[row], original.frames[0]) for row in range(3))


def test_worlds_of_different_ages_share_a_batch(model: WorldModel) -> None:
    old, _ = roll(model, start(model), range(2))
    young = initial(model, pictures(3)[1:2], seeds=[1])[0]
    mixed = old.write([1], young)
    assert mixed.chunk.tolist() == [2, 0, 2]
    path = torch.stack([poses(3, 2)[0], poses(3, 0)[1], poses(3, 2)[2]])
    _, output = step(model, mixed, path)
    _, old_alone = step(model, old, poses(3, 2))
    _, young_alone = step(model, young, poses(3, 0)[1:2])
    assert torch.equal(output.frames[[0, 2]], old_alone.frames[[0, 2]])
    assert torch.equal(output.frames[1], young_alone.frames[0])


def test_save_and_load_continue_bit_for_bit(model: WorldModel, tmp_path: Path) -> None:
    state, _ = roll(model, start(model), range(2))
    state.save(tmp_path / "world.safetensors")
    loaded = WorldState.load(tmp_path / "world.safetensors", model)
    assert equal_states(state, loaded)
    assert torch.equal(step(model, loaded, poses(3, 2))[1].frames, step(model, state, poses(3, 2))[1].frames)
    assert [p.name for p in tmp_path.iterdir()] == ["world.safetensors"]


def test_damaged_or_foreign_state_files_are_refused(model: WorldModel, tmp_path: Path) -> None:
    path = tmp_path / "world.safetensors"
    start(model).save(path)
    other = WorldModel(model.config, model.denoiser, model.autoencoder, fingerprint="f" * 64)
    with pytest.raises(StateError, match="was saved by bundle"):
        WorldState.load(path, other)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match="not a readable world state"):
        WorldState.load(path, model)


def test_a_spent_state_says_both_remedies(model: WorldModel) -> None:
    state = start(model, 1)
    step(model, state, poses(1, 0))
    with pytest.raises(SpentStateError, match=r"use the state that step returned.*clone\(\)"):
        step(model, state, poses(1, 1))
    with pytest.raises(SpentStateError):
        state.fork(2)


def test_a_failed_step_leaves_the_state_usable(model: WorldModel) -> None:
    state = start(model, 1)
    bent = poses(1, 0)
    bent[0, 3, :3, :3] *= 1.1
    with pytest.raises(PoseError, match="not rigid"):
        step(model, state, bent)
    assert step(model, state, poses(1, 0))[1].frames is not None


def test_interrupt_within_a_step_leaves_the_last_committed_state(
    model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _ = roll(model, start(model, 1), range(1), batch=1)
    before = state.clone()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model.autoencoder, "decode", interrupted)
        step(model, state, poses(1, 1))
    assert equal_states(state, before)


def test_plan_tier_gives_the_same_latents_without_frames(model: WorldModel) -> None:
    state, _ = roll(model, start(model, 1), range(1), batch=1)
    plan = state.plan()
    dreamt, output = step(model, plan, poses(1, 1), decode=False)
    assert output.frames is None and dreamt.tier == "plan" and dreamt.nbytes()["decoder"] == 0
    assert torch.equal(output.latents, step(model, state, poses(1, 1))[1].latents)
    with pytest.raises(StateError, match='tier "plan"'):
        step(model, dreamt, poses(1, 2))


def test_frames_depend_on_the_seed_only_through_noise(model: WorldModel) -> None:
    draws = [initial(model, pictures(1), seeds=[seed])[0] for seed in (3, 3, 4)]
    a, b, c = (step(model, state, poses(1, 0))[1].latents for state in draws)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_common_motion_of_the_callers_world_changes_nothing(model: WorldModel) -> None:
    shift = poses(1, 5)[0, 4]
    moved = initial(model, pictures(1), seeds=[0], poses=shift[None])[0]
    want = step(model, start(model, 1), poses(1, 0))[1].latents
    got = step(model, moved, shift @ poses(1, 0))[1].latents
    assert torch.allclose(got, want, atol=1e-4)


def test_wrong_pictures_and_shapes_are_named(model: WorldModel) -> None:
    with pytest.raises(SceneError, match=r"allowed is uint8 \[B, 32, 40, 3\]"):
        initial(model, torch.zeros(1, 32, 40, 4, dtype=torch.uint8), seeds=[0])
    with pytest.raises(SceneError, match="float32"):
        initial(model, torch.zeros(1, 32, 40, 3), seeds=[0])
    with pytest.raises(StateError, match=r"poses has shape .* expected \(1, 8, 4, 4\)"):
        step(model, start(model, 1), poses(1, 0)[:, :4])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"seeds": [0.5]}, StateError, "whole numbers"),
        ({"seeds": [2**70]}, StateError, "whole numbers"),
        ({"intrinsics": torch.zeros(1, 4)}, PoseError, "fx, fy > 0"),
        ({"horizon": 0}, StateError, "horizon is 0"),
    ],
)
def test_wrong_starts_are_named(
    model: WorldModel, change: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        initial(model, pictures(1), **({"seeds": [0]} | change))


def test_pictures_and_noise_of_another_kind_are_named(model: WorldModel) -> None:
    with pytest.raises(SceneError, match="allowed is an array"):
        initial(model, "first.png", seeds=[0])
    with pytest.raises(StateError, match="noise has shape"):
        step(model, start(model, 1), poses(1, 0), noise=torch.zeros(1, 2, 8, 4, 4))


def test_chunks_far_past_the_window_take_the_memory_of_three(model: WorldModel) -> None:
    """A thousand take no more: test_env.py, which also looks at the process."""
    state = start(model, 1)
    state, _ = roll(model, state, range(3), batch=1)
    size = state.nbytes()
    for chunk in range(3, 100):
        state, output = step(model, state, poses(1, chunk % 40))
    assert state.nbytes() == size and state.chunk.tolist() == [100]
    assert torch.isfinite(output.latents).all()
