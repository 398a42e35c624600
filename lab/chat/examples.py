"""From chat to data: answers that a person keeps, as rows of a dataset of the uploads."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping

from lab import paths
from lab.atomic_files import write_atomic
from lab.chat.conversations import Chat
from lab.data import catalog
from lab.errors import LabError
from lab.schema import quote

DEFAULT_NAME = "chat-examples.jsonl"


def add_chat(dataset: str, chat: Chat, turn: int, model: str, answer: str) -> int:
    """Append the conversation up to `turn`, with `answer` in place of the model's, to the upload
    `dataset` and return its number of rows. Raises LabError."""
    if not answer.strip():
        raise LabError("The answer is empty.", "Write what the model should have said.")
    messages = chat.messages(model, turn)
    system = str(chat.turns[turn].settings.get("system_prompt") or "")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return append(dataset, {"messages": [*messages, {"role": "assistant", "content": answer}]})


def append(dataset: str, *rows: Mapping[str, object]) -> int:
    """Append rows to a .jsonl upload, made if there is none; its number of rows. The file is
    written anew and exchanged as a whole. Raises LabError."""
    name = dataset if dataset.endswith(".jsonl") else f"{dataset}.jsonl"
    if catalog.safe_name(name) != name:
        raise LabError(
            f"'{quote(dataset)}' cannot be the name of a dataset.",
            f"Call it {catalog.safe_name(name)}, for example.",
        )
    folder = paths.make_folder(catalog.uploads_folder())
    path = folder / name
    if path.is_symlink():
        raise LabError(f"'{name}' is a link, which is not written to.", "Choose another name.")
    with (folder / ".rows.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two pages at once lose no row
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except UnicodeDecodeError:
            raise LabError(f"'{name}' is not UTF-8.", "Choose another name.") from None
        lines += [json.dumps(row, ensure_ascii=False) for row in rows]
        write_atomic(path, "\n".join(lines) + "\n")
    return len(lines)


def receipt_file(chat: Chat, turn: int, model: str) -> str:
    """JSON from which `python -m lab chat --receipt` repeats an answer."""
    record = {
        "v": 1,
        "messages": chat.messages(model, turn),
        "settings": chat.turns[turn].settings,
        "token_ids": chat.turns[turn].answers[model].token_ids,
        "receipt": chat.turns[turn].answers[model].receipt,
    }
    return json.dumps(record, indent=1, ensure_ascii=False)
