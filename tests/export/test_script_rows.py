"""The plain script labels the rows of a file exactly as the lab does, or says why it cannot."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from lab.data import prepare
from lab.errors import LabError
from lab.export.script import script
from lab.models import weights
from lab.models.catalog import ModelSource
from lab.spec import RunSpec
from tests.conftest import write_rows
from tests.data.test_prepare import write


def user(content: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **keys}


def bot(content: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


CALL = [{"function": {"name": "sum", "arguments": {"a": 1}}}]
TALK = [user("One?"), bot("1."), user("Two?"), bot("It is 2.")]
DATED = (
    "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content "
)
DATED += "}}{% if wordy %}!{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
DATED += "<|im_start|>assistant\n{% endif %}"
BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
BARE += "{% if add_generation_prompt %}assistant: {% endif %}"
DATA = {"template_date": "2026-01-31", "template_args": {"wordy": True}}
# what the lab and the script count alike: (rows, settings of data, the tokenizer's template)
SAME: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "chats": ([{"messages": TALK}, {"conversations": TALK}], {}, ""),
    "shared names": ([{"conversations": [{"from": "human", "value": "a"},
                                         {"from": "gpt", "value": "b c"}]}], {}, ""),
    "a system turn in the middle": ([{"messages": [*TALK[:2], {"role": "system", "content": "Odd."},
                                                   *TALK[2:]]}], {"system_prompt": "Be."}, ""),
    "two turns of a role": ([{"messages": [user("a"), user("b"), bot("c"), bot("d e")]}], {}, ""),
    "the last turn asks": ([{"messages": [*TALK, user("Three?")]}], {}, ""),
    "thoughts in the content": ([{"messages": [user("a"), bot("<think>\nSo.\n</think>\n\nb")]}],
                                {}, ""),
    "marks that exclude nothing": ([{"messages": [user("a", weight=None), bot("b", weight=1,
                                     train=True, masked=False)], "weight": 1.0}], {}, ""),
    "empty keys": ([{"messages": [user("a"), bot("b", tool_calls=None)], "tools": []}], {}, ""),
    "metadata": ([{"messages": TALK, "prompt": "One?", "category": "x", "prompt_id": "7"}], {}, ""),
    "alpaca": ([{"instruction": "a", "input": "more", "output": "b"},
                {"instruction": "a", "input": " ", "output": "b"}], {}, ""),
    "pairs": ([{"prompt": "a", "completion": "b c"}, {"question": "a", "answer": "d"},
               {"instruction": "a", "response": "e f"}, {"input": "a", "target": "g"}], {}, ""),
    "labels": ([{"text": "fine", "label": "good"}, {"sentence": "bad", "category": "b",
                                                    "input": "x"}], {}, ""),
    "text": ([{"text": "word " * 40}, {"content": "short"}], {"max_length": 16}, ""),
    "text that spells turns": ([{"text": "\n\nHuman: a\n\nAssistant: b"}], {}, ""),
    "a date and an argument of the template": ([{"messages": TALK}], DATA, DATED),
    "blanks": ([{"messages": [user(" a "), bot("  b\n"), user("c"), bot("\td ")]}], {}, ""),
    "every token": ([{"messages": TALK}], {"loss_on": "all"}, ""),
    "the last answer": ([{"messages": TALK}], {"loss_on": "completion"}, ""),
    "chatml": ([{"messages": TALK}], {"template": "chatml"}, ""),
    "no template of its own": ([{"messages": TALK}], {"template": "alpaca"}, ""),
    "no token ends an answer": ([{"messages": TALK}, {"messages": TALK[:2]}], {}, BARE),
}  # fmt: skip
# what the lab reads and the script refuses: the rows, and what it names
REFUSED: dict[str, tuple[list[Any], str]] = {
    "an answer that is not learned": ([{"messages": [user("a"), bot("b", weight=0)]}], "'weight'"),
    "marked otherwise": ([{"messages": [user("a"), bot("b", masked=True)]}], "'masked'"),
    "a row that is not learned": ([{"messages": TALK, "train": False}], "'train'"),
    "tools": ([{"messages": TALK, "tools": [{"name": "sum"}]}], "'tools'"),
    "a call": ([{"messages": [user("a"), bot("", tool_calls=CALL)]}], "'tool_calls'"),
    "a result": ([{"messages": [user("a"), {"role": "tool", "content": "3"}, bot("b")]}],
                             "role 'tool'"),
    "a thought": ([{"messages": [user("a"), bot("b", reasoning_content="So.")]}], "'reasoning_"),
    "history": ([{"instruction": "a", "output": "b", "history": [["c", "d"]]}], "'history'"),
    "a system prompt of the row": ([{"conversations": TALK, "system": "Be."}], "'system'"),
    "a bad answer": ([{"prompt": "a", "completion": "b", "label": False}], "'label'"),
    "spelled turns": ([{"conversation": "Human: a\n\nAssistant: b"}], "'conversation'"),
    "a preference": ([{"chosen": "Human: a\n\nAssistant: b", "rejected": "x"}], "'chosen'"),
    "choices": ([{"question": "a", "choices": ["b", "c"], "answer": 0}], "'choices'"),
    "parts": ([{"messages": [user([{"type": "text", "text": "a"}]), bot("b")]}], "as words"),
    "a number": ([{"prompt": "1 + 1", "completion": 2}], "'2'"),
    "capitals": ([{"Instruction": "a", "Output": "b", "text": "c"}], "'Instruction'"),
    "chats and text": ([{"messages": TALK}, {"text": "a"}], "chats and plain text"),
    "no answer": ([{"messages": [user("a")]}], "without an answer"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights are those of the tiny model; the template is each test's own."""
    folder = tmp_path_factory.mktemp("rows") / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def script_rows(model_folder: Path) -> Any:
    """`script_rows(spec, file)`: the rows of the script, whose model is loaded once."""
    import transformers

    load, loaded = transformers.AutoModelForCausalLM.from_pretrained, {}

    def rows_of(spec: RunSpec, file: Path, template: str) -> list[dict[str, Any]]:
        text = script(spec, str(model_folder), str(file), spec.data.system_prompt or "")
        text = text.partition("DEVICE = ")[0]
        if template:
            text = text.replace("DTYPE = ", f"tokenizer.chat_template = {template!r}\nDTYPE = ", 1)
        path = file.with_name("script.py")
        path.write_text(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                transformers.AutoModelForCausalLM, "from_pretrained",
                lambda *a, **k: loaded.get(0) or loaded.setdefault(0, load(*a, **k)),
            )  # fmt: skip
            rows: list[dict[str, Any]] = runpy.run_path(str(path))["rows"]
        return rows

    return rows_of


