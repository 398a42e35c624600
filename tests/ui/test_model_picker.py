"""What the model dialog says of each model, and what it lists."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lab.devices import HostGpu
from lab.errors import LabError
from lab.models.model_list import ListedModel
from lab.ui import model_picker


def listed(name: str, parameters: float) -> ListedModel:
    return ListedModel(f"org/{name}", name, int(parameters), "MIT", 4096, f"config:{name}", False)


def job(free: float | None = 10e9, **needs: float) -> Any:
    """A job that knows the peaks of some models."""
    return SimpleNamespace(
        listed=[listed("small", 5e8), listed("middle", 2e9), listed("large", 7e10)],
        needs={
            f"org/{name}": SimpleNamespace(
                memory=SimpleNamespace(peak_bytes=peak), device_bytes=free
            )
            for name, peak in needs.items()
        },
        refusals={},
        is_complete=False,
    )


def test_fits_tight_and_too_large_by_what_is_free() -> None:
    state = job(small=5e9, middle=9.5e9, large=11e9)
    texts = [model_picker.here(state, model) for model in state.listed]
    assert texts == ["● fits", "◐ tight", "○ too large"]
    waiting = job(small=5e9)
    assert model_picker.here(waiting, waiting.listed[1]) == "…"
    waiting.is_complete = True
    assert model_picker.here(waiting, waiting.listed[1]) == "–"
    waiting.refusals["org/large"] = "LoRA does not take it."
    assert model_picker.here(waiting, waiting.listed[2]) == "not possible"
    unknown = job(None, small=5e9)
    assert model_picker.here(unknown, unknown.listed[0]) == "–", "nothing to hold it against"


def test_each_model_is_tried_with_the_form_on_the_memory_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights to begin with are those of another base, and would fit none of them."""
    questions: list[Any] = []

    def estimate(spec: dict[str, Any], device: dict[str, Any], *, shadow: bool) -> str:
        questions.append((spec, device, shadow))
        if spec["model"] == "config:large":
            raise LabError("LoRA does not take it.")
        return "a forecast"

    gpus = [HostGpu(0, "GPU-a", "Card", 24 * 10**9, 20 * 10**9)]
    monkeypatch.setattr(model_picker.planner, "estimate", estimate)
    monkeypatch.setattr(model_picker.host, "gpus", lambda: gpus)
    form = {"model": "", "init_from_run": "run:x", "method": {"name": "lora"}}
    needs = model_picker.NeedsJob(form, job().listed)
    needs.ask()
    assert [spec["model"] for spec, *_ in questions] == [
        "config:small", "config:middle", "config:large",
    ]  # fmt: skip
    for spec, device, shadow in questions:
        assert spec["init_from_run"] == "" and spec["method"] == {"name": "lora"} and not shadow
        assert device == {"kind": "cuda", "memory_bytes": 20 * 10**9}
    assert needs.needs == {"org/small": "a forecast", "org/middle": "a forecast"}
    assert needs.refusals == {"org/large": "LoRA does not take it."}
    gpus.clear()
    needs.ask()
    assert questions[-1][1] == {"kind": "cpu"}


@pytest.mark.parametrize(
    ("text", "sizes", "only_fitting", "names"),
    [
        ("", [], False, ["small", "middle", "large"]),
        ("MID", [], False, ["middle"]),
        ("org/", ["up to 1 B", "over 9 B"], False, ["small", "large"]),
        ("", [], True, ["small", "middle"]),
    ],
)
def test_the_list_follows_search_size_and_what_fits(
    text: str, sizes: list[str], only_fitting: bool, names: list[str]
) -> None:
    state = job(small=5e9, middle=9.5e9, large=11e9)
    matches = model_picker._matching(state, text, sizes, only_fitting)
    assert [model.title for model in matches] == names


def test_the_facts_of_a_model_say_what_is_still_to_be_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    far, near = listed("far", 2e9), replace(listed("near", 5e8), is_installed=True, context=None)
    monkeypatch.setattr(model_picker.model_list, "listed", lambda: [far, near])
    facts = model_picker.facts_of
    assert facts("org/far").endswith("MIT · 4,096 tokens of context · download of 4.00 GB")
    assert facts("org/near").endswith("MIT · installed"), "its context is not known"
    assert facts("org/none") == "org/none"
