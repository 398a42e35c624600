"""Small files that must never be seen half-written, JSON that may be damaged, and names that may
lead elsewhere."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import IO, Any

from lab import json_text
from lab.errors import LabError
from lab.schema import quote

NOT_DATA = (Path("/proc"), Path("/sys"))  # these only look like files

MAX_JSON_BYTES = 64_000_000  # bytes of one file of a run, a model or a dataset's card


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
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            error.filename, error.filename2 = str(path), None  # a full disk names no file
        raise
    if durable:
        sync_folder(path.parent)


def _open_private(path: str, flags: int) -> int:
    handle = os.open(path, flags, 0o600)
    os.fchmod(handle, 0o600)  # one that was there already keeps its mode otherwise
    return handle


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=True) + "\n", durable=durable)


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file. Raises OSError, also for a device, a pipe (which would never
    end) and a file of more than `most` bytes."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(f"{path} is not a regular file")
        if info.st_size > most:
            raise OSError(f"{path} has {info.st_size:,} bytes; at most {most:,} are read")
        return file.read(most)


def load_json(path: Path, most: int) -> Any:
    """The JSON of a file that a person names. Raises LabError that says what is wrong with it."""
    name, way_out = f"'{quote(str(path))}'", "See the README for an example of a spec."
    try:
        file, _ = open_regular(path)
        with file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise OSError(f"it has {size:,} bytes; at most {most:,} are read")
            return json_text.parse(file.read(most))
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
        return json_text.parse(read_bytes(path, MAX_JSON_BYTES), unique=False)
    except (OSError, ValueError):
        return None


def sha256_of(path: Path) -> str:
    """The hash of a file of any size, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path) -> dict[str, Any] | None:
    """As `read_json`, but None unless the file holds a JSON object."""
    value = read_json(path)
    return value if isinstance(value, dict) else None


def real_file(path: Path, name: str = "file") -> Path:
    """Where `path` leads with every link followed: what it is has to be judged by this, not by the
    name of a link. Raises LabError unless that is a regular file."""
    try:
        real = path.resolve(strict=True)
        is_regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, ValueError, RuntimeError):  # also a name with NUL, and links in a circle
        raise LabError(
            f"The {name} '{quote(str(path))}' does not exist.", "Check the path."
        ) from None
    if not is_regular or any(folder in real.parents for folder in NOT_DATA):
        raise LabError(
            f"The {name} '{quote(str(path))}' is not a regular file.",
            "Give the path of a file.",
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
                f"'{quote(str(path))}' is not a regular file.", "Give the path of a file."
            )
        return os.fdopen(handle, "rb"), real
    except BaseException:
        os.close(handle)
        raise


def stray_links(folder: Path) -> list[str]:
    """What in `folder` a library must not read: pipes and devices, and links to files that their
    names do not tell of, such as `tokenizer.json` that leads to a key. The hub's own cache keeps
    files as links into `blobs` beside its snapshots; those are fine."""
    blobs = folder.resolve().parent.parent / "blobs"
    strays = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = Path(entry.path)  # whose questions a link to itself does not end
            if entry.name.startswith(".") or path.is_dir():
                continue
            real = Path(os.path.realpath(path))
            if not path.is_file():
                strays.append(f"'{quote(entry.name)}' is not a regular file")
            elif real.parent != blobs and real.suffix != Path(entry.name).suffix:
                strays.append(f"'{quote(entry.name)}' is a link to '{quote(str(real))}'")
    return strays


def part(value: Any, *keys: str) -> dict[str, Any]:
    """The object under `keys` of a stored value, which may hold anything; {} without one."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def finite_number(value: Any) -> float | int | None:
    """A stored value as a finite number that a double can hold, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int):
        return value if abs(value) < 1 << 1000 else None
    return value if math.isfinite(value) else None


def file_identity(path: Path) -> tuple[int, ...]:
    """Differs as soon as another file or folder lies under the name, or it is written to; () where
    there is none. More than its time counts, which two writes at once or a copy may share."""
    try:
        info = path.stat()
    except OSError:
        return ()
    return info.st_ino, info.st_size, info.st_mtime_ns


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut. Some file systems, of networks
    and of USB sticks, cannot sync folders: what is written there is no worse for it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """fsync a file, or every file and folder below a folder: what is given a name after this is
    whole under it after a power cut. A rename may reach the disk before what was written."""
    if not path.is_dir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        return
    for entry in path.iterdir():
        if not entry.is_symlink():
            sync_tree(entry)
    sync_folder(path)


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
