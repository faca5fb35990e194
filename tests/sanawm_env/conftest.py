"""What several files of tests share: models that none of them changes, built when first asked for; an environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sanawm_env.env import SanaWMEnv
    from sanawm_env.world import WorldModel


@pytest.fixture
def env(tiny_model: WorldModel) -> SanaWMEnv:
    """Free driving in a world of random weights; its own for each test."""
    from sanawm_env.env import SanaWMEnv

    return SanaWMEnv(tiny_model, task="drive")


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
