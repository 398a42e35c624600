"""Questions to the planner that end when nobody waits for their answer any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from lab.preflight.client import Asking

Answer = TypeVar("Answer")
TICK_S = 0.3
GONE_S = 5.0  # a page that waits looks once a second


class Watched:
    """What is asked in the background, under `asking`, for the sessions that look at it."""

    def __init__(self) -> None:
        self.asking = Asking()
        self._seen_by: dict[str, float] = {}

    def look(self, place: str) -> None:
        """This session looks at it, at `place`; what it saw there before is given up, unless
        another session looks at that."""
        context = get_script_run_ctx()
        session = context.session_id if context else ""
        with _lock:
            before = _at.get((session, place))
            _at[session, place] = self
            self._seen_by[session] = time.monotonic()
        if before is not None and before is not self:
            before._leave(session)

    def _leave(self, session: str) -> None:
        with _lock:
            self._seen_by.pop(session, None)
            newest = max(self._seen_by.values(), default=None)
        if newest is None or time.monotonic() - newest > GONE_S:
            self.asking.cancel()


_lock = threading.Lock()
_at: WeakValueDictionary[tuple[str, str], Watched] = WeakValueDictionary()


def wait(words: str, ask: Callable[[], Answer]) -> Answer:
    """The answer of `ask`, with a spinner beside `words`. A newer run of the page, or a page that
    is closed, gives the question up. Raises what `ask` raises."""
    asking = Asking()
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with asking.active():
                answers.append(ask())
        except BaseException as error:  # raised again by the page's own thread
            errors.append(error)

    thread = threading.Thread(target=work, name="ask", daemon=True)
    started = time.monotonic()
    with st.spinner(words):
        thread.start()
        thread.join(TICK_S)
        if thread.is_alive():
            shown = st.empty()
            try:
                while thread.is_alive():
                    # each write lets Streamlit end this run for a newer one
                    shown.caption(f"{time.monotonic() - started:.0f} s")
                    thread.join(TICK_S)
                shown.empty()
            except BaseException:
                asking.cancel()
                raise
    if errors:
        raise errors[0]
    return answers[0]
