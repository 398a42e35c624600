"""What is written on the command line arrives where it is meant; the exit code says how it went."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.atomic_files import read_object, write_json
from lab.chat.settings import GenerationSettings
from lab.checked_run import CheckedRun
from lab.cli import follow
from lab.cli import runs as run_verbs
from lab.compare.race_start import PlannedRun
from lab.fit_answers import Saving
from lab.forecasts import Candidate, Forecast, How, MemoryForecast, SettingsSearch, StepSettings
from lab.host import HostFacts
from lab.paths import RunDir
from lab.runs import actions, record_reader, supervisor_start
from lab.runs.status import Status
from lab.spec import RunSpec
from tests.compare.recorded import change_event, record, write_lines


@pytest.fixture
def nobody_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_start, "ensure", lambda: None)
    monkeypatch.setattr(supervisor_start, "ensure_if_waiting", lambda: None)


@pytest.fixture
def run(lab_home: Path, nobody_starts: None) -> RunDir:
    return make("k3f9", lab_home)


def make(name: str, home: Path, state: str = "") -> RunDir:
    run = RunDir(home / "runs" / f"20261122-101530-lora-{name}")
    run.commands.mkdir(parents=True)
    run.checkpoints.mkdir()
    write_json(run.spec, {"name": name, "model": "m", "method": {"name": "lora"}})
    if state:
        write_json(run.process, {"pid": 999_999, "start": 1})
        write_json(run.result, {"state": state, "message": "It broke.", "hint": "Mend it."})
    return run


@pytest.mark.parametrize(
    ("state", "code"),
    [("done", 0), ("stopped", 0), ("cancelled", 0), ("failed", 1), ("crashed", 1)],
)
@pytest.mark.parametrize("verb", ["start", "stop", "resume"])
def test_the_exit_code_is_the_end_of_the_run(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], verb: str, state: str, code: int,
) -> None:  # fmt: skip
    ended = Status(state, message="It broke." if code else "", hint="Mend it." if code else "")
    monkeypatch.setattr(run_verbs.follow, "follow", lambda *_, **__: ended)
    monkeypatch.setattr("lab.cli.runs.start_run", lambda spec: run)
    monkeypatch.setattr(actions, "command", lambda run, name: None)
    monkeypatch.setattr(actions, "resume", lambda *_, **__: None)
    file = tmp_path / "spec.json"
    file.write_text("{}")
    assert cli.main([verb, str(file) if verb == "start" else run.id, "--wait"]) == code
    captured = capsys.readouterr()
    assert run.id in captured.out
    said = f"{run.id} {state}: It broke. Mend it."
    assert (said in captured.err) is bool(code), "Why it failed stands on stderr."
    arguments = [verb, str(file) if verb == "start" else run.id, "--wait", "--json"]
    assert cli.main(arguments) == code
    assert (said in capsys.readouterr().err) is bool(code), "Also where JSON is wanted."


def test_start_takes_its_settings(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[dict[str, Any]] = []
    monkeypatch.setattr("lab.cli.runs.start_run", lambda spec: requests.append(spec) or run)
    file = tmp_path / "spec.json"
    file.write_text('{"train": {"seed": 1}}')
    assert cli.main(["start", str(file), "--set", "train.seed=2", "--set", "name=x"]) == 0
    assert cli.main(["start", str(file), "--ignore-memory"]) == 0
    assert requests == [
        {"train": {"seed": 2}, "name": "x"},
        {"train": {"seed": 1}, "hardware": {"ignore_memory": True}},
    ]


def test_stop_stops_and_resume_takes_its_settings(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(actions, "command", lambda run, name: calls.append(name))
    monkeypatch.setattr(
        actions, "resume", lambda run, settings, *, incomplete: calls.append((settings, incomplete))
    )
    assert cli.main(["stop", run.id]) == 0
    assert cli.main(["resume", run.id]) == 0
    assert cli.main(["resume", run.id, "--incomplete", "--set", "train.max_steps=9"]) == 0
    assert cli.main(["stop", run.id, "--kill"]) == 0
    assert calls == ["stop", ([], False), (["train.max_steps=9"], True), "kill"]


def test_the_queue_is_paused_goes_on_and_is_reordered(
    lab_json: Callable[..., Any], lab_home: Path, nobody_starts: None
) -> None:
    waiting = [make(name, lab_home) for name in ("aaaa", "bbbb", "cccc")]
    for run in waiting:
        actions.submit(run)
    assert lab_json("queue", "pause")["settings"]["paused"] is True
    assert lab_json("queue")["settings"]["paused"] is True, "Looking changes nothing."
    assert lab_json("queue", "continue")["settings"]["paused"] is False
    answer = lab_json("queue", "first", waiting[2].id)
    assert [one["name"] for one in answer["waiting"]] == ["cccc", "aaaa", "bbbb"]
    for word, goes_on in (("pause", False), ("continue", True)):
        settings = lab_json("queue", "--after-failure", word)["settings"]
        assert settings["continue_after_failure"] is goes_on
    assert lab_json("queue", "--at-once", "3")["settings"]["at_once"] == 3
    assert cli.main(["queue", "first"]) == 2


def test_checkpoints_are_pinned_unpinned_and_deleted(
    trained: list[RunDir], lab_json: Callable[..., Any]
) -> None:
    run = trained[1]

    def table(*arguments: str) -> dict[int, bool]:
        answer = lab_json("checkpoints", run.id, *arguments)["checkpoints"]
        return {entry["step"]: entry["pinned"] for entry in answer}

    steps = sorted(table())
    assert table("--pin", str(steps[0])) == {step: step == steps[0] for step in steps}
    assert not any(table("--unpin", str(steps[0])).values())
    assert sorted(table("--delete", str(steps[0]))) == steps[1:]


def test_labels_that_are_not_named_stay(lab_json: Callable[..., Any], run: RunDir) -> None:
    lab_json("label", run.id, "--tags", "a, b", "--notes", "fine", "--archive")
    answer = lab_json("label", run.id, "--no-archive")
    assert (answer["tags"], answer["notes"], answer["archived"]) == (["a", "b"], "fine", False)
    assert lab_json("label", run.id, "--notes", "")["notes"] == ""
    assert lab_json("label", run.id)["tags"] == ["a", "b"]


def test_export_takes_checkpoints_only_if_asked(
    trained: list[RunDir], lab_json: Callable[..., Any], tmp_path: Path
) -> None:
    import zipfile

    for name, options in (("with", ["--checkpoints"]), ("without", [])):
        file = tmp_path / f"{name}.zip"
        lab_json("export", trained[1].id, str(file), *options)
        inside = any("checkpoints/step-" in one for one in zipfile.ZipFile(file).namelist())
        assert inside is (name == "with"), name


def test_runs_and_logs_are_shown(
    run: RunDir, capsys: pytest.CaptureFixture[str], lab_json: Callable[..., Any]
) -> None:
    import os

    from lab import process

    process.register(run, os.getpid())
    run.heartbeat.write_text('{"phase": "training", "done": 3, "total": 12, "unit": "step"}')
    assert cli.main(["runs"]) == 0
    assert "3/12" in capsys.readouterr().out
    run.process.unlink()
    write_json(run.result, {"state": "done"})
    run.log.write_text("a line\nlast line\n")
    assert cli.main(["logs", run.id, "-f"]) == 0
    assert capsys.readouterr().out == "a line\nlast line\n"
    assert lab_json("logs", run.id)["log"] == "a line\nlast line\n"


def asked_of_planner(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Any, ...]:
    from lab.cli import memory
    from lab.errors import LabError

    seen: list[Any] = []

    def estimate(spec: Any, device: Any, **how: Any) -> Any:
        seen.extend([spec, device, how])
        raise LabError("Seen.")

    monkeypatch.setattr(memory.planner, "estimate", estimate)
    assert cli.main(["estimate", "--model", "m", "--method", "lora", *arguments]) == 2
    return tuple(seen)


def test_an_estimate_is_asked_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, device, how = asked_of_planner(monkeypatch)
    assert (spec, device) == ({"model": "m", "method": {"name": "lora"}}, {})
    assert how == {"shadow": True, "whole": False, "time": False}
    spec, device, how = asked_of_planner(
        monkeypatch, "--seq-len", "99", "--batch-size", "7", "--gpu-gb", "24", "--device", "cuda",
        "--set", "method.rank=5", "--whole",
    )  # fmt: skip
    assert spec["data"] == {"max_length": 99} and spec["train"] == {"batch_size": 7}
    assert spec["method"] == {"name": "lora", "rank": 5}
    assert device == {"memory_bytes": 24 * 10**9, "kind": "cuda"}, "GB are powers of ten."
    assert how == {"shadow": True, "whole": True, "time": False}
    assert asked_of_planner(monkeypatch, "--gpu", "T4 16GB", "--formula")[1:] == (
        {"gpu": "T4 16GB"}, {"shadow": False, "whole": False, "time": False},
    )  # fmt: skip
    assert asked_of_planner(monkeypatch, "--device", "cpu")[1] == {"kind": "cpu"}
    names_data = asked_of_planner(monkeypatch, "--set", "data.dataset=chats.jsonl")[2]
    assert names_data["time"], "Its rows are read."


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gpu-gb", "0"],
        ["--gpu-gb", "nan"],
        ["--gpu-gb", "1e6"],
        ["--gpu-gb", "8", "--device", "cpu"],
    ],
)
def test_devices_that_cannot_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "--model", "m", "--method", "lora", *arguments]) == 2
    assert "--gpu-gb" in capsys.readouterr().err


def test_an_estimate_says_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["estimate", "--model", "config:SmolLM2-135M", "--method", "lora", "--formula"]
    assert cli.main([*ask, "--gpu-gb", "500"]) == 0
    assert "Fits into 500.00 GB." in capsys.readouterr().out
    assert cli.main([*ask, "--gpu-gb", "0.1"]) == 0
    assert "Does not fit into 100.00 MB." in capsys.readouterr().out


def test_chat_takes_its_settings(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    from lab.cli import chat

    seen: list[GenerationSettings] = []
    monkeypatch.setattr(chat, "answer_all", lambda names, conversation, how: seen.append(how) or [])
    ask = ["chat", f"base:{tiny_model}", "--prompt", "Hi", "--json"]
    assert cli.main(ask) == 0
    options = ["--seed", "7", "--system", "Be odd.", "--max-new-tokens", "33"]
    options += ["--top-p", "0.9", "--top-k", "5", "--repetition-penalty", "1.1"]
    options += ["--stop", "END", "--stop", "You:"]
    assert cli.main([*ask, *options, "--temperature", "0.4"]) == 0
    assert seen == [
        GenerationSettings(seed=0, max_new_tokens=128, temperature=0.0, system_prompt=None),
        GenerationSettings(
            seed=7, max_new_tokens=33, temperature=0.4, system_prompt="Be odd.", top_p=0.9,
            top_k=5, repetition_penalty=1.1, stop=("END", "You:"),
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("questions", "says", "not_says"),
    [
        (("q1", "q1"), "Same prompt (p1), system prompt (none), seed 7", "do not read the same"),
        (("q1", "q2"), "Same question, system prompt (none), seed 7", "Same prompt"),
    ],
)
def test_answers_stand_above_what_was_the_same_for_all(
    capsys: pytest.CaptureFixture[str], questions: tuple[str, str], says: str, not_says: str
) -> None:
    from lab.chat.answers import AnswerReceipt, ModelAnswer
    from lab.cli import chat

    answers = []
    for name, question in zip(("base:a", "run:b"), questions, strict=True):
        receipt = AnswerReceipt(
            question_hash=question, template_hash=question, prompt_hash="p1", seed=7,
            dtype="float32",
        )  # fmt: skip
        answers.append(
            ModelAnswer(
                model=name, text=f"I am {name}.", receipt=receipt, token_ids=[1, 2], seconds=1.25,
                finish="stop",
            )
        )  # fmt: skip
    chat.show("Who?", answers)
    shown = capsys.readouterr().out
    assert says in shown and not_says not in shown
    assert "I am base:a." in shown and "2 tokens, 1.2 s, stop" in shown


def test_a_plan_says_which_peaks_are_only_about_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lab.cli import memory

    candidates = tuple(
        Candidate(
            batch_size=size, gradient_accumulation_steps=2, tokens_per_s=1234.0, how=how,
            peak_bytes=size * 10**9, loss_implementation="fused", optimizer="adamw",
        )
        for size, how in ((4, How.EVERY_LAYER), (8, How.OUTLINE))
    )  # fmt: skip
    search = SettingsSearch(candidates, reserve=0.04, reached=0.35, device_bytes=24 * 10**9)
    monkeypatch.setattr(memory.planner, "plan", lambda spec, device: search)
    assert cli.main(["plan", "--model", "m", "--method", "lora"]) == 0
    shown = capsys.readouterr().out
    exact, about = lines_with(shown, "1,234")
    assert "4 × 2" in exact and "4.00 GB" in exact and "8 × 2" in about and "8.00 GB" in about
    assert shown.count("(about)") == 1 and shown.index("8 × 2") < shown.index("(about)")
    assert "Settings for 24.00 GB, 4% of it in reserve" in shown
    assert "Speeds assume 35% of the device's peak FLOP/s." in shown


def test_evaluate_takes_its_set_and_shows_loss_and_perplexity(
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Path,
    chats: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lab.evals import held_out

    requests: list[Any] = []

    def evaluate(names: Any, dataset: str | None) -> list[held_out.HeldOutLoss]:
        requests.append(dataset)
        return [held_out.HeldOutLoss("m", 2.0, 7.389, 1234, 5, "It has [moved] on.", "hash")]

    monkeypatch.setattr(held_out, "evaluate", evaluate)
    file = str(chats)
    assert cli.main(["evaluate", f"base:{tiny_model}", "--dataset", file]) == 0
    shown = capsys.readouterr().out
    assert requests == [file]
    assert "2.0000" in shown and "7.39" in shown and "5 sequences, 1,234 loss tokens" in shown
    assert "It has [moved] on." in shown


def lines_with(shown: str, *words: str) -> list[str]:
    return [line for line in shown.splitlines() if any(word in line for word in words)]


def test_a_comparison_says_each_loss_and_what_is_not_equal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = record("aaaa", "short", losses=(2.9, 2.5))
    long = record("bbbb", "long", losses=(2.9, 2.4, 2.25))
    assert cli.main(["compare", short.id, long.id, "--by", "tokens"]) == 0
    shown = capsys.readouterr().out
    assert "0.25 ± 0.00 below short by example." in shown
    assert "Not comparable" not in shown and lines_with(shown, "loss at 1,000 tokens")
    change_event(long, "data", held_out_hash="others")
    assert cli.main(["compare", short.id, long.id]) == 0
    shown = capsys.readouterr().out
    (unequal,) = lines_with(shown, "Not comparable")
    assert "They are measured on different held-out examples." in unequal
    for words, first, second in (
        ("loss, base", "3.5900", "3.5900"), ("loss, final", "2.5000", "2.2500"),
        ("loss at 2 steps", "2.5000", "2.4000"), ("loss, last step", "2.6000", "2.3500"),
    ):  # fmt: skip
        (line,) = lines_with(shown, words)
        assert line.split()[-2:] == [first, second], line
    assert cli.main(["compare", short.id, short.id]) == 2
    assert "named twice" in capsys.readouterr().err


def test_the_best_of_a_race_stands_first_and_a_failure_is_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lab_home: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    from lab.cli import race as verb

    runs = [make(name, lab_home, state) for name, state in (("aaaa", "done"), ("bbbb", "failed"))]
    recorded = [record("cccc", "", "full", losses=(2.9,)), record("dddd", "", "ia3", losses=(1.0,)),
                record("eeee", "", "vera", losses=(2.1,))]  # fmt: skip
    change_event(recorded[0], "data", held_out_hash="others")
    write_lines(recorded[1].metrics, record_reader.metrics(recorded[1], "train"))  # not evaluated
    requests: list[Any] = []
    plans = [PlannedRun(name, 0, "default", CheckedRun(RunSpec(name=name), {})) for name in "ab"]

    def specs(value: Any, racing: Any, budget: Any) -> Any:
        requests.append((racing, budget))
        return {}, []

    def check(specs: Any, seeds: int, rungs: int) -> Any:
        requests.append((seeds, rungs))
        return plans

    monkeypatch.setattr(verb.race, "contestants", lambda value, names: names)
    monkeypatch.setattr(verb.race, "contestant_specs", specs)
    monkeypatch.setattr(verb.race_start, "check", check)
    monkeypatch.setattr(verb.race_start, "start", lambda plans, terms: ("race-x", runs))
    monkeypatch.setattr(verb, "_score", lambda race_id: None)
    compare = verb.compare
    monkeypatch.setattr(verb, "compare", lambda runs, by: compare(recorded, by))
    monkeypatch.setattr(
        verb.follow,
        "follow",
        lambda run, name, quiet: Status(read_object(run.result)["state"]),  # type: ignore[index]
    )
    file = tmp_path / "race.json"
    file.write_text("{}")
    arguments = ["race", str(file), "--methods", "a, b", "--budget", "steps=5", "--seeds", "3"]
    assert cli.main([*arguments, "--wait"]) == 1, "One of them failed."
    order = ["vera", "full", "ia3"]
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in lines_with(shown, "vera", "full", "ia3")][:3] == order
    assert "Not comparable: They are measured on different held-out examples." in shown
    assert requests == [(["a", "b"], verb.Budget("steps", 5)), (3, 0)]
    write_json(runs[1].result, {"state": "done"})
    assert cli.main([*arguments, "--wait"]) == 0
    assert cli.main([*arguments, "--seeds", "0"]) == 2


def test_numbers_that_json_lacks_are_words(capsys: pytest.CaptureFixture[str]) -> None:
    from lab.cli import console

    console.print_json({"a": [float("nan"), float("inf"), -float("inf"), 1.5], "b": (1, None)})
    assert json.loads(capsys.readouterr().out) == {
        "a": ["NaN", "Infinity", "-Infinity", 1.5], "b": [1, None],
    }  # fmt: skip
    assert (
        console.loss(None) == "–"
        and console.loss(0.0) == "0.0000"
        and console.loss(1.23456) == "1.2346"
    )
    assert [console.rate(value) for value in (None, 0.0, 12.6)] == ["–", "–", "13"]
    console.table("t", ["a"], [["[bold]x[/bold]"]])
    assert "[bold]x[/bold]" in capsys.readouterr().out, "Cells are text, not markup."


def test_who_follows_a_run_sees_its_newest_losses(lab_home: Path) -> None:
    run = make("aaaa", lab_home)
    records = [{"kind": "train", "step": step, "train/loss": 5.0 - step} for step in (1, 2, 3)]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    now = Status("training", phase="training", done=3, total=12, unit="step", eta_s=65.0)
    note = follow._note(now, record_reader.read_lines(run.metrics)[0])
    assert note == "training · step 3 of 12 · train/loss 2.000 · 1 min 05 s left"


def test_a_download_shows_what_it_says_of_itself() -> None:
    training = Status("training", done=3.0, total=12.0, unit="step", eta_s=90.0)
    assert follow.progress_row(training) == [["progress", "step 3 of 12, 1 min 30 s left"]]
    download = Status("starting", done=1e6, total=4e6, unit="bytes", note="1.00 MB of 4.00 MB")
    assert follow.progress_row(download) == [["progress", "1.00 MB of 4.00 MB"]]
    assert follow.progress_row(Status("done", done=12.0, total=12.0)) == []


def test_nothing_is_drawn_where_json_is_wanted(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from lab.cli import follow

    run = make("aaaa", lab_home, "done")
    monkeypatch.setattr(follow, "console", Console(force_terminal=True))
    assert follow.follow(run, "a label", quiet=True).state == "done"
    assert capsys.readouterr().out == ""
    assert follow.follow(run, "a label").state == "done"
    assert "a label" in capsys.readouterr().out


def test_every_verb_has_its_help() -> None:
    parser = cli.parser()
    (verbs,) = [
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    ]
    assert {"start", "runs", "race", "compare", "chat", "merge", "evaluate"} <= set(verbs.choices)
    for name, sub in verbs.choices.items():
        assert sub.description, name


def test_who_follows_a_waiting_run_starts_the_supervisor(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was killed while the run waited would leave it waiting for ever."""
    from rich.console import Console

    states = [Status("waiting"), Status("done")]
    looks: list[int] = []
    monkeypatch.setattr(follow, "console", Console(force_terminal=True))
    monkeypatch.setattr(follow, "status", lambda run: states.pop(0))
    monkeypatch.setattr(follow.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(supervisor_start, "ensure_if_waiting", lambda: looks.append(len(states)))
    assert follow.follow(make("aaaa", lab_home), "a label").state == "done"
    assert looks == [1]


def test_a_look_at_the_queue_starts_the_supervisor(
    lab_json: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr(supervisor_start, "ensure_if_waiting", lambda: looks.append(1))
    lab_json("queue")
    assert looks == [1]


FACTS = HostFacts(
    system="Linux 6.1 x86_64", python="3.11.7", processor="Chip", cores=2, home="/lab",
    memory_bytes=8 * 10**9, memory_free_bytes=4 * 10**9, disk_free_bytes=50 * 10**9,
)  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "missing", "words"),
    [
        (FACTS, [], None),
        (FACTS, ["torch"], "torch is not installed. Run 'make setup'."),
        (replace(FACTS, system="Linux 6.1 aarch64"), [], "Linux 6.1 aarch64 is not supported"),
        (replace(FACTS, system="Darwin 24 x86_64"), [], "Darwin 24 x86_64 is not supported"),
        (replace(FACTS, disk_free_bytes=2_900_000_000), [], "Only 2.90 GB of disk are free."),
        (replace(FACTS, disk_free_bytes=3_100_000_000), [], None),
    ],
)
def test_the_doctor_says_what_will_not_work(
    facts: HostFacts, missing: list[str], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.cli import inventory
    from lab.preflight import doctor

    monkeypatch.setattr(doctor, "missing", lambda: missing)
    problems = inventory._problems(facts, missing)
    assert [words] == [text[: len(words)] for text in problems] if words else problems == []


def test_models_that_are_only_shapes_are_told_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.cli import inventory

    monkeypatch.setattr(inventory.console, "_width", 200)
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out
    (own,) = lines_with(shown, "builtin:smollm2-135m-instruct")
    assert own.rstrip().endswith("yes")
    shapes = lines_with(shown, "config:")
    assert shapes and all("estimates only" in line for line in shapes)


def test_checkpoints_say_which_are_pinned(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    for step, loss in ((4, 2.5), (1200, None)):
        (run.checkpoints / f"step-{step}").mkdir()
        write_json(run.checkpoints / f"step-{step}" / "state.json", {"eval_loss": loss})
    assert cli.main(["checkpoints", run.id, "--pin", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (pinned,) = [line.split() for line in lines if "pinned" in line]
    assert pinned[0] == "4" and pinned[-2:] == ["2.5000", "pinned"]
    (other,) = [line.split() for line in lines if line.strip().startswith("1,200")]
    assert other[-1] == "–", "it has no evaluation, and is not pinned"


def test_fixes_say_what_each_change_saves(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    savings = [
        Saving("Fuse", {}, True, peak_bytes=7 * 10**9, saves_bytes=2 * 10**9),
        Saving("Cut", {}, False),
    ]
    monkeypatch.setattr(run_verbs, "spec_of", lambda run: RunSpec())
    monkeypatch.setattr(run_verbs.planner, "fixes", lambda spec: savings)
    assert cli.main(["fixes", run.id]) == 0
    lines = capsys.readouterr().out.splitlines()
    (same,) = [line.split() for line in lines if line.startswith("Fuse")]
    (changed,) = [line.split() for line in lines if line.startswith("Cut")]
    assert same == ["Fuse", "7.00", "GB", "2.00", "GB", "same", "effective", "batch"]
    assert changed[-3:] == ["changes", "the", "training"]


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ({"fits": True}, "Fits into 24.00 GB."),
        ({"fits": False}, "Does not fit into 24.00 GB."),
        ({"trace_error": "x"}, "Whether it fits is not known: the figures are the least"),
        ({"has_margin": True}, "an estimate of the resident memory, with a margin; no bound."),
        ({"reserved_bytes": 3 * 10**9}, "reserved by the allocator 3.00 GB"),
        (
            {"operation": "matmul", "module": "lm_head"},
            "peak (backward, matmul in lm_head) 2.00 GB",
        ),
    ],
)
def test_an_estimate_says_what_its_peak_is_worth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], memory: dict[str, Any],
    says: str,
) -> None:  # fmt: skip
    from lab.cli import memory as verb

    forecast = Forecast(
        MemoryForecast(peak_bytes=2 * 10**9, peak_phase="backward", **memory),
        settings=StepSettings(longest_row=64),
        device_bytes=24 * 10**9,
        notes=("A note [of] its own.",),
    )
    monkeypatch.setattr(verb.planner, "estimate", lambda *_, **__: forecast)
    assert cli.main(["estimate", "--model", "m", "--method", "lora"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert says in shown and "A note [of] its own." in shown
    assert "For the rows of max_length, 64 tokens" in shown
    assert ("no bound" in shown) is ("has_margin" in memory)
    assert ("is not known" in shown) is ("trace_error" in memory)


def test_a_run_is_shown_with_what_it_began_and_ended_with(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record("aaaa", "first", losses=(2.9, 2.5))
    write_json(run.estimate, {"peak_bytes": "many"})
    assert cli.main(["show", run.id]) == 0
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert "evaluation loss base 3.5900, now 2.5000" in lines
    assert "train loss 3.0000 to 2.6000" in lines
    assert "damaged estimate.json: peak_bytes" in lines


def test_a_log_is_followed_to_its_end_without_cutting_a_letter(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "começo\nfim é\n".encode()
    pieces = [text[:5], text[5:13], text[13:]]
    assert text[4:5] + text[5:6] == "ç".encode(), "The first piece ends within a letter."
    run.log.write_bytes(pieces.pop(0))

    def look(run: RunDir) -> Status:
        return Status("training" if pieces else "done")

    def wait(seconds: float) -> None:
        with run.log.open("ab") as file:
            file.write(pieces.pop(0))

    monkeypatch.setattr(run_verbs, "status", look)
    monkeypatch.setattr(run_verbs.time, "sleep", wait)
    assert cli.main(["logs", run.id, "-f"]) == 0
    assert capsys.readouterr().out == "começo\nfim é\n"


def test_what_a_deleted_run_leaves_elsewhere_is_said(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(actions, "delete", lambda run: ["Its records are in wandb."])
    assert cli.main(["delete", run.id]) == 0
    assert capsys.readouterr().out == f"{run.id} deleted\nIts records are in wandb.\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["faults", "--kills", "0"], "--kills is 0. Give 1 to 100000."),
        (["hostile", "--cases", "10001"], "--cases is 10001. Give 1 to 10000."),
        (["speed", "--pairs", "0"], "--pairs is 0. Give 1 to 1000."),
        (["speed", "--batch", "4097"], "--batch is 4097. Give 1 to 4096."),
    ],
)
def test_a_bench_is_bounded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    says: str,
) -> None:  # fmt: skip
    from bench import throughput
    from lab.cli import bench as verb

    for name in ("faults", "hostile"):
        monkeypatch.setitem(verb.BENCHES, name, lambda arguments: pytest.fail("It began."))
    monkeypatch.setattr(throughput, "speed", lambda *_: pytest.fail("It began."))
    assert cli.main(["bench", *arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("error", "kinds_equal", "code"),
    [(0.019, True, 0), (0.021, True, 1), (-0.004, True, 0), (-0.006, True, 1), (0.0, False, 1)],
)
def test_a_tracker_that_is_off_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: float,
    kinds_equal: bool, code: int,
) -> None:  # fmt: skip
    from bench import estimate_accuracy

    row = {"method": "lora", "kinds_equal": kinds_equal, "fake_peak": 1, "real_peak": 1}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(estimate_accuracy, "on_processor", lambda: [None, None])
    rows = [row | {"error": 0.0, "kinds_equal": True}, row | {"error": error}]
    monkeypatch.setattr(estimate_accuracy, "check_tracker", lambda case: rows.pop())
    assert cli.main(["bench", "memory"]) == code
    shown = capsys.readouterr().out
    assert f"{error:+.3%}" in shown and ("differ" in shown) is not kinds_equal


def test_a_demo_whose_run_fails_has_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lab_home: Path
) -> None:
    from lab.cli import demo

    run, methods = make("aaaa", lab_home), list[str]()
    monkeypatch.setattr(demo.built_in, "prepare", lambda model, tell: None)
    monkeypatch.setattr(
        demo, "start_run", lambda spec: methods.append(spec["method"]["name"]) or run
    )
    ended = Status("stopped", message="Somebody stopped it.", hint="Start again.")
    monkeypatch.setattr(demo.follow, "follow", lambda *_, **__: ended)
    assert cli.main(["demo"]) == 1
    captured = capsys.readouterr()
    assert "The full run ended as stopped: Somebody stopped it. Start again." in captured.err
    assert methods == ["full"] and "Done in" not in captured.out


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.cli import inventory
    from lab.devices import HostGpu

    gpu = HostGpu(0, "GPU-1", "A card", 8 * 10**9, 7 * 10**9)
    facts = replace(FACTS, gpus=(gpu,))
    for is_usable in (True, False):
        monkeypatch.setattr("torch.cuda.is_available", lambda is_usable=is_usable: is_usable)
        problems = inventory._problems(facts, [])
        assert problems == [] if is_usable else "matches the driver" in problems[0]


def test_a_set_is_added_and_removed_under_the_name_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lab_json: Callable[..., Any]
) -> None:
    for name, stored_name in (("rows.jsonl", "rows.jsonl"), ("my rows.jsonl", "my-rows.jsonl")):
        (tmp_path / name).write_text('{"text": "a"}\n')
        assert cli.main(["datasets", "add", str(tmp_path / name)]) == 0
        note = "" if name == stored_name else f"'{name}' is kept as '{stored_name}'.\n"
        assert capsys.readouterr().out == f"{note}upload:{stored_name} added\n"
    lab_json("datasets", "remove", "upload:rows.jsonl")
    lab_json("datasets", "remove", "my-rows.jsonl")
    assert lab_json("datasets")["own"] == []
    assert cli.main(["datasets", "remove", "rows.jsonl"]) == 2
    assert cli.main(["datasets", "remove"]) == 2


def test_the_doctor_counts_each_folder_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.cli import storage

    sizes = {"cache": 1000, "datasets": 200, "models": 30}
    for name, size in sizes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * size)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LAB_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(storage.hub, "folder", lambda: tmp_path / "datasets")
    facts = storage.facts()
    for name, size in sizes.items():
        assert (facts[name], facts[f"{name}_bytes"]) == (str(tmp_path / name), size)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "not" / "there"))
    facts = storage.facts()
    assert facts["cache_bytes"] == 0 and facts["cache_free_bytes"] > 0
    rows = dict(storage.rows(facts | {"offline": True, "token": None}))
    assert rows["Hub"] == "offline, by HF_HUB_OFFLINE; no token"


