"""From the Memory page to New run: the form with what was estimated."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab import methods
from lab.errors import LabError
from lab.models import catalog, shipped_configs
from lab.spec import RunSpec
from lab.ui import form, links
from lab.ui.markdown_safety import plain, user_errors
from lab.ui.memory_settings import Setting
from lab.ui.method_estimates import spec_of


def buttons(settings: list[Setting], method: methods.Method) -> None:
    for setting in settings:
        label = f"Use {setting.letter} in New run" if setting.letter else "Use this in New run"
        if st.button(label, key=f"memory.use{setting.letter}", icon=":material/add_circle:"):
            with user_errors():
                spec = spec_to_train(setting.settings, method)
            form.load(spec)
            st.session_state["new.preset"] = None
            # an empty address: Streamlit does not drop parameters that are bound to fields
            links.switch("new_run", {})


def spec_to_train(settings: dict[str, Any], method: methods.Method) -> RunSpec:
    """The estimated step as a run on the default dataset. Raises LabError where the model has no
    weights."""
    model = weights_of(str(settings["model"]))
    return RunSpec.parse(spec_of(settings | {"model": model}, method), [])


def weights_of(model: str) -> str:
    """The id of the weights that people fine-tune for a listed config; other models have theirs."""
    if model.startswith("config:"):
        return shipped_configs.get(model.partition(":")[2]).hub_id
    if not catalog.has_weights(model):
        raise LabError(
            f"'{plain(model)}' has no weights, so that it cannot be trained.",
            "Choose a listed model, a built-in one, a Hub ID, or a folder with weights.",
        )
    return model
