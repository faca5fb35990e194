"""What subcommands of `sanawm` are made of: a parser, and a dataclass built from a YAML file, `key=value` and flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sanawm_env.config import from_mapping
from sanawm_env.errors import ConfigError

T = TypeVar("T")


def compose(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping of `configs/<name>.yaml` with `key=value` overrides. ConfigError on what cannot be parsed.

    Hydra only composes: whether a key is known is for the dataclass to say, which names the nearest one.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words = [word if word.startswith(("+", "~")) else f"++{word}" for word in overrides]
    try:
        with initialize_config_module("sanawm_env.configs", version_base="1.3"):
            chosen = OmegaConf.to_container(hydra_compose(name, words), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"arguments {list(overrides)} are refused ({first}); write them as key=value") from error
    return {str(key): value for key, value in dict(chosen).items()}  # type: ignore[arg-type]


def subjects(commands: Any, name: str, summary: str) -> Any:
    """Adds a command that has subcommands of its own, and gives these."""
    return commands.add_parser(name, help=summary, description=summary).add_subparsers(required=True, metavar="SUBJECT")


def command(
    commands: Any, name: str, run: Callable[[Any], None], summary: str, *, operands: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Adds a command that takes these operands and then `key=value`."""
    made: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    for operand in operands:
        made.add_argument(operand, metavar=operand.upper())
    made.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of those of the YAML file")
    made.set_defaults(run=run, name=name, flags=())
    return made


def flags(parser: argparse.ArgumentParser, **kinds: Callable[[str], Any]) -> None:
    """Adds flags of these types to a command."""
    for name, kind in kinds.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=name.split("_")[-1].upper())
    parser.set_defaults(flags=tuple(kinds))


def build(cls: type[T], name: str, options: argparse.Namespace) -> T:
    """The dataclass of a command from its YAML, `key=value` arguments, and flags, the later the stronger."""
    given = {flag: getattr(options, flag) for flag in options.flags}
    mapping = compose(name, options.overrides) | {flag: value for flag, value in given.items() if value is not None}
    return from_mapping(cls, mapping)
