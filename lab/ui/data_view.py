"""The parts of the Data page: a set's rows as the model sees them, and what is odd about it."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import streamlit as st

from lab import formatting
from lab.atomic_files import file_identity, read_object
from lab.data import catalog, format_detection
from lab.data.catalog import Dataset
from lab.data.preview_types import (
    DatasetPreview,
    Detection,
    ExampleCounts,
    FirstBatch,
    InvalidRows,
    TemplateView,
    Token,
)
from lab.errors import MAX_PROBLEMS, LabError, SpecError
from lab.formatting import quantity
from lab.paths import RunDir
from lab.preflight.client import planner
from lab.recent import Recent
from lab.spec import RunSpec
from lab.spec_sections import FORMATS, TEMPLATES
from lab.ui import chart_style, charts, form, links
from lab.ui.charts import View
from lab.ui.frame import end_page
from lab.ui.markdown_safety import escape_markdown, plain, tell
from lab.ui.waiting import wait
from lab.visible import number_of

PREVIEW_SIZES = (1000, 10_000)
PARTS = {
    "messages": ("messages", "system", "tools"),
    "tree": ("messages",),
    "text": ("text",),
    "multiple-choice": ("prompt", "choices", "completion"),
    "alpaca": ("prompt", "input", "completion", "system"),
    "preference": ("prompt", "messages", "completion", "system"),
}


def settings(dataset_id: str) -> dict[str, Any]:
    """How the set is read and seen: detected, and to be edited. The spec that it makes."""
    try:
        dataset = catalog.resolve(dataset_id)
        detection = _detected(dataset_id, file_identity(dataset.path))
    except LabError as error:
        tell(error)
        end_page()
    detected = detection.format
    left, right = st.columns(2)
    shape = left.selectbox(
        "Format", FORMATS, key=f"data.format.{dataset_id}", persist_state="session",
        format_func=lambda name: f"auto: {detected or 'unknown'}" if name == "auto" else name,
    )  # fmt: skip
    template = right.selectbox("Template", TEMPLATES, key="data.template", persist_state="session")
    columns = _columns(dataset_id, detected if shape == "auto" else str(shape), detection)
    if detection.why and shape == "auto" and not columns:  # the preview says why
        st.warning("Unknown example format. Choose the columns above, or the format.")
    spec = _more(dataset_id, dataset)
    spec["data"] |= {"dataset": dataset_id, "format": shape, "template": template}
    if columns:
        spec["data"]["columns"] = columns
    return spec


@st.cache_data(ttl=60, max_entries=50, show_spinner=False)
def _detected(dataset_id: str, changed: tuple[int, ...]) -> Detection:
    return format_detection.detected(dataset_id)


def _columns(dataset_id: str, shape: str, detection: Detection) -> dict[str, str]:
    """The column of each part; only what differs from what was detected."""
    names, guess = detection.names, detection.columns
    if not names:
        return {}
    parts = PARTS.get(shape, ("prompt", "completion", "system"))
    chosen = {}
    for cell, part in zip(st.columns(len(parts)), parts, strict=True):
        known = guess.get(part, "")
        options = ["", *([known] if known and known not in names else []), *names]
        column = cell.selectbox(
            f"{part.capitalize()} column",
            options,
            index=options.index(known),
            format_func=lambda name: str(plain(name)) or "none",
            accept_new_options=True,
            key=f"data.column.{dataset_id}.{shape}.{part}",
            persist_state="session",
        )
        if column:
            chosen[part] = str(column)
    shown = {part: column for part, column in guess.items() if part in parts}
    return chosen if chosen != shown or shape != detection.format else {}


def _more(dataset_id: str, dataset: Dataset) -> dict[str, Any]:
    """Model, length and what is seldom changed."""
    with st.expander("Tokenizer, length and masking"):
        left, right = st.columns(2)
        model = left.text_input("Model", "builtin:smollm2-135m-instruct", key="data.model",
                                help="The model whose tokenizer and chat template are used.",
                                persist_state="session")  # fmt: skip
        length = right.number_input(
            "Sequence length", 8, 1 << 20, 512, key="data.length", persist_state="session"
        )
        loss_on = left.segmented_control(
            "Train on", ["assistant", "completion", "all"], default="assistant", required=True,
            key="data.loss", persist_state="session",
        )  # fmt: skip
        side = right.segmented_control(
            "Truncation", ["right", "left"], default="right", required=True, key="data.side",
            persist_state="session",
        )  # fmt: skip
        bad = left.segmented_control(
            "Invalid rows", ["refuse", "skip"], default="refuse", required=True, key="data.bad",
            persist_state="session",
        )  # fmt: skip
        fraction = right.number_input(
            "Held-out fraction", 0.0, 0.9, float(dataset.card.get("eval_fraction", 0.05)), 0.05,
            key=f"data.fraction.{dataset_id}", persist_state="session",
        )  # fmt: skip
        held_out = st.text_input(
            "Evaluation dataset", "", key="data.held_out", persist_state="session",
            placeholder="none: the held-out fraction of this dataset",
            help="A separate dataset for the evaluation loss: a path, or an ID such as "
            "builtin:made-up-facts@held-out. Its examples are looked for among those that train.",
        )  # fmt: skip
        system = st.text_area(
            "System prompt", dataset.system_prompt, height=80, max_chars=20_000,
            key=f"data.system.{dataset_id}", persist_state="session",
        )  # fmt: skip
        filled = st.text_input(
            "Placeholders", placeholder="name=Wren; author=the lab",
            key=f"data.placeholders.{dataset_id}", persist_state="session",
            help="Text that replaces {{name}} in the rows.",
        )  # fmt: skip
    data: dict[str, Any] = {
        "max_length": int(length),
        "loss_on": loss_on,
        "truncation": side,
        "on_invalid_row": bad,
        "eval_fraction": float(fraction),
    }
    if evaluation := held_out.strip():
        data |= {"eval_dataset": evaluation, "eval_fraction": 0.0}
    if system != dataset.system_prompt:
        data["system_prompt"] = system
    slots = [part.partition("=") for part in filled.split(";") if "=" in part]
    if slots:
        data["placeholders"] = {name.strip(): value.strip() for name, _, value in slots}
    return {"model": model.strip(), "data": data}


def train_on(spec: dict[str, Any], preview: DatasetPreview | None) -> None:
    """The button to New run, whose form is filled with what is set here; only for a dataset in
    which there is something to train on."""
    is_usable = preview is not None and preview.counts is not None and preview.counts.counted > 0
    if st.button(
        "New run with this dataset", icon=":material/play_arrow:", type="primary",
        key="data.train", disabled=not is_usable,
        help=None if is_usable else "No example of this dataset can be used for training.",
    ):  # fmt: skip
        form.load(RunSpec.parse(spec, []))
        st.session_state["new.preset"] = None
        links.switch("new_run")


_previews: Recent[tuple[str, int, tuple[int, ...]], DatasetPreview] = Recent(8)


def _preview(spec: dict[str, Any], max_examples: int, changed: tuple[int, ...]) -> DatasetPreview:
    """The planner's answer, cached for the next look. Not by st.cache_data: inside of it nothing
    may be written, so the question could not be cancelled."""
    key = (json.dumps(spec, sort_keys=True), max_examples, changed)
    known = _previews.get(key)
    if known is not None:
        return known
    preview = wait("Reading, rendering and tokenising …", lambda: planner.look(spec, max_examples))
    # without its tokenizer there is no preview yet, which may change at any time
    return preview if preview.tokenizer_bytes is not None else _previews.put(key, preview)


def _offer_tokenizer(spec: dict[str, Any], size: int) -> None:
    """That the tokenizer is not here, with a button that fetches it: nothing else does."""
    st.info(
        escape_markdown(f"The tokenizer of '{spec['model']}' is not on this machine."),
        icon=":material/info:",
    )
    label = f"Download it ({formatting.size(size)})"
    if st.button(label, icon=":material/download:", key="data.fetch_tokenizer"):
        wait("Fetching the tokenizer …", lambda: planner.look(spec, 1, may_fetch=True))
        st.rerun()


def load_preview(spec: dict[str, Any]) -> DatasetPreview | None:
    """What the planner sees in the set; None with the reasons shown."""
    max_examples = st.segmented_control(
        "Look at the first",
        PREVIEW_SIZES,
        format_func=lambda count: quantity(count, "row"),
        default=PREVIEW_SIZES[0],
        required=True,
        key="data.most",
        persist_state="session",
        label_visibility="collapsed",
    )
    try:
        changed = _identities(spec)
        preview = _preview(spec, max_examples, changed)
        if preview.tokenizer_bytes is None:
            return preview
        _offer_tokenizer(spec, preview.tokenizer_bytes)
    except SpecError as error:
        for problem in error.problems[:MAX_PROBLEMS]:
            st.error(
                escape_markdown(f"{problem.field}: {problem.message}"), icon=":material/error:"
            )
        if len(error.problems) > MAX_PROBLEMS:
            st.caption(f"and {len(error.problems) - MAX_PROBLEMS} more")
    except LabError as error:
        tell(error)
    return None


def _identities(spec: dict[str, Any]) -> tuple[int, ...]:
    """Of the files that a preview reads. Raises LabError where one is missing."""
    data = spec["data"]
    names = filter(None, (data["dataset"], data.get("eval_dataset")))
    return tuple(number for name in names for number in file_identity(catalog.resolve(name).path))


def show_counts(preview: DatasetPreview) -> None:
    counts = preview.counts or ExampleCounts()
    rows = f"{preview.examples:,}" + ("" if preview.is_whole else "+")
    shown = [
        ("Examples", rows, "Read for this preview; + means the file has more."),
        ("Tokens", formatting.count(counts.tokens), None),
        (
            "Trained tokens",
            formatting.percent(counts.counted / max(1, counts.tokens)),
            "Share of tokens that count in the loss.",
        ),
        ("Truncated", f"{counts.truncated:,}", "Examples longer than the sequence length."),
        ("No trained tokens", f"{counts.without_loss:,}", "Dropped: every token is masked."),
        ("Invalid rows", f"{counts.invalid_rows:,}", None),
        ("Duplicates", f"{counts.duplicates:,}", "Examples identical to an earlier one."),
        ("Near-duplicates", f"{counts.near_duplicates:,}", "Jaccard similarity of 0.8 or more."),
        (
            "Leakage",
            f"{counts.leaks:,}",
            f"Held-out examples that (nearly) repeat a training example, of {counts.held_out:,}.",
        ),
    ]
    grid = st.grid(3, min_column_width=120)
    for name, value, help in shown:
        with grid.cell():
            st.metric(name, value, help=help)


def show_template_notes(preview: DatasetPreview) -> None:
    """What the template does, in words."""
    template = preview.template or TemplateView()
    end = f"**{escape_markdown(template.end_token)}**"
    if preview.has_chats:
        default = "the tokenizer's own" if template.has_own else "**plain**, the tokenizer has none"
        name = default if template.name == "auto" else f"**{escape_markdown(template.name)}**"
        st.markdown(f":material/forum: Chat template: {name}; end-of-turn token {end}.")
        if template.inserts:
            st.markdown(":material/warning: Without a system prompt the template inserts this one:")
            st.code(plain(template.inserts), language=None, wrap_lines=True)
        for note in template.notes:
            st.markdown(f":material/info: {escape_markdown(note)}")
    else:
        st.markdown(
            f":material/article: Plain text (continued pretraining); each document ends with {end}."
        )
    for note in preview.notes:
        st.markdown(f":material/info: {escape_markdown(note)}")
    padding = preview.padding
    if padding is not None:
        shares = map(formatting.percent, (padding.shuffled, padding.grouped, padding.packed))
        text = ":material/compress: Padding: {} shuffled, {} grouped by length, {} packed ({})."
        pieces = quantity(padding.examples, "example"), quantity(padding.sequences, "sequence")
        st.markdown(text.format(*shares, " into ".join(pieces)))


COLOURS = {"light": ("#0b7a7526", "#075e5a"), "dark": ("#2bb8ac40", "#8ee5dc")}


def coloured(tokens: Sequence[Token], lengths: Sequence[int] = ()) -> str:
    """Tokens as HTML, what the loss counts on a coloured ground. All text is escaped."""
    back, ink = COLOURS["dark" if chart_style.is_dark() else "light"]
    ends = set()
    end = 0
    for length in lengths[:-1]:
        end += length
        ends.add(end)
    parts = []
    for i, token in enumerate(tokens):
        if i in ends:
            parts.append("<hr style='margin:4px 0;opacity:.5'>")
        shown = html.escape(visible(token.text), quote=True).replace("\n", "↵<br>")
        title = f"token {token.id}"
        style = f"background:{back};color:{ink}" if token.counted else "opacity:.75"
        parts.append(
            f"<span title='{title}' style='{style};border-right:1px solid #8886;"
            f"padding:1px 0'>{shown}</span>"
        )
    body = "".join(parts)
    return (
        "<div dir='auto' style='font-family:monospace;font-size:13px;line-height:1.7;"
        f"white-space:pre-wrap;overflow-wrap:anywhere'>{body}</div>"
    )


def visible(text: str) -> str:
    """A text to be looked at closely: also tabs and blanks of other widths than a letter's."""
    return "".join(
        char if char.isprintable() or char == "\n" else number_of(char)
        for char in plain(text).replace("\t", "→")
    )


