"""What is said of a model that was loaded: a difference of either sign, and every tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from lab.chat.engine.proof import EDGE, Proof, count_loaded, difference


def test_a_difference_counts_in_both_directions() -> None:
    low, high = torch.zeros(2, 3), torch.tensor([[0.0, 0.25, 0.0], [0.0, 0.0, 0.5]])
    assert difference(low, high) == difference(high, low) == 0.5


def test_a_tensor_is_in_the_model_when_all_of_it_is(tmp_path: Path) -> None:
    model = torch.nn.Linear(4 * EDGE, 3)
    middle = model.weight.detach().clone()
    middle[1, 2] += 1  # neither at the beginning nor at the end
    stored = {"same": model.weight.detach().clone(), "middle": middle, "bias": torch.ones(5)}
    save_file(stored, tmp_path / "weights.safetensors")
    assert count_loaded(model, [tmp_path / "weights.safetensors"]) == (3, 1)


def test_a_tensor_that_is_missing_is_told() -> None:
    [problem] = Proof(tensors=4, tensors_loaded=3, effect=0.5, base_difference=0.0).problems
    assert problem.startswith("Only 3 of the result's 4 tensors are")
    assert Proof(tensors=4, tensors_loaded=4, effect=0.5, base_difference=0.0).problems == []
