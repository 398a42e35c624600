"""The models of a chat: what their names mean, and how they are loaded.

A model is named base:ID, run:ID (its result), run:ID@STEP (a checkpoint), or adapter:ID for an
adapter that PEFT has written (`lab.chat.adapters`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import methods, paths
from lab.atomic_files import part, read_object
from lab.chat import adapters
from lab.chat.adapters import PeftAdapter
from lab.data import chat_template, rendering, template_lock
from lab.errors import LabError
from lab.formatting import quantity
from lab.hub import repository
from lab.hub.branches import BranchWatch
from lab.library_imports import import_libraries
from lab.methods import Context
from lab.methods.parts import adapter_files
from lab.models import catalog, hub, moved_base, weights, weights_hash
from lab.models.catalog import ModelSource
from lab.models.context_length import context_length, text_length
from lab.paths import RunDir
from lab.runs import record_reader
from lab.schema import quote
from lab.spec import RunSpec

if TYPE_CHECKING:
    from lab.chat.engine.prompt_cache import KeptPrompts
    from lab.chat.engine.proof import Proof


FORMS = "base:ID, run:ID, run:ID@STEP or adapter:ID"
CHECKPOINT_WEIGHTS = "trainable.safetensors"  # the other files of a checkpoint are for a resume
ASKED_S = 1.0  # for the Hub's word on branches, once a model is in memory


@dataclass(frozen=True)
class ModelRef:
    """A model to talk to: a base, a result of `run`, or an `adapter`. `template_of` is the result
    or adapter whose chat template a base is asked with (see `with_shared_template`)."""

    name: str
    base: str
    run: RunDir | None = None
    step: int | None = None
    template_of: ModelRef | None = None
    adapter: PeftAdapter | None = None

    @property
    def is_base(self) -> bool:
        return self.run is None and self.adapter is None

    @property
    def weight_files(self) -> list[Path]:
        """What is loaded beside the base: the files of a result, an adapter or a checkpoint."""
        if self.adapter is not None:
            return sorted(self.adapter.folder.glob("*.safetensors"))
        if self.run is None:
            return []
        if self.step is None:
            return sorted(self.run.artifact.glob("*.safetensors"))
        return [self.run.checkpoints / f"step-{self.step}" / CHECKPOINT_WEIGHTS]

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
        if self.adapter is not None:
            written = {"adapter": self.adapter.state}
        return {"written": written, "base": weights_hash.state_of(self.base)}

    @property
    def trained_on(self) -> Any:
        """What the run keeps of its base; None for a run from before it was kept."""
        if self.run is None:
            return None
        if self.step is None:
            return self.receipt.get("base")
        return record_reader.last_event(self.run, weights_hash.EVENT)


def parse(name: str) -> ModelRef:
    """The model that `name` means. Of an adapter of the Hub the config is read. Raises LabError for
    anything but the four forms."""
    kind, _, rest = name.partition(":")
    if kind == "adapter" and rest:
        adapter = adapters.find(name)
        return ModelRef(name, adapter.base, adapter=adapter)
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
            checkpoints = (
                ", ".join(path.name[5:] for path in run.checkpoints.glob("step-*")) or "none"
            )
            raise LabError(f"{run_id} has no checkpoint of step {step}.", f"Kept: {checkpoints}.")
        if not at and not run.artifact.is_dir():
            raise LabError(
                f"{run_id} has no trained model yet.", "Wait until it ends, or name a step."
            )
        model, kept_step = str(spec.get("model", "")), int(step) if at else None
        recorded = ModelRef(name, model, run, kept_step).trained_on
        commit = part({"base": recorded}, "base").get("commit")
        base = repository.at_commit(moved_base.model_of(model, recorded), commit)
        return ModelRef(name, base, run, kept_step)
    raise LabError(f"'{quote(name)}' is not a model.", f"Write {FORMS}.")


def with_shared_template(names: list[ModelRef]) -> list[ModelRef]:
    """The models of one question. A base beside its results is asked with the chat template of the
    first of them, with its arguments and date, so that what differs is the weights alone."""
    results: dict[str, ModelRef] = {}
    for named in names:
        if not named.is_base:
            results.setdefault(named.base, named)
    return [
        replace(named, template_of=results.get(named.base)) if named.is_base else named
        for named in names
    ]


@dataclass(frozen=True)
class PromptTerms:
    """How a model reads a conversation, which is known before its weights are in memory."""

    tokenizer: Any
    length: int | None = None  # the most tokens of text, prompt and answer together
    virtual: int = 0  # tokens of the method, which are not counted in `length`
    note: str = ""  # what a person should know of the prompt


def prompt_terms(named: ModelRef) -> PromptTerms:
    """The tokenizer with the template of the model, and its length. Raises LabError."""
    source = catalog.resolve(named.base)
    config = weights.load_config(source)
    if named.adapter is not None:
        tokenizer = _carried_tokenizer(named.adapter.folder, named.name) or (
            weights.load_tokenizer(source)
        )
        chat_template.set_chat_template(tokenizer)
        virtual = named.adapter.virtual_tokens
        length = context_length(config)
        return PromptTerms(tokenizer, length and length - virtual, virtual)
    if named.run is None:
        tokenizer = weights.load_tokenizer(source)
        note = ""
        if named.template_of is None:
            chat_template.set_chat_template(tokenizer)
        else:
            note = _take_template(tokenizer, named.template_of)
        return PromptTerms(tokenizer, context_length(config), note=note)
    spec = RunSpec.of_run(named.run)
    method, options = methods.get(spec.method["name"]), spec.method_config
    # that of a run without a result yet is the base's
    tokenizer = _carried_tokenizer(named.run.artifact, named.run.id) or (
        weights.load_tokenizer(source)
    )
    method.extend_tokenizer(tokenizer, options)
    # a result carries its template
    chosen = spec.data.template if named.step is not None else "auto"
    chat_template.set_up_template(tokenizer, replace(spec.data, template=chosen))
    length = text_length(config, method, options)
    return PromptTerms(tokenizer, length, sum(method.virtual_tokens(options)))


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
    probe: Any = None  # of a base: logits on proof.probe_ids, from before it had variants
    proof: Proof | None = None
    is_shared: bool = True  # whether products are joined with those of its base
    prompts: KeptPrompts | None = None  # what it has read; None: nothing is kept
    base_weights: str = ""  # of the base that it stands on, as weights_hash.hash_of


def load(named: ModelRef, base: Any = None) -> LoadedModel:
    """The model, ready to answer, on the GPU if there is one.

    `base` is its base model if that is in memory already; it is left as it was, and what the
    method does not change is shared with it. Raises LabError if the base is not the one that the
    result was trained on.
    """
    import_libraries()
    import torch

    source = catalog.resolve(named.base)
    branches = BranchWatch(lambda: _moved_on(named, source))
    proof, version = named.receipt, named.version  # before the weights are read
    terms = prompt_terms(named)
    tokenizer = terms.tokenizer
    note, identity = "", weights_hash.identify(source)
    if named.run is not None:
        note = weights_hash.check(named.trained_on, identity, named.name)
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
    if named.adapter is not None:
        proof = named.adapter.receipt()
        if base is None or named.adapter.changes_base:
            base = weights.load_model(source, dtype)
        _check_vocabulary(base, tokenizer, named.name)
        model = adapter_files.read(
            weights.share_weights(base), named.adapter.folder, named.adapter.kind
        )
    elif named.run is None:
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
    return LoadedModel(
        model.eval(), tokenizer, proof, version, note, terms.length, terms.virtual,
        base_weights=identity.weights,
    )  # fmt: skip


def _check_vocabulary(base: Any, tokenizer: Any, name: str) -> None:
    """Raise LabError for an adapter whose tokenizer has tokens that its base has no rows for."""
    rows, most = base.get_input_embeddings().weight.shape[0], len(tokenizer)
    if most > rows:
        raise LabError(
            f"The tokenizer of {name} has {most:,} tokens, and its base has rows for {rows:,}.",
            "It was trained with a longer vocabulary; merge it into its base with PEFT.",
        )


def _moved_on(named: ModelRef, source: ModelSource) -> str:
    """A sentence if the branch that the run was set up with is at another commit by now."""
    if named.run is None:
        return ""
    requested = (RunSpec.requested(read_object(named.run.spec) or {}) or {}).get("model")
    return hub.moved_on(source, requested) if isinstance(requested, str) else ""


def _carried_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer that a result or an adapter carries; None if it has none."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    return weights.load_tokenizer(ModelSource(name, str(folder), local_only=True))


def _take_template(tokenizer: Any, result: ModelRef) -> str:
    """Let a base's tokenizer render as that of a result; a note where its tokens differ still."""
    trained = prompt_terms(result).tokenizer
    tokenizer.chat_template = trained.chat_template
    known, vocabulary = tokenizer.get_vocab(), trained.get_vocab()
    if tokenizer.eos_token != trained.eos_token and trained.eos_token in known:
        tokenizer.eos_token = trained.eos_token
    settings = rendering.settings_of(trained)
    rendering.configure(tokenizer, args=settings.args, date=settings.date)
    if known == vocabulary:
        return ""
    differing = quantity(len(known.items() ^ vocabulary.items()), "token")
    return (
        f"The tokenizer of {result.name} differs from the base's in {differing}: the prompts have "
        "the same text, and may have other tokens."
    )


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


def available() -> dict[str, str]:
    """Models to talk to: name → title. Bases first, then results, newest first, then the adapters
    in the hub's cache."""
    from lab.models.catalog import BUILT_IN
    from lab.runs import index

    titles = {f"base:builtin:{model.name}": model.title for model in BUILT_IN if model.is_ready}
    results: dict[str, str] = {}
    for run in paths.all_runs():
        if run.artifact.is_dir():
            entry = index.entry(run)
            if not entry.model.startswith("builtin:"):
                titles.setdefault(f"base:{entry.model}", entry.model.split("/")[-1])
            results[f"run:{run.id}"] = f"{entry.name or entry.method} ({run.id[-4:]})"
    return titles | results | adapters.cached()
