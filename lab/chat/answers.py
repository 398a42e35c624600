"""What a model answered, and the receipt that its answer can be repeated from.

Receipts travel: into the conversation's file, to a download, out of `chat --json`. What is stored
may be older or damaged; `from_json` reads of it what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lab import dataclass_json


@dataclass(frozen=True, kw_only=True)
class ProofRecord:
    """What was measured when the model was loaded, as `engine.proof.Proof` says it; `problems` are
    what a person must know before believing the answer."""

    base_difference: float | None = None
    effect: float | None = None
    tensors: int | None = None
    tensors_loaded: int | None = None
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"problems": list(self.problems)}


@dataclass(frozen=True, kw_only=True)
class AnswerReceipt:
    """Proof of equal terms: the exact prompt, the settings, and which weights answered.

    Hashes are the first 16 hexadecimal digits of a sha256, but those of `weights` (by the name of
    their file) and of `base_weights` are whole.
    """

    model: str = ""
    prompt: str = ""
    prompt_hash: str = ""  # of its tokens
    prompt_tokens: int = 0
    system_prompt: str = ""
    template_hash: str = ""
    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 0
    dtype: str = ""
    template_of: str = ""  # the model whose chat template it is; "": its own
    base: str = ""
    step: int | None = None  # of a checkpoint
    warning: str = ""
    base_weights: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)
    proof: ProofRecord | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # of the libraries
    question_hash: str = ""  # the last message alone: the same for models that read alike
    answer_hash: str = ""  # of its tokens

    @staticmethod
    def from_json(stored: Any) -> AnswerReceipt:
        return dataclass_json.read(AnswerReceipt, stored) or AnswerReceipt()

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {
            "stop": list(self.stop),
            "weights": dict(self.weights),
            "proof": self.proof.to_json() if self.proof is not None else None,
            "versions": dict(self.versions),
        }


@dataclass(frozen=True, kw_only=True)
class ModelAnswer:
    """The answer of one model. `finish` is "stop" at an end token or a stop string, "length", or
    "stopped" by a person; the log-probabilities are natural logarithms."""

    model: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    is_at_context_end: bool = False
    finish: str = ""
    seconds: float = 0.0
    seconds_to_first_token: float = 0.0
    log_probability: float = 0.0  # the sum over the answer's tokens
    log_probabilities: list[float] = field(default_factory=list)  # of each token
    receipt: AnswerReceipt = AnswerReceipt()

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"receipt": self.receipt.to_json()}
