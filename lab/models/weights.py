"""Loading models and tokenizers, and weights by name. safetensors only, no remote code."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.atomic_files import read_object
from lab.data import rendering, stop_tokens
from lab.errors import LabError, first_line
from lab.models import file_list, fit, hub, sizes
from lab.models import folder as folders
from lab.models.catalog import ModelSource
from lab.models.empty_model import meta_model
from lab.schema import quote


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer of a model, with a pad token. Raises LabError if it has none to load."""
    from transformers import AutoTokenizer, LlamaTokenizer

    folder = _tokenizer_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        if _is_sentencepiece_without_class(Path(folder), tokenizer):
            tokenizer = LlamaTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        _ = len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer("a")
    except Exception as error:  # the files are a stranger's: any nonsense may stand in them
        raise LabError(
            f"The tokenizer of '{source.id}' cannot be loaded: {first_line(error)}.",
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
    rendering.configure(tokenizer, stop_ids=stop_tokens.of_folder(Path(folder)))
    return tokenizer


def _is_sentencepiece_without_class(folder: Path, tokenizer: Any) -> bool:
    """Whether the folder holds tokenizer.model and no word on its class: transformers then takes a
    generic one, which leaves out the space that sentencepiece puts before the first word."""
    config = read_object(folder / "tokenizer_config.json") or {}
    has_model = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
    is_generic = type(tokenizer).__name__ == "TokenizersBackend"
    return has_model and is_generic and not config.get("tokenizer_class")


def load_config(source: ModelSource) -> Any:
    """The model's config. Raises LabError for an unknown model or architecture."""
    from transformers import AutoConfig

    folder = None if source.config is not None else hub.config_folder(source)
    values = check_sizes(source, folder)
    try:
        if source.config is not None:
            return AutoConfig.for_model(**source.config)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # untrusted file: it may contain anything
        _check_architecture(values, source.id)
        raise LabError(
            f"The model '{source.id}' cannot be read: {first_line(error)}.", _way_out(source)
        ) from None


def _check_architecture(values: dict[str, Any], name: str) -> None:
    """Raise LabError if a config names an architecture that this transformers does not know."""
    import transformers
    from packaging.version import InvalidVersion, Version
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind, written_by = values.get("model_type"), values.get("transformers_version")
    if not isinstance(kind, str) or kind in CONFIG_MAPPING:
        return
    here = transformers.__version__
    try:
        is_newer = isinstance(written_by, str) and Version(written_by) > Version(here)
    except InvalidVersion:
        is_newer = False
    if is_newer:
        raise LabError(
            f"'{quote(name)}' needs a newer transformers: its architecture '{quote(kind)}' was "
            f"written by version {quote(written_by)}, and {here} is installed.",
            "Update transformers in requirements.txt and run 'make setup', or choose an older "
            "model.",
        )
    raise LabError(
        f"'{quote(name)}' has the unknown architecture '{quote(kind)}': transformers {here} has no "
        "code for it.",
        "Choose an architecture that transformers knows; code that comes with a model is never "
        "run.",
    )


def check_sizes(source: ModelSource, folder: Path | None) -> dict[str, Any]:
    """What its config.json says. Raises LabError unless a model of those numbers can be built."""
    values = source.config
    if values is None and folder is not None:
        file = folder / "config.json"
        sizes.check_file(file.stat().st_size, source.id)
        values = read_object(file)
    sizes.check(values or {}, source.id)
    return values or {}


def load_model(source: ModelSource, dtype: Any, **extra: Any) -> Any:
    """The causal language model with its weights in `dtype` (a torch.dtype)."""
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    if getattr(config, "quantization_config", None) is None:
        # what is missing would be made up of random numbers
        fit.check(config, hub.stored_tensors(source), source.id)
    folder = hub.local_folder(source, with_weights=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **extra,
        )
    except Exception as error:  # the files are a stranger's; what memory lacks is told elsewhere
        if is_out_of_memory(error):
            raise
        raise LabError(
            f"The weights of '{source.id}' cannot be loaded: {first_line(error)}.",
            _way_out(source),
        ) from None
    if is_quantised(model):
        disable_cpu_repacking(model)
    settle_generation(model)
    return model


def _tokenizer_folder(source: ModelSource) -> Path:
    """As `local_folder`, also for a result's or an adapter's folder, which may hold no config.json,
    or one that nobody reads."""
    folder = Path(source.location)
    if folder.is_absolute():
        has_config = (folder / "config.json").exists()
        if not has_config or (folder / file_list.ADAPTER).exists():
            folders.check_tokenizer(folder, source.id)
            return folder
    return hub.local_folder(source, with_weights=False)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within, `model` is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's allocator, or Python's own; the kernel's killer leaves no exception."""
    return type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)


def settle_generation(model: Any) -> None:
    """Have `generate` search for one answer, token by token: what a model's generation_config.json
    may ask for beyond that needs code of the hub, or cannot be streamed."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    for name in (
        "num_beams",
        "num_beam_groups",
        "constraints",
        "force_words_ids",
        "penalty_alpha",
        "dola_layers",
        "assistant_early_exit",
        "prompt_lookup_num_tokens",
    ):
        if getattr(config, name, None) is not None:
            setattr(config, name, None)


def disable_cpu_repacking(model: Any) -> None:
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


def empty_like(model: Any) -> Any:
    """A plain model of the same structure on the meta device, whatever the weights lie in."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return meta_model(config)


def share_weights(model: Any) -> Any:
    """A copy of the module tree that shares all tensors with `model`; adapters added to it do not
    affect the original."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def has_weights(model: Any, folder: Path) -> bool:
    """Whether every tensor of `folder`'s safetensors has its name in `model`."""
    names = set(dict(model.named_parameters(remove_duplicate=False)))
    names |= set(dict(model.named_buffers()))
    return names.issuperset(folders.stored_tensors(folder, folder.name))


def read_weights(model: Any, folder: Path) -> Any:
    """`model` with every tensor of `folder`'s safetensors copied over its own, by name.

    Architectures whose files carry other names than their modules (GPT-NeoX) are read by
    transformers, which knows how to rename them.
    """
    import torch
    from safetensors.torch import load_file

    weights = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    files = folders.weight_files(folder, folder.name)
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
    source = ModelSource(folder.name, str(folder.absolute()), local_only=True)
    return dict(load_model(source, model.dtype).state_dict())


def _way_out(source: ModelSource) -> str:
    if source.is_on_hub:
        return "The files of the repository are at fault; choose another model or revision."
    return "Check the files in that folder."
