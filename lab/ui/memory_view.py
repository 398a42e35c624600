"""The parts of the Memory page: what is asked, and the answers as they come in."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import streamlit as st

from lab import formatting, gpu_table, host, json_text, methods, paths
from lab.atomic_files import write_atomic
from lab.errors import LabError
from lab.forecast import rules_of_thumb
from lab.models import catalog, shipped_configs
from lab.preflight.client import planner
from lab.ui import claim_links, memory_charts
from lab.ui.charts import CONFIG, View
from lab.ui.markdown_safety import escape_markdown, plain
from lab.ui.method_estimates import MethodEstimates, MethodRow, own_ranks, spec_of

HERE = "this machine"
LARGEST_UPLOAD = 1_000_000  # bytes of a config.json
# C3's rows: a shipped config of each size
SIZES = {"13B": "Llama-2-13B", "34B": "CodeLlama-34B", "70B": "Llama-3-70B"}
SEVEN = "Mistral-7B-v0.3"


def choose_model() -> str:
    """A shipped config, a built-in model, a hub id, a folder, or an uploaded config.json."""
    options = [config.id for config in shipped_configs.shipped()]
    options += [f"builtin:{model.name}" for model in catalog.BUILT_IN if model.is_ready]
    # by hand: a bound list takes nothing from the URL but its own options
    model_in_url = st.query_params.get("model") or "config:Llama-3.1-8B"
    if model_in_url not in options:
        options.insert(0, model_in_url[:4096])
    st.session_state["memory.model"] = model_in_url
    chosen: str = st.selectbox(
        "Model",
        options,
        key="memory.model",
        format_func=lambda name: str(plain(name)),
        on_change=_keep_model,
        accept_new_options=True,
        help="A shipped config, or type a hub id or a folder with config.json.",
    )
    with st.popover("Upload a config.json", icon=":material/upload_file:"):
        uploaded = st.file_uploader("config.json", type="json", key="memory.upload")
    if uploaded is not None:
        return _uploaded(uploaded.getvalue())
    return chosen


def _keep_model() -> None:
    st.query_params["model"] = st.session_state["memory.model"]


def _uploaded(content: bytes) -> str:
    """The folder that an uploaded config.json was put into. Raises LabError."""
    if len(content) > LARGEST_UPLOAD:
        raise LabError("The file is larger than 1 MB.", "A config.json has a few kB.")
    try:
        config = json_text.parse(content)
    except json_text.BadJson as error:
        raise LabError(f"The file is not JSON: {error}.", "Give a model's config.json.") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise LabError("This is no config.json of a model.", "It must name a model_type.")
    folder = paths.home() / "uploads" / "configs" / hashlib.sha256(content).hexdigest()[:16]
    paths.make_folder(folder)
    write_atomic(folder / "config.json", json.dumps(config))
    return str(folder)


def choose_device() -> tuple[str, dict[str, Any]]:
    """(the device's name, what the planner takes for it)."""
    names = [gpu.name for gpu in gpu_table.GPUS]
    chosen: str = st.selectbox(
        "Device",
        [*names, HERE],
        index=names.index("RTX 4090 24GB"),
        key="device",
        bind="query-params",  # by its plain name: what is shown of it may change
    )
    st.caption(_device_title(chosen))
    return chosen, {} if chosen == HERE else {"gpu": chosen}


def _device_title(name: str) -> str:
    if name == HERE:
        gpus = host.gpus()
        return escape_markdown(gpus[0]["name"]) if gpus else "no GPU: runs train on the processor"
    gpu = gpu_table.get(name)
    return (
        f"{formatting.size(gpu.usable_bytes)} for the run · {gpu.bandwidth / 1e9:,.0f} GB/s · "
        f"{gpu.flops / 1e12:,.0f} TFLOP/s · {gpu.watts:.0f} W"
    )


def choose_method() -> methods.Method:
    names = methods.names()
    chosen: str = st.selectbox(
        "Method", names, index=names.index(methods.DEFAULT), key="memory.method",
        format_func=lambda name: methods.get(name).title,
    )  # fmt: skip
    return methods.get(chosen)


def settings() -> dict[str, Any]:
    """Rows, length, rank and what is kept, from the controls; the URL keeps them."""
    grid = st.grid(3, min_column_width=220, gap="medium")
    rows = grid.cell().select_slider(
        "Rows a pass", [1, 2, 4, 8, 16, 32, 64], 4, key="rows", bind="query-params"
    )
    length = grid.cell().select_slider(
        "Tokens a row",
        [128, 256, 512, 1024, 2048, 4096, 8192, 16384],
        1024,
        key="length",
        bind="query-params",
    )
    rank = grid.cell().select_slider(
        "LoRA rank",
        [1, 2, 4, 8, 16, 32, 64, 128, 256],
        16,
        key="rank",
        bind="query-params",
        help=f"Of LoRA and its kin. Methods with a rank of another kind keep their own: "
        f"{own_ranks()}.",
    )
    with st.container(horizontal=True, gap="medium"):
        checkpointing = st.segmented_control(
            "Checkpointing",
            ["auto", "on", "off"],
            default="auto",
            required=True,
            key="checkpointing",
            bind="query-params",
            help="auto: where it does not fit without, of as few layers as make it fit",
        )
        loss = st.segmented_control(
            "Loss", ["fused", "plain"], default="fused", required=True, key="loss",
            bind="query-params",
        )  # fmt: skip
    return {
        "rows": rows,
        "length": length,
        "rank": rank,
        "checkpointing": checkpointing,
        "loss": loss,
    }


def show(estimates: MethodEstimates, device_name: str, view: View) -> None:
    """The bars, the figures below them, and the points where it stops to fit."""
    rows = estimates.rows()
    if not rows:
        if estimates.error or estimates.is_complete:
            reason = str(estimates.error or "") or next(
                iter(estimates.refused.values()), "no method takes this model"
            )
            st.error(escape_markdown(reason), icon=":material/error:")
        else:
            st.info("Reading the model's structure …", icon=":material/hourglass_top:")
        return
    device = {"name": device_name, "bytes": rows[0].forecast.device_bytes}
    traced = sum(row.forecast.memory.how.is_exact for row in rows)
    if not estimates.is_complete:
        total = len(methods.all_methods()) - len(estimates.refused)
        st.caption(f"Outlines first; {traced} of {total} steps traced so far …")
    config = CONFIG | {"toImageButtonOptions": {"filename": "memory", "scale": 2}}
    st.plotly_chart(
        memory_charts.bars(rows, device, view), key="memory.bars", theme=None, config=config,
        alt="Memory at the peak by method and part, against the device's memory",
    )  # fmt: skip
    figures = memory_charts.table(rows)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "CSV", memory_charts.as_csv(figures), "memory.csv", "text/csv",
            icon=":material/download:", key="memory.csv", on_click="ignore",
        )  # fmt: skip
        st.caption("The camera over the picture saves it. The address of this page re-opens it.")
    st.dataframe(
        figures,
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(f"{name}, GB", format="%.2f")
            for name in ("peak", *memory_charts.TITLES.values())
        }
        | {
            "tokens/s": st.column_config.NumberColumn(format="localized"),
            "Wh a million tokens": st.column_config.NumberColumn(format="%.1f"),
            "result on disk, GB": st.column_config.NumberColumn(format="%.3f"),
        },
    )
    for name, why in estimates.refused.items():
        st.caption(f"{escape_markdown(methods.get(name).title)}: {escape_markdown(why)}")
    for row in rows:
        why = row.forecast.memory.trace_error
        if why:
            message = f"{row.title}: not known, the step cannot be traced ({why})."
            st.caption(escape_markdown(message))
    _show_limits(estimates)
    _show_rules(rows)


