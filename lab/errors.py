"""Errors that a person reads: what happened, with the value, and what to do."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, dataclass

from lab.formatting import quantity

MAX_PROBLEMS = 20  # that a message lists; the error keeps all


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
    """Everything that is wrong with a spec, or with another `subject`, all at once."""

    def __init__(
        self,
        problems: list[Problem],
        begin: str = "The run was not started",
        subject: str = "the spec",
    ) -> None:
        self.problems = problems
        count = quantity(len(problems), "problem")
        lines = [f"  {problem.field}: {problem.message}" for problem in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"  and {len(problems) - MAX_PROBLEMS} more.")
        listed = "\n".join(lines)
        super().__init__(f"{begin}, {subject} has {count}:\n{listed}")


# What a disk or its owner refuses: the lab works as it should, and the user can fix it. Other
# OSErrors are bugs, and keep their traceback.
REFUSALS = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EROFS: "The disk is read-only",
    errno.EACCES: "The permission is missing",
    errno.EPERM: "The permission is missing",
    errno.EIO: "The disk reports an error",
    errno.ENAMETOOLONG: "A name is too long",
    errno.ENOTDIR: "A file stands where a folder is needed",
    errno.EEXIST: "A file stands where a folder is needed",
    errno.ELOOP: "Links lead in a circle",
    errno.EFBIG: "The file is too large for the disk",
    errno.EMFILE: "Too many files are open",
    errno.ENFILE: "Too many files are open on this machine",
    errno.ENOMEM: "The memory is full",
}


def refusal_of(error: LabError | OSError) -> LabError:
    """What a person reads of an error of the lab, or of the disk; raises any other again."""
    refusal = error if isinstance(error, LabError) else of_the_disk(error)
    if refusal is None:
        raise error
    return refusal


def of_the_disk(error: OSError) -> LabError | None:
    """What a person reads of an error of the disk or its permissions; None for any other."""
    says = REFUSALS.get(error.errno or 0)
    if says is None:
        return None
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    where = f": '{os.fsdecode(names[-1])}'" if names else ""
    return LabError(
        f"{says}{where}.",
        "Mend that and try again, or set LAB_HOME to a folder that can be written.",
    )


class Cancelled(BaseException):
    """A person asked the worker to end while it had nothing to save. Not an Exception: libraries
    catch those where they try things, and would go on."""

    def __init__(self, command: str = "cancel") -> None:
        super().__init__(command)
        self.command = command
        self.kept_download = ""  # what stays of a download that it ended


def first_line(error: BaseException) -> str:
    """What a library says, as the middle of a sentence."""
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0].rstrip(".")
