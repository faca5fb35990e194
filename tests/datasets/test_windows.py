"""Windows hold what the episode held, never what lies beyond its end, and streams give each window once."""

from __future__ import annotations

import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.datasets.made_up import FRAMES, INFO, add
from torch.utils.data import DataLoader

from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.torch_data import WindowDataset, WindowStream
from sanawm_env.datasets.union import open_store
from sanawm_env.datasets.windows import Windows, WindowSpec
from sanawm_env.datasets.writer import EpisodeWriter
from sanawm_env.errors import ConfigError, StorageError

SPEC = WindowSpec(history=3, actions=4, arrays=("frames", "poses", "actions", "terminated"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two stores with three episodes each, of 2, 6 or 10 valid rows."""
    folder = tmp_path_factory.mktemp("windows")
    for number in range(2):
        with EpisodeWriter(folder / f"{number}.zarr", INFO) as writer:
            for seed in range(3):
                add(writer, 3 * number + seed)
    return [folder / "0.zarr", folder / "1.zarr"]


def expected(episode: dict[str, np.ndarray], t: int, spec: WindowSpec) -> dict[str, np.ndarray]:
    """The window at instant t, picked row by row from an episode that was read up to its end."""
    count = len(episode["valid"])
    seen, done = range(t - spec.history + 1, t + 1), range(t, t + spec.actions)
    window = {
        key: np.stack([episode[key][i - 1] if i > 0 else episode[f"start_{key}"] for i in seen])
        for key in spec.arrays
        if key in ("frames", "poses")
    }
    window |= {
        key: np.stack([episode[key][min(i, count - 1)] for i in done]) for key in spec.arrays if key not in window
    }
    return window | {
        "history_valid": np.array([i >= 0 for i in seen]),
        "actions_valid": np.array([i < count for i in done]),
    }


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("every", [1, 3])
def test_every_window_is_what_the_episode_held(paths: list[Path], padded: bool, every: int) -> None:
    spec = WindowSpec(history=3, actions=4, arrays=SPEC.arrays, every=every, padded=padded)
    union = open_store(paths)
    windows = Windows(union, spec)
    number = 0
    batch = windows.read(np.arange(len(windows)))
    for index in range(len(union)):
        episode = union[index]
        count = len(episode["valid"])
        assert count == 2 + 4 * (index % 3)
        for t in range(0, count, every) if padded else range(2, count - 3, every):
            assert (batch["episode"][number], batch["instant"][number]) == (index, t)
            for key, rows in expected(episode, t, spec).items():
                np.testing.assert_array_equal(batch[key][number], rows, err_msg=f"{key} of {index} at {t}")
            number += 1
    assert number == len(windows)


def test_rows_after_an_end_are_never_valid(paths: list[Path]) -> None:
    """The made-up episodes go on for two rows after their end, in which every reward differs from any before."""
    store = EpisodeStore(paths[0])
    windows = Windows(store, WindowSpec(history=1, actions=9, arrays=("rewards", "frames")))
    batch = windows.read(range(len(windows)))
    for index in range(len(store)):
        whole = store.read(index, valid_only=False)
        beyond = whole["rewards"][~whole["valid"]]
        assert len(beyond) == 2
        mine = batch["episode"] == index
        assert not np.isin(batch["rewards"][mine], beyond).any(), "padding repeats the last valid row"
        assert batch["instant"][mine].max() == np.count_nonzero(whole["valid"]) - 1
    assert batch["actions_valid"].sum(axis=1).tolist() == [2, 1, 6, 5, 4, 3, 2, 1, *([9] * 2), *range(8, 0, -1)]


def test_episodes_are_split(paths: list[Path]) -> None:
    train, valid = (Windows(paths, SPEC, episodes=chosen) for chosen in ([0, 2, 3], [1, 4, 5]))
    assert set(train.read(range(len(train)))["episode"]) == {0, 2, 3}
    assert len(train) + len(valid) == len(Windows(paths, SPEC)) == 36
    with pytest.raises(StorageError, match="episodes 0 to 6 were chosen of 6"):
        Windows(paths, SPEC, episodes=[0, 6])
    with pytest.raises(StorageError, match=r"has no \['truth_depth'\]; choose of what it has"):
        Windows(paths, WindowSpec(arrays=("truth_depth",)))
    with pytest.raises(ConfigError, match="did you mean 'actions'"):
        WindowSpec(arrays=("action",))
    with pytest.raises(ConfigError, match="history is 0"):
        WindowSpec(history=0)
    with pytest.raises(IndexError, match="windows 36 to 36 of 36"):
        Windows(paths, SPEC).read([36])


@pytest.mark.parametrize("method", [None, "fork", "spawn"])
def test_a_loader_gives_the_windows_as_tensors(paths: list[Path], method: str | None) -> None:
    windows = Windows(paths, SPEC)
    expected_ = windows.read(range(len(windows)))
    dataset = WindowDataset(windows, channels_first=method == "fork")
    workers = {"num_workers": 2, "multiprocessing_context": method} if method else {}
    seen = list(DataLoader(dataset, batch_size=8, **workers))
    joined = {key: torch.cat([batch[key] for batch in seen]) for key in seen[0]}
    assert seen[0]["frames"].dtype == torch.uint8 and seen[0]["frames"].is_contiguous()
    if method == "fork":
        assert seen[0]["frames"].shape == (8, 3, 3, 24, 32)
        joined["frames"] = joined["frames"].movedim(2, -1)
    for key, rows in expected_.items():
        np.testing.assert_array_equal(joined[key].numpy(), rows, err_msg=key)
    assert torch.equal(dataset[-1]["poses"], torch.from_numpy(expected_["poses"][-1]))
    with pytest.raises(IndexError, match="window 36 of 36"):
        dataset[36]


def instants(batches: list[dict[str, torch.Tensor]]) -> list[tuple[int, int]]:
    return [pair for batch in batches for pair in zip(batch["episode"].tolist(), batch["instant"].tolist())]


def test_an_epoch_of_a_stream_holds_every_window_once(paths: list[Path]) -> None:
    windows = Windows(paths, SPEC)
    orders = []
    for workers in (0, 2):
        stream = WindowStream(windows, 4, seed=5, epochs=2)
        loader = DataLoader(stream, batch_size=None, num_workers=workers)
        batches = list(loader)
        assert [batch["position"].tolist() for batch in batches] == [[e, b] for e in range(2) for b in range(9)]
        orders.append(instants(batches))
    assert orders[0] == orders[1], "the number of workers changes nothing"
    first, second = orders[0][:36], orders[0][36:]
    assert len(set(first)) == len(set(second)) == 36 and first != second
    other = WindowStream(windows, 4, seed=6, epochs=1)
    assert instants(list(other)) != first
    assert instants(list(WindowStream(windows, 4, epochs=1, shuffle=False))) == sorted(first)


def test_ranks_share_an_epoch_without_repeating(paths: list[Path]) -> None:
    windows = Windows(paths, SPEC)
    by_rank = [
        list(DataLoader(WindowStream(windows, 5, epochs=1, rank=rank, ranks=3), batch_size=None, num_workers=2))
        for rank in range(3)
    ]
    assert [len(batches) for batches in by_rank] == [2, 2, 2]
    seen = [pair for batches in by_rank for pair in instants(batches)]
    assert len(seen) == len(set(seen)) == 30, "what does not fill a batch for each rank is left out"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_behind_a_batch(paths: list[Path], workers: int) -> None:
    windows = Windows(paths, SPEC)
    whole = list(WindowStream(windows, 5, epochs=3))
    used = DataLoader(WindowStream(windows, 5), batch_size=None, num_workers=workers)
    tenth = next(itertools.islice(used, 9, None))  # of a stream without end
    state = used.dataset.state_after(tenth)
    assert (state["epoch"], state["batch"]) == (1, 3)
    again = WindowStream(windows, 5, epochs=3)
    again.load_state_dict(state)
    rest = list(DataLoader(again, batch_size=None, num_workers=workers))
    assert instants(rest) == instants(whole[10:])
    with pytest.raises(ConfigError, match="does not fit a stream with"):
        WindowStream(windows, 4).load_state_dict(state)
    with pytest.raises(ConfigError, match="does not fit a stream with"):
        again.load_state_dict({"epoch": 0})


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 2, "ranks": 2}, {"epochs": 0}])
def test_says_what_a_stream_needs(paths: list[Path], wrong: dict[str, int]) -> None:
    windows = Windows(paths, SPEC)
    with pytest.raises(ConfigError, match="allowed are batch_size >= 1"):
        WindowStream(windows, **{"batch_size": 4, **wrong})
    with pytest.raises(ConfigError, match="36 windows are less than a batch of 20 for each of 2 ranks"):
        WindowStream(windows, 20, ranks=2)


def test_an_empty_store_has_no_windows(tmp_path: Path) -> None:
    EpisodeWriter(tmp_path / "a.zarr", INFO).close()
    assert len(Windows(tmp_path / "a.zarr", SPEC)) == 0


def test_a_worker_has_one_thread_and_files_of_its_own(paths: list[Path]) -> None:
    store = EpisodeStore(paths[0])
    windows = Windows(store, SPEC)
    windows.read([0])  # files are open and threads are there before the fork
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        read = pool.map(windows.read, [[n, n + 7] for n in range(8)])
    for n, batch in enumerate(read):
        np.testing.assert_array_equal(batch["frames"], windows.read([n, n + 7])["frames"])
    assert store.info.frames_per_step == FRAMES
