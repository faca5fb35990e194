from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sanawm_env.world import WorldModel


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: WorldModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a bundle, for workers in processes of their own."""
    from sanawm_env import bundle

    return bundle.save(tmp_path_factory.mktemp("bundle") / "tiny", tiny_model, {}, bits=32)
