"""The proof of a result: read back in a plain way when it is written, it answers as trained.

The trained model has given its answers before; its memory is then freed, so that a second model
never stands beside it, and what the lines of the model card say is done. It takes what loading the
base takes: about a second for 135 million parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lab.formatting import quantity
from lab.library_imports import import_peft
from lab.methods import Method
from lab.methods.parts.adapter_files import CONFIG
from lab.models import headers
from lab.models.hub import local_folder
from lab.models.weights import (
    disable_cpu_repacking,
    first_line,
    is_quantised,
    load_model,
    on_device,
)
from lab.spec import RunSpec

ROWS, TOKENS = 2, 64  # of the held-out rows, or of the training rows where there are none
# of the logits' spread: what sums in another order, or in 16 bits, differ by
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
ROUNDINGS = 3  # times what the trained model's own answers differ by: deep models round more
MOST = 0.5  # beyond it nothing would be proven


@dataclass(frozen=True)
class ResultProof:
    """What the reading back has shown; `largest_difference` as a share of the logits' spread."""

    loaded_with: str  # PEFT, transformers or the lab
    equal: bool = False
    largest_difference: float | None = None
    tolerance: float | None = None
    rows: int = 0
    tokens: int = 0
    unused_tensors: list[str] = field(default_factory=list)
    zero_rows: dict[str, int] = field(default_factory=dict)  # of an adapter's matrices, by name
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"v": 1, **asdict(self)}

    @property
    def problem(self) -> str:
        """What is wrong, in a sentence; empty where nothing is."""
        if self.error:
            return f"The result could not be read back with {self.loaded_with}: {self.error}."
        if not self.equal:
            return (
                f"The result, read back with {self.loaded_with}, answers otherwise than what was "
                f"trained: by {self.largest_difference:.2e} of the logits' spread, and "
                f"{self.tolerance:g} is the most."
            )
        if self.unused_tensors:
            return f"Nothing reads {', '.join(self.unused_tensors[:3])} of the result."
        if self.zero_rows:
            name, count = next(iter(self.zero_rows.items()))
            return f"{quantity(count, 'row')} of {name} in the result learned nothing: all zeros."
        return ""


def loading_lines(method: Method, spec: RunSpec, folder: Path, rows: int) -> list[str]:
    """Plain Python that sets `model` from BASE and RESULT; none where only the lab can load it.

    `rows`: those of the trained model's embeddings, which may have grown.
    """
    dtype = "torch.bfloat16" if spec.train.precision == "bfloat16" else "torch.float32"
    plain = f"dtype={dtype}, use_safetensors=True"
    if method.saves_whole_model:
        return [
            "import torch",
            "from transformers import AutoModelForCausalLM",
            "",
            f"model = AutoModelForCausalLM.from_pretrained(RESULT, {plain})",
        ]
    if not (folder / CONFIG).exists():
        return []
    extra = method.script_load(spec.method_config)
    names = "AutoModelForCausalLM" + (", BitsAndBytesConfig" if extra else "")
    lines = [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {names}",
        "",
        "base = AutoModelForCausalLM.from_pretrained(",
        f"    BASE, {plain},",
        *(f"    {argument}," for argument in extra),
        ")",
    ]
    if type(method).extend_tokenizer is not Method.extend_tokenizer:
        lines.append(f"base.resize_token_embeddings({rows}, mean_resizing=False)")
    # else PEFT raises adapters to float32
    narrow = ", autocast_adapter_dtype=False" if spec.train.adapter_precision == "bfloat16" else ""
    return [*lines, f"model = PeftModel.from_pretrained(base, RESULT{narrow})"]


def answers(model: Any, rows: Sequence[list[int]]) -> torch.Tensor:
    """(N, V) float32 logits of all tokens of `rows`, on the CPU."""
    device = model.get_input_embeddings().weight.device
    model.eval()
    parts = []
    with torch.inference_mode():
        for ids in rows:
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
            parts.append(logits[0, -len(ids) :].float().cpu())
    return torch.cat(parts)


