"""Offloaded worlds: the same frames bit for bit, each weight on the device only while it computes, on any way to load.

Where there is no GPU, the device is the CPU itself: a weight "on the device" is then a copy of the one at home.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tests.public_layouts import SIZE, write_release
from tests.sanawm_env.test_refined_worlds import path, pictures, refined, roll, start, text
from torch import nn

from sanawm_env import bundle, placement
from sanawm_env.clips import generate
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ConfigError
from sanawm_env.model import causal_video
from sanawm_env.model.config import tiny_config
from sanawm_env.model.offload import Offload, Residence, device_of, offload_part, on_device, resident_bytes
from sanawm_env.state import StepOutput
from sanawm_env.world import WorldModel, initial, step

CPU = torch.device("cpu")
MODES = pytest.mark.parametrize("mode", ["parts", "blocks"])


def parts_of(model: WorldModel) -> dict[str, nn.Module]:
    assert model.refiner is not None
    return {"denoiser": model.denoiser, "autoencoder": model.autoencoder, "refiner": model.refiner}


def offloaded(mode: Offload, device: torch.device = CPU, **changes: Any) -> WorldModel:
    model = refined(**changes)
    for part in parts_of(model).values():
        offload_part(part, mode, device)
    return model


def assert_same(one: list[StepOutput], other: list[StepOutput]) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.latents, b.latents) and torch.equal(a.refined, b.refined)
        assert torch.equal(a.frames, b.frames)


@MODES
def test_worlds_are_the_same_bit_for_bit(mode: Offload) -> None:
    ends = [roll(model, start(model), range(3)) for model in (refined(), offloaded(mode))]
    assert_same(ends[0][1], ends[1][1])
    kept = ends[0][0].tensors()
    assert all(torch.equal(x, kept[name]) for name, x in ends[1][0].tensors().items())


@MODES
@pytest.mark.parametrize("variant", ["teacher", "bidirectional"])
def test_clips_are_the_same_bit_for_bit(mode: Offload, variant: str) -> None:
    tiny = tiny_config()
    shape = dataclasses.replace(tiny.denoiser, window_chunks=None, sink_span=None)
    changes = {"denoiser": shape, "schedule": dataclasses.replace(tiny.schedule, steps=2, guidance=1.0)}
    poses = torch.cat([torch.eye(4, dtype=torch.float64)[None, None], path(1, 0), path(1, 1)], dim=1)
    clips = [
        generate(model, pictures(1), poses, seeds=[3], text=text(1))
        for model in (refined(variant, **changes), offloaded(mode, variant=variant, **changes))
    ]
    assert_same(clips[:1], clips[1:])


class Watch:
    """Which units of an offloaded model have their weights on the device, seen from inside its layers."""

    def __init__(self, model: WorldModel, mode: Offload, patch: pytest.MonkeyPatch) -> None:
        self.homes: dict[str, tuple[nn.Module, dict[int, int]]] = {}
        self.seen: dict[str, set[frozenset[str]]] = {}
        for name, part in parts_of(model).items():
            blocks = getattr(part, "blocks", ()) if mode == "blocks" else ()
            units = {f"{name}.{k}": block for k, block in enumerate(blocks)}
            inner = {id(x) for block in units.values() for x in block.parameters()}
            for unit, module in {**units, name: part}.items():
                own = [x for x in module.parameters() if module is not part or id(x) not in inner]
                self.homes[unit] = (module, {id(x): x.data_ptr() for x in own})
                for layer in module.modules():
                    if not list(layer.children()) and any(id(x) in self.homes[unit][1] for x in layer.parameters()):
                        layer.register_forward_pre_hook(lambda *_, unit=unit: self.look(unit))
        # The autoencoder's layers are never called: their weights are read.
        convolve = causal_video._convolve
        patch.setattr(causal_video, "_convolve", lambda *given: self.look("autoencoder") or convolve(*given))

    @property
    def resident(self) -> frozenset[str]:
        """Units whose weights are on the device; each unit moves as a whole."""
        moved = {}
        for unit, (module, homes) in self.homes.items():
            away = {x.data_ptr() != homes[id(x)] for x in module.parameters() if id(x) in homes}
            assert len(away) == 1
            moved[unit] = away.pop()
        return frozenset(unit for unit, away in moved.items() if away)

    def look(self, unit: str) -> None:
        self.seen.setdefault(unit, set()).add(self.resident)


@MODES
def test_weights_are_on_the_device_only_while_they_compute(mode: Offload, monkeypatch: pytest.MonkeyPatch) -> None:
    model = offloaded(mode)
    watch = Watch(model, mode, monkeypatch)
    roll(model, start(model), range(2))
    assert watch.resident == frozenset()
    assert watch.seen.keys() == watch.homes.keys()
    for unit, together in watch.seen.items():
        assert together == {frozenset({unit, unit.split(".")[0]})}
    assert len(watch.homes) == (3 if mode == "parts" else 3 + len(model.denoiser.blocks) + len(model.refiner.blocks))


def test_parts_are_moved_once_a_chunk_and_blocks_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []
    enter = Residence.__enter__

    def counted(residence: Residence) -> None:
        moves.extend([len(residence._weights)] * (residence._depth == 0))
        enter(residence)

    for mode, count in (("parts", 3), ("blocks", None)):
        model = offloaded(mode)
        state = start(model, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Residence, "__enter__", counted)
            moves.clear()
            step(model, state, path(1, 0))
        steps, sigmas = len(model.config.timesteps), len(model.refiner.config.sigmas) - 1
        passes = (steps + 1) * len(model.denoiser.blocks) + (sigmas + 1) * len(model.refiner.blocks)
        assert len(moves) == (count or 3 + passes)


def test_threads_may_share_a_model() -> None:
    model = offloaded("blocks")
    seeds = range(4)

    def dream(seed: int) -> StepOutput:
        state = initial(model, pictures(1), seeds=[seed], text=text(1))[0]
        return step(model, state, path(1, 0))[1]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(dream, seeds))
    assert_same(together, [dream(seed) for seed in seeds])


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> WorldModel:
    """An offloaded model whose second refiner block fails."""
    model = offloaded("blocks")
    monkeypatch.setattr(model.refiner.blocks[1].ff.net[2], "forward", lambda *_: 1 / 0)
    return model


def test_after_an_error_nothing_stays_on_the_device(broken: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(broken, "blocks", monkeypatch)
    with pytest.raises(ZeroDivisionError):
        start(broken)
    assert watch.seen["refiner.1"] and watch.resident == frozenset()


def test_a_move_that_fails_midway_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 2)
    homes = [x.data_ptr() for x in layer.parameters()]
    offload_part(layer, "parts", CPU)
    copy = torch.Tensor.to

    def to(x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        if x.ndim == 1:
            raise torch.OutOfMemoryError("the device is full")
        return copy(x, *given, **named)

    monkeypatch.setattr(torch.Tensor, "to", to)
    with pytest.raises(torch.OutOfMemoryError), on_device(layer):
        pass
    assert [x.data_ptr() for x in layer.parameters()] == homes
    monkeypatch.undo()
    with on_device(layer):
        assert not {x.data_ptr() for x in layer.parameters()} & {*homes}


@MODES
def test_device_is_where_worlds_compute(mode: Offload) -> None:
    device = torch.device("meta")
    model = offloaded(mode, device)
    assert model.device == device and all(device_of(part) == device for part in parts_of(model).values())
    assert model.dtype == torch.float32
    assert {x.device for part in parts_of(model).values() for x in part.state_dict().values()} == {CPU}
    state = model.empty_state(1)
    on_host = {"chunk", "seed", "horizon", "origin", "pose", "intrinsics", "units", "refiner.position"}
    assert {name for name, x in state.tensors().items() if x.device == CPU} == on_host
    assert model.autoencoder.initial_cache(1, 2, 2)["started"].device == device


def test_resident_bytes_are_those_of_what_is_on_the_device_at_once() -> None:
    part = nn.Module()
    part.blocks = nn.ModuleList([nn.Linear(2, 3, bias=False), nn.Linear(2, 5, bias=False)])
    part.rest = nn.Linear(2, 7, bias=False)
    assert resident_bytes(part, "parts") == 4 * (6 + 10 + 14)
    assert resident_bytes(part, "blocks") == 4 * (10 + 14)
    assert resident_bytes(part.rest, "blocks") == 4 * 14


def test_unknown_modes_are_refused_and_on_a_cpu_nothing_is_moved() -> None:
    assert bundle.load("rooms", device="cpu", offload="blocks") is bundle.load("rooms", device="cpu")
    assert placement.find_offload("blocks", torch.device("cuda")) == "blocks"
    for wrong in ("cpu", "block", True):
        with pytest.raises(ConfigError, match=r"offload is .*, allowed is None .*'parts' or 'blocks'"):
            bundle.load("rooms", device="cpu", offload=wrong)
    with pytest.raises(ConfigError, match="offload is 'all'"):
        gymnasium.make("sanawm_env/Rooms-v0", device="cpu", offload="all")
    model = bundle.load("rooms", device="cpu")
    with pytest.raises(ConfigError, match="the model is loaded already"):
        SanaWMEnv(model, offload="parts")


def made(release: Path, cache: Path, **options: Any) -> list[np.ndarray]:
    """Frames of two steps of the environment of a release."""
    env = gymnasium.make(
        "sanawm_env/SanaWM-v0",
        source=str(release),
        text_encoder=release / "gemma2",
        prompt_cache=cache,
        size=SIZE,
        image=np.full((*SIZE, 3), 99, dtype=np.uint8),
        prompt="a kitchen",
        refiner=True,
        **{"precision": "fp32", **options},
    )
    env.reset(seed=3)
    return [env.step([0.4, 0.1])[4]["frames"] for _ in range(2)]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release"))


@MODES
def test_one_line_makes_an_offloaded_environment(
    release: Path, tmp_path: Path, mode: Offload, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, units = made(release, tmp_path, device="cpu"), []
    # As if the CPU were a small card.
    for module in ("placement", "sana_wm"):
        monkeypatch.setattr(f"sanawm_env.{module}.find_offload", lambda offload, device: offload)
    enter = Residence.__enter__
    monkeypatch.setattr(Residence, "__enter__", lambda unit: units.append(unit) or enter(unit))
    shown = made(release, tmp_path, device="cpu", offload=mode)
    assert all(np.array_equal(a, b) for a, b in zip(plain, shown, strict=True))
    assert len(set(units)) == (3 if mode == "parts" else 3 + 4 + 2)


@pytest.mark.gpu
@MODES
def test_on_a_gpu_worlds_are_the_same_and_idle_weights_take_no_memory(
    release: Path, tmp_path: Path, mode: Offload
) -> None:
    """Needs a GPU for what the twins above cannot show: pinned memory, copies to another device, that one's memory."""
    shown = [made(release, tmp_path, device="cuda", **options) for options in ({}, {"offload": mode})]
    assert all(np.array_equal(a, b) for a, b in zip(*shown, strict=True))
    held = torch.cuda.memory_allocated()
    model = bundle.load("rooms", device="cuda", offload=mode)
    assert torch.cuda.memory_allocated() == held
    weights = model.denoiser.state_dict().values()
    assert model.device.type == "cuda" and all(x.device == CPU and x.is_pinned() for x in weights)
    worlds = [bundle.load("rooms", device="cuda"), model]
    size = (1, model.config.height, model.config.width, 3)
    still = torch.eye(4, dtype=torch.float64).expand(1, model.config.frames_per_chunk, 4, 4)
    frames = [step(world, initial(world, np.zeros(size, np.uint8), seeds=[0])[0], still)[1].frames for world in worlds]
    assert torch.equal(*frames)
