"""What a method computes, against its formula written out; what it takes, against storage."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lab import methods
from lab.methods import Context, qlora
from lab.methods.parts import bottleneck_modules
from lab.methods.parts.target_modules import target_layers
from lab.models.decoder_structure import decoder_layers
from lab.spec import RunSpec
from lab.train.optimizer import is_vector
from tests.methods import tiny


def applied(name: str, model: Any, **options: Any) -> tuple[Any, Any, Any]:
    """(method, its config, `model` with it)."""
    train = {"adapter_precision": "float32"}
    spec = RunSpec.from_json({"method": {"name": name, **options}, "train": train})
    method = methods.get(name)
    context = Context(spec, tiny.make_tokenizer())
    method.prepare(model, spec.method_config, context)
    return method, spec.method_config, method.apply(model, spec.method_config, context)


def loud(weights: Any) -> None:
    """Other numbers than those of the start, so that an update does something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(0.3 * torch.randn(weight.shape))


# -- bottleneck adapters ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["houlsby", "feed-forward", "parallel"])
def test_an_adapter_adds_what_its_formula_says_where_it_says(kind: str) -> None:
    """s * up(act(down(x))): of the input for a parallel one, of the output for the others."""
    base = tiny.make_model("llama")
    options = {"kind": kind, "size": 5, "scale": 2.5, "activation": "relu"}
    _, _, model = applied("bottleneck", copy.deepcopy(base), **options)
    loud(
        weight
        for part in bottleneck_modules.adapters(model).values()
        for weight in part.parameters()
    )
    places = {"houlsby": ["self_attn", "mlp"]}.get(kind, ["mlp"])
    assert len(bottleneck_modules.adapters(model)) == 2 * len(places)
    layer, plain = (decoder_layers(one)[1][0] for one in (model, base))
    x = torch.randn(1, 4, 32)

    def expected(adapter: Any, seen: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(seen @ adapter.down.weight.T + adapter.down.bias)
        return 2.5 * (inner @ adapter.up.weight.T + adapter.up.bias)

    with torch.no_grad():
        after, before = layer.mlp(x), plain.mlp(x)
        (adapter,) = [
            adapter for n, adapter in bottleneck_modules.adapters(layer).items() if "mlp" in n
        ]
        added = expected(adapter, x if kind == "parallel" else before)
        assert torch.allclose(after, before + added, atol=1e-5)
    beside = [name for name in bottleneck_modules.adapters(layer) if "self_attn" in name]
    assert len(beside) == (1 if kind == "houlsby" else 0)


def test_pfeiffer_reads_the_stream_after_the_residual_is_added() -> None:
    """AdapterHub's SeqBnConfig: original_ln_before, residual_before_ln. With h the feed-forward
    part's output and x the stream before it, h + up(act(down(h + x))), to which x is added."""
    _, _, model = applied("bottleneck", tiny.make_model("llama"), kind="pfeiffer", size=5)
    loud(
        weight
        for part in bottleneck_modules.adapters(model).values()
        for weight in part.parameters()
    )
    layer = decoder_layers(model)[1][0]
    seen: dict[str, torch.Tensor] = {}
    layer.post_attention_layernorm.register_forward_pre_hook(lambda m, i: seen.update(x=i[0]))
    layer.mlp.register_forward_hook(lambda m, i, out: seen.update(h=out))
    layer.register_forward_hook(lambda m, i, out: seen.update(out=out))
    with torch.no_grad():
        model(torch.arange(3, 9)[None])
        residual = seen["h"]
        hidden = residual + seen["x"]
        adapter = layer.bottleneck
        up = adapter.up(torch.nn.functional.silu(adapter.down(hidden)))
        assert torch.allclose(seen["out"], up + residual + seen["x"], atol=1e-5)


def test_a_near_zero_start_is_small_and_no_zero() -> None:
    _, _, model = applied("bottleneck", tiny.make_model("llama"), init="near-zero", size=32)
    for adapter in bottleneck_modules.adapters(model).values():
        assert 0.007 < float(adapter.up.weight.std()) < 0.011, "deviation 0.01, cut at two"
        assert float(adapter.up.weight.abs().max()) <= 0.02 and not adapter.up.bias.any()
        assert float(adapter.down.weight.abs().max()) > 0.05, "down starts as a linear layer"


def test_dropout_of_an_adapter_is_of_its_output_and_keeps_its_mean() -> None:
    adapter = bottleneck_modules.Bottleneck(400, 8, "silu", 0.5, 1.0, is_parallel=False)
    loud(adapter.parameters())
    x = torch.randn(1, 400)
    with torch.no_grad():
        exact = adapter.eval()(x)
        torch.manual_seed(0)
        dropped = adapter.train()(x)
    zeros = float((dropped == 0).float().mean())
    assert 0.4 < zeros < 0.6
    left = dropped != 0
    assert torch.allclose(dropped[left], 2 * exact[left], rtol=1e-4, atol=1e-5)


# -- PEFT's methods: that each setting reaches the right place --------------------------


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options, and PEFT's own fields
    "lora": ({"rank": 3, "alpha": 5.0, "dropout": 0.4},
             {"r": 3, "lora_alpha": 5, "lora_dropout": 0.4}),
    "adalora": ({"rank": 6, "target_rank": 2, "alpha": 5.0, "dropout": 0.4, "every": 3,
                 "smoothing": 0.7, "orthogonality": 0.9},
                {"init_r": 6, "target_r": 2, "lora_alpha": 5.0, "lora_dropout": 0.4, "deltaT": 3,
                 "beta1": 0.7, "beta2": 0.7, "orth_reg_weight": 0.9}),
    "loha": ({"rank": 3, "alpha": 5.0, "rank_dropout": 0.3, "module_dropout": 0.2},
             {"r": 3, "alpha": 5.0, "rank_dropout": 0.3, "module_dropout": 0.2}),
    "lokr": ({"rank": 3, "alpha": 5.0, "rank_dropout": 0.3, "module_dropout": 0.2, "factor": 4,
              "decompose_both": True},
             {"r": 3, "alpha": 5.0, "rank_dropout": 0.3, "module_dropout": 0.2,
              "decompose_factor": 4, "decompose_both": True}),
    "vera": ({"rank": 3, "dropout": 0.4, "d_initial": 0.5, "seed": 7},
             {"r": 3, "vera_dropout": 0.4, "d_initial": 0.5, "projection_prng_key": 7}),
    "oft": ({"block_size": 8, "block_share": True},
            {"oft_block_size": 8, "r": 0, "block_share": True}),
    "prefix": ({"num_virtual_tokens": 3, "projection": True, "projection_width": 9},
               {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 9}),
    "ptuning": ({"num_virtual_tokens": 3, "encoder": "lstm", "width": 9, "layers": 4,
                 "dropout": 0.4},
                {"num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM",
                 "encoder_hidden_size": 9, "encoder_num_layers": 4, "encoder_dropout": 0.4}),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_each_option_is_the_field_of_peft_that_its_help_names(name: str) -> None:
    """Two that are exchanged would both change something."""
    options, fields = SETTINGS[name]
    settings = methods.get(name).peft_config_kwargs(methods.get(name).config(**options))
    assert {field: settings.get(field) for field in fields} == fields


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_is_scaled_by_alpha_over_the_rank_or_its_root(rslora: bool) -> None:
    base = tiny.make_model("llama")
    options = {
        "rank": 4,
        "alpha": 6.0,
        "use_rslora": rslora,
        "dropout": 0.0,
        "target_modules": ["q_proj"],
    }
    _, _, model = applied("lora", copy.deepcopy(base), **options)
    loud(weight for name, weight in model.named_parameters() if "lora_" in name)
    layer = decoder_layers(model)[1][0].self_attn.q_proj
    plain = decoder_layers(base)[1][0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(3, 32)
    with torch.no_grad():
        scale = 6.0 / 2.0 if rslora else 6.0 / 4.0
        assert torch.allclose(layer(x), plain(x) + scale * x @ a.T @ b.T, atol=1e-5)
    assert a.shape == (4, 32)


def test_ranks_and_alphas_of_each_layer_reach_their_layer() -> None:
    options = {"layer_ranks": [2, 8], "layer_alphas": [3.0, 4.0], "dropout": 0.0}
    _, _, model = applied("lora", tiny.make_model("llama"), **options)
    for number, (rank, scale) in enumerate(((2, 1.5), (8, 0.5))):
        part = decoder_layers(model)[1][number].mlp.up_proj
        assert part.lora_A["default"].weight.shape[0] == rank
        assert part.scaling["default"] == pytest.approx(scale)


def test_pissa_takes_the_largest_directions_of_the_weight() -> None:
    base = tiny.make_model("llama")
    weight = decoder_layers(base)[1][0].self_attn.q_proj.weight.detach().clone()
    _, _, model = applied("lora", base, rank=4, alpha=4.0, init_lora_weights="pissa", dropout=0.0)
    layer = decoder_layers(model)[1][0].self_attn.q_proj
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    u, s, v = torch.linalg.svd(weight)
    largest = u[:, :4] @ torch.diag(s[:4]) @ v[:4]
    assert torch.allclose(update, largest, atol=1e-3)
    assert torch.allclose(layer.base_layer.weight + update, weight, atol=1e-3)


def test_factors_of_ia3_scale_outputs_of_attention_and_inputs_of_the_feed_forward() -> None:
    base = tiny.make_model("llama")
    _, _, model = applied("ia3", copy.deepcopy(base))
    loud(weight for name, weight in model.named_parameters() if "ia3_l" in name)
    ours, plain = (decoder_layers(one)[1][1] for one in (model, base))
    x, wide = torch.randn(3, 32), torch.randn(3, 64)
    scaled = {n for n, part in ours.named_modules() if hasattr(part, "ia3_l")}
    assert scaled == {"self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"}
    with torch.no_grad():
        for name in ("k_proj", "v_proj"):
            part = getattr(ours.self_attn, name)
            factor = part.ia3_l["default"].flatten()
            assert factor.shape == (16,), "one number for each output"
            assert torch.allclose(part(x), factor * getattr(plain.self_attn, name)(x), atol=1e-5)
        factor = ours.mlp.down_proj.ia3_l["default"].flatten()
        expected = plain.mlp.down_proj(factor * wide)
        assert factor.shape == (64,)
        assert torch.allclose(ours.mlp.down_proj(wide), expected, atol=1e-5)


def test_a_prefix_of_text_begins_as_the_text_would_have_left_it() -> None:
    """Answers behind the prefix are those behind the text itself."""
    base = tiny.make_model("llama")
    words = torch.tensor([3, 4, 5])
    options = {"init": "text", "text": "w1 w2 w3", "num_virtual_tokens": 3}
    ids = torch.tensor([[10, 11, 12]])
    with torch.no_grad():
        expected = base(torch.cat([words.unsqueeze(0), ids], dim=1)).logits[:, 3:]
        _, _, model = applied("prefix", copy.deepcopy(base), **options)
        assert torch.allclose(model.eval()(input_ids=ids).logits, expected, atol=1e-4)


def test_a_prompt_of_text_begins_with_its_embeddings() -> None:
    """Repeated as often as it takes; so the answers are those behind the words."""
    base = tiny.make_model("llama")
    table = base.get_input_embeddings().weight.detach()
    ids = torch.tensor([[10, 11, 12]])
    _, _, model = applied(
        "prompt", copy.deepcopy(base), init="text", text="w1 w2", num_virtual_tokens=5
    )
    vectors = model.prompt_encoder["default"].embedding.weight
    words = [3, 4, 3, 4, 3]
    assert torch.equal(vectors, table[words])
    hybrid = applied("lora_prompt", copy.deepcopy(base), start_text="w1 w2", virtual_tokens=5)[2]
    with torch.no_grad():
        expected = base(torch.cat([torch.tensor([words]), ids], dim=1)).logits[:, 5:]
        assert torch.allclose(model.eval()(input_ids=ids).logits[:, -3:], expected, atol=1e-4)
        hybrid.eval()
        assert torch.allclose(hybrid(input_ids=ids).logits, expected, atol=1e-4)
        # as the step asks, and as generation asks, with a row that is filled up on the left
        at = torch.arange(3).unsqueeze(0)
        said = hybrid(input_ids=ids, position_ids=at, use_cache=False).logits
        assert torch.allclose(said, expected, atol=1e-4), "text stands behind the prompt"
        filled = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], dim=1)
        mask = torch.tensor([[0, 0, 1, 1, 1]])
        places = torch.tensor([[1, 1, 0, 1, 2]])
        said = hybrid(input_ids=filled, attention_mask=mask, position_ids=places).logits[:, 2:]
        assert torch.allclose(said, expected, atol=1e-4), "the prompt is seen, the filling is not"
    from lab.methods.parts import soft_prompt

    soft_prompt.remove(hybrid)
    with torch.no_grad():
        plain = base(ids).logits
        assert torch.allclose(hybrid(input_ids=ids).logits, plain, atol=1e-5), "taken out again"


