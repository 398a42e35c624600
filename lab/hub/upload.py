"""Files to the Hub in one commit, through huggingface_hub, and a look whether they came.

Large files go out as Git LFS objects in pieces as they are read. Called in a process of its own,
whose environment lets the library use the network (`VARIABLES`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError, first_line
from lab.hub import credentials, settings
from lab.hub.problems import TOKEN_PAGE, HubError, refusal, unreachable

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
VARIABLES = {
    "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}  # fmt: skip
MESSAGE = "Upload from Finetune Lab"


@dataclass(frozen=True)
class UploadedCommit:
    """What lies on the Hub afterwards; `verified` counts files whose hash there is the one here."""

    url: str
    commit: str
    is_private: bool
    files: int
    bytes: int
    verified: int


def check_name(name: str) -> None:
    """Raise LabError for what is no name of a repository."""
    if (
        not NAME.fullmatch(name)
        or ".." in name
        or "--" in name
        or name.endswith((".git", ".ipynb"))
    ):
        raise LabError(
            f"'{name[:120]}' is not the name of a repository.",
            "Write ORGANISATION/NAME or ACCOUNT/NAME, with letters, digits, -, _ and .",
        )


def check_access() -> None:
    """Raise LabError where nothing can be uploaded: no token, or no network wanted."""
    if settings.is_offline():
        raise unreachable("An upload", "HF_HUB_OFFLINE is set", kind="offline")
    if credentials.current() is None:
        raise LabError(
            "An upload needs a token with the right to write, and none was given.",
            f"Make one in {TOKEN_PAGE}, and give it in HF_TOKEN or on the page.",
        )


def upload(
    name: str,
    files: Mapping[str, Path | bytes],
    *,
    private: bool,
    update: bool = False,
    tell: Callable[[str], object] = lambda phase: None,
) -> UploadedCommit:
    """Commit `files`, by their path in the repository, to the model `name`, which is made if there
    is none. Without `update` one that exists is left alone. Raises LabError, HubError."""
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    check_name(name)
    check_access()
    token = credentials.current()
    assert token is not None
    api = HfApi(endpoint=settings.endpoint(), token=token.value)
    subject = f"The model '{name}'"
    try:
        tell("asking for the repository")
        try:
            there = api.model_info(name)
        except RepositoryNotFoundError:
            there = None
        if there is not None:
            _check_existing(name, bool(there.private), private, update)
        else:
            tell("making the repository")
            api.create_repo(name, private=private, repo_type="model")
            # before a byte is sent: an organisation's rules may make it other than asked for
            if bool(api.model_info(name).private) != private:
                raise LabError(
                    f"{subject} was made {'public' if private else 'private'} by the Hub, which "
                    "was not asked for. Nothing was uploaded.",
                    f"Change it at {settings.endpoint()}/{name}/settings, and push with --update.",
                )
        tell("uploading")
        operations = [
            CommitOperationAdd(path, str(content) if isinstance(content, Path) else content)
            for path, content in sorted(files.items())
        ]
        commit = api.create_commit(name, operations, commit_message=MESSAGE)
        tell("comparing the files on the Hub")
        listed = list(api.list_repo_tree(name, recursive=True, revision=commit.oid))
    except HfHubHTTPError as error:
        response = error.response
        raise _refused(response, subject, name, token) from None
    except (httpx2.HTTPError, OSError) as error:
        raise unreachable(subject, first_line(error)) from None
    except RuntimeError as error:  # of one file of several
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else None
        if cause is not None:
            raise _refused(cause.response, subject, name, token) from None
        raise unreachable(subject, first_line(error)) from None
    verified = _verified(files, listed, subject)
    return UploadedCommit(
        url=f"{settings.endpoint()}/{name}",
        commit=commit.oid,
        is_private=private,
        files=len(files),
        bytes=sum(_size(content) for content in files.values()),
        verified=verified,
    )


def _check_existing(name: str, is_private: bool, private: bool, update: bool) -> None:
    if not update:
        raise LabError(
            f"'{name}' exists on the Hub already.",
            "Choose another name, or say that it is to be updated (--update).",
        )
    if is_private != private:
        kinds = ("private", "public") if is_private else ("public", "private")
        raise LabError(
            f"'{name}' is {kinds[0]} on the Hub, not {kinds[1]}.",
            f"Say {kinds[0]}, or change it on the Hub first.",
        )


def _verified(files: Mapping[str, Path | bytes], listed: list[Any], subject: str) -> int:
    """How many files lie there with the hash and size of ours. Raises LabError for one that lies
    there otherwise or not at all."""
    there = {entry.path: entry for entry in listed if hasattr(entry, "blob_id")}
    for path, content in files.items():
        entry = there.get(path)
        lfs = getattr(entry, "lfs", None)
        local_hash = _digest(content, "sha256" if lfs else "sha1")
        theirs = lfs.sha256 if lfs else getattr(entry, "blob_id", "")
        if local_hash != theirs:
            raise LabError(
                f"{subject}: {path} does not lie on the Hub as it lies here.",
                "Upload it again with --update.",
            )
    return len(files)


def _digest(content: Path | bytes, kind: str) -> str:
    """The sha256 of a large file; of a small one Git's own hash, which counts its length."""
    digest = hashlib.new(kind, usedforsecurity=False)
    if kind == "sha1":
        digest.update(f"blob {_size(content)}\0".encode())
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _refused(response: Any, subject: str, name: str, token: credentials.HubToken) -> LabError:
    if response.status_code == 403:
        return HubError(
            f"{subject}: {token.origin} may not write there.",
            f"Give a token with the right to write to {name.partition('/')[0]}: {TOKEN_PAGE}.",
            kind="token",
        )
    headers = {key.lower(): value for key, value in response.headers.items()}
    try:
        body = response.content[:2000]
    except Exception:  # a streamed answer that was not read
        body = b""
    return refusal(response.status_code, headers, body, subject, token)
