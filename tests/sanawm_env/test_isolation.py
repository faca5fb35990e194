"""A world alone is the same world in any batch, whatever its neighbours do, and wherever their states wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from sanawm_env import capacity, visits
from sanawm_env.benchmarks.streaming import batch_tolerance, relative_difference
from sanawm_env.capacity import Room
from sanawm_env.errors import ConfigError
from sanawm_env.model.config import tiny_config
from sanawm_env.scene import Scene
from sanawm_env.state import WorldState
from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel

SEEDS = [18, 0, 10**9 + 2, 7]  # the second hits something in its second chunk
ACTIONS = np.array([[1.0, 0.0], [0.9, 0.1], [0.7, -0.2], [-0.3, 0.8]], np.float32)
EARLY = 2  # a world that is begun again by hand
OPTIONS: dict[str, Any] = {"task": "drive", "observation": "dict", "frames": "all", "latents": True, "horizon": 12}


def reading(prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Prompts as a tiny model reads them."""
    hidden = [torch.randn(6, 16, generator=torch.Generator().manual_seed(len(prompt))) for prompt in prompts]
    return {"hidden": torch.stack(hidden), "mask": torch.ones(len(prompts), 6, dtype=torch.bool)}


@pytest.fixture(scope="module")
def text_model() -> WorldModel:
    """What the released model has and Rooms has not: prompts."""
    config = tiny_config()
    reads = replace(config.denoiser, caption_channels=16, caption_length=6, cross_heads=4)
    return WorldModel.random(replace(config, denoiser=reads))


def make(kind: str, worlds: int, tiny: WorldModel, text: WorldModel, **options: Any) -> SanaWMVectorEnv:
    if kind == "truth":
        told = {name: value for name, value in (OPTIONS | options).items() if name not in ("latents", "resident")}
        return RoomsTruthVectorEnv(worlds, tiny, **told)
    if kind == "rooms":
        return SanaWMVectorEnv(worlds, tiny, **OPTIONS, **options)
    picture = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    scene = Scene(image=picture, prompt="a hall")
    return SanaWMVectorEnv(worlds, text, **OPTIONS, **options, scene=scene, prompts=reading)


def drive(env: SanaWMVectorEnv, worlds: list[int], mode: AutoresetMode) -> list[Any]:
    """Everything that an environment of these worlds says; they come to be of different ages."""
    told: list[Any] = [env.reset(seed=[SEEDS[world] for world in worlds])]
    for number in range(3):
        told.append(env.step(ACTIONS[worlds]))
        ended = told[-1][2] | told[-1][3] if mode is AutoresetMode.DISABLED else np.zeros(len(worlds), bool)
        again = ended | ((np.array(worlds) == EARLY) & (number == 0))
        if again.any():
            told.append(env.reset(options={"reset_mask": again}))
        else:
            told.append(None)
    return told


def assert_rows(whole: Any, rows: list[int], part: Any, where: str = "") -> None:
    """Bit for bit, nested as they may be; masks say which rows count."""
    if isinstance(part, dict):
        for key, value in part.items():
            mask = part.get(f"_{key}")
            kept = range(len(rows)) if mask is None else np.flatnonzero(mask)
            if isinstance(value, dict):
                assert_rows(whole[key], rows, value, f"{where}.{key}")
            for row in kept if not isinstance(value, dict) else ():
                assert_row(whole[key][rows[row]], value[row], f"{where}.{key}[{row}]")
    elif isinstance(part, tuple):
        for number, (one, other) in enumerate(zip(whole, part, strict=True)):
            assert_rows(one, rows, other, f"{where}.{number}")
    else:
        for row, value in enumerate(part):
            assert_row(whole[rows[row]], value, f"{where}[{row}]")


def assert_row(one: Any, other: Any, where: str) -> None:
    if isinstance(other, dict):
        for key in other:
            np.testing.assert_array_equal(one[key], other[key], err_msg=f"{where}.{key}")
    else:
        # The only row of a beginning stands for a chunk where others step.
        np.testing.assert_array_equal(one, np.broadcast_to(other, np.shape(one)), err_msg=where)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", ["truth", "rooms", "text"])
def test_a_world_alone_is_the_same_in_any_batch(
    tiny_model: WorldModel, text_model: WorldModel, kind: str, mode: AutoresetMode
) -> None:
    batch = make(kind, 4, tiny_model, text_model, autoreset_mode=mode)
    whole = drive(batch, [0, 1, 2, 3], mode)
    ages = [len(set(one[-1]["frame"].tolist())) for one in whole if one is not None]
    assert max(ages) > 1
    # Where they are more than may be on the device at a time, they come group by group.
    swapped = [] if kind == "truth" else [([0, 1, 2, 3], {"resident": 3})]
    for worlds, options in [([2], {}), ([3, 1], {}), *swapped]:
        env = make(kind, len(worlds), tiny_model, text_model, autoreset_mode=mode, **options)
        for every, some in zip(whole, drive(env, worlds, mode), strict=True):
            # A reset by hand says the same of a world whether or not its neighbours begin as well.
            if some is not None:
                assert_rows(every, worlds, some)


