from __future__ import annotations

import pytest

from sanawm_env import cli
from sanawm_env.cli_parts import build
from sanawm_env.errors import BundleError
from sanawm_env.evaluation.command import EvalRooms


def test_an_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "rooms", "scens=3"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("sanawm: error: unknown key 'scens' of EvalRooms; did you mean 'scenes'?")
    assert printed.err.count("\n") == 1


def test_an_unknown_bundle_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "rooms", "--bundle", "romms"]) == 2
    assert "rooms" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["eval"], ["evaluate"], ["bench", "kitchens"], ["demo", "--frames", "many"]])
def test_argparse_refuses_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: sanawm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status", "printed"),
    [(BundleError("a\nb"), 2, "sanawm: error: a b\n"), (KeyboardInterrupt(), 130, "sanawm: interrupted")],
)
def test_exit_status(
    raised: BaseException,
    status: int,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(options: object) -> None:
        raise raised

    monkeypatch.setattr(cli, "_demo", fail)
    assert cli.main(["demo"]) == status
    assert capsys.readouterr().err.startswith(printed)


def test_flags_are_stronger_than_overrides() -> None:
    options = cli.parser().parse_args(["eval", "rooms", "scenes=3", "seed=5", "--scenes", "4", "--json"])
    built = build(EvalRooms, "eval_rooms", options)
    assert (built.scenes, built.seed, options.json) == (4, 5, True)
