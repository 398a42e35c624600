"""One prompt, several models, the same template and seed.

A model is named base:ID, run:ID (its result) or run:ID@STEP (a checkpoint).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

from lab import methods, paths
from lab.atomic_files import part, read_object
from lab.data import chat_template, stop_tokens, template_lock
from lab.errors import LabError
from lab.hub import repository
from lab.hub.branches import BranchWatch
from lab.methods import Context
from lab.models import catalog, hub, weights, weights_hash
from lab.models.catalog import ModelSource
from lab.models.context_length import context_length, room_for_answer, text_length
from lab.paths import RunDir
from lab.runs import record_reader
from lab.schema import quote
from lab.spec import RunSpec

ASKED_S = 1.0  # for the Hub's word on branches, once a model is in memory


@dataclass(frozen=True)
class ModelRef:
    """A model to talk to. `run` is None for a base."""

    name: str
    base: str
    run: RunDir | None = None
    step: int | None = None

    @property
    def receipt(self) -> dict[str, Any]:
        if self.run is None:
            return {}
        return read_object(self.run.artifact / "receipt.json") or {}

    @property
    def version(self) -> dict[str, Any]:
        """What differs as soon as other weights lie under this name: a resumed run writes its
        result anew, and may write its checkpoints anew; a base may be exchanged."""
        written = self.receipt
        if self.run is not None and self.step is not None:
            manifest = self.run.checkpoints / f"step-{self.step}" / "manifest.json"
            written = read_object(manifest) or {}
        return {"written": written, "base": weights_hash.state_of(self.base)}

    @property
    def trained_on(self) -> Any:
        """What the run keeps of its base; None for a run from before it was kept."""
        if self.run is None:
            return None
        if self.step is None:
            return self.receipt.get("base")
        return record_reader.last_event(self.run, weights_hash.EVENT)


@dataclass(frozen=True)
class GenerationSettings:
    """How to answer. `temperature` 0 takes the likeliest token each time."""

    seed: int = 0
    max_new_tokens: int = 128
    temperature: float = 0.0
    system_prompt: str | None = None


def parse(name: str) -> ModelRef:
    """The model that `name` means. Raises LabError for anything but the three forms."""
    kind, _, rest = name.partition(":")
    if kind == "base" and rest:
        catalog.resolve(rest)
        return ModelRef(name, rest)
    if kind == "run" and rest:
        run_id, at, step = rest.partition("@")
        run = paths.run_dir(run_id)
        spec = read_object(run.spec) or {}
        if at and not (step.isascii() and step.isdecimal()):
            raise LabError(f"'{quote(name)}': '{quote(step)}' is not a step.", "Write run:ID@STEP.")
        if at and not (run.checkpoints / f"step-{int(step)}").is_dir():
            kept = ", ".join(path.name[5:] for path in run.checkpoints.glob("step-*")) or "none"
            raise LabError(f"{run_id} has no checkpoint of step {step}.", f"Kept: {kept}.")
        if not at and not run.artifact.is_dir():
            raise LabError(
                f"{run_id} has no result to talk to.", "Wait until it ends, or name a step."
            )
        named = ModelRef(name, str(spec.get("model", "")), run, int(step) if at else None)
        commit = part({"base": named.trained_on}, "base").get("commit")
        return replace(named, base=repository.at_commit(named.base, commit))
    raise LabError(f"'{quote(name)}' names no model.", "Write base:ID, run:ID or run:ID@STEP.")


def answer_all(
    names: list[ModelRef], conversation: list[dict[str, str]], settings: GenerationSettings
) -> list[dict[str, Any]]:
    """An answer of each model to the same conversation, one after the other. Raises LabError, also
    where the conversation is too long for one of them, before any answers."""
    settings = replace(settings, system_prompt=shared_system_prompt(names, settings))
    for named in names:
        check_length(prompt_terms(named), named, conversation, settings)
    return [answer(load(named), named, conversation, settings) for named in names]


def shared_system_prompt(names: list[ModelRef], settings: GenerationSettings) -> str:
    """The one given, else the one that the first result was trained with: the same for all."""
    if settings.system_prompt is not None:
        return settings.system_prompt
    for named in names:
        if named.run is not None:
            stored = read_object(named.run.spec) or {}
            return str(part(stored, "data").get("system_prompt") or "")
    return ""


@dataclass(frozen=True)
class PromptTerms:
    """How a model reads a conversation, which is known before its weights are in memory."""

    tokenizer: Any
    length: int | None = None  # the most tokens of text, prompt and answer together
    virtual: int = 0  # tokens of the method, which are not counted in `length`


def prompt_terms(named: ModelRef) -> PromptTerms:
    """The tokenizer with the template of the model, and its length. Raises LabError."""
    source = catalog.resolve(named.base)
    config = weights.load_config(source)
    if named.run is None:
        tokenizer = weights.load_tokenizer(source)
        chat_template.set_chat_template(tokenizer)
        return PromptTerms(tokenizer, context_length(config))
    spec = RunSpec.of_run(named.run)
    method, options = methods.get(spec.method["name"]), spec.method_config
    tokenizer = _tokenizer(named.run, source)
    method.extend_tokenizer(tokenizer, options)
    # a result carries its template
    chosen = spec.data.template if named.step is not None else "auto"
    chat_template.set_up_template(tokenizer, replace(spec.data, template=chosen))
    length = text_length(config, method, options)
    return PromptTerms(tokenizer, length, sum(method.virtual_tokens(options)))


def check_length(
    terms: PromptTerms,
    named: ModelRef,
    conversation: list[dict[str, str]],
    settings: GenerationSettings,
) -> None:
    """Raise PromptTooLong if the conversation leaves no room for an answer."""
    prompt = render(terms.tokenizer, conversation, settings)
    ids = terms.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    room_for_answer(len(ids), terms.length, named.name, terms.virtual)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with the tokenizer that it was trained with."""

    model: Any
    tokenizer: Any
    receipt: dict[str, Any] = field(default_factory=dict)
    version: dict[str, Any] = field(default_factory=dict)  # as `ModelRef.version` was at the load
    note: str = ""  # what a person should know of it
    length: int | None = None  # as in PromptTerms
    virtual: int = 0


