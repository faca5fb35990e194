"""Driving by keys: the session, the page by the requests that it makes, the page in Chromium, a terminal."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sanawm_env import cli
from sanawm_env.bundle import save as save_bundle
from sanawm_env.datasets.reader import EpisodeStore
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import ActionError, ConfigError
from sanawm_env.teleop import Teleop
from sanawm_env.teleop.page import serve
from sanawm_env.teleop.session import Session
from sanawm_env.teleop.terminal import names
from sanawm_env.world import WorldModel

KEYBOARD = {"preset": "diffusers", "flavour": "keyboard", "speed": 0.5, "turn_rate": 1.0}


@pytest.fixture
def session(tiny_model: WorldModel) -> Iterator[Session]:
    """A session that runs in a thread, of its own world."""
    made = Session(SanaWMEnv(tiny_model, task="drive", action_map="keys", action_options=KEYBOARD), "diffusers", 3)
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.stop()
    thread.join(20)
    assert not thread.is_alive()


def waited(found: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.02)
    return result


def test_keys_move_the_world_and_it_rests_without(session: Session) -> None:
    start = session.view(0, 20)
    assert start is not None and start.frame == 0 and len(start.frames) == 1
    assert session.view(start.number, 0.3) is None, "nobody holds a key"
    session.hold(["w", "ArrowLeft"])
    moved = session.view(start.number, 20)
    assert moved is not None and moved.frame == session.frames_per_step == len(moved.frames)
    travelled = np.linalg.norm(np.subtract(moved.position, start.position))
    assert travelled == pytest.approx(0.5 * moved.frame / session.fps, rel=0.05), "an arc"
    session.hold([])
    waited(lambda: session.view(moved.number + 1, 1.5) is None)
    session.restart()
    again = waited(lambda: (view := session.view(moved.number, 5)) and view.frame == 0 and view)
    assert again.position != start.position, "the next room"
    with pytest.raises(ActionError, match=r"key 'x' is unknown, allowed are w, s, a, d"):
        session.hold(["x"])


def test_held_keys_are_released_when_nobody_says_so(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanawm_env.teleop.session.RELEASE", 0.2)
    session.view(0, 20)
    session.hold(["w"])
    last = waited(lambda: session.view(1, 5))
    time.sleep(1.5)
    rest = session.view(0, 0)
    assert rest is not None and rest.frame <= last.frame + 2 * session.frames_per_step


def ask(url: str, body: Any = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
        return json.loads(answer.read())


def refused(url: str, body: Any = None, **headers: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(url, body, **headers)
    return error.value.code, json.loads(error.value.read())["error"]


def test_the_page_by_its_requests(session: Session) -> None:
    with serve(session, "127.0.0.1", 0) as url:
        with urllib.request.urlopen(url) as page:
            assert b"<title>sanawm teleop" in page.read()
        about = ask(f"{url}about")
        assert ["turn_left", "j", "ArrowLeft"] in about["keys"] and about["fps"] == session.fps
        first = ask(f"{url}view?after=0")
        with Image.open(io.BytesIO(base64.b64decode(first["frames"][0]))) as picture:
            assert picture.size == (40, 32)
        ask(f"{url}keys", {"held": ["ArrowLeft"]}, Origin=url.rstrip("/"))
        second = ask(f"{url}view?after={first['number']}")
        assert second["frame"] == len(second["frames"]) == session.frames_per_step
        ask(f"{url}keys", {"held": []})
        ask(f"{url}stop", {})
        assert ask(f"{url}view?after=1000000")["stopped"]
        with pytest.raises(ConfigError, match="choose another with --port"), serve(session, *address(url)):
            pass


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    return host, int(port)


def test_the_page_refuses_others_and_nonsense(session: Session) -> None:
    with serve(session, "127.0.0.1", 0) as url:
        for headers in ({"Origin": "http://elsewhere.example"}, {"Host": "elsewhere.example"}):
            assert refused(f"{url}keys", {"held": ["w"]}, **headers) == (403, "only the page served here may ask")
        assert refused(f"{url}view?after=x")[0] == 400
        assert "key 'x' is unknown" in refused(f"{url}keys", {"held": ["x"]})[1]
        for body in ({}, {"held": 3}, [1], "w", {"held": [["w"]]}):
            assert refused(f"{url}keys", body)[0] == 400
        assert refused(f"{url}nothing")[0] == refused(f"{url}nothing", {})[0] == 404
        assert refused(f"{url}keys", {"held": ["w"] * 5000})[0] == 400
    first = session.view(0, 5)
    assert first is None or first.frame == 0, "nothing moved"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium (Debian's package) and playwright (PyPI), which drive the page as a person would",
)
def test_the_page_in_chromium(session: Session) -> None:
    from playwright.sync_api import sync_playwright

    with serve(session, "127.0.0.1", 0) as url, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        errors: list[Any] = []
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(url)
        page.wait_for_selector("#picture[data-frame='0']")
        assert page.evaluate("document.getElementById('picture').decode().then(() => picture.naturalWidth)") == 40
        page.keyboard.down("w")
        page.keyboard.down("ArrowLeft")
        page.wait_for_function(f"Number(picture.dataset.frame) >= {2 * session.frames_per_step}")
        assert page.eval_on_selector_all("#keys .down", "shown => shown.map(one => one.dataset.names)") == [
            "w ",
            "j ArrowLeft",
        ]
        page.keyboard.up("w")
        page.keyboard.up("ArrowLeft")
        assert "frame" in page.inner_text("#status")
        page.keyboard.press("r")
        page.wait_for_function("picture.dataset.frame === '0'")
        page.keyboard.press("q")
        page.wait_for_function("document.getElementById('status').textContent === 'stopped'")
        browser.close()
        assert not errors and session.stopped


def test_what_a_terminal_sends() -> None:
    assert names("w\x1b[AW\x1b[Dq") == ["w", "ArrowUp", "w", "ArrowLeft", "q"]


@pytest.mark.parametrize("kind", ["zarr", "rrd"])
def test_the_command_in_a_terminal_records(tiny_model: WorldModel, tmp_path: Path, kind: str) -> None:
    save_bundle(tmp_path / "bundle", tiny_model, {})
    record = tmp_path / f"drive.{kind}"
    words = ["teleop", "--bundle", str(tmp_path / "bundle"), "--control", "terminal", "--record", str(record)]
    main, other = pty.openpty()
    code = "import sys; from sanawm_env import cli; sys.exit(cli.main(sys.argv[1:]))"
    if kind == "zarr":  # beside a store the viewer shows the frames; no screen here, so they go to a file
        seen = f"s.Viewer = lambda name, memory: s.GrowingFile({str(tmp_path / 'seen.rrd')!r})"
        code = f"import sanawm_env.wrappers.rerun_sink as s; s.check_screen = lambda: None; {seen}; {code}"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdin=other, stdout=other, stderr=other)
    os.close(other)
    printed = ""

    def until(text: str) -> None:
        nonlocal printed
        while text not in printed:
            printed += os.read(main, 4096).decode()

    until("frame 0")
    for _ in range(3):
        os.write(main, b"w")
        time.sleep(0.1)
    until("frame 8")
    os.write(main, b"q")
    until("recorded")
    assert process.wait(20) == 0
    os.close(main)
    if kind == "zarr":
        episode = EpisodeStore(record)[0]
        assert len(episode["frames"]) >= 8 and episode["actions"][0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
        assert (tmp_path / "seen.rrd").stat().st_size > 10_000
    else:
        from rerun.chunk import RrdReader

        assert "/plots/actions/world" in {chunk.entity_path for chunk in RrdReader(record).stream().to_chunks()}


def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, match in (
        ({"record": Path("a.mp4")}, r"ends in \.rrd or \.zarr"),
        ({"port": -1}, "port is -1"),
        ({"control": "terminl"}, "did you mean 'terminal'"),
    ):
        with pytest.raises(ConfigError, match=match):
            Teleop(**options)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["teleop", "--control", "terminal"]) == 2
    assert "no screen here" in capsys.readouterr().err
