"""combine and push on the command line: what is checked first, confirmed, and printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import background_job, cli
from lab.background_job import JobRecord
from lab.chat.answers import AnswerReceipt, ModelAnswer
from lab.cli import chat, compare, downloads, harness, rank, score, serve
from lab.compare import comparison
from lab.compare.scored_rows import ScoredSet
from lab.errors import LabError
from lab.evals.harness_tasks import TaskFigures, TaskScores
from lab.evals.lm_eval_scores import ModelScores, SetScores
from lab.evals.score_sheets import ScoredAnswer, ScoredModel, ScoredQuestion, ScoreSheet
from lab.export import combine, gguf_file, push
from lab.export import merge as merging
from lab.hub import credentials
from lab.hub.progress import DownloadForecast, DownloadProgress
from lab.paths import RunDir
from lab.rank.convert import Conversion
from lab.rank.measure import RankReport
from lab.rank.repair import Quality, Repair
from lab.rank.spectrum import MatrixSpectrum
from tests.compare.recorded import record, score_run


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LAB_HUB_OFFLINE", "0")
    credentials.give("hf_test")
    yield
    credentials.adopt(None)


def test_combine_takes_equal_weights_unless_told(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch, lab_json: Callable[..., Any]
) -> None:
    wanted: list[combine.Combination] = []
    monkeypatch.setattr(combine, "check", wanted.append)
    combined = combine.CombinedResult("x", 4, 100, {"equal": True}, {"x": 1.0}, 0.0, "")
    monkeypatch.setattr(combine, "combine", lambda combination: combined)
    ids = [run.id for run in trained]
    assert lab_json("combine", *ids) == asdict(combined)
    lab_json("combine", *ids, "--weights", "0.7,-0.3", "--type", "ties", "--density", "0.2")
    lab_json("combine", *ids, "--energy", "0.9", "--rank", "3", "--name", "both")
    assert wanted[0] == combine.Combination(tuple(ids), (0.5, 0.5))
    assert wanted[1] == combine.Combination(tuple(ids), (0.7, -0.3), "ties", 0.2)
    assert wanted[2] == combine.Combination(tuple(ids), (0.5, 0.5), rank=3, name="both", energy=0.9)


def test_combine_refuses_before_anything_is_loaded(
    trained: list[RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    full, lora = trained
    for arguments, says in (
        ([lora.id], "2 to 8 different results"),
        ([lora.id, full.id], "Full fine-tuning leaves no adapter"),
        ([lora.id, full.id, "--weights", "a,b"], "are no numbers"),
        ([lora.id, full.id, "--weights", "nan,1"], "weight nan"),
        ([lora.id, "20260101-000000-lora-zzzz"], "There is no run"),
    ):
        assert cli.main(["combine", *arguments]) == 2
        assert says in capsys.readouterr().err, arguments


def test_push_is_confirmed_by_the_name(
    trained: list[RunDir],
    online: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lora, started = trained[1], []

    def start(run: RunDir, name: str, what: str, **more: Any) -> None:
        started.append((run.id, name, what, more))

    monkeypatch.setattr(push, "start", start)
    result = {
        "url": "https://hub/me/x", "is_private": True, "commit": "c1", "verified": 7, "files": 7,
    }  # fmt: skip
    monkeypatch.setattr(
        background_job, "wait", lambda file, tell: JobRecord(finish="done", result=result)
    )
    command = ["push", lora.id, "me/x", "--private"]
    assert cli.main(command) == 2
    assert "Nobody is there to confirm the upload to me/x as private" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "me/y")
    assert cli.main(command) == 2 and started == []
    out = capsys.readouterr()
    assert "another name" in out.err and "will be private" in out.out and "README.md" in out.out
    monkeypatch.setattr("builtins.input", lambda prompt: "me/x")
    assert cli.main(command) == 0
    assert started == [(lora.id, "me/x", "result", {"private": True, "update": False})]
    out = capsys.readouterr()
    assert "https://hub/me/x, private, commit c1" in out.out and "7 of 7 files" in out.out
    assert cli.main([*command, "--yes", "--update"]) == 0
    assert started[-1][3] == {"private": True, "update": True}
    failed = JobRecord(finish="failed", error="The Hub is gone.", hint="Wait.")
    monkeypatch.setattr(background_job, "wait", lambda file, tell: failed)
    assert cli.main([*command, "--yes"]) == 2
    assert "The Hub is gone." in capsys.readouterr().err
    killed = JobRecord(finish="interrupted")
    monkeypatch.setattr(background_job, "wait", lambda file, tell: killed)
    assert cli.main([*command, "--yes"]) == 2
    assert "The upload was interrupted. Start it again." in " ".join(
        capsys.readouterr().err.split()
    )


def test_push_needs_a_visibility_a_token_and_a_network(
    trained: list[RunDir], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = trained[1]
    with pytest.raises(SystemExit):
        cli.main(["push", lora.id, "me/x"])
    assert "--private --public" in capsys.readouterr().err
    assert cli.main(["push", lora.id, "me/x", "--public"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    monkeypatch.setenv("LAB_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert cli.main(["push", lora.id, "me/x", "--public", "--what", "gguf-F16"]) == 2
    assert "not made yet" in capsys.readouterr().err
    assert cli.main(["push", lora.id, "me/x", "--public"]) == 2
    assert "needs a token with the right to write" in capsys.readouterr().err


def test_scores_say_who_is_right_where_the_other_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def model(*right: float) -> ScoredModel:
        answers = tuple(ScoredAnswer(f"said {n}", figures={"exact_match": n}) for n in right)
        return ScoredModel({"exact_match": sum(right) / len(right)}, answers)

    questions = tuple(ScoredQuestion(n, f"Question {n}?", f"right {n}") for n in range(4))
    models = {"base:a": model(0, 0, 1, 0), "run:b": model(1, 1, 0, 1)}
    answer = ScoreSheet("builtin:x", "text", "exact_match", questions, models)
    monkeypatch.setattr(score, "check_questions", lambda arguments: None)
    monkeypatch.setattr(score, "parse", lambda name: name)
    monkeypatch.setattr(score.downloads, "fetch_models", lambda names: None)
    monkeypatch.setattr(score.scoring, "score", lambda *terms: answer)
    assert cli.main(["score", "base:a", "run:b", "--set", "builtin:x"]) == 0
    shown = capsys.readouterr().out
    assert "base:a right and run:b wrong: 1; the other way round: 3." in shown
    worst = shown.partition("Worst answers of run:b:")[2]
    assert " ".join(worst.split()).startswith("Question 2? right: right 2 said: said 0")
    assert cli.main(["score", "base:a", "run:b", "--set", "builtin:x", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert list(data) == ["set", "kind", "rows", "models", "main", "extremes", "differences"]
    assert data["rows"][1] == {"row": 1, "prompt": "Question 1?", "reference": "right 1"}
    assert [list(each) for each in data["models"]] == [["model", "figures", "answers"]] * 2
    assert list(data["models"][0]["answers"][0]) == ["text", "likeliest", "label", "figures"]
    assert data["extremes"]["run:b"] == {"best": [0, 1], "worst": [2, 3]}
    pair = {"models": ["base:a", "run:b"], "first": [2], "second": [0, 1, 3]}
    assert data["differences"] == [pair]


def test_the_rows_that_only_one_run_gets_right_are_told_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the base there as "The base"; a run without a name by its ID."""
    first, second = record("aaaa", "first"), record("bbbb", "")
    right = [True, False, False, False] + 5 * [True] + [False]
    score_run(first, right, base=[False, True, True, True] + 5 * [True] + [False])
    score_run(second, [not value for value in right[:4]] + right[4:])
    compare.show_scores(comparison.compare([first, second]))
    shown = " ".join(capsys.readouterr().out.split())
    assert "The base gets 3 rows right that first does not; the other way round 1." in shown
    assert f"first gets 1 row right that {second.id} does not; the other way round 3." in shown
    assert "Scores on builtin:text-to-shell: 10 questions" in shown


