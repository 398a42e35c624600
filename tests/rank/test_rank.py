"""Spectra against plain decompositions, and the updates of real runs against merged weights."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np
import pytest

from lab import paths, process
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.evals import held_out
from lab.paths import RunDir
from lab.rank import measure, repair
from lab.rank.measure import RankProgress, RankReport
from lab.rank.spectrum import (
    count_intruders,
    energy_kept,
    energy_rank,
    low_rank_svd,
    spectrum,
    subspace_similarity,
)
from lab.rank.updates import _factors

RNG = np.random.default_rng(0)


def test_the_svd_of_a_product_is_that_of_the_matrix() -> None:
    left, right = RNG.normal(size=(20, 4)), RNG.normal(size=(4, 30))
    u, values, vt = low_rank_svd(left, right)
    plain = np.linalg.svd(left @ right, compute_uv=False)
    assert values == pytest.approx(plain[:4]) and plain[4] < 1e-10
    assert (u * values) @ vt == pytest.approx(left @ right)


def test_the_figures_of_a_known_spectrum() -> None:
    matrix = spectrum("w", (9, 9), 4, np.array([4.0, 2.0, 1.0, 1e-9]))
    assert matrix.values == (4.0, 2.0, 1.0), "the last is rounding"
    assert matrix.norm == pytest.approx(math.sqrt(21)) and matrix.stable == pytest.approx(21 / 16)
    assert matrix.condition == 4.0 and matrix.needed == 2, "20 of 21 are 95.2 %"
    shares = np.array([4, 2, 1]) / 7
    assert matrix.effective == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    flat = spectrum("w", (9, 9), 8, np.ones(8))
    assert (flat.needed, flat.condition) == (8, 1.0) and flat.effective == pytest.approx(8.0)
    nothing = spectrum("w", (9, 9), 8, np.zeros(8))
    assert (nothing.needed, nothing.norm, nothing.values) == (0, 0.0, ())


def test_energy_is_pooled_over_matrices() -> None:
    shares = energy_kept([np.array([3.0, 1.0]), np.array([2.0, 2.0, 1.0])], 3)
    assert shares.tolist() == pytest.approx([13 / 19, 18 / 19, 1.0])
    assert energy_rank(np.array([1.0, 1.0, 1.0, 1.0]), 0.5) == 2


def test_likeness_is_one_of_a_space_with_itself_and_small_of_random_ones() -> None:
    first, second = (np.linalg.qr(RNG.normal(size=(200, 5)))[0] for _ in range(2))
    turned = first @ np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    assert subspace_similarity(first, turned) == pytest.approx(1.0)
    assert subspace_similarity(first, second) < 0.15
    half = np.concatenate([first[:, :2], second[:, 2:]], axis=1)
    assert subspace_similarity(first[:, :2], half) == pytest.approx(1.0, abs=0.05)


def test_a_planted_direction_is_an_intruder_and_a_scaled_one_is_none() -> None:
    u, _, vt = np.linalg.svd(RNG.normal(size=(60, 30)), full_matrices=False)
    base = (u * np.linspace(10, 1, 30)) @ vt
    stretched = 5.0 * np.outer(u[:, 0], vt[0])
    assert count_intruders(base, stretched) == 0
    outside = np.linalg.qr(np.concatenate([u, RNG.normal(size=(60, 1))], axis=1))[0][:, -1]
    assert count_intruders(base, 40.0 * np.outer(outside, vt[3])) == 1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_factors_of_lora_are_what_merging_adds(kind: str) -> None:
    import peft
    import torch

    from tests.methods import tiny

    base = tiny.make_model(kind)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear")
    model = peft.get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    factors = dict(_factors(model))
    merged = model.merge_and_unload().state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, merged[name])}
    assert set(factors) == changed and len(changed) >= 8
    for name, (left, right) in factors.items():
        expected = (merged[name] - before[name]).numpy()
        assert left @ right == pytest.approx(expected, abs=1e-5), name


def test_what_adds_more_than_a_product_has_no_factors() -> None:
    import peft

    from tests.methods import tiny

    for more in ({"use_dora": True}, {"modules_to_save": ["lm_head"]}):
        config = peft.LoraConfig(r=4, target_modules=["q_proj"], **more)
        model = peft.get_peft_model(tiny.make_model("llama"), config)
        assert dict(_factors(model)) == {}, f"{more} changes the weights in another way, too."


def test_two_runs_are_measured_and_compared(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, lora = trained
    report = measure.measure(lora, full)
    assert report.rank == 16 and 1 <= report.needed <= 16
    assert report.energy[-1] == pytest.approx(1.0) and len(report.energy) == 16
    assert report.energy[report.needed - 1] >= 0.95 > (report.energy[report.needed - 2])
    assert set(report.similarity) == {matrix.name for matrix in report.matrices}
    assert all(0 <= value <= 1 for value in report.similarity.values())
    other_way = measure.measure(full, lora).similarity
    assert {name: other_way[name] for name in report.similarity} == pytest.approx(
        report.similarity, abs=1e-4
    ), "of both, the directions that hold this share"
    half = measure.measure(lora, energy=0.5)
    assert half.needed == 1 + sum(share < 0.5 for share in half.energy) < report.needed
    pairs = list(zip(half.matrices, report.matrices, strict=True))
    assert all(less.needed <= more.needed for less, more in pairs)
    assert any(less.needed < more.needed for less, more in pairs), "of each matrix, too"
    itself = measure.measure(lora, lora)
    assert list(itself.similarity.values()) == pytest.approx([1.0] * 14, abs=1e-4)
    whole = measure.measure(full)
    assert whole.rank > 16, "full fine-tuning is not held to a rank"
    assert report.intruders is None, "they were not looked for"
    monkeypatch.setattr(measure, "count_intruders", lambda base, delta: 2)
    counted = measure.measure(lora, intruders=True)
    assert counted.intruders == 2 * len(report.matrices), "of all matrices together"


def test_the_report_is_kept_and_its_progress_told(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lora = trained
    assert measure.look(lora) is None
    phases: list[Any] = []
    write = measure._write
    monkeypatch.setattr(
        measure, "_write", lambda file, progress: phases.append(progress) or write(file, progress)
    )
    assert measure.work(lora) == 0
    assert [phases[0].phase, phases[-1].phase, phases[-1].done] == [
        "loading the base", "decomposing", 14,
    ]  # fmt: skip
    report = measure.look(lora)
    assert isinstance(report, RankReport) and report.run == lora.id
    assert json.loads(measure.file_of(lora).read_text())["needed"] == report.needed
    write_json(lora.artifact / "receipt.json", {"another": "result"})
    assert measure.look(lora) is None, "another result has another report"


def test_each_pair_of_runs_has_a_report_of_its_own(trained: list[RunDir]) -> None:
    full, lora = trained
    files = {measure.file_of(*runs) for runs in ((full,), (lora,), (full, lora), (lora, full))}
    assert len(files) == 4


def test_a_process_that_is_gone_is_not_waited_for(trained: list[RunDir]) -> None:
    _, lora = trained
    file = measure.file_of(lora)
    paths.make_folder(file.parent)
    alive = process.identity(os.getpid()) or {}
    for worker, is_running in ((alive, True), (alive | {"start": -1}, False), ({}, False)):
        measure._write(file, RankProgress("decomposing", 3, "", worker))
        progress = measure.look(lora)
        assert (progress == RankProgress("decomposing", 3, "", worker)) == is_running
        assert (progress is None) != is_running, "it can be begun again"


def test_a_run_without_a_result_is_refused_in_words(trained: list[RunDir]) -> None:
    full, _ = trained
    full.artifact.rename(full.path / "gone")
    with pytest.raises(LabError, match="no trained model"):
        measure.measure(full)
    assert measure.work(full) == 1
    progress = measure.look(full)
    assert isinstance(progress, RankProgress) and "no trained model" in progress.error


def planted(run: RunDir) -> list[str]:
    """Make two updates of a LoRA's result large and away from the base; their layers' names."""
    from safetensors.torch import load_file, save_file

    file = run.artifact / "adapter_model.safetensors"
    tensors = load_file(file)
    names = [name for name in tensors if name.endswith("gate_proj.lora_B.weight")]
    for name in names:
        tensors[name][:, 0] += 40 * RNG.normal(size=len(tensors[name])).astype(np.float32)
    save_file(tensors, file)
    return names


def test_a_repair_is_a_new_proven_result_with_what_it_wins_and_gives_up(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch, lab_json: Any
) -> None:
    from safetensors.torch import load_file

    from lab.chat import models as chat_models
    from lab.runs import index
    from lab.train import forgetting

    _, lora = trained
    names = planted(lora)
    monkeypatch.setattr(forgetting, "prompts", lambda: ["Who are you?", "Name a river."])
    report = measure.measure(lora, intruders=True)
    intruded = {matrix.name for matrix in report.matrices if matrix.intruders}
    outcome = lab_json("rank", lora.id, "--repair")
    assert (outcome["matrices"], outcome["intruders"]) == (len(intruded), report.intruders)
    assert 2 <= len(intruded) < len(report.matrices)
    new = paths.run_dir(outcome["run"])
    before, after = (load_file(each.artifact / "adapter_model.safetensors") for each in (lora, new))
    for name in before:
        if not name.endswith("lora_B.weight"):
            continue
        first = name.replace("lora_B", "lora_A")
        old, ours = before[name] @ before[first], after[name] @ after[first]
        if name in names:
            assert float(ours.norm() / old.norm()) == pytest.approx(0.75, abs=0.01)
        elif f"{name.removeprefix('base_model.model.')[:-14]}.weight" not in intruded:
            assert (ours - old).norm() <= 1e-5 * old.norm(), "the others stay as they were"
    rows = lab_json("evaluate", f"run:{lora.id}", f"run:{new.id}")["models"]
    losses = [outcome[each]["loss"] for each in ("before", "after")]
    assert losses == pytest.approx([row["loss"] for row in rows], rel=1e-6)
    rises = [abs(outcome[each]["forgetting"]) for each in ("before", "after")]
    assert 0 < rises[1] < rises[0], "of a random base, which forgets in either direction"
    receipt = read_object(new.artifact / "receipt.json") or {}
    assert receipt["proof"]["equal"] and receipt["repaired_from"] == {"results": [lora.id]}
    assert f"Repaired from | {lora.id}" in (new.artifact / "README.md").read_text().replace(
        "**", ""
    )
    entry = index.entry(new)
    assert entry.status.state == "done" and entry.name == "tiny lora repaired"
    assert chat_models.load(chat_models.parse(f"run:{new.id}")).note == ""


def test_what_cannot_be_repaired_says_why(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, lora = trained
    monkeypatch.setattr(repair, "THRESHOLD", 0.0)
    with pytest.raises(LabError, match="only the update of a LoRA"):
        repair.start(full)
    with pytest.raises(LabError, match="no intruder dimension"):
        repair.repair(lora)
    assert len(paths.all_runs()) == 2, "nothing is written for nothing"
    config = read_object(lora.artifact / "adapter_config.json") or {}
    write_json(lora.artifact / "adapter_config.json", config | {"fan_in_fan_out": True})
    with pytest.raises(LabError, match="stores its matrices the other way round"):
        repair.start(lora)
    write_json(lora.artifact / "adapter_config.json", config)
    spec = read_object(lora.spec) or {}
    write_json(lora.spec, spec | {"method": {"name": "qlora"}})
    with pytest.raises(LabError, match="the matrices of its base are quantised"):
        repair.repair(lora)


def test_a_loss_that_cannot_be_measured_says_why_and_loses_no_result(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lora = trained

    def gone(names: object) -> object:
        raise LabError("There is no dataset of that name.", "Upload it again.")

    monkeypatch.setattr(held_out, "evaluate", gone)
    assert held_out.losses(lora, lora) == ([None, None], "There is no dataset of that name.")
