"""What a repository of the hub is, by the names of its files: each kind that cannot be trained is
told in its own sentence, before anything is downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from lab.errors import LabError
from lab.schema import quote

PICKLE = re.compile(r"[^/]+\.(bin|pt|pth|ckpt)")
OTHER_FRAMEWORK = re.compile(r"[^/]+\.(h5|msgpack|onnx|tflite|mlmodel|pb)|(onnx|openvino)/.+")
TOKENIZER = re.compile(
    r"tokenizer\.json|tokenizer\.model|vocab\.(json|txt)|spiece\.model|tekken\.json|"
    r"sentencepiece[^/]*\.model|[^/]+\.tiktoken"
)
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_config(names: Collection[str], name: str, adapter_base: Callable[[], str]) -> None:
    """Raise LabError if the model `name` has no config.json. `adapter_base()` is what an adapter
    says of its base, "" if nothing."""
    if "config.json" in names:
        return
    _check_adapter(names, name, adapter_base)
    if any(file.endswith(".gguf") for file in names):
        raise _only_gguf(name)
    if "model_index.json" in names:
        raise LabError(
            f"'{quote(name)}' is a pipeline of diffusers, which makes pictures, not text.",
            "Choose a causal language model.",
        )
    raise LabError(
        f"'{quote(name)}' has no config.json, so it is not a model that transformers can load.",
        "Check the ID: a model's page on the Hub lists config.json under Files.",
    )


def check_weights(names: Collection[str], name: str, adapter_base: Callable[[], str]) -> None:
    """Raise LabError if the model `name` has no weights that can be trained, or no tokenizer."""
    is_adapter_file = re.compile(r"adapter_[^/]*\.safetensors").fullmatch
    if not any(
        file.endswith(".safetensors") and "/" not in file and not is_adapter_file(file)
        for file in names
    ):
        _check_adapter(names, name, adapter_base)
        pickles = sorted(file for file in names if PICKLE.fullmatch(file))
        if pickles:
            raise LabError(
                f"'{quote(name)}' has no *.safetensors weights, only {quote(pickles[0])}, a "
                "format that can run code when it is loaded.",
                "Choose a repository with safetensors; the Hub often proposes them as a pull "
                f"request of the same one, which is named {quote(name.partition('#')[0])}"
                "#refs/pr/NUMBER.",
            )
        if any(file.endswith(".gguf") for file in names):
            raise _only_gguf(name)
        others = sorted(file for file in names if OTHER_FRAMEWORK.fullmatch(file))
        if others:
            raise LabError(
                f"'{quote(name)}' has no *.safetensors weights, only those of another framework "
                f"({quote(others[0])}).",
                "Choose the repository of the original model.",
            )
        raise LabError(
            f"'{quote(name)}' has no *.safetensors weights: the repository holds no model.",
            "Check the ID, and that its upload has ended.",
        )
    if not any(TOKENIZER.fullmatch(file) for file in names):
        raise LabError(
            f"'{quote(name)}' has no tokenizer: none of tokenizer.json, tokenizer.model and "
            "vocab.json is among its files.",
            "Choose the model that it was made from, or copy both into one folder and give that.",
        )


def _check_adapter(names: Collection[str], name: str, adapter_base: Callable[[], str]) -> None:
    if ADAPTER not in names:
        return
    base = adapter_base()
    way_out = f"Choose its base, '{quote(base)}'." if base else "Choose its base model."
    raise LabError(
        f"'{quote(name)}' is an adapter for {quote(base) or 'a base that it does not name'}, and "
        "not a model by itself.",
        f"{way_out} To talk to the adapter, add adapter:{quote(name)} in Chat. To train on with "
        "it, merge it into its base with PEFT (merge_and_unload, save_pretrained, and the "
        "tokenizer's save_pretrained) and give that folder.",
    )


def check_adapter(names: Collection[str], name: str) -> None:
    """Raise LabError unless the repository `name` holds an adapter in safetensors."""
    if ADAPTER not in names:
        raise LabError(
            f"'{quote(name)}' is not an adapter: it has no {ADAPTER}.",
            f"To talk to a whole model, name it base:{quote(name)}.",
        )
    if ADAPTER_WEIGHTS not in names:
        pickles = sorted(file for file in names if PICKLE.fullmatch(file))
        content = (
            f"only {quote(pickles[0])}, a format that can run code" if pickles else "no weights"
        )
        raise LabError(
            f"The adapter '{quote(name)}' has no {ADAPTER_WEIGHTS}: it holds {content}.",
            "Choose a revision with safetensors, or convert it with PEFT's save_pretrained.",
        )


def _only_gguf(name: str) -> LabError:
    return LabError(
        f"'{quote(name)}' holds only GGUF files, which are quantised for inference and cannot be "
        "trained.",
        "Choose the model that they were made from; its page on the Hub names it as the base.",
    )
