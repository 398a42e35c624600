"""A model without weights: structure and shapes alone."""

from __future__ import annotations

from typing import Any

from lab.errors import LabError, first_line


def meta_model(config: Any) -> Any:
    """The model on the meta device: structure and shapes, no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # the config is a stranger's: any nonsense may stand in it
        raise LabError(
            f"No causal language model can be built from this config ('{config.model_type}'): "
            f"{first_line(error)}.",
            "Choose a model that generates text, and check its config.json.",
        ) from None
