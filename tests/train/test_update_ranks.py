"""The ranks of updates while a run trains: right, cheap, and without a trace in what is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lab import methods
from lab.atomic_files import read_object
from lab.methods import Context
from lab.methods.parts.low_rank_factors import low_rank_factors
from lab.paths import RunDir
from lab.runs import record_reader
from lab.spec import RunSpec
from lab.train import update_ranks
from lab.train.update_ranks import UpdateRanks
from tests.conftest import attempt_again
from tests.methods import tiny

Work = Callable[..., RunDir]
ZERO_AT_START = ("lora_B", "lora_E")


def adapted(name: str, kind: str = "llama", **options: Any) -> Any:
    """A tiny model under a method whose update is not zero any more."""
    spec = RunSpec.from_json({"method": {"name": name, **options}})
    model = methods.get(name).apply(tiny.make_model(kind), spec.method_config, Context(spec))
    generator = torch.Generator().manual_seed(1)
    for key, weight in model.named_parameters():
        if any(part in key for part in ZERO_AT_START):
            drawn = torch.randn(weight.shape, generator=generator)
            weight.data += 0.1 * drawn
    return model


def plain_values(model: Any) -> list[np.ndarray]:
    """Singular values of what PEFT adds to each layer's weight, as many as are not rounding."""
    spectra = []
    for module in model.modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            delta = module.get_delta_weight("default").detach().double().numpy()
            spectra.append(np.linalg.svd(delta, compute_uv=False))
    return spectra


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("lora", "llama", {"rank": 4, "alpha": 12}),
        ("lora", "gpt2", {"rank": 4}),
        ("lora", "llama", {"rank": 4, "use_rslora": True}),
        ("adalora", "llama", {"rank": 5, "target_rank": 3}),
    ],
)
def test_the_figures_are_those_of_the_whole_matrices(
    name: str, kind: str, options: dict[str, Any]
) -> None:
    model = adapted(name, kind, **options)
    rank = options["rank"]
    deltas = [
        module.get_delta_weight("default").detach()
        for module in model.modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    ]
    for delta, (left, right) in zip(deltas, low_rank_factors(model), strict=True):
        product = left @ right
        expected = delta if delta.shape == product.shape and kind != "gpt2" else delta.T
        torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-6)
    spectra = [values[:rank] for values in plain_values(model)]
    shares = [values / values.sum() for values in spectra]
    figures = UpdateRanks().measure(model)
    assert figures == {
        "rank/possible": rank,
        "rank/effective": pytest.approx(
            np.median([np.exp(-(share * np.log(share)).sum()) for share in shares]), rel=1e-4
        ),
        "rank/stable": pytest.approx(
            np.median([(values**2).sum() / values[0] ** 2 for values in spectra]), rel=1e-4
        ),
        "rank/condition": pytest.approx(
            np.median([values[0] / values[-1] for values in spectra]), rel=1e-3
        ),
    }


def test_what_starts_at_a_part_of_the_base_is_measured_without_it() -> None:
    model = adapted("lora", rank=2, init_lora_weights="pissa")
    start = model.initial_factors
    expected = []
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            before = start[f"{name}.lora_B.default.weight"] @ start[f"{name}.lora_A.default.weight"]
            scale = module.scaling["default"]
            delta = module.get_delta_weight("default").detach() - scale * before
            values = np.linalg.svd(delta.double().numpy(), compute_uv=False)
            expected.append((values**2).sum() / values[0] ** 2)
    figures = UpdateRanks().measure(model)
    assert figures["rank/possible"] == 4, "B A less the two matrices of its start."
    assert figures["rank/stable"] == pytest.approx(np.median(expected), rel=1e-3)


def test_of_many_layers_some_are_measured_the_ends_among_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert update_ranks.evenly(list(range(24))) == list(range(24))
    chosen = update_ranks.evenly(list(range(210)))
    assert len(chosen) == len(set(chosen)) == update_ranks.MAX_MATRICES
    assert (chosen[0], chosen[-1]) == (0, 209)
    seen: list[Any] = []
    values = update_ranks.update_values
    monkeypatch.setattr(update_ranks, "MAX_MATRICES", 3)
    monkeypatch.setattr(
        update_ranks, "update_values", lambda *pair: seen.append(pair) or values(*pair)
    )
    UpdateRanks().measure(adapted("lora", rank=2))
    assert len(seen) == 3, "of fourteen"


def test_nothing_is_said_of_what_has_no_rank() -> None:
    assert UpdateRanks().measure(tiny.make_model("llama")) == {}, "Full: there are no factors."
    zero = adapted("lora", rank=2)
    for key, weight in zero.named_parameters():
        if "lora_B" in key:
            weight.data.zero_()
    assert UpdateRanks().measure(zero) == {}, "No update yet."
    broken = adapted("lora", rank=2)
    for key, weight in broken.named_parameters():
        if "lora_A" in key:
            weight.data.fill_(float("nan"))
    assert UpdateRanks().measure(broken) == {}, "Not finite: the loss tells that, and no traceback."


