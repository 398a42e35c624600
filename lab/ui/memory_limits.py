"""What still fits, of the Memory page: asked when a person opens its tab, which few do."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from lab import methods
from lab.errors import SpecError
from lab.fit_answers import FitLimits
from lab.preflight.client import planner
from lab.recent import Recent
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown
from lab.ui.memory_settings import Setting
from lab.ui.method_estimates import spec_of
from lab.ui.waiting import BackgroundJob, failure


class LimitsJob(BackgroundJob):
    """The limits of the usual methods under one view's settings, asked one after another: each
    takes a dozen outlines. A method that cannot train this model has none."""

    def __init__(self, settings: dict[str, Any], device: dict[str, Any]) -> None:
        super().__init__()
        self.settings, self.device = settings, device
        self.limits: dict[str, FitLimits] = {}

    def ask(self) -> None:
        for method in methods.standard_methods():
            try:
                self.limits[method.name] = planner.limits(
                    spec_of(self.settings, method), self.device
                )
            except SpecError:
                continue  # its bar says why


_jobs: Recent[str, LimitsJob] = Recent(16)


def job_for(setting: Setting) -> LimitsJob:
    """Begun at the first look, and shared by all who look."""
    return _jobs.get_or(
        json.dumps([setting.settings, setting.device], sort_keys=True),
        lambda: LimitsJob(setting.settings, setting.device).start(),
        is_stale=lambda job: job.is_stale,
    )


def show(settings: list[Setting]) -> None:
    """The longest rows, the largest batch and model that fit, for the usual methods."""
    sized = [each for each in settings if each.device.get("gpu") or each.device.get("memory_bytes")]
    if not sized:
        st.caption("No limits without a device of known size.")
        return
    jobs = [job_for(setting) for setting in sized]
    were_complete = all(job.is_complete for job in jobs)

    @fragment(run_every=None if were_complete else 1.0)
    def draw() -> None:
        st.caption("Each limit changes one setting only, by outlines of the step.")
        for setting, job in zip(sized, jobs, strict=True):
            job.look(f"limits{setting.letter}")
            _draw(setting, job)
        if all(job.is_complete for job in jobs) and not were_complete:
            st.rerun()

    draw()


def _draw(setting: Setting, job: LimitsJob) -> None:
    failure(job, f"limits{setting.letter}", setting.prefix)
    limits = dict(job.limits)
    total = len(methods.standard_methods())
    if not job.is_complete:
        text = f"{setting.prefix}Limits of {len(limits)} of {total} methods …"
        st.progress(len(limits) / total, text=text)
    elif not limits and job.error is None:
        st.caption(f"{setting.prefix}None of the usual methods can train this model.")
    if not limits:
        return
    grid = st.grid(len(limits), min_column_width=230, gap="small")
    for name, limit in limits.items():
        with grid.cell().container(border=True):
            st.markdown(f"**{setting.prefix}{escape_markdown(methods.get(name).title)}**")
            model = limit.largest_model or "none of the listed models"
            length = f"**{limit.longest_row:,}** tokens" if limit.longest_row else "**none fits**"
            rows = f"{limit.largest_batch:,}" if limit.largest_batch else "none fits"
            st.markdown(
                f"max sequence length: {length}\n\n"
                f"max batch size: **{rows}**\n\n"
                f"largest model: **{escape_markdown(model)}**"
            )
