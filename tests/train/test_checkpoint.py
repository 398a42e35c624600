"""A checkpoint is whole or refused, and gives back what it was given: weights, moments, chance."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lab.errors import LabError
from lab.train import checkpoint


class Small(nn.Module):
    """One trainable and one frozen matrix."""

    def __init__(self, fill: float = 1.0) -> None:
        super().__init__()
        self.learned = nn.Parameter(torch.full((3, 2), fill))
        self.frozen = nn.Parameter(torch.full((4,), fill), requires_grad=False)


def updated(model: Small) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([model.learned], lr=0.1)
    model.learned.grad = torch.arange(6.0).view(3, 2)
    optimizer.step()
    return optimizer


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint of a step with an evaluation loss."""
    model = Small()
    optimizer = updated(model)

    def save(step: int, loss: float | None = None, extra: Any = None) -> Path:
        state = {"used": {"step": step}, "eval_loss": loss}
        return checkpoint.save(tmp_path, step, model, optimizer, state, extra or {})

    return save


@pytest.mark.parametrize(
    ("best", "last", "pins", "left"),
    [
        (1, 1, (), [3, 10]),
        (2, 1, (), [2, 3, 10]),
        (0, 2, (), [4, 10]),
        (1, 2, (1,), [1, 3, 4, 10]),
        (9, 1, (), [1, 2, 3, 10]),
    ],
)
def test_the_lowest_losses_the_newest_and_the_pinned_are_kept(
    write: Callable[..., Path],
    tmp_path: Path,
    best: int,
    last: int,
    pins: tuple[int, ...],
    left: list[int],
) -> None:
    """Step 4 has no evaluation, step 3 the lowest; 10 is newer than 4, whatever letters say."""
    for step, loss in ((1, 4.0), (2, 2.0), (3, 1.0), (4, None), (10, 3.0)):
        write(step, loss)
    removed = checkpoint.delete_old(tmp_path, best, last, frozenset(pins))
    ordered = sorted(int(path.name.removeprefix("step-")) for path in tmp_path.iterdir())
    assert ordered == left
    assert sorted(removed) == sorted(f"step-{n}" for n in {1, 2, 3, 4, 10} - set(left))


