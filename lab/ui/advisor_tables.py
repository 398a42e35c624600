"""Costs and Hardware of the Advisor."""

from __future__ import annotations

import datetime
import functools
import math
from typing import Any

import streamlit as st

from lab import formatting, gpu_table
from lab.advise import costs, hardware, prices
from lab.advise.recommend import Recommendation, in_gb, usd
from lab.recent import Recent
from lab.ui import claim_links
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown, run_action
from lab.ui.waiting import BackgroundJob, failure

EARLIEST = datetime.date(2000, 1, 1)  # of a price


class PrintedFiguresJob(BackgroundJob):
    """The figures that articles print of costs, computed again; a dozen forecasts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[costs.PrintedFigure] = []

    def ask(self) -> None:
        self.rows = costs.printed_figures()


class HardwareJob(BackgroundJob):
    """The cards that hold a recommended run, and what a gigabyte less would change."""

    def __init__(self, advice: Recommendation) -> None:
        super().__init__()
        self.advice = advice
        self.rows: list[hardware.CardRow] = []
        self.less = ""

    def ask(self) -> None:
        self.rows = hardware.cards(self.advice.chosen, self.advice.case)
        self.less = hardware.one_gigabyte_less(self.advice.case, self.advice.chosen)


_printed: Recent[str, PrintedFiguresJob] = Recent(1)
_hardware: Recent[str, HardwareJob] = Recent(32)


def bill(advice: Recommendation) -> None:
    rows = [
        {
            "": f"**{escape_markdown(item.title)}**",
            "Amount": escape_markdown(item.amount),
            "How": escape_markdown(item.how),
        }
        for item in costs.bill(advice)
    ]
    st.table(rows, border="horizontal", hide_index=True)


def price_editor() -> None:
    """Prices with date and source; what is changed is kept for this machine."""
    rows = price_rows()
    edited = st.data_editor(
        rows,
        hide_index=True,
        # edits are of the prices that were shown: what is kept is shown without them
        key=f"advise.prices.{prices.version()}",
        height=320,
        disabled=["What", "Source"],
        column_order=["What", "USD", "Date", "Source"],
        column_config={
            "USD": st.column_config.NumberColumn(min_value=0.0, max_value=1e6),
            "Date": st.column_config.DateColumn(
                format="YYYY-MM-DD",
                help="As of when; today for a price that is changed.",
                min_value=EARLIEST,
                max_value=datetime.date.today(),
            ),
        },
    )
    for name, price_usd, date in changed_prices(rows, edited, datetime.date.today()):
        run_action(functools.partial(prices.keep, name, price_usd, date.isoformat()))


def changed_prices(
    rows: list[dict[str, Any]], edited: list[dict[str, Any]], today: datetime.date
) -> list[tuple[str, float, datetime.date]]:
    """(name, USD, date) of what a person has changed: another price is as of today, unless the date
    was changed with it; without a price there is nothing that a date is of."""
    changes = []
    for before, after in zip(rows, edited, strict=True):
        usd, date = after["USD"], after["Date"]
        if usd is None or not math.isfinite(usd):
            continue
        is_other_date = date is not None and date != before["Date"]
        if usd != before["USD"] or is_other_date:
            changes.append((before["name"], float(usd), date if is_other_date else today))
    return changes


def price_rows() -> list[dict[str, Any]]:
    """Every price that can be set; `name` is what `prices.keep` takes."""
    now = prices.current()
    named = {gpu.name: now.cards.get(gpu.name) for gpu in gpu_table.GPUS}
    return [
        {"What": "kWh of electricity", "name": "electricity", **_row(now.electricity)},
        {"What": "GB of storage per month", "name": "storage", **_row(now.storage)},
        *({"What": f"hour of {name}", "name": name, **_row(price)}
          for name, price in named.items()),
    ]  # fmt: skip


def _row(price: prices.Price | None) -> dict[str, Any]:
    if price is None:
        return {"USD": None, "Date": None, "Source": "not set"}
    return {"USD": price.usd, "Date": _date(price.date), "Source": price.source}


def _date(text: str) -> datetime.date | None:
    """None for a file that holds no date."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def printed_figures() -> None:
    """Every printed figure of costs beside the lab's, as soon as it is computed."""
    job = _printed.get_or(
        "printed",
        lambda: PrintedFiguresJob().start(),
        is_stale=lambda job: job.is_stale,
    )
    was_complete = job.is_complete

    @fragment(run_every=None if was_complete else 1.0)
    def table() -> None:
        job.look("advise.printed")
        failure(job, "advise.printed")
        if not job.is_complete:
            st.skeleton(height=300)
            st.caption("Forecasting 7B, 13B and 70B models …")
        elif job.error is None:
            _printed_table(job.rows)
        if job.is_complete and not was_complete:
            st.rerun()

    table()


