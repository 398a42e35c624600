"""Questions to the planner that are cancelled once no session waits for the answer."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import Generic, Self, TypeVar
from weakref import WeakValueDictionary

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from lab.errors import LabError, first_line
from lab.preflight.client import Abandoned, Asking
from lab.ui.markdown_safety import escape_markdown, visible

Answer = TypeVar("Answer")
TICK_S = 0.3
GONE_S = 5.0  # a page that waits looks every second or two
UNSEEN_S = 30.0  # so late is the look of a page that is open, in a busy browser, at most


class BackgroundJob:
    """Questions to the preflight process, asked in a thread for the sessions that look.

    A subclass says in `ask` what is asked, and keeps the answers as attributes. `error` is what it
    raised. `is_complete` says that no further answer comes; it stays False for a job that was
    abandoned, because no session looked at it any more.
    """

    def __init__(self) -> None:
        self.asking = Asking(self._is_wanted)
        self.error: Exception | None = None
        self.failed_at = 0.0  # on the monotonic clock
        self.is_complete = self.was_abandoned = False
        self.thread = threading.Thread(target=self._work, name=type(self).__name__, daemon=True)
        self._seen_by: dict[str, float] = {}

    def start(self) -> Self:
        self.thread.start()
        return self

    def ask(self) -> None:
        """Runs in the thread. Raises Abandoned where the answer is not wanted any more."""
        raise NotImplementedError

    def _work(self) -> None:
        try:
            with self.asking.active():
                self.ask()
        except Abandoned:
            self.was_abandoned = True
        except Exception as error:  # the page shows it: a thread's traceback reaches nobody
            self.failed_at = time.monotonic()
            self.error = error
        self.is_complete = not self.was_abandoned

    @property
    def is_stale(self) -> bool:
        """Whether who looks now needs a new job. One that has failed stays for the session that
        saw it, or every tick of its page would begin another, which fails as well; a session that
        comes to it later, and a click on Try again (`failure`), ask once more. Later: sessions
        whose pages tick beside each other would ask again for each other in turn."""
        if self.was_abandoned or self.asking.is_cancelled:
            return True
        if self.error is None or time.monotonic() - self.failed_at < GONE_S:
            return False
        with _lock:
            return _session() not in self._seen_by

    def _is_wanted(self) -> bool:
        """Whether a page looks at it, or none has yet."""
        with _lock:
            newest = max(self._seen_by.values(), default=None)
        return newest is None or time.monotonic() - newest < UNSEEN_S

    def look(self, position: str) -> None:
        """This session looks at it, at `position`; what it saw there before is given up, unless
        another session looks at that. A page that nobody has seen for a while, and whose job was
        given up for that, is drawn anew with another job."""
        session = _session()
        now = time.monotonic()
        if self.was_abandoned and now - self._seen_by.get(session, now) > GONE_S:
            st.rerun()
        with _lock:
            before = _at.get((session, position))
            _at[session, position] = self
            self._seen_by[session] = now
        if before is not None and before is not self:
            before._leave(session)

    def _leave(self, session: str) -> None:
        with _lock:
            self._seen_by.pop(session, None)
            newest = max(self._seen_by.values(), default=None)
        if newest is None or time.monotonic() - newest > GONE_S:
            self.asking.cancel()


def _session() -> str:
    context = get_script_run_ctx()
    return context.session_id if context else ""


def in_words(error: Exception) -> str:
    """What a job raised, as a sentence; a bug has no sentence of its own."""
    if isinstance(error, LabError):
        return str(error)
    return f"Unexpected error: {type(error).__name__}: {first_line(error)}"


def failure(job: BackgroundJob, key: str, prefix: str = "") -> None:
    """Why `job` has failed, and a button that asks again; nothing where it has not. An error that
    is no message for a person is a bug, and is shown as one."""
    error = job.error
    if error is None:
        return
    st.error(escape_markdown(f"{prefix}{in_words(error)}"), icon=":material/error:")
    if not isinstance(error, LabError):
        with st.expander("Traceback"):
            lines = traceback.format_exception(error)
            st.code(visible("".join(lines)), language=None, wrap_lines=True)
    if st.button("Try again", key=f"{key}.again", icon=":material/refresh:"):
        job.asking.cancel()  # so that the next look begins another
        st.rerun()


_lock = threading.Lock()
_at: WeakValueDictionary[tuple[str, str], BackgroundJob] = WeakValueDictionary()


class _Call(BackgroundJob, Generic[Answer]):
    def __init__(self, function: Callable[[], Answer]) -> None:
        super().__init__()
        self.function = function
        self.answer: Answer

    def ask(self) -> None:
        self.answer = self.function()


def wait(label: str, ask: Callable[[], Answer]) -> Answer:
    """The answer of `ask`, with a spinner beside `label`. A newer run of the page, or a page that
    is closed, gives the question up. Raises what `ask` raises."""
    started = time.monotonic()
    with st.spinner(label):
        job = _Call(ask).start()
        job.thread.join(TICK_S)
        if job.thread.is_alive():
            shown = st.empty()
            try:
                while job.thread.is_alive():
                    # each write lets Streamlit end this run for a newer one
                    shown.caption(f"{time.monotonic() - started:.0f} s")
                    job.thread.join(TICK_S)
                shown.empty()
            except BaseException:
                job.asking.cancel()
                raise
    if job.was_abandoned:
        raise Abandoned
    if job.error is not None:
        raise job.error
    return job.answer
