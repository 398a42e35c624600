"""The header of a safetensors file: what the library refuses is refused, and nothing else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lab.errors import LabError
from lab.models import headers
from lab.models.headers import Stored
from tests.models.hostile import entry, raw, tensors

EIGHT = bytes(8)
ENTRY = [json.dumps(entry(offsets=[start, start + 8])).encode() for start in (0, 8)]
DAMAGED = {
    "empty": b"",
    "seven bytes": bytes(7),
    "no header": bytes(8),
    "random": bytes(range(256)) * 8,
    "a zip, as torch writes": b"PK\x03\x04" + bytes(400),
    "a length of 2**60": raw(b"{}", length=2**60),
    "a length of 2**64 - 1": raw(b"{}", length=2**64 - 1),
    "longer than the file": raw(b"{}", length=3),
    "a header over the bound": raw(b"{}", length=headers.MAX_HEADER_BYTES + 1),
    "not JSON": raw(b"{]"),
    "not UTF-8": raw(b'{"\xff": 1}'),
    "a list": raw(b"[]"),
    "a number": raw(b"5"),
    "nested": raw(b"[" * 100_000),
    "nested objects": raw(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "a name twice": raw(b'{"a":' + ENTRY[0] + b',"a":' + ENTRY[1] + b"}", bytes(16)),
    "entry is text": tensors({"a": "x"}),
    "entry lacks a type": tensors({"a": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT),
    "unknown type": tensors({"a": entry("F33")}, EIGHT),
    "type is a list": tensors({"a": entry(["F32"])}, EIGHT),
    "shape is text": tensors({"a": entry(shape="2")}, EIGHT),
    "shape is negative": tensors({"a": entry(shape=[-2])}, EIGHT),
    "shape is a fraction": tensors({"a": entry(shape=[2.0])}, EIGHT),
    "shape is true": tensors({"a": entry("U8", [True], [0, 1])}, b"x"),
    "shape overflows": tensors({"a": entry(shape=[2**40, 2**40])}, EIGHT),
    "shape needs more": tensors({"a": entry(shape=[3])}, EIGHT),
    "shape needs less": tensors({"a": entry(shape=[1])}, EIGHT),
    "offsets are one": tensors({"a": entry(offsets=[0])}, EIGHT),
    "offsets run backwards": tensors({"a": entry(offsets=[8, 0])}, EIGHT),
    "offsets beyond the end": tensors({"a": entry(offsets=[8, 16])}, EIGHT),
    "offsets of 2**70": tensors({"a": entry(offsets=[2**70, 2**70 + 8])}, EIGHT),
    "a hole in front": tensors({"a": entry(offsets=[4, 12])}, bytes(12)),
    "a hole between": tensors({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)),
    "an overlap": tensors({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
    "the same bytes twice": tensors({"a": entry(), "b": entry()}, EIGHT),
    "truncated data": tensors({"a": entry()}, bytes(7)),
    "bytes left over": tensors({"a": entry()}, bytes(9)),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_as_the_library_refuses_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(DAMAGED[name])
    with pytest.raises(LabError, match="is not a readable safetensors file"):
        headers.read(file)
    with pytest.raises((SafetensorError, OSError, ValueError)):
        safe_open(file, framework="np")


def test_a_whole_file_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    arrays = {
        "b.weight": np.zeros((3, 4), np.float16),
        "a": np.zeros((), np.float64),
        "empty": np.zeros((0, 5), np.float32),
        "ids": np.zeros((7,), np.int64),
    }
    save_file(arrays, file, metadata={"format": "pt"})
    assert headers.read(file) == {
        "b.weight": Stored("F16", (3, 4)),
        "a": Stored("F64", ()),
        "empty": Stored("F32", (0, 5)),
        "ids": Stored("I64", (7,)),
    }


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"'gone.safetensors' cannot be read: No such file"):
        headers.read(tmp_path / "gone.safetensors")


def test_only_the_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    size = 40_000_000_000
    with file.open("wb") as opened:
        opened.write(tensors({"a": entry("U8", [size], [0, size])}))
        opened.truncate(opened.tell() + size)  # a file of holes
    if os.stat(file).st_blocks * 512 > 10**6:
        pytest.skip("this file system has no sparse files")
    started = time.monotonic()
    assert headers.read(file) == {"a": Stored("U8", (size,))}
    assert time.monotonic() - started < 5, "40 GB were not read"


def test_the_bound_of_a_header_holds_for_large_files_too() -> None:
    for over in (0, 1):
        start = (headers.MAX_HEADER_BYTES + over).to_bytes(8, "little")
        if over:
            with pytest.raises(LabError, match=r"its header would have 25,000,001 bytes"):
                headers.header_length(start, 10**12, "large")
        else:
            assert headers.header_length(start, 10**12, "large") == headers.MAX_HEADER_BYTES


def test_a_link_is_no_file_of_a_result(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "real.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real.safetensors")
    assert headers.read_if_there(tmp_path / "real.safetensors") == {"a": Stored("F32", (2,))}
    assert headers.read_if_there(tmp_path / "link.safetensors") == {}
    assert headers.read_if_there(tmp_path / "gone.safetensors") == {}


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for time_ns, name in ((10**18, "a"), (10**18 + 1000, "b")):
        save_file({name: np.zeros(2, np.float32)}, file)
        os.utime(file, ns=(time_ns, time_ns))
        assert list(headers.read(file)) == [name], "Its size is the same, its time is not."


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("BOOL", 8), ("U8", 8), ("F8_E4M3", 8), ("F8_E5M2", 8), ("BF16", 16), ("U16", 16),
     ("I32", 32), ("F32", 32), ("U64", 64), ("C64", 64), ("F4", 4)],
)  # fmt: skip
def test_eight_numbers_of_each_type_take_their_bits(dtype: str, size: int) -> None:
    header = json.dumps({"a": entry(dtype, [8], [0, size])}).encode()
    stored = headers.parse(header, size, "it")["a"]
    assert stored.size_bytes == size
    with pytest.raises(LabError, match="its shape needs another number"):
        wrong = json.dumps({"a": entry(dtype, [8], [0, 2 * size])}).encode()
        headers.parse(wrong, 2 * size, "it")
