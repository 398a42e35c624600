"""Compiled decoder layers: made before the first step, and given up where that fails."""

from __future__ import annotations

from typing import Any

import torch

from lab.train.step import summed_loss


def compile_layers(model: Any) -> list[Any]:
    """Compile each decoder layer by itself: they are alike, so one compilation serves all. The
    layers; torch compiles them when they are first called."""
    layers = [
        layer
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList)
        for layer in module
        if "Layer" in type(layer).__name__ or "Block" in type(layer).__name__
    ]
    for layer in layers:
        layer.compile()
    return layers


def first_pass(
    model: Any, layers: list[Any], batch: dict[str, torch.Tensor], *, precision: str, loss: str
) -> str:
    """Go forward and back once, so that the layers are compiled before training begins.

    Leaves weights, gradients and random states as they were. Returns why it failed, the layers
    plain again; empty if it did not. Running out of memory is raised: it would in training too.
    """
    model.train()
    devices = [batch["input_ids"].device] if batch["input_ids"].is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            summed_loss(model, batch, precision=precision, loss=loss).backward()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a compiler, its toolchain or its kernels: any may be missing
        for layer in layers:
            layer._compiled_call_impl = None
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:200]}"
    finally:
        for weight in model.parameters():
            weight.grad = None
    return ""
