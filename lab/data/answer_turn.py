"""One answer of a chat: the prompt under which it is asked, what the template writes behind it, and
where the answer ends.

Where the template does not write the answer behind that prompt (it drops earlier thoughts, opens a
thought that the row lacks, leaves the last turn to the model), the two are put together here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.data import rendering, stop_tokens, template_input, wording
from lab.data.template_input import Message
from lab.errors import LabError
from lab.schema import quote, quoted

ANCHORS = (24, 12, 6, 4)  # characters of a prompt that are looked for in a rendering
ANOTHER = "Choose another template in data.template."

APPENDED = "conversations have an answer behind which the template writes no end token; {} is added"
PROMPTED = (
    "conversations have an answer that does not begin as the prompt of asking does, which ends "
    "with {}; set data.template_args (enable_thinking, say) if the template takes it"
)
MOVED = (
    "conversations have an answer in front of which the template writes something else than it "
    "asks with; it is learned behind the prompt of asking"
)
BUILT = (
    "conversations have an answer that the template would not write as it is; it stands behind the "
    "prompt of asking in its own words"
)


@dataclass(frozen=True)
class AnswerTurn:
    """An answer in the text that ends with it; `is_built` from the prompt and what belongs behind
    it; `appends_end`: the end token follows."""

    text: str
    start: int
    end: int
    appends_end: bool = False
    notes: tuple[str, ...] = ()
    is_built: bool = False


class Conversation:
    """The renderings of one chat."""

    def __init__(self, tokenizer: Any, messages: list[Message], tools: Any = None) -> None:
        self.tokenizer, self.messages = tokenizer, messages
        self.tools = list(tools) if tools else None
        self.stops = stop_tokens.spellings(tokenizer)
        self.pattern = stop_tokens.control_pattern(tokenizer)
        self._texts: dict[int, str] = {}

    def text(self, count: int) -> str:
        """The first `count` messages."""
        if count not in self._texts:
            self._texts[count] = rendering.render(
                self.tokenizer, self.messages[:count], tools=self.tools
            )
        return self._texts[count]

    def prompt(self, count: int) -> str:
        """What the model is asked with behind the first `count` messages."""
        return rendering.render(
            self.tokenizer, self.messages[:count], to_answer=True, tools=self.tools
        )

    def answer(self, index: int) -> AnswerTurn:
        """The answer in message `index`, under the prompt of asking. Raises LabError."""
        message, text = self.messages[index], self.text(index + 1)
        prompt = self._prompt_of(index, text)
        if text.startswith(prompt):
            return self._behind(index, prompt, text[len(prompt) :])
        start = self._token_start(text, wording.shared_length(prompt, text))
        begun = wording.shared_length(prompt, self.text(index)) if index else 0
        # what differs must be the generation prompt, not what stands before it
        if start < begun:
            return self._moved(index, prompt, text)
        first = wording.position(text, wording.parts_of(message), begun)
        start = min(start, first if first >= 0 else start)
        # and the text must be past the beginning of it
        if self._heading(prompt[begun:]) in text[start : max(first, start)]:
            return self._moved(index, prompt, text)
        behind = wording.behind_a_thought(prompt[start:], text[start:])
        if behind is not None and not wording.lost(message, behind):
            return self._ended(message, prompt + behind, len(prompt), (MOVED,), True)
        missing = wording.lost(message, text[start:])
        if missing:
            return self._completed(index, prompt, text[start:], missing)
        return self._ended(message, text, start, (PROMPTED.format(quoted(prompt[start:])),))

    def _token_start(self, text: str, offset: int) -> int:
        """`offset`, or where the control token begins that it would cut in two."""
        for pattern in (self.pattern, wording.TAG):
            for match in pattern.finditer(text, max(0, offset - 100), offset + 100):
                if match.start() < offset < match.end():
                    return match.start()
        return offset

    def _heading(self, opening: str) -> str:
        """What a generation prompt begins with: its first control token, or a few characters."""
        match = self.pattern.match(opening.lstrip())
        return match[0] if match else opening.strip()[: ANCHORS[-1]] or "\0"

    def _prompt_of(self, index: int, text: str) -> str:
        if index:
            return self.prompt(index)
        try:
            prompt = self.prompt(0)
        except LabError:
            prompt = ""
        if prompt and text.startswith(prompt):
            return prompt
        # the assistant speaks first, and the template has no prompt for that
        first = wording.position(text, wording.parts_of(self.messages[0]), 0)
        return text[: max(first, 0)]

    def _behind(
        self, index: int, prompt: str, behind: str, notes: tuple[str, ...] = ()
    ) -> AnswerTurn:
        """The answer that is written behind its prompt, if all of it is."""
        missing = wording.lost(self.messages[index], behind)
        if missing:
            return self._completed(index, prompt, behind, missing)
        text = prompt + behind
        return self._ended(self.messages[index], text, len(prompt), notes, bool(notes))

    def _moved(self, index: int, prompt: str, text: str) -> AnswerTurn:
        """The prompt of asking, and behind it what the template writes behind such a prompt
        elsewhere: in a text whose earlier turns it writes otherwise."""
        message = self.messages[index]
        questions = [m["content"] for m in self.messages[:index] if m["role"] in ("user", "tool")]
        for size in ANCHORS:
            anchor, offset = prompt[-size:], len(text)
            while anchor and (offset := text.rfind(anchor, 0, offset)) >= 0:
                behind = text[offset + len(anchor) :]
                is_whole = not wording.lost(message, behind)
                if is_whole and wording.are_in_order(questions, text[: offset + len(anchor)]):
                    return self._behind(index, prompt, behind, (MOVED,))
        return self._in_own_words(index, prompt, text)

    def _completed(
        self, index: int, prompt: str, behind: str, missing: frozenset[str]
    ) -> AnswerTurn:
        """An answer of which the template does not write all behind the prompt: a thought can be
        put there, and so can an answer of which it writes nothing. Raises LabError."""
        message = self.messages[index]
        tags = wording.thought_tags(rendering.source_of(self.tokenizer, self.tools) + prompt)
        if missing <= {"thought", *template_input.THOUGHT_KEYS} and tags:
            notes: tuple[str, ...] = (BUILT,)
            if empty_thought := wording.empty_thought(prompt):  # the row holds one
                prompt = prompt.removesuffix(empty_thought)
                notes = (PROMPTED.format(quoted(empty_thought)),)
            thought = wording.leading_thought(message)
            rest = wording.without_thought(behind, tags)
            if thought and rest is not None:
                opening = "" if prompt.rstrip().endswith(tags[0].rstrip()) else tags[0]
                if not opening and prompt == prompt.rstrip() and tags[0] != tags[0].rstrip():
                    prompt += "\n"
                rest = rest.lstrip("\n") if tags[1].endswith("\n") else rest
                text = prompt + opening + thought + tags[1] + rest
                return self._ended(message, text, len(prompt), notes, True)
            return self._in_own_words(index, prompt, prompt + behind)
        if "content" in missing and not behind.strip() and not message.get("tool_calls"):
            return self._in_own_words(index, prompt, "")
        raise lost(missing, message, index)

    def _in_own_words(self, index: int, prompt: str, text: str) -> AnswerTurn:
        """The prompt of asking, the answer as it is, and the end that `text` has behind it."""
        message = self.messages[index]
        tags = wording.thought_tags(rendering.source_of(self.tokenizer, self.tools) + prompt)
        thought = template_input.thought_of(message)
        if message.get("tool_calls") or (thought and not tags):
            raise lost(wording.lost(message, "") - {"content"}, message, index)
        words = str(message.get("content") or "")
        if thought and tags:
            words = f"{tags[0]}{thought.strip()}{tags[1]}{words.lstrip()}"
        opening = tags[0].rstrip() if tags else ""
        if opening and prompt.rstrip().endswith(opening) and words.lstrip().startswith(opening):
            words = words.lstrip().removeprefix(opening).lstrip("\n")
            prompt = prompt.rstrip() + "\n" if prompt.rstrip() == prompt else prompt
        plain = wording.parts_of(message)[-1:] or [""]
        behind = text[max(0, wording.end_position(text, plain[-1])) :]
        end = self.pattern.match(behind.lstrip())
        stop = end[0] if end and end[0] in self.stops else ""
        whole = prompt + (words if stop else words.rstrip()) + stop
        return AnswerTurn(
            whole, len(prompt), len(whole), not stop, self.end_notes(not stop, (BUILT,)), True
        )

    def _ended(
        self,
        message: Message,
        text: str,
        start: int,
        notes: tuple[str, ...] = (),
        is_built: bool = False,
    ) -> AnswerTurn:
        """The answer from `start` to the first stop token behind its words."""
        for match in self.pattern.finditer(text, start):
            if match[0] in self.stops and not wording.lost(message, text[start : match.start()]):
                return AnswerTurn(text, start, match.end(), False, notes, is_built)
        content = str(message.get("content") or "")
        blanks = content[len(content.rstrip()) :]
        end = max(start, len(text.rstrip()))
        if blanks and content.strip() and text.startswith(blanks, end):
            end += len(blanks)
        return AnswerTurn(text, start, end, True, self.end_notes(True, notes), is_built)

    def end_notes(self, appends: bool, notes: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The notes, with the one that the end token is added where it is."""
        if not appends:
            return notes
        return (*notes, APPENDED.format(quote(str(self.tokenizer.eos_token))))


def lost(missing: frozenset[str], message: Message, index: int) -> LabError:
    """What is said where the template leaves out these keys of a message."""
    keys = sorted(missing - {"content", "thought"})
    if keys:
        return LabError(
            f"The chat template leaves out '{keys[0]}' of turn {index + 1}.",
            f"{ANOTHER[:-1]}, or remove the key from the row.",
        )
    if missing == {"thought"}:
        return LabError(f"The chat template leaves out the thought of turn {index + 1}.", ANOTHER)
    return LabError(
        f"The chat template changes or leaves out the words of turn {index + 1} "
        f"({message['role']}): {quoted(str(message.get('content', '')))}.",
        ANOTHER,
    )
