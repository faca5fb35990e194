"""examples/data.md says what the code says: its table is the schema's, and its code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sanawm_env.datasets import schema

PAGE = (Path(__file__).parents[2] / "examples" / "data.md").read_text()


def test_the_table_is_that_of_the_schema() -> None:
    shown = re.search(r"<!-- schema -->\n(.*?)\n<!-- end -->", PAGE, flags=re.DOTALL)
    assert shown is not None
    assert shown[1] == schema.markdown(), "put the text of sanawm_env.datasets.schema.markdown() there"


@pytest.mark.slow
def test_its_code_runs_from_top_to_bottom(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 4
    checks = """
import numpy as np
assert len(store) == 2 and frames.shape == (16, 128, 160, 3)
assert np.abs(frames.astype(int) - store.read(0, valid_only=False)["frames"]).mean() < 6
assert checkpoint["epoch"] == 2 and batch["frames"].shape == (4, 4, 128, 160, 3)
"""
    command = [sys.executable, "-c", "\n".join([*blocks, checks])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.startswith("2 (16, 128, 160, 3) (16, 2)")
