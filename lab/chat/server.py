"""The chat process: models in memory, answers streamed over loopback HTTP, OpenAI-style.

    GET  /health                 who is loaded
    POST /v1/chat/completions    {"model", "messages", "seed", "temperature", "max_tokens",
                                 "system_prompt"}: server-sent events, one JSON object each
    POST /shutdown               end; the memory returns with the process

Every request carries the token of `LAB_HOME/chat/process.json`. One answer is generated at a time,
in a thread of its own that holds the turn: whatever becomes of the request, the thread ends the
answer and passes the turn on.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import io
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lab.chat import generate, requests
from lab.chat.generate import GenerationSettings, LoadedModel, ModelRef, PromptTerms
from lab.chat.requests import Refused
from lab.errors import Cancelled, LabError, Problem
from lab.hub import credentials
from lab.hub.progress import DownloadProgress
from lab.models import catalog, hub
from lab.models.context_length import PromptTooLong

MOST_MODELS = 5
IDLE_S = 20 * 60.0
QUIET_S = 1.0  # without news, after which a comment shows the client that its answer is coming


def settings_of(body: dict[str, Any]) -> GenerationSettings:
    return GenerationSettings(
        seed=body["seed"],
        max_new_tokens=body["max_tokens"],
        temperature=body["temperature"],
        system_prompt=body["system_prompt"],
    )


class ModelCache:
    """The models in memory, the least recently asked one is put away first."""

    def __init__(self) -> None:
        self.models: OrderedDict[str, LoadedModel] = OrderedDict()
        self.turn = threading.Lock()
        self.last_used = time.monotonic()
        # how the models that were asked last read a conversation; with tokenizers of its own, since
        # those of the models in memory may be at work in another thread
        self.terms: OrderedDict[str, tuple[dict[str, Any], PromptTerms]] = OrderedDict()
        self.measuring = threading.Lock()

    def check_length(self, body: dict[str, Any]) -> None:
        """Raises LabError for a model that cannot be read, PromptTooLong for a conversation that
        leaves no room for an answer."""
        named = generate.parse(body["model"])
        with self.measuring:
            try:
                version, terms = self.terms.pop(named.name, ({}, None))
                if terms is None or version != named.version:
                    version, terms = named.version, generate.prompt_terms(named)
                self.terms[named.name] = (version, terms)
                while len(self.terms) > MOST_MODELS:
                    self.terms.popitem(last=False)
                generate.check_length(terms, named, body["messages"], settings_of(body))
            finally:
                self.last_used = time.monotonic()

    def holds(self, named: ModelRef) -> bool:
        """Whether the model is in memory as it is on disk: a resumed run has new weights."""
        loaded = self.models.get(named.name)
        return loaded is not None and loaded.version == named.version

    def get(self, named: ModelRef) -> LoadedModel:
        """The model, loaded if need be. Results share the tensors of a loaded base."""
        is_current = self.holds(named)
        found = self.models.pop(named.name, None)
        if found is None or not is_current:
            base_ref = ModelRef(f"base:{named.base}", named.base)
            base = self.models.get(base_ref.name) if self.holds(base_ref) else None
            found = generate.load(named, None if base is None else base.model)
        self.models[named.name] = found
        while len(self.models) > MOST_MODELS:
            self.models.popitem(last=False)
        return found


def application(token: str) -> Starlette:
    """The web application; `token` is what every request has to show."""
    shelf = ModelCache()

    def is_allowed(request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), token.encode())

    async def health(request: Request) -> Response:
        if not is_allowed(request):
            return JSONResponse({"error": "wrong token"}, status_code=401)
        return JSONResponse({"ok": True, "loaded": list(shelf.models)})

    async def complete(request: Request) -> Response:
        if not is_allowed(request):
            return JSONResponse({"error": "wrong token"}, status_code=401)
        shelf.last_used = time.monotonic()
        if access := request.headers.get(credentials.HEADER):
            with contextlib.suppress(ValueError):
                credentials.read_line(io.BytesIO(base64.b64decode(access)))
        try:
            body = await _asked(request, shelf)
        except Refused as refused:
            return JSONResponse(refused.to_json(), status_code=refused.status)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is left to read it
        return AnswerResponse(shelf, body)

    async def shutdown(request: Request) -> Response:
        if not is_allowed(request):
            return JSONResponse({"error": "wrong token"}, status_code=401)
        threading.Timer(0.2, os._exit, [0]).start()
        return JSONResponse({"ok": True})

    _end_when_idle(shelf)
    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/shutdown", shutdown, methods=["POST"]),
        ]
    )


async def _asked(request: Request, shelf: ModelCache) -> dict[str, Any]:
    """The checked body of a request. Raises Refused, also where it names no model of this lab or
    is too long for it, and ClientDisconnect."""
    data = bytearray()
    async for block in request.stream():
        data += block
        if len(data) > requests.LARGEST_BODY:
            raise requests.too_large(len(data))
    asked = requests.read(bytes(data))
    try:  # looks at the disk, and for a model of the hub at the network
        await run_in_threadpool(generate.parse, asked["model"])
    except LabError as error:
        raise Refused(404, [Problem("model", str(error))], "model_not_found") from None
    try:
        await run_in_threadpool(shelf.check_length, asked)
    except PromptTooLong as error:
        raise Refused(400, [Problem("messages", str(error))], "context_length_exceeded") from None
    except Exception:
        # a damaged model or template: the answer's thread comes to it too, and tells it
        return asked
    return asked


def _end_when_idle(shelf: ModelCache) -> None:
    def watch() -> None:
        # the locks first: whoever gives one back has set the time before
        while (
            shelf.turn.locked()
            or shelf.measuring.locked()
            or time.monotonic() - shelf.last_used < IDLE_S
        ):
            time.sleep(min(5.0, IDLE_S / 4))
        os._exit(0)

    threading.Thread(target=watch, name="idle", daemon=True).start()


class AnswerResponse(StreamingResponse):
    """One answer as server-sent events. A request that ends early, at any moment and in any way,
    ends the answer too."""

    def __init__(self, shelf: ModelCache, body: dict[str, Any]) -> None:
        self.gone = threading.Event()
        super().__init__(self._stream(shelf, body), media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.gone.set()

    async def _stream(self, shelf: ModelCache, body: dict[str, Any]) -> AsyncIterator[str]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def tell(event: str | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        threading.Thread(
            target=_generate, args=(shelf, body, tell, self.gone), name="answer", daemon=True
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
    shelf: ModelCache,
    body: dict[str, Any],
    tell: Callable[[str | None], None],
    gone: threading.Event,
) -> None:
    """Make one answer and tell its events, None at the end; end it early if the client is gone."""
    with contextlib.suppress(RuntimeError):  # the server's loop is closed: nobody listens
        with contextlib.closing(_events(shelf, body, gone)) as events:
            for event in events:
                if gone.is_set():
                    return
                tell(event)
        tell(None)


def _events(shelf: ModelCache, body: dict[str, Any], gone: threading.Event) -> Generator[str]:
    """The answer as server-sent events; errors that a person reads become an event too."""
    try:
        with contextlib.closing(_answer(shelf, body, gone)) as events:
            for event in events:
                yield f"data: {json.dumps(event)}\n\n"
    except LabError as error:
        yield f"data: {json.dumps({'error': error.message, 'hint': error.hint})}\n\n"
    except Exception as error:
        # the person at the other end has to hear of it; the log has the traceback
        import traceback

        traceback.print_exc()
        yield f"data: {json.dumps({'error': f'{type(error).__name__}: {error}', 'hint': ''})}\n\n"


def _fetch(named: ModelRef, gone: threading.Event) -> Generator[str]:
    """Download the base of a model of the hub, saying how far it is. It ends with its reader."""
    source = catalog.resolve(named.base)
    if not source.is_on_hub:
        return
    words, errors = [""], list[BaseException]()

    def tell(progress: DownloadProgress) -> None:
        words[0] = f"downloading {progress.in_words()}" if progress.done < progress.total else ""
        if gone.is_set():
            raise Cancelled

    def work() -> None:
        try:
            hub.local_folder(source, with_weights=True, tell=tell)
        except BaseException as error:  # raised again by the thread of the answer
            errors.append(error)

    thread = threading.Thread(target=work, name="fetch", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(QUIET_S)
        if words[0]:
            yield words[0]
    for error in errors:
        if not isinstance(error, Cancelled):
            raise error


def _answer(
    shelf: ModelCache, body: dict[str, Any], gone: threading.Event
) -> Generator[dict[str, Any]]:
    named = generate.parse(body["model"])
    settings = settings_of(body)
    for phase in _fetch(named, gone):  # before it has the turn: others need not wait for the Hub
        shelf.last_used = time.monotonic()
        yield {"phase": phase}
    while not shelf.turn.acquire(timeout=0.5):
        yield {"phase": "waiting"}
    try:
        shelf.last_used = time.monotonic()
        if not shelf.holds(named):
            yield {"phase": "loading"}
        loaded = shelf.get(named)
        yield {"phase": "answering"}
        stream = generate.stream(loaded, named, body["messages"], settings, gone)
        with contextlib.closing(stream) as events:
            for event in events:
                if "delta" in event:
                    event = {"choices": [{"index": 0, "delta": {"content": event["delta"]}}]}
                yield event
    finally:
        shelf.last_used = time.monotonic()
        shelf.turn.release()
