from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rerun.chunk import RrdReader

from sanawm_env import cli
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ConfigError
from sanawm_env.view import View, load, run
from sanawm_env.world import WorldModel
from sanawm_env.wrappers.episodes import StoreEpisodes


@pytest.fixture(scope="module")
def stores(tiny_model: WorldModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.zarr: two episodes with their truth; b.zarr: two without, of other noise."""
    folder = tmp_path_factory.mktemp("stores")
    for name, truth, seed in (("a", True, 1), ("b", False, 7)):
        env = StoreEpisodes(SanaWMEnv(tiny_model, task="drive", horizon=20), folder / f"{name}.zarr", truth=truth)
        for episode in range(2):
            env.reset(seed=seed + episode, options={"scene": 3})
            for _ in range(3 - episode):
                env.step([0.2, 0.1])
        env.close()
    return folder


def test_an_episode_beside_its_truth(stores: Path, tmp_path: Path) -> None:
    config = View(store=stores / "a.zarr", episode=0, save=tmp_path / "a.rrd")
    tracks = load(config).tracks
    assert list(tracks) == ["dream", "truth"] and len(tracks["dream"]) == len(tracks["truth"]) == 21
    assert tracks["dream"].depth is not None and tracks["dream"].events[0].text == "ended: horizon"
    assert np.isfinite(tracks["dream"].plots["agreement"]["PSNR (dB)"]).all()
    assert "dream | truth" in run(config)
    entities = {chunk.entity_path for chunk in RrdReader(config.save or "").stream().to_chunks()}
    assert {"/world/dream/camera/image", "/world/dream/camera/depth", "/world/truth/camera/image", "/notes"} <= entities


def test_two_episodes_run_on_one_time_line(stores: Path) -> None:
    finished = load(View(store=stores / "a.zarr", compare=stores / "b.zarr"))
    assert list(finished.tracks) == ["a", "b"] and "| seed | 1 | 7 |" in finished.text
    same = load(View(store=stores / "a.zarr", compare=stores / "a.zarr", compare_episode=1))
    assert list(same.tracks) == ["a 0", "a 1"]
    psnr = same.tracks["a 0"].plots["agreement"]["PSNR (dB)"]
    assert len(psnr) == 21 and np.isfinite(psnr[:17]).all() and np.isnan(psnr[17:]).all(), "one is shorter"


def test_refusals(stores: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"has no episode 2, allowed are 0 \.\. 1"):
        load(View(store=stores / "a.zarr", episode=2))
    with pytest.raises(ConfigError, match="without compare"):
        View(store=stores / "a.zarr", compare_episode=1)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["view", str(stores / "a.zarr"), "--episode", "1"]) == 2
    assert "no screen here" in capsys.readouterr().err


def test_the_command_writes_a_file(stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["view", str(stores / "b.zarr"), "--episode", "1", "--save", str(tmp_path / "b.rrd")]
    assert cli.main(words) == 0
    assert f"rerun {tmp_path / 'b.rrd'}" in capsys.readouterr().out
    assert len(RrdReader(tmp_path / "b.rrd").recordings()) == 1
