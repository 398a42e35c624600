"""Checkpoints in the lab's own format: safetensors and JSON, complete or not there.

checkpoints/step-N/trainable.safetensors   trainable parameters by name, in their own type
                   optimizer.safetensors   moments, "parameter name|key"
                   extra.safetensors       random states, and what the method adds
                   state.json              counters, scheduler, generators of Python and numpy
                   manifest.json           sizes and sha256 of the others, written last
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lab.atomic_files import (
    finite_number,
    read_object,
    remove_tree,
    sha256_of,
    sync_folder,
    write_json,
)
from lab.errors import LabError
from lab.models import headers
from lab.models.weights import first_line, is_out_of_memory
from lab.paths import make_folder
from lab.runs.checkpoints import PREFIX, listing, step_of

OPTIMIZER, EXTRA = "optimizer.safetensors", "extra.safetensors"
NEEDED = ("trainable.safetensors", "state.json")
FILES = ("trainable.safetensors", "optimizer.safetensors", "extra.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint and its counters."""

    path: Path
    step: int
    state: dict[str, Any]
    missing_files: tuple[str, ...] = ()  # files that a person allowed to be missing


def save(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    method_state: dict[str, torch.Tensor],
) -> Path:
    """Write `step-N` aside, fsync, hash, rename. Raises OSError and leaves nothing half-done."""
    make_folder(folder)
    final = folder / f"{PREFIX}{step}"
    aside = folder / f".tmp-{PREFIX}{step}"
    remove_tree(aside)
    aside.mkdir()
    try:
        names = trainable(model)
        save_file(
            {name: weight.detach().contiguous() for name, weight in names.items()},
            aside / "trainable.safetensors",
        )
        save_file(_moments(optimizer, names), aside / "optimizer.safetensors")
        extra = {f"method|{key}": value.contiguous() for key, value in method_state.items()}
        save_file(_random_tensors() | extra, aside / "extra.safetensors")
        name, keys, *rest = np.random.get_state(legacy=True)
        full = state | {
            "step": step,
            "random": {
                "python": random.getstate(),
                "numpy": [name, np.asarray(keys).tolist(), *rest],
            },
            "optimizer": _numbers(optimizer, names),
        }
        (aside / "state.json").write_text(json.dumps(full), encoding="utf-8")
        manifest = {}
        for name in FILES:
            digest, size = _sync_and_hash(aside / name)
            manifest[name] = {"bytes": size, "sha256": digest}
        write_json(aside / "manifest.json", {"v": 1, "step": step, "files": manifest})
        remove_tree(final)
        os.replace(aside, final)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return final


