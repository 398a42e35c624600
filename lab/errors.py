"""Errors that a person reads: what happened, with the value, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass


class LabError(Exception):
    """Raised deep, shown once by the command line or the page. `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec. `field` is its dotted place, such as `train.learning_rate`."""

    field: str
    message: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


class SpecError(LabError):
    """Everything that is wrong with a spec, all at once."""

    def __init__(self, problems: list[Problem], begin: str = "The run was not started") -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem.field}: {problem.message}" for problem in problems)
        super().__init__(f"{begin}, the spec has {count}:\n{lines}")


class Cancelled(BaseException):
    """A person asked the worker to end while it had nothing to save. Not an Exception: libraries
    catch those where they try things, and would go on."""

    def __init__(self, command: str = "cancel") -> None:
        super().__init__(command)
        self.command = command
