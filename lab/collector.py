"""Python's collector of cycles, kept out of the way of what makes many objects at once.

The more objects come, the more often it walks over all that there are: over those of torch and
transformers, 400,000 of them, again and again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused(*, freeze: bool = False) -> Iterator[None]:
    """Within, no cycles are collected. `freeze`: what is there at the end stays in memory to the
    end of the process, and is not walked over any more."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if was_on:
            gc.enable()
