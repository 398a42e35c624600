"""What may be asked of the chat process: bounds in one table, refusals as OpenAI words them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lab import json_text, schema
from lab.errors import Problem
from lab.schema import option, quote

LARGEST_BODY = 4_000_000  # bytes
MOST_MESSAGES = 1000
LONGEST_CONTENT = 200_000  # characters of one message
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The fields of a request besides its messages. null in one of them means its default."""

    model: str = option("", "Model", "base:ID, run:ID or run:ID@STEP.", max_characters=4096)
    seed: int = option(0, "Seed", "Seed of sampling.", min=0, max=2**32 - 1)
    max_tokens: int = option(128, "Max new tokens", "Longest answer in tokens.", min=1, max=32_768)
    temperature: float = option(
        0.0, "Temperature", "0 takes the likeliest token each time.", min=0.0, max=10.0
    )
    system_prompt: str = option(
        "",
        "System prompt",
        "System turn before chats that have none.",
        multiline=True,
        max_characters=20_000,
    )
    stream: bool = option(True, "Stream", "Answers always come as server-sent events.")


class Refused(Exception):
    """A request that is not answered: an HTTP status and what is wrong, all at once."""

    def __init__(self, status: int, problems: list[Problem], code: str = "invalid_value") -> None:
        super().__init__("; ".join(f"{one.field}: {one.message}" for one in problems))
        self.status, self.problems, self.code = status, problems, code

    def to_json(self) -> dict[str, Any]:
        """The body of the reply: OpenAI's error object, with every problem beside the first."""
        return {
            "error": {
                "message": str(self),
                "type": "invalid_request_error",
                "param": self.problems[0].field,
                "code": self.code,
                "problems": [one.to_json() for one in self.problems],
            }
        }


def read(body: bytes) -> dict[str, Any]:
    """The request with every field of Bounds and its `messages`. Raises Refused with status 413
    for one that is too large, 400 for what is not a JSON object, 422 for fields that are wrong."""
    if len(body) > LARGEST_BODY:
        raise too_large(len(body))
    try:
        value = json_text.parse(body)
    except json_text.BadJson as error:
        raise Refused(400, [Problem("body", f"is not JSON: {error}.")], "invalid_json") from None
    if not isinstance(value, dict):
        raise Refused(
            400,
            [Problem("body", f"must be a JSON object, is {quote(value)}.")],
            "invalid_json",
        )
    problems: list[Problem] = []
    own = {key: item for key, item in value.items() if key != "messages" and item is not None}
    settings = asdict(schema.parse(Bounds, own, "", problems))
    if not settings["model"] and not any(one.field == "model" for one in problems):
        problems.append(Problem("model", "is missing. Write base:ID, run:ID or run:ID@STEP."))
    if settings.pop("stream") is False:
        problems.append(Problem("stream", "is false; answers always come as a stream."))
    messages = _messages(value.get("messages"), problems)
    if problems:
        raise Refused(422, problems)
    return {**settings, "messages": messages}


def too_large(size: int) -> Refused:
    text = f"has {size:,} bytes; at most {LARGEST_BODY:,} are read."
    return Refused(413, [Problem("body", text)], "too_large")


def _messages(value: Any, problems: list[Problem]) -> list[dict[str, str]]:
    """The conversation; what is wrong with it is added to `problems`."""
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_MESSAGES:
        problems.append(
            Problem(
                "messages",
                f"must be a list of 1 to {MOST_MESSAGES:,} messages such as "
                f'{{"role": "user", "content": "Hi"}}, is {quote(value)}.',
            )
        )
        return []
    messages = []
    for place, message in enumerate(value):
        name = f"messages[{place}]"
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
        elif role == "system" and place:
            problems.append(Problem(f"{name}.role", "is system; only the first message may be."))
        wrong, _ = schema.validate(
            content, str, {"multiline": True, "max_characters": LONGEST_CONTENT}
        )
        if wrong:
            problems.append(Problem(f"{name}.content", wrong))
        messages.append({"role": role, "content": content})
    if not problems and (messages[-1]["role"] != "user" or not messages[-1]["content"].strip()):
        problems.append(
            Problem(f"messages[{len(messages) - 1}]", "must be the user's, and have some text.")
        )
    return messages
