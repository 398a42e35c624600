"""A merged model is kept only if it answers as the result does, read back from the disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import LlamaForCausalLM

from bench.small_model import make_model
from lab import methods
from lab.atomic_files import read_object
from lab.errors import LabError
from lab.export import merge as merging
from lab.export import merge_proof
from lab.paths import RunDir
from lab.spec import RunSpec
from lab.train.proof import answers as proof_answers
from tests.conftest import run_here


@pytest.mark.parametrize("apart", [0.5, -0.5])
def test_one_logit_that_rises_or_falls_is_seen(apart: float) -> None:
    before = torch.tensor([[0.0, 1.0, -1.0, 0.0], [0.0, 0.0, 2.0, 1.9]])
    after = before.clone()
    after[1, 2] += apart
    terms: dict[str, Any] = {"dtype": "float32", "rows": 1, "rows_from": "training", "base": "x"}
    proof = merge_proof.compare(before, after, **terms)
    assert proof.largest_difference == pytest.approx(0.5)
    assert proof.share_of_spread == pytest.approx(0.5 / float(before.std()))
    assert proof.same_top == (1.0 if apart > 0 else 0.5)
    p, q = (logits.double().softmax(-1) for logits in (before, after))
    assert proof.kl == pytest.approx(float((p * (p / q).log()).sum() / 2), rel=1e-4)
    assert proof.verdict == "refused", "Half a logit is far beyond what float32 rounds."
    same = merge_proof.compare(before, before, **terms)
    assert (same.excess, same.verdict) == (0.0, "equal")
    other = merge_proof.compare(before, after[:, :3], **terms)
    assert other.verdict == "refused", "Another vocabulary."


@pytest.mark.parametrize(("computed_in", "times"), [("float32", 1), ("bfloat16", 10)])
def test_sixteen_bits_warn_beyond_a_bound_and_refuse_far_beyond_it(
    computed_in: str, times: int
) -> None:
    verdicts = []
    for kl in (0.5e-3, 5e-3, 5e-2, float("nan")):
        figures = (0.1, 0.01, 1.0, times * kl, 8, 1, "held-out", "x", computed_in)
        proof = merge_proof.MergeProof("bfloat16", *figures)
        assert proof.sentence.endswith(f"computed in {computed_in}")
        verdicts.append(proof.verdict)
    assert verdicts == ["equal", "differs", "refused", "refused"]


# spread, top tokens that differ and KL, of bounds 0.25, 0.05 and 1e-3
@pytest.mark.parametrize(
    ("spread", "same_top", "kl", "excess"),
    [(0.25, 0.96, 1e-3, 1.0), (0.5, 1.0, 0.0, 2.0), (0.0, 0.8, 0.0, 4.0), (0.0, 1.0, 8e-3, 8.0)],
)
def test_each_figure_alone_is_held_against_its_bound(
    spread: float, same_top: float, kl: float, excess: float
) -> None:
    proof = merge_proof.MergeProof("bfloat16", 0.1, spread, same_top, kl, 8, 1, "held-out", "x")
    assert proof.excess == pytest.approx(excess)
    assert proof.verdict == ("equal" if excess == 1 else "differs")


def test_a_proof_in_words_has_each_figure_beside_its_bound() -> None:
    figures = (0.125, 0.03, 0.975, 2e-4, 310, 5, "training", "bfloat16", "bfloat16")
    assert merge_proof.MergeProof("bfloat16", *figures).sentence == (
        "largest logit difference 0.12, 3.0e-02 of the logits' spread (bound 0.5); same top token "
        "97.5 % (bound 90 %); KL 2.0e-04 (bound 0.01); 310 tokens of 5 rows (training), computed "
        "in bfloat16"
    )


def test_rows_of_the_proof_are_held_out_else_of_the_training_else_of_the_vocabulary(
    make_spec: Callable[..., dict[str, Any]], tokenizer: Any, chats: Path
) -> None:
    class Model:
        def get_input_embeddings(self) -> Any:
            return torch.nn.Embedding(8192, 2)

    def rows_of(**data: Any) -> tuple[list[list[int]], str]:
        spec = RunSpec.from_json(make_spec(data={"packing": "on", **data}))
        rows: tuple[list[list[int]], str] = merge_proof.probe_rows(
            spec, {"system_prompt": "Be kind."}, Model(), tokenizer
        )
        return rows

    held, source = rows_of(eval_fraction=0.2, max_length=512)
    assert (len(held), source) == (5, "held-out") and max(map(len, held)) <= 64
    assert all("Be kind." in tokenizer.decode(row) for row in held), "as it was trained"
    trained, source = rows_of(eval_fraction=0.0)
    assert (len(trained), source) == (8, "training"), "eight of twenty-four"
    spread, source = rows_of(dataset=str(chats.with_name("gone.jsonl")))
    assert (len(spread), source) == (1, "vocabulary") and len(set(spread[0])) == 64
    assert (spread[0][0], spread[0][-1]) == (0, 8191), "from its first token to its last"


def test_a_model_of_sixteen_bits_computes_in_float32_for_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 its sums are rounded too, by more than its weights."""
    make_model(tmp_path / "model", width=64)
    wide = LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    narrow = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).eval()
    rounded = {name: weight.clone() for name, weight in narrow.state_dict().items()}
    wide.load_state_dict(narrow.state_dict())
    rows = [[5, 9, 2, 7] * 8]
    exact = proof_answers(wide, rows)
    assert not torch.equal(proof_answers(narrow, rows), exact)
    with merge_proof.in_float32(narrow) as is_float32:
        assert is_float32 and torch.equal(proof_answers(narrow, rows), exact)
    after = narrow.state_dict()
    assert after.keys() == rounded.keys()
    for name, weight in after.items():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, rounded[name]), name
    more = 2 * sum(weight.numel() for weight in narrow.parameters())
    for free, expected in ((more, False), (2 * more, True)):
        monkeypatch.setattr(merge_proof, "_free", lambda device, free=free: free)
        with merge_proof.in_float32(narrow) as is_float32:
            assert is_float32 is expected, "Where the memory is too small it stays as it is."
            kind = torch.float32 if expected else torch.bfloat16
            assert {weight.dtype for weight in narrow.parameters()} == {kind}


