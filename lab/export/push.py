"""A result to the Hub, with its model card, and without the names of this machine's folders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab import background_job, paths
from lab.atomic_files import read_object
from lab.chat import models as chat_models
from lab.data import template_lock
from lab.errors import LabError
from lab.export import exports
from lab.hub import credentials, repository, upload
from lab.hub.upload import UploadedCommit
from lab.models import catalog
from lab.paths import RunDir
from lab.schema import quote
from lab.spec import RunSpec

FILE = re.compile(
    r"(additional_chat_templates/)?[A-Za-z0-9_][\w.-]{0,99}\.(safetensors|json|jinja|txt|model|md|gguf)",
    re.ASCII,
)
TEXTS = (".json", ".md")
MAX_TEXT_BYTES = 20_000_000  # bytes
RESULT = "result"


def contents(run: RunDir, content: str) -> dict[str, Path | bytes]:
    """The files to be uploaded by their path there. `what` is "result" or an export such as
    merged-bfloat16. Raises LabError where that is not made, or changed since it was proven."""
    if content == RESULT:
        folder = run.artifact
        if not folder.is_dir():
            raise LabError(f"{run.id} has no result to upload.", "Wait until it ends.")
    else:
        kind, _, weight_type = content.partition("-")
        folder = exports.output(run, kind, weight_type)
        job = exports.record(run, kind, weight_type)
        if job is None or job.finish != "done":
            raise LabError(
                f"'{quote(content)}' is not made yet.", "Make it on the Results page first."
            )
        if not exports.is_current(run, job):
            raise LabError(
                f"'{quote(content)}' was made from an earlier result of {run.id}.", "Make it again."
            )
    receipt = read_object(run.artifact / "receipt.json") or {}
    names = private_names(run)
    if folder.is_file():
        card = (run.artifact / "README.md").read_text(encoding="utf-8")
        return {folder.name: folder, "README.md": public_text(card, names).encode()}
    template_lock.enforce_files(receipt, folder)
    files: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file() or not FILE.fullmatch(name):
            continue
        files[name] = path
        if path.suffix in TEXTS and path.stat().st_size < MAX_TEXT_BYTES:
            text = path.read_text(encoding="utf-8")
            public = public_text(text, names, is_card=name == "README.md")
            if public != text:
                files[name] = public.encode()
    if "README.md" not in files:
        raise LabError(f"{folder} has no model card.", "Resume the run: it writes one at its end.")
    return files


def private_names(run: RunDir) -> dict[str, str]:
    """Folders and files of this machine that stand in a result, and what is written instead."""
    spec = RunSpec.of_run(run)
    base = chat_models.parse(f"run:{run.id}").base
    names = {str(paths.home()): "LAB_HOME", str(paths.models()): "LAB_MODELS"}
    for model in {base, spec.model}:
        location = catalog.resolve(model).location
        if Path(location).is_absolute():
            names[location] = Path(location).name
    for dataset in (spec.data.dataset, spec.data.eval_dataset or ""):
        if Path(dataset).is_absolute():
            names[dataset] = Path(dataset).name
    return names


def public_text(text: str, names: Mapping[str, str], *, is_card: bool = True) -> str:
    """`text` without this machine's folders. The line `base_model` of a card names a
    repository of the Hub or goes, since the Hub takes nothing else."""
    for private in sorted(names, key=len, reverse=True):
        for spelling in {private, json.dumps(private)[1:-1]}:
            text = text.replace(spelling, names[private])
    if not is_card:
        return text
    return re.sub(r'^base_model: "(.*)"\n', _public_base, text, count=1, flags=re.MULTILINE)


def _public_base(line: re.Match[str]) -> str:
    name, _ = repository.split_id(line[1])
    return f'base_model: "{name}"\n' if upload.NAME.fullmatch(name) else ""


def job_file(run: RunDir) -> Path:
    return run.exports / "push.json"


def start(run: RunDir, name: str, content: str, *, private: bool, update: bool) -> None:
    """Begin an upload in the background. Raises LabError for what stands against it."""
    upload.check_name(name)
    upload.check_access()
    contents(run, content)
    request = {"name": name, "what": content, "private": private, "update": update}
    background_job.start(
        job_file(run), ["lab.export", "push", run.id], request,
        variables=upload.VARIABLES, access=credentials.access_line(),
    )  # fmt: skip


def push(
    run: RunDir,
    request: Mapping[str, Any],
    tell: Callable[[str], object] = lambda phase: None,
) -> UploadedCommit:
    """Upload in this process, as `start` has asked for. Raises LabError."""
    tell("reading the files")
    return upload.upload(
        str(request["name"]),
        contents(run, str(request["what"])),
        private=bool(request["private"]),
        update=bool(request["update"]),
        tell=tell,
    )


def make(run: RunDir) -> int:
    """Upload in this process and keep the record; the exit code."""
    return background_job.work(job_file(run), lambda request, tell: push(run, request, tell))