def load(named: ModelRef, base: Any = None) -> LoadedModel:
    """The model, ready to answer, on the GPU if there is one.

    `base` is its base model if that is in memory already; it is left as it was, and what the
    method does not change is shared with it. Raises LabError if the base is not the one that the
    result was trained on.
    """
    import torch

    source = catalog.resolve(named.base)
    branches = BranchWatch(lambda: _moved_on(named, source))
    proof, version = named.receipt, named.version  # before the weights are read
    terms = prompt_terms(named)
    tokenizer = terms.tokenizer
    note = ""
    if named.run is not None:
        note = weights_hash.check(named.trained_on, weights_hash.identify(source), named.name)
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
    if named.run is None:
        model = weights.load_model(source, dtype) if base is None else base
    else:
        spec = RunSpec.of_run(named.run)
        method, config = methods.get(spec.method["name"]), spec.method_config
        if base is None or method.needs_separate_base(config):
            model = weights.load_model(source, dtype, **method.load_kwargs(config))
        else:
            model = weights.share_weights(base)
        if named.step is None:
            model = method.load_saved(model, named.run.artifact)
        else:
            model = _at_step(model, method, spec, tokenizer, named)
    template_lock.check_tokenizer(part(proof, "lock"), tokenizer)
    note = " ".join(filter(None, (note, *branches.notes(ASKED_S))))
    model = weights.on_device(model, "cuda" if on_gpu else "cpu")
    return LoadedModel(model.eval(), tokenizer, proof, version, note, terms.length, terms.virtual)


def _moved_on(named: ModelRef, source: ModelSource) -> str:
    """A sentence if the branch that the run was set up with is at another commit by now."""
    if named.run is None:
        return ""
    asked = part(read_object(named.run.spec), "asked").get("model")
    return hub.moved_on(source, asked) if isinstance(asked, str) else ""


def _tokenizer(run: RunDir, source: ModelSource) -> Any:
    """The tokenizer that the result carries; for a run without a result yet, the base's."""
    if (run.artifact / "tokenizer_config.json").is_file():
        folder = str(run.artifact)
        return weights.load_tokenizer(ModelSource(run.id, folder, local_only=True))
    return weights.load_tokenizer(source)


def _at_step(model: Any, method: Any, spec: RunSpec, tokenizer: Any, named: ModelRef) -> Any:
    import torch

    from lab.train import checkpoint

    assert named.run is not None
    saved = checkpoint.verify(named.run.checkpoints / f"step-{named.step}")
    # answers are made without autocast: the trained parts take the type of the base
    own_type = "float32" if model.dtype == torch.float32 else "bfloat16"
    spec = replace(spec, train=replace(spec.train, adapter_precision=own_type))
    context = Context(spec, tokenizer)
    method.prepare(model, spec.method_config, context)
    model = method.apply(model, spec.method_config, context)
    with checkpoint.readable(saved.path):
        method.load_state(model, checkpoint.method_state(saved.path))
    checkpoint.load_weights(saved.path, model, cast=True)
    return model


