"""The models side by side: which they are, and the row of heads in which they are chosen."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import streamlit as st

from lab import methods, paths
from lab.atomic_files import part, read_object
from lab.chat import adapters
from lab.chat import models as chat_models
from lab.chat.answers import AnswerReceipt, ProofRecord
from lab.chat.conversations import MAX_MODELS, Chat
from lab.errors import LabError
from lab.formatting import quantity
from lab.runs import index, outcomes
from lab.runs.colours import NAMES
from lab.ui import adapter_field, colours
from lab.ui.markdown_safety import escape_markdown, plain


@dataclass(frozen=True)
class Pane:
    """A model as a pane shows it. `title` and `kind` are plain text, `dot` is Markdown."""

    name: str
    title: str
    kind: str
    dot: str
    loss: float | None = None

    @property
    def label(self) -> str:
        """One line of Markdown."""
        loss = "" if self.loss is None else f" · {self.loss:.2f}"
        return f"{self.dot} **{escape_markdown(self.title)}** · {escape_markdown(self.kind)}{loss}"

    @property
    def heading(self) -> str:
        return f"{self.dot} **{escape_markdown(self.title)}**"


def pane(name: str) -> Pane:
    """The pane of `name`, also where its run has been deleted."""
    if name.startswith("base:"):
        model = name.removeprefix("base:")
        titles = chat_models.available()
        return Pane(name, titles.get(name, model.split("/")[-1]), "base model", colours.BASE_DOT)
    if name.startswith(adapters.PREFIX):
        adapter_id, base = adapters.split(name)
        kind = f"adapter on {base.rpartition('/')[2]}" if base else "adapter"
        colour = NAMES[zlib.crc32(name.encode()) % len(NAMES)]
        return Pane(name, adapter_id.rstrip("/").rpartition("/")[2], kind, colours.dot(colour))
    run_id, _, step = name.removeprefix("run:").partition("@")
    try:
        entry = index.entry(paths.run_dir(run_id))
        title = methods.get(entry.method).title
    except LabError:
        return Pane(name, run_id[-12:], "deleted", colours.BASE_DOT)
    kind = f"{title}, step {step}" if step else title
    loss = None if step else outcomes.outcome(paths.run_dir(run_id)).loss
    return Pane(name, entry.name or title, kind, colours.dot(entry.colour), loss)


def chosen(titles: dict[str, str], chat: Chat | None) -> list[str]:
    """The models of the next question: those of the address, of the conversation, or at first a
    base and the newest results made from it."""
    in_address = st.query_params.get("models", "")
    if in_address and st.session_state.get("chat.address") != in_address:
        st.session_state["chat.address"] = in_address
        names = [name for name in in_address.split(",") if _is_known(name, titles)]
        if names:
            _remember(names[:MAX_MODELS])
    run = f"run:{st.query_params.get('run', '')}"
    if "run" not in st.query_params:  # the link was followed; the next one is a new one
        st.session_state.pop("chat.asked_run", None)
    if run in titles and st.session_state.get("chat.asked_run") != run:
        st.session_state["chat.asked_run"] = run
        _remember([name for name in (_base_of(run), run) if name in titles])
    if chat is not None and st.session_state.get("chat.panes_of") != chat.id:
        st.session_state["chat.panes_of"] = chat.id
        _remember([name for name in chat.models if _is_known(name, titles)] or _first(titles))
    names = st.session_state.get("chat.models")
    if not names or not all(_is_known(name, titles) for name in names):
        _remember([name for name in names or [] if _is_known(name, titles)] or _first(titles))
    return list(st.session_state["chat.models"])


def _is_known(name: str, titles: dict[str, str]) -> bool:
    """Whether there is such a model: one of the titles, an adapter, a checkpoint of any run, also
    of one that has no result yet, or the base of a run."""
    if name.startswith(adapters.PREFIX):
        return adapters.is_name(name)
    if name in titles or adapter_field.is_base(name):
        return True
    if name.startswith("base:"):
        return name.removeprefix("base:") in {entry.model for entry in index.entries()}
    step = name.partition("@")[2]
    return step.isdecimal() and int(step) in checkpoints(name)


def _first(titles: dict[str, str]) -> list[str]:
    """The base and the two newest results of it."""
    results = [name for name in titles if name.startswith("run:")]
    if not results:
        return list(titles)[:1]
    base = _base_of(results[0])
    of_base = [name for name in results if _base_of(name) == base][:2]
    return [name for name in (base, *of_base) if name in titles]


def _base_of(name: str) -> str:
    run = paths.run_dir(name.removeprefix("run:"))
    return f"base:{index.entry(run).model}"


def _remember(names: list[str]) -> None:
    st.session_state["chat.models"] = names
    if not any("," in name for name in names):
        address = ",".join(names)
        st.session_state["chat.address"] = address
        st.query_params["models"] = address
    st.query_params.pop("run", None)


def heads(names: list[str], titles: dict[str, str], chat: Chat | None) -> None:
    """One popover a model, in which another one is chosen, and one more to add a model."""
    row = st.container(horizontal=True)
    for pane_index, name in enumerate(names):
        with row.popover(pane(name).label, width="stretch", key=f"chat.pane.{pane_index}"):
            _choose(pane_index, names, titles)
            _facts(name, chat)
            if len(names) > 1 and st.button(
                "Remove", icon=":material/close:", key=f"chat.remove.{pane_index}"
            ):
                _remember([other for other in names if other != name])
                st.rerun()
    if len(names) < MAX_MODELS:
        others = [name for name in titles if name not in names]
        key = f"chat.add_to.{len(names)}"  # another one, which is closed, once a model is added
        with row.popover("Add", icon=":material/add:", key=key, help="Add a model"):
            if not others:
                st.caption("Train a model: its result appears here.")

            def add(more: list[str]) -> None:
                _remember([*names, *more][:MAX_MODELS])
                st.rerun()

            for name in others[:30]:
                if st.button(pane(name).label, key=f"chat.add.{name}", type="tertiary"):
                    add([name])
            adapter_field.add_adapter(names, add)


def _choose(pane_index: int, names: list[str], titles: dict[str, str]) -> None:
    """The model of one pane, and the checkpoint of its run."""
    name = names[pane_index]
    model = name.partition("@")[0] if name.startswith("run:") else name
    options = [other for other in titles if other == model or other not in names]
    if model not in options:
        options.insert(0, model)
    model = st.selectbox(
        "Model", options, options.index(model), key=f"chat.model.{pane_index}.{name}",
        format_func=lambda option: str(plain(titles.get(option, option))),
    )  # fmt: skip
    new = model
    if model.startswith("run:"):
        steps = checkpoints(model)
        if steps:
            current = int(name.partition("@")[2] or 0) if name.startswith(model) else 0
            choices = [0, *steps] if model in titles else steps  # it may have no result yet
            step = st.selectbox(
                "Weights", choices, choices.index(current) if current in choices else 0,
                key=f"chat.step.{pane_index}.{model}",
                format_func=lambda s: f"Checkpoint of step {s}" if s else "Result",
                help="Chat with an earlier state of the run.",
            )  # fmt: skip
            new = f"{model}@{step}" if step else model
    if new != name and new not in names:
        _remember([*names[:pane_index], new, *names[pane_index + 1 :]])
        st.rerun()


def checkpoints(name: str) -> list[int]:
    """The steps of the run's checkpoints, in ascending order; none of a run that is gone."""
    try:
        run = paths.run_dir(name.removeprefix("run:").partition("@")[0])
    except LabError:
        return []
    steps = (path.name.removeprefix("step-") for path in run.checkpoints.glob("step-*"))
    return sorted(int(step) for step in steps if step.isdecimal())


