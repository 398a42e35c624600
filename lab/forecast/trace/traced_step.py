"""What is traced: a training step of a model, of which all layers need not be there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lab import methods
from lab.forecast.model_profile import contents, step_settings
from lab.forecast.trace.allocation_log import Log
from lab.forecast.trace.meta_model import build, signatures, with_layers
from lab.forecast.trace.trace_step import Batch, record
from lab.methods import Method
from lab.models.decoder_structure import layers_if_any
from lab.spec import RunSpec


class LayersDiffer(Exception):
    """Raised when identical layers do not allocate identically."""


@dataclass(frozen=True)
class TracedStep:
    """`layers` are the signatures of the decoder layers with the method in place; `loss` is the one
    that the worker will use."""

    config: Any
    layers: tuple[Any, ...]
    spec: RunSpec
    batch: Batch
    loss: str
    on_gpu: bool

    @property
    def method(self) -> Method:
        return methods.get(self.spec.method["name"])

    @property
    def has_prefix(self) -> bool:
        """Whether keys and values of virtual tokens come before the layers, for all of them in one
        tensor."""
        return self.method.virtual_tokens(self.spec.method_config)[1] > 0

    def of_layers(self, chosen: Sequence[int]) -> TracedStep:
        """The step of a model that has only the `chosen` layers."""
        train = self.spec.train
        if train.checkpointed_layers is not None:
            some = sum(index < train.checkpointed_layers for index in chosen)
            train = replace(train, checkpointed_layers=some)
        return replace(
            self,
            config=with_layers(self.config, chosen) if chosen else self.config,
            layers=tuple(self.layers[index] for index in chosen),
            spec=replace(self.spec, train=train),
        )

    def key(self) -> str:
        """Of a cache: a hash of all that the log depends on."""
        spec = self.spec
        settings = [spec.method, step_settings(spec), asdict(self.batch), self.loss, self.on_gpu]
        text = json.dumps([contents(self.config), *settings], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def log(self, *, is_short: bool = False) -> Log:
        """Of a short model, raises LayersDiffer where its layers come out otherwise than those of
        the whole one. Raises whatever an operation that cannot be traced raises."""
        model, quantised, _ = build(self.config, self.spec, self.method)
        if is_short and signatures(layers_if_any(model)) != list(self.layers):
            raise LayersDiffer("the method treats the layers of a short model in another way")
        return record(
            model, self.method, self.spec, self.batch, self.loss, quantised, on_gpu=self.on_gpu
        )