def test_a_result_on_a_base_of_sixteen_bits_is_proven_in_float32(
    trained: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As results are on a GPU; where there is no room, both compute in bfloat16."""
    named = merging.chat_models.parse(f"run:{trained[1].id}")
    load = merging.chat_models.load
    source = merging.catalog.resolve(named.base)

    def on_bfloat16(named: Any) -> Any:
        return load(named, base=merging.weights.load_model(source, torch.bfloat16))

    monkeypatch.setattr(merging.chat_models, "load", on_bfloat16)
    roomy = merging.merge(trained[1], tmp_path / "roomy").proof
    assert (roomy["dtype"], roomy["computed_in"]) == ("bfloat16", "float32")
    assert roomy["verdict"] == "equal" and roomy["bounds"]["spread"] == 0.25
    monkeypatch.setattr(merge_proof, "_free", lambda device: 0)
    tight = merging.merge(trained[1], tmp_path / "tight").proof
    assert (tight["dtype"], tight["computed_in"]) == ("bfloat16", "bfloat16")
    assert tight["verdict"] == "equal" and tight["bounds"]["spread"] == 0.5


MERGEABLE = sorted(method.name for method in methods.all_methods() if method.can_merge)
SHORT = {"max_steps": 2, "eval_steps": None, "save_steps": None, "sample_steps": None}


@pytest.mark.every_method
@pytest.mark.parametrize("method", MERGEABLE)
def test_every_mergeable_method_is_proven_on_held_out_rows(
    make_spec: Callable[..., dict[str, Any]], tmp_path: Path, method: str
) -> None:
    spec = make_spec(method, train=SHORT)
    if methods.get(method).load_kwargs(methods.get(method).config()):
        make_model(tmp_path / "wide", width=64)  # whole blocks
        spec["model"] = str(tmp_path / "wide")
    run = run_here(spec)
    for precision in ("float32", "bfloat16"):
        merged = merging.merge(run, tmp_path / precision, precision)
        proof = merged.proof
        assert proof["rows_from"] == "held-out" and proof["rows"] == 5 and proof["tokens"] > 100
        assert proof["verdict"] == "equal" and merged.warning == ""
        assert proof["same_top"] >= (0.99 if precision == "float32" else 0.95)
        assert proof["largest_difference"] < 0.1
        assert precision == "float32" or proof["largest_difference"] > 0, "It rounds."
        with safe_open(tmp_path / precision / "model.safetensors", "pt") as tensors:
            name = "model.layers.0.mlp.up_proj.weight"
            assert tensors.get_tensor(name).dtype == getattr(torch, precision)
        assert read_object(tmp_path / precision / merge_proof.FILE) == proof
        assert (proof["base"] == "4 bits, dequantised") is (method == "qlora")


def test_a_wrong_scale_is_refused(
    trained: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update is merged with its sign turned round, as a scale that is flipped would."""
    real = type(methods.get("lora")).merge

    def flipped(self: Any, model: Any) -> Any:
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scaling = {name: -scale for name, scale in module.scaling.items()}
        return real(self, model)

    monkeypatch.setattr(type(methods.get("lora")), "merge", flipped)
    with pytest.raises(LabError, match=r"answers differently.*bound 0.001"):
        merging.merge(trained[1], tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_too_little_disk_is_told_before_anything_is_loaded(
    trained: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda place: Disk(10_000_000))
    monkeypatch.setattr(merging.chat_models, "load", lambda named: pytest.fail("It was loaded."))
    with pytest.raises(LabError, match=r"needs 1\.\d+ MB of disk, and 10\.00 MB are free"):
        merging.merge(trained[1], tmp_path / "merged")


def test_what_is_there_is_left_alone_and_unknown_precisions_are_refused(
    trained: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging.chat_models, "load", lambda named: pytest.fail("It was loaded."))
    (tmp_path / "mine").mkdir()
    with pytest.raises(LabError, match="mine' exists"):
        merging.merge(trained[1], tmp_path / "mine")
    with pytest.raises(LabError, match=r"'float64' is not a precision.*auto, float32, bfloat16"):
        merging.merge(trained[1], tmp_path / "merged", "float64")
    wide, narrow = (merging.bytes_needed(trained[1], name) for name in ("float32", "bfloat16"))
    with safe_open(
        Path(str(read_object(trained[1].spec)["model"])) / "model.safetensors", "pt"
    ) as base:
        weights = sum(base.get_tensor(name).numel() for name in base.keys())
    assert (wide, narrow) == (4 * weights, 2 * weights)


def test_what_differs_a_little_is_kept_with_a_warning(
    trained: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = merge_proof.compare

    def apart(*logits: Any, **terms: Any) -> Any:
        return replace(real(*logits, **terms), kl=5e-3)

    monkeypatch.setattr(merge_proof, "compare", apart)
    merged = merging.merge(trained[1], tmp_path / "merged", "bfloat16")
    assert merged.warning.startswith("It differs: ") and "KL 5.0e-03" in merged.warning
    assert merged.largest_difference == merged.proof["share_of_spread"]
    receipt = read_object(tmp_path / "merged" / "receipt.json") or {}
    assert receipt["merged_from"] == trained[1].id and receipt["merge_proof"] == merged.proof
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        source, copy = trained[1].artifact / name, tmp_path / "merged" / name
        assert copy.read_bytes() == source.read_bytes(), name
    stops = (read_object(tmp_path / "merged" / "generation_config.json") or {})["eos_token_id"]
    assert stops == 2, "it stops where the result does"


class Disk(NamedTuple):
    free: int


@pytest.mark.parametrize("damage", ["up", "down", "nan"])
def test_what_the_disk_holds_is_compared_and_nothing_else_is_kept(
    trained: list[RunDir],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unsynced: dict[Path, list[str]],
    damage: str,
) -> None:
    """The write itself goes wrong: what lies in memory is sound, what lies on the disk is not."""
    real = LlamaForCausalLM.save_pretrained

    def broken(self: Any, folder: Path, **more: Any) -> None:
        norm = self.model.norm.weight
        saved = norm.detach().clone()
        with torch.no_grad():
            norm.fill_(float("nan")) if damage == "nan" else norm.mul_(
                1.1 if damage == "up" else 0.9
            )
        real(self, folder, **more)
        with torch.no_grad():
            norm.copy_(saved)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", broken)
    with pytest.raises(LabError, match="answers differently"):
        merging.merge(trained[1], tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == [], "Not even a part is left."
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", real)
    merged = merging.merge(trained[1], tmp_path / "out" / "merged")
    files = list((tmp_path / "out" / "merged").iterdir())
    assert merged.bytes == sum(file.stat().st_size for file in files)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["merged"]
    assert unsynced[tmp_path / "out" / "merged"] == [], "It is on the disk before it has its name."
    card = (tmp_path / "out" / "merged" / "README.md").read_text()
    assert "Tried with transformers" in card and 'library_name: "transformers"' in card


def test_a_folder_under_the_old_temporary_name_is_left_alone(
    trained: list[RunDir], tmp_path: Path
) -> None:
    other = tmp_path / ".merged.tmp"
    other.mkdir()
    (other / "mine").write_text("kept")
    merging.merge(trained[1], tmp_path / "merged")
    assert (other / "mine").read_text() == "kept" and (tmp_path / "merged").is_dir()


def test_a_changed_tokenizer_file_is_refused_before_the_merge(
    trained: list[RunDir], tmp_path: Path
) -> None:
    file = trained[1].artifact / "tokenizer_config.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(LabError, match="tokenizer_config"):
        merging.merge(trained[1], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
