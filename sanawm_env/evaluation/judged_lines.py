"""What a resumable evaluation keeps: JSON lines, the first of them on what all were judged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import StorageError

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class JudgedLines:
    """What a file holds. setup: what all lines share. BENCHMARK: the evaluation's name; KEYS: that every line has."""

    BENCHMARK: ClassVar[str]
    KEYS: ClassVar[frozenset[str]]

    setup: Line
    lines: list[Line]

    def write(self, path: Path) -> None:
        """The file, whole or as it was before."""
        with appearing(path) as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in (self.setup, *self.lines)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` has written. StorageError: no such file, or another one."""
        try:
            setup, *lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
            if setup["benchmark"] != cls.BENCHMARK or not all(set(one) >= cls.KEYS for one in lines):
                raise ValueError("other lines")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{path} is no file of `sanawm eval {cls.BENCHMARK}` ({error}); give what its `out` named, or another "
                "out=."
            ) from error
        return cls(setup=setup, lines=lines)
