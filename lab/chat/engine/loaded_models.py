"""The models in memory: one base, and variants as trees of modules over its very weights."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import threading
import time
import weakref
from collections import OrderedDict
from dataclasses import replace
from typing import Any, TypeAlias

import psutil
import torch

from lab import methods
from lab.chat import generate
from lab.chat import models as chat_models
from lab.chat.engine import proof, together
from lab.chat.engine.prompt_cache import KeptPrompts
from lab.chat.models import LoadedModel, ModelRef, PromptTerms
from lab.chat.settings import GenerationSettings
from lab.errors import LabError
from lab.formatting import quantity, size
from lab.models import catalog, hub
from lab.recent import Recent
from lab.runs import index
from lab.spec import RunSpec

TERMS_CACHE_SIZE = 32  # models whose tokenizer and length are remembered
BUDGET_SHARE = 0.6  # of the memory that is free when the first model is loaded


# (model, result whose template it has) → (their versions, how the model reads a conversation)
Terms: TypeAlias = Recent[tuple[str, str], tuple[Any, PromptTerms]]


class LoadedModels:
    """The models in memory; the one used least recently is put away when the budget is full."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        self.models: OrderedDict[str, LoadedModel] = OrderedDict()
        self.budget_bytes = budget_bytes
        self.turn = threading.Lock()  # held by whoever loads or answers
        self.last_used = time.monotonic()
        # how the models that were asked last read a conversation; with tokenizers of their own,
        # since those of the models in memory may be at work in another thread
        self.terms: Terms = Recent(TERMS_CACHE_SIZE)
        self.shared_templates: Terms = Recent(TERMS_CACHE_SIZE)  # of bases, for those in memory
        self.measuring = threading.Lock()
        # by model: the model that was looked at, and what it holds
        self._storages: dict[str, tuple[weakref.ref[Any], dict[int, int]]] = {}

    def check_length(
        self, named: ModelRef, messages: list[dict[str, str]], settings: GenerationSettings
    ) -> None:
        """Raises LabError for a model that cannot be read, PromptTooLong for a conversation that
        leaves no room for an answer."""
        with self.measuring:
            try:
                terms = _prompt_terms(self.terms, named)
                generate.check_length(terms, named, messages, settings)
            finally:
                self.last_used = time.monotonic()

    def holds(self, named: ModelRef) -> bool:
        """Whether the model is in memory as it is on disk: a resumed run has new weights."""
        loaded = self.models.get(named.name)
        return loaded is not None and loaded.version == named.version

    def get(self, named: ModelRef, in_use: frozenset[str] = frozenset()) -> LoadedModel:
        """The model, loaded if need be, with its proof. Models of `in_use` are not put away.

        Raises LabError, also for a result of which nothing is in the model that was built.
        """
        base_ref = ModelRef(f"base:{named.base}", named.base)
        in_use |= {base_ref.name, named.name}
        base = self._current(base_ref)
        if base is None:
            self._make_room(base_ref, in_use)
            base = self._load_base(base_ref)
        model = base if named.is_base else self._current(named)
        if model is None:
            self._make_room(named, in_use)
            model = _load_result(named, base)
            self.models[named.name] = model
        for name in (base_ref.name, named.name):
            self.models.move_to_end(name)
        self._fit(in_use)
        self.last_used = time.monotonic()
        if named.template_of is not None:
            terms = _prompt_terms(self.shared_templates, named)
            return replace(model, tokenizer=terms.tokenizer, note=terms.note)
        return model

    def _current(self, named: ModelRef) -> LoadedModel | None:
        """The model in memory; one whose weights on disk have changed is put away."""
        if self.holds(named):
            return self.models[named.name]
        self.models.pop(named.name, None)
        return None

    def _load_base(self, base_ref: ModelRef) -> LoadedModel:
        loaded = chat_models.load(base_ref)
        together.share_products(loaded.model)
        logits = proof.probe(loaded.model, proof.probe_ids(loaded.model))
        loaded = replace(
            loaded, probe=logits, proof=proof.Proof(base_difference=0.0), prompts=KeptPrompts()
        )
        self.models[base_ref.name] = loaded
        return loaded

    def _make_room(self, named: ModelRef, in_use: frozenset[str]) -> None:
        """Put idle models away until there is memory for what `named` loads. Raises LabError where
        that is not enough."""
        needed = _bytes_to_load(named)
        for name in [name for name in self.models if name not in in_use]:
            if needed <= _free_bytes():
                return
            self._put_away(name)
        free = _free_bytes()
        if needed > free:
            runs = ", ".join(run.id for run in index.active_runs())
            raise LabError(
                f"{named.name} needs about {size(needed)} of memory, and {size(free)} are free"
                + (f": {runs} uses the memory." if runs else "."),
                "Wait until the run ends, or stop it." if runs else "Close other programs.",
            )

    def _fit(self, in_use: frozenset[str]) -> None:
        """Put away what was used least recently until the budget holds."""
        budget = self.budget_bytes if self.budget_bytes is not None else _budget(self.bytes())
        idle = [name for name in self.models if name not in in_use]
        for put_away in (self._forget_prompts, self._put_away):
            for name in idle:
                if self.bytes() <= budget:
                    return
                put_away(name)

    def _forget_prompts(self, name: str) -> None:
        prompts = self.models[name].prompts
        if prompts is not None:
            prompts.clear()

    def _put_away(self, name: str) -> None:
        del self.models[name]
        _give_back_free_memory()

    def unload(self) -> None:
        """Put all models away."""
        self.models.clear()
        _give_back_free_memory()

    def bytes(self) -> int:
        """Bytes of all tensors in memory, kept prompts among them; shared ones count once."""
        return sum(self.bytes_of().values())

    def bytes_of(self) -> dict[str, int]:
        """Bytes that each model adds to those before it, bases first."""
        known: set[int] = set()
        sizes: dict[str, int] = {}
        for name in sorted(self.models, key=lambda name: not name.startswith("base:")):
            storages = self._storages_of(name)
            sizes[name] = sum(storages[pointer] for pointer in storages.keys() - known)
            known |= storages.keys()
            prompts = self.models[name].prompts
            sizes[name] += prompts.bytes if prompts is not None else 0
        return sizes

    def _storages_of(self, name: str) -> dict[int, int]:
        """Bytes of the storages of a model's tensors by their address, looked up once: they are
        hundreds, and every question asks for all models."""
        model = self.models[name].model
        cached = self._storages.get(name)
        if cached is None or cached[0]() is not model:
            tensors = [*model.parameters(), *model.buffers()]
            storages = [tensor.untyped_storage() for tensor in tensors]
            sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
            cached = self._storages[name] = (weakref.ref(model), sizes)
        return cached[1]