def _show_limits(estimates: MethodEstimates) -> None:
    if not estimates.limits:
        return
    st.subheader("Where it stops to fit", anchor=False)
    st.caption("One thing changed at a time, by outlines of the step.")
    grid = st.grid(len(estimates.limits), min_column_width=230, gap="small")
    for name, limit in estimates.limits.items():
        with grid.cell().container(border=True):
            st.markdown(f"**{escape_markdown(methods.get(name).title)}**")
            st.markdown(
                f"longest row: **{limit.longest_row:,}** tokens\n\n"
                f"largest batch: **{limit.largest_batch:,}** rows\n\n"
                "largest model: "
                f"**{escape_markdown(limit.largest_model or 'none of the shipped')}**"
            )


def _show_rules(rows: list[MethodRow]) -> None:
    st.subheader("Rules of thumb against the step", anchor=False)
    st.caption(
        "What four public articles claim for such a model, beside the prediction. Most rules "
        "know neither the length nor the number of rows."
    )
    st.dataframe(
        [
            row | {"claim": claim_links.url(row["claim"])}
            for row in memory_charts.held_against(rows)
        ],
        hide_index=True,
        height="content",
        column_config={
            "claim": st.column_config.LinkColumn(display_text=r"rule=(.*)", width=120),
            "rule, GB": st.column_config.NumberColumn(format="%.1f"),
            "predicted, GB": st.column_config.NumberColumn(format="%.1f"),
            "error": st.column_config.NumberColumn(format="percent"),
        },
    )


def show_by_size(settings: dict[str, Any]) -> None:
    """The table of claim C3, 7B to 70B, by outlines under this page's settings."""
    st.caption(
        f"Claim {claim_links.link('C3')} at rank {settings['rank']}, {settings['rows']} × "
        f"{settings['length']} tokens: printed, and by the outline of the step here (GB)."
    )
    shown = []
    for size, printed in rules_of_thumb.C3_TABLE.items():
        model = SEVEN if size == 7 else SIZES[f"{size}B"]
        row: dict[str, Any] = {"size": f"{size}B", "model": model}
        for method, gigabytes in zip(methods.standard_methods(), printed, strict=True):
            row[f"{method.name}, printed"] = gigabytes
            forecast = planner.estimate(
                spec_of(settings | {"model": f"config:{model}"}, method),
                {"kind": "cuda"},
                shadow=False,
            )
            row[f"{method.name}, here"] = round(forecast.memory.peak_bytes / 1e9, 1)
        shown.append(row)
    st.dataframe(shown, hide_index=True)
    st.caption(
        f"Full fine-tuning of the last one needs {formatting.size(shown[-1]['full, here'] * 1e9)}."
    )
