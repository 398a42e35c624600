"""What all tests share: a home of their own, one small model, one trained pair of runs."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from lab.runs import actions, supervisor_start

# One thread each: two test processes on two cores, each with two threads that wait for each other,
# take up to fifty times as long over small tensors. Workers that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# The same on a machine with a GPU, where the values would be those of 16 bits.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from lab import access, host, paths, process
from lab.atomic_files import read_object, write_json
from lab.hub import settings
from lab.library_imports import import_libraries
from lab.models.catalog import BUILT_IN
from lab.preflight.client import planner
from lab.runs import queue, record_reader

if TYPE_CHECKING:
    from lab.forecast.memory_forecast import TraceOptions
    from lab.forecasts import MemoryForecast
    from lab.spec import RunSpec

SHARED_MODELS = paths.models()  # before any test sets LAB_HOME: `make setup` has filled it


gc.disable()  # until all that stays has come


def pytest_collection_finish() -> None:
    import_libraries()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The stories first: whole minutes in one file, for which the other processes would wait. The
    short files of `data` last, so that no process has a long one left when the others have ended.
    """
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.timeout(900))
    items.sort(key=lambda item: ("e2e" not in item.path.parts, "data" in item.path.parts))


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LAB_MODELS: the built-in model by its name, but of two small layers. Tests that are about
    what it has learned, or about its whole tokenizer, take it from SHARED_MODELS."""
    from bench.small_model import make_model

    folder = tmp_path_factory.mktemp("models") / BUILT_IN[0].name
    make_model(folder, width=64, context=8192)  # other weights than those of `tiny_model`
    return folder.parent


@pytest.fixture(autouse=True)
def lab_home(tmp_path: Path, small_models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A LAB_HOME for each test in which the processor has been timed, and nothing else is; workers
    that it leaves behind are killed."""
    home = tmp_path.with_name(f"{tmp_path.name}-home")  # a test's own folder holds its files alone
    monkeypatch.setenv("LAB_HOME", str(home))
    # the disk need not have it before the test goes on; that it is asked to, some tests look at
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    processor_timed(home)
    monkeypatch.setenv("LAB_MODELS", str(small_models))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in settings.CERTIFICATES:  # of this machine: what is set travels to every process
        monkeypatch.delenv(name, raising=False)
    access.current.cache_clear()  # its token is that of another home
    yield home
    end_workers(home)


