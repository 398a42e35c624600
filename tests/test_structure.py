"""The direction of dependencies, the size of pages, and the safety rules, held by reading."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import methods
from lab.metrics import KINDS, METRICS
from lab.paths import ROOT
from tests.import_graph import circles, imports, room

CODE = ("lab", "bench", "pages", "tests")
HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes"}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Each file is parsed once for all rules."""
    return ast.parse(path.read_text(encoding="utf-8"))


def top_level_imports(path: Path) -> Iterator[str]:
    for node in tree_of(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def all_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def offenders(files: list[Path], banned: set[str], names: object) -> list[str]:
    results = []
    for file in files:
        for name in names(file):  # type: ignore[operator]
            parts = name.split(".")
            if {".".join(parts[: end + 1]) for end in range(len(parts))} & banned:
                results.append(f"{file.relative_to(ROOT)} imports {name}")
    return results


def test_only_lab_ui_knows_streamlit() -> None:
    core = [path for path in sources("lab/**/*.py", "bench/**/*.py") if "ui" not in path.parts]
    assert offenders(core, {"streamlit", "pages", "lab.ui"}, all_imports) == []


def test_the_web_process_never_imports_torch_by_itself() -> None:
    web = sources("pages/*.py", "lab/ui/**/*.py", "app.py")
    assert offenders(web, HEAVY | {"lab.train", "lab.preflight.validate"}, top_level_imports) == []


def test_modules_that_the_web_process_shares_import_nothing_heavy() -> None:
    heavy_by_trade = (
        *("train", "preflight", "trace", "engine"),
        *("bottleneck_modules.py", "soft_prompt.py", "optimizer_in_backward.py"),
    )
    shared = [
        path
        for path in sources("lab/**/*.py")
        if not any(part in path.relative_to(ROOT).parts for part in heavy_by_trade)
    ]
    assert offenders(shared, HEAVY | {"lab.train"}, top_level_imports) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles() == [], "move what they share into a file below them"


# From the ground up: a room imports its own floor and those below it. What is not named here
# (single files such as lab/paths.py) is the ground.
FLOORS = (
    ("models",),
    ("methods",),
    ("spec", "checked_run", "spec_rules"),
    ("data",),
    ("runs",),
    ("train",),
    ("forecast",),
    ("preflight",),
    ("chat", "compare", "evals", "export", "rank"),
    ("advise",),
    ("cli", "ui"),
    ("bench", "__main__"),
)
# Imports that climb. The list only gets shorter.
CLIMBS = {
    ("cli", "bench"),  # the verb, when it is called
    ("models", "data"),  # where a turn ends, as the chat template renders it
}


def test_rooms_import_downwards() -> None:
    floor = {name: level for level, names in enumerate(FLOORS, 1) for name in names}
    climbs = {
        (room(name), room(other)): f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if floor.get(room(other), 0) > floor.get(room(name), 0)
    }
    new = [text for rooms, text in climbs.items() if rooms not in CLIMBS]
    assert new == [], "a room imports from a floor above it"
    solved = CLIMBS - set(climbs)
    assert solved == set(), "nothing climbs there any more: take it out of CLIMBS"


def test_peft_is_imported_by_the_function_that_leaves_the_compiler_out() -> None:
    plain = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in sources("lab/**/*.py")
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Import) and "peft" in {alias.name for alias in node.names}
    ]
    assert len(plain) == 1 and plain[0].startswith("lab/library_imports.py"), "use import_peft"


def test_the_benches_are_imported_by_their_verb_alone() -> None:
    everything_else = sources("lab/**/*.py", "pages/*.py", "app.py")
    assert offenders(everything_else, {"bench"}, top_level_imports) == []


def test_every_file_of_methods_is_one_method() -> None:
    for file in sources("lab/methods/*.py"):
        if file.stem != "__init__":
            count = len(re.findall(r"^@register\($", file.read_text(encoding="utf-8"), re.M))
            assert count == 1, f"{file.name} registers {count} methods: parts lie in methods/parts/"


def names_of_methods(node: ast.AST, names: set[str]) -> bool:
    """Whether `node` compares with the name of a method, or lists such names and nothing else."""

    def is_name(operand: ast.AST) -> bool:
        return isinstance(operand, ast.Constant) and operand.value in names

    def is_list(operand: ast.AST) -> bool:
        is_literal = isinstance(operand, (ast.Tuple, ast.List, ast.Set))
        return is_literal and len(operand.elts) > 0 and all(map(is_name, operand.elts))  # type: ignore[attr-defined]

    if isinstance(node, ast.Compare):
        # "prompt" in record: a key that is looked for, not the method of that name
        is_key = isinstance(node.ops[0], (ast.In, ast.NotIn))
        operands = node.comparators if is_key else [node.left, *node.comparators]
        return any(is_name(operand) or is_list(operand) for operand in operands)
    if isinstance(node, ast.match_case):
        return any(is_name(part) for part in ast.walk(node.pattern))
    return is_list(node) and len(node.elts) > 1  # type: ignore[attr-defined]