def test_a_loss_that_is_no_number_is_never_the_lowest(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    """A model that diverges must not cost the best checkpoint of before."""
    for step, loss in ((1, 3.0), (2, math.nan), (3, 1.0), (4, math.nan), (5, math.nan)):
        write(step, loss)
    checkpoint.delete_old(tmp_path, 1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-5"]


def test_the_newest_whole_one_is_taken_by_its_number(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    for step in (9, 10, 2):
        write(step)
    latest, skipped = checkpoint.latest_valid(tmp_path)
    assert latest is not None and (latest.step, skipped) == (10, [])


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "a link":
        path.rename(path.with_suffix(".away"))
        path.symlink_to(path.with_suffix(".away"))
    elif how == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("name", checkpoint.FILES)
@pytest.mark.parametrize("how", ["missing", "a link", "short", "changed"])
def test_what_may_be_lost_and_what_may_not(
    write: Callable[..., Path], tmp_path: Path, name: str, how: str
) -> None:
    """Optimizer and random state may be missing if a person allows it, weights and counters not."""
    write(1)
    damage(write(2) / name, how)
    with pytest.raises(LabError, match=name.replace(".", r"\.")):
        checkpoint.verify(tmp_path / "step-2")
    latest, skipped = checkpoint.latest_valid(tmp_path)
    assert latest is not None and latest.step == 1 and len(skipped) == 1
    damage(tmp_path / "step-1" / "optimizer.safetensors", "short")
    latest, skipped = checkpoint.latest_valid(tmp_path)
    assert latest is None and len(skipped) == 2
    allowed, _ = checkpoint.latest_valid(tmp_path, incomplete=True)
    assert allowed is not None
    if name in checkpoint.NEEDED:
        assert (allowed.step, allowed.missing_files) == (1, ("optimizer.safetensors",))
    else:
        assert (allowed.step, allowed.missing_files) == (2, (name,))


def test_a_checkpoint_under_another_number_is_damaged(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write(3).rename(tmp_path / "step-30")
    with pytest.raises(LabError, match="damaged"):
        checkpoint.verify(tmp_path / "step-30")


def test_a_manifest_that_leaves_a_file_out_is_none(write: Callable[..., Path]) -> None:
    path = write(1)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["optimizer.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LabError, match="no complete manifest"):
        checkpoint.verify(path)


def test_weights_come_back_by_name_and_in_their_type(write: Callable[..., Path]) -> None:
    path = write(1)
    other = Small(fill=7.0)
    checkpoint.load_weights(path, other)
    model = Small()
    updated(model)
    assert torch.equal(other.learned, model.learned)
    assert (other.frozen == 7.0).all(), "what does not train is not in it"
    narrow: Any = Small().bfloat16()
    with pytest.raises(LabError, match=r"holds 'learned' as torch\.float32"):
        checkpoint.load_weights(path, narrow)
    assert (narrow.learned == 1.0).all(), "nothing is half loaded"
    checkpoint.load_weights(path, narrow, cast=True)
    assert torch.equal(narrow.learned, model.learned.bfloat16())
    renamed = nn.Module()
    renamed.else_where = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(LabError, match="other trainable parameters"):
        checkpoint.load_weights(path, renamed)


def test_moments_come_back_or_the_resume_is_refused(write: Callable[..., Path]) -> None:
    path = write(1)
    model = Small()
    before = updated(Small()).state_dict()["state"][0]
    optimizer = torch.optim.AdamW([model.learned], lr=0.1)
    checkpoint.load_optimizer(path, model, optimizer)
    after = optimizer.state[model.learned]
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    model.frozen.requires_grad_(True)
    with pytest.raises(LabError, match="no optimizer state for every"):
        checkpoint.load_optimizer(path, model, optimizer)


def test_numbers_in_a_state_come_back_beside_its_tensors(tmp_path: Path) -> None:
    """Some rules count their steps as a plain integer."""
    model = Small()
    optimizer = torch.optim.SGD([model.learned], lr=0.1)
    optimizer.state[model.learned] = {"momentum": torch.ones(3, 2), "step": 41, "RMS": 0.25}
    path = checkpoint.save(tmp_path, 5, model, optimizer, {"used": {}}, {})
    other = torch.optim.SGD([model.learned], lr=0.1)
    checkpoint.load_optimizer(path, model, other)
    state = other.state[model.learned]
    assert (state["step"], state["RMS"]) == (41, 0.25)
    assert torch.equal(state["momentum"], torch.ones(3, 2))


def test_saving_copies_no_moments_but_shared_ones(tmp_path: Path) -> None:
    """A copy of all would double the optimizer's memory; what two parameters share is written for
    each, and comes back."""
    model = Small()
    model.frozen.requires_grad_(True)
    shared = torch.arange(6.0).view(3, 2)
    optimizer = torch.optim.SGD([model.learned, model.frozen], lr=0.1)
    own = {"exp_avg": torch.ones(3, 2)}
    optimizer.state[model.learned] = {"map": shared, **own}
    optimizer.state[model.frozen] = {"map": shared}
    moments = checkpoint._moments(optimizer, checkpoint.trainable(model))
    assert moments["learned|exp_avg"].data_ptr() == own["exp_avg"].data_ptr()
    path = checkpoint.save(tmp_path, 5, model, optimizer, {"used": {}}, {})
    other = torch.optim.SGD([model.learned, model.frozen], lr=0.1)
    checkpoint.load_optimizer(path, model, other)
    for weight in (model.learned, model.frozen):
        assert torch.equal(other.state[weight]["map"], shared)


def draw() -> list[float]:
    """One number of every generator, and a Gaussian, of which Python and numpy keep a spare."""
    return [
        float(torch.rand(())), random.random(), random.gauss(0, 1),
        float(np.random.rand()), float(np.random.randn()),
    ]  # fmt: skip


def test_every_generator_goes_on_where_it_stood(write: Callable[..., Path]) -> None:
    random.gauss(0, 1)
    np.random.randn()
    saved = checkpoint.verify(write(1))
    expected = [draw() for _ in range(3)]
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    checkpoint.restore_random(saved)
    assert [draw() for _ in range(3)] == expected


def test_what_is_no_state_of_this_run_is_refused_by_name(write: Callable[..., Path]) -> None:
    """Files that are as their manifest has them, and hold something else."""
    saved = checkpoint.verify(write(1))
    odd = replace(saved, state=saved.state | {"random": {"python": [3, [1], None]}})
    with pytest.raises(LabError, match="step-1 holds something else than a checkpoint"):
        checkpoint.restore_random(odd)
    with pytest.raises(torch.OutOfMemoryError), checkpoint.readable(saved.path):
        raise torch.OutOfMemoryError("9 GiB")


def test_what_a_method_adds_is_kept_apart(write: Callable[..., Path]) -> None:
    extra = {"torch": torch.tensor([1.5]), "left|a.b": torch.tensor([True, False])}
    saved = checkpoint.verify(write(1, extra=extra))
    state = checkpoint.method_state(saved.path)
    assert state.keys() == extra.keys()
    assert all(torch.equal(state[key], value) for key, value in extra.items())
    checkpoint.restore_random(saved)  # the generator's own state is not the method's


def test_a_save_that_fails_leaves_the_checkpoint_of_that_step(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(1, 2.0)

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", fail)
    with pytest.raises(OSError, match="No space"):
        write(1, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"], "nothing half done is left"
    assert checkpoint.verify(path).state["eval_loss"] == 2.0


def test_every_file_is_on_the_disk_before_the_checkpoint_has_its_name(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses power leaves a whole checkpoint or none."""
    done: list[str] = []
    sync, replace = checkpoint.os.fsync, checkpoint.os.replace

    def note_sync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        sync(descriptor)

    def note_replace(source: Any, target: Any) -> None:
        done.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "fsync", note_sync)
    monkeypatch.setattr(checkpoint.os, "replace", note_replace)
    folder = write(3).parent
    named = done.index("step-3")
    assert set(checkpoint.FILES) <= set(done[:named])
    assert done[-1] == folder.name, "and so is the name"
    assert "manifest.json" in done[:named]


def test_weights_of_another_shape_are_refused_even_where_they_could_be_spread(
    tmp_path: Path,
) -> None:
    row = nn.Module()
    row.learned = nn.Parameter(torch.zeros(1, 2))
    path = checkpoint.save(tmp_path, 1, row, torch.optim.SGD([row.learned]), {"used": {}}, {})
    model = Small()
    with pytest.raises(LabError, match=r"holds 'learned' \(1, 2\), the model \(3, 2\)"):
        checkpoint.load_weights(path, model)
    assert (model.learned == 1.0).all()


def test_moments_keep_their_own_type_beside_narrow_weights(tmp_path: Path) -> None:
    model: Any = Small().bfloat16()
    optimizer = torch.optim.SGD([model.learned], lr=0.1)
    moment = torch.full((3, 2), 1 + 2**-20)  # which bfloat16 would round
    optimizer.state[model.learned] = {"exp_avg": moment}
    path = checkpoint.save(tmp_path, 5, model, optimizer, {"used": {}}, {})
    other = torch.optim.SGD([model.learned], lr=0.1)
    checkpoint.load_optimizer(path, model, other)
    assert torch.equal(other.state[model.learned]["exp_avg"], moment)
