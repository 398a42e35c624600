"""The chat process: models in memory, answers over loopback HTTP.

    GET  /health                            what is loaded, bytes, and when it ends by itself
    GET  /v1/models                         OpenAI's list of models
    POST /v1/chat/completions               OpenAI's request; see `lab.chat.requests`
    GET  /conversations/ID                  a conversation, with answers on their way
    POST /conversations/ID/ask              {"question", "models", "settings"}: begin a turn
    POST /conversations/ID/again            {"models"}: answer the last turn anew
    POST /conversations/ID/stop             {"models"}: stop its answers
    POST /conversations/ID/score            {"turn", "model"}: its answer under every model
    POST /unload, /shutdown                 free the memory; end

Every request carries the token of `LAB_HOME/chat/process.json`, or the key of `lab serve`. One
question is answered at a time, by all its models together. A request that ends early ends its
completion; answers of a conversation go on until somebody stops them.
"""

from __future__ import annotations

import hmac
import os
import socket
import threading
import time
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lab.chat import completions, requests
from lab.chat import models as chat_models
from lab.chat.engine.board import Board
from lab.chat.engine.loaded_models import LoadedModels
from lab.chat.requests import Refused
from lab.errors import LabError, Problem
from lab.hub import credentials

IDLE_S = 20 * 60.0


class TokenGate:
    """Refuses every request that does not show the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        header = Request(scope).headers.get("authorization", "")
        shown = header.removeprefix("Bearer ")
        if hmac.compare_digest(shown.encode(), self.token.encode()):
            credentials.adopt_header(Request(scope).headers.get(credentials.HEADER, ""))
            await self.app(scope, receive, send)
            return
        error = {"message": "wrong token", "type": "authentication_error", "code": "wrong_token"}
        await JSONResponse({"error": error}, status_code=401)(scope, receive, send)


def application(
    token: str, *, models: LoadedModels | None = None, ends_when_idle: bool = True
) -> Starlette:
    """The web application; `token` is what every request has to show."""
    models = models or LoadedModels()
    board = Board(models)

    async def health(request: Request) -> Response:
        sizes = models.bytes_of() if not models.turn.locked() else {}
        left = IDLE_S - (time.monotonic() - models.last_used) if ends_when_idle else None
        return JSONResponse(
            {
                "ok": True,
                "loaded": list(models.models),
                "bytes": sizes,
                "is_busy": board.is_busy() or models.turn.locked(),
                "ends_in_s": left,
            }
        )

    async def list_models(request: Request) -> Response:
        names = await run_in_threadpool(chat_models.available)
        rows = [{"id": name, "object": "model", "owned_by": "lab"} for name in names]
        return JSONResponse({"object": "list", "data": rows})

    async def complete(request: Request) -> Response:
        models.last_used = time.monotonic()
        try:
            body = requests.read(await read_body(request))
            await run_in_threadpool(completions.check, models, body)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is left to read it
        if body.pop("stream"):
            return completions.StreamedCompletion(models, body)
        return await completions.complete(models, body, request)

    async def look(request: Request) -> Response:
        conversation = await run_in_threadpool(board.view, request.path_params["id"])
        return JSONResponse(conversation.to_json())

    async def ask(request: Request) -> Response:
        body = requests.read_question(await read_body(request))
        turn = await run_in_threadpool(
            board.ask, request.path_params["id"], body["question"], body["settings"], body["models"]
        )
        return JSONResponse({"turn": turn})

    async def again(request: Request) -> Response:
        names = requests.read_models(await read_body(request))
        turn = await run_in_threadpool(board.answer_again, request.path_params["id"], names)
        return JSONResponse({"turn": turn})

    async def stop(request: Request) -> Response:
        names = requests.read_models(await read_body(request))
        return JSONResponse({"stopped": board.stop(request.path_params["id"], names)})

    async def score(request: Request) -> Response:
        turn, model = requests.read_answer(await read_body(request))
        scores = await run_in_threadpool(board.score, request.path_params["id"], turn, model)
        return JSONResponse({"scores": scores})

    async def unload(request: Request) -> Response:
        if not models.turn.acquire(blocking=False):
            raise LabError("An answer is being made.", "Stop it first.")
        try:
            models.unload()
        finally:
            models.turn.release()
        return JSONResponse({"ok": True})

    async def shutdown(request: Request) -> Response:
        threading.Timer(0.2, os._exit, [0]).start()
        return JSONResponse({"ok": True})

    if ends_when_idle:
        _end_when_idle(models, board)
    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", list_models),
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/conversations/{id}", look),
            Route("/conversations/{id}/ask", ask, methods=["POST"]),
            Route("/conversations/{id}/again", again, methods=["POST"]),
            Route("/conversations/{id}/stop", stop, methods=["POST"]),
            Route("/conversations/{id}/score", score, methods=["POST"]),
            Route("/unload", unload, methods=["POST"]),
            Route("/shutdown", shutdown, methods=["POST"]),
        ],
        middleware=[Middleware(TokenGate, token=token)],
        exception_handlers={Refused: _refused, LabError: _not_possible},
    )


def loopback(port: int = 0) -> socket.socket:
    """A socket that listens on this machine alone; 0 takes a free port. Raises OSError."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


async def read_body(request: Request) -> bytes:
    """Raises Refused for one that is too large, ClientDisconnect."""
    data = bytearray()
    async for block in request.stream():
        data += block
        if len(data) > requests.MAX_BODY_BYTES:
            raise requests.too_large(len(data))
    return bytes(data)


async def _refused(request: Request, error: Any) -> Response:
    return JSONResponse(error.to_json(), status_code=error.status)


async def _not_possible(request: Request, error: Any) -> Response:
    refused = Refused(409, [Problem("conversation", str(error))], "not_possible")
    return JSONResponse(refused.to_json(), status_code=refused.status)


def _end_when_idle(models: LoadedModels, board: Board) -> None:
    def watch() -> None:
        # the locks first: whoever gives one back has set the time before
        while (
            models.turn.locked()
            or models.measuring.locked()
            or board.is_busy()
            or time.monotonic() - models.last_used < IDLE_S
        ):
            time.sleep(min(5.0, IDLE_S / 4))
        os._exit(0)

    threading.Thread(target=watch, name="idle", daemon=True).start()
