"""Whether stored weights are those of a config: names, shapes and types, without reading them."""

from __future__ import annotations

from typing import Any

from lab.errors import LabError, first_line
from lab.models.empty_model import meta_model
from lab.models.headers import FLOATS, Stored
from lab.schema import quote

MAX_SHOWN = 3
_checked: dict[int, str] = {}  # hash of config and tensors -> what does not fit


def check(config: Any, tensors: dict[str, Stored], name: str) -> None:
    """Raise LabError if a model of `config` cannot be loaded from `tensors`.

    transformers itself matches the names, with all the renaming that it knows, on the meta device.
    """
    key = hash((config.to_json_string(), tuple(sorted(tensors.items(), key=lambda pair: pair[0]))))
    if key not in _checked:
        _checked[key] = "; ".join(_misfits(config, tensors))
    if _checked[key]:
        raise LabError(
            f"The weights of '{quote(name)}' do not fit its config.json: {_checked[key]}.",
            "They do not belong together, or the download is incomplete.",
        )


def _misfits(config: Any, tensors: dict[str, Stored]) -> list[str]:
    import torch
    from transformers.utils import logging

    try:
        empty = meta_model(config)
        stored = {
            key: torch.empty(entry.shape, dtype=_type(entry.dtype), device="meta")
            for key, entry in tensors.items()
        }
        level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(logging.ERROR)  # it prints a table of what is reported below
        logging.disable_progress_bar()
        try:
            _, loading_info = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=stored,
                device_map={"": "meta"},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        finally:
            logging.set_verbosity(level)
            if has_bar:
                logging.enable_progress_bar()
    except LabError:
        raise
    except Exception as error:  # names and shapes are a stranger's
        return [first_line(error)]
    missing = sorted(loading_info["missing_keys"])
    unequal = sorted(loading_info["mismatched_keys"], key=lambda entry: str(entry[0]))
    misfits = [f"there is no '{quote(key)}'" for key in missing]
    misfits += [
        f"'{quote(key)}' is {tuple(stored_shape)}, and {tuple(shape)} is needed"
        for key, stored_shape, shape in unequal
    ]
    misfits += [quote(str(message)) for message in loading_info.get("error_msgs", ())]
    names = {key for key, _ in empty.named_parameters(remove_duplicate=False)}
    prefix = f"{empty.base_model_prefix}."
    misfits += [
        f"'{quote(key)}' has the type {entry.dtype}, not a floating-point type of the lab's"
        for key, entry in sorted(tensors.items())
        if entry.dtype not in FLOATS and {key, prefix + key, key.removeprefix(prefix)} & names
    ]
    rest = len(misfits) - MAX_SHOWN
    return misfits[:MAX_SHOWN] + ([f"and {rest:,} more"] if rest > 0 else [])


def _type(name: str) -> Any:
    import torch

    return {"F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}.get(
        name, torch.float32
    )
