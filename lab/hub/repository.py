"""A repository of the Hub at one commit: which files it holds, how large they are, their hashes.

An id may name a branch, a tag or a commit behind a #: `org/name#v1.0`. What lies in a commit never
changes, so a listing is kept under LAB_HOME/cache/hub, and a commit whose files are in the cache
is used without asking the Hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import parse_qsl, quote, urlsplit

from lab import paths
from lab.atomic_files import read_object, write_json
from lab.hub import client, settings
from lab.hub.problems import HubError, HubUnreachable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
BLOB = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?", re.ASCII)
MAIN = "main"
MAX_FILES = 100_000
MAX_PAGES = 200
# no step out of a folder, and no control character: a dot would not match behind a line's end
WHOLE_PATH = re.compile(r"(?!/)(?!.*(^|/)\.\.?(/|$))(?!.*//)[^\0-\x1f\x7f\\]{1,1000}")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a commit. `blob` is the sha256 of a large file, git's own hash of a small one."""

    path: str
    size: int
    blob: str

    @property
    def sha256(self) -> str | None:
        return self.blob if SHA256.fullmatch(self.blob) else None


@dataclass(frozen=True)
class Repository:
    """`kind` is "models" or "datasets"; `commit` has 40 hexadecimal digits."""

    kind: str
    name: str
    commit: str

    @property
    def subject(self) -> str:
        """What messages call it."""
        return subject(self.kind, self.name)

    def url(self, path: str) -> str:
        """Where the bytes of a file are."""
        before = "datasets/" if self.kind == "datasets" else ""
        return f"{settings.endpoint()}/{before}{self.name}/resolve/{self.commit}/{quote(path)}"


def subject(kind: str, name: str) -> str:
    return f"The {'model' if kind == 'models' else 'dataset'} '{name}'"


def split_id(text: str) -> tuple[str, str]:
    """(the id without its revision, the revision or "") of an id as a person writes it."""
    name, _, revision = text.partition("#")
    return name, revision


def is_id(text: str) -> bool:
    """Whether `text` can be the id of a model, with a revision or without."""
    name, revision = split_id(text)
    if not NAME.fullmatch(name) or ".." in name or "--" in name:
        return False
    return "#" not in text or REVISION.fullmatch(revision) is not None


def is_commit(revision: Any) -> TypeGuard[str]:
    return isinstance(revision, str) and COMMIT.fullmatch(revision) is not None


def at_commit(text: str, commit: Any) -> str:
    """The id at `commit`, if it is an id of the Hub without a revision and that is a commit."""
    is_open = is_id(text) and "#" not in text
    return f"{text}#{commit}" if is_open and is_commit(commit) else text


def resolve(kind: str, name: str, revision: str = "") -> Repository:
    """The repository at the commit that `revision` (by default the branch main) is now.

    A commit is taken as it is. Where the Hub is not there, the cache's last word counts. Raises
    HubError.
    """
    requested = revision or MAIN
    if is_commit(requested):
        return Repository(kind, name, requested)
    try:
        return Repository(kind, name, current_commit(kind, name, requested))
    except HubUnreachable as error:
        commit = cached_commit(kind, name, requested)
        if commit is None:
            raise HubUnreachable(
                f"{error.message} It is not in the local cache either.", error.hint, kind=error.kind
            ) from None
        return Repository(kind, name, commit)


def current_commit(kind: str, name: str, revision: str = MAIN) -> str:
    """The commit of a branch or tag as the Hub says it now. Raises HubError."""
    about = subject(kind, name) if revision == MAIN else subject(kind, f"{name}#{revision}")
    info, _ = client.get_json(f"/api/{kind}/{name}/revision/{quote(revision, safe='')}", about)
    commit = info.get("sha") if isinstance(info, dict) else None
    if not is_commit(commit):
        raise HubError(
            f"{about}: {client.host()} names no commit.", "Check HF_ENDPOINT.", kind="server"
        )
    return commit


