"""How likely a model finds an answer that another one has written."""

from __future__ import annotations

from typing import Any

import torch

from lab.chat import generate
from lab.chat.models import LoadedModel
from lab.chat.settings import GenerationSettings
from lab.errors import LabError


def log_probabilities(
    loaded: LoadedModel,
    conversation: list[dict[str, str]],
    settings: GenerationSettings,
    answer: list[int],
) -> list[float]:
    """The natural logarithm of each token's probability behind the prompt and the tokens before
    it, as the model itself gives it: without temperature and the other rules of drawing.

    `answer` are ids of the model's own vocabulary. Raises LabError where they are not.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    if not answer:
        return []
    if max(answer) >= model.get_input_embeddings().weight.shape[0]:
        raise LabError("The answer has tokens that this model does not know.")
    prompt = generate.render(tokenizer, conversation, settings)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] + answer
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    supports = getattr(inner, "_supports_logits_to_keep", lambda: False)()
    options: dict[str, Any] = {"logits_to_keep": len(answer) + 1} if supports else {}
    with torch.inference_mode():
        rows = torch.tensor([ids], device=model.device)
        logits = model(input_ids=rows, use_cache=False, **options).logits[0]
        # the row before a token says what the model expected there
        expected = logits[-len(answer) - 1 : -1].float().log_softmax(dim=-1)
        chosen = torch.tensor(answer, device=expected.device)[:, None]
        values: list[float] = expected.gather(1, chosen)[:, 0].tolist()
    return values
