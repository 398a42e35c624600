"""What may be asked of the chat process: bounds in one table, refusals as OpenAI words them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lab import json_text, schema
from lab.chat.conversations import MAX_MODELS, MAX_TURNS
from lab.chat.models import FORMS
from lab.errors import Problem
from lab.schema import option, quote

MAX_BODY_BYTES = 4_000_000  # bytes
MAX_MESSAGES = 1000
MAX_CONTENT_CHARS = 200_000  # characters of one message
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The fields of a request besides its messages. null in one of them means its default."""

    model: str = option("", "Model", f"{FORMS}.", max_characters=4096)
    seed: int = option(0, "Seed", "Seed of sampling.", min=0, max=2**32 - 1)
    max_tokens: int = option(128, "Max new tokens", "Longest answer in tokens.", min=1, max=32_768)
    temperature: float = option(
        0.0, "Temperature", "0: greedy decoding (always the most likely token).", min=0.0, max=10.0
    )
    top_p: float = option(
        1.0,
        "Top-p",
        "Samples from the most likely tokens whose probabilities add up to this. 1 takes all.",
        above=0.0,
        max=1.0,
    )
    top_k: int = option(
        0, "Top-k", "Samples from this many of the most likely tokens. 0 samples from all.",
        min=0, max=1_000_000,
    )  # fmt: skip
    repetition_penalty: float = option(
        1.0,
        "Repetition penalty",
        "Divides the scores of tokens that are in the text already. 1 changes nothing.",
        min=0.5,
        max=5.0,
    )
    stop: list[str] | None = option(
        None,
        "Stop strings",
        "An answer ends before the first of them.",
        max_items=8,
        max_characters=200,
        multiline=True,
        filled=True,
    )
    system_prompt: str = option(
        "",
        "System prompt",
        "System turn before chats that have none.",
        multiline=True,
        max_characters=20_000,
    )
    stream: bool = option(
        False,
        "Stream",
        "Server-sent events as the answer is made, else one JSON object at its end.",
    )


class Refused(Exception):
    """A request that is not answered: an HTTP status and what is wrong, all at once."""

    def __init__(self, status: int, problems: list[Problem], code: str = "invalid_value") -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.status, self.problems, self.code = status, problems, code

    def to_json(self) -> dict[str, Any]:
        """The body of the reply: OpenAI's error object, with every problem beside the first."""
        return {
            "error": {
                "message": str(self),
                "type": "invalid_request_error",
                "param": self.problems[0].field,
                "code": self.code,
                "problems": [problem.to_json() for problem in self.problems],
            }
        }


def read(body: bytes) -> dict[str, Any]:
    """The request with every field of Bounds and its `messages`. Raises Refused with status 413
    for one that is too large, 400 for what is not a JSON object, 422 for fields that are wrong."""
    return read_request(_object(body))


def read_request(value: dict[str, Any]) -> dict[str, Any]:
    """As `read`, of a parsed body."""
    problems: list[Problem] = []
    settings = _settings({key: item for key, item in value.items() if key != "messages"}, problems)
    if not settings["model"] and not any(problem.field == "model" for problem in problems):
        problems.append(Problem("model", f"is missing. Write {FORMS}."))
    messages = _messages(value.get("messages"), problems)
    if problems:
        raise Refused(422, problems)
    return {**settings, "messages": messages}


def read_question(body: bytes) -> dict[str, Any]:
    """{"question", "models", "settings"} of a turn. Raises Refused."""
    value = _object(body)
    problems: list[Problem] = []
    question = value.get("question")
    wrong, _ = schema.validate(
        question, str, {"multiline": True, "max_characters": MAX_CONTENT_CHARS, "filled": True}
    )
    if wrong:
        problems.append(Problem("question", wrong))
    names = _names(value.get("models"), problems)
    fields = value.get("settings") or {}
    if not isinstance(fields, dict):
        problems.append(Problem("settings", f"must be an object, got {quote(fields)}."))
        fields = {}
    settings = _settings(fields, problems)
    if problems:
        raise Refused(422, problems)
    settings = {key: item for key, item in settings.items() if key not in ("model", "stream")}
    return {"question": question, "models": names, "settings": settings}