def _prompt_terms(known: Terms, named: ModelRef) -> PromptTerms:
    """Those in `known` unless files have changed since. Raises LabError."""
    other = named.template_of
    key = (named.name, other.name if other else "")
    now = (named.version, other.version if other else None)
    version, terms = known.get(key) or (None, None)
    if terms is None or version != now:
        terms = chat_models.prompt_terms(named)
        known.put(key, (now, terms))
    return terms


def _load_result(named: ModelRef, base: LoadedModel) -> LoadedModel:
    loaded = chat_models.load(named, base.model)
    ids = proof.probe_ids(base.model)
    again = proof.probe(base.model, ids)
    tensors = loaded_tensors = None
    files = named.weight_files
    if files:
        tensors, loaded_tensors = proof.count_loaded(loaded.model, files)
        if tensors and not loaded_tensors:
            raise LabError(
                f"None of the {quantity(tensors, 'tensor')} in {files[0].parent} is in the "
                "model that was "
                "built from it.",
                "It belongs to another base model, or its names were changed.",
            )
    assert base.probe is not None
    result_probe = proof.probe(loaded.model, ids)
    measured = proof.Proof(
        base_difference=proof.difference(base.probe, again),
        effect=proof.difference(result_probe, again),
        tensors=tensors,
        tensors_loaded=loaded_tensors,
    )
    is_shared = together.is_shared(loaded.model, base.model)
    _share_vocabulary(loaded.tokenizer, base.tokenizer)
    _give_back_free_memory()
    return replace(loaded, proof=measured, is_shared=is_shared, prompts=KeptPrompts())


def _share_vocabulary(tokenizer: Any, other: Any) -> None:
    """Let `tokenizer` split texts by the vocabulary of `other` where it is the same: that takes as
    much memory as a small adapter. Models answer in one thread, one after the other."""
    if tokenizer.backend_tokenizer.to_str() == other.backend_tokenizer.to_str():
        tokenizer._tokenizer = other.backend_tokenizer  # transformers has no other way


def _give_back_free_memory() -> None:
    """What was freed; glibc, and on a GPU torch, would keep it for later."""
    gc.collect()  # trees of modules refer to themselves
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _bytes_to_load(named: ModelRef) -> int:
    """About the bytes of the weights that loading `named` brings into memory: none for a result
    that stands on its base."""
    if named.run is not None:
        spec = RunSpec.of_run(named.run)
        if not methods.get(spec.method["name"]).needs_separate_base(spec.method_config):
            return 0
    elif not named.is_base:
        return 0  # an adapter of PEFT
    stored = hub.stored_tensors(catalog.resolve(named.base))
    is_narrow = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return (2 if is_narrow else 4) * sum(math.prod(tensor.shape) for tensor in stored.values())


def _free_bytes() -> int:
    if torch.cuda.is_available():
        free: int = torch.cuda.mem_get_info()[0]
        return free
    return int(psutil.virtual_memory().available)


def _budget(loaded_bytes: int) -> int:
    """Bytes that models may take, of what is free beside them."""
    return int((_free_bytes() + loaded_bytes) * BUDGET_SHARE)
