"""The proof of a merge: the merged model, read back from the disk, answers as the result does.

Three figures over the same tokens: the largest difference of any logit, the share of positions with
the same most likely token, and the mean KL divergence of the merged model's distribution from the
result's, in nats a position. In float32 only the order of sums differs; in 16 bits the merged
weights are rounded, which may lose a small update, so what lies beyond a bound is told there, and
refused only far beyond it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from lab.data.prepare import prepare
from lab.errors import LabError
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


BOUNDS = {
    "float32": MergeBounds(1e-3, 0.01, 1e-5, 1.0),
    "bfloat16": MergeBounds(5e-2, 0.05, 1e-3, 10.0),
}


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

    @property
    def bounds(self) -> MergeBounds:
        return BOUNDS[self.dtype]

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
            f"{self.kl:.1e} (bound {bounds.kl:g}); {self.tokens} tokens of {self.rows} rows "
            f"({self.rows_from})"
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


def compare(
    before: torch.Tensor, after: torch.Tensor, *, dtype: str, rows: int, rows_from: str, base: str
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
    return MergeProof(dtype, *figures, len(before), rows, rows_from, base)


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