def commit_now(kind: str, name: str, revision: str) -> str | None:
    """The commit of a branch or tag; None where the Hub is not there to say it."""
    try:
        return current_commit(kind, name, revision or MAIN)
    except HubError:
        return None  # it is only to know: what was pinned is used in any case


def moved_on(name: str, revision: str, commit: str, now: str | None) -> str:
    """A sentence if the branch `revision` is not at `commit` any more but at `now`, else empty."""
    if now is None or now == commit or is_commit(revision):
        return ""
    return (
        f"The branch {revision or MAIN} of '{name}' has moved on to {now[:12]} on the Hub; "
        f"{commit[:12]} is used."
    )


def cached_commit(kind: str, name: str, revision: str) -> str | None:
    """The commit that the cache knows of a branch or tag."""
    if is_commit(revision):
        return revision
    try:
        commit = (
            (folder_of(kind, name) / "refs" / (revision or MAIN))
            .read_text(encoding="utf-8")
            .strip()
        )
    except (OSError, ValueError):
        return None
    return commit if is_commit(commit) else None


def folder_of(kind: str, name: str) -> Path:
    """The repository's folder in the cache, named as the huggingface_hub library names it."""
    return settings.cache_folder() / "--".join([kind, *name.split("/")])


def snapshot(repository: Repository) -> Path:
    return folder_of(repository.kind, repository.name) / "snapshots" / repository.commit


def files(repository: Repository) -> dict[str, RemoteFile]:
    """Every file of the commit by its path. Raises HubError."""
    entries = _kept_listing(repository)
    if entries is None:
        entries = _listing(repository)
        with contextlib.suppress(OSError):  # it can be asked for again
            file = _listing_file(repository)
            paths.make_folder(file.parent)
            write_json(file, {"v": 1, "files": [asdict(entry) for entry in entries]}, durable=False)
    return {entry.path: entry for entry in entries}


def _listing_file(repository: Repository) -> Path:
    key = f"{settings.endpoint()} {repository.kind} {repository.name} {repository.commit}"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return paths.home() / "cache" / "hub" / f"{name}.json"


def _kept_listing(repository: Repository) -> list[RemoteFile] | None:
    listed = (read_object(_listing_file(repository)) or {}).get("files")
    if not isinstance(listed, list):
        return None
    entries = [_remote_file(entry) for entry in listed]
    return None if None in entries else [entry for entry in entries if entry is not None]


def _listing(repository: Repository) -> list[RemoteFile]:
    path = f"/api/{repository.kind}/{repository.name}/tree/{repository.commit}"
    params: dict[str, Any] = {"recursive": "true"}
    entries: list[RemoteFile] = []
    for _ in range(MAX_PAGES):
        listed, headers = client.get_json(path, repository.subject, params)
        for value in listed if isinstance(listed, list) else []:
            if isinstance(value, dict) and value.get("type") == "file":
                lfs = value.get("lfs")
                blob = lfs.get("oid") if isinstance(lfs, dict) else value.get("oid")
                entry = _remote_file(value | {"blob": str(blob).removeprefix("sha256:")})
                if entry is not None:
                    entries.append(entry)
        following = re.search(r'<([^>]+)>;\s*rel="next"', headers.get("link", ""))
        if following is None or len(entries) > MAX_FILES:
            return entries
        # a cursor; the address itself stays the one that was named
        params = dict(parse_qsl(urlsplit(following[1]).query))
    return entries


def _remote_file(value: Any) -> RemoteFile | None:
    """One entry of a listing; None for what cannot be a file of a repository."""
    if not isinstance(value, dict):
        return None
    path, size, blob = value.get("path"), value.get("size"), value.get("blob")
    if not isinstance(path, str) or not WHOLE_PATH.fullmatch(path):
        return None
    if type(size) is not int or size < 0:
        return None
    if not isinstance(blob, str) or not BLOB.fullmatch(blob):
        return None
    return RemoteFile(path, size, blob)