def test_a_figure_that_one_model_lacks_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    run = record("aaaa", "first")
    sheet = score_run(run, [True, False], base=[True, True])
    name = f"run:{run.id}"
    scored = sheet.models[name]
    more = replace(scored, figures=scored.figures | {"accuracy": 0.25})
    sheet, names = replace(sheet, models=sheet.models | {name: more}), tuple(sheet.models)
    outcome = replace(comparison.compare([run]), scores=(ScoredSet(sheet, names, ()),))
    compare.show_scores(outcome)
    lines = capsys.readouterr().out.splitlines()
    of_base, of_run = (
        next(line for line in lines if line.startswith(name)) for name in ("base model", "first ")
    )
    assert "–" in of_base and "0.250" in of_run


def test_the_needed_rank_stands_before_the_rank_of_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrices = tuple(
        MatrixSpectrum(f"{name}.weight", (8, 8), 8, (), norm, needed, 2.5, 1.5, 4.0)
        for name, norm, needed in (("small", 0.5, 2), ("large", 1.5, 5))
    )
    report = RankReport(
        run="run-a", needed=3, rank=8, matrices=matrices, similarity={"large.weight": 0.25}
    )
    monkeypatch.setattr(rank.paths, "run_dir", RunDir)
    monkeypatch.setattr(rank.measure, "measure", lambda *runs, **terms: report)
    assert cli.main(["rank", "run-a"]) == 0
    shown = capsys.readouterr().out
    large, small = (line for line in shown.splitlines() if " of 8 " in line and "≈" not in line)
    assert large.startswith("large ") and "5 of 8" in large and large.rstrip().endswith("0.25")
    assert small.startswith("small ") and "2 of 8" in small and small.rstrip().endswith("–")
    assert "run-a needed r ≈ 3 of 8 (95 % of the energy of all updates)." in shown


