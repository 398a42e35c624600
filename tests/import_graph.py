"""Which file of the lab imports which, read from the source."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from lab.paths import ROOT


def modules() -> dict[str, Path]:
    """Every module of `lab` and `bench` by its dotted name."""
    files = [*ROOT.glob("lab/**/*.py"), *ROOT.glob("bench/**/*.py")]
    return {module_name(file): file for file in sorted(files)}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports() -> dict[str, frozenset[str]]:
    """The modules that each module imports, those within functions too."""
    known = modules()
    return {
        name: frozenset(_imported(file, known)) - {name, "lab", "bench"}
        for name, file in known.items()
    }


def _imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                name = name if name in known else node.module
                if name in known:
                    yield name


def circles() -> list[list[str]]:
    """Groups of the lab's modules of which each imports, over some way, each other one, sorted."""
    graph = {
        name: frozenset(other for other in others if other.startswith("lab."))
        for name, others in imports().items()
        if name.startswith("lab.")
    }
    reachable = {name: _reachable(name, graph) for name in graph}
    groups = {
        frozenset(other for other in reachable[name] if name in reachable[other])
        for name in graph
        if name in reachable[name]
    }
    return sorted(sorted(group) for group in groups)


def _reachable(start: str, graph: dict[str, frozenset[str]]) -> set[str]:
    reached: set[str] = set()
    to_visit = [start]
    while to_visit:
        for name in graph[to_visit.pop()]:
            if name not in reached:
                reached.add(name)
                to_visit.append(name)
    return reached


def room(module: str) -> str:
    """`lab.runs.queue` lies in the room "runs", `lab.files` in "files", `bench.ui` in "bench"."""
    parts = module.split(".")
    return parts[1] if parts[0] == "lab" and len(parts) > 1 else parts[0]