@pytest.mark.parametrize(
    ("parameters", "room", "on_gpu", "fits_with", "needs"),
    [
        (10**9, 6.0e9, False, "lora", (5.6e9, 2.8e9)),
        (10**9, 3.0e9, False, "qlora", (5.6e9, 2.8e9)),
        (10**9, 2.0e9, False, "", (5.6e9, 2.8e9)),
        (10**9, 4.0e9, True, "lora", (4.0e9, 2.6e9)),
        (10**9, 3.9e9, True, "qlora", (4.0e9, 2.6e9)),
    ],
)
def test_what_fits_here_follows_the_size_of_the_weights(
    parameters: int, room: float, on_gpu: bool, fits_with: str, needs: tuple[float, float]
) -> None:
    from lab.cli import hub_search
    from lab.hub.search import HubModel

    model = HubModel("a/b", parameters, "MIT", 1, is_gated=False, has_safetensors=True)
    row = hub_search._row(model, room, on_gpu)
    assert (row["fits_with"], row["fits_here"]) == (fits_with, bool(fits_with))
    assert tuple(row["needs_bytes"].values()) == needs
    unknown = hub_search._row(replace(model, parameters=None), room, on_gpu)
    assert (unknown["fits_with"], unknown["fits_here"]) == ("", None)
    pickles = hub_search._row(replace(model, has_safetensors=False), room, on_gpu)
    assert (pickles["fits_with"], pickles["fits_here"]) == ("", False)


