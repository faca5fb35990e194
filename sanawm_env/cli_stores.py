"""Subcommands of `sanawm` on episode stores. They take no configuration, flags alone."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def add_stores(commands: Any) -> None:
    """Adds the subcommands to those of `sanawm`."""
    told = "read every byte of episode stores and say what is damaged; exit status 1 if anything is"
    verify = commands.add_parser("verify", help=told, description=told)
    verify.add_argument("stores", metavar="STORE", nargs="+")
    verify.add_argument("--json", action="store_true", help="print one JSON object a store")
    verify.set_defaults(run=_verify)
    told = "remove from episode stores what a writer that was cut off left behind; no episode is touched"
    repair = commands.add_parser("repair", help=told, description=told)
    repair.add_argument("stores", metavar="STORE", nargs="+")
    repair.set_defaults(run=_repair)
    told = "join episode stores into one; pictures are copied as they are"
    merge = commands.add_parser("merge", help=told, description=told)
    merge.add_argument("stores", metavar="STORE", nargs="+")
    merge.add_argument(
        "--out", metavar="TARGET", required=True, help="the store that gets the episodes, made if absent"
    )
    merge.add_argument("--resume", action="store_true", help="leave out what the target has already")
    merge.set_defaults(run=_merge)
    told = "write the episodes of a store in another format"
    export = commands.add_parser("export", help=told, description=told)
    export.add_argument("store", metavar="STORE")
    export.add_argument("--format", required=True, help="lerobot, diffusion_policy, minari or mp4")
    export.add_argument("--out", metavar="FOLDER", required=True, help="the new dataset; refused if it exists")
    export.set_defaults(run=_export)
    told = "append the episodes of a dataset of another format to a store; called again, it goes on where it stopped"
    load = commands.add_parser("import", help=told, description=told)
    load.add_argument("dataset", metavar="DATASET")
    load.add_argument("--format", required=True, help="lerobot, diffusion_policy or mp4")
    load.add_argument("--out", metavar="STORE", required=True, help="the store that gets them, made if absent")
    load.add_argument("--fps", type=float, help="frames a second, where the dataset does not say it")
    load.add_argument("--licence", action="append", default=[], help="of the pictures, where it is no export of ours")
    load.add_argument("--synthetic", action="store_true", help="the pictures were generated; likewise")
    load.set_defaults(run=_import)
    told = "make stored episodes again from bundle, seed and actions, and say whether their frames are the same"
    replay = commands.add_parser("replay", help=told, description=told)
    replay.add_argument("store", metavar="STORE")
    replay.add_argument("--check", action="store_true", help="exit status 1 if a frame differs")
    replay.add_argument("--episode", type=int, nargs="+", metavar="N", help="these alone, by their index in the store")
    replay.add_argument("--bundle", metavar="BUNDLE", help="where it is, if not where its name says")
    replay.add_argument("--device", metavar="DEVICE")
    replay.set_defaults(run=_replay)
    told = "open a stored episode in the Rerun viewer, beside its ground truth where the store has it"
    view = commands.add_parser("view", help=told, description=told)
    view.add_argument("store", metavar="STORE", type=Path)
    view.add_argument("--episode", type=int, metavar="N", default=0)
    view.add_argument("--compare", type=Path, metavar="STORE", help="side by side with an episode of this store")
    view.add_argument("--compare-episode", type=int, metavar="N", help="which one, the same number by default")
    view.add_argument("--save", type=Path, metavar="FILE.rrd", help="write a recording and open nothing")
    view.add_argument("--memory", default="2GB", help="what the viewer may take, as 2GB or 25%%")
    view.set_defaults(run=_view)


def _verify(options: argparse.Namespace) -> None:
    from sanawm_env.datasets.verify import verify

    reports = []
    for store in options.stores:
        with _progress(f"reading {store}", "file") as progress:
            reports.append(verify(store, progress))
        print(reports[-1].as_json() if options.json else reports[-1].text(), flush=True)
    if any(report.problems for report in reports):
        sys.exit(1)


def _repair(options: argparse.Namespace) -> None:
    from sanawm_env.datasets.verify import repair

    for store in options.stores:
        print(f"{store}: {repair(store).text()}", flush=True)


def _merge(options: argparse.Namespace) -> None:
    from sanawm_env.datasets.union import merge

    with _progress(f"writing {options.out}", "episode") as progress:
        copied = merge(options.stores, options.out, resume=options.resume, progress=progress)
    print(f"{options.out}: {copied} episodes added")


def _export(options: argparse.Namespace) -> None:
    from sanawm_env.datasets.exports.export import export

    with _progress(f"writing {options.out}", "episode") as progress:
        written = export(options.store, options.format, options.out, progress=progress)
    print(f"{options.out}: {written.text()}")


def _import(options: argparse.Namespace) -> None:
    from sanawm_env.datasets.imports.load import load

    told = {"fps": options.fps, "licences": options.licence, "synthetic": options.synthetic}
    with _progress(f"writing {options.out}", "episode") as progress:
        print(f"{options.out}: {load(options.dataset, options.format, options.out, **told, progress=progress).text()}")


def _replay(options: argparse.Namespace) -> None:
    from sanawm_env.generation.replay import replay, summary

    with _progress(f"replaying {options.store}", "episode") as progress:
        results = replay(
            options.store, episodes=options.episode, bundle=options.bundle, device=options.device, progress=progress
        )
    print(summary(results))
    if options.check and any(one.difference for one in results):
        sys.exit(1)


def _view(options: argparse.Namespace) -> None:
    from sanawm_env.view import View, run

    print(run(View(**{name: value for name, value in vars(options).items() if name != "run"})))


@contextlib.contextmanager
def _progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told how much is done, and of how much."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, disable=None) as bar:  # None: not where nobody looks, in a log or a pipe

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
