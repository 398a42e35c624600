"""Predicted time: what a run goes through, what the device reaches, and when compiling pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lab import host
from lab.atomic_files import read_object, write_json
from lab.forecast import finished_runs, runtime_estimate
from lab.forecast.compile_choice import choose_compile
from lab.forecast.finished_runs import FinishedRun, with_reached
from lab.forecast.model_profile import profile_model
from lab.forecast.resolve import Resolution, resolve
from lab.forecast.runtime_estimate import training_volume
from lab.forecast.settings_search import rank_settings
from lab.forecast.target_device import DEFAULT_MFU, TargetDevice
from lab.forecasts import DatasetStats, RuntimeForecast
from lab.models import catalog, weights
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.elapsed import corrected
from lab.runs.status import status
from lab.spec import RunSpec
from lab.train import choice_probe
from tests.answers import check, estimate

STATS = DatasetStats(examples=1000, tokens_per_row=100.0, loss_tokens_per_row=40.0)
NOTHING = DatasetStats()
H100 = TargetDevice(True, 80 * 10**9, flops=989e12)


def spec_of(**sections: Any) -> RunSpec:
    value = {"model": "config:Llama-3.1-8B", "method": "lora", **sections}
    return resolve(RunSpec.from_json(value), has_bf16=True).spec


def test_a_runs_course_follows_its_data_and_budget() -> None:
    plain = {"packing": "off", "eval_fraction": 0.1, "max_length": 1024}
    volume = training_volume(spec_of(data=plain, train={"batch_size": 4, "epochs": 2}), STATS, 1e9)
    assert volume is not None
    assert (volume.steps, volume.length, volume.counted) == (450, 100.0, 40.0)
    assert volume.tokens == 450 * 4 * 100
    packed = training_volume(
        spec_of(data=plain | {"packing": "on"}, train={"batch_size": 1}), STATS, 1e9
    )
    assert packed is not None and packed.steps == 90, "ten sequences in a row"
    assert (packed.length, packed.sequence, packed.counted) == (1000.0, 100.0, 400.0)
    for budget, steps in (({"max_steps": 7}, 7), ({"max_tokens": 4000}, 10)):
        some = training_volume(spec_of(data=plain, train={"batch_size": 4, **budget}), STATS, 1e9)
        assert some is not None and some.steps == steps
    assert training_volume(spec_of(), NOTHING, 1e9) is None
    full = training_volume(
        spec_of(data=plain, train={"batch_size": 4, "max_steps": 5}), NOTHING, 1e9
    )
    assert full is not None and full.tokens == 5 * 4 * 1024, "without data, full rows"


def predicted(
    spec: RunSpec, device: TargetDevice = H100, stats: DatasetStats = STATS
) -> RuntimeForecast:
    config = weights.load_config(catalog.resolve_config(spec.model))
    runtime = runtime_estimate.runtime_forecast(spec, profile_model(config, spec), device, stats)
    assert runtime is not None
    return runtime


def test_what_costs_time_costs_time() -> None:
    """Each factor the way it was measured on an H100: 8B LoRA, 4 x 1,024, tokens a second."""
    rows = {"data": {"packing": "on", "max_length": 1024}}
    stats = DatasetStats(examples=10**6, tokens_per_row=1024.0)

    def speed(method: str = "lora", **train: Any) -> float:
        settings = {"batch_size": 4, "activation_checkpointing": "off", **train}
        return predicted(spec_of(method=method, train=settings, **rows), H100, stats).tokens_per_s

    best = speed()
    assert speed(adapter_precision="float32") == pytest.approx(8_800, rel=0.1)
    assert speed(adapter_precision="float32") < 0.9 * best
    assert speed(compile="on") == pytest.approx(13_600, rel=0.1)
    assert speed("qlora", compile="on") == pytest.approx(12_300, rel=0.1)
    assert speed(activation_checkpointing="on") < 0.8 * best
    half = speed(activation_checkpointing="on", checkpointed_layers=16)
    assert speed(activation_checkpointing="on") < half < best
    energy = predicted(spec_of(**rows), replace(H100, watts=700.0), stats).energy_wh
    assert energy is not None and energy > 0


def test_a_budget_of_seconds_ends_the_run() -> None:
    estimate = predicted(spec_of(train={"max_seconds": 60.0}))
    assert estimate.seconds == 60.0 and estimate.tokens == pytest.approx(
        60 * estimate.tokens_per_s, rel=0.01
    )
    assert estimate.steps > 0


def test_layers_are_compiled_where_the_run_is_long_enough(
    make_spec: Callable[..., dict[str, Any]],
) -> None:
    def chosen(
        device: TargetDevice = H100, compile: str = "auto", **changes: Any
    ) -> tuple[str, str]:
        spec = spec_of(data={"packing": "on", "max_length": 1024}, train=changes)
        config = weights.load_config(catalog.resolve_config(spec.model))
        resolution = Resolution(spec, frozenset({"compile"}))
        if compile != "auto":
            train = replace(spec.train, compile=compile)
            resolution = Resolution(replace(spec, train=train))
        return choose_compile(resolution, profile_model(config, spec), device, NOTHING)

    assert chosen(max_tokens=10**8)[0] == "on"
    assert chosen(max_tokens=10**6)[0] == "off"
    assert chosen(max_tokens=10**8, device=replace(H100, on_gpu=False)) == (
        "off", "off: only worthwhile on a GPU",
    )  # fmt: skip
    assert chosen(compile="on") == ("on", "on, as requested")
    assert chosen()[0] == "off", "of an unknown length"
    assert check(make_spec())["spec"]["train"]["compile"] == "off", "there is no GPU here"


def test_only_runs_on_a_device_of_its_kind_speak_for_it(
    lab_home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, device, flops in (("k3f9", "cpu", 4e12), ("k3g0", "cuda", 4e15)):
        run = RunDir(lab_home / "runs" / f"20261122-101530-lora-{name}")
        run.path.mkdir(parents=True)
        summary = {"flops": flops, "tokens": 2000, "seconds": 20.0}
        write_json(run.result, {"state": "done", "summary": summary})
        write_json(run.estimate, {"device": device})
    monkeypatch.setattr(host, "gpus", list)
    here = with_reached(TargetDevice(False, 10**9, flops=1e12))
    assert here.is_measured and here.reached == pytest.approx(0.2)
    other = with_reached(TargetDevice(True, 10**9, flops=989e12))
    assert not other.is_measured and other.reached == DEFAULT_MFU


def test_a_run_that_is_repeated_is_predicted_as_it_went() -> None:
    """What recomputation costs is in the factors, and not once more in what runs reach."""
    spec = spec_of(train={"activation_checkpointing": "on", "max_steps": 100})
    first = predicted(spec)
    run = FinishedRun(2 * first.seconds, 1e18, first.tokens, runtime=first)
    share, is_measured = finished_runs.reached([run], H100.flops)
    again = predicted(spec, replace(H100, reached=share, is_measured=is_measured))
    assert again.is_measured and again.seconds == pytest.approx(2 * first.seconds, rel=0.05)
    for _ in range(30):  # told again and again, it does not drift
        runtime = predicted(spec, replace(H100, reached=share))
        share, _ = finished_runs.reached([replace(run, runtime=runtime)], H100.flops)
    assert predicted(spec, replace(H100, reached=share)).seconds == pytest.approx(
        2 * first.seconds, rel=0.05
    )
    assert finished_runs.reached([], 1e12) == (DEFAULT_MFU, False)


def test_a_run_carries_its_prediction(work_here: Callable[..., RunDir]) -> None:
    run = work_here("lora", train={"max_steps": 4, "save_steps": 0, "sample_steps": 0})
    assert status(run).state == "done"
    pace = (read_object(run.estimate) or {})["pace"]
    assert pace["steps"] == 4 and pace["seconds"] > 0
    tokens = record_reader.metrics(run, "train")[-1]["tokens"]
    assert pace["tokens"] == pytest.approx(tokens, rel=0.15)


def test_an_estimate_says_speed_and_energy() -> None:
    value = {"model": "config:Llama-3.2-1B", "method": "lora", "train": {"max_steps": 10}}
    answer = estimate(value, {"gpu": "RTX 4090 24GB"}, {"shadow": False, "time": True})
    assert answer["tokens_per_s"] > 100 and answer["wh_per_million_tokens"] > 0
    assert answer["pace"]["steps"] == 10, "by its budget, though there is no data"
    plain = estimate(value, {"kind": "cuda"}, {"shadow": False})
    assert plain["wh_per_million_tokens"] is None and plain.get("pace") is None


def test_a_slow_device_makes_no_tie_of_what_differs() -> None:
    value = {"model": "config:SmolLM2-135M", "method": "lora", "data": {"max_length": 64}}
    value["train"] = {"batch_size": 1, "gradient_accumulation_steps": 2, "precision": "float32"}
    config = weights.load_config(catalog.resolve_config("config:SmolLM2-135M"))
    slow = TargetDevice(False, 16 * 10**9, flops=1e9)
    best = rank_settings(resolve(RunSpec.from_json(value), False), config, slow)[0]
    assert best.tokens_per_s < 1 and best.batch_size == 2, "fewer passes cost less beside the work"


def test_an_hour_at_700_watts_is_700_watt_hours() -> None:
    hour = spec_of(train={"max_seconds": 3600.0}, data={"eval_fraction": 0.0})
    estimate = predicted(hour, replace(H100, watts=700.0))
    assert estimate.evaluating_s == 0.0, "Nothing is held out."
    assert estimate.energy_wh == pytest.approx(700.0)
    assert predicted(hour).energy_wh is None, "A device of unknown power."
    both = predicted(
        spec_of(train={"max_seconds": 3600.0, "eval_steps": 10}), replace(H100, watts=700.0)
    )
    assert both.evaluating_s > 0 and both.energy_wh is not None
    assert both.energy_wh / 700 == pytest.approx((3600 + both.evaluating_s) / 3600), (
        "Evaluations take power too."
    )


def test_evaluations_cost_a_forward_pass_each_and_the_base_has_one() -> None:
    """A tenth of the rows is held out; forward is a third of forward and backward."""
    data = {"packing": "off", "eval_fraction": 0.1}
    for every, passes in ((0, 2), (225, 3), (45, 11), (None, 11)):
        train = {"batch_size": 4, "epochs": 2, "eval_steps": every, "compile": "off"}
        estimate = predicted(spec_of(data=data, train=train))
        assert estimate.steps == 450
        share = estimate.evaluating_s / estimate.seconds  # of two epochs over nine tenths
        assert share == pytest.approx(passes * 0.1 / 3 / 1.8, rel=0.01), every


def test_what_is_mixed_in_held_out_left_out_or_added_up_changes_the_steps() -> None:
    plain = {"packing": "off", "eval_fraction": 0.0, "max_length": 1024}

    def steps(data: dict[str, Any] | None = None, stats: DatasetStats = STATS, **train: Any) -> int:
        spec = spec_of(data=plain | (data or {}), train={"batch_size": 4, **train})
        volume = training_volume(spec, stats, 1e9)
        assert volume is not None
        return volume.steps

    assert steps() == 250, "1,000 rows, four a step."
    assert steps(gradient_accumulation_steps=5) == 50
    assert steps({"general_fraction": 0.5}) == 500, "Half of all rows is general text."
    assert steps({"max_examples": 100}) == 25
    assert steps({"eval_fraction": 0.5, "eval_dataset": "builtin:x"}) == 250, (
        "Where a set of its own is measured, all rows train."
    )
    assert steps(stats=replace(STATS, sequences_per_example=3.0)) == 750
    assert steps(max_flops=1e9 * 400 * 30) == 30, "400 tokens a step at 10^9 each."
    assert steps(max_steps=7, max_tokens=1200, max_flops=1e9 * 400 * 30) == 3, (
        "The first budget that is used up ends the run."
    )


def test_seconds_end_a_run_that_has_steps_too() -> None:
    estimate = predicted(spec_of(train={"max_seconds": 2.0, "max_steps": 10**6, "compile": "off"}))
    assert estimate.seconds == 2.0 and 0 < estimate.steps < 10**5
    short = predicted(spec_of(train={"max_seconds": 1e6, "max_steps": 2, "compile": "off"}))
    assert short.steps == 2 and short.seconds < 100, "The steps end it first."


def test_the_start_of_compiled_layers_counts() -> None:
    one = {"max_steps": 1, "batch_size": 1}
    compiled = predicted(spec_of(train={**one, "compile": "on"}))
    plain = predicted(spec_of(train={**one, "compile": "off"}))
    assert 55 < compiled.seconds - plain.seconds < 65, "It takes about a minute."


def test_compiling_has_to_save_a_tenth_of_the_run() -> None:
    plain = predicted(spec_of(train={"max_steps": 10}))
    for share, pays in ((1.1, False), (0.95, False), (0.85, True)):
        compiled = replace(plain, seconds=share * plain.seconds)
        assert runtime_estimate.compiling_pays(plain, compiled) is pays, share


def test_bytes_that_are_moved_take_their_time_where_work_takes_none() -> None:
    """Weights are read forward and back, once a pass; the update goes over its tensors once a step,
    however many passes are added up."""
    spec = spec_of(method="full", data={"packing": "off"}, train={"precision": "bfloat16"})
    config = weights.load_config(catalog.resolve_config(spec.model))
    sizes = profile_model(config, spec).sizes
    quick = replace(H100, on_gpu=False, flops=1e40, bandwidth=1e12)
    rows = {"tokens_per_row": 100.0, "loss_tokens_per_row": 40.0, "examples": 1000}

    def step_s(rows_a_pass: int, passes: int, device: TargetDevice = quick) -> float:
        train = {"batch_size": rows_a_pass, "gradient_accumulation_steps": passes, "max_steps": 50}
        given = spec_of(method="full", data={"packing": "off"}, train=train | {"compile": "off"})
        answer = predicted(given, device, DatasetStats(**rows))
        return answer.seconds / answer.steps

    launches = 32 * runtime_estimate.LAUNCHES_A_LAYER * runtime_estimate.CPU_LAUNCH_S
    reading = 2 * sizes.weights / 1e12 + launches
    assert step_s(1, 3) - step_s(1, 1) == pytest.approx(2 * reading, rel=1e-3)
    assert step_s(4, 1) == pytest.approx(step_s(1, 1), rel=1e-3), "more rows are no more weights"
    update = 2 * sizes.weights + 2 * sizes.optimizer_bytes + 3 * sizes.gradient_bytes
    assert step_s(1, 1) - reading == pytest.approx(update / 1e12, rel=1e-3)
    slow = replace(quick, bandwidth=5e11)
    assert step_s(1, 1, slow) - launches == pytest.approx(2 * (step_s(1, 1) - launches), rel=1e-3)


def test_what_this_machine_reaches_is_the_median_of_its_longer_runs() -> None:
    def run(rate: float, seconds: float = 100.0) -> FinishedRun:
        return FinishedRun(seconds, rate * seconds, 1000)

    runs = [run(2e12), run(3e12), run(9e12), run(1e15, seconds=5.0)]
    share, is_measured = finished_runs.reached(runs, 1e13)
    assert is_measured and share == pytest.approx(0.3), "Five seconds say nothing; 3 is the middle."
    assert finished_runs.reached([run(1e12, seconds=9.0)], 1e13) == (
        DEFAULT_MFU,
        False,
    )
    assert finished_runs.reached([FinishedRun(50.0, 0, 1000)], 1e13) == (DEFAULT_MFU, False)
    packed = RuntimeForecast(tokens_per_s=10.0, rate=9e12, packing="on")
    single = replace(run(2e12), packing="off", runtime=packed)
    assert finished_runs.reached([single], 1e13) == (pytest.approx(0.2), True), (
        "a prediction for packed rows says nothing of single ones"
    )


# tokens a second of an H100, compiled nothing, plain loss, adapters in float32
SMALL_PASSES = [
    ("gpt2", {"name": "full"}, 4, 128, {"precision": "mixed"}, 14_100),
    ("gpt2", {"name": "lora", "rank": 8, "target_modules": ["c_attn"]}, 4, 128,
     {"precision": "mixed"}, 11_500),
    ("Llama-3.2-3B", {"name": "lora"}, 4, 512, {}, 7_900),
    ("Llama-3.1-8B", {"name": "lora", "rank": 64}, 2, 512, {}, 3_900),
    ("Llama-3.2-3B", {"name": "full"}, 2, 256, {"activation_checkpointing": "on"}, 2_400),
]  # fmt: skip


@pytest.mark.parametrize("case", SMALL_PASSES, ids=lambda case: f"{case[0]}-{case[1]['name']}")
def test_small_passes_are_bound_by_what_launches_take(case: Any) -> None:
    model, method, rows, length, train, measured = case
    value = {
        "model": f"config:{model}",
        "method": method,
        "data": {"max_length": length, "packing": "off"},
        "train": {
            "batch_size": rows, "activation_checkpointing": "off", "adapter_precision": "float32",
            "loss_implementation": "plain", "compile": "off", **train,
        },
    }  # fmt: skip
    answer = estimate(value, {"gpu": "H100 80GB"}, {"shadow": False})
    assert answer["launches"] > 900
    assert answer["tokens_per_s"] == pytest.approx(measured, rel=0.25)


def test_work_and_launches_side_by_side_take_hardly_more_than_the_longer() -> None:
    assert runtime_estimate.side_by_side(1.0, 0.1) == pytest.approx(1.0, rel=1e-4)
    assert runtime_estimate.side_by_side(0.1, 1.0) == pytest.approx(1.0, rel=1e-4)
    assert 1.1 < runtime_estimate.side_by_side(1.0, 1.0) < 1.3


def test_every_phase_counts_and_what_is_measured_corrects_the_rest() -> None:
    answer = predicted(spec_of(train={"max_steps": 100, "eval_steps": 10}))
    phases = (answer.loading_s, answer.evaluating_s, answer.sampling_s, answer.saving_s)
    assert min(phases) > 0 and answer.whole_s == pytest.approx(answer.seconds + sum(phases))
    assert answer.probing_s == 0, "It is switched off."
    still = predicted(spec_of(train={"max_steps": 100, "sample_steps": 0, "save_steps": 0}))
    assert still.sampling_s == 0 and still.saving_s < answer.saving_s
    slow = corrected(answer, 10, 3 * answer.seconds / 10)  # each step takes three times as long
    assert slow.seconds == pytest.approx(3 * answer.seconds)
    assert slow.evaluating_s == pytest.approx(3 * answer.evaluating_s)
    assert slow.tokens_per_s == pytest.approx(answer.tokens_per_s / 3)
    assert slow.loading_s == answer.loading_s, "That is over."
    assert corrected(answer, 0, 0.0) == answer, "Nothing is known before the first step."
    assert corrected(answer, 10, 3 * answer.seconds / 10, limit=5.0).seconds == 5.0


def test_the_forgetting_probe_takes_time_at_each_evaluation_and_at_both_ends() -> None:
    """By hand, where work alone counts: a pass over n tokens is 2 P n operations."""
    slow = replace(H100, on_gpu=False, flops=1e12, reached=1.0, bandwidth=1e18)

    def probing(every: int | None = 10, **train: Any) -> float:
        settings = {"max_steps": 100, "eval_steps": every, "forgetting_probe": "on", **train}
        return predicted(spec_of(train=settings), replace(slow, beside=2.0)).probing_s

    assert probing(forgetting_probe="off") == 0.0
    config = weights.load_config(catalog.resolve_config("config:Llama-3.1-8B"))
    sizes = profile_model(config, spec_of()).sizes
    a_token = 2 * sizes.parameters / 1e12
    choices = sum(len(each.choices) for each in choice_probe.questions()[:15])
    live = 20 * (64 + 64) + choices * 64 + 40 * 6
    whole = 100 * (64 + 64) + choices * 64 + 40 * 6
    launches = 32 * runtime_estimate.LAUNCHES_A_LAYER * runtime_estimate.CPU_LAUNCH_S / 3
    passes = {"live": 20 / 4 + 15 + 40, "whole": 100 / 4 + 15 + 40, "lost": 48}
    expected = a_token * (2 * whole + 48 * 6 + 10 * live)
    expected += launches * (2 * passes["whole"] + passes["lost"] + 10 * passes["live"])
    assert probing() == pytest.approx(2 * expected, rel=1e-3), "`beside` is 2"
    assert probing(every=0) < probing(every=50) < probing(every=10)
    nothing = spec_of(
        train={"max_steps": 100, "forgetting_probe": "on"}, data={"eval_fraction": 0.0}
    )
    both_ends = a_token * (2 * whole + 48 * 6) + launches * (2 * passes["whole"] + passes["lost"])
    assert predicted(nothing, slow).probing_s == pytest.approx(both_ends, rel=1e-3), (
        "without held-out rows nothing is evaluated on the way"
    )
    answer = predicted(spec_of(train={"max_steps": 10, "forgetting_probe": "on"}))
    beside = answer.loading_s + answer.sampling_s + answer.saving_s + answer.probing_s
    assert answer.whole_s == pytest.approx(answer.seconds + answer.evaluating_s + beside)
    assert corrected(answer, 5, answer.seconds).probing_s == pytest.approx(2 * answer.probing_s)


def test_this_machines_runs_correct_launches_and_what_is_no_training() -> None:
    spec = spec_of(data={"max_length": 64}, train={"max_steps": 1000, "batch_size": 1})
    first = predicted(spec, H100, DatasetStats(examples=10**6, tokens_per_row=64.0))
    assert first.launch_s * first.tokens_per_s > runtime_estimate.BOUND
    beside_s = 3 * (first.whole_s - first.seconds)
    run = FinishedRun(2 * first.seconds, 1e15, first.tokens, "", beside_s, first)
    runs = [run]
    assert finished_runs.launching(runs) == pytest.approx(2.0, rel=0.01)
    assert finished_runs.beside(runs) == pytest.approx(3.0)
    device = replace(H100, launching=2.0, beside=3.0)
    again = predicted(spec, device, DatasetStats(examples=10**6, tokens_per_row=64.0))
    assert again.seconds == pytest.approx(2 * first.seconds, rel=0.01)
    assert again.loading_s == pytest.approx(3 * first.loading_s, rel=1e-3)
    repeated = replace(
        run, tokens=again.tokens, seconds=again.seconds, runtime=again,
        beside_s=again.whole_s - again.seconds,
    )  # fmt: skip
    assert finished_runs.launching([repeated]) == pytest.approx(2.0, rel=0.01), "It does not drift."
    assert finished_runs.beside([repeated]) == pytest.approx(3.0), "nor does this"


def test_the_start_of_compiled_layers_is_not_counted_on_a_processor() -> None:
    processor = replace(H100, on_gpu=False, flops=1e12)
    answer = predicted(spec_of(train={"max_steps": 3, "compile": "on"}), processor)
    assert answer.seconds == pytest.approx(answer.tokens / answer.tokens_per_s, rel=0.01)


def test_what_a_run_took_beside_training_is_its_time_less_that_of_training(
    lab_home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "gpus", list)
    run = RunDir(lab_home / "runs" / "20261122-101530-lora-k3f9")
    run.path.mkdir(parents=True)
    summary = {"flops": 4e12, "tokens": 2000, "seconds": 20.0}
    result = {"state": "done", "started": 1000.0, "ended": 1060.0, "summary": summary}
    write_json(run.result, result)
    write_json(run.estimate, {"device": "cpu"})
    assert [each.beside_s for each in finished_runs._finished("cpu")] == [40.0]


@pytest.mark.parametrize(("method", "written"), [("lora", "trainable_bytes"), ("full", "weights")])
def test_saving_writes_the_adapter_or_the_whole_model(method: str, written: str) -> None:
    spec = spec_of(method=method, train={"max_steps": 10, "save_steps": 0})
    config = weights.load_config(catalog.resolve_config(spec.model))
    size = getattr(profile_model(config, spec).sizes, written)
    assert predicted(spec).saving_s == pytest.approx(size / runtime_estimate.FILES, abs=1e-3)