def test_nobody_compares_names_of_methods() -> None:
    names = set(methods.names())
    allowed = {ROOT / "lab" / "presets.py", ROOT / "lab" / "cli" / "demo.py"}
    compared = [
        f"{file.relative_to(ROOT)}: {ast.unparse(node)}"
        for file in sources("lab/**/*.py", "bench/**/*.py", "pages/*.py")
        if file not in allowed and "methods" not in file.parts
        for node in ast.walk(tree_of(file))
        if names_of_methods(node, names)
    ]
    assert compared == [], "ask a field or a hook of the method instead of its name"


def test_comparisons_of_names_are_seen() -> None:
    names = {"full", "lora", "prompt"}

    def is_seen(source: str) -> bool:
        return any(names_of_methods(node, names) for node in ast.walk(ast.parse(source)))

    for source in (
        'method.name == "full"',
        'if "lora" != name: pass',
        'name in ("full", "lora")',
        'for name in ["full", "lora"]: pass',
        'STANDARD = ("full", "lora")',
        'match name:\n    case "full": pass',
    ):
        assert is_seen(source), f"{source} compares names of methods"
    for source in ('"prompt" in record', 'part in ("prompt", "completion")', 'x == "on"'):
        assert not is_seen(source), f"{source} compares no name of a method"


def test_pages_stay_thin_and_files_short() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in sources("pages/*.py", "lab/**/*.py", "bench/**/*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines()))
        > (100 if path.parent.name == "pages" else 400)
    ]
    assert too_long == []


