"""A result as a plain LoRA: the ranks that an energy needs, and what the conversion costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from lab import background_job, paths
from lab.atomic_files import read_object, write_json
from lab.chat import models as chat_models
from lab.errors import LabError
from lab.evals import held_out
from lab.export import combine, lora_form
from lab.export.combine import Combination
from lab.paths import RunDir
from lab.rank import convert, decompose, measure
from lab.rank.updates import Update, updates
from tests.conftest import run_here
from tests.methods import tiny

SHORT = {"max_steps": 3, "eval_steps": 0, "save_steps": 0, "learning_rate": 0.01}
BY_DIFFERENCE = ("ia3", "loha", "lokr", "oft", "vera", "adalora")
CONVERTED = ("loha", "lokr", "vera", "lora")
DECOMPOSED = ("full", "ia3", "oft", "adalora")  # PEFT does not convert them


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, make_spec: Callable[..., dict[str, Any]]
) -> Iterator[tuple[Path, dict[str, RunDir]]]:
    """A short run of each family, by the method's name."""
    from tests.conftest import SHARED_MODELS

    folder = tmp_path_factory.mktemp("families") / "home"
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_HOME", str(folder))
        patch.setenv("LAB_MODELS", str(SHARED_MODELS))
        for name in (*BY_DIFFERENCE, "lora", "full", "bottleneck", "prefix", "ln_tuning"):
            runs[name] = run_here(make_spec(name, train=SHORT))
        yield folder, runs


@pytest.fixture
def families(
    home: tuple[Path, dict[str, RunDir]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, RunDir]:
    monkeypatch.setenv("LAB_HOME", str(home[0]))
    return home[1]


def deltas(run: RunDir) -> dict[str, np.ndarray]:
    """What PEFT adds to the weight of each layer, by the layer's name."""
    model = chat_models.load(chat_models.parse(f"run:{run.id}")).model
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    }


def changes(run: RunDir, name: str) -> dict[str, np.ndarray]:
    """What a result changes of each matrix of its base, by the weight's name; tied ones once."""
    import torch

    from lab import methods
    from lab.models import catalog, weights

    named = chat_models.parse(f"run:{run.id}")
    before = weights.load_model(catalog.resolve(named.base), torch.float32).state_dict()
    result = chat_models.load(named).model
    after = (result if name == "full" else methods.get(name).merge(result)).state_dict()
    once = {tensor.data_ptr(): key for key, tensor in reversed(before.items())}.values()
    return {
        key: (after[key] - before[key]).float().numpy()
        for key in once
        if before[key].ndim == 2 and not before[key].equal(after[key])
    }


def product(run: RunDir) -> dict[str, np.ndarray]:
    """B A of each layer of a saved LoRA whose scale is 1, from its file alone."""
    tensors = load_file(run.artifact / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        ).numpy()
        for name in tensors
        if name.endswith("lora_A.weight")
    }


def truncated(delta: np.ndarray, energy: float) -> tuple[int, np.ndarray]:
    """(rank, matrix) of the fewest singular values that hold this share of their squares."""
    u, values, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    rank = 1
    while (values[:rank] ** 2).sum() < energy * (values**2).sum():
        rank += 1
    return rank, (u[:, :rank] * values[:rank]) @ vt[:rank]


@pytest.mark.parametrize("name", BY_DIFFERENCE)
def test_the_energy_of_any_family_is_that_of_its_merged_weights(
    families: dict[str, RunDir], name: str
) -> None:
    """By a plain decomposition of what merging changes."""
    run = families[name]
    spectra = {
        key: np.linalg.svd(delta, compute_uv=False) for key, delta in changes(run, name).items()
    }
    report = measure.measure(run)
    assert {matrix.name for matrix in report.matrices} == set(spectra), name
    total = sum((values**2).sum() for values in spectra.values())
    for rank in (1, 3, 8):
        share = sum((values[:rank] ** 2).sum() for values in spectra.values()) / total
        assert report.energy[rank - 1] == pytest.approx(share, abs=1e-4), (name, rank)
    half = measure.measure(run, energy=0.5)
    assert half.needed <= report.needed and half.energy[half.needed - 1] >= 0.5
    assert half.threshold == 0.5, "The report says which share it is of."