def test_waiting_for_a_job_tells_each_phase_once(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [JobRecord(phase=phase) for phase in ("a", "a", "b")]
    records.append(JobRecord(phase="b", finish="done"))
    monkeypatch.setattr(background_job, "read", lambda file: records.pop(0))
    phases: list[str] = []
    assert background_job.wait(lab_home, phases.append, 0.0).finish == "done"
    assert phases == ["a", "b"]
    monkeypatch.setattr(background_job, "read", lambda file: None)
    assert background_job.wait(lab_home, phases.append, 0.0).finish == "interrupted"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What merge, gguf and the downloads before them are called with, in this order."""
    calls: list[Any] = []

    def merge(run: RunDir, target: Path, precision: str) -> merging.MergedModel:
        calls.append(("merge", precision))
        return merging.MergedModel("m", 1000, 0.0, {"sentence": "Equal"}, "A note.", "A warning.")

    def of_run(run: RunDir, file: Path, quantisation: str) -> gguf_file.WrittenGguf:
        calls.append(("gguf", quantisation))
        return gguf_file.WrittenGguf("g", 1000, {"sentence": "Equal"}, {"Ollama": "ollama run g"})

    def of(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    monkeypatch.setattr(merging, "check", of("check"))
    monkeypatch.setattr(merging, "merge", merge)
    monkeypatch.setattr(gguf_file, "check", of("check"))
    monkeypatch.setattr(gguf_file, "of_run", of_run)
    monkeypatch.setattr(downloads, "fetch_models", of("fetch"))
    return calls


@pytest.mark.parametrize(
    ("verb", "options", "last"),
    [
        ("merge", ["--out", "m"], ("merge", "auto")),
        ("merge", ["--out", "m", "--precision", "bfloat16"], ("merge", "bfloat16")),
        ("gguf", ["g"], ("gguf", "F16")),
        ("gguf", ["g", "--type", "Q8_0"], ("gguf", "Q8_0")),
    ],
)
def test_what_cannot_be_written_is_refused_before_a_download(
    trained: list[RunDir], steps: list[Any], capsys: pytest.CaptureFixture[str], verb: str,
    options: list[str], last: tuple[str, str],
) -> None:  # fmt: skip
    assert cli.main([verb, trained[1].id, *options]) == 0
    assert steps == ["check", "fetch", last]
    shown = capsys.readouterr().out
    assert "1.00 kB" in shown and "Read back: Equal." in shown
    more = ("A warning.", "A note.") if verb == "merge" else ("Ollama: ollama run g",)
    assert all(line in shown for line in more), "What a person must know is said."


def test_combine_says_how_far_it_is_from_the_sum(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proof = {"loaded_with": "PEFT", "largest_difference": 1e-6, "tolerance": 1e-4, "tokens": 9}
    combined = combine.CombinedResult("x", 4, 1000, proof, {"x": 1.0}, 0.125, "A note.")
    monkeypatch.setattr(combine, "check", lambda combination: None)
    monkeypatch.setattr(combine, "combine", lambda combination: combined)
    assert cli.main(["combine", *(run.id for run in trained)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "x: rank 4, 1.00 kB." in shown and "differs by 12 % of its length." in shown
    assert "A note." in shown


def test_a_repetition_names_the_first_other_token_as_a_person_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lab.chat import repeat

    answer = ModelAnswer(
        model="base:a", text="Hi", receipt=AnswerReceipt(), token_ids=[1], seconds=1.0,
        finish="stop",
    )  # fmt: skip
    other = repeat.Repetition(False, ["the seed"], answer, 0)
    monkeypatch.setattr(repeat, "repeat", lambda file, fetch: other)
    assert cli.main(["chat", "--receipt", str(tmp_path / "receipt.json")]) == 1
    shown = capsys.readouterr().out
    assert "Other tokens from number 1 on." in shown and "Changed since: the seed." in shown


def test_a_warning_about_a_model_stands_below_its_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    receipt = AnswerReceipt(warning="Its adapter changes nothing.", dtype="float32")
    answer = ModelAnswer(
        model="run:b", text="Hi", receipt=receipt, token_ids=[1], seconds=1.0, finish="stop"
    )
    chat.show("Who?", [answer])
    assert "run:b: Its adapter changes nothing." in " ".join(capsys.readouterr().out.split())


def test_every_adapter_and_each_base_is_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    class Adapter:
        def __init__(self, name: str) -> None:
            self.source = SimpleNamespace(location=name)

    first, second = Adapter("org/first"), Adapter("org/second")
    names = [
        SimpleNamespace(adapter=each, base=base)
        for each, base in ((first, "org/base"), (None, "org/base"), (second, "org/other"))
    ]
    monkeypatch.setattr(downloads.hub, "adapter_download", lambda source: None)
    monkeypatch.setattr(downloads.hub, "download_size", lambda source: None)
    monkeypatch.setattr(downloads.catalog, "resolve", lambda name: name)
    monkeypatch.setattr(downloads, "_fetch", lambda name, still, download: fetched.append(name))
    downloads.fetch_models(names)  # type: ignore[arg-type]
    assert fetched == ["org/first", "org/second", "org/base", "org/other"]


def test_a_long_download_says_how_far_it_is_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(downloads, "time", clock)
    progress = DownloadProgress(total=4_000_000, files=1)

    def download(tell: Callable[[DownloadProgress], object]) -> None:
        for clock.now, done in ((1.0, 1), (6.0, 2), (7.0, 3), (20.0, 4)):
            progress.done = done * 1_000_000
            tell(progress)

    downloads._fetch("org/name", DownloadForecast(4_000_000, 4_000_000, 1, "/cache"), download)
    assert capsys.readouterr().err.splitlines() == [
        "Downloading org/name: 4.00 MB to /cache ...",
        "Downloading org/name: 2.00 MB of 4.00 MB",
        "Downloaded org/name.",
    ]
    downloads._fetch("org/name", DownloadForecast(0, 4_000_000, 0, "/cache"), download)
    assert capsys.readouterr().err == "", "All of it is here."


def test_a_task_is_shown_with_its_standard_errors(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"acc": 0.5, "acc_norm": 0.25}
    models = [
        TaskFigures("base:a", figures, {"acc": 0.0125}),
        TaskFigures("run:b", {"acc": 0.75, "acc_norm": 0.5}, {"acc": 0.01, "acc_norm": 0.02}),
    ]
    harness._show_task(TaskScores("arc", "org/arc", 40, 5, "0.4", models))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "base:a 0.500 ± 0.013 0.250" in lines or "base:a 0.500 ± 0.012 0.250" in lines
    assert "run:b 0.750 ± 0.010 0.500 ± 0.020" in lines
    assert "40 rows, 5 examples in each prompt" in " ".join(lines)


@pytest.mark.parametrize("options", [["--repair", "--convert"], ["other", "--convert"],
                                     ["other", "--repair"], ["--energy", "1.5"]])  # fmt: skip
def test_what_makes_a_new_result_takes_one_run(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    for module, name in (
        (rank.convert, "convert"), (rank.repair, "repair"), (rank.measure, "measure")
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("It was not refused."))
    full, lora = (run.id for run in trained)
    words = [full if option == "other" else option for option in options]
    assert cli.main(["rank", lora, *words]) == 2


def test_a_new_result_is_told_with_what_was_before_and_after(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rank._repaired(Repair("run-b", 7, 3, Quality(2.0, 0.5), Quality(2.25, 0.125))).display()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "loss on held-out rows 2.0000 2.2500" in lines
    assert "forgetting 0.5000 0.1250" in lines
    assert "7 intruder dimensions in 3 matrices reduced: run-b" in lines
    conversion = Conversion(
        run="run-c", energy=0.9, ranks={"a": 4, "b": 2, "c": 2}, rank=4, fidelity=0.985,
        bytes_before=3000, bytes_after=1000, largest_difference=0.5, share_of_spread=0.01,
        same_top=0.75, kl=0.001, rows=4, loss_before=2.0, loss_after=2.125,
        base_note="whether [base] is the same one was not checked.",
    )  # fmt: skip
    rank._converted(conversion).display()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "loss on held-out rows 2.0000 2.1250" in lines and "bytes 3.00 kB 1.00 kB" in lines
    assert lines.index("2 2") < lines.index("4 1"), "Ranks, and how many layers have them."
    shown = " ".join(lines)
    assert "90 % of the energy of each layer, 98.5 % of the length" in shown
    assert "same top token 75.0 %" in shown
    assert "whether [base] is the same one was not checked." in shown


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["base:a", "base:a"], "A model is named twice"),
        (["base:a", "--most", "0"], "--most is 0"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused_before_a_download(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str],
    says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(downloads, "fetch_models", lambda names: pytest.fail("It was not refused"))
    assert cli.main(["score", *options, "--set", "builtin:persona-chats"]) == 2
    assert says in capsys.readouterr().err


def test_a_score_is_asked_for_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    terms: list[Any] = []

    def ask(names: Any, *rest: Any) -> Any:
        terms.append(rest[:3])
        raise LabError("Seen.")

    monkeypatch.setattr(score, "parse", lambda name: name)
    monkeypatch.setattr(downloads, "fetch_models", lambda names: None)
    monkeypatch.setattr(score.scoring, "score", ask)
    data = "builtin:persona-chats"
    command = ["score", "base:a", "--set", data, "--most", "7", "--pattern", "x+"]
    assert cli.main(command) == 2
    assert terms == [(data, 7, "x+")]


def test_a_key_and_a_port_that_were_given_are_used(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[tuple[str, int]] = []
    monkeypatch.setattr(serve, "_serve", lambda names, key, port: served.append((key, port)))
    monkeypatch.setenv("LAB_TOKEN", "a key of sixteen")
    assert cli.main(["serve", f"base:{tiny_model}", "--port", "65535"]) == 0
    assert served == [("a key of sixteen", 65_535)]
    for port in ("65536", "-1"):
        assert cli.main(["serve", f"base:{tiny_model}", "--port", port]) == 2
        assert f"--port {port} is not a port" in capsys.readouterr().err
    monkeypatch.delenv("LAB_TOKEN")
    for _ in range(2):
        assert cli.main(["serve", f"base:{tiny_model}"]) == 0
    keys = {key for key, _ in served}
    assert len(keys) == 3 and min(map(len, keys)) == 16, "Without one, each start makes its own."


def test_a_set_is_shown_with_accuracy_before_what_chance_leaves_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    harness._show_set(SetScores("builtin:x", 40, "0.4", (ModelScores("base:a", 0.625, 0.5),)))
    shown = " ".join(capsys.readouterr().out.split())
    assert "lm-eval 0.4 on builtin:x: 40 questions" in shown and "base:a 0.625 0.500" in shown


def test_long_answers_are_cut_where_they_are_shown() -> None:
    assert score._short("a\n  b") == "a b"
    assert score._short("x" * 160) == "x" * 160 and score._short("x" * 161) == "x" * 160 + " …"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `serve` loads and begins, without a server or a model."""
    import uvicorn

    from lab import devices
    from lab.chat import server
    from lab.chat.engine import loaded_models

    calls: list[Any] = []

    class Models:
        def get(self, named: Any, in_use: frozenset[str]) -> Any:
            calls.append((named.name, in_use))
            proof = SimpleNamespace(problems=("Its adapter changes nothing.",))
            return SimpleNamespace(proof=proof if named.name == "run:b" else None)

    class Server:
        def __init__(self, config: Any) -> None:
            pass

        def run(self, sockets: Any) -> None:
            calls.append("run")

    listener = SimpleNamespace(getsockname=lambda: ("127.0.0.1", 4321))
    monkeypatch.setattr(devices, "pin", lambda gpus: None)
    monkeypatch.setattr(downloads, "fetch_models", lambda names: calls.append("fetch"))
    monkeypatch.setattr(loaded_models, "LoadedModels", Models)
    monkeypatch.setattr(server, "loopback", lambda port: listener)
    monkeypatch.setattr(server, "application", lambda key, **terms: calls.append((key, terms)))
    monkeypatch.setattr(uvicorn, "Config", lambda app, **terms: None)
    monkeypatch.setattr(uvicorn, "Server", Server)
    return calls


def test_serving_says_address_key_and_models_and_warns_of_what_it_loaded(
    served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    serve._serve([SimpleNamespace(name=name) for name in ("base:a", "run:b")], "the key", 0)
    captured = capsys.readouterr()
    assert "OPENAI_BASE_URL=http://127.0.0.1:4321/v1\nOPENAI_API_KEY=the key\n" in captured.out
    assert captured.out.endswith("Models: base:a, run:b\n")
    assert captured.err == "WARNING: Its adapter changes nothing.\n"
    names = frozenset(("base:a", "run:b"))
    assert served[:3] == ["fetch", ("base:a", names), ("run:b", names)], "None gives way to another"
    (key, terms), last = served[3:]
    assert (key, terms["ends_when_idle"], last) == ("the key", False, "run")


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.chat import server

    def refuse(port: int) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(server, "loopback", refuse)
    with pytest.raises(LabError, match="Port 8600 cannot be used: Address already in use"):
        serve._serve([SimpleNamespace(name="base:a")], "the key", 8600)
    assert served == []
