"""`python -m sanawm_env.training STAGE key=value ...`: a training stage without Hydra, for a bare GPU machine."""

from __future__ import annotations

import json
import sys

from sanawm_env.config import parse_overrides
from sanawm_env.errors import SanaWMError
from sanawm_env.training.stages import STAGES, run_stage


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 1 with the error on stderr."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python -m sanawm_env.training STAGE out=FOLDER [key=value ...]; STAGE: {', '.join(STAGES)}")
        return 0
    try:
        figures = run_stage(arguments[0], parse_overrides(arguments[1:]))
    except SanaWMError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if figures:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