def test_a_random_start_is_as_large_as_the_embeddings() -> None:
    base = tiny.make_model("llama")
    std = float(base.get_input_embeddings().weight.std())
    _, _, model = applied("prompt", copy.deepcopy(base), init="random", num_virtual_tokens=200)
    vectors = model.prompt_encoder["default"].embedding.weight
    assert float(vectors.std()) == pytest.approx(std, rel=0.1)
    _, _, model = applied("prefix", copy.deepcopy(base), init="random", num_virtual_tokens=200)
    prefix = model.prompt_encoder["default"].embedding.weight
    assert float(prefix.std()) == pytest.approx(0.02, rel=0.1), "small beside the real keys"


def test_new_tokens_begin_as_the_mean_of_the_others() -> None:
    base = tiny.make_model("llama")
    tables = [base.get_input_embeddings().weight, base.get_output_embeddings().weight]
    before = [table.detach().clone() for table in tables]
    spec = RunSpec.from_json({"method": {"name": "lora_embeddings", "new_tokens": ["<a>", "<b>"]}})
    method, words = methods.get("lora_embeddings"), tiny.make_tokenizer()
    for _ in range(2):  # a resumed run adds them again
        method.extend_tokenizer(words, spec.method_config)
    assert len(words) == tiny.VOCABULARY + 2
    method.prepare(base, spec.method_config, Context(spec, words))
    tables = [base.get_input_embeddings().weight, base.get_output_embeddings().weight]
    for now, then in zip(tables, before, strict=True):
        assert now.shape[0] == tiny.VOCABULARY + 2 and torch.equal(now[:-2], then)
        assert torch.allclose(now[-2:], then.mean(0).expand(2, -1), atol=1e-6)


