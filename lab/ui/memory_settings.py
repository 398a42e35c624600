"""What the Memory page estimates: model, device and step; a second setting to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from lab import formatting, gpu_table, host, methods
from lab.models import catalog, shipped_configs, uploaded_configs
from lab.ui import method_estimates, titles
from lab.ui.markdown_safety import escape_markdown, plain, user_errors
from lab.ui.method_estimates import MethodEstimates, own_ranks

HERE = "this machine"
DEFAULT_MODEL = "config:Llama-3.1-8B"
DEFAULT_DEVICE = "RTX 4090 24GB"
BATCH_SIZES = [1, 2, 4, 8, 16, 32, 64]
LENGTHS = [128, 256, 512, 1024, 2048, 4096, 8192, 16384]
RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
BOUND = ("device", "rows", "length", "rank", "checkpointing", "loss")  # keys kept by the URL
MAX_ID_CHARS = 4096


@dataclass(frozen=True)
class Setting:
    """One question to the page: `settings` of `method_estimates.spec_of`, on one device."""

    letter: str  # "A" or "B"; "" where there is only one
    settings: dict[str, Any]
    device_name: str
    device: dict[str, Any]  # as the planner takes it

    @property
    def estimates(self) -> MethodEstimates:
        return method_estimates.job_for(self.settings, self.device)

    @property
    def prefix(self) -> str:
        return f"{self.letter}: " if self.letter else ""


def switches() -> None:
    """In the head of the page."""
    st.toggle(
        "Rules of thumb", key="rules", bind="query-params",
        help="Marks what four public articles claim for such a run.",
    )  # fmt: skip
    st.toggle(
        "Compare two settings", key="second", bind="query-params", on_change=_copy,
        help="Another model, device or step next to this one, on the same scale.",
    )  # fmt: skip


def choose() -> list[Setting]:
    """The setting of the page, and the second one where it is switched on."""
    is_pair = bool(st.session_state["second"])
    if is_pair:
        st.caption("SETTING A")
    settings = [_controls("", "A" if is_pair else "")]
    if is_pair:
        with st.container(border=True):
            st.caption("SETTING B")
            settings.append(_controls("_b", "B"))
    return settings


def _copy() -> None:
    """The second setting begins as the first one."""
    if st.session_state["second"]:
        for key in BOUND:
            st.session_state[f"{key}_b"] = st.session_state[key]
        st.query_params["model_b"] = st.session_state["memory.model"]
    else:
        st.query_params.pop("model_b", None)


def _controls(suffix: str, letter: str) -> Setting:
    grid = st.grid(2, min_column_width=320, gap="medium")
    with grid.cell():
        model = _model(suffix)
    with grid.cell():
        name, device = _device(suffix)
    step = _step(suffix)
    return Setting(letter, {"model": model, **step}, name, device)


def _model(suffix: str) -> str:
    """A shipped config, a built-in model, a Hub ID, a folder, or an uploaded config.json, as the
    planner takes it."""
    configs = {config.id: config for config in uploaded_configs.uploaded()}
    options = [config.id for config in shipped_configs.shipped()]
    options += [f"builtin:{model.name}" for model in catalog.BUILT_IN if model.is_ready]
    options += list(configs)
    # by hand: a bound list takes nothing from the URL but its own options
    model_in_url = st.query_params.get(f"model{suffix}") or DEFAULT_MODEL
    if model_in_url not in options:
        options.insert(0, model_in_url[:MAX_ID_CHARS])
    key = f"memory.model{suffix}"
    st.session_state[key] = model_in_url[:MAX_ID_CHARS]

    def title(model: str) -> str:
        config = configs.get(model)
        if config:
            return str(plain(f"{config.name} (uploaded, {config.id[-6:]})"))
        return titles.model(model) if ":" in model else str(plain(model))

    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen: str = st.selectbox(
            "Model", options, key=key, format_func=title, on_change=_keep_model, args=(suffix,),
            accept_new_options=True, persist_state="session",
            help="A listed config, or type a Hub ID or a folder with config.json.",
        )  # fmt: skip
        with st.popover(":material/upload_file:", help="Upload a config.json"):
            _upload(suffix)
    if chosen.startswith(uploaded_configs.PREFIX):
        return str(uploaded_configs.get(chosen).folder)
    return chosen


def _keep_model(suffix: str) -> None:
    st.query_params[f"model{suffix}"] = st.session_state[f"memory.model{suffix}"]


def _upload(suffix: str) -> None:
    """A file that was just uploaded becomes the model of the page, and of its address."""
    file = st.file_uploader("config.json", type="json", key=f"memory.upload{suffix}")
    seen = f"memory.uploaded{suffix}"
    if file is None or st.session_state.get(seen) == file.file_id:
        return
    with user_errors():
        config = uploaded_configs.keep(file.getvalue(), file.name)
    st.session_state[seen] = file.file_id
    st.query_params[f"model{suffix}"] = config.id
    st.rerun()


def _device(suffix: str) -> tuple[str, dict[str, Any]]:
    """(the device's name, what the planner takes for it)."""
    names = [gpu.name for gpu in gpu_table.GPUS]
    chosen: str = st.selectbox(
        "Device", [*names, HERE], index=names.index(DEFAULT_DEVICE), key=f"device{suffix}",
        bind="query-params", persist_state="session",  # by its plain name: what is shown may change
    )  # fmt: skip
    st.caption(device_title(chosen))
    return chosen, {} if chosen == HERE else {"gpu": chosen}


def device_title(name: str) -> str:
    if name == HERE:
        gpus = host.gpus()
        return escape_markdown(gpus[0].name) if gpus else "no GPU: training runs on the CPU"
    gpu = gpu_table.get(name)
    return (
        f"{formatting.size(gpu.usable_bytes)} usable memory · {gpu.bandwidth / 1e9:,.0f} GB/s · "
        f"{gpu.flops / 1e12:,.0f} TFLOP/s · {gpu.watts:.0f} W"
    )


def _step(suffix: str) -> dict[str, Any]:
    """Batch size, length, rank and what is stored, from the controls; the URL keeps them."""
    bound: Any = {"bind": "query-params", "persist_state": "session"}
    grid = st.grid(5, min_column_width=190, gap="medium")
    rows = grid.cell().select_slider("Batch size", BATCH_SIZES, 4, key=f"rows{suffix}", **bound)
    length = grid.cell().select_slider(
        "Sequence length", LENGTHS, 1024, key=f"length{suffix}", **bound
    )
    rank = grid.cell().select_slider(
        "LoRA rank", RANKS, 16, key=f"rank{suffix}", **bound,
        help="Of LoRA and its variants. Methods with another kind of rank keep their default: "
        f"{own_ranks()}.",
    )  # fmt: skip
    with grid.cell():
        checkpointing = st.segmented_control(
            "Activation checkpointing", ["on", "off", "auto"], default="on", required=True,
            key=f"checkpointing{suffix}", **bound,
            help="on and off are the same for all methods, so that their bars can be compared. "
            "auto: only if needed, on as few layers as possible; every method then fills the "
            "device.",
        )  # fmt: skip
    with grid.cell():
        loss = st.segmented_control(
            "Loss implementation", ["fused", "plain"], default="fused", required=True,
            key=f"loss{suffix}", **bound,
        )  # fmt: skip
    return {
        "rows": rows, "length": length, "rank": rank, "checkpointing": checkpointing, "loss": loss,
    }  # fmt: skip


def choose_method() -> methods.Method:
    names = methods.names()
    chosen: str = st.selectbox(
        "Method", names, index=names.index(methods.DEFAULT), key="memory.method",
        format_func=lambda name: methods.get(name).title, width=260,
    )  # fmt: skip
    return methods.get(chosen)
