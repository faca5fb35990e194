from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from sanawm_env.errors import SceneError
from sanawm_env.wrappers.video import encode_av1, write_mp4


def moving(frames: int, height: int = 64, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    shown = [np.stack([(x + 2 * t) % 160 + 40, (y + t) % 160 + 40, 0 * x + 90], -1) for t in range(frames)]
    return np.stack(shown).astype(np.uint8)


def decoded(container: av.container.InputContainer) -> np.ndarray:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_mp4_shows_every_frame_at_the_right_time(tmp_path: Path) -> None:
    frames = moving(17)
    write_mp4(tmp_path / "a.mp4", frames, 10.0, scale=2)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 10 and (stream.height, stream.width) == (128, 160)
        shown = decoded(container)
    assert shown.shape == (17, 128, 160, 3)
    assert np.abs(shown[:, ::2, ::2].astype(int) - frames).mean() < 6
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_mp4_of_odd_size_loses_one_line_at_most(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving(2, 65, 81), 10.0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert decoded(container).shape == (2, 64, 80, 3)


def test_av1_packets_are_one_a_frame_in_order(tmp_path: Path) -> None:
    frames = moving(40)
    packets = encode_av1(frames, 10.0)
    assert [packet.index for packet in packets] == list(range(40))
    assert packets[0].keyframe and sum(packet.keyframe for packet in packets) < 5
    decoder = av.CodecContext.create("libdav1d", "r")
    shown = [frame for packet in packets for frame in decoder.decode(av.Packet(packet.data))] + decoder.decode(None)
    pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in shown])
    assert np.abs(pictures.astype(int) - frames).mean() < 8


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)]
)
def test_rejects_what_is_not_a_film(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(SceneError, match="expected uint8"):
        write_mp4(tmp_path / "a.mp4", frames, 10.0)
    assert not list(tmp_path.iterdir())
