"""A stand-in for Streamlit: notes what a panel writes, and answers what a person would."""

from __future__ import annotations

from typing import Any


class Screen:
    """`screen.texts("caption")` is what was written so. A widget gives what `answers` holds for its
    key, else the value that it was drawn with; a button is pressed if it is in `pressed`."""

    def __init__(self, *pressed: str, **answers: Any) -> None:
        self.pressed, self.answers = pressed, answers
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.session_state: dict[str, Any] = {}
        self.query_params: dict[str, str] = {}

    @property
    def column_config(self) -> Screen:
        return self

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **named: Any) -> Any:
            self.calls.append((name, args, named))
            key = named.get("key")
            if key in self.answers:
                return self.answers[key]
            if name == "button":
                return key in self.pressed
            if name == "selectbox":
                return self.session_state[key]
            if name in ("text_input", "text_area", "toggle", "number_input"):
                drawn = args[1] if len(args) > 1 else self.session_state.get(key, False)
                return named.get("value", drawn)
            return self

        return call

    def named(self, *kinds: str) -> list[dict[str, Any]]:
        """The keyword arguments of every call of these kinds."""
        return [named for kind, _, named in self.calls if kind in kinds]

    def texts(self, *kinds: str) -> list[str]:
        """What was written by these kinds, or by any, as a person reads it."""
        return [
            str(args[0]).replace("\\", "")
            for kind, args, _ in self.calls
            if args and (not kinds or kind in kinds)
        ]
