"""A config.json whose numbers are those of no model is refused before anything is built."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from lab.errors import LabError
from lab.models import catalog, shipped_configs, sizes, weights

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}
LONG_LABELS = {str(place): "x" for place in range(100_001)}
NESTED: dict[str, Any] = {"a": 1}
for _ in range(20):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1,000,000, and must be from 1 to 2,0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, and must be a whole number"),
        ({"num_hidden_layers": "2"}, "must be a whole number"),
        ({"num_hidden_layers": True}, "must be a whole number"),
        ({"num_hidden_layers": math.nan}, "must be a whole number"),
        ({"num_nextn_predict_layers": 10**6}, "must be at most 2,000"),
        ({"hidden_size": 10**9}, "hidden_size is 1,000,000,000"),
        ({"hidden_size": 10**30}, "hidden_size is"),
        ({"intermediate_size": 0}, "intermediate_size is 0, and must be from 1"),
        ({"intermediate_size": [128, 0]}, "intermediate_size holds a value that is 0"),
        ({"vocab_size": 10**12}, "vocab_size is 1,000,000,000,000"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"num_attention_heads": 10**7}, "num_attention_heads is 10,000,000"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"max_position_embeddings": 10**15}, "max_position_embeddings is"),
        ({"num_local_experts": 10**6}, "num_local_experts is 1,000,000"),
        ({"num_labels": 10**8}, "num_labels is 100,000,000"),
        ({"id2label": LONG_LABELS}, "id2label has 100,001 entries"),
        ({"layer_types": ["full_attention"] * 100_001}, "layer_types has 100,001 entries"),
        ({"hybrid_override_pattern": "M" * 100_001}, "hybrid_override_pattern has 100,001"),
        ({"conv_kernel_size": 10**9}, "conv_kernel_size is"),
        ({"foo_rank": 10**9}, "foo_rank is 1,000,000,000"),
        ({"num_things": 10**8}, "num_things is 100,000,000"),
        ({"text_config": {"hidden_size": 0}}, "text_config.hidden_size is 0"),
        ({"text_config": {"vision": {"num_layers": 10**5}}}, "text_config.vision.num_layers is"),
        ({"blocks": [{"d_model": -1}]}, "blocks.0.d_model is -1"),
        ({"more": NESTED}, "is nested more than 12 times"),
        ({"num_hidden_layers": 2000, "num_experts": 60_000}, "2,000 layers of 60,000 experts"),
    ],
)
def test_sizes_of_no_model_are_refused_at_once(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA | change))
    started = time.monotonic()
    for source in (catalog.resolve_config(str(tmp_path)), catalog.resolve_config(str(file))):
        with pytest.raises(LabError) as caught:
            weights.load_config(source)
        assert says in caught.value.message, "The message names the field and its value."
        assert len(str(caught.value)) < 1500 and "config.json" in caught.value.message
    assert time.monotonic() - started < 30, "Nothing was built."


def test_all_that_is_wrong_comes_at_once_and_is_counted() -> None:
    wrong = {f"n_layers_{number}": 10**6 for number in range(12)}
    with pytest.raises(LabError, match=r"n_layers_0 is .*; and 5 more") as caught:
        sizes.check(LLAMA | wrong | {"vocab_size": 0}, "mine")
    assert caught.value.message.startswith("No model can be built from the config.json of 'mine'")
    assert "vocab_size is 0" in caught.value.message


def test_a_file_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    text = json.dumps(LLAMA)
    (tmp_path / "config.json").write_text(text + " " * sizes.MAX_CONFIG_BYTES)
    with pytest.raises(LabError, match="bytes; at most 4,000,000 are read"):
        weights.load_config(catalog.resolve_config(str(tmp_path)))


def test_what_real_models_have_passes() -> None:
    for config in shipped_configs.shipped():
        sizes.check(config.config, config.name)
    largest = {"hidden_size": 53_248, "num_hidden_layers": 300, "vocab_size": 1_500_000}
    sizes.check(LLAMA | largest | {"num_experts": 2048, "rope_theta": 10**10}, "large")
    sizes.check(LLAMA | {"sliding_window": None, "pad_token_id": -1, "n_shared_experts": 0}, "odd")
    sizes.check(LLAMA | {"intermediate_size": [128, 256], "layer_norm_eps": 1e-5}, "by layer")
    sizes.check(LLAMA | {"max_position_embeddings": 1500.0}, "seconds times a rate")
    sizes.check(LLAMA | {"head_dim": 0, "qk_rope_head_dim": 64}, "turned elsewhere")


def test_the_defaults_of_every_architecture_that_generates_pass() -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    checked = 0
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            values = CONFIG_MAPPING[name]().to_dict()
        except Exception:  # it has no defaults of its own, or needs what is not installed
            continue
        sizes.check(values, name)
        checked += 1
    assert checked > 100, "Most architectures have defaults."


def test_weights_are_not_loaded_under_such_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 10**6}))
    source = catalog.ModelSource(str(tmp_path), str(tmp_path), local_only=True)
    with pytest.raises(LabError, match="num_hidden_layers is 1,000,000"):
        weights.load_model(source, None)


def test_heads_that_share_keys_divide_the_heads() -> None:
    shape = {"model_type": "llama", "num_attention_heads": 4}
    sizes.check(shape | {"num_key_value_heads": 2}, "mine")
    with pytest.raises(LabError, match="num_key_value_heads is 3, which does not divide 4 heads"):
        sizes.check(shape | {"num_key_value_heads": 3}, "mine")