def _facts(name: str, chat: Chat | None) -> None:
    """What the last answer proved of this model."""
    answers = [turn.answers[name] for turn in chat.turns if name in turn.answers] if chat else []
    finished = [answer for answer in answers if answer.receipt]
    if not finished:
        st.caption("Checks of the base model and the adapter appear here with the first answer.")
        return
    last = finished[-1]
    if last.context:
        st.caption(f"{last.prompt_tokens + last.tokens:,} of {last.context:,} tokens of context")
        st.progress(min(1.0, (last.prompt_tokens + last.tokens) / last.context))
    if last.kept_tokens:
        read = last.prompt_tokens - last.kept_tokens
        st.caption(
            f"New: {read:,} of {quantity(last.prompt_tokens, 'prompt token')}; the others come "
            "from the prompt cache"
        )
    for line in proof_lines(AnswerReceipt.from_json(last.receipt)):
        st.caption(line)


def proof_lines(receipt: AnswerReceipt) -> list[str]:
    """Lines of Markdown on what was proven when the model was loaded."""
    proof = receipt.proof or ProofRecord()
    lines = []
    if receipt.template_of:
        lines.append(f"Asked with the chat template of {escape_markdown(receipt.template_of)}")
    difference = proof.base_difference
    if difference is not None:
        icon = ":material/check:" if difference == 0 else ":material/warning:"
        lines.append(f"{icon} The base is the base: largest logit difference {difference:.2g}")
    if proof.tensors is not None:
        whole = proof.tensors == proof.tensors_loaded and proof.effect
        icon = ":material/check:" if whole else ":material/warning:"
        lines.append(
            f"{icon} The trained weights are in the model: {proof.tensors_loaded} of "
            f"{quantity(proof.tensors, 'tensor')}; logits differ from the base's "
            f"by up to {_two_digits(proof.effect)}"
        )
    return lines


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def system_prompt_of(names: list[str]) -> str:
    """The system prompt that the first result was trained with."""
    for name in names:
        if name.startswith("run:"):
            try:
                run = paths.run_dir(name.removeprefix("run:").partition("@")[0])
            except LabError:
                continue
            return str(part(read_object(run.spec) or {}, "data").get("system_prompt") or "")
    return ""
