"""The direction of dependencies, the size of pages, and the safety rules, held by reading."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.paths import ROOT

HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes"}


def top_level_imports(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def all_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def offenders(files: list[Path], banned: set[str], names: object) -> list[str]:
    found = []
    for file in files:
        for name in names(file):  # type: ignore[operator]
            parts = name.split(".")
            if {".".join(parts[: end + 1]) for end in range(len(parts))} & banned:
                found.append(f"{file.relative_to(ROOT)} imports {name}")
    return found


def test_only_lab_ui_knows_streamlit() -> None:
    core = [path for path in sources("lab/**/*.py") if "ui" not in path.parts]
    assert offenders(core, {"streamlit", "pages", "lab.ui"}, all_imports) == []


def test_the_web_process_never_imports_torch_by_itself() -> None:
    web = sources("pages/*.py", "lab/ui/**/*.py", "app.py")
    assert offenders(web, HEAVY | {"lab.train", "lab.preflight.validate"}, top_level_imports) == []


def test_modules_that_the_web_process_shares_import_nothing_heavy() -> None:
    heavy_by_trade = ("train", "preflight", "trace")
    shared = [
        path
        for path in sources("lab/**/*.py")
        if not any(part in path.relative_to(ROOT).parts for part in heavy_by_trade)
    ]
    assert offenders(shared, HEAVY | {"lab.train"}, top_level_imports) == []


def test_pages_stay_thin_and_files_short() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in sources("pages/*.py", "lab/**/*.py")
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
        for path in sources("lab/**/*.py", "pages/*.py", "app.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if banned.search(line)
    ]
    assert found == []


def test_no_vague_names() -> None:
    vague = {"utils.py", "helpers.py", "misc.py", "common.py"}
    assert [path for path in sources("lab/**/*.py") if path.name in vague] == []
    assert [path for path in sources("lab/**/*.py") if "Manager" in path.read_text()] == []


def test_the_readme_shows_the_tree_that_is_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"^([a-z_]+/|[A-Za-z_.]+\.(?:md|toml|py|txt))  ", readme, re.M):
        assert (ROOT / name).exists(), f"README names {name}"
    for folder in sorted(path.name for path in (ROOT / "lab").iterdir() if path.is_dir()):
        if folder != "__pycache__":
            assert f"{folder}/" in readme, f"README's tree lacks lab/{folder}/"


def test_every_method_and_every_field_is_documented() -> None:
    import dataclasses

    from lab import methods
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


def test_titles_within_a_form_are_told_apart() -> None:
    import dataclasses

    from lab import methods
    from lab.spec import SECTIONS

    for config in [*SECTIONS.values(), *(method.config for method in methods.all_methods())]:
        titles = [field.metadata["title"] for field in dataclasses.fields(config)]
        assert len(set(titles)) == len(titles), f"{config.__name__} uses one title twice: {titles}"