def latest_valid(folder: Path, *, incomplete: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """(the newest checkpoint whose files match its manifest, why newer ones were skipped).

    With `incomplete`, where none is whole, the newest one with weights and counters.
    """
    skipped: list[str] = []
    for path in reversed(listing(folder)):
        try:
            return verify(path), skipped
        except LabError as error:
            skipped.append(str(error))
    for path in reversed(listing(folder)) if incomplete else ():
        with contextlib.suppress(LabError):
            return verify(path, incomplete=True), skipped
    return None, skipped


def verify(path: Path, *, incomplete: bool = False) -> Checkpoint:
    """The checkpoint, with every file checked against size and hash. Raises LabError.

    With `incomplete`, optimizer and random state may be missing or damaged: they are in `lost`.
    """
    manifest = read_object(path / "manifest.json") or {}
    listed = manifest.get("files")
    if not isinstance(listed, dict) or set(listed) != set(FILES):
        raise LabError(f"{path.name} has no complete manifest.")
    lost = []
    for name, want in listed.items():
        file = path / name
        if not file.is_file() or file.is_symlink():
            problem = f"{path.name} lacks {name}."
        elif file.stat().st_size != want["bytes"] or sha256_of(file) != want["sha256"]:
            problem = f"{path.name}: {name} is damaged."
        else:
            continue
        if name in NEEDED or not incomplete:
            raise LabError(problem)
        lost.append(name)
    for name in FILES:
        if name.endswith(".safetensors") and name not in lost:
            headers.read(path / name)
    state = read_object(path / "state.json")
    if state is None or state.get("step") != step_of(path):
        raise LabError(f"{path.name}: state.json is damaged.")
    return Checkpoint(path, step_of(path), state, tuple(lost))


@contextlib.contextmanager
def readable(saved: Path) -> Iterator[None]:
    """A LabError for what a checkpoint makes the libraries say, whose files are as its manifest
    has them and hold something else than a checkpoint."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise LabError(
            f"{saved.name} holds something else than a checkpoint of this run: "
            f"{first_line(error)}.",
            "Resume from an older one, or start a new run.",
        ) from None


def delete_old(
    folder: Path, keep_best: int, keep_last: int, pins: frozenset[int] = frozenset()
) -> list[str]:
    """Remove all but the newest `keep_last`, the `keep_best` with the lowest evaluation loss and
    the pinned ones; the names removed."""
    checkpoints = listing(folder)
    scored = []
    for path in checkpoints:
        # NaN is neither lower nor higher than any other: sorted with it, the best may come last
        loss = finite_number((read_object(path / "state.json") or {}).get("eval_loss"))
        if loss is not None:
            scored.append((loss, path))
    to_keep = set(checkpoints[-keep_last:])
    to_keep |= {path for _, path in sorted(scored, key=lambda pair: pair[0])[:keep_best]}
    to_delete = [path for path in checkpoints if path not in to_keep and step_of(path) not in pins]
    for path in to_delete:
        remove_tree(path)
    return [path.name for path in to_delete]


def load_weights(saved: Path, model: torch.nn.Module, *, cast: bool = False) -> None:
    """Copy the saved trainable parameters into `model`. Raises LabError if names differ, or
    types unless `cast` allows it (to answer, not to train on)."""
    weights = load_file(saved / "trainable.safetensors")
    names = trainable(model)
    if set(weights) != set(names):
        odd = sorted(set(weights) ^ set(names))[:3]
        raise LabError(
            f"{saved.name} was written for other trainable parameters (such as {', '.join(odd)}).",
            "The method's settings changed since; start a new run.",
        )
    with torch.no_grad():
        for name, weight in names.items():
            if weights[name].shape != weight.shape:
                raise LabError(
                    f"{saved.name} holds '{name}' {tuple(weights[name].shape)}, the model "
                    f"{tuple(weight.shape)}.",
                    "It was written for another model; start a new run.",
                )
            if weights[name].dtype != weight.dtype and not cast:
                raise LabError(
                    f"{saved.name} holds '{name}' as {weights[name].dtype}, the model as "
                    f"{weight.dtype}.",
                    "The precision changed since; start a new run.",
                )
            weight.copy_(weights[name])


def load_optimizer(saved: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the moments back as they were, type and all (load_state_dict would cast them)."""
    moments = load_file(saved / "optimizer.safetensors")
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in moments.items():
        name, _, part = key.rpartition("|")
        state.setdefault(name, {})[part] = tensor
    names = trainable(model)
    stored = (read_object(saved / "state.json") or {}).get("optimizer") or {}
    # SGD remembers nothing, and a weight that has just joined nothing yet
    if set(state) | set(stored.get("without", ())) != set(names):
        raise LabError(
            f"{saved.name} has no optimizer state for every trainable parameter.",
            "Resuming would train differently; resume from an older checkpoint.",
        )
    with readable(saved):
        for name, tensors in state.items():
            numbers = stored.get("numbers", {}).get(name, {})
            _put_back(optimizer, names[name], tensors, numbers)


def _put_back(
    optimizer: torch.optim.Optimizer,
    weight: torch.nn.Parameter,
    tensors: dict[str, torch.Tensor],
    numbers: dict[str, float],
) -> None:
    if getattr(optimizer, "is_paged", False) and weight.device.type == "cuda":
        # paged moments lie in memory that only the optimizer itself can ask for
        for group_index, group in enumerate(optimizer.param_groups):
            for weight_index, other in enumerate(group["params"]):
                if other is weight:
                    optimizer.init_state(group, weight, group_index, weight_index)  # type: ignore[attr-defined]
        for key, tensor in tensors.items():
            optimizer.state[weight][key].copy_(tensor)
        optimizer.state[weight].update(numbers)
        return
    moved = {key: tensor.to(weight.device) for key, tensor in tensors.items()}
    optimizer.state[weight] = moved | numbers


def method_state(saved: Path) -> dict[str, torch.Tensor]:
    extra = load_file(saved / "extra.safetensors")
    return {
        key.removeprefix("method|"): value
        for key, value in extra.items()
        if key.startswith("method|")
    }


def restore_random(saved: Checkpoint) -> None:
    """All generators as they were when the checkpoint was written. Raises LabError."""
    with readable(saved.path):
        tensors = load_file(saved.path / "extra.safetensors")
        torch.set_rng_state(tensors["torch"])
        for device in range(torch.cuda.device_count()):
            if f"cuda-{device}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda-{device}"], device)
        stored = saved.state["random"]
        version, numbers, gauss = stored["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = stored["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters by name, tied ones once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _moments(
    optimizer: torch.optim.Optimizer, names: dict[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    # bitsandbytes shares one quantisation map between all parameters, and safetensors refuses
    # tensors that share memory; a copy of everything would double the optimizer's state
    moments: dict[str, torch.Tensor] = {}
    stored: set[int] = set()
    for name, weight in names.items():
        for key, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, torch.Tensor):
                address = value.untyped_storage().data_ptr()
                tensor = value.detach().contiguous()
                moments[f"{name}|{key}"] = tensor.clone() if address in stored else tensor
                stored.add(address)
    return moments


def _numbers(
    optimizer: torch.optim.Optimizer, names: dict[str, torch.nn.Parameter]
) -> dict[str, Any]:
    """State that is not a tensor (some optimizers count their steps as a plain integer), and the
    names of the parameters without state."""
    numbers, without = {}, []
    for name, weight in names.items():
        state = optimizer.state.get(weight, {})
        plain = {key: value for key, value in state.items() if isinstance(value, (int, float))}
        if plain:
            numbers[name] = plain
        if not any(isinstance(value, torch.Tensor) for value in state.values()):
            without.append(name)
    return {"numbers": numbers, "without": without}


def _random_tensors() -> dict[str, torch.Tensor]:
    states = {"torch": torch.get_rng_state()}
    for device in range(torch.cuda.device_count()):
        states[f"cuda-{device}"] = torch.cuda.get_rng_state(device)
    return states


def _sync_and_hash(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest, path.stat().st_size
