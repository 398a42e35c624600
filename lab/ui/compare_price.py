"""What an hour of the machine costs, for the axis and the row of cost."""

from __future__ import annotations

import streamlit as st

from lab import gpu_table
from lab.advise import prices
from lab.compare.contestants import Contestant

PRICE = "compare.price"
MAX_USD_PER_HOUR = 10_000.0


def price(shown: list[Contestant]) -> float:
    """A field for it, which begins with the price of the card that all runs used."""
    if PRICE not in st.session_state:
        st.session_state[PRICE] = _of_card(shown)
    usd = st.number_input(
        "Price (USD per hour)", 0.0, MAX_USD_PER_HOUR, key=PRICE, step=0.1, format="%.2f",
        width=200, persist_state="session",
        help="What an hour of this machine costs. Zero: no cost is shown.",
    )  # fmt: skip
    return float(usd or 0.0)


def current(shown: list[Contestant]) -> float:
    """The price without its field; one that a person has set to zero shows no cost."""
    if PRICE in st.session_state:
        return float(st.session_state[PRICE] or 0.0)
    return _of_card(shown)


def _of_card(shown: list[Contestant]) -> float:
    devices = {run.device for each in shown for run in each.runs}
    if len(devices) != 1:
        return 0.0
    (device,) = devices
    card = gpu_table.known(device)
    known = prices.current().of_card(card) if card is not None else None
    return known.usd if known is not None else 0.0
