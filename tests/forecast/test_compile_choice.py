"""Whether layers are compiled, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.answers import plan

LONG: dict[str, Any] = {
    "model": "config:Llama-3.1-8B",
    "method": "lora",
    "data": {"packing": "on", "max_length": 4096},
    "train": {"batch_size": 1, "max_tokens": 10**8},
}
H100 = {"gpu": "H100 80GB"}


def chosen(device: dict[str, Any], method: Any = "lora", **train: Any) -> tuple[str, str]:
    value = LONG | {"method": method, "train": LONG["train"] | train}
    answer = plan(value, device)
    return answer["choices"][0]["compile"], answer["compile"]


def test_the_shorter_time_is_said_first_and_pays() -> None:
    way, why = chosen(H100)
    assert way == "on" and why.startswith("on: saves time (")
    minutes = [
        60 * int(hours) + int(rest.split(" min")[0])
        for hours, rest in (
            part.split(" h ")
            for part in why.removeprefix("on: saves time (").removesuffix(")").split(" against ")
        )
    ]
    assert minutes[0] < 0.9 * minutes[1], f"Compiled against plain: {why}"
    way, why = chosen(H100, max_tokens=10**6)
    assert way == "off" and why.startswith("off: would not save time (")


@pytest.mark.parametrize("way", ["on", "off"])
def test_what_is_asked_for_stays(way: str) -> None:
    assert chosen(H100, compile=way) == (way, f"{way}, as requested")


def test_a_method_that_cannot_be_compiled_is_not() -> None:
    value = LONG | {"method": "prefix", "data": {"max_length": 4096}}
    answer = plan(value, {"gpu": "H100 80GB"})
    assert answer["choices"][0]["compile"] == "off"
    assert answer["compile"].startswith("off: Prefix tuning does not")


def test_no_processor_compiles() -> None:
    assert chosen({"kind": "cpu", "memory_bytes": 10**12}) == (
        "off",
        "off: only worthwhile on a GPU",
    )
