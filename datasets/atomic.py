"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sanawm_env.errors import StorageError


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A hidden sibling of `path` to write a file or folder to; it takes the place of `path` only if nothing fails.

    Whatever stood at `path` stays until then. An OSError (a full disk, say) becomes one StorageError.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        _remove(path)
        draft.replace(path)
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"cannot write {path}: {reason}; nothing is left of it. Free space or choose another folder"
        ) from error
    finally:
        _remove(draft)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