def _printed_table(rows: list[costs.PrintedFigure]) -> None:
    st.dataframe(
        [
            {
                "Claim": claim_links.url(row.claim),
                "What": row.title,
                "Printed": row.printed,
                "Here": row.here,
                "Unit": row.unit,
                "Off by": row.off_by,
                "How": row.formula,
            }
            for row in rows
        ],
        hide_index=True,
        key="advise.printed",
        column_config={
            "Claim": st.column_config.LinkColumn(display_text=r"rule=(.*)", width=60),
            "How": st.column_config.TextColumn(width="large"),
        },
    )


def cards(advice: Recommendation) -> None:
    """Which cards hold it, the smallest, what B2 says, and what a gigabyte less changes."""
    if advice.chosen.forecast is None or advice.chosen.need_bytes is None:
        st.caption("The memory of this run is not known.")
        return
    job = _hardware.get_or(
        f"{advice.case} {advice.approach}",
        lambda: HardwareJob(advice).start(),
        is_stale=lambda job: job.is_stale,
    )
    was_complete = job.is_complete

    @fragment(run_every=None if was_complete else 0.5)
    def table() -> None:
        job.look("advise.cards")
        failure(job, "advise.cards")
        if not job.is_complete:
            st.skeleton(height=420)
        elif job.error is None:
            _cards(advice, job)
        if job.is_complete and not was_complete:
            st.rerun()

    table()


def _cards(advice: Recommendation, job: HardwareJob) -> None:
    option = advice.chosen
    assert option.forecast is not None
    smallest = hardware.smallest(job.rows)
    needed = option.forecast.memory.needed_bytes
    lines = [
        f"- As set up it takes **{in_gb(needed)}**; with batch size 1 and all layers checkpointed "
        f"**{in_gb(option.need_bytes)}**.",
        f"- The smallest card that it fits: **{escape_markdown(smallest.name)}**."
        if smallest
        else "- It fits no single card of the table.",
        f"- {claim_links.link('B2')} says for {in_gb(needed)}: "
        f"{escape_markdown(hardware.b2_step(needed))}.",
    ]
    if cheapest := hardware.cheapest(job.rows):
        lines.append(f"- It costs least on {escape_markdown(cheapest)}.")
    lines.append(f"- One gigabyte less: {escape_markdown(job.less)}")
    st.markdown("\n".join(lines))
    st.dataframe(
        [
            {
                "Card": row.card.name,
                "For a run, GB": row.card.usable_bytes / 1e9,
                "Fits": "as set up"
                if row.comfortably
                else "with smaller settings"
                if row.holds
                else "no",
                "Time": formatting.duration(row.hours * 3600) if row.hours is not None else "–",
                "Cost": "–" if row.usd is None else usd(row.usd),
            }
            for row in job.rows
        ],
        hide_index=True,
        key="advise.cards",
        column_config={"For a run, GB": st.column_config.NumberColumn(format="%.1f")},
    )
