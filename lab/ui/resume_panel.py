"""Resume a run as it was, or with other settings."""

from __future__ import annotations

import streamlit as st

from lab import schema
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions, checkpoints, resume_settings
from lab.schema import quote
from lab.spec_sections import TrainSpec
from lab.ui.markdown_safety import run_action, tell


def longer(run: RunDir) -> None:
    """For a run that is done: a form that makes it longer, or what to do instead."""
    with st.popover("Make it longer", icon=":material/update:"):
        steps = [checkpoints.step_of(path) for path in checkpoints.listing(run.checkpoints)]
        if not steps:
            st.caption(
                "No checkpoint is left to continue from: continue training in a new run instead."
            )
            return
        st.caption(
            f"It continues from the checkpoint of step {steps[-1]:,} and repeats the steps after "
            "it. The learning rate follows its schedule over the new length, so the result is not "
            "that of a run that was planned longer. The result so far is kept in `attempts`."
        )
        _form(run)


def buttons(run: RunDir) -> None:
    """Resume, and a form of what may change on resuming."""
    if st.button("Resume", icon=":material/resume:", type="primary", key="resume"):
        run_action(lambda: actions.resume(run))
    with st.popover("Resume with changes", icon=":material/tune:"):
        _form(run)


def _form(run: RunDir) -> None:
    try:
        train = resume_settings.spec_of(run).to_json()["train"]
    except LabError as error:
        tell(error)
        return
    st.caption("Used from the newest checkpoint on; earlier records do not change. Empty: not set.")
    options = {option.name: option for option in schema.describe(TrainSpec)}
    user_input: dict[str, str] = {}
    grid = st.grid(2, min_column_width=180, gap="small")
    for name in resume_settings.CHANGEABLE:
        current = train[name]
        user_input[name] = grid.text_input(
            options[name].title,
            "" if current is None else str(current),
            key=f"resume.{run.id}.{name}",
            help=options[name].help,
        )
    lost = st.toggle(
        "Allow a checkpoint without optimizer or RNG state",
        key=f"resume.{run.id}.incomplete",
        help=(
            "Use only if no checkpoint is complete: weights are kept, optimizer states start "
            "from zero."
        ),
    )
    if st.button("Resume with these changes", type="primary", key=f"resume.{run.id}.go"):
        settings = [
            f"train.{name}={text.strip() or 'null'}"
            for name, text in user_input.items()
            if text.strip() != ("" if train[name] is None else quote(str(train[name])))
        ]
        run_action(lambda: actions.resume(run, settings, incomplete=lost))
