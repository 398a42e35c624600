"""YOUR CASE of the Advisor: what a person wants and has, kept in the address."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab import gpu_table, host
from lab.advise import case as cases
from lab.advise.case import (
    COMPLEXITIES,
    DISTANCES,
    GOALS,
    AdviceCase,
)
from lab.models import catalog, shipped_configs
from lab.ui import titles

HERE = "this machine"
SIZES = ("0.5B", "1B", "3B", "7B", "13B", "34B", "70B")
CARD_SIZES = (8, 12, 16, 24, 32, 48, 80)
PRICES = {
    "not known": None,
    "low": "low",
    "medium": "medium",
    "high": "high",
    "10 USD": 10.0,
    "100 USD": 100.0,
    "1,000 USD": 1000.0,
    "10,000 USD": 10_000.0,
}
DEFAULTS: dict[str, Any] = {
    "goal": GOALS[0],
    "examples": 1000,
    "shift": DISTANCES[0],
    "hardware": HERE,
    "budget": None,
    "variants": 1,
    "general": False,
    "price": "not known",
    "complexity": COMPLEXITIES[1],
    "tasks": 1,
    "tokens": 250,
}


def models() -> list[str]:
    """Sizes first, then the models that can be trained here, then the shipped configs."""
    ready = [f"builtin:{model.name}" for model in catalog.BUILT_IN if model.is_ready]
    return [*SIZES, *ready, *(config.id for config in shipped_configs.shipped())]


def default_model() -> str:
    """7B where there is a GPU; without one, what this machine can train."""
    ready = [f"builtin:{model.name}" for model in catalog.BUILT_IN if model.is_ready]
    return ready[0] if ready and not host.gpus() else "7B"


def model_title(option: str) -> str:
    return option if option in SIZES else titles.model(option)


def hardware() -> list[str]:
    return [HERE, *(f"{size} GB" for size in CARD_SIZES), *(gpu.name for gpu in gpu_table.GPUS)]


def fields() -> dict[str, Any]:
    """The case as `lab.advise.case.parse` takes it, from the widgets, which are drawn here."""
    st.caption("YOUR CASE")
    grid = st.grid(2, min_column_width=190, gap="small")
    goal = grid.cell().selectbox(
        "Goal", GOALS, key="advise.goal", bind="query-params",
        help="behaviour: tone, format, persona. knowledge: new facts. narrow task: classify, "
        "extract. new tokens: words that the tokenizer lacks.",
    )  # fmt: skip
    options = models()
    model = grid.cell().selectbox(
        "Model", options, options.index(default_model()), key="advise.model", bind="query-params",
        format_func=model_title,
        help="A model of the list, or a size: then the config of the nearest listed size is used.",
    )  # fmt: skip
    card = grid.cell().selectbox(
        "Hardware", hardware(), key="advise.hardware", bind="query-params",
        help="With a memory size, the fastest card of that size is used.",
    )  # fmt: skip
    examples = grid.cell().number_input(
        "Examples", 1, 10_000_000_000, 1000, key="advise.examples", bind="query-params",
    )  # fmt: skip
    budget = grid.cell().number_input(
        "Budget (USD per run)", 0.0, 1e9, None, key="advise.budget", bind="query-params",
        placeholder="no limit",
    )  # fmt: skip
    shift = grid.cell().segmented_control(
        "Domain distance", DISTANCES, default="near", required=True, key="advise.shift",
        bind="query-params", help="far: another language, notation or subject.",
    )  # fmt: skip
    complexity = grid.cell().selectbox(
        "Complexity", COMPLEXITIES, 1, key="advise.complexity", bind="query-params",
    )  # fmt: skip
    with st.expander("Variants, errors and general ability", type="compact"):
        rest = _more()
    size = {"parameters": model} if model in SIZES else {"model": model}
    return {
        "goal": goal,
        "examples": examples,
        "budget_usd": budget,
        "domain_shift": shift,
        "complexity": complexity,
        **size,
        **_device(card),
        **rest,
    }


def _more() -> dict[str, Any]:
    grid = st.grid(2, min_column_width=190, gap="small")
    variants = grid.cell().number_input(
        "Variants", 1, 1_000_000, 1, key="advise.variants", bind="query-params",
        help="Models to be served from this base, such as one for each customer.",
    )  # fmt: skip
    price = grid.cell().selectbox(
        "Price of an error", list(PRICES), key="advise.price", bind="query-params",
        help="high: legal or medical. In USD: what two points of accuracy are worth.",
    )  # fmt: skip
    tokens = grid.cell().number_input(
        "Tokens per example", 1, 1 << 20, 250, key="advise.tokens", bind="query-params",
        help="On average. Time and cost grow with it.",
    )  # fmt: skip
    tasks = grid.cell().number_input(
        "Tasks", 1, 1_000_000, 1, key="advise.tasks", bind="query-params",
        help="Different tasks that one base has to serve.",
    )  # fmt: skip
    general = st.toggle(
        "Keep general ability", key="advise.general", bind="query-params",
        help="What the base can do must not be forgotten.",
    )  # fmt: skip
    return {
        "variants": variants,
        "error_price": PRICES[price],
        "tokens_per_example": tokens,
        "tasks": tasks,
        "keeps_general": general,
    }


def _device(card: str) -> dict[str, Any]:
    if card == HERE:
        return {}
    if card in {f"{size} GB" for size in CARD_SIZES}:
        return {"gpu_gb": float(card.split()[0])}
    return {"gpu": card}


def forget() -> None:
    """All fields as they were at first. Their parts of the address follow."""
    for name, value in (DEFAULTS | {"model": default_model()}).items():
        st.session_state[f"advise.{name}"] = value


def parsed(value: dict[str, Any]) -> AdviceCase:
    """Raises LabError with all problems."""
    return cases.sized(cases.parse(value))
