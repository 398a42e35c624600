"""Loading models and tokenizers, and weights by name. safetensors only, no remote code."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.models.catalog import Source


def load_tokenizer(source: Source) -> Any:
    """The tokenizer of a model, with a pad token. Raises LabError if it has none to load."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.options)
        _ = len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer("a")
    except Exception as error:  # the files are a stranger's: any nonsense may stand in them
        raise LabError(
            f"The tokenizer of '{source.id}' cannot be loaded: {_first_line(error)}.",
            _way_out(source),
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise LabError(
            f"The tokenizer of '{source.id}' does not say where in the text a token stands.",
            "Give the model a tokenizer.json: transformers' save_pretrained writes it.",
        )
    if tokenizer.eos_token_id is None or not tokenizer.eos_token:
        raise LabError(
            f"The tokenizer of '{source.id}' has no end token.",
            "Set eos_token in its tokenizer_config.json: without one no answer ever ends.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(source: Source) -> Any:
    """The model's config. Raises LabError for an unknown model or architecture."""
    from transformers import AutoConfig

    try:
        if source.config is not None:
            return AutoConfig.for_model(**source.config)
        return AutoConfig.from_pretrained(source.location, **source.options)
    except Exception as error:  # the file is a stranger's: any nonsense may stand in it
        raise LabError(
            f"The model '{source.id}' cannot be read: {_first_line(error)}.", _way_out(source)
        ) from None


def load_model(source: Source, dtype: Any, **extra: Any) -> Any:
    """The causal language model with its weights in `dtype` (a torch.dtype)."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.location, dtype=dtype, use_safetensors=True, **source.options, **extra
        )
    except (OSError, ValueError, KeyError) as error:
        raise LabError(
            f"The weights of '{source.id}' cannot be loaded: {_first_line(error)}.",
            _way_out(source),
        ) from None
    if is_quantised(model):
        keep_layout(model)
    return model


def keep_layout(model: Any) -> None:
    """Have 4-bit layers keep their weights as they are.

    On processors with bfloat16 instructions bitsandbytes repacks them at the first pass without
    gradients, rounds their scales, and has no gradient for them afterwards: an evaluation would
    end the training, and answers would come from other weights than were trained on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantised(model: Any) -> bool:
    """Whether the weights are stored in fewer bits, on the device that they were loaded to."""
    return getattr(model, "hf_quantizer", None) is not None


def on_device(model: Any, device: Any) -> Any:
    """`model` on `device`; a quantised one stays where it was built."""
    return model if is_quantised(model) else model.to(device)


def empty_model(config: Any) -> Any:
    """The model on the meta device: structure and shapes, no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # the config is a stranger's: any nonsense may stand in it
        raise LabError(
            f"No causal language model can be built from this config ('{config.model_type}'): "
            f"{_first_line(error)}.",
            "Choose a model that generates text, and check its config.json.",
        ) from None


def same_weights(model: Any) -> Any:
    """Another tree of modules over the very tensors of `model`: a variant costs no memory but
    its own, and what is put into its tree is not in the other."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def has_weights(model: Any, folder: Path) -> bool:
    """Whether every tensor of `folder`'s safetensors has its name in `model`."""
    from safetensors import safe_open

    names = set(dict(model.named_parameters(remove_duplicate=False)))
    names |= set(dict(model.named_buffers()))
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            if not names.issuperset(opened.keys()):
                return False
    return True


def read_weights(model: Any, folder: Path) -> Any:
    """`model` with every tensor of `folder`'s safetensors copied over its own, by name.

    Architectures whose files carry other names than their modules (GPT-NeoX) are read by
    transformers, which knows how to rename them.
    """
    import torch
    from safetensors.torch import load_file

    weights = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise LabError(f"There are no safetensors in {folder}.", "The result is incomplete.")
    with torch.no_grad():
        for file in files:
            stored = load_file(file)
            if (folder / "config.json").is_file() and not stored.keys() <= weights.keys():
                stored = _renamed(model, folder)
            for name, tensor in stored.items():
                if name not in weights or weights[name].shape != tensor.shape:
                    raise LabError(
                        f"{file.name} holds '{name}' {tuple(tensor.shape)}, which this base "
                        "model does not have.",
                        "The result was trained from another model.",
                    )
                weights[name].copy_(tensor)
    return model


def _renamed(model: Any, folder: Path) -> dict[str, Any]:
    """The tensors of a whole model in `folder` under the names of `model`'s modules."""
    source = Source(folder.name, str(folder.absolute()), local_only=True)
    return dict(load_model(source, model.dtype).state_dict())


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0].rstrip(".")


def _way_out(source: Source) -> str:
    if source.location.startswith("/"):
        return "Check the files in that folder."
    if source.location == source.id and source.local_only:
        return (
            "The hub cannot be reached and the model is not in the local cache. Connect to the "
            "network, or give builtin:smollm2-135m-instruct or a folder."
        )
    return "Check the id; for a gated model accept its terms on the hub, then set HF_TOKEN."
