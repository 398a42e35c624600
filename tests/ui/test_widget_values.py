"""A value that the code gives to a widget reaches the browser, whatever interrupts the page."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest

from lab import presets
from tests.compare.recorded import record
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
    """Widgets whose value the code sets, and which neither the session nor the address keeps, nor
    the code tells in every run (`st.session_state[key] = st.session_state[key]`). A value kept for
    the page alone is dropped where the first run after a return to the page is interrupted."""
    trees = {name: ast.parse(text) for name, text in files.items()}
    shared = {key for tree in trees.values() for key in _keys_set(tree) if key[:1] in "'\""}
    matches = set()
    for name, tree in trees.items():
        source = ast.unparse(tree)
        of_module = {key for key in _keys_set(tree) if key.isupper() or key.startswith("f")}
        for function in _functions(tree):
            keys = shared | of_module | _keys_set(function)
            for call in ast.walk(function):
                if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                    continue
                if call.func.attr not in WIDGETS:
                    continue
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                key = given.get("key")
                keeps: Any = {"bind", None} & set(given)  # None: **options
                keeps = keeps or given.get("persist_state") == "'session'"
                keeps = keeps or f"{STATE}[{key}] = {STATE}[{key}]" in source
                if key in keys and not keeps:
                    matches.add(f"{name}:{call.lineno} {key}")
    return sorted(matches)


def test_widgets_that_the_code_fills_keep_their_values() -> None:
    files = [*(ROOT / "lab" / "ui").rglob("*.py"), *(ROOT / "pages").glob("*.py")]
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}
    assert _forgetful(texts) == [], (
        "Streamlit tells the browser a value that the code sets in that run alone; if the run is "
        'interrupted, the browser\'s empty widget takes its place. Add persist_state="session".'
    )


def test_the_rule_finds_a_widget_that_forgets() -> None:
    text = """
def draw():
    key = name()
    st.session_state[key], st.session_state["b"] = 1, 2
    st.session_state.setdefault(f"c.{x}", 3)
    st.toggle("A", key=key)
    st.toggle("B", key="b", persist_state="session")
    st.toggle("C", key=f"c.{x}", persist_state="page")
    st.toggle("D", key="d")
    st.session_state["e"] = st.session_state["e"]
    st.toggle("E", key="e")
"""
    assert _forgetful({"page.py": text}) == ["page.py:6 key", "page.py:8 f'c.{x}'"]


def test_a_preset_of_the_address_outlives_an_interrupted_run(
    open_page: Page, run_without_answer: Callable[[AppTest], AppTest]
) -> None:
    at = open_page("new_run", preset=presets.PAIRS[0].name)
    run_without_answer(at)
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


def test_hidden_runs_and_axes_of_a_comparison_outlive_an_interrupted_run(
    open_page: Page, run_without_answer: Callable[[AppTest], AppTest]
) -> None:
    runs = [record("aaaa", seconds=250), record("bbbb", "B", "full", seconds=411)]
    at = open_page("compare", runs=",".join(run.id for run in runs), by="seconds", at="2.1")
    run_without_answer(at)
    groups = {group.key: group for group in at.button_group}
    shown = groups["compare.seen"]
    assert shown.proto.set_value and len(shown.value) == 3, "the base and two runs"
    assert groups["compare.by"].proto.set_value and groups["compare.by"].value == "seconds"
    (at_slider,) = [slider for slider in at.slider if str(slider.key).startswith("compare.at.")]
    assert at_slider.proto.set_value and at_slider.value == 2.1


def test_a_comparison_that_is_opened_begins_where_its_shortest_run_ended(open_page: Page) -> None:
    """The place on the axis belongs to the address; the session had it of other runs, perhaps."""
    runs = [record("aaaa", seconds=250), record("bbbb", "B", "full", seconds=411)]
    at = open_page("compare", runs=",".join(run.id for run in runs), by="seconds")
    (slider,) = [slider for slider in at.slider if str(slider.key).startswith("compare.at.")]
    begin = slider.value
    slider.set_value(1.0).run()
    assert at.slider(key=slider.key).value == 1.0 and begin > 1.0
    del at.query_params["at"]
    at.run()
    assert at.slider(key=slider.key).value == begin
