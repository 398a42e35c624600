"""Writes docs/spec.md from the dataclasses: `python docs/make_spec.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab import methods, schema  # noqa: E402
from lab.methods.parts import compatibility  # noqa: E402
from lab.optimizers import OPTIMIZERS  # noqa: E402
from lab.spec import SECTIONS, RunSpec  # noqa: E402

INTRODUCTION = """# The run spec

A run is defined by one JSON object. Every key may be left out; unknown keys are refused, and all
problems are reported at once. This page is written from the code by `python docs/make_spec.py`.
"""


def rows(config: type, skip: tuple[str, ...] = ()) -> list[str]:
    lines = ["| key | title | type | default | what it does |", "|---|---|---|---|---|"]
    for option in schema.describe(config):
        if option.name in skip:
            continue
        limits = [
            f"{key} {schema.number_text(option.metadata[key])}"
            for key in ("min", "above", "max")
            if key in option.metadata
        ]
        if "choices" in option.metadata:
            limits.append("one of " + ", ".join(option.metadata["choices"]))
        if "members" in option.metadata:
            limits.append("any of " + ", ".join(option.metadata["members"]))
        help = " ".join([option.help, f"({'; '.join(limits)})" if limits else ""]).strip()
        default = "null" if option.default is None else option.default
        if "formerly" in option.metadata:
            help += f" Formerly `{option.metadata['formerly']}`, which is still read."
        cells = [f"`{option.name}`", option.title, option.type, str(default), help]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def text() -> str:
    parts = [INTRODUCTION, "## Top level", ""]
    parts += rows(RunSpec, skip=("method", *SECTIONS))
    parts += ["", "`method`, `data`, `train` and `hardware` are objects:", ""]
    for name, config in SECTIONS.items():
        parts += [f"## {name}", "", *rows(config), ""]
    parts += ["# Optimizers", "", "What `train.optimizer` chooses from.", ""]
    parts += ["| name | state, bytes a float32 parameter | what it is |", "|---|---|---|"]
    parts += [
        f"| `{rule.name}` | {rule.bytes_per_parameter:.3g} | {rule.help} ({rule.source}) |"
        for rule in OPTIMIZERS.values()
    ]
    parts += ["", "# Methods", "", '`"method": {"name": NAME, ...}` with the options below.', ""]
    for method in methods.all_methods():
        parts += [
            f"## {method.name}",
            "",
            f"**{method.title}** ({method.source}). {method.summary}",
        ]
        parts += ["", f"{method.description}", ""]
        parts += [
            f"- Formula: {method.formula}",
            f"- Trainable parameters: {method.parameter_formula}",
        ]
        parts += [f"- Default learning rate: {method.default_lr:g}", ""]
        if schema.describe(method.config):
            parts += [*rows(method.config), ""]
    parts += matrix()
    return "\n".join(parts).rstrip() + "\n"


def matrix() -> list[str]:
    """What goes together, and why not where it does not."""
    rows = compatibility.matrix(methods.all_methods())
    head = ["method", *[feature.title for feature in compatibility.FEATURES]]
    lines = ["# Compatibility", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = ["yes" if cell.yes else "–" for cell in row.cells.values()]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    lines += ["", "A dash that a spec asks for is refused before the run starts. The reasons:", ""]
    lines += [
        f"- {', '.join(cells)}: {reason}" for reason, cells in compatibility.reasons(rows).items()
    ]
    return lines


if __name__ == "__main__":
    (ROOT / "docs" / "spec.md").write_text(text(), encoding="utf-8")