def test_a_search_asks_for_one_model_at_least(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lab.cli import hub_search

    limits: list[int] = []
    monkeypatch.setattr(hub_search.hub, "models", lambda text, limit: limits.append(limit) or [])
    for limit in ("-3", "0", "7"):
        assert cli.main(["models", "--search", "x[1]", "--limit", limit]) == 0
    assert limits == [1, 1, 7]
    assert "No model that writes text has 'x[1]' in its name." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", " "], "The prompt is empty."),
        ([], "chat needs models and a --prompt"),
        (["--prompt", "x", "--temperature", "-1", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature"),
        (["--receipt", "no such file"], "--receipt names its own model"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_before_a_model_is_loaded(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], says: str,
) -> None:  # fmt: skip
    from lab.cli import chat

    monkeypatch.setattr(chat, "answer_all", lambda *_: pytest.fail("It was not refused."))
    assert cli.main(["chat", f"base:{tiny_model}", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_the_doctor_shows_speed_and_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lab.cli import inventory
    from lab.devices import HostGpu

    gpu = HostGpu(0, "GPU-1", "A card", 8 * 10**9, 7 * 10**9)
    monkeypatch.setattr(inventory.host, "describe", lambda: replace(FACTS, gpus=(gpu,)))
    monkeypatch.setattr(inventory.host, "time_product", lambda: 57e9)
    monkeypatch.setattr(inventory, "_problems", lambda facts, missing: ["It is [too] slow."])
    assert cli.main(["doctor"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "Memory 8.00 GB, 4.00 GB free", "Disk 50.00 GB free in /lab", "CPU speed 57 GFLOP/s",
        "GPU A card, 8.00 GB, 7.00 GB free", "builtin:smollm2-135m-instruct: ready",
        "Problem: It is [too] slow.",
    ):  # fmt: skip
        assert words in shown
    assert "All requirements are met" not in shown and "none; training runs" not in shown


def test_sets_of_the_hub_are_fetched_once_and_their_splits_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lab.cli import hub_data
    from lab.data import hub

    fetched: list[str] = []
    present = hub.parse("org/here").file
    present.parent.mkdir(parents=True)
    present.touch()
    monkeypatch.setattr(hub_data.hub_fetch, "fetch", lambda wanted: fetched.append(str(wanted)))
    monkeypatch.setattr(hub_data.hub, "split_note", lambda wanted: f"{wanted}: the split train.")
    hub_data.fetch_missing({"data": {"dataset": "org/here", "eval_dataset": "org/rows"}})
    assert fetched == ["org/rows"]
    complaint = capsys.readouterr().err
    assert (
        "Fetching org/rows from the Hub ..." in complaint and "Fetching org/here" not in complaint
    )
    assert "org/here: the split train." in complaint and "org/rows: the split train." in complaint


def test_a_report_that_cannot_be_written_is_refused_before_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lab.cli import compare

    run = record("aaaa", "first")
    taken = tmp_path / "taken.html"
    taken.write_text("mine")
    monkeypatch.setattr(compare.subprocess, "run", lambda *_, **__: pytest.fail("It was drawn."))
    for file, says in ((taken, "exists"), (tmp_path / "no" / "x.html", "is no folder")):
        assert cli.main(["compare", run.id, "--html", str(file)]) == 2
        assert says in capsys.readouterr().err
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("is_clean", [True, False])
def test_a_bench_that_finds_something_has_failed(
    capsys: pytest.CaptureFixture[str], is_clean: bool
) -> None:
    from lab.cli import bench

    @dataclass
    class Report:
        failures: list[str]
        is_clean: bool

    output = bench._report("A bench", Report(["Step [3] is lost."], is_clean), [["kills", "7"]])
    assert output.exit_code == (0 if is_clean else 1)
    assert output.data == {"failures": ["Step [3] is lost."], "is_clean": is_clean}
    output.display()
    assert "Step [3] is lost." in capsys.readouterr().out


def test_a_ratio_of_speeds_is_told_with_its_bound() -> None:
    from lab.cli import bench_speed

    ratio = {"pairs": 20, "median": 1.5, "lower": 1.25, "smallest": 1.1, "largest": 2.0}
    assert bench_speed._figures(ratio) == ["20", "1.500", "1.250", "1.100 to 2.000"]
    assert bench_speed._figures(ratio | {"lower": None})[2] == "–"
    assert bench_speed._figures(None) == ["–", "not equal work", "–", "–"]
    medians = {"median_s": {"cold": 12.0}, "cold_over_bare": 1.5}
    assert bench_speed._start(medians, "cold") == "12.0 s, 1.50 times the bare one"
