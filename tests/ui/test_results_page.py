"""The Results page: sizes, exports with their states, proofs with their bounds."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from lab import process
from lab.advise import worth_knowing
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.export import combine, exports, merge_proof, push
from lab.hub import credentials
from lab.paths import RunDir
from lab.runs import index
from lab.ui import results_forms, results_tabs, results_view
from lab.ui.markdown_safety import escape_markdown
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen
from tests.ui.test_panels import make_run

PROOF = {
    "dtype": "bfloat16", "largest_difference": 0.0123, "share_of_spread": 0.02, "same_top": 0.998,
    "kl": 3e-5, "tokens": 249, "rows": 5, "rows_from": "held-out", "base": "float32",
    "verdict": "equal", "versions": {"torch": "2.13"},
    "bounds": {"spread": 0.05, "other_top": 0.05, "kl": 1e-3},
}  # fmt: skip


def write_record(run: RunDir, name: str = "merged-bfloat16", **changes: Any) -> None:
    run.exports.mkdir(exist_ok=True)
    record = {"started": time.time() - 12, "process": process.identity(os.getpid())}
    write_json(run.exports / f"{name}.json", record | changes)


def test_it_says_how_to_get_a_first_result(open_page: Page) -> None:
    at = open_page("results")
    assert "No results yet" in words(at)


def test_the_result_of_the_address_is_shown_else_the_newest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older, newer = make_run(1), make_run(2)
    make_run(3, "without a result")
    for run in (older, newer):
        run.artifact.mkdir()
    screen = Screen()
    monkeypatch.setattr(results_view, "st", screen)
    assert results_view.choose() == newer and screen.query_params["run"] == newer.id
    screen.query_params["run"] = older.id
    assert results_view.choose() == older


def test_sizes_commands_and_files_of_a_new_result(open_page: Page, trained: list[RunDir]) -> None:
    lora = trained[1]
    at = open_page("results", run=lora.id)
    text = words(at)
    assert "ADAPTER" in text and "MERGED" in text and "GGUF" in text
    about = exports.predicted_bytes(lora, "merged", "bfloat16") / 1e6
    assert f"about {about:.2f} MB" in text
    assert "Read back with PEFT when it was written" in text
    assert "PROOF" not in text, "Nothing was proven yet."
    lines = "\n".join(code.value for code in at.get("code"))
    assert f"RESULT = '{lora.artifact}'" in lines and "PeftModel.from_pretrained" in lines
    assert "vllm serve" in lines and "--enable-lora" in lines
    at = open_page("results", run=lora.id, session={"results.tab": "Files and hashes"})
    (table,) = at.dataframe
    sizes = dict(zip(table.value["File"], table.value["sha256"], strict=True))
    assert len(sizes["adapter_model.safetensors"]) == 64 and sizes["README.md"] == "–"


TABS = ("Use it", "Combine adapters", "Push to the Hub", "Serve", "Files and hashes")


@pytest.mark.parametrize("tab", TABS)
def test_a_result_whose_base_is_gone_can_still_be_taken_away(
    open_page: Page, trained: list[RunDir], tmp_path: Path, tab: str
) -> None:
    lora = trained[1]
    for run in trained:  # so that no other run names a folder with its weights
        write_json(run.spec, (read_object(run.spec) or {}) | {"model": str(tmp_path / "gone")})
    (lora.exports / "merged-bfloat16").mkdir(parents=True)
    write_record(lora, finish="done", ended=time.time(), result={
        "bytes": 3_300_000, "proof": PROOF, "weights": exports._weights(lora),
    })  # fmt: skip
    at = open_page("results", run=lora.id, session={"results.tab": tab})
    assert not at.exception
    text = words(at).replace("\\", "")
    assert f"The model folder '{tmp_path / 'gone'}' does not exist" in text, "for GGUF"
    assert "Put it back" in text
    labels = [link.proto.label for link in at.get("link_button")]
    assert labels.count("Download ZIP") == 2, "the adapter, and what was merged before"


def test_a_merge_is_started_shown_and_proven(
    open_page: Page, trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora, started = trained[1], []
    monkeypatch.setattr(exports, "start", lambda *arguments: started.append(arguments))
    at = open_page("results", run=lora.id)
    at.button(key="results.merged").click().run()
    assert started == [(lora, "merged", "bfloat16")]
    write_record(lora, phase="merging")
    at = open_page("results", run=lora.id)
    assert "merging · 1" in str(at.get("progress")[0].proto.text), "The phase and the seconds."
    assert at.get("progress")[0].proto.value == 60, "Three of five phases are over."
    assert at.button(key="results.gguf").disabled, "One at a time."
    (lora.exports / "merged-bfloat16").mkdir()
    write_record(lora, finish="done", ended=time.time(), result={
        "bytes": 3_300_000, "proof": PROOF, "weights": exports._weights(lora),
    })  # fmt: skip
    at = open_page("results", run=lora.id)
    text = words(at).replace("\\", "")
    assert "3.30 MB" in text and "Equal within bounds" in text
    assert "Largest logit difference: **0.012**" in text
    assert "Same top token: **99.8 %**" in text and "KL divergence: **3e-05**" in text
    bars = [bar.proto for bar in at.get("progress")]
    assert [bar.value for bar in bars] == [40, 4, 3], "The shares of their bounds."
    assert "at most 0.05" in bars[0].text.replace("\\", "")
    assert "5 rows (held-out), 249 tokens" in text and "earlier result" not in text
    for changes, says in [
        ({"rows": 1, "tokens": 1}, "1 row (held-out), 1 token · "),
        ({"rows": "all", "tokens": None, "rows_from": None}, "– rows (–), – tokens · "),
    ]:
        proof = {key: value for key, value in (PROOF | changes).items() if key != "base"}
        write_record(lora, finish="done", result={"bytes": 1, "proof": proof, "weights": {}})
        assert says in words(open_page("results", run=lora.id)).replace("\\", "")
    proof = PROOF | {"verdict": "differs"}
    write_record(lora, finish="done", result={"bytes": 1, "proof": proof, "weights": {"a": "b"}})
    text = words(open_page("results", run=lora.id))
    assert "It differs" in text and "Equal within bounds" not in text and "earlier result" in text


@pytest.mark.parametrize("figure", ["share_of_spread", "same_top", "kl"])
@pytest.mark.parametrize(("dtype", "bounds"), [
    ("bfloat16", {"share_of_spread": 0.25, "same_top": 0.05, "kl": 1e-3}),
    ("float32", {"share_of_spread": 1e-3, "same_top": 0.01, "kl": 1e-5}),
])  # fmt: skip
def test_a_merge_beyond_a_bound_has_a_caution_and_one_within_has_none(
    open_page: Page, trained: list[RunDir], figure: str, dtype: str, bounds: dict[str, float]
) -> None:
    """Each figure of the proof by itself, one per cent below and above what is allowed."""
    lora = trained[1]
    for times, says, not_says in (
        (0.99, "Equal within bounds", "It differs"), (1.01, "It differs", "Equal within bounds"),
    ):  # fmt: skip
        value = bounds[figure] * times
        figures = {"share_of_spread": 0.0, "same_top": 1.0, "kl": 0.0}
        figures[figure] = 1 - value if figure == "same_top" else value
        proof = merge_proof.MergeProof(
            dtype=dtype, largest_difference=0.1, tokens=249, rows=5, rows_from="held-out",
            base="float32", **figures,
        )  # fmt: skip
        (lora.exports / f"merged-{dtype}").mkdir(parents=True, exist_ok=True)
        write_record(lora, f"merged-{dtype}", finish="done", ended=time.time(), result={
            "bytes": 3_300_000, "proof": proof.to_json(), "weights": exports._weights(lora),
        })  # fmt: skip
        text = words(
            open_page("results", run=lora.id, session={f"results.merged.{lora.id}": dtype})
        )
        assert says in text and not_says not in text, f"{figure} at {times} of its bound"


def test_only_a_merge_says_that_its_adapter_is_to_be_kept(
    open_page: Page, trained: list[RunDir]
) -> None:
    full, lora = trained
    caution = escape_markdown(worth_knowing.of_result("lora"))
    assert caution and caution in words(open_page("results", run=lora.id))
    assert caution not in words(open_page("results", run=full.id)), "there is none to keep"


def test_refused_interrupted_and_impossible_exports_say_what_to_do(
    open_page: Page, trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, lora = trained
    write_record(lora, finish="failed", error="The merged model answers differently: 0.3 <b>.")
    at = open_page("results", run=lora.id)
    assert "0\\.3 \\<b\\>" in words(at), "Escaped."
    started: list[Any] = []
    monkeypatch.setattr(exports, "start", lambda *arguments: started.append(arguments))
    at.button(key="results.merged.float32").click().run()
    assert started == [(lora, "merged", "float32")]
    write_record(lora, process={}, phase="merging")
    at = open_page("results", run=lora.id)
    assert "was interrupted" in words(at)

    def refuse(*arguments: Any) -> None:
        raise LabError("It needs 3 GB of disk, and 1 GB are free.", "Free some space.")

    monkeypatch.setattr(exports, "start", refuse)
    at.button(key="results.merged").click().run()
    assert "needs 3 GB of disk" in words(at) and not at.exception
    text = words(open_page("results", run=full.id)).replace("\\", "")
    assert "WHOLE MODEL" in text and "there is nothing to merge" in text
    text = words(open_page("results", run="x<script>"))
    assert "has no result" in text and "x\\<script\\>" in text


def test_adapters_are_combined_and_the_outcome_is_shown(
    open_page: Page, trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = trained[1]
    tab = {"results.tab": "Combine adapters"}
    assert "no other adapter of the same base" in words(
        open_page("results", run=lora.id, session=tab)
    )
    other = lora.path.with_name(lora.id[:-4] + "zzzz")
    shutil.copytree(lora.path, other)
    started: list[combine.Combination] = []
    monkeypatch.setattr(combine, "start", started.append)
    at = open_page("results", run=lora.id, session=tab)
    assert at.button(key="results.combine").disabled, "There is nothing to combine with."
    at.multiselect(key="results.combine.with").select(other.name).run()
    at.selectbox(key="results.combine.type").select("ties").run()
    at.number_input(key="results.combine.weight.1.2").set_value(-0.5)
    at.number_input(key="results.combine.density").set_value(0.3)
    at.text_input(key="results.combine.name").set_value("both")
    at.button(key="results.combine").click().run()
    assert started == [
        combine.Combination((lora.id, other.name), (0.5, -0.5), "ties", 0.3, None, "both")
    ]
    config = read_object(other / "artifact" / "adapter_config.json") or {}
    write_json(other / "artifact" / "adapter_config.json", config | {"peft_type": "LOHA"})
    at.run()
    assert "Converted to LoRA first" in words(at), "One of them is none."
    at.number_input(key="results.combine.energy").set_value(0.8)
    at.button(key="results.combine").click().run()
    assert started[-1].energy == 0.8 and started[0].energy is None
    combine.job_file().parent.mkdir()
    result = {
        "run": other.name, "rank": 8, "bytes": 1000, "deviation": 0.25, "note": "Cut <down>.",
        "proof": {"largest_difference": 5e-4, "tolerance": 1e-3},
    }  # fmt: skip
    write_json(combine.job_file(), {"finish": "done", "result": result})
    at = open_page("results", run=lora.id, session=tab)
    text = words(at)
    assert "rank 8" in text and "Cut \\<down\\>" in text
    name = index.entry(RunDir(other)).name
    assert f"**{escape_markdown(name)}** · rank 8" in text, "Named as in the list of results."
    assert [bar.proto.value for bar in at.get("progress")] == [50, 25]
    write_json(combine.job_file(), {"finish": "failed", "error": "No room.", "hint": "Free some."})
    text = words(open_page("results", run=lora.id, session=tab)).replace("\\", "")
    assert "No room." in text and "Free some." in text
    text = words(open_page("results", run=trained[0].id, session=tab)).replace("\\", "")
    assert "cannot be combined: Full fine-tuning leaves no adapter" in text


def test_a_push_says_what_goes_where_before_it_goes(
    open_page: Page, trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = trained[1]
    tab = {"results.tab": "Push to the Hub"}
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert "needs a Hub token" in words(open_page("results", run=lora.id, session=tab))
    credentials.give("hf_test")
    started: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        push, "start", lambda run, name, what, **more: started.append((run, name, what, more))
    )
    try:
        at = open_page("results", run=lora.id, session=tab)
        at.text_input(key="results.push.name").set_value("me/wren*").run()
        text = words(at)
        assert "me/wren\\*" in text and "**private**?" in text and "hf_test" not in text
        at.button(key="results.push").click().run()
        assert started == [(lora, "me/wren*", "result", {"private": True, "update": False})]
        commit = {"url": "https://hub/me/x", "is_private": True, "verified": 7, "files": 7}
        write_record(lora, "push", finish="done", result=commit)
        text = words(open_page("results", run=lora.id, session=tab)).replace("\\", "")
        assert "private: 7 of 7 files" in text
    finally:
        credentials.adopt(None)


def test_commands_are_for_the_export_that_was_finished_last() -> None:
    run = make_run(1)
    run.exports.mkdir()
    assert results_tabs._made(run, "gguf") is None
    for number, name in enumerate(("F16", "Q8_0", "F32")):
        (run.exports / f"{name}.gguf").write_bytes(b"x")
        write_record(run, f"gguf-{name}", finish="done", ended=(10.0, 30.0, 20.0)[number])
    assert results_tabs._made(run, "gguf") == run.exports / "Q8_0.gguf"
    write_record(run, "gguf-Q8_0", finish="failed", ended=40.0)
    assert results_tabs._made(run, "gguf") == run.exports / "F32.gguf"


def test_a_hash_stands_beside_the_file_that_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    run, screen = make_run(1), Screen()
    (run.artifact / "old").mkdir(parents=True)
    receipt = {"weights": {"a.safetensors": "11"}, "tokenizer_files": {"tokenizer.json": "22"}}
    write_json(run.artifact / "receipt.json", receipt)
    for name in ("a.safetensors", "old/a.safetensors", "tokenizer.json"):
        (run.artifact / name).write_bytes(b"x" * 1500)
    (run.artifact / "link").symlink_to("/etc/passwd")
    for module in (results_tabs, results_tabs.cards):
        monkeypatch.setattr(module, "st", screen)
    results_tabs.files(run)
    ((rows,),) = [args for kind, args, _ in screen.calls if kind == "dataframe"]
    assert {row["File"]: row["sha256"] for row in rows} == {
        "a.safetensors": "11", "old/a.safetensors": "–", "receipt.json": "–",
        "tokenizer.json": "22",
    }  # fmt: skip
    assert rows[0]["Size"] == "1.50 kB"


@pytest.mark.parametrize(
    ("proof", "says"),
    [
        ({"equal": True, "loaded_with": "PEFT"}, ":material/verified: Read back with PEFT"),
        ({"equal": False, "loaded_with": "PEFT"}, ":red[:material/warning: Read back, it differs"),
        ({"equal": "yes"}, ":red[:material/warning: Read back, it differs"),
        ({"equal": True, "error": "It fell."}, ":red[:material/warning: Read back, it differs"),
        ({}, ""),
    ],
)
def test_a_result_is_called_verified_only_if_it_was_read_back_as_equal(
    monkeypatch: pytest.MonkeyPatch, proof: dict[str, Any], says: str
) -> None:
    run, screen = make_run(1), Screen()
    run.artifact.mkdir()
    write_json(run.artifact / "receipt.json", {"proof": proof})
    for module in (results_view, results_view.downloads):
        monkeypatch.setattr(module, "st", screen)
    results_view._result(run)
    captions = [text for text in screen.texts("caption") if "Read back" in text]
    assert [text.startswith(says) for text in captions] == ([True] if says else [])


def test_only_results_of_the_same_base_can_be_combined(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(number) for number in (1, 2, 3, 4)]
    for run, model in zip(runs, ("org/a", "org/b", "org/a", "org/a"), strict=True):
        write_json(run.spec, (read_object(run.spec) or {}) | {"model": model})
    for run in runs[:3]:  # the last one has no result
        run.artifact.mkdir()
    screen = Screen(**{"results.combine.with": []})
    screen.session_state["results.combine.type"] = next(iter(combine.TYPES))
    monkeypatch.setattr(results_forms, "st", screen)
    monkeypatch.setattr(results_forms.job_panel, "follow", lambda *rest: False)
    for name, value in (("why_not", ""), ("is_lora", True)):
        monkeypatch.setattr(results_forms.lora_form, name, lambda run, value=value: value)
    results_forms.combine_form(runs[0])
    (options,) = [args[1] for kind, args, _ in screen.calls if kind == "multiselect"]
    assert options == [runs[2].id]


def test_a_card_that_holds_anything_is_read(trained: list[RunDir]) -> None:
    lora = trained[1]
    card = lora.artifact / "README.md"
    card.write_text("```python\nprint('\x1b[31m')\n```")
    assert results_tabs.python_lines(lora) == "print('⟨001b⟩[31m')"
    card.write_bytes(b"\xff\xfe")
    assert results_tabs.python_lines(lora) == ""
    card.unlink()
    assert results_tabs.python_lines(lora) == ""
