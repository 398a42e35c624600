"""Trained vectors before the text, put in front of the decoder's body by hooks.

Legend: B rows, T tokens, n virtual tokens, H hidden size. Everybody outside the body still sees T
positions: the hooks lengthen what goes in by n and cut what comes out, so that labels, heads,
losses and generation need to know nothing. With a key-value cache the vectors go in once, with
the first tokens; later steps only shift positions and widen the mask.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

CHILD = "soft_prompt"


class SoftPrompt(nn.Module):
    """vectors: (n, H)."""

    def __init__(self, n: int, h: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(n, h, dtype=dtype, device=device))

    @property
    def n(self) -> int:
        return int(self.vectors.shape[0])


def body_of(model: Any) -> Any:
    """The decoder without its head, below PEFT's wrapping."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model


def insert(model: Any, n: int, dtype: torch.dtype) -> SoftPrompt:
    """A soft prompt of `n` vectors before the text; its values are the caller's to set."""
    body = body_of(model)
    rows = body.get_input_embeddings().weight
    prompt = SoftPrompt(n, rows.shape[1], dtype, rows.device)
    body.add_module(CHILD, prompt)
    body.register_forward_pre_hook(_lengthen, with_kwargs=True)
    body.register_forward_hook(_cut, with_kwargs=True)
    return prompt


def remove(model: Any) -> None:
    """Take the prompt out again."""
    body = body_of(model)
    for hooks, ours in ((body._forward_pre_hooks, _lengthen), (body._forward_hooks, _cut)):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]
    delattr(body, CHILD)


def _seen(named: dict[str, Any]) -> int:
    cache = named.get("past_key_values")
    return int(cache.get_seq_length()) if cache is not None else 0


def _lengthen(body: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    """Put the vectors in front, or, with a cache that holds them already, count them."""
    keys = list(inspect.signature(body.forward).parameters)
    named = dict(zip(keys, inputs, strict=False)) | named
    prompt: SoftPrompt = body.soft_prompt
    mask, positions = named.get("attention_mask"), named.get("position_ids")
    if mask is not None:
        if not (isinstance(mask, torch.Tensor) and mask.dim() == 2):
            raise ValueError("a soft prompt needs a mask of shape (rows, tokens), or none")
        ones = mask.new_ones(mask.shape[0], prompt.n)
        named["attention_mask"] = torch.cat([ones, mask], dim=1)
    body.prompt_goes_in = _seen(named) == 0
    if positions is not None:
        named["position_ids"] = positions + prompt.n
    if body.prompt_goes_in:
        words = named.pop("inputs_embeds", None)
        ids = named.pop("input_ids", None)
        if words is None:
            words = body.get_input_embeddings()(ids)
        front = prompt.vectors.to(words.dtype).expand(words.shape[0], -1, -1)
        named["inputs_embeds"] = torch.cat([front, words], dim=1)
        if positions is not None:
            first = torch.arange(prompt.n, device=positions.device).expand(positions.shape[0], -1)
            named["position_ids"] = torch.cat([first, named["position_ids"]], dim=1)
    return (), named


def _cut(body: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """Give back the T positions that the caller asked for."""
    if not body.prompt_goes_in:
        return output
    n = body.soft_prompt.n
    if isinstance(output, tuple):
        return (output[0][:, n:], *output[1:])
    output.last_hidden_state = output.last_hidden_state[:, n:]
    return output
