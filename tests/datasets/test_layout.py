from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from tests.datasets.made_up import HEIGHT, INFO, WIDTH, add, as_stored, episode, number, same

from sanawm_env.datasets import schema
from sanawm_env.datasets.layout import METADATA, Encoder
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.datasets.verify import verify
from sanawm_env.datasets.writer import EpisodeWriter, Finished
from sanawm_env.errors import StorageError


@pytest.mark.parametrize("key", ["frames", "start_frames"])
@pytest.mark.parametrize("frames", [1, 7])
@pytest.mark.parametrize("codec", ["jpeg", "webp", "jpegxl"])
def test_files_of_pictures_are_what_zarr_writes(codec: str, frames: int, key: str, tmp_path: Path) -> None:
    encoder = Encoder(
        schema.BY_KEY[key], (HEIGHT, WIDTH, 3), replace(INFO, picture_codec=codec, frames_per_step=frames)
    )
    pictures = np.random.default_rng(0).integers(0, 256, (encoder.rows, HEIGHT, WIDTH, 3), dtype=np.uint8)
    ours = encoder.encode(pictures)
    (tmp_path / METADATA).write_bytes(encoder.metadata(encoder.rows))
    zarr.open_array(tmp_path, mode="r+")[:] = pictures
    assert ours == (tmp_path / encoder.file(0)).read_bytes()


def test_episodes_that_end_together_are_committed_together(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone.zarr", tmp_path / "together.zarr"
    with EpisodeWriter(alone, INFO) as writer:
        for seed in range(5):
            add(writer, seed)
    with EpisodeWriter(together, INFO) as writer:
        add(writer, 0)
        finished = []
        for seed in range(1, 5):
            arrays = episode(1 + seed % 3, seed, truth=False)
            start = {key: values for key, values in arrays.items() if key.startswith("start_")}
            source = EpisodeStore(alone).sources[int(EpisodeStore(alone).meta["episode_sources"][seed])]
            opened = writer.begin(start, seed=seed, identity=number(seed), provenance=source)
            opened.append({key: values for key, values in arrays.items() if key not in start})
            finished.append(Finished(episode=opened, reason="success", seconds=0.5))
        assert len(EpisodeStore(together)) == 1
        assert writer.commit(finished) == [1, 2, 3, 4]
        with pytest.raises(StorageError, match="committed or dropped already"):
            writer.commit(finished[:1])
    one, other = EpisodeStore(alone), EpisodeStore(together)
    for index in range(5):
        assert one.describe(index) == other.describe(index)
        assert same(one.read(index, valid_only=False), other.read(index, valid_only=False))
        assert same(other.read(index, valid_only=False), as_stored(episode(1 + index % 3, index, truth=False)))
    assert not verify(together).problems


def test_a_failed_commit_drops_all_its_episodes(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "a.zarr", INFO) as writer:
        add(writer, 0)
        arrays = episode(1, 1, truth=False)
        start = {key: values for key, values in arrays.items() if key.startswith("start_")}
        whole, empty = (writer.begin(start, seed=seed) for seed in (1, 2))
        whole.append({key: values for key, values in arrays.items() if key not in start})
        with pytest.raises(StorageError, match="the episode has no step"):
            writer.commit([Finished(episode=whole), Finished(episode=empty)])
        assert len(EpisodeStore(tmp_path / "a.zarr")) == 1
        assert add(writer, 3) == 1
    assert not list((tmp_path / "a.zarr").rglob("staging"))
