"""A small Hub on 127.0.0.1: one folder a commit, faults as a dictionary, a log to assert on.

    hub = StandIn(folder)
    commit = hub.commit("org/name", files)         the newest one of the branch main
    hub.faults["org/name"] = {"rate": 50_000}      or under "*", for all
    hub.requests("GET", "model.safetensors")       what was asked for, with bytes sent

Faults: gated, may (tokens with access to it), missing, tokens (that the Hub knows), rate (bytes/s),
cut (bytes, then the connection ends), hang (s before an answer), status and count (requests that
get it, -1 for ever), corrupt (bytes, zeros behind so many), whole (no ranges), page (a login in
place of a file), elsewhere (an address that has the bytes), file (a pattern: those files only).
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import shutil
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = 5_000  # bytes from which a file is kept as a large one: redirected, named by its sha256
PAGE = 50  # entries of a listing


@dataclass
class Asked:
    """One request: `sent` counts bytes of the body, `ended` says that all of them are counted."""

    method: str
    path: str
    auth: str
    range: str
    status: int = 0
    sent: int = 0
    began: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)


class StandIn:
    """The server, on a thread, with what it holds and what it was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: dict[str, dict[str, Any]] = {}
        self.prefix = ""  # of every path, as a mirror may have it
        self.cards: list[dict[str, Any]] = []  # what a search gives
        self.log: list[Asked] = []
        self.refs: dict[tuple[str, str], dict[str, str]] = {}
        self.lock = threading.Lock()
        self.counts: dict[str, int] = {}
        self.writers: set[str] = set()  # tokens that may upload
        self.visibility: dict[str, str] = {}
        self.large: dict[str, bytes] = {}  # uploaded, by sha256
        self.policy = ""  # the visibility that it gives whatever is asked for
        self.lost = ""  # a file of an upload that is not kept
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(
        self, name: str, files: Path | dict[str, bytes], kind: str = "models", ref: str = "main"
    ) -> str:
        """Make a folder, or files by name, the newest commit of `ref`; its id."""
        if isinstance(files, Path):
            files = {
                str(file.relative_to(files)): file.read_bytes()
                for file in sorted(files.rglob("*"))
                if file.is_file()
            }
        digest = hashlib.sha1(f"{kind} {name}".encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + b"\0" + content)
        commit = digest.hexdigest()
        folder = self.folder(kind, name, commit)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        self.refs.setdefault((kind, name), {})[ref] = commit
        return commit

    def folder(self, kind: str, name: str, commit: str) -> Path:
        return self.root / kind / name / commit

    def files(self, name: str) -> dict[str, bytes]:
        """The newest commit of a model, by path."""
        folder = self.folder("models", name, self.refs["models", name]["main"])
        return {
            str(file.relative_to(folder)): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }

    def damaged(self, files: dict[str, bytes]) -> dict[str, bytes]:
        return {
            path: content[:-1] if path == self.lost else content for path, content in files.items()
        }

    def requests(self, method: str = "GET", word: str = "") -> list[Asked]:
        with self.lock:
            return [line for line in self.log if line.method == method and word in line.path]

    def sent(self, file: str, *, so_far: bool = False) -> int:
        """Bytes of a file that were sent, over all requests. Waits for those at work, unless
        `so_far`: a client may have the last bytes before the server has counted them."""
        lines = [line for line in self.requests("GET", file) if "/cdn/" in line.path]
        for line in lines:
            line.ended.wait(0 if so_far else 5)
        return sum(line.sent for line in lines)

    def clear(self) -> None:
        with self.lock:
            self.log.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn
    line: Asked

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.line = Asked(
            self.command,
            self.path,
            (self.headers.get("Authorization") or "").removeprefix("Bearer "),
            self.headers.get("Range") or "",
            began=time.monotonic(),
        )
        with self.hub.lock:
            self.hub.log.append(self.line)
        try:
            self.answer()
        except OSError:
            self.close_connection = True  # whoever asked has gone
        finally:
            self.line.ended.set()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    do_PUT = do_POST

    def take(self, path: list[str]) -> None:
        """What an upload asks and sends. The token has to be one of `writers`."""
        if path[0] == "lfs":  # where large files go to
            self.hub.large[path[1]] = self.body
            return self.reply(200, {})
        if path == ["api", "validate-yaml"]:
            return self.reply(200, {"warnings": [], "errors": []})
        if self.line.auth not in self.hub.writers:
            return self.refuse(403 if self.line.auth else 401, "", "no right to write")
        value = {} if "commit" in path else json.loads(self.body)
        if path == ["api", "repos", "create"]:
            name = f"{value['organization']}/{value['name']}"
            self.hub.visibility[name] = self.hub.policy or value.get("visibility", "public")
            self.hub.commit(name, {".gitattributes": b""})
            return self.reply(200, {"url": f"{self.hub.address}/{name}"})
        if path[-1] == "batch":
            entries = [
                {**entry, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{entry['oid']}"}}}
                for entry in value["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": entries})
        name = "/".join(path[2:4])
        if "preupload" in path:
            files = [
                {"path": entry["path"], "shouldIgnore": False}
                | {"uploadMode": "lfs" if entry["size"] >= LARGE else "regular"}
                for entry in value["files"]
            ]
            return self.reply(200, {"files": files})
        files = dict(self.hub.files(name))
        for row in map(json.loads, self.body.splitlines()):
            entry = row["value"]
            if row["key"] == "lfsFile":
                files[entry["path"]] = self.hub.large[entry["oid"]]
            if row["key"] == "file":
                files[entry["path"]] = base64.b64decode(entry["content"])
        commit = self.hub.commit(name, self.hub.damaged(files))
        reply = {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit}
        return self.reply(200, reply)

    def reply(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.line.status = status
        self.send_response(status)
        for key, text in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.line.sent += self.wfile.write(body)

    def refuse(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        told = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply(status, {"error": message}, told | headers)

    def answer(self) -> None:
        parts = urlsplit(self.path)
        if not parts.path.startswith(f"{self.hub.prefix}/"):
            return self.refuse(404, "", "There is nothing here")
        below = parts.path.removeprefix(self.hub.prefix).strip("/")
        path = [unquote(part) for part in below.split("/")]  # a branch may hold a slash
        if self.command in ("POST", "PUT"):
            return self.take(path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if path == ["api", "models"]:
            return self.search(query)
        if path[0] == "cdn":  # /cdn/KIND/ORG/NAME/COMMIT/FILE
            return self.stream(path[1], "/".join(path[2:4]), path[4], "/".join(path[5:]))
        kind = path.pop(1) if path[0] == "api" else "models"
        if path[0] == "datasets":
            kind = path.pop(0)
        elif path[0] == "api":
            path.pop(0)
        name, (verb, *rest) = "/".join(path[:2]), path[2:] or [""]
        if verb == "resolve":
            return self.redirect(kind, name, rest)
        size = 3 if rest[:1] == ["refs"] else 1
        commit, _ = self.open(kind, name, "/".join(rest[:size]) or "main")
        if commit is None:
            return None
        folder = self.hub.folder(kind, name, commit)
        if verb == "tree":
            if rest[size:] and not (folder / "/".join(rest[size:])).is_dir():
                return self.refuse(404, "EntryNotFound", "Entry not found")
            return self.listing(folder, int(query.get("cursor", 0)))
        private = self.hub.visibility.get(name) == "private"
        return self.reply(200, {"id": name, "sha": commit, "private": private})

    def open(
        self, kind: str, name: str, revision: str, file: str = ""
    ) -> tuple[str | None, dict[str, Any]]:
        """(the commit, the fault that holds); None after an error was answered."""
        fault = self.hub.faults.get(name) or self.hub.faults.get("*") or {}
        if "file" in fault and not fnmatch.fnmatch(file, fault["file"]):
            fault = {key: fault[key] for key in ("gated", "tokens", "missing") if key in fault}
        time.sleep(fault.get("hang", 0))
        auth = self.line.auth
        if "status" in fault:
            with self.hub.lock:
                key = repr((name, fault))
                self.hub.counts[key] = self.hub.counts.get(key, 0) + 1
                is_hit = fault.get("count", -1) < 0 or self.hub.counts[key] <= fault["count"]
            if is_hit:
                self.refuse(fault["status"], "", "not now", **{"Retry-After": "0.1"})
                return None, fault
        known = [*self.hub.writers] + [
            token for entry in self.hub.faults.values() for token in entry.get("tokens", [])
        ]
        if auth and auth not in known:
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return None, fault
        refs = self.hub.refs.get((kind, name))
        hidden = fault.get("private") and auth not in fault.get("tokens", [])
        if fault.get("missing") or hidden or refs is None:
            self.refuse(404 if auth else 401, "RepoNotFound", "Repository not found")
            return None, fault
        # the card of a gated repository is public, its files are not
        if fault.get("gated") and file and auth not in fault.get("may", []):
            self.refuse(403 if auth else 401, "GatedRepo", f"Access to {name} is restricted.")
            return None, fault
        commit = refs.get(revision, revision)
        if not self.hub.folder(kind, name, commit).is_dir():
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None, fault
        return commit, fault

    def redirect(self, kind: str, name: str, rest: list[str]) -> None:
        size = 3 if rest[0] == "refs" else 1
        revision, file = "/".join(rest[:size]), "/".join(rest[size:])
        commit, fault = self.open(kind, name, revision, file)
        if commit is None:
            return None
        if not (self.hub.folder(kind, name, commit) / file).is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        place = quote(f"{self.hub.prefix}/cdn/{kind}/{name}/{commit}/{file}")
        where = f"{fault.get('elsewhere', '')}{place}"
        content = (self.hub.folder(kind, name, commit) / file).read_bytes()
        # what the huggingface_hub library looks for
        tag = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"'}
        tag["X-Linked-Size"] = str(len(content))
        return self.reply(302, b"", {"Location": where, "X-Repo-Commit": commit} | tag)

    def stream(self, kind: str, name: str, revision: str, file: str) -> None:
        commit, fault = self.open(kind, name, revision, file)
        if commit is None:
            return None
        if "page" in fault:
            return self.reply(200, b"<html>Log in</html>", {"Content-Type": "text/html"})
        content = (self.hub.folder(kind, name, commit) / file).read_bytes()
        if "corrupt" in fault:
            content = content[: fault["corrupt"]] + bytes(len(content) - fault["corrupt"])
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.line.range)
        headers, status, size = (
            {"Accept-Ranges": "bytes", "X-Repo-Commit": commit},
            200,
            len(content),
        )
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if wanted and not fault.get("whole"):
            start, end = int(wanted[1]), min(int(wanted[2] or size), size - 1)
            if start >= size:
                return self.reply(416, b"", {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
            content, status = content[start : end + 1], 206
        self.line.status = status
        self.send_response(status)
        for key, text in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command == "HEAD":
            return None
        rate = fault.get("rate")
        block = max(256, rate // 20) if rate else 1 << 18
        for start in range(0, len(content), block):
            piece = content[start : start + block]
            if "cut" in fault:
                piece = piece[: max(0, fault["cut"] - self.line.sent)]
            self.line.sent += self.wfile.write(piece)
            if "cut" in fault and self.line.sent >= fault["cut"]:
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_WR)
            time.sleep(len(piece) / rate if rate else 0)
        return None

    def listing(self, folder: Path, begin: int) -> None:
        entries = [_entry(file, folder) for file in sorted(folder.rglob("*")) if file.is_file()]
        headers = {}
        if begin + PAGE < len(entries):
            following = f"{urlsplit(self.path).path}?recursive=true&cursor={begin + PAGE}"
            headers["Link"] = f'<{self.hub.address}{following}>; rel="next"'
        self.reply(200, entries[begin : begin + PAGE], headers)

    def search(self, query: dict[str, str]) -> None:
        fault = self.hub.faults.get("*", {})
        if "status" in fault:
            return self.refuse(fault["status"], "", "not now")
        words = query.get("search", "").lower()
        matches = [card for card in self.hub.cards if words in json.dumps(card).lower()]
        self.reply(200, matches[: int(query.get("limit", 100))])


def _entry(file: Path, folder: Path) -> dict[str, Any]:
    content = file.read_bytes()
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry = {"type": "file", "path": str(file.relative_to(folder)), "size": len(content)}
    if len(content) < LARGE:
        return entry | {"oid": git}
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry | {"oid": git, "lfs": large}
