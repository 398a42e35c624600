"""Small files that must never be seen half-written, and JSON that may be damaged."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

from lab import json_text
from lab.errors import LabError
from lab.schema import show

LARGEST_JSON = 64_000_000  # bytes of one file of a run, a model or a dataset's card


def write_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Write aside, fsync (unless `durable` is off), rename over `path`."""
    # two threads may write the same file, such as the heartbeat
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # a full disk names no file
        raise
    if durable:
        sync_folder(path.parent)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=True) + "\n", durable=durable)


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file. Raises OSError, also for a device, a pipe (which would never
    end) and a file of more than `most` bytes."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        now = os.fstat(handle)
        if not stat.S_ISREG(now.st_mode):
            raise OSError(f"{path} is not a regular file")
        if now.st_size > most:
            raise OSError(f"{path} has {now.st_size:,} bytes; at most {most:,} are read")
        return file.read(most)


def load_json(path: Path, most: int) -> Any:
    """The JSON of a file that a person names. Raises LabError that says what is wrong with it."""
    name, way_out = f"'{show(str(path))}'", "See the README for an example of a spec."
    try:
        return json_text.parse(read_bytes(path, most))
    except FileNotFoundError:
        raise LabError(f"There is no file {name}.", "Give a file with JSON.") from None
    except OSError as error:
        reason = error.strerror or error
        raise LabError(f"{name} cannot be read: {reason}.", "Give a file with JSON.") from None
    except json_text.NotJson as error:
        raise LabError(f"{name} is not JSON: {error}.", way_out) from None
    except json_text.BadJson as error:
        raise LabError(f"{name} cannot be read: {error}.", way_out) from None
    except ValueError:  # a NUL in the name
        raise LabError(f"{name} is not the name of a file.", "Give a file with JSON.") from None


def read_json(path: Path) -> Any | None:
    """The parsed file, or None if it is missing, unreadable, nested too deeply or not JSON."""
    try:
        return json_text.parse(read_bytes(path, LARGEST_JSON), unique=False)
    except (OSError, ValueError):
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """As `read_json`, but None for anything that is not a JSON object."""
    value = read_json(path)
    return value if isinstance(value, dict) else None


def part(value: Any, *keys: str) -> dict[str, Any]:
    """The object under `keys` of a stored value, which may hold anything; {} without one."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | int | None:
    """A stored value as a finite number that a double can hold, or None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int):
        return value if abs(value) < 1 << 1000 else None
    return value if math.isfinite(value) else None


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size_of(folder: Path) -> int:
    """Bytes of the files below `folder`; links are not followed."""
    if not folder.is_dir():
        return 0
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(base, name)).st_size
            except OSError:
                continue  # a file that the worker renamed or removed meanwhile
    return total


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours; a link is removed, never followed."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