@pytest.fixture
def unsynced(lab_home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, list[str]]:
    """For each path that something written gets by a rename or a link: the files below it that were
    not on the disk yet. After a power cut they might be empty under the new name."""
    synced: set[tuple[int, int]] = set()
    missing: dict[Path, list[str]] = {}

    def note_sync(descriptor: int) -> None:
        info = os.fstat(descriptor)
        synced.add((info.st_dev, info.st_ino))

    def watched(give_name: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any, **options: Any) -> None:
            place = Path(source)
            files = [place, *place.rglob("*")] if place.is_dir() else [place]
            infos = {file: file.lstat() for file in files if not file.is_symlink()}
            missing[Path(target)] = [
                file.name
                for file, info in infos.items()
                if (info.st_dev, info.st_ino) not in synced
            ]
            give_name(source, target, **options)

        return call

    monkeypatch.setattr(os, "fsync", note_sync)
    for name in ("rename", "replace", "link"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    return missing


def processor_timed(home: Path) -> None:
    """Leave a speed of this processor in `home`: predicted times rest on it, and each process that
    finds none spends a second of both cores on it."""
    processor = {"cpu_peak_flops": 5e10, "cores": os.cpu_count(), "occasions": host.OCCASIONS}
    paths.make_folder(home)
    write_json(home / "machine.json", {"v": 1, **processor, "time": 0.0})


def end_workers(home: Path) -> None:
    """Kill the supervisor of a home (one that is just coming up too), then its workers."""
    log = home / "queue" / "log.txt"
    deadline = time.monotonic() + 5
    while log.exists() and time.monotonic() < deadline:
        if process.send(read_object(home / "queue" / "process.json"), signal.SIGKILL):
            break
        if time.time() - log.stat().st_mtime > 3:
            break  # it has ended by itself
        time.sleep(0.05)
    for file in home.glob("runs/*/process.json"):
        record = read_object(file) or {}
        if record.get("pid") != os.getpid():  # a run that a test did in this process
            process.send(record, signal.SIGKILL)


@pytest.fixture(scope="session")
def forecast_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Memory forecasts of all test processes, by all that they depend on."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "forecasts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def traced_once(request: pytest.FixtureRequest, lab_home: Path, forecast_cache: Path) -> None:
    """Homes of tests are empty, and most of their runs alike: what was traced for one home is not
    traced for the next. Tests of forecasts themselves trace."""
    if "forecast" not in request.node.path.parts and not (lab_home / "cache" / "memory").exists():
        paths.make_folder(lab_home / "cache")
        (lab_home / "cache" / "memory").symlink_to(forecast_cache)


@pytest.fixture(scope="session", autouse=True)
def nothing_collected_after_runs() -> Iterator[None]:
    """A run collects before it begins and when it has ended: in a worker there is little, in a test
    process everything that was ever imported."""
    with mock.patch("accelerate.utils.memory.clear_device_cache"):
        yield


@pytest.fixture(scope="session", autouse=True)
def no_planner_left() -> Iterator[None]:
    yield
    planner.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with the most frequent tokens of SmolLM2."""
    from bench.small_model import make_model

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four short chats in a file."""
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    write_rows(
        file,
        [
            {
                "messages": [
                    {"role": "user", "content": f"What is {number} plus {number}?"},
                    {
                        "role": "assistant",
                        "content": f"It is {2 * number}." + " Sure." * (number % 5),
                    },
                ]
            }
            for number in range(24)
        ],
    )
    return file


def write_rows(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def make_spec(tiny_model: Path, chats: Path) -> Callable[..., dict[str, Any]]:
    """A spec on the tiny model: `make_spec("lora", train={...}, data={...})`."""

    def make(method: str = "lora", **sections: Any) -> dict[str, Any]:
        return {
            "name": f"tiny {method}",
            "model": str(tiny_model),
            "method": {"name": method},
            "data": {
                "dataset": str(chats),
                "eval_fraction": 0.2,
                "max_length": 64,
                "packing": "off",
                **sections.get("data", {}),
            },
            "train": {
                "batch_size": 2,
                "max_steps": 12,
                "learning_rate": 1e-3,
                "eval_steps": 4,
                "save_steps": 4,
                "sample_steps": 0,  # a third of such a run; those that look at samples ask for them
                **sections.get("train", {}),
            },
        }

    return make


@pytest.fixture(scope="session")
def trained_home(
    make_spec: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A home with a full and a LoRA run that have ended; tests copy it and never change it."""
    home = tmp_path_factory.mktemp("trained") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_HOME", str(home))
        patch.setenv("LAB_MODELS", str(SHARED_MODELS))
        for method in ("full", "lora"):
            run_here(make_spec(method, train={"sample_steps": None}))
    return home


@pytest.fixture
def trained(trained_home: Path, lab_home: Path) -> list[paths.RunDir]:
    """This test's own copy of a full and a LoRA run, in this order."""
    shutil.copytree(trained_home, lab_home, dirs_exist_ok=True)
    return paths.all_runs()[::-1]


@pytest.fixture
def start(make_spec: Callable[..., dict[str, Any]]) -> Callable[..., paths.RunDir]:
    """Start a run on the tiny model in a worker of its own."""

    def begin(method: str = "lora", **sections: Any) -> paths.RunDir:
        run = checked_run(make_spec(method, **sections))
        actions.submit(run)
        return run

    return begin


@pytest.fixture
def work_here(make_spec: Callable[..., dict[str, Any]]) -> Callable[..., paths.RunDir]:
    """Do a run inside this process, which saves the seconds that a worker's imports take."""

    def work(method: str = "lora", **sections: Any) -> paths.RunDir:
        return run_here(make_spec(method, **sections))

    return work


def run_here(spec: dict[str, Any]) -> paths.RunDir:
    """Check and do a run in this process."""
    run = checked_run(spec)
    attempt_here(run)
    return run


def checked_run(spec: dict[str, Any]) -> paths.RunDir:
    """A run as `start_run` leaves it to the queue, checked in this process. Its memory is counted,
    not traced: nearly every run of a test would be a new question, and its answer takes as long as
    the run."""
    from tests.answers import checked

    if not host.machine_file().exists():
        processor_timed(paths.home())
    asking = ("lab.forecast.forecaster", "lab.forecast.selective_checkpointing")
    with contextlib.ExitStack() as stack:
        for module in asking:
            stack.enter_context(mock.patch(f"{module}.memory_forecast", counted_memory))
        return actions.create_run_dir(checked(spec))


def counted_memory(
    config: Any, spec: RunSpec, options: TraceOptions, memory_bytes: int | None = None
) -> MemoryForecast:
    """Weights, gradients and optimizer state, given out as a traced step."""
    from lab.forecast import formula
    from lab.forecast.model_profile import profile_model
    from lab.forecasts import How

    counts = formula.counted(profile_model(config, spec).sizes, spec, on_gpu=options.on_gpu)
    counts = replace(counts, how=How.EVERY_LAYER)
    return replace(counts, fits=counts.fits_into(memory_bytes))


@pytest.fixture
def queue_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put into the queue is done inside this process, before `submit` returns: for tests of
    what follows a run, which need no supervisor and no worker of its own."""

    def work_off() -> None:
        for run in queue.waiting_runs():
            assert queue.claim(run)
            with run.log.open("a") as log, contextlib.redirect_stdout(log):
                attempt_here(run)

    monkeypatch.setattr(supervisor_start, "ensure", work_off)


@pytest.fixture
def lab_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`lab_json("runs")`: the parsed JSON of a verb of the command line that must succeed."""
    from lab import cli

    def call(*arguments: str) -> Any:
        capsys.readouterr()
        assert cli.main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def attempt_again(run: paths.RunDir) -> int:
    """A further attempt at a run whose last one left no word; the worker's exit code."""
    run.result.unlink()
    run.process.unlink()
    return attempt_here(run)


def attempt_here(run: paths.RunDir) -> int:
    """One attempt at `run` in this process; the worker's exit code."""
    from lab.train.worker import work

    before = signal.getsignal(signal.SIGTERM)
    process.register(run, os.getpid())
    try:
        code = work(run)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert_metrics_are_documented(run)
    return code


def assert_metrics_are_documented(run: paths.RunDir) -> None:
    """A user of an undocumented metric gets a warning; a test fails."""
    messages = [event.get("message", "") for event in record_reader.events(run, "warning")]
    left_out = [message for message in messages if message.startswith("A metric is left out")]
    assert left_out == [], "add the metric to the table of lab/metrics.py, as a number"
