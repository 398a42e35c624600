"""The texts of held-out rows, found again in the dataset's file by the row that each came from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lab.data import catalog
from lab.data.example_reader import ExampleReader
from lab.data.prepare import reading_of
from lab.paths import RunDir
from lab.spec import RunSpec

SECONDS = 8.0  # of reading
MAX_TEXT_CHARS = 2_000  # characters of a text


@dataclass(frozen=True)
class RowText:
    """What was asked and what the dataset answers; of plain text, the text alone."""

    prompt: str
    answer: str


def row_texts(run: RunDir, sources: set[int]) -> dict[int, RowText]:
    """By row of the file. Raises LabError where the dataset is gone; a file that takes longer to
    read gives what was read of it."""
    data = RunSpec.of_run(run).data
    if data.eval_dataset:
        data = replace(data, dataset=data.eval_dataset)
    dataset = catalog.resolve(data.dataset)
    reader = ExampleReader(dataset.path, replace(reading_of(data, dataset), on_invalid_row="skip"))
    reader.end_after(SECONDS)
    texts: dict[int, RowText] = {}
    for example in reader:
        if example.row not in sources:
            continue
        if not example.messages:
            texts[example.row] = RowText("", example.text[:MAX_TEXT_CHARS])
        else:
            turns = [str(message.get("content") or "") for message in example.messages]
            texts[example.row] = RowText(
                "\n\n".join(turns[:-1])[:MAX_TEXT_CHARS], turns[-1][:MAX_TEXT_CHARS]
            )
        if len(texts) == len(sources):
            break
    return texts
