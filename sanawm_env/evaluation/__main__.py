"""`python -m sanawm_env.evaluation [bundle=rooms] [scenes=32] [seed=0] [device=cuda] [precision=auto] [sheet=PATH]
[json=true]`: the evaluation without the command line's extras, for a bare GPU machine."""

from __future__ import annotations

import json
import sys
from typing import Any, cast

from sanawm_env.bundle import Precision, load
from sanawm_env.errors import ConfigError, SanaWMError, nearest
from sanawm_env.evaluation.rooms import evaluate
from sanawm_env.evaluation.summary import summary

DEFAULTS = {
    "bundle": "rooms",
    "scenes": "32",
    "seed": "0",
    "frames": "64",
    "device": "",
    "precision": "auto",
    "sheet": "",
    "json": "false",
}


def main(arguments: list[str]) -> int:
    """Runs the evaluation that `key=value` arguments describe; 2 is returned, with the reason, for one that cannot
    be.
    """
    try:
        options = _options(arguments)
        model = load(
            options["bundle"], device=options["device"] or None, precision=cast(Precision, options["precision"])
        )
        report = evaluate(
            model,
            scenes=_whole("scenes", options),
            seed=_whole("seed", options),
            frames=_whole("frames", options),
            sheet=options["sheet"] or None,
        )
    except SanaWMError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report) if options["json"] == "true" else summary(report))
    return 0


def _options(arguments: list[str]) -> dict[str, str]:
    options: dict[str, str] = dict(DEFAULTS)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in options or not value:
            raise ConfigError(f"argument {argument!r} is not key=value of a known key; {nearest(key, DEFAULTS)}")
        options[key] = value
    if options["json"] not in ("true", "false"):
        raise ConfigError(f"json={options['json']!r}; allowed are true and false")
    return options


def _whole(key: str, options: dict[str, Any]) -> int:
    try:
        return int(options[key])
    except ValueError as error:
        raise ConfigError(
            f"{key}={options[key]!r} is not a whole number; pass for instance {key}={DEFAULTS[key]}"
        ) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
