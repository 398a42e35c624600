"""The modules that `tests/mutation.py` tries exist, and its faults are in code that runs."""

from __future__ import annotations

from lab.paths import ROOT
from tests import mutation


def test_modules_are_where_they_are_looked_for() -> None:
    missing = [path for path, _ in mutation.MODULES.values() if not (ROOT / path).is_file()]
    assert missing == [], "A module has moved: name its new place in tests/mutation.py."


def test_every_module_has_tests_near_it() -> None:
    bare = [name for name in mutation.MODULES if not mutation.nearest(name)]
    assert bare == [], "without a test nothing is seen: name the nearest in tests/mutation.py"


def test_annotations_are_no_places_for_faults() -> None:
    source = "def f(a: int | None = 1 | 2) -> str | None:\n    b: int | str = a | 3\n"
    spans = mutation.annotations(source)
    texts = sorted(source.splitlines()[start[0] - 1][start[1] : end[1]] for start, end in spans)
    assert texts == ["int | None", "int | str", "str | None"]
