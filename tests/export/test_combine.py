"""Several adapters of one base become one: the sum is the sum, and what differs is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab import paths
from lab.atomic_files import read_object, sha256_of, write_json
from lab.chat import models as chat_models
from lab.errors import LabError
from lab.export import combine, lora_form
from lab.export.combine import Combination
from lab.paths import RunDir
from lab.runs import index
from tests.conftest import run_here

SHORT = {"max_steps": 2, "eval_steps": None, "save_steps": None, "sample_steps": None}


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, make_spec: Callable[..., dict[str, Any]]
) -> Iterator[tuple[Path, list[RunDir]]]:
    """LoRAs of rank 4, 4 and 2, and a LoHa, all of one base."""
    from tests.conftest import SHARED_MODELS

    folder = tmp_path_factory.mktemp("combined") / "home"
    runs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_HOME", str(folder))
        patch.setenv("LAB_MODELS", str(SHARED_MODELS))
        for method, rank, seed in (("lora", 4, 0), ("lora", 4, 1), ("lora", 2, 2), ("loha", 2, 3)):
            spec = make_spec(method, train=SHORT | {"seed": seed, "learning_rate": 0.01})
            spec["method"]["rank"] = rank
            runs.append(run_here(spec))
        yield folder, runs


@pytest.fixture
def runs(home: tuple[Path, list[RunDir]], monkeypatch: pytest.MonkeyPatch) -> list[RunDir]:
    monkeypatch.setenv("LAB_HOME", str(home[0]))
    return home[1]


def updates(run: RunDir) -> dict[str, torch.Tensor]:
    """The update of each layer by its name, from the files alone."""
    tensors = load_file(run.artifact / "adapter_model.safetensors")
    config = read_object(run.artifact / "adapter_config.json") or {}
    scale = config["lora_alpha"] / config["r"]
    return {
        name.removesuffix(".lora_A.weight"): scale
        * tensors[name.replace("lora_A", "lora_B")]
        @ tensors[name]
        for name in tensors
        if name.endswith("lora_A.weight")
    }


def test_a_result_that_does_not_answer_as_in_memory_is_not_kept(
    runs: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.train import proof

    real = proof.prove

    def differs(*arguments: Any, **named: Any) -> Any:
        return replace(real(*arguments, **named), equal=False)

    monkeypatch.setattr(proof, "prove", differs)
    before = sorted(paths.runs().iterdir())
    with pytest.raises(LabError, match="answers otherwise than what was trained"):
        combine.combine(Combination((runs[0].id, runs[1].id), (1.0, 1.0), "cat", name="n"), print)
    assert sorted(paths.runs().iterdir()) == before, "Nothing is left of it."


def test_the_sum_of_two_is_their_sum(runs: list[RunDir], unsynced: dict[Path, list[str]]) -> None:
    first, second, other = runs[0], runs[2], runs[1]
    combined = combine.combine(
        Combination((first.id, second.id), (0.75, -0.5), "cat", name="a | b"), print
    )
    run = paths.run_dir(combined.run)
    assert unsynced[run.path] == [], "It is on the disk before it has its name."
    ours, left, right = updates(run), updates(first), updates(second)
    assert combined.rank == 6 and ours.keys() == left.keys() == right.keys()
    for name, update in ours.items():
        torch.testing.assert_close(update, 0.75 * left[name] - 0.5 * right[name])
    assert combined.deviation < 1e-6 and combined.proof["equal"] and combined.note == ""
    receipt = read_object(run.artifact / "receipt.json") or {}
    assert receipt["combined_from"]["results"] == [first.id, second.id]
    assert receipt["proof"] == combined.proof and receipt["base"]["weights"]
    file = run.artifact / "adapter_model.safetensors"
    assert receipt["weights"] == {file.name: sha256_of(file)}, "not those of the first result"
    assert receipt["method"]["rank"] == 6
    ending = read_object(run.result) or {}
    assert ending["message"] == f"Combined from {first.id}, {second.id}; nothing was trained."
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (run.artifact / name).read_bytes() == (first.artifact / name).read_bytes(), name
    card = (run.artifact / "README.md").read_text()
    assert f"{first.id}, {second.id}" in card and "cat, weights 0.75, -0.5" in card
    entry = index.entry(run)
    assert (entry.status.state, entry.name, entry.method) == ("done", "a | b", "lora")
    loaded = chat_models.load(chat_models.parse(f"run:{run.id}"))
    assert loaded.note == "" and not list(paths.runs().glob(".tmp*"))
    again = combine.combine(Combination((run.id, other.id), (1.0, 1.0), "svd"))
    assert again.rank == 6, "A combined result can be combined."
    assert index.entry(paths.run_dir(again.run)).name == "a | b + " + index.entry(other).name


def test_what_is_pruned_and_cut_is_told_as_a_distance_from_the_sum(runs: list[RunDir]) -> None:
    deviations = {}
    for kind in ("linear", "ties", "dare_linear", "dare_ties", "ties_svd", "svd"):
        pair = (runs[0].id, runs[1].id)
        combined = combine.combine(Combination(pair, (0.5, 0.5), kind, density=0.4))
        assert combined.rank == 4 and combined.proof["equal"], kind
        deviations[kind] = combined.deviation
    assert 0 < deviations["svd"] < 0.9 < min(deviations["dare_ties"], 9), deviations
    pair = (runs[0].id, runs[1].id)
    dense = combine.combine(Combination(pair, (0.5, 0.5), "dare_linear", density=1.0)).deviation
    assert dense == pytest.approx(deviations["linear"]), "A density of 1 drops nothing."
    assert deviations["dare_linear"] > 1.1 * dense, "and 0.4 drops most"
    whole = combine.combine(Combination(pair, (0.5, 0.5), "svd", rank=8))
    assert whole.rank == 8 and whole.deviation < 1e-5, "Two of rank 4 have rank 8 at most."
    draws = [
        combine.combine(Combination(pair, (0.5, 0.5), "dare_linear", seed=seed)).deviation
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("method", ["loha", "lokr", "vera"])
def test_another_family_is_brought_into_the_form_of_a_lora(
    runs: list[RunDir], make_spec: Callable[..., dict[str, Any]], method: str
) -> None:
    lora, other = runs[0], runs[3]
    if method != "loha":
        other = run_here(make_spec(method, train=SHORT | {"learning_rate": 0.01}))
    assert lora_form.why_not(other) == ""
    combined = combine.combine(Combination((lora.id, other.id), (1.0, 1.0), "cat", rank=16))
    fidelity = combined.fidelity
    assert fidelity[lora.id] == 1 and 0.3 < fidelity[other.id] <= 1
    if method == "loha":  # of rank 2: its updates have rank 4 at most
        assert fidelity[other.id] == pytest.approx(1, abs=1e-3)
    model = chat_models.load(chat_models.parse(f"run:{other.id}")).model
    ours, own = updates(paths.run_dir(combined.run)), updates(lora)
    apart = length = 0.0
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            update = module.get_delta_weight("default").detach()
            apart += float((ours[name] - own.get(name, 0.0) - update).square().sum())
            length += float(update.square().sum())
    assert length > 0 and apart / length == pytest.approx(1 - fidelity[other.id] ** 2, abs=1e-3)
    cut = combine.combine(Combination((lora.id, other.id), (1.0, 1.0), "cat", rank=1))
    assert cut.fidelity[other.id] < fidelity[other.id]
    share = f"{100 * cut.fidelity[other.id]:.1f} % of the length of its update"
    assert f"{other.id} was brought into a LoRA of rank 1, which keeps {share}." in cut.note


def test_numbers_are_checked_all_at_once(runs: list[RunDir]) -> None:
    bad = Combination((runs[0].id,), (0.0, 99.0), "mean", density=1.5, rank=0)
    with pytest.raises(LabError) as refusal:
        combine.combine(bad)
    for words in ("2 to 8 different", "1 result and 2 weights", "weight 0 ", "weight 99 "):
        assert words in str(refusal.value)
    assert "'mean' is not a type" in str(refusal.value) and "density 1.5" in str(refusal.value)
    assert "rank 0" in str(refusal.value)
    with pytest.raises(LabError, match=r"needs equal ranks, and they are 2, 4"):
        combine.combine(Combination((runs[0].id, runs[2].id), (1.0, 1.0), "ties"))


def test_results_that_do_not_go_together_are_refused(
    trained: list[RunDir], runs: list[RunDir], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(paths.home(), folder)
    monkeypatch.setenv("LAB_HOME", str(folder))
    left, right = (paths.run_dir(run.id) for run in runs[:2])
    pair = Combination((left.id, right.id), (1.0, 1.0))
    config = read_object(right.artifact / "adapter_config.json") or {}
    write_json(right.artifact / "adapter_config.json", config | {"use_dora": True})
    with pytest.raises(LabError, match="norms of DoRA"):
        combine.check(pair)
    write_json(right.artifact / "adapter_config.json", config | {"modules_to_save": ["lm_head"]})
    with pytest.raises(LabError, match="whole modules"):
        combine.check(pair)
    write_json(right.artifact / "adapter_config.json", config | {"bias": "lora_only"})
    with pytest.raises(LabError, match="whole modules or biases"):
        combine.check(pair)
    write_json(right.artifact / "adapter_config.json", config | {"peft_type": "PREFIX_TUNING"})
    with pytest.raises(LabError, match="not an update that is added"):
        combine.check(pair)
    write_json(right.artifact / "adapter_config.json", config)
    receipt = read_object(right.artifact / "receipt.json") or {}
    for change in ({"template": "{{ x }}"}, {"end_token": "</x>"}):
        lock = receipt["lock"] | change
        write_json(right.artifact / "receipt.json", receipt | {"lock": lock})
        with pytest.raises(LabError, match="different chat templates"):
            combine.check(pair)
    write_json(right.artifact / "receipt.json", receipt | {"base": {"weights": "0" * 64}})
    with pytest.raises(LabError, match="2 different bases"):
        combine.check(pair)
    write_json(right.artifact / "receipt.json", receipt)
    before = sorted(path.name for path in paths.runs().iterdir())
    file = right.artifact / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[1:]), file)
    with pytest.raises(LabError, match="lacks"):
        combine.combine(pair)
    assert sorted(path.name for path in paths.runs().iterdir()) == before
    (right.artifact / "adapter_config.json").unlink()
    with pytest.raises(LabError, match="leaves no adapter"):
        combine.check(pair)
