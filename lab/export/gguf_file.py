"""A whole model of a Llama-like architecture as one GGUF file, for llama.cpp and Ollama.

Tensors are taken from the folder's safetensors one at a time, so that the model is never in memory
as a whole until the file is read back by transformers, whose logits must be those of the folder.
Names of tensors: `gguf.tensor_mapping`; names of keys: `gguf.constants`, both of llama.cpp.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import methods
from lab.atomic_files import file_identity, part, read_object, sync_folder, sync_tree
from lab.errors import LabError
from lab.export import merge, merge_proof
from lab.formatting import quantity
from lab.paths import RunDir
from lab.recent import Recent
from lab.schema import quote
from lab.spec import RunSpec

# the folder's model_type to the name of the architecture in llama.cpp
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
PERMUTED = ("llama",)  # llama.cpp turns the halves of these rotary dimensions into pairs
QUANTISATIONS = ("F32", "F16", "Q8_0")
# of the largest difference to the float32 logits; F16 of SmolLM2-135M differs by 1.1e-2
SPREAD = {"F32": 1e-3, "F16": 5e-2, "Q8_0": 0.3}
TEXTS = (
    "What is 12,345 plus 67?\n",
    "  Übung macht den Meister – naïve café 你好 🙂\t{x: [1]}\n\n",
)


@dataclass(frozen=True)
class GgufProof:
    """What reading the file back with transformers has shown."""

    quantisation: str
    largest_difference: float  # of any logit
    share_of_spread: float
    bound: float  # of share_of_spread
    same_top: float
    kl: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return {"v": 1, **asdict(self), "sentence": self.sentence}

    @property
    def sentence(self) -> str:
        return (
            f"largest logit difference {self.largest_difference:.2g}, {self.share_of_spread:.1e} "
            f"of the logits' spread (bound {self.bound:g}); same top token "
            f"{100 * self.same_top:.1f} %; KL {self.kl:.1e}; {quantity(self.tokens, 'token')}"
        )


def why_not(folder: Path) -> tuple[str, str]:
    """(why the model in `folder` cannot be written, what works instead); empty where it can."""
    config = read_object(folder / "config.json") or {}
    kind = str(config.get("model_type"))
    converter = (
        f"python LLAMA_CPP/convert_hf_to_gguf.py {shlex.quote(str(folder))} --outfile model.gguf"
    )
    way_out = f"llama.cpp's own converter may know it: {converter}"
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        return f"its architecture is {quote(kind)}; here are written {known}.", way_out
    rope = part(config, "rope_parameters")
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        return "its positions are scaled, which is not written here.", way_out
    if (config.get("attention_bias") and kind == "llama") or config.get("mlp_bias"):
        return "its linear layers have biases, which is not written here.", way_out
    if config.get("use_sliding_window"):
        return "it uses a sliding window, which is not written here.", way_out
    if not _pre_tokenizer_of(folder / "tokenizer.json"):
        return "its tokenizer splits text in a way that is not written here.", way_out
    return "", ""


_known: Recent[tuple[Any, ...], str] = Recent(32)


def _pre_tokenizer_of(file: Path) -> str:
    """As `pre_tokenizer`, of a file that is read once: it may have many megabytes, and pages ask
    again and again."""
    key = (str(file), *file_identity(file))
    name = _known.get(key)
    return _known.put(key, pre_tokenizer(read_object(file) or {})) if name is None else name


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name of how tokenizer.json splits text; empty for one that is not known here."""
    if part(tokenizer, "model").get("type") != "BPE" or part(tokenizer, "model").get(
        "byte_fallback"
    ):
        return ""
    splitter = part(tokenizer, "pre_tokenizer")
    steps: list[Any] = [splitter]
    if splitter.get("type") == "Sequence":
        steps = list(splitter.get("pretokenizers") or [])
    kinds = [part(step).get("type") for step in steps]
    if tokenizer.get("normalizer") and part(tokenizer, "normalizer").get("type") != "NFC":
        return ""
    if kinds == ["ByteLevel"] and part(steps[0]).get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and part(steps[0]).get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = str(part(steps[0], "pattern").get("Regex", ""))
        if "\\p{N}{1,3}" in pattern:
            return "llama-bpe"
        return "qwen2" if "|\\p{N}|" in pattern else ""
    return ""


def check(run: RunDir, file: Path) -> None:
    """Raise LabError for what stands against a GGUF file of `run`, before anything is loaded or
    downloaded."""
    if file.exists():
        raise LabError(f"'{quote(str(file))}' exists.", "Choose another name.")
    if not methods.get(RunSpec.of_run(run).method["name"]).saves_whole_model:
        merge.check(run, file.with_name(f".{file.name}.merged"), "float32")


def write(
    folder: Path,
    file: Path,
    quantisation: str = "F16",
    name: str = "",
    tell: Callable[[str], object] = lambda phase: None,
) -> GgufProof:
    """Write the model in `folder` (config.json, safetensors, tokenizer) as `file`; nothing is left
    of one that does not answer as the folder does. Raises LabError."""
    if quantisation not in QUANTISATIONS:
        raise LabError(
            f"'{quote(quantisation)}' is not written here.",
            f"Choose one of {', '.join(QUANTISATIONS)}; llama.cpp's llama-quantize makes others.",
        )
    reason, way_out = why_not(folder)
    if reason:
        raise LabError(f"There is no GGUF of this model: {reason}", way_out)
    if file.exists():
        raise LabError(f"'{quote(str(file))}' exists.", "Choose another name.")
    try:
        handle, aside = tempfile.mkstemp(prefix=".", suffix=".gguf", dir=file.parent)
        os.close(handle)
    except OSError as error:
        raise LabError(f"'{quote(str(file))}' cannot be written: {error}.", "Check it.") from None
    try:
        tell("writing the GGUF file")
        _write(folder, Path(aside), quantisation, name or folder.name)
        tell("proving the GGUF file")
        proof = _prove(folder, Path(aside), quantisation)
        if not proof.share_of_spread <= proof.bound:
            raise LabError(
                f"The GGUF file answers differently: {proof.sentence}. It was not kept.",
                "Choose F32, or llama.cpp's own converter.",
            )
        sync_tree(Path(aside))
        os.replace(aside, file)
        sync_folder(file.parent)
    except OSError as error:
        raise LabError(f"The GGUF file cannot be written: {error}.", "Check the disk.") from None
    finally:
        Path(aside).unlink(missing_ok=True)
    return proof


