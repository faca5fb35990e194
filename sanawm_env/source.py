"""What stands behind an environment and gives its frames: a learned model, or the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from sanawm_env.model.config import WorldConfig
    from sanawm_env.state import WorldState


class WorldSource(Protocol):
    """What environments, snapshots and stores ask of it; `WorldModel` and `truth.RoomsTruth` are such.

    fingerprint: what decides its frames, as a SHA-256. licence: of its weights, "" where there are none.
    """

    @property
    def config(self) -> WorldConfig: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def refiner(self) -> object | None: ...
    @property
    def reads_text(self) -> bool: ...
    def empty_state(self, batch: int, *, decoder: bool = True, device: torch.device | str | None = None) -> WorldState:
        """A state of the right shapes in which nothing has happened yet; on its own device by default."""
        ...