def show_rows(preview: DatasetPreview) -> None:
    """One row at a time: as text, and as tokens with the mask."""
    examples = preview.rows
    with st.container(horizontal=True, vertical_alignment="bottom"):
        row_number = st.number_input(
            f"Example (1 to {len(examples)})", 1, len(examples), 1, key="data.row", width=200
        )
        display = st.segmented_control(
            "View", ["tokens", "text"], default="tokens", required=True, key="data.as"
        )
    example = examples[int(row_number) - 1]
    cut = " (truncated)" if example.truncated else ""
    st.caption(
        f"Row {example.row} of the file: {quantity(len(example.tokens), 'token')}{cut}, "
        f"{example.counted} trained (highlighted)."
    )
    with st.container(border=True, height=340):
        if display == "text":
            st.code(visible(example.text), language=None, wrap_lines=True)
        else:
            st.html(coloured(example.tokens))


def show_packed(preview: DatasetPreview, length: int, view: View) -> None:
    if not preview.packed:
        st.info("This method does not support packing.")
        return
    chart_style.show(
        charts.packed(preview.packed, length, view), "data.packed",
        f"{quantity(len(preview.packed), 'packed sequence')} and the examples in each",
    )  # fmt: skip
    st.caption(
        "Each bar is one packed sequence; its segments are examples that cannot attend to each "
        "other. The number in a segment is the example's row in the file."
    )


def show_lengths(preview: DatasetPreview, length: int, view: View) -> None:
    chart = charts.lengths(preview.lengths, length, view)
    chart_style.show(chart, "data.lengths", "Number of examples by length in tokens")


def show_invalid_rows(invalid: Sequence[InvalidRows]) -> None:
    if not invalid:
        st.success("All rows read are valid.", icon=":material/check_circle:")
        return
    table = [
        {"reason": rows.reason, "rows": rows.count, "first row": rows.first_row} for rows in invalid
    ]
    st.dataframe(plain(table), hide_index=True, width="stretch")


def first_batch(run: RunDir) -> None:
    """What the model saw at the very first step of a run, token by token."""
    rows = FirstBatch.from_json(read_object(run.first_batch)).rows
    if not rows:
        return
    with st.expander("First training batch, token by token", icon=":material/dataset:"):
        for row in rows:
            sources = ", ".join(map(str, row.sources))
            st.caption(
                f"Rows {sources} of the file: {quantity(row.length, 'token')}, "
                f"{row.counted} trained (highlighted)."
            )
            st.html(coloured(row.tokens, row.lengths))
