from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from sanawm_env.config import from_mapping, parse_overrides
from sanawm_env.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 4
    rates: tuple[float, ...] = (1.0, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    size: tuple[int, int] = (2, 3)
    rate: float = 0.1
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None
    loud: bool = False
    inner: Inner = Inner()
    layers: tuple[Inner, ...] = ()
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    out: Path = Path("outputs")
    seed: int | str = 0

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ConfigError(f"rate is {self.rate}, expected more than 0")


def test_builds_nested_dataclasses_and_tuples() -> None:
    built = from_mapping(
        Outer,
        {
            "name": "x",
            "size": [4, 5],
            "rate": 1,
            "limit": 3,
            "inner": {"rates": [1, 2]},
            "layers": [{"width": 8}, {}],
            "weights": {"a": 1},
            "out": "elsewhere",
            "seed": "text",
        },
    )
    assert built == Outer(
        name="x",
        size=(4, 5),
        rate=1.0,
        limit=3,
        inner=Inner(rates=(1.0, 2.0)),
        layers=(Inner(width=8), Inner()),
        weights={"a": 1.0},
        out=Path("elsewhere"),
        seed="text",
    )
    assert isinstance(built.rate, float) and isinstance(built.inner.rates[0], float)


def test_none_is_allowed_where_the_field_says_so() -> None:
    assert from_mapping(Outer, {"name": "x", "limit": None}).limit is None


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"name": "x", "raet": 1.0}, r"unknown key 'raet' of Outer; did you mean 'rate'"),
        ({"name": "x", "inner": {"widht": 1}}, r"unknown key 'inner.widht' of Inner; did you mean 'width'"),
        ({}, r"key 'name' of Outer is missing"),
        ({"name": 3}, r"name is 3 \(int\), expected str"),
        ({"name": "x", "rate": "fast"}, r"rate is 'fast' \(str\), expected float"),
        ({"name": "x", "rate": True}, r"rate is True \(bool\), expected float"),
        ({"name": "x", "limit": True}, r"limit is True \(bool\), expected int"),
        ({"name": "x", "limit": 1.5}, r"limit is 1.5 \(float\), expected int"),
        ({"name": "x", "loud": 1}, r"loud is 1 \(int\), expected bool"),
        ({"name": "x", "mode": "fats"}, r"mode is 'fats'.*did you mean 'fast'"),
        ({"name": "x", "mode": 3}, r"mode is 3.*Known: fast, slow"),
        ({"name": "x", "size": [1, 2, 3]}, r"size has 3 values, expected 2"),
        ({"name": "x", "size": "ab"}, r"size is 'ab' \(str\), expected a list"),
        ({"name": "x", "size": [1, "b"]}, r"size\[1\] is 'b' \(str\), expected int"),
        ({"name": "x", "inner": 3}, r"inner is 3; expected a group of keys for Inner"),
        ({"name": "x", "weights": 3}, r"weights is 3 \(int\), expected a group of keys"),
        ({"name": "x", "weights": {"a": "b"}}, r"weights.a is 'b' \(str\), expected float"),
        ({"name": "x", "seed": 1.5}, r"seed is 1.5 \(float\), expected int or str"),
        ({"name": "x", "rate": -1.0}, r"rate is -1.0"),
    ],
)
def test_rejects(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, mapping)


def test_overrides_nest_and_read_json() -> None:
    arguments = ["a.b=3", "a.c=[1,2]", "d=true", "e=1e-4", "f=text", "g=null", "a.b=4", "h="]
    assert parse_overrides(arguments) == {
        "a": {"b": 4, "c": [1, 2]},
        "d": True,
        "e": 1e-4,
        "f": "text",
        "g": None,
        "h": "",
    }


@pytest.mark.parametrize("arguments", [["steps"], ["=3"], ["a=1", "a.b=2"]])
def test_overrides_reject(arguments: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse_overrides(arguments)
