"""The update rules that `train.optimizer` chooses from.

One entry per optimizer: description, state size, supported devices, and a factory. Nothing here
imports torch at module level, so that forms and checks can read the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.errors import Problem

PRECISIONS = ("float32", "mixed", "bfloat16")
MIN_8BIT_ELEMENTS = 4096  # elements; bitsandbytes keeps smaller tensors' moments in float32
BLOCK_8BIT = 256  # elements that share one float32 scale
PAGED_ELEMENTS = 100_000  # bitsandbytes pages the moments of tensors of that many elements


@dataclass(frozen=True)
class OptimizerInfo:
    """An update rule.

    `build(groups, train)` makes the torch optimizer from parameter groups and the TrainSpec;
    `state_bytes(shape, element_size, momentum)` is what it remembers of one trainable tensor.
    """

    name: str
    title: str
    source: str
    help: str
    build: Callable[[list[dict[str, Any]], Any], Any]
    state_bytes: Callable[[tuple[int, ...], int, float], int]
    precisions: tuple[str, ...] = PRECISIONS
    update_workspace_bytes: int = 0  # for each element of the largest tensor, while it is updated
    on_cpu: bool = True
    in_backward: bool = False
    is_paged: bool = False  # on a GPU the moments lie outside what torch's allocator holds
    # lines of the body of a function of `groups` that makes the same rule without the lab
    script: Callable[[Any], list[str]] = lambda train: []

    @property
    def bytes_per_parameter(self) -> float:
        """State of a large float32 matrix in bytes a parameter, without momentum."""
        return self.state_bytes((4096, 4096), 4, 0.0) / 4096**2

    def problems(self, train: Any, *, on_gpu: bool) -> list[Problem]:
        """Why this rule cannot do what `train` (a resolved TrainSpec) asks for on this device."""
        problems = []
        if not self.on_cpu and not on_gpu:
            problems.append(
                Problem(
                    "train.optimizer",
                    f"is {self.name}, which moves its state between GPU and host memory; there is "
                    "no GPU here. Choose adamw8bit, which keeps the same state in 8 bits.",
                )
            )
        if train.precision not in self.precisions:
            problems.append(
                Problem(
                    "train.optimizer",
                    f"is {self.name}, which trains in {' or '.join(self.precisions)}, not in "
                    f"{train.precision}.",
                )
            )
        if self.in_backward and train.gradient_accumulation_steps != 1:
            problems.append(
                Problem(
                    "train.gradient_accumulation_steps",
                    f"is {train.gradient_accumulation_steps}; {self.name} frees each gradient at "
                    "once, so gradient accumulation is impossible. Set 1 and a larger "
                    "train.batch_size.",
                )
            )
        if self.in_backward and train.max_grad_norm > 0:
            problems.append(
                Problem(
                    "train.max_grad_norm",
                    f"is {train.max_grad_norm:g}; {self.name} updates before the norm of all "
                    "gradients is known, so it cannot clip by it. Set 0.",
                )
            )
        return problems


def get(name: str) -> OptimizerInfo:
    return OPTIMIZERS[name]


def can_use_master_weights(method: Any, rule: OptimizerInfo) -> bool:
    """Whether 16-bit adapters of `method` get float32 copies inside the optimizer: where nothing
    of the base trains, which would be large, and where there is a step to make the update in."""
    return not (method.trains_base_weights or method.saves_whole_model or rule.in_backward)


def uses_master_weights(method: Any, train: Any) -> bool:
    """Whether a run with `train` (a resolved TrainSpec) has such copies."""
    is_narrow = train.adapter_precision == "bfloat16"
    return is_narrow and can_use_master_weights(method, get(train.optimizer))


def _adamw(groups: list[dict[str, Any]], train: Any) -> Any:
    import torch

    return torch.optim.AdamW(
        groups, lr=float(train.learning_rate), weight_decay=train.weight_decay, fused=True
    )


def _adamw_8bit(groups: list[dict[str, Any]], train: Any) -> Any:
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(
        groups, lr=float(train.learning_rate), weight_decay=train.weight_decay
    )


def _paged_adamw_8bit(groups: list[dict[str, Any]], train: Any) -> Any:
    import bitsandbytes

    return bitsandbytes.optim.PagedAdamW8bit(
        groups, lr=float(train.learning_rate), weight_decay=train.weight_decay
    )


def _adafactor(groups: list[dict[str, Any]], train: Any) -> Any:
    from transformers.optimization import Adafactor

    # The step size is the run's own rate, as in the other rules. torch's Adafactor scales it by
    # the size of each weight, so that LoRA's B, which starts at zero, would hardly ever move.
    return Adafactor(
        groups,
        lr=float(train.learning_rate),
        weight_decay=train.weight_decay,
        scale_parameter=False,
        relative_step=False,
    )


def _sgd(groups: list[dict[str, Any]], train: Any) -> Any:
    import torch

    return torch.optim.SGD(
        groups,
        lr=float(train.learning_rate),
        momentum=train.momentum,
        weight_decay=train.weight_decay,
    )


def _inside(rule: Callable[[list[dict[str, Any]], Any], Any]) -> Callable[..., Any]:
    def build(groups: list[dict[str, Any]], train: Any) -> Any:
        from lab.optimizer_in_backward import BackwardOptimizer

        return BackwardOptimizer(
            groups, float(train.learning_rate), lambda group: rule([group], train)
        )

    return build


def _two_moments(shape: tuple[int, ...], element_size: int, momentum: float) -> int:
    return 2 * math.prod(shape) * element_size


def _two_small_moments(shape: tuple[int, ...], element_size: int, momentum: float) -> int:
    """One byte an element and a float32 scale a block, twice; float32 for small tensors."""
    elements = math.prod(shape)
    if elements < MIN_8BIT_ELEMENTS:
        return 8 * elements
    return 2 * (elements + 4 * math.ceil(elements / BLOCK_8BIT) + 4 * BLOCK_8BIT)


def _rows_and_columns(shape: tuple[int, ...], element_size: int, momentum: float) -> int:
    """A float32 mean for each row and each column; vectors keep one an element."""
    if len(shape) < 2:
        return 4 * math.prod(shape)
    return 4 * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1])


def _one_moment(shape: tuple[int, ...], element_size: int, momentum: float) -> int:
    return math.prod(shape) * element_size if momentum else 0


def _adamw_lines(train: Any) -> list[str]:
    return ["return torch.optim.AdamW(groups, fused=True)"]


def _bitsandbytes_lines(name: str) -> list[str]:
    return ["import bitsandbytes", "", f"return bitsandbytes.optim.{name}(groups)"]


def _adafactor_lines(train: Any) -> list[str]:
    return [
        "from transformers.optimization import Adafactor",
        "",
        "return Adafactor(",
        "    groups, lr=LEARNING_RATE, scale_parameter=False, relative_step=False",
        ")",
    ]


def _sgd_lines(train: Any) -> list[str]:
    return [f"return torch.optim.SGD(groups, lr=LEARNING_RATE, momentum={train.momentum})"]


_ALL = [
    OptimizerInfo(
        "adamw",
        "AdamW",
        "arXiv:1711.05101",
        "Two moments per parameter, in the weight's data type. The default of nearly every recipe.",
        _adamw,
        _two_moments,
        script=_adamw_lines,
    ),
    OptimizerInfo(
        "adamw8bit",
        "8-bit AdamW",
        "arXiv:2110.02861",
        "AdamW with both moments in 8 bits, one scale for each 256 values: two bytes a parameter "
        "in place of eight. Tensors below 4,096 elements keep float32 moments.",
        _adamw_8bit,
        _two_small_moments,
        script=lambda train: _bitsandbytes_lines("AdamW8bit"),
    ),
    OptimizerInfo(
        "paged_adamw8bit",
        "Paged 8-bit AdamW",
        "arXiv:2305.14314",
        "8-bit AdamW whose states are paged to CPU memory when the GPU runs short. Needs a GPU.",
        _paged_adamw_8bit,
        _two_small_moments,
        on_cpu=False,
        is_paged=True,
        script=lambda train: _bitsandbytes_lines("PagedAdamW8bit"),
    ),
    OptimizerInfo(
        "adafactor",
        "Adafactor",
        "arXiv:1804.04235",
        "Factored second moment, no first moment: almost no optimizer states. Uses the run's "
        "learning rate.",
        _adafactor,
        _rows_and_columns,
        update_workspace_bytes=16,
        script=_adafactor_lines,
    ),
    OptimizerInfo(
        "sgd",
        "SGD",
        "doi:10.1214/aoms/1177729586",
        "Plain gradient steps, with train.momentum if you like. Transformers need a rate 100 to "
        "1,000 times AdamW's, and still learn more slowly.",
        _sgd,
        _one_moment,
        script=_sgd_lines,
    ),
    OptimizerInfo(
        "sgd_in_backward",
        "SGD, step in backward (LOMO)",
        "arXiv:2306.09782",
        "The idea of LOMO: each weight is updated as soon as its gradient is there, and the "
        "gradient is freed. Neither gradients nor state take memory. No accumulation and no "
        "clipping.",
        _inside(_sgd),
        _one_moment,
        in_backward=True,
        script=_sgd_lines,
    ),
    OptimizerInfo(
        "adamw_in_backward",
        "AdamW, step in backward",
        "arXiv:2306.09782",
        "AdamW, each weight updated as soon as its gradient is there, and the gradient freed. "
        "Equal to adamw without clipping, bit for bit. No accumulation and no clipping.",
        _inside(_adamw),
        _two_moments,
        in_backward=True,
        script=_adamw_lines,
    ),
]
OPTIMIZERS = {info.name: info for info in _ALL}
