"""Resume a run as it was, or with other settings."""

from __future__ import annotations

import streamlit as st

from lab import schema
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import launch, resumption
from lab.schema import show
from lab.spec import TrainSpec
from lab.ui.guard import act, tell


def buttons(run: RunDir) -> None:
    """Resume, and a form of what may change on resuming."""
    if st.button("Resume", icon=":material/resume:", type="primary", key="resume"):
        act(lambda: launch.resume(run))
    with st.popover("Resume with other settings", icon=":material/tune:"):
        _form(run)


def _form(run: RunDir) -> None:
    try:
        train = resumption.spec_of(run).to_json()["train"]
    except LabError as error:
        tell(error)
        return
    st.caption(
        "They hold from the newest checkpoint on; the records so far stay. An empty field is null."
    )
    helps = {option["name"]: option["help"] for option in schema.describe(TrainSpec)}
    given: dict[str, str] = {}
    grid = st.grid(2, min_column_width=180, gap="small")
    for name in resumption.CHANGEABLE:
        now = train[name]
        given[name] = grid.text_input(
            name.replace("_", " ").capitalize(),
            "" if now is None else str(now),
            key=f"resume.{run.id}.{name}",
            help=helps[name],
        )
    lost = st.toggle(
        "Accept a checkpoint without its optimizer or random state",
        key=f"resume.{run.id}.incomplete",
        help="Only if no checkpoint is whole: the weights go on, the moments start anew.",
    )
    if st.button("Resume with these", type="primary", key=f"resume.{run.id}.go"):
        settings = [
            f"train.{name}={text.strip() or 'null'}"
            for name, text in given.items()
            if text.strip() != ("" if train[name] is None else show(str(train[name])))
        ]
        act(lambda: launch.resume(run, settings, incomplete=lost))
