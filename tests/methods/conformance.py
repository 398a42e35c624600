"""One method on one tiny architecture, trained through the lab's own step, optimizer groups and
checkpoints; what every method has to keep is checked on it."""

from __future__ import annotations

import copy
import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import set_seed

from lab import methods
from lab.methods import Context, Method
from lab.models import weights
from lab.spec import RunSpec
from lab.train import checkpoint, loop
from lab.train.loop import StepConfig
from lab.train.loss import is_plain
from tests.methods import tiny

STEPS = 10
RATE = 1e-2


@dataclass(frozen=True)
class Case:
    """A method with options on an architecture."""

    method: str
    kind: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def id(self) -> str:
        options = "".join(f"-{key}={_short(value)}" for key, value in self.options)
        return f"{self.method}{options}-{self.kind}"


def _short(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


class Trial:
    """The case trained for STEPS steps, and everything that is asked of it."""

    def __init__(self, case: Case, folder: Path, tokenizer: Any, workplace: Path) -> None:
        self.case, self.folder, self.workplace = case, folder, workplace
        self.method: Method = methods.get(case.method)
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in case.options}
        problems: list[Any] = []
        spec = RunSpec.parse({"method": {"name": case.method, **options}}, problems)
        assert problems == []
        train = copy.copy(spec.train)
        object.__setattr__(train, "adapter_precision", "float32")
        object.__setattr__(spec, "train", train)
        self.config = spec.method_config
        self.context = Context(spec, tokenizer)
        self.batch = tiny.toy_batch()
        self.losses: list[float] = []
        self.failures: list[str] = []

    def expect(self, holds: Any, what: str) -> None:
        if not bool(holds):
            self.failures.append(what)

    def base(self) -> Any:
        extra = self.method.load_kwargs(self.config)
        # a copy is ten times faster than a file; quantised weights are made anew
        return tiny.load(self.folder, **extra) if extra else copy.deepcopy(loaded(self.folder))

    def begin(self, model: Any) -> Any:
        set_seed(7)
        self.method.prepare(model, self.config, self.context)
        model = self.method.apply(model, self.config, self.context)
        self.method.set_total_steps(model, self.config, STEPS)
        model.train()
        groups = self.method.param_groups(model, self.config, RATE)
        return model, torch.optim.AdamW(groups, weight_decay=0.0)

    def step(self, model: Any, optimizer: Any, number: int) -> float:
        """One optimizer step as a run does it; the mean loss before it."""
        config = StepConfig(
            "float32",
            "fused" if self.fused else "plain",
            penalty=lambda tuned: self.method.penalty(tuned, self.config),
            on_optimizer_step=lambda tuned, step: self.method.on_optimizer_step(
                tuned, self.config, step
            ),
        )
        result = loop.step(accelerator(), model, optimizer, [self.batch], config, number)
        return float(result.losses.sum())

    def run(self) -> list[str]:
        """What does not hold, in words; an empty list if all does."""
        base = self.base()
        reference = logits(base, self.batch)
        original = snapshot(base)
        expected = self.method.trainable_count(base, self.config, self.context)
        model, optimizer = self.begin(base)
        self.fused = is_plain(model.get_output_embeddings()) and bool(self.method.can_fuse_loss)
        declared = {name: one.detach().clone() for name, one in checkpoint.trainable(model).items()}
        frozen = {name: tensor for name, tensor in snapshot(model).items() if name not in declared}
        count = sum(tensor.numel() for tensor in declared.values())
        self.expect(count == expected, f"{count} trainable, the closed form says {expected}")
        started = logits(model, self.batch)
        if self.method.is_identity_at_start:
            self.expect(
                torch.allclose(started, reference, atol=2e-5),
                f"step 0 differs from the base by {float((started - reference).abs().max()):.2e}",
            )
        middle = self.workplace / "middle"
        for number in range(1, STEPS + 1):
            self.losses.append(self.step(model, optimizer, number))
            if number == STEPS // 2:
                state = {"used": {}}
                extra = self.method.state(model)
                checkpoint.save(middle, number, model, optimizer, state, extra)
        after = snapshot(model)
        moved = [name for name, tensor in frozen.items() if not torch.equal(after[name], tensor)]
        # a pruned value is back at the zero that it started from: then its moments tell
        weights_now = checkpoint.trainable(model)
        still = [
            name
            for name, tensor in declared.items()
            if torch.equal(after[name], tensor)
            and not optimizer.state[weights_now[name]]["exp_avg_sq"].any()
        ]
        self.expect(not moved, f"frozen tensors moved: {moved[:3]}")
        self.expect(not still, f"declared parameters never moved: {still[:3]}")
        self.expect(
            self.losses[-1] < self.losses[0] - 0.01,
            f"the loss did not fall: {self.losses[0]:.4f} to {self.losses[-1]:.4f}",
        )
        self.check_resume(model, optimizer, middle)
        model.eval()
        self.check_saved(model, reference, original)
        return self.failures

    def check_resume(self, model: Any, optimizer: Any, middle: Path) -> None:
        """Half the steps, a checkpoint and the other half equal all steps, bit for bit."""
        saved, skipped = checkpoint.latest_valid(middle)
        assert saved is not None and not skipped
        again, second = self.begin(self.base())
        set_seed(99)  # nothing may hang on the state that a new process happens to have
        self.method.load_state(again, checkpoint.method_state(saved.path))
        checkpoint.load_weights(saved.path, again)
        checkpoint.load_optimizer(saved.path, again, second)
        checkpoint.restore_random(saved)
        for number in range(saved.step + 1, STEPS + 1):
            loss = self.step(again, second, number)
            self.expect(
                loss == self.losses[number - 1],
                f"step {number} after resuming: loss {loss!r}, was {self.losses[number - 1]!r}",
            )
        want, have = checkpoint.trainable(model), checkpoint.trainable(again)
        different = [
            name
            for name, tensor in want.items()
            if tensor.dtype != have[name].dtype or not torch.equal(tensor, have[name])
        ]
        self.expect(not different, f"resumed weights differ: {different[:3]}")
        for name, tensor in want.items():
            moments, others = optimizer.state[tensor], second.state[have[name]]
            same = all(torch.equal(value, others[key]) for key, value in moments.items())
            self.expect(same, f"resumed moments of {name} differ")

    def check_saved(self, model: Any, reference: torch.Tensor, original: dict[str, Any]) -> None:
        """Saved, loaded and asked, the result answers as the trained model; its base is intact."""
        artifact = self.workplace / "artifact"
        artifact.mkdir()
        self.method.save(model, artifact)
        foreign = [p.name for p in artifact.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
        self.expect(not foreign, f"saved more than safetensors and JSON: {foreign}")
        base = self.base()
        shared = not self.method.needs_separate_base(self.config)
        tree = weights.share_weights(base) if shared else self.base()
        result = self.method.load(tree, artifact).eval()
        trained, said = logits(model, self.batch), logits(result, self.batch)
        self.expect(
            torch.allclose(said, trained, atol=2e-5),
            f"loaded answers differ by {float((said - trained).abs().max()):.2e}",
        )
        self.check_generation(result)
        self.expect(
            torch.equal(logits(base, self.batch), reference), "the base's own answers changed"
        )
        if self.method.can_merge:
            merged = self.method.merge(self.method.load(self.base(), artifact)).eval()
            said = logits(merged, self.batch)
            self.expect(
                torch.allclose(said, trained, rtol=1e-4, atol=1e-4),
                f"merged answers differ by {float((said - trained).abs().max()):.2e}",
            )
            left = [n for n, m in merged.named_modules() if type(m).__module__.startswith("peft")]
            self.expect(not left, f"merged, it still holds parts of an adapter: {left[:3]}")
        del result, tree
        self.expect(torch.equal(logits(base, self.batch), reference), "unloaded, the base differs")
        changed = [
            n for n, tensor in snapshot(base).items() if not torch.equal(tensor, original[n])
        ]
        self.expect(not changed, f"the base's tensors changed: {changed[:3]}")

    def check_generation(self, model: Any) -> None:
        """Greedy generation with the key-value cache gives the tokens that it gives without."""
        ids = self.batch["input_ids"][:1, :5]
        expected = ids
        with torch.no_grad():
            for _ in range(4):
                logits = model(input_ids=expected, use_cache=False).logits[:, -1]
                expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4,
                min_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
        self.expect(
            torch.equal(output, expected), f"generated {output.tolist()}, not {expected.tolist()}"
        )


@functools.cache
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@functools.cache
def loaded(folder: Path) -> Any:
    """The base as it was read; only ever copied."""
    return tiny.load(folder)


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, T, V) answers at the batch's own positions, without dropout."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
    model.train(was_training)
    return said[:, -batch["input_ids"].shape[1] :].float()


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers by name."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}
