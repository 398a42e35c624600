"""Exported runs that are damaged, lying, or no runs."""

from __future__ import annotations

import hashlib
import io
import json
import random
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.hostile.case import ODD, Case, WronglyTaken, damaged, filled
from bench.synthetic_runs import make_run
from lab import paths
from lab.errors import LabError
from lab.runs import actions, export_import

SHARE = 0.15
Members = dict[str, bytes]
LISTED: tuple[Any, ...] = (
    None, 5, "x", [], {}, {"bytes": 1}, {"sha256": "0" * 64}, {"bytes": "x"},
)  # fmt: skip
SWAPPED: tuple[Any, ...] = (
    *ODD[:6], "x", "../../x", [], ["spec.json"], {}, {"spec.json": 5},
)  # fmt: skip


@contextmanager
def prepared(folder: Path, chance: random.Random, count: int) -> Iterator[list[Case]]:
    run = make_run(0, 40)
    (run.artifact).mkdir()
    (run.artifact / "adapter_config.json").write_text("{}")
    good = export_import.export(run, folder / "run.zip").read_bytes()
    actions.delete(run)
    with zipfile.ZipFile(io.BytesIO(good)) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}

    def case(name: str, content: bytes, expected: str = "refused") -> Case:
        return Case("archive", name, lambda: _import(folder, content), expected)

    def changed(name: str, change: Callable[[Members, dict[str, Any]], None]) -> Case:
        return case(name, _rewritten(members, change))

    written = [case("a good one", good, "accepted")]
    written += [
        case(f"cut at {share:.0%}", good[: int(len(good) * share)])
        for share in (0.0, 0.1, 0.5, 0.9, 0.999)
    ]
    written += [
        case(f"{content[:20]!r}", content)
        for content in (
            b"PK",
            b"PK\x03\x04",
            b"PK\x05\x06" + b"\x00" * 18,
            b"not a zip",
            b"\x1f\x8b",
        )
    ]
    written += [changed(f"without {name}", _without(name)) for name in ("spec.json", "result.json")]
    written.append(case("without a manifest", _zipped(members, leave_out=export_import.MANIFEST)))
    for name in ("spec.json", "result.json"):
        for data in (b"", b"[]", b"{", b"{}", b"null", b"[" * 700 + b"]" * 700):
            written.append(changed(f"{name} is {data[:20]!r}", _with(name, data)))
    written += [
        changed(f"manifest: {key} is {str(value)[:20]!r}", _manifest_with(key, value))
        for key in ("v", "run", "files")
        for value in SWAPPED
        if not (key == "v" and value in (1, True))
    ]
    written += [changed(f"listed as {str(value)[:30]!r}", _listed_as(value)) for value in LISTED]
    for name in ("../evil.json", "/etc/evil.json", "artifact/../../evil.json", "a\\evil.json",
                 "artifact/", "artifact/model.bin", "artifact/x.pkl", "artifact/run.py",
                 "process.json", "SPEC.json", "artifact/" + "x" * 200 + ".json", "a\x00b.json",
                 "artifact/x.json/y.json", "checkpoints/step-x/a.json", "commands/stop",
                 "artifact/\u202egpj.json"):  # fmt: skip
        written.append(changed(f"holds {name[:40]!r}", _with(name, b"{}")))
    written += [
        case(f"a member of kind {kind:o}", _zipped(members, kind=kind))
        for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR)
    ]
    written += [
        case(f"packed by {method}", _zipped(members, method=method))
        for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    ]
    written.append(changed("a bomb", _with("artifact/x.json", b"0" * 60_000_000)))
    written.append(case("a name that stands twice", _zipped(members, twice="spec.json")))
    written.append(case("6,000 members", _zipped(members, extra=6000)))

    def more(i: int) -> Case:
        if i % 2:
            flipped = bytearray(good)
            for _ in range(chance.randint(1, 3)):
                flipped[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
            return case(f"bits flipped {i}", bytes(flipped), "either")
        content = damaged(chance, good)
        return case(f"damaged {i}", content, "either")

    yield filled(chance, written, count, more)


def _import(folder: Path, content: bytes) -> None:
    file = folder / "hostile.zip"
    file.write_bytes(content)
    before = _everything()
    try:
        run = export_import.import_run(file)
    except LabError:
        if _everything() != before:
            raise WronglyTaken("a refused import left something behind") from None
        raise
    actions.delete(run)


def _everything() -> list[str]:
    return sorted(str(file) for file in paths.home().rglob("*"))


def _rewritten(members: Members, change: Callable[[Members, dict[str, Any]], None]) -> bytes:
    """The archive with `change` made to its members and its manifest, which fits them again
    before `change` has the last word on it."""
    rewritten = dict(members)
    manifest = json.loads(rewritten.pop(export_import.MANIFEST))
    change(rewritten, {})
    manifest["files"] = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in rewritten.items()
    }
    change({}, manifest)
    rewritten[export_import.MANIFEST] = json.dumps(manifest).encode()
    return _zipped(rewritten)


def _without(name: str) -> Callable[[Members, dict[str, Any]], None]:
    def change(members: Members, manifest: dict[str, Any]) -> None:
        members.pop(name, None)

    return change


def _with(name: str, data: bytes) -> Callable[[Members, dict[str, Any]], None]:
    def change(members: Members, manifest: dict[str, Any]) -> None:
        if members:
            members[name] = data

    return change


def _manifest_with(key: str, value: Any) -> Callable[[Members, dict[str, Any]], None]:
    def change(members: Members, manifest: dict[str, Any]) -> None:
        if manifest:
            manifest[key] = value

    return change


def _listed_as(value: Any) -> Callable[[Members, dict[str, Any]], None]:
    def change(members: Members, manifest: dict[str, Any]) -> None:
        if manifest:
            manifest["files"]["spec.json"] = value

    return change


def _zipped(
    members: Members,
    *,
    leave_out: str = "",
    kind: int = 0,
    method: int = zipfile.ZIP_DEFLATED,
    twice: str = "",
    extra: int = 0,
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that is there twice
        for name, data in members.items():
            if name == leave_out:
                continue
            member = zipfile.ZipInfo(name)
            member.compress_type = method
            if kind and name == "spec.json":
                member.external_attr = (kind | 0o644) << 16
            archive.writestr(member, data)
        if twice:
            archive.writestr(twice, b"{}")
        for i in range(extra):
            archive.writestr(f"artifact/x{i}.json", b"{}")
    return out.getvalue()
