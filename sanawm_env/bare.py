"""Command lines of modules that also run without Hydra, on a bare GPU machine: `python3 -m MODULE key=value ...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sanawm_env.config import from_mapping, parse_overrides
from sanawm_env.errors import SanaWMError

T = TypeVar("T")


def run_bare(
    kind: type[T], run: Callable[[T], Any], arguments: Sequence[str], failed: Callable[[Any], Any] = lambda told: False
) -> int:
    """Runs what `key=value` arguments describe, a `kind`, and prints what it gives last: text, or a line of JSON.

    Exit status: 0; 1 where `failed` says so of what it gave; 2, with the reason on stderr, for what cannot be.
    """
    try:
        told = run(from_mapping(kind, parse_overrides(arguments)))
    except SanaWMError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(told if isinstance(told, str) else json.dumps(told))
    return 1 if failed(told) else 0
