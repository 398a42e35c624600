"""OpenAI's chat completions: one question, one model, streamed or as a whole.

A streamed answer is server-sent events: chunks as OpenAI has them, comments that tell the phase
while there is no text, and a last chunk that carries the lab's whole answer as `answer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lab.chat import downloads, generate
from lab.chat import models as chat_models
from lab.chat.answers import ModelAnswer
from lab.chat.engine.loaded_models import LoadedModels
from lab.chat.requests import Refused
from lab.chat.settings import GenerationSettings
from lab.errors import LabError, Problem
from lab.models.context_length import PromptTooLong

QUIET_S = 1.0  # without news, after which a comment shows the client that its answer is coming


@dataclass(frozen=True)
class AnswerPhase:
    """What an answer is at while it has no text."""

    name: str


def check(models: LoadedModels, body: dict[str, Any]) -> None:
    """Raises Refused where the request names no model of this lab or is too long for it. Looks at
    the disk, and for a model of the hub at the network."""
    try:
        named = chat_models.parse(body["model"])
    except LabError as error:
        raise Refused(404, [Problem("model", str(error))], "model_not_found") from None
    try:
        models.check_length(named, body["messages"], GenerationSettings.of_request(body))
    except PromptTooLong as error:
        raise Refused(400, [Problem("messages", str(error))], "context_length_exceeded") from None
    except Exception:
        # a damaged model or template: the answer's thread comes to it too, and tells it
        traceback.print_exc()


async def complete(models: LoadedModels, body: dict[str, Any], request: Request) -> Response:
    """The whole answer as one JSON object; it is stopped when the client goes."""
    gone = threading.Event()

    def run() -> ModelAnswer:
        with contextlib.closing(_events(models, body, gone)) as events:
            for event in events:
                if isinstance(event, ModelAnswer):
                    return event
        raise AssertionError("an answer without an end")

    task = asyncio.ensure_future(run_in_threadpool(run))
    while not task.done():
        await asyncio.wait([task], timeout=QUIET_S)
        if await request.is_disconnected():
            gone.set()
    try:
        answer = task.result()
    except LabError as error:
        return JSONResponse(_error(str(error)), status_code=500)
    except Exception as error:
        traceback.print_exception(error)
        return JSONResponse(_error(f"{type(error).__name__}: {error}"), status_code=500)
    prompt, completion = answer.receipt.prompt_tokens, len(answer.token_ids)
    return JSONResponse(
        _head("chat.completion", body["model"])
        | {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text},
                    "finish_reason": _reason(answer),
                }
            ],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
            "answer": answer.to_json(),
        }
    )


def _head(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _reason(answer: ModelAnswer) -> str:
    return "stop" if answer.finish == "stop" else "length"


def _error(message: str, hint: str = "") -> dict[str, Any]:
    error = {"message": message, "hint": hint, "type": "server_error", "param": None, "code": None}
    return {"error": error}


class StreamedCompletion(StreamingResponse):
    """One answer as server-sent events. A request that ends early, at any moment and in any way,
    ends the answer too."""

    def __init__(self, models: LoadedModels, body: dict[str, Any]) -> None:
        self.gone = threading.Event()
        super().__init__(self._stream(models, body), media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.gone.set()

    async def _stream(self, models: LoadedModels, body: dict[str, Any]) -> AsyncIterator[str]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def send_event(event: str | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        threading.Thread(
            target=_generate, args=(models, body, send_event, self.gone), name="answer", daemon=True
        ).start()
        while True:
            try:
                event = await asyncio.wait_for(events.get(), QUIET_S)
            except TimeoutError:
                event = ": still at it\n\n"  # a client that waits can notice that it is closed
            if event is None:
                return
            yield event


def _generate(
    models: LoadedModels,
    body: dict[str, Any],
    send_event: Callable[[str | None], None],
    gone: threading.Event,
) -> None:
    """Make one answer and send its events, None at the end; end it early if the client is gone."""
    with contextlib.suppress(RuntimeError):  # the server's loop is closed: nobody listens
        with contextlib.closing(_encoded(models, body, gone)) as events:
            for event in events:
                if gone.is_set():
                    return
                send_event(event)
        send_event(None)


def _encoded(models: LoadedModels, body: dict[str, Any], gone: threading.Event) -> Generator[str]:
    """The answer as server-sent events; errors that a person reads become an event too."""
    head = _head("chat.completion.chunk", body["model"])
    try:
        with contextlib.closing(_events(models, body, gone)) as events:
            for event in events:
                if isinstance(event, AnswerPhase):
                    yield f": phase {event.name}\n\n"
                    continue
                choice: dict[str, Any] = {"index": 0}
                extra: dict[str, Any] = {}
                if isinstance(event, ModelAnswer):
                    choice |= {"delta": {}, "finish_reason": _reason(event)}
                    extra = {"answer": event.to_json()}
                else:
                    delta = {"role": "assistant", "content": event}
                    choice |= {"delta": delta, "finish_reason": None}
                yield f"data: {json.dumps(head | {'choices': [choice]} | extra)}\n\n"
        yield "data: [DONE]\n\n"
    except LabError as error:
        yield f"data: {json.dumps(_error(error.message, error.hint))}\n\n"
    except Exception as error:
        # the person at the other end has to hear of it; the log has the traceback
        traceback.print_exc()
        yield f"data: {json.dumps(_error(f'{type(error).__name__}: {error}'))}\n\n"


def _events(
    models: LoadedModels, body: dict[str, Any], gone: threading.Event
) -> Generator[AnswerPhase | str | ModelAnswer]:
    """What the answer waits for, its pieces of text, and at the end the whole of it."""
    named = chat_models.parse(body["model"])
    for phase in downloads.fetch(named, gone.is_set):  # nobody else waits for the Hub meanwhile
        models.last_used = time.monotonic()
        yield AnswerPhase(phase)
    while not models.turn.acquire(timeout=0.5):
        yield AnswerPhase("waiting")
    try:
        models.last_used = time.monotonic()
        if not models.holds(named):
            yield AnswerPhase("loading")
        loaded = models.get(named)
        yield AnswerPhase("answering")
        settings = GenerationSettings.of_request(body)
        stream = generate.stream(loaded, named, body["messages"], settings, gone)
        with contextlib.closing(stream) as events:
            yield from events
    finally:
        models.last_used = time.monotonic()
        models.turn.release()
