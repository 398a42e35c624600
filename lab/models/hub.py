"""A model of the hub as a folder: what it holds is judged before its weights are downloaded.

Only JSON, the tokenizer's files and safetensors are ever fetched. First the list of the files,
then config.json, then the tokenizer; then the headers of the weights, by ranges of bytes; then,
for who needs them, the weights. A model is read at one commit: `pin` finds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from lab.atomic_files import read_object
from lab.errors import LabError
from lab.hub import cache, client, download, repository, settings, verification
from lab.hub.problems import HubUnreachable
from lab.hub.progress import DownloadForecast, Tell
from lab.hub.repository import RemoteFile, Repository
from lab.models import file_list, headers
from lab.models import folder as folders
from lab.models.catalog import ModelSource
from lab.models.headers import Stored
from lab.schema import quote

SMALL = re.compile(r"[^/]+\.(json|txt|jinja|model|tiktoken)|additional_chat_templates/[^/]+\.jinja")
CONFIGS = ("config.json", "generation_config.json")
MAX_SMALL_BYTES = 64_000_000
CHUNK = 100_000  # more than most headers have
HEADERS_AT_ONCE = 8


def pin(source: ModelSource) -> ModelSource:
    """The source at the commit that its branch or tag is now; a folder as it is. Raises HubError.

    What a commit holds never changes, so that everybody who is given the new id reads the same.
    """
    if not source.is_on_hub or repository.is_commit(source.revision):
        return source
    repo = repository.resolve("models", source.location, source.revision)
    if repository.cached_commit("models", source.location, source.revision) is None:
        cache.note_reference(repo, source.revision)
    return replace(source, id=f"{source.location}#{repo.commit}", revision=repo.commit)


def moved_on(source: ModelSource, requested: str) -> str:
    """A sentence if the branch that `requested` names (an id as a person wrote it) has moved on
    from the commit of `source`; else empty."""
    name, revision = repository.split_id(requested)
    is_other = not source.is_on_hub or name != source.location or repository.is_commit(revision)
    if is_other or settings.is_offline():
        return ""
    now = repository.commit_now("models", name, revision)
    repo = _repository(source)
    if now == repo.commit and repository.snapshot(repo).is_dir():
        cache.note_reference(repo, revision)  # what is here is what the branch is now
    return repository.moved_on(name, revision, repo.commit, now)


def config_folder(source: ModelSource) -> Path:
    """A folder with the config of the source, checked. Of a model of the hub nothing else is
    fetched. Raises LabError."""
    if not source.is_on_hub:
        return local_folder(source, with_weights=False)
    repo = _repository(source)
    return _config_folder(repo, source, _listed(repo))


def _config_folder(
    repo: Repository, source: ModelSource, listed: dict[str, RemoteFile] | None
) -> Path:
    folder = repository.snapshot(repo)
    if listed is not None:
        file_list.check_config(listed, _named(source), lambda: _adapter_base(repo, listed))
        folder = _fetch(repo, source, [listed[name] for name in CONFIGS if name in listed])
    folders.check_configs(folder, _named(source))
    return folder


def local_folder(
    source: ModelSource, *, with_weights: bool, tell: Tell = lambda progress: None
) -> Path:
    """The folder of a source, checked; a model of the hub is fetched into the hub's cache first.

    `tell(progress)` hears of the download and may raise to stop it. Raises LabError for what may
    not be loaded, and HubError.
    """
    if not source.is_on_hub:
        folder = Path(source.location)
        folders.check(folder, source.id, needs_weights=with_weights)
        return folder
    repo = _repository(source)
    listed = _listed(repo)
    if listed is None:
        folder = repository.snapshot(repo)
        if with_weights:
            verification.verify(folder, repo, tell)
    else:
        _config_folder(repo, source, listed)
        folder = _fetch(repo, source, _small(listed))
        folders.check_configs(folder, _named(source))
        if with_weights:
            file_list.check_weights(listed, _named(source), lambda: _adapter_base(repo, listed))
            weights = _weights(listed, folder, source)
            if not cache.are_here(repo, weights):
                _remote_tensors(repo, weights)
            folder = _fetch(repo, source, [*_small(listed), *weights], tell)
            cache.note_reference(repo, source.revision)
    folders.check(folder, _named(source), needs_weights=with_weights)
    return folder


def adapter_config(source: ModelSource) -> Path:
    """The adapter_config.json of an adapter, of which nothing else is fetched. Raises LabError for
    what is no adapter in safetensors, and HubError."""
    if not source.is_on_hub:
        folder = Path(source.location)
        file_list.check_adapter([file.name for file in folder.iterdir()], source.id)
        return folder / file_list.ADAPTER
    repo, listed = _adapter(source)
    if listed is None:
        return repository.snapshot(repo) / file_list.ADAPTER
    return _fetch(repo, source, [listed[file_list.ADAPTER]]) / file_list.ADAPTER


def adapter_folder(
    source: ModelSource, *, with_weights: bool, tell: Tell = lambda progress: None
) -> Path:
    """The folder of an adapter with its config and, if it has one, its tokenizer; as
    `local_folder` otherwise. The config of a whole model that lies beside is not fetched."""
    if not source.is_on_hub:
        return adapter_config(source).parent
    repo, listed = _adapter(source)
    if listed is None:
        return repository.snapshot(repo)
    return _fetch(repo, source, _adapter_files(listed, with_weights=with_weights), tell)


def adapter_download(source: ModelSource) -> DownloadForecast | None:
    """What is still to be fetched of an adapter of the Hub; None for a folder."""
    if not source.is_on_hub:
        return None
    repo, listed = _adapter(source)
    return _still_to_come(repo, _adapter_files(listed, with_weights=True) if listed else [])


def _adapter(source: ModelSource) -> tuple[Repository, dict[str, RemoteFile] | None]:
    """The repository of an adapter and its files, as `_listed`."""
    repo = _repository(source)
    listed = _listed(repo, (file_list.ADAPTER, file_list.ADAPTER_WEIGHTS))
    if listed is not None:
        file_list.check_adapter(listed, _named(source))
    return repo, listed


def _adapter_files(listed: dict[str, RemoteFile], *, with_weights: bool) -> list[RemoteFile]:
    files = [entry for entry in _small(listed) if entry.path not in CONFIGS]
    return [*files, listed[file_list.ADAPTER_WEIGHTS]] if with_weights else files


def stored_tensors(source: ModelSource) -> dict[str, Stored]:
    """What the weights of a source hold, from headers alone, downloaded or not."""
    if not source.is_on_hub:
        return folders.stored_tensors(local_folder(source, with_weights=True), source.id)
    repo = _repository(source)
    listed = _listed(repo)
    if listed is None:
        return folders.stored_tensors(repository.snapshot(repo), _named(source))
    file_list.check_weights(listed, _named(source), lambda: _adapter_base(repo, listed))
    folder = _fetch(repo, source, _small(listed))
    weights = _weights(listed, folder, source)
    if cache.are_here(repo, weights):
        return folders.stored_tensors(_fetch(repo, source, weights), _named(source))
    return _remote_tensors(repo, weights)


def has_tokenizer_here(source: ModelSource) -> bool:
    """Whether the tokenizer can be loaded without fetching anything of it."""
    if not source.is_on_hub:
        return True
    repo = _repository(source)
    listed = _listed(repo)
    return listed is None or cache.are_here(repo, _small(listed))


def tokenizer_download(source: ModelSource) -> DownloadForecast | None:
    """What is still to be fetched before the tokenizer can be loaded; None where it is here. Of the
    files themselves only the configs are fetched. Raises LabError for what cannot be trained."""
    if has_tokenizer_here(source):
        return None
    repo = _repository(source)
    listed = _listed(repo) or {}
    _config_folder(repo, source, listed)
    return _still_to_come(repo, _small(listed))


def download_size(source: ModelSource) -> DownloadForecast | None:
    """What is still to be fetched of a model of the hub, weights and all; None for a folder."""
    if not source.is_on_hub:
        return None
    repo = _repository(source)
    listed = _listed(repo)
    if listed is None:
        return DownloadForecast(0, 0, 0, str(settings.cache_folder()))
    folder = _fetch(repo, source, [listed[folders.INDEX]] if folders.INDEX in listed else [])
    return _still_to_come(repo, [*_small(listed), *_weights(listed, folder, source)])


def _still_to_come(repo: Repository, files: list[RemoteFile]) -> DownloadForecast:
    blobs = {entry.blob: entry for entry in files}
    still = [entry for entry in blobs.values() if not cache.are_here(repo, [entry])]
    return DownloadForecast(
        cache.missing(repo, still),
        sum(entry.size for entry in blobs.values()),
        len(still),
        str(settings.cache_folder()),
    )


def _named(source: ModelSource) -> str:
    """The id as messages say it: without the commit, which nobody has typed."""
    return source.location if repository.is_commit(source.revision) else source.id


def _repository(source: ModelSource) -> Repository:
    return Repository("models", source.location, pin(source).revision)


def _listed(
    repo: Repository, needed: tuple[str, ...] = ("config.json",)
) -> dict[str, RemoteFile] | None:
    """The files of the commit; None where the Hub cannot be asked and the cache holds those that
    are `needed`, which another program has brought. Raises HubError."""
    try:
        return repository.files(repo)
    except HubUnreachable as error:
        if all((repository.snapshot(repo) / name).is_file() for name in needed):
            return None
        raise HubUnreachable(
            f"{error.message} It is not in the local cache either.", error.hint, kind=error.kind
        ) from None


def _fetch(
    repo: Repository,
    source: ModelSource,
    files: Iterable[RemoteFile],
    tell: Tell = lambda progress: None,
) -> Path:
    folder = download.fetch(repo, files, tell)
    if repository.cached_commit("models", source.location, source.revision) is None:
        cache.note_reference(repo, source.revision)
    return folder


def _small(listed: dict[str, RemoteFile]) -> list[RemoteFile]:
    return [
        entry
        for name, entry in listed.items()
        if SMALL.fullmatch(name) and entry.size <= MAX_SMALL_BYTES
    ]


def _weights(listed: dict[str, RemoteFile], folder: Path, source: ModelSource) -> list[RemoteFile]:
    """The files that hold the weights; `folder` holds the index."""
    names = folders.weight_names(
        [name for name in listed if "/" not in name], folder / folders.INDEX, _named(source)
    )
    return [listed[name] for name in names]


def _adapter_base(repo: Repository, listed: dict[str, RemoteFile]) -> str:
    """The base that a repository's adapter names; "" if it names none."""
    folder = download.fetch(repo, [listed[file_list.ADAPTER]])
    config = read_object(folder / file_list.ADAPTER) or {}
    base = config.get("base_model_name_or_path")
    return base[:200] if isinstance(base, str) else ""


