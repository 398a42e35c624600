"""Finetune Lab: set up, run, watch and compare fine-tuning runs on one machine."""

import os
import sys

__version__ = "0.1.0"

# Read by the libraries when they are imported. Every process of the lab imports this package first,
# and hands its environment on to those that it starts.
SAFE = {
    "USE_HUB_KERNELS": "0",  # transformers takes no code from the hub in place of layers
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # nor weights that a service has converted
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # whatever is read all the same runs no code
}
os.environ.update(SAFE)
# an attention implementation of the hub ignores the first of them: it cannot be loaded without this
sys.modules["kernels"] = None  # type: ignore[assignment]
