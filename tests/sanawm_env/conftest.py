"""Models that several files of tests read and none changes; each is built when first asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from tests.tiny_text import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def gemma2() -> Any:
    from tests.tiny_text import make_gemma2

    return make_gemma2()


@pytest.fixture(scope="session")
def connectors() -> Any:
    from tests.tiny_text import make_connectors

    return make_connectors()


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint in each public layout, all with the same denoiser."""
    from tests.public_layouts import write_layouts

    return write_layouts(tmp_path_factory.mktemp("layouts"))
