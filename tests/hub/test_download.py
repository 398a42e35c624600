"""A download goes on from what is there, is what was promised, and ends when it is told to."""

from __future__ import annotations

import fcntl
import os
import threading
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.errors import LabError
from lab.hub import cache, download, repository
from lab.hub.problems import HubError
from lab.hub.progress import DownloadProgress
from lab.hub.repository import RemoteFile, Repository
from tests.hub.conftest import NAME
from tests.hub.stand_in import StandIn

FILE = "model.safetensors"
CONTENT = os.urandom(200_000)
SMALL = b'{"a": 1}'


@pytest.fixture
def repo(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository of one large and one small file; pauses between tries are short."""
    monkeypatch.setattr(download, "PAUSES_S", (0.01,))
    monkeypatch.setattr(download, "LOOK_S", 0.02)
    stand_in.commit(NAME, {FILE: CONTENT, "config.json": SMALL})
    return repository.resolve("models", NAME)


def fetch(repo: Repository, *tell: Any) -> Path:
    return download.fetch(repo, repository.files(repo).values(), *tell)


def transfer_of(repo: Repository) -> download._Transfer:
    """The large file's."""
    entry = repository.files(repo)[FILE]
    target = repository.folder_of("models", NAME) / "blobs" / entry.blob
    return download._Transfer(repo, entry, target)


def blobs(repo: Repository) -> dict[str, int]:
    """What lies in the cache, by the ending of its name."""
    folder = repository.folder_of(repo.kind, repo.name) / "blobs"
    return {file.suffix: file.stat().st_size for file in folder.iterdir()}


def test_files_come_once_to_where_the_library_has_them(
    stand_in: StandIn, repo: Repository, unsynced: dict[Path, list[str]]
) -> None:
    from huggingface_hub import try_to_load_from_cache

    place = fetch(repo)
    cache.note_reference(repo, "")
    assert (place / FILE).read_bytes() == CONTENT and (place / "config.json").read_bytes() == SMALL
    for name in (FILE, "config.json"):
        assert unsynced[(place / name).resolve()] == [], "It is on the disk before it has its name."
    folder = str(place.parent.parent.parent)
    found = try_to_load_from_cache(NAME, FILE, cache_dir=folder)
    assert found == str(place / FILE), "other programs find it under the branch"
    stand_in.clear()
    fetch(repo)
    assert stand_in.log == [], "what is here is not asked for again"


def test_a_lost_connection_goes_on_where_it_was(stand_in: StandIn, repo: Repository) -> None:
    stand_in.faults[NAME] = {"cut": 60_000, "file": FILE}
    assert (fetch(repo) / FILE).read_bytes() == CONTENT
    assert stand_in.sent(FILE) == len(CONTENT), "no byte comes twice"
    ranges = [line.range for line in stand_in.requests("GET", FILE) if "/cdn/" in line.path]
    assert ranges == ["", "bytes=60000-", "bytes=120000-", "bytes=180000-"]


def test_a_stopped_download_keeps_what_has_come_and_goes_on(
    stand_in: StandIn, repo: Repository
) -> None:
    stand_in.faults[NAME] = {"rate": 400_000, "file": FILE}

    def stop(progress: DownloadProgress) -> None:
        if progress.done > 60_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(repo, stop)
    wait_for_threads()
    kept = blobs(repo)[".incomplete"]
    assert 60_000 <= kept < len(CONTENT)
    left = cache.missing(repo, repository.files(repo).values())
    assert left == len(CONTENT) - kept, "a forecast counts what has still to come"
    stand_in.faults.clear()
    stand_in.clear()
    assert (fetch(repo) / FILE).read_bytes() == CONTENT
    assert stand_in.sent(FILE) == len(CONTENT) - kept
    assert ".incomplete" not in blobs(repo), "nothing half is left"


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "download":
            thread.join(5)


def test_what_another_program_has_begun_is_taken_over(stand_in: StandIn, repo: Repository) -> None:
    entry = repository.files(repo)[FILE]
    folder = repository.folder_of("models", NAME) / "blobs"
    folder.mkdir(parents=True)
    for name, size in (("0a1b2c3d", 50_000), ("4e5f6a7b", 90_000)):
        (folder / f"{entry.blob}.{name}.incomplete").write_bytes(CONTENT[:size])
    fetch(repo)
    assert stand_in.sent(FILE) == len(CONTENT) - 90_000, "the longest of them"
    assert ".incomplete" not in blobs(repo), "and the others are gone"


def test_an_address_without_ranges_begins_anew(stand_in: StandIn, repo: Repository) -> None:
    stand_in.faults[NAME] = {"cut": 150_000, "file": FILE}
    with pytest.raises(KeyboardInterrupt):
        fetch(repo, lambda progress: interrupt(progress, 150_000))
    wait_for_threads()
    stand_in.faults[NAME] = {"whole": True}
    stand_in.log.clear()
    assert (fetch(repo) / FILE).read_bytes() == CONTENT
    sent = [line for line in stand_in.requests("GET", FILE) if "/cdn/" in line.path]
    assert len(sent) == 1, "what comes is the file, and not taken for its rest"


def interrupt(progress: DownloadProgress, after: int) -> None:
    if progress.done >= after:
        raise KeyboardInterrupt


@pytest.mark.parametrize("file", [FILE, "config.json"])
def test_a_damaged_file_is_fetched_again_once_and_then_told(
    stand_in: StandIn, repo: Repository, file: str
) -> None:
    stand_in.faults[NAME] = {"corrupt": 4, "file": file}
    with pytest.raises(HubError, match=rf"{file} arrived damaged twice") as raised:
        fetch(repo)
    assert raised.value.kind == "damaged" and "the Hub's record says" in raised.value.message
    size = {FILE: len(CONTENT), "config.json": len(SMALL)}[file]
    assert stand_in.sent(file) == 2 * size, "once more, and not for ever"
    entry = repository.files(repo)[file]
    left = list(repository.folder_of("models", NAME).rglob(f"{entry.blob}*"))
    assert left == [], "the damaged file is deleted"
    stand_in.faults.clear()
    assert (fetch(repo) / FILE).read_bytes() == CONTENT, "and the next start works"


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(
    stand_in: StandIn, repo: Repository
) -> None:
    place = fetch(repo)
    blob = (place / FILE).resolve()
    blob.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    stand_in.clear()
    assert (fetch(repo) / FILE).read_bytes() == CONTENT, "its length was right, its bytes were not"
    assert stand_in.sent(FILE) == len(CONTENT)


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_asks_to_wait_is_asked_again(
    stand_in: StandIn, repo: Repository, status: int
) -> None:
    stand_in.faults[NAME] = {"status": status, "count": 2, "file": FILE}
    assert (fetch(repo) / FILE).read_bytes() == CONTENT


def test_a_fault_that_stays_ends_the_download(stand_in: StandIn, repo: Repository) -> None:
    stand_in.faults[NAME] = {"status": 503, "file": FILE}
    with pytest.raises(HubError, match=r"fault of its own \(status 503\)"):
        fetch(repo)
    assert len(stand_in.requests("GET", FILE)) == download.FAILURES


def test_a_hub_that_says_nothing_is_not_waited_for_for_ever(
    stand_in: StandIn, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.1")
    stand_in.faults[NAME] = {"hang": 0.5, "file": FILE}
    with pytest.raises(HubError, match=r"did not answer within 0\.1 s") as raised:
        fetch(repo)
    assert raised.value.kind == "timeout"


def test_two_downloads_of_one_file_share_it(stand_in: StandIn, repo: Repository) -> None:
    stand_in.faults[NAME] = {"rate": 1_000_000, "file": FILE}
    seen: list[int] = []
    other = threading.Thread(target=fetch, args=(repo,))
    other.start()
    place = fetch(repo, lambda progress: seen.append(progress.done))
    other.join()
    assert (place / FILE).read_bytes() == CONTENT and stand_in.sent(FILE) == len(CONTENT)
    assert seen == sorted(seen), "whoever waits sees the other's progress"


def test_what_another_has_brought_stays_counted_when_its_lock_is_free(
    stand_in: StandIn, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last byte of the other and the look at its file, progress does not fall back."""
    fetch(repo)
    transfer = transfer_of(repo)
    transfer.done = 150_000  # seen while the other was at work
    seen: list[int] = []
    real = download.is_remembered
    monkeypatch.setattr(
        download, "is_remembered", lambda file: seen.append(transfer.done) or real(file)
    )
    transfer.run(threading.Event())
    assert seen == [150_000] and transfer.done == len(CONTENT)


def test_progress_does_not_fall_back_while_another_renames_its_file(
    stand_in: StandIn, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partial file is listed, then renamed, then measured: its bytes lie in the target."""
    fetch(repo)
    transfer, stop = transfer_of(repo), threading.Event()
    target = transfer.target
    monkeypatch.setattr("lab.hub.cache.partials", lambda target: [transfer.partial])
    lock = target.parents[2] / ".locks" / target.parents[1].name / f"{target.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        stop.set()
        with pytest.raises(download._Stopped):
            transfer.run(stop)
        assert transfer.done == len(CONTENT)
        target.unlink()
        with pytest.raises(download._Stopped):
            transfer.run(stop)
        assert transfer.done == 0, "nothing has come"


def test_progress_counts_bytes_files_and_speed(stand_in: StandIn, repo: Repository) -> None:
    stand_in.faults[NAME] = {"rate": 500_000, "file": FILE}
    lines: list[tuple[str, float | None]] = []
    fetch(repo, lambda progress: lines.append((progress.in_words(), progress.eta_s)))
    words, eta_s = lines[len(lines) // 2]
    assert words.startswith(tuple("123456789")) and " of 200.01 kB, 1 of 2 files, " in words
    assert words.endswith("kB/s") and eta_s is not None and 0 < eta_s < 30
    assert lines[-1][0].startswith("200.01 kB of 200.01 kB, 2 of 2 files")


def test_what_is_left_comes_at_the_speed_of_the_last_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("lab.hub.progress.time", clock)
    progress = DownloadProgress(total=1000, files=1)
    for second in range(31):  # 10 bytes a second at first, 30 in the last ten
        clock.now, progress.done = float(second), 10 * second + 20 * max(0, second - 20)
        progress.mark()
    assert progress.done == 500 and progress.bytes_per_s == pytest.approx(30)
    assert progress.eta_s == pytest.approx(500 / 30)


def test_a_line_that_breaks_again_and_again_brings_a_file_to_its_end(
    stand_in: StandIn, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come is a sign that the next try is worth it: only failures in a row end it."""
    monkeypatch.setattr(download, "FAILURES", 2)
    stand_in.faults[NAME] = {"cut": 50_000, "file": FILE}
    assert (fetch(repo) / FILE).read_bytes() == CONTENT
    assert stand_in.sent(FILE) == len(CONTENT), "Each piece came once."


def test_a_full_disk_is_told_before_the_first_byte(
    stand_in: StandIn, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(10**9, 10**9, 150_000))
    with pytest.raises(LabError, match=r"200\.01 kB are still to be downloaded .* 150\.00 kB are"):
        fetch(repo)
    assert stand_in.sent(FILE) == 0
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(10**9, 0, 250_000))
    fetch(repo)


def test_a_file_that_two_names_share_is_counted_once(repo: Repository) -> None:
    twice = [RemoteFile(name, 700, "a" * 40) for name in ("one.json", "two.json")]
    assert cache.missing(repo, twice) == 700, "One blob comes, for both names."


def test_a_file_that_is_cut_short_is_not_here(repo: Repository) -> None:
    entry = repository.files(repo)[FILE]
    blob = (fetch(repo) / FILE).resolve()
    assert cache.are_here(repo, [entry])
    blob.write_bytes(CONTENT[:-1])
    assert not cache.are_here(repo, [entry]), "It has to be as long as the listing says."


def test_a_cache_that_is_moved_still_holds_its_files(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(repo)
    (tmp_path / "hf").rename(tmp_path / "another disk")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "another disk"))
    assert (repository.snapshot(repo) / FILE).read_bytes() == CONTENT


def test_a_disk_without_links_gets_copies(
    repo: Repository, monkeypatch: pytest.MonkeyPatch, unsynced: dict[Path, list[str]]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    file = fetch(repo) / FILE
    assert not file.is_symlink() and file.read_bytes() == CONTENT
    assert unsynced[file] == [], "It is on the disk before it has its name."


def test_an_empty_file_and_one_with_an_odd_name_are_fetched(stand_in: StandIn) -> None:
    stand_in.commit(NAME, {"empty.txt": b"", "a #1?.json": SMALL})
    folder = fetch(repository.resolve("models", NAME))
    assert (folder / "empty.txt").read_bytes() == b""
    assert (folder / "a #1?.json").read_bytes() == SMALL


@pytest.mark.parametrize(("most_s", "pause_s"), [(120.0, 0.1), (0.05, 0.05)])
def test_the_hub_says_how_long_it_is_left_alone_within_a_bound(
    stand_in: StandIn, repo: Repository, monkeypatch: pytest.MonkeyPatch, most_s: float,
    pause_s: float,
) -> None:  # fmt: skip
    monkeypatch.setattr(download, "MAX_PAUSE_S", most_s)
    repository.files(repo)
    stand_in.faults[NAME] = {"status": 429, "count": 2, "file": FILE}
    pauses: list[float | None] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            return False

    transfer = transfer_of(repo)
    transfer.target.parent.mkdir(parents=True, exist_ok=True)
    transfer.run(Stop())
    assert pauses == [pause_s, pause_s], "It asks for 0.1 s each time."


def test_the_note_of_a_branch_follows_the_branch(repo: Repository) -> None:
    for commit in ("a" * 40, "b" * 40):
        cache.note_reference(Repository("models", NAME, commit), "main")
        assert repository.cached_commit("models", NAME, "main") == commit


def test_progress_says_when_it_reads_what_is_there() -> None:
    progress = DownloadProgress(4_000_000, 3, done=1_000_000, files_done=1, checking=True)
    assert progress.in_words() == "1.00 MB of 4.00 MB, 1 of 3 files, verifying"
    assert progress.eta_s is None and DownloadProgress(10, 1).in_words() == "0 B of 10 B"
