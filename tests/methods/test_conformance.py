"""Every method on four architectures: what a method has to keep, it keeps.

A method joins in by existing. The other rules that it has to keep are in the tests with the mark
`every_method` (`python -m pytest -m every_method`). Its losses on a fixed seed stand in
recorded_losses.json; after a change that is meant to change them, write them anew with

    LAB_RECORD_LOSSES=1 python -m pytest tests/methods/test_conformance.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lab import methods
from tests.methods import tiny
from tests.methods.conformance import Case, Trial

RECORD = Path(__file__).parent / "recorded_losses.json"

# options that take another way through the code, each where it matters most
VARIANTS = {
    "lora": [
        ("llama", {"use_dora": True}),
        ("llama", {"init_lora_weights": "pissa", "use_rslora": True, "last_rank": 4}),
        ("gpt2", {"init_lora_weights": "pissa"}),
        ("qwen3", {"init_lora_weights": "olora"}),
        ("llama", {"init_lora_weights": "orthogonal", "loraplus_lr_ratio": 4.0}),
        ("neox", {"layer_ranks": (2, 8), "layer_alphas": (4.0, 8.0), "bias": "all"}),
        ("gpt2", {"target_modules": ("c_attn",), "bias": "lora_only", "use_dora": True}),
        ("llama", {"modules_to_save": ("embeddings", "input_layernorm")}),
        ("qwen3", {"modules_to_save": ("head",)}),
    ],
    "lokr": [("llama", {"decompose_both": True, "rank": 2, "factor": 4})],
    "oft": [("llama", {"block_size": 8, "block_share": True})],
    "ia3": [("llama", {"attention": ("q_proj",), "feed_forward": ("up_proj",)})],
    "ln_tuning": [("qwen3", {"target_modules": ("q_norm",)})],
    "trainable_tokens": [("llama", {"tokens": ("w8", "w9", tiny.TURN)})],
    "prefix": [
        ("llama", {"projection": True}),
        ("qwen3", {"init": "text", "text": "w1 w2 w3", "num_virtual_tokens": 5}),
        ("neox", {"init": "random"}),
    ],
    "prompt": [("llama", {"init": "text", "text": "w1 w2 w3"}), ("gpt2", {"init": "random"})],
    "ptuning": [("llama", {"encoder": "lstm"})],
    "qlora": [("llama", {"quant_type": "fp4", "double_quantisation": False})],
}
CASES = [Case(name, kind) for name in methods.names() for kind in tiny.KINDS] + [
    Case(name, kind, tuple(options.items()))
    for name, variants in VARIANTS.items()
    for kind, options in variants
]


@pytest.mark.every_method
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_method_keeps_its_promises(
    case: Case,
    tiny_models: dict[str, Path],
    wide_models: dict[str, Path],
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    trial = Trial(case, tiny_models[case.kind], tiny_tokenizer, tmp_path)
    width = 32
    if "quantization_config" in trial.method.load_kwargs(trial.config):
        trial.folder, width = wide_models[case.kind], 64
    problems = trial.method.check(tiny.make_empty(case.kind, width), trial.config, trial.context)
    if problems:
        # a refusal has a reason, and trying shows that it is right
        assert all(len(problem.message) > 20 for problem in problems)
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            model, optimizer = trial.begin(trial.base())
            trial.fused = False
            trial.step(model, optimizer, 1)
        return
    failures = trial.run()
    recorded = _recorded(case, trial.losses)
    far = [
        f"loss {number + 1} is {now:.5f}, recorded {then:.5f}"
        for number, (now, then) in enumerate(zip(trial.losses, recorded, strict=True))
        if abs(now - then) > 1e-3
    ]
    assert failures + far == []


def _recorded(case: Case, losses: list[float]) -> list[float]:
    """The recorded losses of the case; asked to record, these become them."""
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if os.environ.get("LAB_RECORD_LOSSES"):
        known[case.id] = [round(loss, 5) for loss in losses]
        lines = [f" {json.dumps(key)}: {json.dumps(known[key])}" for key in sorted(known)]
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    assert case.id in known, f"no losses are recorded for {case.id}; see the top of this file"
    return list(known[case.id])
