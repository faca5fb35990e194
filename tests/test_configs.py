"""Every YAML in configs/ composes, builds its dataclass and names every key that the dataclass has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sanawm_env.cli import EvalRooms, compose
from sanawm_env.config import from_mapping
from sanawm_env.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "configs"


def config_classes() -> dict[str, type]:
    from sanawm_env.benchmarks.rooms import BenchRooms
    from sanawm_env.demo import DemoConfig

    return {"demo": DemoConfig, "eval_rooms": EvalRooms, "bench_rooms": BenchRooms}


def keys(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def test_every_yaml_belongs_to_a_dataclass() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(config_classes())


@pytest.mark.parametrize("command", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_yaml_composes_and_builds(command: str) -> None:
    cls, mapping = config_classes()[command], compose(command, [])
    assert set(mapping) == keys(cls), "list every key, so that an override of it is accepted"
    from_mapping(cls, mapping)


def test_overrides_reach_the_dataclass() -> None:
    mapping = compose("eval_rooms", ["scenes=3", "returns=[16]", "sheet=null"])
    built = from_mapping(EvalRooms, mapping)
    assert (built.scenes, built.returns, built.sheet) == (3, (16,), None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scens=3"], "unknown key 'scens'; did you mean 'scenes'"),
        (["scenes"], "write them as key=value"),
        (["scenes=["], "write them as key=value"),
    ],
)
def test_wrong_overrides_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        compose("eval_rooms", overrides)
    assert "\n" not in str(caught.value)


def test_a_wrong_type_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"scenes is 'many' \(str\), expected int"):
        from_mapping(EvalRooms, compose("eval_rooms", ["scenes=many"]))
