"""Which sequences each step learns from, on which process, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from lab.data.batches import TokenSequence, TrainingOrder, blank, collate
from lab.train.budget import BudgetUsed, TrainingBudget
from lab.train.flops import FlopCosts

Batch = dict[str, torch.Tensor]


@dataclass
class StepBatches:
    """The sequences of a run in training order, how far the run goes and how far it has come.

    What step N learns from depends on N alone, so that a resumed run needs no loader's state and
    skips nothing. `costs` are the FLOPs of a sequence, recounted when more parameters train;
    `length` is that of every sequence where layers are compiled for one.
    """

    stream: TrainingOrder
    plan: TrainingBudget
    used: BudgetUsed
    costs: FlopCosts
    batch_size: int
    gradient_accumulation_steps: int
    pad_token_id: int
    length: int | None = None

    def sequences(self, step: int) -> list[list[TokenSequence]]:
        """Those of step `number` (from 1), by micro-batch; the last step may have fewer."""
        per_step = self.batch_size * self.gradient_accumulation_steps
        start, end = (step - 1) * per_step, min(step * per_step, self.plan.rows)
        return [
            [self.stream[index] for index in range(first, min(first + self.batch_size, end))]
            for first in range(start, end, self.batch_size)
        ]

    def tensors(
        self, micro_batches: Sequence[Sequence[TokenSequence]], accelerator: Accelerator
    ) -> list[Batch]:
        """The micro-batches of this process, on its device. Where none is left for it, one whose
        tokens do not count: every process takes part in every backward pass."""
        world = accelerator.num_processes
        local = list(micro_batches[accelerator.process_index :: world])
        if len(local) < -(-len(micro_batches) // world):
            local.append([blank(micro_batches[0][0])])
        on_gpu = accelerator.device.type == "cuda"
        tensors = []
        for sequences in local:
            batch = collate(sequences, self.pad_token_id, self.length)
            if on_gpu:  # from pinned memory the copy does not make the host wait
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
            tensors.append(send_to_device(batch, accelerator.device, non_blocking=on_gpu))
        return tensors

    def count(self, step: int, micro_batches: Sequence[Sequence[TokenSequence]]) -> None:
        """Add step `number` to what is used: the micro-batches of all processes, so that they
        agree without asking each other."""
        self.used.step = step
        for sequences in micro_batches:
            self.used.tokens += sum(sequence.tokens for sequence in sequences)
            self.used.loss_tokens += sum(sequence.targets for sequence in sequences)
            self.used.flops += self.costs.of_rows(sequences)
