"""Whether branches have moved on, asked beside other work that does not wait for the answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lab.errors import LabError


class BranchWatch:
    """Asks the questions on a thread of its own; each gives a sentence, "" for nothing to say."""

    def __init__(self, *questions: Callable[[], str]) -> None:
        self._notes: list[str] = []
        self._thread = threading.Thread(
            target=self._ask, args=(questions,), name="branches", daemon=True
        )
        self._thread.start()

    def _ask(self, questions: tuple[Callable[[], str], ...]) -> None:
        for question in questions:
            try:
                self._notes.append(question())
            except LabError:
                continue  # it is only to know: what was pinned is used in any case

    def notes(self, within_s: float) -> list[str]:
        """The sentences that there are by now; a slow Hub is waited for so long, and no longer."""
        self._thread.join(within_s)
        return [note for note in self._notes if note]