# -- rates, growth, and what a resume needs ---------------------------------------------


def test_the_bases_own_weights_learn_at_their_share_of_the_rate() -> None:
    for name in ("top_layers_lora", "lora_embeddings", "progressive"):
        method, config, model = applied(name, tiny.make_model("llama"), base_rate=0.25)
        method.unfreeze_all(model, config)
        names = {id(weight): n for n, weight in model.named_parameters()}
        rates = {
            names[id(weight)]: group["lr"]
            for group in method.param_groups(model, config, 0.8)
            for weight in group["params"]
        }
        assert rates.keys() == {n for n, w in model.named_parameters() if w.requires_grad}
        assert {rate for n, rate in rates.items() if ".lora_" in n} == {0.8}, name
        assert {rate for n, rate in rates.items() if ".lora_" not in n} == {0.2}, name


def opened(model: Any) -> list[int]:
    """The decoder layers whose own weights train."""
    names = [n for n, w in model.named_parameters() if w.requires_grad and ".lora_" not in n]
    return sorted({int(name.split(".layers.")[1][0]) for name in names})


def test_progressive_waits_out_its_patience_over_a_resume() -> None:
    """Two evaluations without a gain before the stop, the third behind it: then the layer opens."""
    options = {"patience": 3, "min_delta": 0.1}
    method, config, model = applied("progressive", tiny.make_model("llama"), **options)
    for loss in (3.0, 2.95, 2.95):
        method.on_evaluate(model, config, 1, loss)
    assert opened(model) == []
    _, _, again = applied("progressive", tiny.make_model("llama"), **options)
    method.load_state(again, method.state(model))
    method.on_evaluate(again, config, 4, 2.95)
    assert opened(again) == [1], "the top layer"
    for loss in (2.95, 2.95):
        method.on_evaluate(again, config, 5, loss)
    assert opened(again) == [1], "it waits as long for the next one"
    _, _, third = applied("progressive", tiny.make_model("llama"), **options)
    method.load_state(third, method.state(again))
    assert opened(third) == [1], "what was open is open"
    method.on_evaluate(third, config, 7, 2.0)
    method.on_evaluate(third, config, 8, 2.05)
    assert opened(third) == [1], "a better loss begins the wait anew"
    for loss in (2.05, 2.05):
        method.on_evaluate(third, config, 9, loss)
    assert opened(third) == [0, 1]