def spec_of(file: Path, data: dict[str, Any]) -> RunSpec:
    shared = {"dataset": str(file), "max_length": 128, "eval_fraction": 0.0, "packing": "off"}
    return RunSpec.from_json({"method": "full", "data": shared | data})


@pytest.mark.parametrize("kind", SAME)
def test_the_script_counts_the_labs_labels(
    kind: str, script_rows: Any, model_folder: Path, tmp_path: Path
) -> None:
    rows, data, template = SAME[kind]
    file = tmp_path / "rows.jsonl"
    write_rows(file, rows)
    spec = spec_of(file, data)
    tokenizer = weights.load_tokenizer(ModelSource("tiny", str(model_folder), local_only=True))
    tokenizer.chat_template = template or tokenizer.chat_template
    prepared = prepare.prepare(spec, tokenizer).train
    lab = [(list(row.ids), list(row.labels)) for row in prepared]
    own = [
        (row["input_ids"], [-100, *row["labels"][1:]]) for row in script_rows(spec, file, template)
    ]
    assert own == lab, "The same tokens, and of them the same are counted."
    assert sum(label != -100 for _, labels in own for label in labels) > 0


@pytest.mark.parametrize("suffix", ["json", "csv", "tsv", "parquet", "txt", "csv.gz", "jsonl.gz"])
def test_the_script_reads_every_format_of_a_file(
    suffix: str, script_rows: Any, model_folder: Path, tmp_path: Path
) -> None:
    """Cells with the marks of a table and with line ends of every kind in them."""
    pairs = [
        {"prompt": f'a, "b"\t{n};', "completion": f"one\n\ntwo {n} é\r\nthree"} for n in range(3)
    ]
    pairs.append({"prompt": "no quotes", "completion": "one\u2028two\x0bthree\x85four"})
    if suffix == "txt":
        file = tmp_path / "rows.txt"
        file.write_bytes(b"A story.\r\n\r\n" + "It goes on \u2028 and on.\r\n".encode() * 9)
    else:
        file = write(tmp_path / f"rows.{suffix}", pairs)
    spec = spec_of(file, {"max_length": 32 if suffix == "txt" else 256})
    tokenizer = weights.load_tokenizer(ModelSource("tiny", str(model_folder), local_only=True))
    lab = [list(row.ids) for row in prepare.prepare(spec, tokenizer).train]
    assert [row["input_ids"] for row in script_rows(spec, file, "")] == lab and len(lab) >= 3


@pytest.mark.parametrize("kind", REFUSED)
def test_the_script_says_what_it_does_not_read(kind: str, script_rows: Any, tmp_path: Path) -> None:
    rows, says = REFUSED[kind]
    file = tmp_path / "rows.jsonl"
    write_rows(file, rows)
    with pytest.raises(SystemExit, match="This script does not read") as refused:
        script_rows(spec_of(file, {}), file, "")
    assert says in str(refused.value)


def test_another_format_than_the_detected_one_is_refused(script_rows: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_rows(file, [{"text": "fine", "label": "good"}])
    with pytest.raises(SystemExit, match="as text"):
        script_rows(spec_of(file, {"format": "text"}), file, "")
    with pytest.raises(LabError, match="no plain script"):
        script_rows(spec_of(file, {"format": "preference"}), file, "")
