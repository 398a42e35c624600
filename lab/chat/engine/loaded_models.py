"""The models in memory: one base, and variants as trees of modules over its very weights."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any, TypeAlias

import psutil
import torch

from lab.chat import generate
from lab.chat import models as chat_models
from lab.chat.engine import proof, together
from lab.chat.models import LoadedModel, ModelRef, PromptTerms
from lab.chat.settings import GenerationSettings
from lab.errors import LabError
from lab.recent import Recent

MOST_TERMS = 32  # models whose tokenizer and length are remembered
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
        self.terms: Terms = Recent(MOST_TERMS)
        self.shared_templates: Terms = Recent(MOST_TERMS)  # of bases, for those in memory
        self.measuring = threading.Lock()

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
        base = self._current(base_ref) or self._load_base(base_ref)
        model = base if named.is_base else self._current(named)
        if model is None:
            model = _load_result(named, base)
            self.models[named.name] = model
        for name in (base_ref.name, named.name):
            self.models.move_to_end(name)
        self._fit(in_use | {base_ref.name, named.name})
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
        loaded = replace(loaded, probe=logits, proof=proof.Proof(base_difference=0.0))
        self.models[base_ref.name] = loaded
        return loaded

    def _fit(self, in_use: frozenset[str]) -> None:
        """Put away what was used least recently until the budget holds."""
        budget = self.budget_bytes if self.budget_bytes is not None else _budget(self.bytes())
        for name in list(self.models):
            if self.bytes() <= budget:
                return
            if name not in in_use:
                del self.models[name]

    def unload(self) -> None:
        """Put all models away."""
        self.models.clear()

    def bytes(self) -> int:
        """Bytes of all tensors in memory; shared ones count once."""
        return sum(self.bytes_of().values())

    def bytes_of(self) -> dict[str, int]:
        """Bytes that each model adds to those before it, bases first."""
        known: set[int] = set()
        sizes: dict[str, int] = {}
        for name in sorted(self.models, key=lambda name: not name.startswith("base:")):
            sizes[name] = 0
            model = self.models[name].model
            for tensor in [*model.parameters(), *model.buffers()]:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in known:
                    known.add(storage.data_ptr())
                    sizes[name] += storage.nbytes()
        return sizes


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
    folder = named.folder
    if folder is not None:
        tensors, loaded_tensors = proof.count_loaded(loaded.model, folder)
        if tensors and not loaded_tensors:
            raise LabError(
                f"None of the {tensors} tensors in {folder} is in the model that was "
                "built from it.",
                "It belongs to another base model, or its names were changed.",
            )
    assert base.probe is not None
    own = proof.probe(loaded.model, ids)
    measured = proof.Proof(
        base_difference=proof.difference(base.probe, again),
        effect=proof.difference(own, again),
        tensors=tensors,
        tensors_loaded=loaded_tensors,
    )
    return replace(loaded, proof=measured, is_shared=together.is_shared(loaded.model, base.model))


def _budget(held: int) -> int:
    """Bytes that models may take, of what is free beside them."""
    if torch.cuda.is_available():
        free: int = torch.cuda.mem_get_info()[0]
    else:
        free = psutil.virtual_memory().available
    return int((free + held) * BUDGET_SHARE)
