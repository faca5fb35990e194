from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.sanawm_env.generation.jobs import assert_same_episodes, job, record, stored

from sanawm_env.datasets.provenance import prompt_of
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.errors import ConfigError
from sanawm_env.generation import Filters, Scenes, generate
from sanawm_env.generation.explorers import draw_paths, kinds_for
from sanawm_env.generation.plan import plan
from sanawm_env.world import WorldModel

TO_GOAL = """
import numpy as np
def act(seen):
    ahead, left, _ = seen["goal"].T
    return np.stack([np.full(len(left), 0.9), np.clip(2 * np.arctan2(left, ahead), -1, 1)], axis=1)
"""


def test_an_episode_depends_on_seed_and_number_alone(tiny_model: WorldModel, tmp_path: Path) -> None:
    told = generate(job(tmp_path / "a"), model=tiny_model)
    assert (told["episodes"], told["stored"], told["rejected"], told["ends"]) == (5, 5, 0, {"horizon": 5})
    generate(job(tmp_path / "b", batch=2, episodes=4), model=tiny_model)
    assert generate(job(tmp_path / "b", batch=1, episodes=5), model=tiny_model)["made_now"] == 1
    assert_same_episodes(stored(tmp_path / "a"), stored(tmp_path / "b"))
    other = generate(job(tmp_path / "c", seed=1, episodes=1), model=tiny_model)
    assert other["frames"] == 12
    mine, theirs = stored(tmp_path / "a")[0], stored(tmp_path / "c")[0]
    assert not np.array_equal(mine["frame_digests"], theirs["frame_digests"])


def test_slots_are_taken_again_when_an_episode_ends(
    tiny_model: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "to_goal.py").write_text(TO_GOAL)
    monkeypatch.syspath_prepend(tmp_path)
    told = {"policy": "to_goal:act", "observation": "dict", "task": "goto", "frames": 80, "episodes": 6}
    together = generate(job(tmp_path / "a", **told), model=tiny_model)
    alone = generate(job(tmp_path / "b", batch=1, **told), model=tiny_model)
    assert together["ends"] == alone["ends"] and "success" in together["ends"]
    lengths = {number: line["frames"] for number, line in record(tmp_path / "a").items()}
    assert len(set(lengths.values())) > 2, "episodes of one length say nothing here"
    assert_same_episodes(stored(tmp_path / "a"), stored(tmp_path / "b"))
    assert all(line["return"] > 0 for line in record(tmp_path / "a").values() if line["end"] == "success")


def test_what_filters_reject_is_counted_and_not_made_again(tiny_model: WorldModel, tmp_path: Path) -> None:
    generate(job(tmp_path / "all"), model=tiny_model)
    scores = sorted(line["scores"]["contrast"] for line in record(tmp_path / "all").values())
    strict = Filters(contrast=scores[2], sharpness=None, drift=None)
    told = generate(job(tmp_path / "some", filters=strict), model=tiny_model)
    assert (told["stored"], told["rejected"], told["reasons"]) == (3, 2, {"contrast": 2})
    rejected = {number for number, line in record(tmp_path / "some").items() if line["rejected"] == ["contrast"]}
    assert stored(tmp_path / "some").keys() == set(range(5)) - rejected
    assert generate(job(tmp_path / "some", filters=strict), model=tiny_model)["made_now"] == 0
    kept = generate(job(tmp_path / "kept", filters=strict, keep_rejected=True), model=tiny_model)
    assert (kept["stored"], kept["rejected"]) == (5, 2)
    none = Filters(contrast=256.0)
    assert generate(job(tmp_path / "none", filters=none, episodes=2), model=tiny_model)["stored"] == 0


def test_the_summary_lies_beside_the_store(tiny_model: WorldModel, tmp_path: Path) -> None:
    told = generate(job(tmp_path, filters=Filters(drift=None)), model=tiny_model)
    assert json.loads((tmp_path / "summary.json").read_text()) == told
    with Image.open(tmp_path / "summary.png") as page:
        assert page.width > 900 and np.asarray(page).std() > 10
    assert told["frames"] == 60 and told["bytes"] > 10_000
    took = told["seconds"]
    assert 0 < took["start"] + took["step"] < took["work"] < took["wall"] and 0 < told["outside_model"] < 1


def test_starts_from_pictures(tiny_model: WorldModel, tmp_path: Path) -> None:
    size = (tiny_model.config.height, tiny_model.config.width, 3)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pixels = np.random.default_rng(len(name) + (name == "two")).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / "start.png")
        (tmp_path / name / "scene.yaml").write_text(f"image: start.png\nlicence: {name}\nprompt: a {name}\n")
    files = tuple(str(tmp_path / name) for name in ("one", "two"))
    generate(job(tmp_path / "a", scenes=Scenes(files=files)), model=tiny_model)
    generate(job(tmp_path / "b", scenes=Scenes(files=files), batch=1), model=tiny_model)
    assert_same_episodes(stored(tmp_path / "a"), stored(tmp_path / "b"))
    store = EpisodeStore(tmp_path / "a" / "episodes.zarr")
    numbers = [int(store.describe(index)["id"][16:], 16) for index in range(5)]
    assert [store.describe(index)["licences"] for index in range(5)] == [[("one", "two")[k % 2]] for k in numbers]
    assert [prompt_of(store.describe(index)) for index in range(5)] == [("a one", "a two")[k % 2] for k in numbers]


def test_another_job_does_not_mix_in(tiny_model: WorldModel, tmp_path: Path) -> None:
    generate(job(tmp_path, episodes=1), model=tiny_model)
    with pytest.raises(ConfigError, match=r"frames is 16, but .* holds a job with 12; go on with that one"):
        generate(job(tmp_path, frames=16), model=tiny_model)
    with pytest.raises(ConfigError, match="bundle_sha256 is"):
        generate(job(tmp_path))
    assert stored(tmp_path).keys() == {0}


def test_a_path_is_the_same_in_any_group(tmp_path: Path) -> None:
    config = job(tmp_path)
    plans = [plan(config, number) for number in range(20)]
    starts, actions = draw_paths(plans, kinds_for(config), 16, 10.0)
    for row in (0, 7, 19):
        alone = draw_paths([plans[row]], kinds_for(config), 16, 10.0)
        np.testing.assert_array_equal(alone[0][0], starts[row])
        np.testing.assert_array_equal(alone[1][0], actions[row])
    assert plans[3].room == 3 and len({one.seed for one in plans} | {one.path_seed for one in plans}) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes is 0, allowed is a whole number >= 1"),
        ({"kind": "loop", "policy": "a:b"}, "name one of them"),
        ({"action_options": {"max_speed": 0.5}}, "action_options need a policy"),
        ({"scenes": Scenes(files=("a",)), "truth": True}, "no truth"),
    ],
)
def test_a_job_that_cannot_be_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        job(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lop"}, "did you mean 'loop'"),
        ({"kind": "free"}, "kind is 'free' and action_map 'diff_drive'"),
        ({"action_map": "keys"}, "paths are for diff_drive and twist, name a policy"),
        ({"policy": "no_such_module:act"}, "cannot be imported"),
        ({"policy": "math:pi"}, "is no callable"),
        ({"policy": "math"}, "name it as module:callable"),
    ],
)
def test_an_explorer_that_cannot_be_is_refused(
    options: dict[str, object], message: str, tiny_model: WorldModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(job(tmp_path, **options), model=tiny_model)
    assert not (tmp_path / "episodes.zarr").exists()
