"""The parts of bulk generation one by one: measures, record, the thread that writes."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from sanawm_env.generation import Filters
from sanawm_env.generation.background import Background
from sanawm_env.generation.filters import contrast, drift, latent_statistics, pose_offsets, reasons, sharpness
from sanawm_env.generation.record import RECORD, Record, finished, lines
from sanawm_env.model.config import tiny_config
from sanawm_env.rooms import render, sample_scenes, sample_trajectories


def test_contrast_and_sharpness() -> None:
    blank = torch.full((1, 8, 10, 3), 77, dtype=torch.uint8)
    halves = blank.clone()
    halves[:, :, 5:] = 177
    stripes = blank.clone()
    stripes[:, :, ::2] = 177
    assert contrast(blank).item() == 0 and sharpness(blank).item() == 0
    assert contrast(halves).item() == pytest.approx(50) and contrast(stripes).item() == pytest.approx(50)
    assert sharpness(halves).item() == pytest.approx(100 * 8 / (8 * 9 + 7 * 10))
    assert sharpness(stripes).item() == pytest.approx(100 * 8 * 9 / (8 * 9 + 7 * 10))
    both = torch.cat([halves, stripes])
    assert torch.equal(contrast(both)[1:], contrast(stripes)), "a picture's measure is its own"


def test_drift_is_of_mean_and_spread() -> None:
    latents = torch.randn(2, 3, 4, 5, 6)
    one, other = latent_statistics(latents).numpy()
    assert drift(one, one) == 0
    moved = latent_statistics(latents * 2 + 1).numpy()[0]
    spread = one[:, 1]
    expected = (np.abs(2 * one[:, 0] + 1 - one[:, 0]) / spread).mean() + np.log(2)
    assert drift(one, moved) == pytest.approx(expected)
    assert 0 < drift(one, other) < 2


def test_reasons_name_what_is_beyond_its_limit() -> None:
    limits = Filters(contrast=4.0, sharpness=1.0, drift=2.0, degrees=3.0)
    fine = {"contrast": 4.0, "sharpness": 1.5, "drift": 2.0, "degrees": None, "metres": 9.0}
    assert reasons(fine, limits) == []
    assert reasons(fine | {"contrast": 3.9, "drift": 2.1, "degrees": 3.5}, limits) == ["contrast", "drift", "degrees"]


def test_poses_are_told_from_the_pictures() -> None:
    config, room = tiny_config(), 11
    scenes = sample_scenes([room])
    path = torch.as_tensor(sample_trajectories(scenes, [3], 8, config.fps, "diff_drive").poses)
    seen = render(scenes, path, torch.tensor([config.intrinsics]), (config.height, config.width)).rgb[0].numpy()
    path = path[0].numpy()
    degrees, metres = pose_offsets(room, seen[[4, 8]], path[[4, 8]], path[0], config)
    assert degrees < 0.2 and metres < 0.01
    elsewhere, _ = pose_offsets(room, seen[[0, 0]], path[[8, 8]], path[0], config)
    assert elsewhere > degrees
    away = path[[0]] @ np.diag([-1.0, 1.0, -1.0, 1.0])  # looks back, at nothing that the first picture shows
    assert pose_offsets(room, seen[[0]], away, path[0], config) is None


def test_half_a_line_of_the_record_is_dropped(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        record.write([{"episode": 3, "stored": False}])
    with (tmp_path / RECORD).open("ab") as file:
        file.write(b'{"episode": 4, "sto')
    assert [line["episode"] for line in lines(tmp_path)] == [3]
    with Record(tmp_path) as record:
        record.write([{"episode": 5, "stored": True}])
    assert [line["episode"] for line in lines(tmp_path)] == [3, 5]
    assert finished(tmp_path, b"01234567").keys() == {3}, "an episode that is not in the store is not finished"


def test_background_calls_keep_their_order_and_their_number() -> None:
    done, gate, waiting = [], threading.Event(), threading.Event()
    with Background(2) as writing:
        writing.submit(gate.wait)
        for number in range(2):
            writing.submit(done.append, number)
        extra = threading.Thread(target=lambda: (writing.submit(done.append, 2), waiting.set()))
        extra.start()
        assert not waiting.wait(0.2), "a third call waits until one is done"
        gate.set()
        extra.join()
    assert done == [0, 1, 2] and writing.waited > 0.1


def test_an_error_in_the_background_is_raised_where_work_is_given() -> None:
    done: list[int] = []
    with pytest.raises(ZeroDivisionError), Background(2) as writing:
        writing.submit(divmod, 1, 0)
        for number in range(9):
            writing.submit(done.append, number)
    assert done == []