def answer(
    loaded: LoadedModel,
    named: ModelRef,
    conversation: list[dict[str, str]],
    settings: GenerationSettings,
) -> dict[str, Any]:
    """{"model", "text", "token_ids", "is_at_context_end", "finish", "seconds", "receipt"} of one
    model."""
    final: dict[str, Any] = {}
    for event in stream(loaded, named, conversation, settings):
        final = event
    return final


def stream(
    loaded: LoadedModel,
    named: ModelRef,
    conversation: list[dict[str, str]],
    settings: GenerationSettings,
    gone: threading.Event | None = None,
) -> Generator[dict[str, Any]]:
    """{"delta"} for each piece of text as it comes, then the whole answer.

    Ending the iteration early stops the model at its next token; so does `gone`, which another
    thread may set, since many tokens may come before the next piece. An answer ends where the
    model's context does. Raises PromptTooLong if the prompt leaves no room for one.
    """
    import torch
    from transformers import TextIteratorStreamer

    model, tokenizer = loaded.model, loaded.tokenizer
    prompt = render(tokenizer, conversation, settings)
    stops = stop_tokens.ids(tokenizer, model)
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    prompt_tokens = inputs["input_ids"].shape[1]
    room = room_for_answer(prompt_tokens, loaded.length, named.name, loaded.virtual)
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ended, gone = threading.Event(), gone or threading.Event()
    outcome: list[Any] = []

    def generate() -> None:
        try:
            torch.manual_seed(settings.seed)
            with torch.inference_mode():
                outcome.append(
                    model.generate(
                        input_ids=inputs["input_ids"],
                        attention_mask=inputs["attention_mask"],
                        max_new_tokens=min(settings.max_new_tokens, room),
                        pad_token_id=tokenizer.pad_token_id,
                        eos_token_id=stops,
                        streamer=pieces,
                        stopping_criteria=[
                            lambda ids, scores, **_: _all(ids, ended.is_set() or gone.is_set())
                        ],
                        **sampling(settings),
                    )
                )
        except Exception as error:
            outcome.append(error)
        finally:
            pieces.end()

    started = time.perf_counter()
    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    try:
        for piece in pieces:
            if piece:
                yield {"delta": piece}
    finally:
        ended.set()
        thread.join()
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    ids = outcome[0][0, prompt_tokens:].tolist()
    yield {
        "model": named.name,
        "text": tokenizer.decode(ids, skip_special_tokens=True).strip(),
        "token_ids": ids,
        "is_at_context_end": len(ids) == room,
        "finish": "stop" if ids and ids[-1] in stops else "length",
        "seconds": time.perf_counter() - started,
        "receipt": receipt(loaded, named, prompt, inputs["input_ids"][0].tolist(), settings),
    }


def _all(ids: Any, value: bool) -> Any:
    """`value` for each row of a batch, as a stopping criterion has to answer."""
    import torch

    return torch.full((ids.shape[0],), value, dtype=torch.bool, device=ids.device)


def render(tokenizer: Any, conversation: list[dict[str, str]], settings: GenerationSettings) -> str:
    messages = chat_template.with_system(tuple(conversation), settings.system_prompt or "")
    return chat_template.render(tokenizer, messages, to_answer=True)


def sampling(settings: GenerationSettings) -> dict[str, Any]:
    """Greedy at temperature 0; otherwise plain sampling, without the model's own habits."""
    if settings.temperature <= 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": settings.temperature, "top_p": 1.0, "top_k": 0}


def receipt(
    loaded: LoadedModel, named: ModelRef, prompt: str, ids: list[int], settings: GenerationSettings
) -> dict[str, Any]:
    """Proof of equal terms: the exact prompt, its ids, the seed, and which weights answered."""
    differs = template_lock.warning(
        part(loaded.receipt, "lock"), loaded.tokenizer, settings.system_prompt or ""
    )
    return {
        "prompt": prompt,
        "prompt_hash": hashlib.sha256(repr(ids).encode()).hexdigest()[:16],
        "prompt_tokens": len(ids),
        "system_prompt": settings.system_prompt or "",
        "template_hash": hashlib.sha256(str(loaded.tokenizer.chat_template).encode()).hexdigest()[
            :16
        ],
        "seed": settings.seed,
        "temperature": settings.temperature,
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        "base": named.base,
        "step": named.step,
        "warning": f"{loaded.note} {differs}".strip(),
        "weights": loaded.receipt.get("weights", {}) if named.step is None else {},
    }
