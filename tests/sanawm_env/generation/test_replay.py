from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.sanawm_env.generation.jobs import job

from sanawm_env import cli
from sanawm_env.actions import ActionMap, make_action_map, read_action_map
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import ActionError, BundleError, ConfigError, StorageError
from sanawm_env.generation import generate, replay
from sanawm_env.world import WorldModel


@pytest.fixture(scope="module")
def store(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("job")
    generate(job(out, bundle=str(tiny_bundle), episodes=3))
    return out / "episodes.zarr"


def copied(source: Path, target: Path, *, leave_out: tuple[str, ...] = (), **changes: np.ndarray) -> Path:
    """The store with other arrays in episode 1, through the writer as any other store."""
    store = EpisodeStore(source)
    with EpisodeWriter(target, store.info, durable=False) as writer:
        for index in range(len(store)):
            arrays = store.read(index, valid_only=False) | (changes if index == 1 else {})
            told = store.describe(index)
            kept = {key: values for key, values in arrays.items() if key not in leave_out}
            facts = {"seed": told["seed"], "room": told["room"], "reason": told["reason"]}
            writer.add(kept, **facts, provenance=store.sources[0])
    return target


def test_episodes_made_on_this_machine_are_the_same(store: Path, tiny_bundle: Path) -> None:
    results = replay(store, bundle=tiny_bundle)
    assert [one.text() for one in results] == [f"episode {index}: same" for index in range(3)]
    assert [one.episode for one in replay(store, bundle=tiny_bundle, episodes=[2, 0])] == [2, 0]


def test_one_pixel_is_enough(store: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    digests = EpisodeStore(store).read(1, valid_only=False)["frame_digests"]
    digests[5] += 1
    other = copied(store, tmp_path / "a.zarr", frame_digests=digests)
    results = replay(other, bundle=tiny_bundle)
    assert [(one.difference, one.frame) for one in results] == [("", None), ("1 frames differ", 6), ("", None)]


@pytest.mark.parametrize("codec", ["webp", "av1"])
def test_without_digests_pictures_are_compared_behind_the_codec(codec: str, tiny_bundle: Path, tmp_path: Path) -> None:
    lossless = {"picture_codec": codec, "picture_quality": 0}
    generate(job(tmp_path / "job", bundle=str(tiny_bundle), episodes=2, **lossless))
    made, without = tmp_path / "job/episodes.zarr", ("frame_digests", "start_frame_digests")
    same = replay(copied(made, tmp_path / "a.zarr", leave_out=without), bundle=tiny_bundle)
    assert [one.text() for one in same] == [f"episode {k}: same (compared after the picture codec)" for k in (0, 1)]
    frames = EpisodeStore(made).read(1, valid_only=False)["frames"]
    frames[3, 0, 0, 0] ^= 1
    spoilt = replay(copied(made, tmp_path / "b.zarr", leave_out=without, frames=frames), bundle=tiny_bundle)[1]
    assert (spoilt.difference, spoilt.frame, spoilt.exact) == ("1 frames differ", 4, False)


def test_actions_must_lead_to_the_poses(store: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    actions = EpisodeStore(store).read(1, valid_only=False)["actions"]
    actions[4] = actions[4] - 0.5
    result = replay(copied(store, tmp_path / "a.zarr", actions=actions), bundle=tiny_bundle)[1]
    assert result.difference.startswith("actions lead 0.0") and result.frame is None


def test_the_command_says_what_differs_with_status_1(
    store: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["replay", str(store), "--check", "--bundle", str(tiny_bundle)]) == 0
    assert "3 of 3 episodes are the same, 0 differ" in capsys.readouterr().out
    digests = EpisodeStore(store).read(1, valid_only=False)["frame_digests"] + (np.arange(16) >= 9)
    other = str(copied(store, tmp_path / "a.zarr", frame_digests=digests))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["replay", other, "--check", "--bundle", str(tiny_bundle)])
    assert stopped.value.code == 1
    assert "episode 1: 7 frames differ from frame 10 on" in capsys.readouterr().out
    assert cli.main(["replay", other, "--bundle", str(tiny_bundle), "--episode", "1"]) == 0
    assert cli.main(["replay", other, "--bundle", str(tiny_bundle), "--episode", "3"]) == 2


def test_says_what_it_needs(store: Path, tiny_bundle: Path, tiny_model: WorldModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"episode 7 was asked for, .* has 0 \.\. 2"):
        replay(store, episodes=[7], bundle=tiny_bundle)
    with pytest.raises(BundleError, match="name the bundle that made it"):
        replay(store, bundle=tiny_model)
    with pytest.raises(StorageError, match="not an episode store"):
        replay(tmp_path)
    nowhere = EpisodeStore(store).read(0, valid_only=False)
    with EpisodeWriter(tmp_path / "a.zarr", EpisodeStore(store).info, durable=False) as writer:
        writer.add(nowhere, seed=0, provenance=EpisodeStore(store).sources[0])
    with pytest.raises(StorageError, match="a picture that the store does not name"):
        replay(tmp_path / "a.zarr", bundle=tiny_bundle)
    shutil.rmtree(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", ["diff_drive", "twist", "keys", "pose"])
def test_an_action_map_is_read_from_its_words(name: str) -> None:
    made = make_action_map(name)
    assert read_action_map(repr(made)) == made
    if name == "diff_drive":
        other: ActionMap = replace(made, max_speed=0.3, mount_yaw=-1.25)  # type: ignore[call-arg]
        assert read_action_map(repr(other)) == other
    for wrong in ("Diff(max_speed=1.0)", "__import__('os')", "DiffDrive(1)", "3"):
        with pytest.raises(ActionError, match="is no action map"):
            read_action_map(wrong)