def read_models(body: bytes) -> list[str] | None:
    """The `models` of a request, None for all. Raises Refused."""
    value = _object(body) if body else {}
    if value.get("models") is None:
        return None
    problems: list[Problem] = []
    names = _names(value["models"], problems)
    if problems:
        raise Refused(422, problems)
    return names


def read_answer(body: bytes) -> tuple[int, str]:
    """(`turn`, `model`) of a request about one answer. Raises Refused."""
    value = _object(body)
    turn, model = value.get("turn"), value.get("model")
    problems = []
    if type(turn) is not int or not 0 <= turn < MAX_TURNS:
        problems.append(Problem("turn", f"must be 0 to {MAX_TURNS - 1}, is {quote(turn)}."))
    if not isinstance(model, str):
        problems.append(Problem("model", f"must be a name such as run:ID, is {quote(model)}."))
    if problems:
        raise Refused(422, problems)
    return int(str(turn)), str(model)


def _names(value: Any, problems: list[Problem]) -> list[str]:
    """Up to four different names of models."""
    is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if not is_list or not 1 <= len(value) <= MAX_MODELS or len(set(value)) != len(value):
        problems.append(
            Problem(
                "models",
                f"must be a list of 1 to {MAX_MODELS} different names such as run:ID, is "
                f"{quote(value)}.",
            )
        )
        return []
    return list(value)


def _object(body: bytes) -> dict[str, Any]:
    """Raises Refused with status 413 for a body that is too large, 400 for one that is not a JSON
    object."""
    if len(body) > MAX_BODY_BYTES:
        raise too_large(len(body))
    try:
        value = json_text.parse(body)
    except json_text.BadJson as error:
        raise Refused(400, [Problem("body", f"is not JSON: {error}.")], "invalid_json") from None
    if not isinstance(value, dict):
        raise Refused(
            400, [Problem("body", f"must be a JSON object, got {quote(value)}.")], "invalid_json"
        )
    return value


def _settings(value: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Every field of Bounds; one text as `stop` is a list of one, and null or [] is none."""
    fields = {key: item for key, item in value.items() if item is not None and item != []}
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    if "max_completion_tokens" in fields:  # the newer name of OpenAI's clients
        fields.setdefault("max_tokens", fields.pop("max_completion_tokens"))
    return asdict(schema.parse(Bounds, fields, "", problems))


def too_large(size: int) -> Refused:
    text = f"has {size:,} bytes; at most {MAX_BODY_BYTES:,} are read."
    return Refused(413, [Problem("body", text)], "too_large")


def _messages(value: Any, problems: list[Problem]) -> list[dict[str, str]]:
    """The conversation; what is wrong with it is added to `problems`."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        problems.append(
            Problem(
                "messages",
                f"must be a list of 1 to {MAX_MESSAGES:,} messages such as "
                f'{{"role": "user", "content": "Hi"}}, is {quote(value)}.',
            )
        )
        return []
    messages = []
    for index, message in enumerate(value):
        name = f"messages[{index}]"
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            problems.append(
                Problem(name, f"must have a role and a content and no more, is {quote(message)}.")
            )
            continue
        role, content = message["role"], message["content"]
        if role not in ROLES:
            problems.append(
                Problem(f"{name}.role", f"is {quote(role)}. Choose one of: {', '.join(ROLES)}.")
            )
        elif role == "system" and index:
            problems.append(Problem(f"{name}.role", "is system; only the first message may be."))
        wrong, _ = schema.validate(
            content, str, {"multiline": True, "max_characters": MAX_CONTENT_CHARS}
        )
        if wrong:
            problems.append(Problem(f"{name}.content", wrong))
        messages.append({"role": role, "content": content})
    if not problems and (messages[-1]["role"] != "user" or not messages[-1]["content"].strip()):
        problems.append(
            Problem(f"messages[{len(messages) - 1}]", "must be the user's, and have some text.")
        )
    return messages
