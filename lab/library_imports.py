"""The import of PEFT, without what it does not need."""

from __future__ import annotations

import os
import sys
from typing import Any

COMPILER_OFF = "TORCHDYNAMO_DISABLE"  # torch.compile returns what it is given


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