def test_progressive_opens_by_steps_and_no_more_than_it_may() -> None:
    options = {"trigger": "steps", "every": 3, "layers_at_once": 1, "most_layers": 1}
    method, config, model = applied("progressive", tiny.make_model("llama"), **options)
    results = []
    for step in range(1, 8):
        method.on_optimizer_step(model, config, step)
        method.on_evaluate(model, config, step, 9.0)
        results.append(opened(model))
    assert results == [[], [], [1], [1], [1], [1], [1]]


def test_memory_is_counted_for_all_that_may_open() -> None:
    for most, layers in ((1, [1]), (None, [0, 1]), (9, [0, 1])):
        method, config, model = applied(
            "progressive", tiny.make_model("llama"), most_layers=most, trigger="steps"
        )
        method.unfreeze_all(model, config)
        assert opened(model) == layers, f"at most {most}"


@pytest.mark.every_method
@pytest.mark.parametrize("name", methods.names())
def test_virtual_tokens_are_as_many_as_pass_and_as_are_attended_to(name: str) -> None:
    """Context lengths, memory and operations are worked out from them."""
    options = {"num_virtual_tokens": 7} if name in ("prompt", "ptuning", "prefix") else {}
    method, config, model = applied(name, tiny.make_model("llama"), **options)
    widths: list[int] = []
    layer = decoder_layers(model)[1][0]
    layer.mlp.register_forward_pre_hook(lambda part, inputs: widths.append(inputs[0].shape[1]))
    with torch.no_grad():
        output = model.eval()(input_ids=torch.arange(3, 9)[None], use_cache=True)
    held = output.past_key_values.get_seq_length()
    assert (widths[-1] - 6, held - widths[-1]) == method.virtual_tokens(config)


