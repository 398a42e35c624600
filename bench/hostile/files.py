"""Datasets: damaged rows of every format, and names that are not files."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.hostile.case import Case, damaged, filled
from lab import spec
from lab.data import catalog, format_detection
from lab.data.example_reader import ExampleReader, ReadOptions
from lab.errors import LabError
from lab.runs import export_import

SHARE = 0.2
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}
GOOD: dict[str, bytes] = {
    "good.jsonl": (json.dumps(CHAT) + "\n").encode() * 5,
    "good.json": json.dumps([{"prompt": "a", "completion": "b"}] * 5).encode(),
    "good.csv": b'prompt,completion\nhi,"yes, you"\nho,no\n',
    "cr.csv": b"prompt,completion\rhi,yes\rho,no\r",
    "crlf.csv": b"prompt,completion\r\nhi,yes\r\nho,no\r\n",
    "good.tsv": b"prompt\tcompletion\nhi\tyes\n",
    "good.txt": b"Some text.\n\nMore text.\n" * 50,
    "good.jsonl.gz": gzip.compress((json.dumps(CHAT) + "\n").encode() * 5),
}
DEEP = b"[" * 700 + b"]" * 700
BAD: dict[str, tuple[bytes, ...]] = {
    ".jsonl": (
        b"", b"\n\n\n", b"not json\n", b"[1, 2\n", b"5\n", b"null\n", b"[]\n", b"{}\n",
        b'{"text": ""}\n', b'{"text": 5}\n', b'{"text": null}\n', b'{"text": ["x"]}\n',
        b'{"text": "\xff"}\n', b'{"text": ' + DEEP + b"}\n", DEEP + b"\n", b"[" * 100_000,
        b'{"text": ' + b"9" * 5000 + b"}\n", b"\x00\x00\x00\n", b"PK\x03\x04rest",
        b"\xff\xfeh\x00i\x00", b'{"messages": 5}\n', b'{"messages": []}\n', b'{"messages": [5]}\n',
        b'{"messages": [{"role": "user"}]}\n', b'{"messages": [{"role": 5, "content": "x"}]}\n',
        b'{"messages": [{"role": "user", "content": {}}]}\n', b'{"prompt": "x"}\n',
        b'{"messages": [{"role": "user", "content": "x"}]}\n', b'{"prompt": [], "completion": 5}\n',
        b'{"prompt": {"role": "prompter", "text": "x", "replies": [5]}}\n',
        b'{"prompt": {"role": "prompter", "text": "x", "replies": 5}}\n',
        b'{"question": "x", "choices": 5, "answer": 0}\n',
        b'{"question": "x", "choices": ["a"], "answer": ' + b"9" * 4000 + b"}\n",
        b'{"question": "x", "choices": ["a", "b"], "answer": -9}\n',
        b'{"text": "ok"}\n{"prompt": "a", "completion": "b"}\n',
    ),
    ".json": (b"[", b"[}", b"{", b"[1,,2]", b"5", b"null", b"[]", b"{}", b'{"data": 5}',
              b'{"data": []}', b"[" * 50_000, DEEP, b'[{"text": "a"}', b"[\x00]", b"[1e999]"),
    ".csv": (b"", b"\n", b"a,a\n1,2\n", b",\n1,2\n", b"prompt,completion\n", b"prompt\n\"open\n",
             b"prompt,completion\nhi\n", b"prompt,completion\n1,2,3\n", b"x,y\n1,2\n",
             b'prompt,completion\n"a"b,c\n', b"prompt,completion\nhi,\n", b"\xff,\xfe\n1,2\n"),
    ".tsv": (b"prompt\tprompt\nx\ty\n", b"\t\n\t\n"),
    ".txt": (b"", b"   \n\n", b"\xff\xfe", b"\x00", b"\xe9"),
    ".parquet": (b"", b"PAR1", b"PAR1" + b"\x00" * 100 + b"PAR1", b"text"),
    ".jsonl.gz": (b"", b"\x1f\x8b", b"\x1f\x8b\x08" + b"\x00" * 50, gzip.compress(b""),
                  gzip.compress(b"x")[:-4], gzip.compress(b"\n" * 90_000_000, 9)),
    ".csv.gz": (gzip.compress(b'prompt,completion\n"' + b"x\n" * 100_000),),
}  # fmt: skip
NAMES = ("", ".", "/", "..", "no.jsonl", "a\x00b.jsonl", "x" * 300 + ".jsonl", "folder.jsonl",
         "pipe.jsonl", "/dev/zero", "/dev/stdin.jsonl", "/proc/self/mem", "builtin:", "upload:",
         "upload:../x.jsonl", "builtin:../../x", "org/../name", "~nobody/x.jsonl",
         "loop.jsonl", "huge.json")  # fmt: skip


@contextmanager
def prepared(folder: Path, chance: random.Random, count: int) -> Iterator[list[Case]]:
    here = folder / "files"
    here.mkdir()
    (here / "folder.jsonl").mkdir()
    os.mkfifo(here / "pipe.jsonl")
    (here / "loop.jsonl").symlink_to("loop.jsonl")
    with (here / "huge.json").open("wb") as file:
        file.truncate(1 << 33)  # of zeros, that take no room

    def rows(name: str, content: bytes, expected: str = "refused") -> Case:
        def act() -> None:
            file = here / name
            file.write_bytes(content)
            refused: LabError | None = None
            try:  # as the Data page looks at a file first
                format_detection.detected(str(file))
            except LabError as error:
                refused = error
            read = list(ExampleReader(file, ReadOptions()))
            if refused is not None and read:
                raise refused

        return Case("rows", f"{name} {content[:50]!r}", act, expected)

    def named(name: str) -> list[Case]:
        path = name if ":" in name or name[:1] in ("", "/", "~") else str(here / name)

        def dataset() -> None:
            list(ExampleReader(catalog.resolve(path).path, ReadOptions()))

        return [
            Case("dataset name", name[:60], dataset),
            Case("spec name", name[:60], lambda: spec.load(Path(path))),
            Case("archive name", name[:60], lambda: export_import.import_run(Path(path))),
            Case("upload", name[:60], lambda: catalog.add_file(Path(path))),
        ]

    written = [rows(name, content, "accepted") for name, content in GOOD.items()]
    written += [case for name in NAMES for case in named(name)]
    for suffix, contents in BAD.items():
        written += [rows(f"bad{suffix}", content) for content in contents]

    def more(i: int) -> Case:
        name = chance.choice(list(GOOD))
        return rows(f"{i}-{name}", damaged(chance, GOOD[name]), "either")

    yield filled(chance, written, count, more)
