"""The closed form and the disk: bytes counted by hand, and the closed form beside the trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import methods
from lab.preflight.estimate import estimate
from lab.preflight.validate import check

Make = Callable[..., dict[str, Any]]
CLOSED = {"shadow": False}


def disk_of(spec: dict[str, Any]) -> dict[str, int]:
    answer = check(spec)
    assert answer["problems"] == []
    disk: dict[str, int] = answer["estimate"]["disk"]
    return disk


@pytest.mark.parametrize(
    ("train", "checkpoints"),
    [
        ({"max_steps": 100, "keep_best": 3, "keep_last": 2}, 6),
        ({"max_steps": 100, "keep_best": 0, "keep_last": 1}, 2),
        ({"max_steps": 100, "keep_best": 3, "keep_last": 7}, 11),
        ({"max_steps": 12, "save_every": 4}, 3),
        ({"max_steps": 100, "save_every": 0}, 0),
        ({"max_steps": None, "epochs": 9.0, "save_every": None}, 6),
    ],
)
def test_disk_holds_every_kept_checkpoint_and_the_one_being_written(
    make_spec: Make, train: dict[str, Any], checkpoints: int
) -> None:
    disk = disk_of(make_spec("full", train=train))
    assert disk["total"] == disk["artifact"] + checkpoints * disk["checkpoint"], (
        f"{checkpoints} checkpoints lie on the disk at once, with the result."
    )


def test_a_checkpoint_holds_what_trains_with_both_moments_and_a_result_what_is_saved(
    make_spec: Make,
) -> None:
    full, lora = (check(make_spec(name))["estimate"] for name in ("full", "lora"))
    for answer, name in ((full, "full"), (lora, "lora")):
        trains = 4 * answer["trainable"]  # float32
        assert answer["disk"]["artifact"] == trains, f"The result of {name} is what trained."
        assert answer["disk"]["checkpoint"] == 3 * trains, f"Weights and two moments of {name}."
    opened = check(make_spec("full", train={}) | {"method": {"name": "full", "train_layers": "1"}})
    assert opened["estimate"]["disk"]["artifact"] == full["disk"]["artifact"], (
        "A method that saves the whole model saves its frozen weights too."
    )
    assert opened["estimate"]["disk"]["checkpoint"] < full["disk"]["checkpoint"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A config of four layers whose activations outweigh its weights."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("small")
    LlamaConfig(
        vocab_size=256, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        tie_word_embeddings=True,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def of_small(
    small: str, method: Any = "lora", rows: int = 8, length: int = 512, **train: Any
) -> dict[str, Any]:
    return {
        "model": small,
        "method": method,
        "data": {"max_length": length},
        "train": {"batch_size": rows, "activation_checkpointing": "off", **train},
    }


@pytest.mark.parametrize("name", methods.names())
def test_the_closed_form_stands_beside_the_traced_step(small: str, name: str) -> None:
    value = of_small(small, name, length=1024)
    closed = estimate(value, {"kind": "cuda"}, CLOSED)
    traced = estimate(value, {"kind": "cuda"})
    assert (closed["source"], traced["source"]) == ("formula", "shadow"), traced["notes"]
    assert closed["peak_bytes"] == pytest.approx(traced["peak_bytes"], rel=0.15), name
    ours, theirs = (answer["bytes"]["activations"] for answer in (closed, traced))
    assert theirs > 0.5 * traced["peak_bytes"], "Activations decide this peak."
    assert ours == pytest.approx(theirs, rel=0.25), f"What the layers of {name} keep."


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_the_closed_form_of_the_loss_stands_beside_the_traced_step(
    tmp_path: Path, loss: str
) -> None:
    """One narrow layer under a large vocabulary: next to nothing but head and loss."""
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=32_000, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
    ).save_pretrained(tmp_path)  # fmt: skip
    value = of_small(str(tmp_path), "lora", rows=8, length=512, loss=loss)
    closed = estimate(value, {"kind": "cuda"}, CLOSED)
    traced = estimate(value, {"kind": "cuda"})
    assert traced["source"] == "shadow", traced["notes"]
    near = 0.2 if loss == "fused" else 0.05  # chunks are counted roughly, whole logits exactly
    assert closed["peak_bytes"] == pytest.approx(traced["peak_bytes"], rel=near), loss


def test_a_run_fits_into_its_peak_and_not_into_a_byte_less(small: str) -> None:
    value = of_small(small)
    peak = estimate(value, {"kind": "cuda"}, CLOSED)["peak_bytes"]
    for size, fits in ((peak, True), (peak - 1, False)):
        assert estimate(value, {"memory_bytes": size}, CLOSED)["fits"] is fits
        assert estimate(value, {"kind": "cpu", "memory_bytes": size}, CLOSED)["is_bound"] is True
    assert estimate(value, {"memory_bytes": peak}, CLOSED)["is_bound"] is False
    assert estimate(value, {"kind": "cuda"}, CLOSED)["fits"] is None, "A GPU of no size."


def test_virtual_tokens_pass_through_all_layers(small: str) -> None:
    """512 virtual tokens before rows of 512 double what layers keep of each row."""
    few, many = (
        estimate(
            of_small(small, {"name": "prompt", "tokens": tokens}), {"kind": "cuda"}, CLOSED
        )["bytes"]["activations"]
        for tokens in (1, 512)
    )  # fmt: skip
    assert many / few == pytest.approx((512 + 512) / (512 + 1), rel=0.01)


def test_gradients_of_a_further_pass_lie_beside_those_that_are_kept(small: str) -> None:
    """With one long pass the gradients come after the activations have gone; with two they lie
    there all the time."""
    once = estimate(of_small(small, "full", length=2048), {"kind": "cuda"}, CLOSED)
    twice = estimate(of_small(small, "full", length=2048, accumulation=2), {"kind": "cuda"}, CLOSED)
    for phase in ("forward", "backward"):
        grown = twice["phases"][phase] - once["phases"][phase]
        assert grown == pytest.approx(once["bytes"]["gradients"], rel=0.01), phase


def test_only_the_layers_that_recompute_keep_less(small: str) -> None:
    kept = {
        layers: estimate(
            of_small(small, activation_checkpointing="on", checkpointed_layers=layers),
            {"kind": "cuda"},
            CLOSED,
        )["phases"]["forward"]
        for layers in (1, 2, 3, 4, None)
    }
    assert kept[1] > kept[2] > kept[3] > kept[4] == kept[None]
    steps = [kept[1] - kept[2], kept[2] - kept[3], kept[3] - kept[4]]
    assert steps == pytest.approx([steps[0]] * 3, rel=0.01), "Each layer saves the same."


def test_an_update_that_works_in_memory_of_its_own_says_so(small: str) -> None:
    """Adafactor works in sixteen bytes for each element of its largest tensor; gradients of the
    whole model lie beside it."""
    plain, factored = (
        estimate(
            of_small(small, "full", rows=1, length=8, optimizer=name), {"kind": "cuda"}, CLOSED
        )
        for name in ("sgd", "adafactor")
    )
    beside = plain["phases"]["optimizer"] - plain["bytes"]["optimizer"]
    state = factored["bytes"]["optimizer"]
    largest = 256 * 768  # of the feed-forward part
    assert factored["phases"]["optimizer"] - state - beside == 16 * largest