def with_values(values: list[float]) -> Any:
    """A model whose updates all have these singular values."""
    model = adapted("lora", rank=len(values), alpha=len(values))
    generator = torch.Generator().manual_seed(2)
    for key, weight in model.named_parameters():
        if "lora_" in key:
            drawn = torch.randn(weight.shape, generator=generator)
            tall = drawn if "lora_B" in key else drawn.T
            basis = torch.linalg.qr(tall)[0]
            weight.data = basis * torch.tensor(values) if "lora_B" in key else basis.T.contiguous()
    return model


def test_a_collapse_is_a_fall_to_a_small_share_and_told_once() -> None:
    wide, flat = with_values([1.0] * 8), with_values([1.0] + [1e-3] * 7)
    ranks = UpdateRanks()
    assert ranks.measure(wide)["rank/effective"] == pytest.approx(8, rel=1e-3)
    assert ranks.collapse() == "" and ranks.highest == pytest.approx(8, rel=1e-3)
    assert ranks.measure(flat)["rank/effective"] < 1.1
    assert ranks.collapse().startswith("of rank 8 they use 1.1 directions, after 8.0 at their")
    ranks.measure(flat)
    assert ranks.collapse() == "", "Once is enough."
    always = UpdateRanks()
    always.measure(flat)
    assert always.collapse() == "", "What never was wide has not fallen: a low rank was enough."
    half = UpdateRanks()
    half.measure(wide)
    half.measure(with_values([1.0] * 4 + [1e-4] * 4))
    assert half.collapse() == "", "Half of the rank is in use."
    small = UpdateRanks()
    small.measure(with_values([1.0, 1.0]))
    small.measure(with_values([1.0, 1e-6]))
    assert small.collapse() == "", "Of rank 2 nothing can be told."
    resumed = UpdateRanks(8.0)
    resumed.measure(flat)
    assert resumed.collapse(), "The height of an earlier attempt counts."


def test_a_run_records_them_and_learns_the_same_to_the_bit(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"max_steps": 6, "eval_steps": 2, "save_steps": 4, "keep_last": 9}
    run = small_run("lora", train=train)
    records = [each for each in record_reader.metrics(run, "eval") if each.get("of") != "base"]
    assert [each["step"] for each in records] == [2, 4, 6]
    for each in records:
        assert 1 <= each["rank/stable"] <= each["rank/effective"] <= each["rank/possible"] == 16
        assert each["rank/condition"] >= 1
    tensors = load_file(run.artifact / "adapter_model.safetensors")
    config = read_object(run.artifact / "adapter_config.json") or {}
    stable = []
    for name in tensors:
        if name.endswith("lora_A.weight"):
            delta = tensors[name.replace("lora_A", "lora_B")].double() @ tensors[name].double()
            values = torch.linalg.svdvals(delta * config["lora_alpha"] / config["r"])
            stable.append(float((values**2).sum() / values[0] ** 2))
    assert records[-1]["rank/stable"] == pytest.approx(np.median(stable), rel=1e-3)
    state = read_object(run.checkpoints / "step-4" / "state.json") or {}
    highest = max(each["rank/effective"] for each in records[:2])
    assert state["highest_rank"] == pytest.approx(highest), "A resumed run knows how wide it was."
    monkeypatch.setattr(UpdateRanks, "measure", lambda self, model: {})
    plain = small_run("lora", train=train)
    for kind in ("train", "eval"):
        key = f"{kind}/loss"
        losses = [[each[key] for each in record_reader.metrics(r, kind)] for r in (run, plain)]
        assert losses[0] == losses[1], "A measurement changes no loss by a bit."
    again = load_file(plain.artifact / "adapter_model.safetensors")
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_a_resumed_run_knows_how_wide_its_updates_were(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run("lora", train={"max_steps": 6, "eval_steps": 2, "save_steps": 4})
    state = read_object(run.checkpoints / "step-4" / "state.json") or {}
    heights: list[float] = []
    begin = UpdateRanks.__init__

    def begin_again(self: UpdateRanks, highest: float = 0.0) -> None:
        heights.append(highest)
        begin(self, highest)

    monkeypatch.setattr(UpdateRanks, "__init__", begin_again)
    (run.attempts / "1").mkdir(parents=True)
    assert attempt_again(run) == 0
    assert heights == [state["highest_rank"]] and heights[0] > 1


def test_a_collapse_is_a_warning_of_the_run(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([{"rank/effective": 9.0, "rank/possible": 16.0}] + [
        {"rank/effective": 1.5, "rank/possible": 16.0}
    ] * 2)  # fmt: skip

    def measure(self: UpdateRanks, model: Any) -> dict[str, float]:
        self._figures = next(measured)
        self.highest = max(self.highest, self._figures["rank/effective"])
        return self._figures

    monkeypatch.setattr(UpdateRanks, "measure", measure)
    run = small_run("lora", train={"max_steps": 6, "eval_steps": 2, "save_steps": 0})
    messages = [event["message"] for event in record_reader.events(run, "warning")]
    (warning,) = [text for text in messages if "collapsed" in text]
    assert warning.startswith("The updates have collapsed at step 4: of rank 16 they use 1.5 dir")
