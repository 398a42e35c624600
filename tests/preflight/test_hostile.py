"""The planner itself, with its libraries, asked about what was made to hold it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.errors import LabError
from lab.preflight.client import planner
from lab.stages import Limits
from tests.conftest import write_rows

Spec = dict[str, Any]
ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
SPIN = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
EAT = "{% set x = namespace(a='a' * 100000000) %}{% for i in range(99) %}{% set x.a = x.a ~ x.a %}"


def with_template(model: Path, folder: Path, template: str) -> str:
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


@pytest.mark.parametrize("template", [SPIN + "{{ messages }}", EAT + "{% endfor %}{{ messages }}"])
def test_a_hostile_template_ends_alone(
    template: str, make_spec: Callable[..., Spec], tiny_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    planner.warm()
    process = planner._process
    model = with_template(tiny_model, tmp_path / "model", template)
    patient = planner.limits_of_requests
    monkeypatch.setattr(
        planner, "limits_of_requests", Limits(part_seconds=3.0, memory_bytes=1_000_000_000)
    )
    begun = planner.begin({"ask": "look", "spec": make_spec() | {"model": model}, "most": 10})
    monkeypatch.setattr(planner, "limits_of_requests", patient)
    assert planner.look(make_spec(), 10).rows, "Another page is answered."
    with pytest.raises(LabError) as caught:
        begun.answer(120)
    assert "template" in str(caught.value), "The message names what it was."
    assert planner._process is process


def test_a_hostile_config_and_pattern_are_refused_by_the_check(
    make_spec: Callable[..., Spec], tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**6}))
    with pytest.raises(LabError, match="num_hidden_layers is 1,000,000"):
        planner.check(make_spec() | {"model": str(folder)})
    with pytest.raises(LabError, match="num_hidden_layers is 1,000,000"):
        planner.estimate(make_spec() | {"model": str(folder)}, shadow=False)
    slow = {"name": "lora", "target_modules": r"re:(\w|[a-z]|\.)*?(?<=z)"}
    with pytest.raises(LabError, match=r"method\.target_modules: The pattern .* takes longer"):
        planner.check(make_spec() | {"method": slow})


def test_rows_that_take_long_are_named(
    make_spec: Callable[..., Spec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "long.jsonl"
    write_rows(file, [ROW | {"n": "x" * 200}] * 60_000)
    monkeypatch.setattr(planner, "limits_of_requests", Limits(part_seconds=0.02))
    with pytest.raises(LabError, match=r"took longer than 0\.02 s") as caught:
        planner.look(make_spec(data={"dataset": str(file)}), 10_000)
    assert caught.value.hint