@pytest.mark.parametrize(
    ("name", "says"),
    [("bottleneck", "no matrix"), ("prefix", "no matrix"), ("ln_tuning", "no matrix")],
)
def test_what_has_no_update_as_a_matrix_says_why(
    families: dict[str, RunDir], name: str, says: str
) -> None:
    with pytest.raises(LabError, match=says):
        measure.measure(families[name])


def test_vectors_that_change_are_counted(
    families: dict[str, RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from lab.models import catalog, weights

    run = families["ln_tuning"]
    named = chat_models.parse(f"run:{run.id}")
    model = weights.load_model(catalog.resolve(named.base), torch.float32)
    for layer in model.model.layers:
        layer.input_layernorm.weight.data += 1
    monkeypatch.setattr(chat_models, "load", lambda named: SimpleNamespace(model=model))
    with pytest.raises(LabError, match=r"changes 2 vectors \(norms, biases\) and no matrix"):
        measure.measure(run)


def test_a_matrix_that_has_grown_is_left_out(
    families: dict[str, RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    """New tokens are rows that the base does not have: there is nothing to take them from."""
    run, load = families["full"], chat_models.load

    def load_larger(named: Any) -> Any:
        loaded = load(named)
        size = loaded.model.get_input_embeddings().weight.shape[0]
        loaded.model.resize_token_embeddings(size + 2, mean_resizing=False)
        return loaded

    known = {update.name for update in updates(run)}
    monkeypatch.setattr(chat_models, "load", load_larger)
    assert known - {update.name for update in updates(run)} == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("name", CONVERTED)
def test_each_layer_gets_the_fewest_singular_values_that_hold_the_energy(
    families: dict[str, RunDir], name: str, lab_json: Callable[..., Any]
) -> None:
    run = families[name]
    expected = {layer: truncated(delta, 0.9) for layer, delta in deltas(run).items()}
    outcome = lab_json("rank", run.id, "--convert", "--energy", "0.9")
    assert outcome["ranks"] == {layer: rank for layer, (rank, _) in expected.items()}
    new = paths.run_dir(outcome["run"])
    for layer, matrix in product(new).items():
        assert matrix == pytest.approx(expected[layer][1], abs=1e-5), layer
    losses = lab_json("evaluate", f"run:{run.id}", f"run:{new.id}")["models"]
    assert outcome["loss_before"] == pytest.approx(losses[0]["loss"], rel=1e-6)
    assert outcome["loss_after"] == pytest.approx(losses[1]["loss"], rel=1e-6)
    assert 0 < outcome["largest_difference"] and 0.5 < outcome["same_top"] <= 1
    assert outcome["fidelity"] ** 2 >= 0.9 and outcome["rank"] == max(outcome["ranks"].values())
    receipt = read_object(new.artifact / "receipt.json") or {}
    assert receipt["converted_from"] == {"results": [run.id], "energy": 0.9}
    assert receipt["proof"]["equal"], "It is read back and answers as in memory."
    card = (new.artifact / "README.md").read_text()
    assert run.id in card and "90 %" in card
    assert outcome["bytes_after"] == sum(
        file.stat().st_size for file in new.artifact.rglob("*") if file.is_file()
    )


def test_a_base_that_nobody_recorded_is_told(
    families: dict[str, RunDir], lab_json: Callable[..., Any]
) -> None:
    """Of a run from before the lab kept the hash of the base."""
    run = families["lora"]
    file = run.artifact / "receipt.json"
    receipt = file.read_text()
    assert lab_json("rank", run.id, "--convert", "--energy", "0.5")["base_note"] == ""
    try:
        write_json(file, {k: v for k, v in (read_object(file) or {}).items() if k != "base"})
        outcome = lab_json("rank", run.id, "--convert", "--energy", "0.5")
    finally:
        file.write_text(receipt)
    assert "was trained before the lab kept a hash of the base" in outcome["base_note"]


@pytest.mark.parametrize("name", DECOMPOSED)
def test_what_peft_does_not_convert_is_decomposed(families: dict[str, RunDir], name: str) -> None:
    """Each linear layer as a truncated decomposition of what the result changes of it; embeddings
    and norms, which full fine-tuning changes too, stay as the base has them, and count as lost."""
    run = families[name]
    deltas = changes(run, name)
    layers = {key.removesuffix(".weight"): delta for key, delta in deltas.items() if "proj" in key}
    expected = {layer: truncated(delta, 0.9) for layer, delta in layers.items()}
    outcome = convert.convert(run, 0.9)
    new = paths.run_dir(outcome.run)
    products = product(new)
    assert products.keys() == layers.keys() and layers
    lost = sum(float((delta**2).sum()) for key, delta in deltas.items() if "proj" not in key)
    assert (lost > 0) is (name == "full")
    for layer, (rank, matrix) in expected.items():
        assert outcome.ranks[layer] == rank, layer
        assert products[layer] == pytest.approx(matrix, abs=1e-5), layer
        lost += float(((layers[layer] - matrix) ** 2).sum())
    total = sum(float((delta**2).sum()) for delta in deltas.values())
    assert outcome.fidelity == pytest.approx((1 - lost / total) ** 0.5, abs=1e-4)
    files = {file.name for file in new.artifact.iterdir()}
    assert "adapter_model.safetensors" in files
    assert not files & {"model.safetensors", "config.json"}, "no whole model beside the adapter"
    receipt = read_object(new.artifact / "receipt.json") or {}
    assert receipt["proof"]["equal"] and receipt["method"]["name"] == "lora"
    assert outcome.loss_before is not None and outcome.loss_after is not None
    if name != "full":
        assert abs(outcome.loss_after - outcome.loss_before) < 0.05


def test_a_layer_of_gpt2_is_stored_the_other_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    base, name = tiny.make_model("gpt2"), "transformer.h.0.mlp.c_fc"
    weight = base.get_submodule(name).weight.detach().numpy()
    draw = np.random.default_rng(0)
    delta = draw.normal(size=(32, 3)) @ draw.normal(size=(3, weight.shape[1]))
    embedding = Update("transformer.wte.weight", 2 * np.ones((96, 32)), None, np.ones((96, 32)))
    found_updates = [embedding, Update(f"{name}.weight", delta, None, weight)]
    monkeypatch.setattr(decompose, "updates", lambda run: iter(found_updates))
    monkeypatch.setattr(decompose, "_highest_rank", lambda: 3)  # which may be reached
    form = decompose.decompose(RunDir(Path("/nowhere")), base, 0.9999)
    assert form.ranks == {name: 3} and form.rank == 3
    energy = (delta**2).sum()
    assert form.fidelity == pytest.approx((energy / (energy + 4 * 96 * 32)) ** 0.5, rel=1e-4)
    layer = form.put_on(base, "x").get_submodule(f"base_model.model.{name}")
    assert layer.get_delta_weight("x").detach().numpy() == pytest.approx(delta, abs=1e-4)


def test_a_rank_beyond_what_a_lora_has_is_told(
    families: dict[str, RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompose, "_highest_rank", lambda: 1)
    before = paths.all_runs()
    with pytest.raises(LabError, match=r"90 % of the energy needs rank .* a LoRA has 1 at most"):
        convert.convert(families["oft"], 0.9)
    with pytest.raises(LabError, match="no matrix"):
        convert.convert(families["ln_tuning"], 0.9)
    assert paths.all_runs() == before, "Nothing is left of it."


def test_more_energy_is_more_rank_and_less_difference(families: dict[str, RunDir]) -> None:
    import torch

    from lab.export import merge_proof
    from lab.spec import RunSpec
    from lab.train import proof

    run = families["loha"]
    little, much = (convert.convert(run, energy) for energy in (0.6, 0.9999))
    assert all(little.ranks[layer] <= rank for layer, rank in much.ranks.items())
    assert little.rank < much.rank and little.fidelity < much.fidelity
    assert little.largest_difference > 3 * much.largest_difference
    assert abs((much.loss_after or 0) - (much.loss_before or 0)) < 1e-3
    losses, _ = held_out.losses(run, paths.run_dir(little.run))
    assert [little.loss_before, little.loss_after] == pytest.approx(losses, rel=1e-6)
    assert little.loss_before != little.loss_after, "so that the two can be told apart"
    models = [chat_models.load(chat_models.parse(f"run:{each}")) for each in (run.id, little.run)]
    rows, _ = merge_proof.probe_rows(
        RunSpec.of_run(run), models[0].receipt, models[0].model, models[0].tokenizer
    )
    answers = [proof.answers(loaded.model, rows) for loaded in models]
    assert little.largest_difference == pytest.approx(
        float((answers[0] - answers[1]).abs().max()), rel=1e-3
    )
    assert little.rows == len(rows) and torch.isfinite(answers[1]).all()
    before, after = (logits.double().log_softmax(-1) for logits in answers)
    kl = float((before.exp() * (before - after)).sum(-1).mean())
    assert little.kl == pytest.approx(kl, rel=1e-2), "in nats a position"
    share = little.largest_difference / float(answers[0].std())
    assert little.share_of_spread == pytest.approx(share, rel=1e-3)
    sizes = [
        sum(file.stat().st_size for file in each.artifact.rglob("*") if file.is_file())
        for each in (run, paths.run_dir(little.run))
    ]
    assert [little.bytes_before, little.bytes_after] == sizes
    spec = RunSpec.of_run(paths.run_dir(little.run))
    assert spec.name == "tiny loha as LoRA"
    assert spec.method["alpha"] == spec.method["rank"] == little.rank, "its scale is 1"


def test_the_new_result_says_nothing_of_how_the_old_one_was_trained(
    families: dict[str, RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.spec import RunSpec

    run, why = families["lora"], "There is no dataset of that name."
    monkeypatch.setattr(held_out, "losses", lambda *runs: ([None, None], why))
    stored = read_object(run.spec) or {}
    train = stored["train"] | {"adapter_precision": "bfloat16"}
    write_json(run.spec, stored | {"name": "", "init_from_run": "run:x", "train": train})
    try:
        outcome = convert.convert(run, 0.9)
    finally:
        write_json(run.spec, stored)
    spec = RunSpec.of_run(paths.run_dir(outcome.run))
    assert spec.name == f"{run.id} as LoRA", "A run without a name is called by its ID."
    assert spec.init_from_run == "", "The new result begins with the base."
    assert spec.train.adapter_precision == "float32", "The factors are written in float32."
    assert (outcome.loss_before, outcome.loss_after, outcome.note) == (None, None, why)


def test_a_base_with_other_weights_is_refused(families: dict[str, RunDir]) -> None:
    run = families["lora"]
    file, before = run.artifact / "receipt.json", paths.all_runs()
    receipt = read_object(file) or {}
    write_json(file, receipt | {"base": receipt["base"] | {"weights": "0" * 64}})
    try:
        with pytest.raises(LabError, match=f"is not the one {run.id} was trained on"):
            convert.convert(run, 0.9)
    finally:
        write_json(file, receipt)
    assert paths.all_runs() == before, "Nothing is left of it."


def test_the_energy_reaches_the_work_in_the_background(
    families: dict[str, RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(background_job, "start", lambda *arguments: calls.append(arguments))
    run = families["loha"]
    convert.start(run, 0.8)
    assert calls == [(convert.job_file(run), ["lab.rank", "convert", run.id], {"energy": 0.8})]


def test_what_cannot_be_converted_says_why_before_anything_is_loaded(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert.weights, "load_model", lambda *rest: pytest.fail("it was loaded"))
    lora = trained[1]
    for energy in (0.0, 0.49, 1.0, 7.0, float("nan")):
        with pytest.raises(LabError, match=r"is not 0\.5 to 0\.9999"):
            convert.convert(lora, energy)
    config = read_object(lora.artifact / "adapter_config.json") or {}
    for change, says in (
        ({"peft_type": "IA3"}, "not an update that is added to a weight"),
        ({"peft_type": "OFT"}, "not an update that is added to a weight"),
        ({"peft_type": "ADALORA"}, "PEFT brings no AdaLoRA"),
        ({"use_dora": True}, "norms of DoRA"),
        ({"bias": "all"}, "biases beside its updates"),
    ):
        write_json(lora.artifact / "adapter_config.json", config | change)
        assert says in lora_form.why_not(lora), "as one of several to combine"
    spec = read_object(lora.spec) or {}
    write_json(lora.artifact / "adapter_config.json", config | {"peft_type": "PREFIX_TUNING"})
    write_json(lora.spec, spec | {"method": {"name": "prefix"}})
    with pytest.raises(LabError, match="not an update that is added to a weight"):
        convert.start(lora, 0.9)
    write_json(lora.artifact / "adapter_config.json", config)
    write_json(lora.spec, spec | {"method": {"name": "qlora"}})
    assert convert.why_not(lora) == "the matrices of its base are quantised."
    lora.artifact.rename(lora.path / "gone")
    with pytest.raises(LabError, match="no trained model"):
        convert.convert(lora)


def test_what_peft_refuses_is_told_and_leaves_nothing(
    families: dict[str, RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "peft.tuners.loha.layer.Linear.supports_lora_conversion", lambda self, name: False
    )
    before = paths.all_runs()
    with pytest.raises(LabError, match="PEFT cannot bring LoHa"):
        convert.convert(families["loha"])
    assert paths.all_runs() == before


def test_the_background_work_tells_its_outcome(families: dict[str, RunDir]) -> None:
    run = families["lokr"]
    file = convert.job_file(run)
    paths.make_folder(file.parent)
    write_json(file, {"request": {"energy": 0.8}})
    assert convert.work(run) == 0
    job = background_job.read(file)
    assert job is not None and job.finish == "done" and job.result["energy"] == 0.8
    new = paths.run_dir(job.result["run"])
    assert product(new).keys() == job.result["ranks"].keys()
    receipt = read_object(new.artifact / "receipt.json") or {}
    assert receipt["converted_from"] == {"results": [run.id], "energy": 0.8}


def test_combining_takes_the_energy_for_what_is_no_lora(
    families: dict[str, RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    lora, other = families["lora"], families["lokr"]
    expected = {layer: truncated(delta, 0.8) for layer, delta in deltas(other).items()}
    combined = combine.combine(
        Combination((lora.id, other.id), (1.0, 1.0), "cat", energy=0.8, rank=2)
    )
    plain = deltas(lora)
    total = {layer: plain.get(layer, 0.0) + matrix for layer, (_, matrix) in expected.items()}
    for layer, matrix in product(paths.run_dir(combined.run)).items():
        assert matrix == pytest.approx(total.get(layer, plain.get(layer)), abs=1e-5), layer
    largest = max(rank for rank, _ in expected.values())
    assert f"{other.id} was brought into a LoRA of rank {largest} at most" in combined.note
    assert combined.rank == 16 + largest and combined.deviation < 1e-5
    with pytest.raises(LabError, match=r"energy 0\.3 is not 0\.5 to 0\.9999"):
        combine.check(Combination((lora.id, other.id), (1.0, 1.0), energy=0.3))
    with pytest.raises(LabError, match="needs equal ranks"):
        combine.combine(Combination((lora.id, other.id), (1.0, 1.0), "ties", energy=0.8))
    assert lora_form.is_lora(lora) and not lora_form.is_lora(other)
