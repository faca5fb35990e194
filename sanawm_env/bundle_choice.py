"""Which world of a bundle a command takes: fields that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sanawm_env.bundle import load
from sanawm_env.model.config import Variant
from sanawm_env.world import WorldModel


@dataclass(frozen=True, kw_only=True)
class BundleChoice:
    """bundle: name or folder. variant, refiner: of `bundle.load`."""

    bundle: str = "rooms"
    variant: Variant | None = None
    refiner: bool = False

    def load(self, **placement: Any) -> WorldModel:
        """The model; placement: the other arguments of `bundle.load`. Raises like it."""
        return load(self.bundle, variant=self.variant, refiner=self.refiner, **placement)
