"""Small files that must never be seen half-written, JSON that may be damaged, and names that may
lead elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import IO, Any

from lab.errors import LabError
from lab.schema import show

NOT_DATA = (Path("/proc"), Path("/sys"))  # what lies there only looks like files


def write_atomic(path: Path, text: str, *, durable: bool = True, private: bool = False) -> None:
    """Write aside, fsync (unless `durable` is off), rename over `path`. What is `private` can be
    read by its owner only, from its first byte on."""
    # two threads may write the same file, such as the heartbeat
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(aside, "w", encoding="utf-8", opener=_open_private if private else None) as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def _open_private(path: str, flags: int) -> int:
    handle = os.open(path, flags, 0o600)
    os.fchmod(handle, 0o600)  # one that was there already keeps its mode otherwise
    return handle


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=True) + "\n", durable=durable)


def read_json(path: Path) -> Any | None:
    """The parsed file, or None if it is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """As `read_json`, but None for anything that is not a JSON object."""
    value = read_json(path)
    return value if isinstance(value, dict) else None


def real_file(path: Path, name: str = "file") -> Path:
    """Where `path` leads with every link followed: what it is has to be judged by this, not by the
    name that somebody gave a link. Raises LabError if that is no regular file."""
    try:
        real = path.resolve(strict=True)
        is_regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, ValueError, RuntimeError):  # also a name with NUL, and links in a circle
        raise LabError(
            f"The {name} '{show(str(path))}' does not exist.", "Check the path."
        ) from None
    if not is_regular or any(folder in real.parents for folder in NOT_DATA):
        raise LabError(
            f"The {name} '{show(str(path))}' is not a regular file.", "Give the path of a file."
        )
    return real


def open_regular(path: Path) -> tuple[IO[bytes], Path]:
    """The open file and its real path, which is read from the file that is open: a name can be
    pointed elsewhere between a look at it and the opening. Raises OSError, and LabError for a
    pipe, a device or a folder; never waits for the other end of a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        real = Path(os.readlink(f"/proc/self/fd/{handle}").removesuffix(" (deleted)"))
        is_regular = stat.S_ISREG(os.fstat(handle).st_mode)
        if not is_regular or any(folder in real.parents for folder in NOT_DATA):
            raise LabError(
                f"'{show(str(path))}' is not a regular file.", "Give the path of a file."
            )
        return os.fdopen(handle, "rb"), real
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path) -> str:
    """The text of a file that a person names. Raises as `open_regular`, and UnicodeDecodeError."""
    file, _ = open_regular(path)
    with file:
        return file.read().decode("utf-8")


def stray_links(folder: Path) -> list[str]:
    """What in `folder` a library must not read: pipes and devices, and links to files that their
    names do not tell of, such as `tokenizer.json` that leads to a key. The hub's own cache keeps
    files as links into `blobs` beside its snapshots; those are fine."""
    blobs = folder.resolve().parent.parent / "blobs"
    strays = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.is_dir():
                continue
            real = Path(os.path.realpath(entry.path))
            if not entry.is_file():
                strays.append(f"'{show(entry.name)}' is not a regular file")
            elif real.parent != blobs and real.suffix != Path(entry.name).suffix:
                strays.append(f"'{show(entry.name)}' is a link to '{show(str(real))}'")
    return strays


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
