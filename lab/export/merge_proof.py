"""The proof of a merge: the merged model, read back from the disk, answers as the result does.

Three figures over the same tokens: the largest difference of any logit, the share of positions with
the same most likely token, and the mean KL divergence of the merged model's distribution from the
result's, in nats a position. In float32 only the order of sums differs; in 16 bits the merged
weights are rounded, which may lose a small update, so what lies beyond a bound is told there, and
refused only far beyond it. Both models compute in float32 where there is room for it: two runs of
one real model in bfloat16 differ by more than the rounding of its weights.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import psutil

from lab.data.prepare import prepare
from lab.errors import LabError
from lab.formatting import quantity
from lab.models import weights
from lab.spec import RunSpec

if TYPE_CHECKING:
    import torch

ROWS, TOKENS = 8, 64  # 100 MB of logits where the vocabulary has 50,000 tokens
FILE = "merge_proof.json"


@dataclass(frozen=True)
class MergeBounds:
    """The most by which a merged model may differ; `refused_beyond` is a multiple of all three."""

    spread: float  # the largest difference as a share of the logits' standard deviation
    other_top: float  # the share of positions with another most likely token
    kl: float  # nats a position
    refused_beyond: float


BOUNDS = {  # (type of the weights, type of the computation); docs/measured.md has the figures
    ("float32", "float32"): MergeBounds(1e-3, 0.01, 1e-5, 1.0),
    ("bfloat16", "float32"): MergeBounds(0.25, 0.05, 1e-3, 10.0),
    ("bfloat16", "bfloat16"): MergeBounds(0.5, 0.1, 1e-2, 10.0),
}
ROOM_PER_BYTE = 1.1  # of free memory for each byte that float32 takes more


@dataclass(frozen=True)
class MergeProof:
    """What reading the merged model back has shown, with the bounds that hold for its type."""

    dtype: str
    largest_difference: float  # of any logit
    share_of_spread: float  # the same, divided by the logits' standard deviation
    same_top: float  # share of positions, 0 to 1
    kl: float  # nats a position
    tokens: int
    rows: int
    rows_from: str  # held-out, training or vocabulary
    base: str  # float32, bfloat16, or 4 bits, dequantised
    computed_in: str = "float32"

    @property
    def bounds(self) -> MergeBounds:
        return BOUNDS[self.dtype, self.computed_in]

    @property
    def excess(self) -> float:
        """The largest figure as a multiple of its bound: 1 is at the bound. Infinite for NaN."""
        bounds = self.bounds
        ratios = (
            self.share_of_spread / bounds.spread,
            (1 - self.same_top) / bounds.other_top,
            self.kl / bounds.kl,
        )
        return max(ratios) if all(ratio == ratio for ratio in ratios) else float("inf")

    @property
    def verdict(self) -> str:
        """equal, differs (kept, with a warning) or refused."""
        if self.excess <= 1:
            return "equal"
        return "differs" if self.excess <= self.bounds.refused_beyond else "refused"

    @property
    def sentence(self) -> str:
        bounds = self.bounds
        return (
            f"largest logit difference {self.largest_difference:.2g}, {self.share_of_spread:.1e} "
            f"of the logits' spread (bound {bounds.spread:g}); same top token "
            f"{100 * self.same_top:.1f} % (bound {100 * (1 - bounds.other_top):g} %); KL "
            f"{self.kl:.1e} (bound {bounds.kl:g}); {quantity(self.tokens, 'token')} of "
            f"{quantity(self.rows, 'row')} ({self.rows_from}), computed in {self.computed_in}"
        )

    def to_json(self) -> dict[str, Any]:
        """With bounds, verdict, the time in seconds since 1970 and the libraries' versions."""
        libraries = ("torch", "transformers", "peft")
        return {
            "v": 1,
            **asdict(self),
            "bounds": asdict(self.bounds),
            "verdict": self.verdict,
            "sentence": self.sentence,
            "time": time.time(),
            "versions": {name: metadata.version(name) for name in libraries},
        }


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[bool]:
    """`model` with float32 weights for as long as the block takes; yields whether it has them.
    Weights of 4 bits stay as they are, and so do all where the memory is too small."""
    import torch

    narrow = [
        tensor
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    ]
    types = [tensor.dtype for tensor in narrow]
    more = sum((4 - tensor.element_size()) * tensor.numel() for tensor in narrow)
    if weights.is_quantised(model) or (narrow and more * ROOM_PER_BYTE > _free(narrow[0].device)):
        yield False
        return
    try:
        for tensor in narrow:
            tensor.data = tensor.data.float()
        yield True
    finally:
        for tensor, dtype in zip(narrow, types, strict=True):
            tensor.data = tensor.data.to(dtype)


def _free(device: Any) -> int:
    """Bytes of free memory on a device."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def compare(
    before: torch.Tensor,
    after: torch.Tensor,
    *,
    dtype: str,
    rows: int,
    rows_from: str,
    base: str,
    computed_in: str = "float32",
) -> MergeProof:
    """The figures of two (N, V) float32 logits at the same positions."""
    import torch

    infinite = float("inf")
    if before.shape != after.shape:
        figures = (infinite, infinite, 0.0, infinite)
    else:
        largest = float((before - after).abs().max())
        kl = torch.nn.functional.kl_div(
            after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        same = float((before.argmax(-1) == after.argmax(-1)).float().mean())
        # rounding can make the sum a little less than nothing; max() would hide a NaN
        figures = (largest, largest / float(before.std()), same, float(kl.clamp(min=0.0)))
    return MergeProof(dtype, *figures, len(before), rows, rows_from, base, computed_in)


def probe_rows(spec: RunSpec, receipt: dict[str, Any], model: Any, tokenizer: Any) -> Any:
    """(rows of token ids, where they are from): held-out rows of the run, else training rows; where
    the data is not here any more, tokens from all over the vocabulary."""
    from dataclasses import replace

    system = str(receipt.get("system_prompt") or "")
    data = replace(spec.data, system_prompt=system, packing="off", general_fraction=0.0)
    try:
        prepared = prepare(replace(spec, data=data), tokenizer)
    except (LabError, OSError):
        return vocabulary_rows(model), "vocabulary"
    for examples, source in ((prepared.held_out, "held-out"), (prepared.train, "training")):
        rows = [list(examples[i].ids[:TOKENS]) for i in range(min(ROWS, len(examples)))]
        if any(rows):
            return [row for row in rows if row], source
    return vocabulary_rows(model), "vocabulary"


def vocabulary_rows(model: Any) -> Sequence[list[int]]:
    size = model.get_input_embeddings().weight.shape[0]
    return [[i * (size - 1) // (TOKENS - 1) for i in range(TOKENS)]]
