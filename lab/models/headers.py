"""The header of a safetensors file, checked as strictly as the library does, without the library.

A file is the length of its header (8 bytes), the header as JSON, and the tensors' bytes. Nothing
but the header is read, and no more of it than `MAX_HEADER_BYTES`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from lab.errors import LabError
from lab.formatting import quantity
from lab.schema import quote

MAX_HEADER_BYTES = 25_000_000  # the hub reads no longer header either
BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Stored:
    """A tensor as a header describes it. `start` is where its bytes begin, behind the header; two
    tensors that differ in nothing else are equal."""

    dtype: str
    shape: tuple[int, ...]
    start: int = field(default=0, compare=False)

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * BITS[self.dtype] // 8


def read(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name. Raises LabError for anything else."""
    try:
        facts = file.stat()
        return _read(file, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise LabError(
            f"'{quote(file.name)}' cannot be read: {error.strerror or error}.",
            "Check the file and its permissions.",
        ) from None


def read_if_there(file: Path) -> dict[str, Stored]:
    """As `read`; empty if there is no such file, or a link in its place."""
    return read(file) if file.is_file() and not file.is_symlink() else {}


@lru_cache(maxsize=512)
def _read(file: Path, size: int, _changed: int) -> dict[str, Stored]:
    with file.open("rb") as opened:
        length = header_length(opened.read(8), size, file.name)
        return parse(opened.read(length), size - 8 - length, file.name)


def header_length(start: bytes, size: int, name: str) -> int:
    """Bytes of the header of a file of `size` bytes that begins with `start`."""
    if size < 8 or len(start) < 8:
        raise _damaged(name, f"it has {quantity(size, 'byte')}, and no header")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _damaged(name, f"its header would have {length:,} bytes")
    if length > size - 8:
        raise _damaged(name, f"its header has {quantity(length, 'byte')}, the file {size:,}")
    return length


def parse(header: bytes, data_bytes: int, name: str) -> dict[str, Stored]:
    """The tensors that `header` lists, whose bytes fill `data_bytes` without a gap."""
    try:
        listed = json.loads(header.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        raise _damaged(name, "its header is not JSON") from None
    if not isinstance(listed, dict) or header[:1] != b"{":
        raise _damaged(name, "its header is not a JSON object")
    listed.pop("__metadata__", None)
    tensors = {key: _stored(key, value, name) for key, value in listed.items()}
    end = 0
    for key, (start, stop) in sorted(
        ((key, value["data_offsets"]) for key, value in listed.items()), key=lambda pair: pair[1]
    ):
        if start != end:
            raise _damaged(name, f"the bytes of '{quote(key)}' begin at {start:,}, not at {end:,}")
        end = stop
    if end != data_bytes:
        raise _damaged(
            name, f"its tensors take {quantity(end, 'byte')}, and it holds {data_bytes:,}"
        )
    return tensors


def _stored(key: str, value: Any, name: str) -> Stored:
    """One entry of the header: its type is known, and its bytes are as many as its shape says."""
    entry = value if isinstance(value, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(name, f"'{quote(key)}' has the unknown type {quote(str(dtype))}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _damaged(name, f"'{quote(key)}' has no valid shape or offsets")
    bits = math.prod(shape) * BITS[dtype]
    if offsets[1] - offsets[0] != bits / 8:
        raise _damaged(
            name,
            f"'{quote(key)}' has {quantity(offsets[1] - offsets[0], 'byte')}, its shape needs "
            "another number",
        )
    return Stored(dtype, tuple(shape), offsets[0])


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(type(item) is int and 0 <= item < 2**48 for item in value)
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name twice")
    return fields


def _damaged(name: str, why: str) -> LabError:
    return LabError(
        f"'{quote(name)}' is not a readable safetensors file: {why}.",
        "Copy or download it again.",
    )