def _remote_tensors(repo: Repository, weights: list[RemoteFile]) -> dict[str, Stored]:
    """The tensors of the hub's files. Nothing but headers is fetched."""
    endpoint = settings.endpoint()
    with client.waiting(), ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        parts = list(pool.map(lambda entry: _remote_header(endpoint, repo, entry), weights))
    return {name: stored for tensors in parts for name, stored in tensors.items()}


@lru_cache(maxsize=512)
def _remote_header(_endpoint: str, repo: Repository, entry: RemoteFile) -> dict[str, Stored]:
    start = _bytes(repo, entry, 0, min(entry.size, CHUNK))
    length = headers.header_length(start[:8], entry.size, entry.path)
    if 8 + length > len(start):
        start += _bytes(repo, entry, len(start), 8 + length)
    return headers.parse(start[8 : 8 + length], entry.size - 8 - length, entry.path)


def _bytes(repo: Repository, entry: RemoteFile, begin: int, end: int) -> bytes:
    """Bytes [begin, end) of a file of the hub, never more, whatever it sends."""
    if begin >= end:
        return b""
    path = repo.url(entry.path).removeprefix(settings.endpoint())
    about = f"{repo.subject}, file {entry.path}"
    files = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    received, reply = client.get(path, about, headers=files, most=end - begin)
    if begin and reply[":status"] != "206":
        raise LabError(
            f"The hub does not send parts of '{quote(entry.path)}'.", "Download the model by hand."
        )
    return received