def test_groups_of_no_more_than_resident_are_computed(tiny_model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU in bf16, where worlds of one age share a call."""
    monkeypatch.setattr(type(tiny_model), "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(type(tiny_model), "dtype", property(lambda self: torch.bfloat16))
    kind = torch.tensor([0, 2, 0, 0, 2, 0, 0])
    assert [rows.tolist() for rows in visits.computed_at_once(tiny_model, kind)] == [[0, 2, 3, 5, 6], [1, 4]]
    groups = [rows.tolist() for rows in visits.computed_at_once(tiny_model, kind, 2)]
    assert groups == [[0, 2], [3, 5], [6], [1, 4]]
    runs = [(whole, part) for whole, part in visits._runs(torch.tensor([1, 2, 5, 7, 8, 9]))]
    assert runs == [(slice(1, 3), slice(0, 2)), (slice(5, 6), slice(2, 3)), (slice(7, 10), slice(3, 6))]


@pytest.mark.parametrize(
    ("device", "dtype", "autocast", "alone"),
    [
        ("cuda", torch.float32, False, True),
        ("cuda", torch.float32, True, False),  # as training steps worlds
        ("cuda", torch.bfloat16, False, False),
        ("cpu", torch.float32, True, True),
        ("cpu", torch.bfloat16, False, True),
    ],
)
def test_fp32_worlds_of_a_gpu_are_computed_one_by_one(
    tiny_model: WorldModel,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    autocast: bool,
    alone: bool,
) -> None:
    """No rounding of a library then depends on a world's neighbours."""
    monkeypatch.setattr(type(tiny_model), "device", property(lambda self: torch.device(device)))
    monkeypatch.setattr(type(tiny_model), "dtype", property(lambda self: dtype))
    # A context of autocast does nothing where there is no such device.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: autocast and kind == device)
    for resident in (None, 2):
        rows = [rows.tolist() for rows in visits.computed_at_once(tiny_model, torch.tensor([0, 2, 0]), resident)]
        assert rows == ([[0], [1], [2]] if alone else [[0, 2], [1]])


def test_more_worlds_than_a_device_holds_name_the_remedy(
    tiny_model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def room(device: str, home: str, resident: int | None = None) -> Room:
        places = {"device": torch.device(device), "home": torch.device(home)}
        return Room(what="num_envs", **places, state=100, frames=50, working=lambda n: 30 * n, resident=resident)

    monkeypatch.setattr(capacity, "free_bytes", lambda device: 900 if device.type == "cuda" else 2500)
    with pytest.raises(ConfigError, match=r"each takes 280 bytes .* at most 3\. Run fewer, .* resident=2, which"):
        room("cuda", "cuda").check(10)
    with pytest.raises(ConfigError, match=r"at most 8\. .* after another\.$"):
        room("cpu", "cpu").check(10)
    room("cuda", "cpu", resident=2).check(10)
    with pytest.raises(ConfigError, match=r"num_envs is 11: each takes 250 bytes on 'cpu', .* at most 10\."):
        room("cuda", "cpu", resident=2).check(11)
    with pytest.raises(ConfigError, match=r"resident is 3: each takes 430 bytes on 'cuda', .* at most 2\."):
        room("cuda", "cpu", resident=3).check(10)
    with pytest.raises(ConfigError, match="resident is 0, allowed is a number of worlds >= 1"):
        SanaWMVectorEnv(2, tiny_model, resident=0)
    with pytest.raises(ConfigError, match="resident is 2, but the truth"):
        RoomsTruthVectorEnv(2, tiny_model, resident=2)


def of_one_step(env: SanaWMVectorEnv) -> torch.Tensor:
    env.step(ACTIONS[: env.num_envs])
    latents = env.last_output[1]
    assert latents is not None
    return latents.float().cpu()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("resident", [None, 2])
def test_on_a_gpu_a_step_is_the_same_in_any_batch_to_rounding(precision: Any, resident: int | None) -> None:
    from sanawm_env.bundle import load

    model = load("rooms", device="cuda", precision=precision)
    allowed = batch_tolerance(model)
    assert allowed == {"fp32": 1e-5, "bf16": 1e-3}[precision]
    batch = SanaWMVectorEnv(4, model, **OPTIONS, resident=resident)
    drive(batch, [0, 1, 2, 3], AutoresetMode.DISABLED)
    assert batch.world.device.type == ("cuda" if resident is None else "cpu")
    assert len(set(batch.world.frame.tolist())) > 1
    parts = [batch.select([world]) for world in range(4)]
    whole = of_one_step(batch)
    for world, alone in enumerate(parts):
        alone.step(ACTIONS[world : world + 1])
        latents = alone.last_output[1]
        assert latents is not None
        assert relative_difference(whole[world], latents[0].float().cpu()) <= allowed


@pytest.mark.gpu
def test_states_on_the_host_take_no_room_on_the_device(tiny_model: WorldModel) -> None:
    model = WorldModel.random(tiny_config(), device="cuda")
    worlds, options = 32, {"task": "drive", "frames": "none", "arrays": "torch"}
    # What computing itself takes once, workspaces of products among it, is there before.
    small = SanaWMVectorEnv(4, model, resident=2, **options)
    small.reset(seed=0)
    small.step(np.tile(ACTIONS[:1], (4, 1)))
    del small
    before = torch.cuda.memory_allocated()
    env = SanaWMVectorEnv(worlds, model, resident=2, **options)
    observation, _ = env.reset(seed=0)
    assert observation.is_cuda and observation.shape[0] == worlds
    for _ in range(3):
        env.step(np.tile(ACTIONS[:1], (worlds, 1)))
    state: WorldState = env.world
    assert all(not x.is_cuda for x in state.tensors().values()) and state.first_latent.is_pinned()
    del observation
    assert torch.cuda.memory_allocated() - before < 8 * state.nbytes()["total"] / worlds