@dataclass(frozen=True)
class WrittenGguf:
    """`proof`: as GgufProof writes it, and under "merge" that of the merge. `commands`: lines that
    use the file, by program."""

    file: str
    bytes: int
    proof: Mapping[str, Any]
    commands: Mapping[str, str]


def of_run(
    run: RunDir,
    file: Path,
    quantisation: str = "F16",
    tell: Callable[[str], object] = lambda phase: None,
) -> WrittenGguf:
    """The result of `run` as a GGUF file, merged in float32 on the way where it is an adapter.
    Raises LabError."""
    method = methods.get(RunSpec.of_run(run).method["name"])
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=file.absolute().parent) as aside:
        folder = run.artifact
        if not method.saves_whole_model:
            folder = Path(aside) / "merged"
            record = {"merge": merge.merge(run, folder, "float32", tell).proof}
        proof = write(folder, file, quantisation, RunSpec.of_run(run).name or run.id, tell)
    return WrittenGguf(
        str(file), file.stat().st_size, {**proof.to_json(), **record}, commands(file)
    )


def commands(file: Path) -> dict[str, str]:
    """Command lines that use the file, by program."""
    return {
        "llama.cpp": f"llama-cli -m {shlex.quote(str(file))} -cnv",
        "Ollama": f"echo {shlex.quote(f'FROM {file}')} > Modelfile && "
        "ollama create my-model -f Modelfile && ollama run my-model",
    }


def _write(folder: Path, file: Path, quantisation: str, name: str) -> None:
    import gguf
    import numpy as np

    config = read_object(folder / "config.json") or {}
    architecture = ARCHITECTURES[str(config["model_type"])]
    heads, layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    writer = gguf.GGUFWriter(file, architecture, use_temp_file=False)
    rope = part(config, "rope_parameters").get("rope_theta") or config.get("rope_theta", 10000.0)
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_block_count(layers)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    types = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(int(gguf.LlamaFileType[types[quantisation]]))
    _write_tokenizer(writer, folder, int(config["vocab_size"]))
    names = gguf.get_tensor_name_map(
        next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == architecture), layers
    )
    target_type = gguf.GGMLQuantizationType[quantisation]
    for tensor_name, weight in _tensors(folder):
        if tensor_name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        target = names.get_name(tensor_name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise LabError(
                f"llama.cpp knows no tensor {quote(tensor_name)} of {architecture}.",
                "Use llama.cpp's own converter.",
            )
        values = weight.float().numpy()
        if architecture in PERMUTED and ("q_proj" in tensor_name or "k_proj" in tensor_name):
            count = heads if "q_proj" in tensor_name else kv_heads
            pairs = values.reshape(count, 2, len(values) // count // 2, *values.shape[1:])
            values = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))
        fits = values.ndim > 1 and (quantisation != "Q8_0" or values.shape[-1] % 32 == 0)
        kind = target_type if fits else gguf.GGMLQuantizationType.F32
        writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: Any, folder: Path, vocabulary: int) -> None:
    """Tokens padded to `vocabulary`, merges, special tokens and the chat template."""
    import gguf

    from lab.models.catalog import ModelSource
    from lab.models.weights import load_tokenizer

    stored = read_object(folder / "tokenizer.json") or {}
    tokenizer = load_tokenizer(ModelSource(folder.name, str(folder), local_only=True))
    tokens = [f"[PAD{token_id}]" for token_id in range(vocabulary)]
    kinds = [int(gguf.TokenType.UNUSED)] * vocabulary
    for text, token_id in part(stored, "model", "vocab").items():
        tokens[token_id], kinds[token_id] = text, int(gguf.TokenType.NORMAL)
    for token in stored.get("added_tokens", []):
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], kinds[token["id"]] = token["content"], int(kind)
    merges = part(stored, "model").get("merges", [])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(stored))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for token_id, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if token_id is not None:
            add(token_id)
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                yield name, tensors.get_tensor(name)


def _prove(folder: Path, file: Path, quantisation: str) -> GgufProof:
    """The file read back as anybody would, against the folder: tokens of texts, then logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lab.train import proof as read_back

    plain = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    again = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
    rows = [plain(text).input_ids for text in TEXTS] + list(merge_proof.vocabulary_rows(model))
    if [again(text).input_ids for text in TEXTS] != rows[:-1]:
        raise LabError(
            "The GGUF file's tokenizer gives other tokens than the model's. It was not kept.",
            "Use llama.cpp's own converter.",
        )
    before = read_back.answers(model, rows)
    read_back.release(model)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **options)
    after = read_back.answers(model, rows)
    proof = merge_proof.compare(
        before, after, dtype="float32", rows=len(rows), rows_from="vocabulary", base=""
    )
    return GgufProof(
        quantisation, proof.largest_difference, proof.share_of_spread, SPREAD[quantisation],
        proof.same_top, proof.kl, proof.tokens,
    )  # fmt: skip