@pytest.mark.every_method
@pytest.mark.parametrize("name", methods.names())
def test_weight_decay_has_no_effect_where_only_vectors_train(name: str) -> None:
    method, _, model = applied(name, tiny.make_model("llama"))
    trains = [(key, weight) for key, weight in model.named_parameters() if weight.requires_grad]
    assert trains and method.trains_only_vectors == all(
        is_vector(key, weight, method) for key, weight in trains
    )


# -- what a base takes in fewer bits ----------------------------------------------------


@pytest.mark.parametrize("double", [True, False])
def test_four_bits_and_their_scales_take_what_is_predicted(double: bool) -> None:
    """A matrix as bitsandbytes stores it: packed weights, a scale for each 64 of them, and with
    double quantisation these in 8 bits with scales of their own."""
    from bitsandbytes import functional

    matrix = torch.randn(1024, 2048)
    packed, state = functional.quantize_4bit(
        matrix, blocksize=64, compress_statistics=double, quant_type="nf4"
    )
    stored = packed.numel() * packed.element_size() + state.absmax.numel() * (
        state.absmax.element_size()
    )
    if double:
        stored += 4 * state.state2.absmax.numel()
    else:
        assert state.state2 is None
    model = tiny.make_empty("llama", 64).to(torch.bfloat16)
    linear = sum(layer.d_in * layer.d_out for layer in target_layers(model, "all-linear"))
    others = sum(weight.numel() for weight in model.parameters()) - linear
    config = methods.get("qlora").config(double_quantisation=double)
    predicted = tiny.stored_base_bytes(model, methods.get("qlora"), config)
    assert predicted - 2 * others == pytest.approx(stored / matrix.numel() * linear, rel=1e-3)


def test_eight_bits_and_their_scales_take_what_is_predicted() -> None:
    from bitsandbytes import functional

    matrix = torch.randn(96, 64)
    packed, scales, _ = functional.int8_vectorwise_quant(matrix.half())
    assert (packed.element_size(), scales.element_size(), scales.numel()) == (1, 4, 96)
    model = tiny.make_empty("llama", 64).to(torch.bfloat16)
    layers = target_layers(model, "all-linear")
    linear = sum(layer.d_in * layer.d_out for layer in layers)
    others = sum(weight.numel() for weight in model.parameters()) - linear
    method = methods.get("lora8bit")
    result = tiny.stored_base_bytes(model, method, method.config())
    assert result == linear + 4 * sum(layer.d_out for layer in layers) + 2 * others


def test_four_bits_are_multiplied_in_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_gpu, has_bf16, kind in (
        (False, True, torch.float32), (True, False, torch.float32), (True, True, torch.bfloat16),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_bf16=has_bf16: has_bf16)
        assert qlora.compute_type("auto") == kind, (has_gpu, has_bf16)
        assert qlora.compute_type("float32") == torch.float32, "a choice holds"
        assert qlora.device_map() == {"": 0 if has_gpu else "cpu"}


def test_what_is_stored_and_computed_in_is_what_was_chosen() -> None:
    for levels, double, compute in (("nf4", True, "float32"), ("fp4", False, "bfloat16")):
        options = {"quant_type": levels, "double_quantisation": double, "compute_dtype": compute}
        method = methods.get("qlora")
        quantization_config = method.load_kwargs(method.config(**options))["quantization_config"]
        assert (
            quantization_config.load_in_4bit and quantization_config.bnb_4bit_quant_type == levels
        )
        assert quantization_config.bnb_4bit_use_double_quant is double
        assert quantization_config.bnb_4bit_compute_dtype == getattr(torch, compute)
    method = methods.get("lora8bit")
    quantization_config = method.load_kwargs(method.config(threshold=2.5))["quantization_config"]
    assert quantization_config.load_in_8bit and quantization_config.llm_int8_threshold == 2.5