def own_rounding(model: Any, ids: Sequence[int], trained_NV: torch.Tensor) -> float:
    """What the trained model's answers to the first half of the row `ids` differ by from those to
    all of it, as a share of the logits' spread: the same sums, in products of another shape.

    `trained_NV`: its logits, those of this row first.
    """
    half = list(ids[: len(ids) // 2])
    if not half:
        return 0.0
    again = answers(model, [half])
    return float((again - trained_NV[: len(half)]).abs().max() / trained_NV.std())


def prove(
    folder: Path, model: Any, method: Method, spec: RunSpec, source: Any, rows: Sequence[list[int]]
) -> ResultProof:
    """Read the result in `folder` back and hold it against `model`, whose memory this frees."""
    grown = model.get_input_embeddings().weight.shape[0]
    lines = loading_lines(method, spec, folder, grown)
    loaded_with = "the lab"
    if lines:
        loaded_with = "transformers" if method.saves_whole_model else "PEFT"
    device = model.get_input_embeddings().weight.device
    try:
        trained = answers(model, rows)
        rounding = own_rounding(model, rows[0], trained)
        size = sum(weight.numel() for weight in model.parameters())
        release(model)
        if lines:
            base_folder = local_folder(source, with_weights=True)
            loaded = on_device(load_plainly(method, spec, base_folder, folder, grown), device)
        else:
            loaded = _load_in_lab(folder, method, spec, source, device)
        again = answers(loaded, rows)
        unused = _unused(folder, loaded, method, size)
        zero = {} if method.saves_whole_model else _zero_rows(folder)
    except Exception as error:  # whatever a library says of it: the result stays, and this is told
        return ResultProof(loaded_with, error=first_line(error))
    narrow = spec.train.precision != "float32" or bool(method.load_kwargs(spec.method_config))
    tolerance = TOLERANCE[torch.bfloat16 if narrow else torch.float32]
    tolerance = max(tolerance, min(MOST, float(f"{ROUNDINGS * rounding:.2g}")))
    difference = float("inf")
    if trained.shape == again.shape:
        difference = float((trained - again).abs().max() / trained.std())
    return ResultProof(
        loaded_with,
        equal=difference <= tolerance,
        largest_difference=difference,
        tolerance=tolerance,
        rows=len(rows),
        tokens=sum(map(len, rows)),
        unused_tensors=unused,
        zero_rows=zero,
    )


def load_plainly(
    method: Method, spec: RunSpec, base: Path, result: Path, embedding_rows: int
) -> Any:
    """What `loading_lines` say, with the base's folder and the result's."""
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if spec.train.precision == "bfloat16" else torch.float32
    extra = method.load_kwargs(spec.method_config)
    whole = result if method.saves_whole_model else base
    model = AutoModelForCausalLM.from_pretrained(
        whole, dtype=dtype, use_safetensors=True, trust_remote_code=False, **extra
    )
    if is_quantised(model):
        disable_cpu_repacking(model)  # other kernels round otherwise
    if method.saves_whole_model:
        return model
    peft = import_peft()
    if type(method).extend_tokenizer is not Method.extend_tokenizer:
        model.resize_token_embeddings(embedding_rows, mean_resizing=False)
    is_narrow = spec.train.adapter_precision == "bfloat16"
    return peft.PeftModel.from_pretrained(model, str(result), autocast_adapter_dtype=not is_narrow)


def release(model: Any) -> None:
    """Free the memory of a model that is not needed any more, whoever still holds it."""
    for module in model.modules():
        state = getattr(module, "state", None)  # of an 8-bit layer, which computes from its own
        for name in ("CB", "SCB"):
            if getattr(state, name, None) is not None:
                setattr(state, name, None)
    for tensor in [*model.parameters(), *model.buffers()]:
        for name in ("CB", "SCB", "quant_state"):  # where bitsandbytes keeps the weights
            if getattr(tensor, name, None) is not None:
                setattr(tensor, name, None)
        tensor.grad = None
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load_in_lab(folder: Path, method: Method, spec: RunSpec, source: Any, device: Any) -> Any:
    dtype = torch.bfloat16 if spec.train.precision == "bfloat16" else torch.float32
    extra = method.load_kwargs(spec.method_config)
    base = on_device(load_model(source, dtype, **extra), device)
    return on_device(method.load_saved(base, folder), device)


def _unused(folder: Path, loaded: Any, method: Method, size: int) -> list[str]:
    """Tensors of the result's file that have no place in the loaded model."""
    peft = import_peft()
    stored = {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in headers.read(file).items()
    }
    if method.saves_whole_model:  # some architectures are written under other names than they have
        numbers = sum(torch.Size(tensor.shape).numel() for tensor in stored.values())
        buffers = sum(buffer.numel() for buffer in loaded.buffers())
        return [quantity(numbers - size, "number")] if numbers > size + buffers else []
    if not isinstance(loaded, peft.PeftModel) or not (folder / CONFIG).exists():
        return []  # the lab's own reading holds every name against the model
    state = peft.get_peft_model_state_dict(loaded, save_embedding_layers=False)
    base_names = {f"base_model.model.{n}" for n, _ in loaded.get_base_model().named_parameters()}
    return sorted(set(stored) - set(state) - base_names)


def _zero_rows(folder: Path) -> dict[str, int]:
    """Rows of nothing but zeros, by the matrix of the adapter that they are in."""
    from safetensors import safe_open

    zero = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                if ".lora_" not in name and "prompt" not in name and "vectors" not in name:
                    continue
                tensor = tensors.get_tensor(name)
                count = int((tensor == 0).all(-1).sum()) if tensor.ndim == 2 else 0
                if count:
                    zero[name] = count
    return zero
