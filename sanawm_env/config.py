"""From a plain mapping (YAML, JSON, command line) to a frozen dataclass, with every key and type checked.

Hydra composes mappings in the command line only; what enters the library is a dataclass built here.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from sanawm_env.errors import ConfigError, nearest

T = TypeVar("T")


def from_mapping(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """An instance of the dataclass `cls`, nested dataclasses and tuples included.

    Lists become tuples where the field says tuple, whole numbers become floats where it says float, text becomes a
    `Path` where it says so. ConfigError: an unknown key (the nearest known one is named), a missing key, or a value of
    another type; whatever `__post_init__` of the class raises passes through unchanged.
    """
    return typing.cast(T, _build(cls, mapping, ""))


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Nested mapping of `a.b=value` arguments; a value is JSON where it reads as JSON, else text.

    The last of two equal keys wins. ConfigError on an argument without `=` or a key that is both value and group.
    """
    result: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"argument {argument!r} is not of the form key=value; write for example steps=100")
        _insert(result, key.split("."), _value(text), argument)
    return result


def _insert(target: dict[str, Any], path: list[str], value: Any, argument: str) -> None:
    for name in path[:-1]:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise ConfigError(f"argument {argument!r} sets a key below {name!r}, which already has a value; drop one")
    target[path[-1]] = value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _build(cls: type, mapping: Any, where: str) -> Any:
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"{cls!r} is not a dataclass")
    if isinstance(mapping, cls):
        return mapping
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or cls.__name__} is {mapping!r}; expected a group of keys for {cls.__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in mapping:
        if key not in fields:
            raise ConfigError(f"unknown key {_join(where, key)!r} of {cls.__name__}; {nearest(str(key), fields)}")
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], value, _join(where, key)) for key, value in mapping.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"key {_join(where, name)!r} of {cls.__name__} is missing; give it a value")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(hint, value, where)
    if origin is Literal:
        return _literal(hint, value, where)
    if hint is tuple or origin is tuple:
        return _tuple(hint, value, where)
    if origin in (dict, Mapping) or hint is dict:
        return _dict(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, where)
    return _scalar(hint, value, where)


def _union(hint: Any, value: Any, where: str) -> Any:
    members = typing.get_args(hint)
    if value is None and types.NoneType in members:
        return None
    members = tuple(member for member in members if member is not types.NoneType)
    problems = []
    for member in members:
        try:
            return _convert(member, value, where)
        except ConfigError as error:
            problems.append(error)
    if len(members) == 1:
        raise problems[0]
    raise _mismatch(where, value, " or ".join(_name(member) for member in typing.get_args(hint)))


def _literal(hint: Any, value: Any, where: str) -> Any:
    allowed = typing.get_args(hint)
    for choice in allowed:
        if type(choice) is type(value) and choice == value:
            return choice
    hints = nearest(value, map(str, allowed)) if isinstance(value, str) else f"Known: {', '.join(map(str, allowed))}."
    raise ConfigError(f"{where} is {value!r}, which is not one of its choices; {hints}")


def _tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    members = typing.get_args(hint)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise _mismatch(where, value, "a list")
    if not members:
        return tuple(value)
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise ConfigError(f"{where} has {len(value)} values, expected {len(members)}; it is {list(value)!r}")
    return tuple(_convert(member, item, f"{where}[{i}]") for i, (member, item) in enumerate(zip(members, value)))


def _dict(hint: Any, value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _mismatch(where, value, "a group of keys")
    key_hint, value_hint = typing.get_args(hint) or (Any, Any)
    return {
        _convert(key_hint, key, where): _convert(value_hint, item, _join(where, key)) for key, item in value.items()
    }


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(hint, type):
        raise TypeError(f"{where}: a field of type {hint!r} cannot be read from a mapping")
    # bool is a subclass of int; a switch given for a count is a mistake.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _mismatch(where, value, _name(hint))
    return value


def _mismatch(where: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{where} is {value!r} ({type(value).__name__}), expected {expected}; change the value")


def _name(hint: Any) -> str:
    return "none" if hint is types.NoneType else getattr(hint, "__name__", str(hint))


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
