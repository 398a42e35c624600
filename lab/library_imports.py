"""The imports that take seconds, without what they do not need."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from lab import collector

COMPILER_OFF = "TORCHDYNAMO_DISABLE"  # torch.compile returns what it is given


def import_libraries(*, with_peft: bool = True) -> None:
    """Import torch, transformers and `with_peft` PEFT, with what the models of transformers share.

    Without the collector, which took a quarter of this time: what libraries make stays.
    """
    models = "transformers.models.llama.modeling_llama"
    if models in sys.modules and (not with_peft or "peft" in sys.modules):
        return  # what came since is not the libraries', and may go
    with collector.paused(freeze=True):
        importlib.import_module(models)
        if with_peft:
            import_peft()


def import_peft() -> Any:
    """The module `peft`, with bitsandbytes imported without torch's compiler.

    bitsandbytes hands four functions to `torch.compile` while it is imported, for devices that it
    has no kernels for, which are neither processors nor CUDA. That alone imports Inductor: a
    quarter of the time that a worker takes to start. A run that is compiled imports it later.
    Initialises CUDA where there is a GPU, as bitsandbytes does.
    """
    if "bitsandbytes" not in sys.modules:
        before = os.environ.get(COMPILER_OFF)
        os.environ[COMPILER_OFF] = "1"
        try:
            import bitsandbytes  # noqa: F401
        finally:
            if before is None:
                del os.environ[COMPILER_OFF]
            else:
                os.environ[COMPILER_OFF] = before
    import peft

    return peft
