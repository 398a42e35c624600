"""Lines of plain scripts that several methods write: which modules of `model` names mean."""

from __future__ import annotations

from collections.abc import Iterable

from lab.methods.parts import patterns
from lab.schema import PATTERN_SIGN


def linear_lines(variable: str) -> list[str]:
    """Lines that set `layers`, every module by name, and `variable` to the names of the linear
    ones."""
    return [
        "from transformers.pytorch_utils import Conv1D  # noqa: E402",
        "",
        "layers = dict(model.named_modules())",
        f"{variable} = [n for n, m in layers.items() if isinstance(m, (torch.nn.Linear, Conv1D))]",
    ]


def names_lines(entries: Iterable[str], variable: str) -> str:
    """An expression: those of the names in `variable` that `entries` mean."""
    return f"[name for name in {variable} if re.fullmatch({regex_of(entries)!r}, name)]"


def regex_of(entries: Iterable[str]) -> str:
    """One pattern over full names for what `entries` mean, each a name or a pattern."""
    parts = [
        f"({entry.removeprefix(PATTERN_SIGN)})"
        if patterns.is_pattern(entry)
        else rf"(.*\.)?{entry.replace('.', chr(92) + '.')}"
        for entry in entries
    ]
    return "|".join(parts) or "(?!)"  # the second matches nothing