def test_nothing_loads_pickles_runs_shells_or_remote_code() -> None:
    banned = re.compile(
        r"shell=True|trust_remote_code=(?!False)|\bpickle\b|torch\.load|weights_only=False|"
        r"os\.system|(?<![.\w])eval\(|(?<![.\w])exec\("
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources("lab/**/*.py", "bench/**/*.py", "pages/*.py", "app.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if banned.search(line)
    ]
    assert found == []


def test_charts_json_and_ways_to_pages_have_one_safe_way() -> None:
    """`chart_style.show` makes what a screen reader says visible; `cards.json_code` is readable;
    after `links.switch`, and with parts that belong to one page, no timer of the old page clears
    the new one; mypy knows that nothing runs after `frame.end_page`."""
    makers = {
        "plotly_chart(": "chart_style.py", "st.json(": "cards.py", "switch_page(": "links.py",
        "st.fragment": "fragments.py", "st.stop": "frame.py",
    }  # fmt: skip
    others = [
        f"{path.relative_to(ROOT)}: {call}"
        for path in sources("pages/*.py", "lab/ui/**/*.py")
        for call, maker in makers.items()
        if call in path.read_text(encoding="utf-8") and path.name != maker
    ]
    assert others == []


def test_no_text_stands_alone_behind_what_it_should_end() -> None:
    """`return "a "` and `"b"` below it: the second half of the message is never said."""
    lost = []
    for file in sources("lab/**/*.py", "bench/**/*.py", "pages/*.py"):
        for node in ast.walk(tree_of(file)):
            body = getattr(node, "body", [])
            for before, after in itertools.pairwise(body if isinstance(body, list) else []):
                is_text = isinstance(after, ast.Expr) and isinstance(
                    after.value, (ast.Constant, ast.JoinedStr)
                )
                if is_text and isinstance(before, (ast.Return, ast.Assign, ast.Raise)):
                    lost.append(f"{file.relative_to(ROOT)}:{after.lineno}")
    assert lost == [], "put brackets around the whole of the text"


def test_messages_are_no_markdown() -> None:
    """Pages and terminals show a message as it is: a command stands between apostrophes."""
    writes_markdown = ("lab/ui", "lab/export/script", "lab/export/plain_", "lab/train/model_card")
    ticked = []
    for file in sources("lab/**/*.py"):
        if str(file.relative_to(ROOT)).startswith(writes_markdown):
            continue
        tree = tree_of(file)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if isinstance(node, documented)
        }
        ticked += [
            f"{file.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "`" in node.value
            and node.value not in docstrings
        ]
    assert ticked == []


JOINED_BY_HAND = re.compile(r"[*)]* (?:[a-z-]+ )?[a-z-]{2,}s\b(?<! is)(?<! was)(?<! times)")


def counts_joined_by_hand(tree: ast.Module) -> Iterator[int]:
    """Lines with a length and its noun in one text, such as "{len(rows)} rows": "1 rows"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            for value, text in itertools.pairwise(node.values):
                is_length = isinstance(value, ast.FormattedValue) and ast.unparse(
                    value.value
                ).startswith("len(")
                if is_length and isinstance(text, ast.Constant):
                    if JOINED_BY_HAND.match(str(text.value)):
                        yield value.lineno


def test_a_number_and_its_noun_come_from_one_function() -> None:
    joined = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sources("lab/**/*.py", "pages/*.py")
        for line in counts_joined_by_hand(tree_of(file))
    ]
    assert joined == [], "write lab.formatting.quantity(number, noun)"
    by_hand = ast.parse("f'{len(rows):,} rows', f'**{len(x)}** bad rows', f'{len(x)} is'")
    assert len(list(counts_joined_by_hand(by_hand))) == 2


def test_no_vague_names() -> None:
    vague = {"utils.py", "helpers.py", "misc.py", "common.py"}
    assert [path for path in sources("lab/**/*.py", "bench/**/*.py") if path.name in vague] == []
    assert [
        path for path in sources("lab/**/*.py", "bench/**/*.py") if "Manager" in path.read_text()
    ] == []


def test_the_readme_shows_the_tree_that_is_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"^([a-z_]+/|[A-Za-z_.]+\.(?:md|toml|py|txt))  ", readme, re.M):
        assert (ROOT / name).exists(), f"README names {name}"
    for folder in sorted(path.name for path in (ROOT / "lab").iterdir() if path.is_dir()):
        if folder != "__pycache__":
            assert f"{folder}/" in readme, f"README's tree lacks lab/{folder}/"


@pytest.mark.every_method
def test_every_method_and_every_field_is_documented() -> None:
    import dataclasses

    from lab.spec import SECTIONS

    text = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    written = runpy.run_path(str(ROOT / "docs" / "make_spec.py"))["text"]()
    assert text == written, "run python docs/make_spec.py"
    for section, kind in SECTIONS.items():
        for field in dataclasses.fields(kind):
            assert field.metadata.get("help"), f"{section}.{field.name} has no help"
            assert f"`{field.name}`" in text, f"docs/spec.md lacks {section}.{field.name}"
            assert_has_title(section, field)
    for method in methods.all_methods():
        assert f"## {method.name}" in text, f"docs/spec.md lacks the method {method.name}"
        for field in dataclasses.fields(method.config):
            assert field.metadata.get("help"), f"{method.name}.{field.name} has no help"
            assert_has_title(method.name, field)
            assert f"`{field.name}`" in text


def assert_has_title(section: str, field: Any) -> None:
    """A title of its own, beside help that does not speak of JSON."""
    title = field.metadata["title"]
    assert 2 <= len(title) <= 30, f"{section}.{field.name}: the title '{title}' does not fit a form"
    assert not title[0].islower() or title.startswith("rsLoRA"), f"'{title}' is no heading"
    assert "null" not in field.metadata["help"], f"{section}.{field.name}: null is not English"


@pytest.mark.every_method
def test_titles_within_a_form_are_told_apart() -> None:
    import dataclasses

    from lab.spec import SECTIONS

    for config in [*SECTIONS.values(), *(method.config for method in methods.all_methods())]:
        titles = [field.metadata["title"] for field in dataclasses.fields(config)]
        assert len(set(titles)) == len(titles), f"{config.__name__} uses one title twice: {titles}"


# of tests that take some methods as examples, or read the sources
NO_RULES_OF_METHODS = {
    "test_every_method_gets_the_same_rows",
    "test_a_rule_is_held_against_the_usual_method_of_its_kind",
    "test_nobody_compares_names_of_methods",
}


def test_the_conformance_suite_has_every_rule_of_a_method() -> None:
    """Whoever adds a method runs `-m every_method`: what asks all of them is in it."""
    asks = re.compile(r"\bmethods\.names\(\)|\ball_methods\(\)")
    hidden = []
    for file in sources("tests/**/test_*.py"):
        body = tree_of(file).body
        lists = [
            ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            for node in body
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and asks.search(ast.unparse(node))
        ]
        for node in body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            source = ast.unparse(node)
            is_asked = asks.search(source) or any(
                re.search(rf"\b{name}\b", source) for name in lists
            )
            marks = [ast.unparse(decorator) for decorator in node.decorator_list]
            if is_asked and "pytest.mark.every_method" not in marks:
                hidden.append(f"{file.relative_to(ROOT)}: {node.name}")
    assert {entry.split(": ")[1] for entry in hidden} == NO_RULES_OF_METHODS, (
        f"mark it with pytest.mark.every_method: {hidden}"
    )


def test_every_metric_is_documented_with_its_unit() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    written = runpy.run_path(str(ROOT / "docs" / "make_metrics.py"))["text"]()
    assert text == written, "run python docs/make_metrics.py"
    for metric in METRICS:
        assert metric.unit and metric.help.endswith("."), f"{metric.key} has no unit or no meaning"
        assert set(metric.kinds) <= set(KINDS), f"{metric.key} is of kinds that there are not"
    keys = [metric.key for metric in METRICS]
    assert len(set(keys)) == len(keys), "a metric stands in the table once"
    groups = "|".join(sorted({key.partition("/")[0] for key in keys if "/" in key}))
    used: dict[str, str] = {}
    for file in sources("lab/**/*.py", "pages/*.py"):
        if file.name != "metrics.py":
            matches = re.findall(rf'"((?:{groups})/[a-z_]+)"', file.read_text(encoding="utf-8"))
            used |= dict.fromkeys(matches, str(file.relative_to(ROOT)))
    unknown = {key: file for key, file in used.items() if key not in keys}
    assert unknown == {}, "these keys are not in the table of lab/metrics.py"
    gone = [key for key in keys if "/" in key and key not in used]
    assert gone == [], "nothing writes these metrics: take them out of lab/metrics.py"


def test_every_page_is_in_the_navigation() -> None:
    tree = tree_of(ROOT / "lab" / "ui" / "shell.py")
    (pages,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAGES"
    ]
    shown = [name for entries in pages.values() for name, _, _ in entries]
    files = [file.stem for file in sources("pages/*.py")]
    assert sorted(shown) == sorted(files), "every file of pages/ is an entry of PAGES in the shell"


def test_the_glossary_names_files_that_are_there_and_each_term_once() -> None:
    text = (ROOT / "docs" / "GLOSSARY.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    terms = [row[0].removeprefix("| ") for row in rows]
    assert len(rows) > 40 and len(set(terms)) == len(terms), "one line for each term"
    for row in rows:
        assert len(row) == 3 and row[1].endswith("."), f"{row[0]} has a term, a meaning, a place"
        for path in re.findall(r"`([^`]+)`", row[2]):
            assert (ROOT / "lab" / path).exists(), f"{row[0]} is defined in lab/{path}, not there"
    for page in ("README.md", "ARCHITECTURE.md"):
        assert "(docs/GLOSSARY.md)" in (ROOT / page).read_text(encoding="utf-8")


def test_a_class_has_a_name_of_its_own() -> None:
    classes: dict[str, list[str]] = {}
    for file in sources("lab/**/*.py"):
        for node in tree_of(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    shared = {name: files for name, files in classes.items() if len(files) > 1}
    assert set(shared) <= {"Unpacked"}, f"one word for one concept: {shared}"


NAMELESS = {"one", "found", "made", "asked", "kept", "told", "said"}  # nouns are missing
VAGUE = {"own", "held", "place"}  # whose, by whom, and of what are missing
MAX_NAMELESS = 150  # in the lab, its benches and its tests; the number only gets smaller


def names_given(file: Path) -> Iterator[str]:
    """Names of variables, parameters, attributes, functions and classes, where they are given."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name


def test_names_say_what_they_hold() -> None:
    places = {
        str(file.relative_to(ROOT)): sum(name in NAMELESS for name in names_given(file))
        for file in sources("*.py", "docs/*.py", *(f"{top}/**/*.py" for top in CODE))
    }
    worst = sorted(places.items(), key=lambda item: -item[1])[:10]
    assert sum(places.values()) <= MAX_NAMELESS, (
        f"{', '.join(sorted(NAMELESS))} name nothing: take the noun (docs/GLOSSARY.md). {worst}"
    )


def test_these_rooms_have_no_nameless_thing() -> None:
    for file in sources("bench/**/*.py"):
        assert not NAMELESS & set(names_given(file)), file
    for file in sources("app.py", "pages/*.py", "lab/**/*.py"):
        assert not (NAMELESS | VAGUE) & set(names_given(file)), file
    for file in sources("lab/forecast/**/*.py", "lab/preflight/*.py", "lab/runs/*.py"):
        assert "given" not in set(names_given(file)), file
