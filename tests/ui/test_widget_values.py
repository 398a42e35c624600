"""A value that the code gives to a widget reaches the browser, whatever interrupts the page."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.runtime.state.session_state import SessionState

from lab import presets
from tests.ui.conftest import Page

ROOT = Path(__file__).parents[2]
STATE = "st.session_state"
WIDGETS = {
    "checkbox", "multiselect", "number_input", "pills", "radio", "segmented_control",
    "select_slider", "selectbox", "slider", "text_area", "text_input", "toggle",
}  # fmt: skip


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _keys_set(node: ast.AST) -> set[str]:
    """The keys, as source, of values that the code itself puts into the session."""
    keys: set[str] = set()
    for each in ast.walk(node):
        targets = each.targets if isinstance(each, ast.Assign) else []
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(part, ast.Subscript) and ast.unparse(part.value) == STATE:
                    keys.add(ast.unparse(part.slice))
        if isinstance(each, ast.Call) and ast.unparse(each.func) == f"{STATE}.setdefault":
            keys.add(ast.unparse(each.args[0]))
    return keys


def _forgetful(files: dict[str, str]) -> list[str]:
    """Widgets whose value the code sets and which neither `persist_state` nor `bind` keeps."""
    trees = {name: ast.parse(text) for name, text in files.items()}
    shared = {key for tree in trees.values() for key in _keys_set(tree) if key[:1] in "'\""}
    matches = set()
    for name, tree in trees.items():
        of_module = {key for key in _keys_set(tree) if key.isupper() or key.startswith("f")}
        for function in _functions(tree):
            keys = shared | of_module | _keys_set(function)
            for call in ast.walk(function):
                if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                    continue
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                keeps = {"persist_state", "bind", None} & set(given)  # None: **options
                if call.func.attr in WIDGETS and given.get("key") in keys and not keeps:
                    matches.add(f"{name}:{call.lineno} {given['key']}")
    return sorted(matches)


def test_widgets_that_the_code_fills_keep_their_values() -> None:
    files = [*(ROOT / "lab" / "ui").rglob("*.py"), *(ROOT / "pages").glob("*.py")]
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}
    assert _forgetful(texts) == [], (
        "Streamlit tells the browser a value that the code sets in that run alone; if the run is "
        "interrupted, the browser's empty widget takes the value's place. Add persist_state."
    )


def test_the_rule_finds_a_widget_that_forgets() -> None:
    text = """
def draw():
    key = name()
    st.session_state[key], st.session_state["b"] = 1, 2
    st.session_state.setdefault(f"c.{x}", 3)
    st.toggle("A", key=key)
    st.toggle("B", key="b", persist_state="page")
    st.toggle("C", key=f"c.{x}")
    st.toggle("D", key="d")
"""
    assert _forgetful({"page.py": text}) == ["page.py:6 key", "page.py:8 f'c.{x}'"]


def test_a_preset_of_the_address_outlives_an_interrupted_run(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run comes from a browser that has seen nothing of the first."""
    at = open_page("new_run", preset=presets.PAIRS[0].name)
    begin = SessionState.on_script_will_rerun

    def forget(self: SessionState, fresh: WidgetStates | None, **options: Any) -> None:
        begin(self, None if fresh is None else WidgetStates(), **options)

    monkeypatch.setattr(SessionState, "on_script_will_rerun", forget)
    at.run()
    (pills,) = [group for group in at.button_group if group.key == "new.preset"]
    assert pills.proto.set_value and pills.value == presets.PAIRS[0].name
    told = {
        box.key: box.value
        for box in [*at.selectbox, *at.text_input, *at.number_input]
        if box.proto.set_value and str(box.key).startswith("new.")
    }
    first, second = presets.PAIRS[0].methods
    assert told["new.pair.a"] == first, "the list's own first option is another"
    assert at.selectbox(key="new.pair.b").value == second
    assert told["new.data.dataset"] and told["new.pair.a.rate"] == "auto"
