"""`python -m sanawm_env.evaluation [key=value ...]`: the evaluation on a bare GPU machine, without the command line's
packages. Keys are the fields of `Arguments`; progress goes to standard error, the report to standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sanawm_env.config import from_mapping, parse_overrides
from sanawm_env.errors import SanaWMError
from sanawm_env.evaluation.command import EvalRooms, run
from sanawm_env.evaluation.summary import summary


@dataclass(frozen=True, kw_only=True)
class Arguments(EvalRooms):
    """json: one JSON object in place of the table."""

    json: bool = False


def main(arguments: Sequence[str]) -> int:
    """Runs the evaluation that `key=value` arguments describe; 2 is returned, with the reason, for one that cannot
    be.
    """
    try:
        asked = from_mapping(Arguments, parse_overrides(arguments))
        report = run(asked)
    except SanaWMError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report) if asked.json else summary(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
