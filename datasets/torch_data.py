"""Windows of episodes as datasets of `torch.utils.data`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from sanawm_env.datasets.schema import BY_KEY
from sanawm_env.datasets.windows import Batch, Windows
from sanawm_env.errors import ConfigError

Sample = dict[str, Tensor]
STATE = ("epoch", "batch")


class WindowDataset(Dataset[Sample]):
    """Windows by number, as a data loader with a sampler wants them; workers may be forked or spawned.

    dataset[i] is window i as tensors (see `Windows.read`). A loader reads the windows of a batch together, and its own
    collation makes [B, ...] of them. channels_first: pictures [..., 3, H, W] instead of [..., H, W, 3].
    """

    def __init__(self, windows: Windows, *, channels_first: bool = False) -> None:
        self.windows, self.channels_first = windows, channels_first

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> Sample:
        if not -len(self) <= number < len(self):
            raise IndexError(f"window {number} of {len(self)}")
        return self.__getitems__([number % len(self)])[0]

    def __getitems__(self, numbers: list[int]) -> list[Sample]:
        """What a data loader calls for a batch."""
        batch = as_tensors(self.windows.read(numbers), channels_first=self.channels_first)
        return [{key: rows[row] for key, rows in batch.items()} for row in range(len(numbers))]


class WindowStream(IterableDataset[Sample]):
    """Batches of shuffled windows, without end or for some epochs: `DataLoader(stream, batch_size=None, ...)`.

    Every epoch is a new order of all windows, which follows from seed and epoch alone, cut into batches. Process `rank`
    of `ranks` takes every ranks-th batch, each worker of its loader every workers-th of those; so no window comes twice
    in an epoch, the order that a loader gives does not depend on how many workers it has, and all ranks get equally
    many batches. What does not fill a batch for each of them is left out of the epoch.

    A batch is a mapping of tensors [B, ...] as of `Windows.read`, and "position" [2], epoch and batch, from which
    `state_after` makes what `load_state_dict` needs to go on behind it. shuffle=False: in the order of the store.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = None,
        shuffle: bool = True,
        rank: int = 0,
        ranks: int = 1,
        channels_first: bool = False,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < ranks or (epochs is not None and epochs < 1):
            raise ConfigError(
                f"batch_size is {batch_size}, rank {rank} of {ranks}, epochs {epochs}; allowed are batch_size >= 1, "
                "rank from 0 to ranks - 1, epochs >= 1 or None for no end."
            )
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.epochs, self.shuffle, self.channels_first = epochs, shuffle, channels_first
        self.rank, self.ranks = rank, ranks
        self._epoch, self._batch = 0, 0
        self._shuffled = -1, np.zeros(0, np.int64)  # the latest order, and of which epoch
        if not self.batches:
            raise ConfigError(
                f"{len(windows)} windows are less than a batch of {batch_size} for each of {ranks} ranks; take smaller "
                "batches, or more episodes."
            )

    @property
    def batches(self) -> int:
        """In an epoch, of this rank."""
        return len(self.windows) // (self.batch_size * self.ranks)

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        mine, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # Workers take turns over the end of an epoch too, as the loader does when it collects from them.
        turn = self._epoch * self.batches + self._batch + mine
        while self.epochs is None or turn < self.epochs * self.batches:
            epoch, batch = divmod(turn, self.batches)
            yield self._read(self._order(epoch), epoch, batch)
            turn += workers

    def state_after(self, batch: Sample) -> dict[str, int]:
        """Where to go on once this batch has been used, for a checkpoint."""
        epoch, number = batch["position"].tolist()
        epoch, number = divmod(epoch * self.batches + number + 1, self.batches)
        return {"epoch": epoch, "batch": number, "seed": self.seed, "batch_size": self.batch_size, "ranks": self.ranks}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration begin there. ConfigError for a state of another order of windows."""
        mine = self.state_after({"position": torch.zeros(2, dtype=torch.int64)})
        wrong = [name for name in mine if name not in STATE and state.get(name) != mine[name]]
        if wrong or state.keys() != mine.keys() or not 0 <= state["batch"] < self.batches:
            raise ConfigError(
                f"the state {state} does not fit a stream with {mine}; build it as the one that the state is of."
            )
        self._epoch, self._batch = state["epoch"], state["batch"]

    def _read(self, order: np.ndarray, epoch: int, batch: int) -> Sample:
        start = (batch * self.ranks + self.rank) * self.batch_size
        found = as_tensors(
            self.windows.read(order[start : start + self.batch_size]), channels_first=self.channels_first
        )
        return found | {"position": torch.tensor([epoch, batch])}

    def _order(self, epoch: int) -> np.ndarray:
        """Numbers of all windows as they come in an epoch."""
        if not self.shuffle:
            return np.arange(len(self.windows))
        if self._shuffled[0] != epoch:
            self._shuffled = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.windows))
        return self._shuffled[1]


def as_tensors(batch: Batch, *, channels_first: bool = False) -> Sample:
    """The arrays of a batch as tensors that share their memory; channels_first: pictures as views [..., 3, H, W]."""
    tensors = {key: torch.from_numpy(rows) for key, rows in batch.items()}
    if channels_first:
        pictures = [key for key in tensors if key in BY_KEY and BY_KEY[key].codec == "picture"]
        tensors |= {key: tensors[key].movedim(-1, -3) for key in pictures}
    return tensors
