"""How the plain script reads a row and labels it, without the lab: Python as it stands.

It counts exactly what `lab/data` counts. Where a row holds what the lab reads and the script does
not (tools, thoughts, marks that exclude an answer, earlier turns), the script ends and says so.
"""

from lab.data import conversations
from lab.data.choices import LETTERS
from lab.data.formats import FORMATS, MORE_TALKS

ROWS = '''\
def refuse(what):
    raise SystemExit(f"This script does not read {what}. Train in the lab.")


def check_keys(values, unread):
    """End the script at a key that would change what is learned."""
    for key in sorted({*unread} & values.keys()):
        if values[key] not in (None, "", [], {}):
            refuse(f"{key!r}: {str(values[key])[:80]!r}")
    for keys, usual in ((COUNTED, (None, True)), (NOT_COUNTED, (None, False))):
        for key in keys:
            if values.get(key) not in usual:
                refuse(f"{key!r}: {values[key]!r}")


def words(value):
    if not isinstance(value, str) or not value.strip():
        refuse(f"{str(value)[:80]!r} as words")
    return value


def format_of(row):
    """The format of a row, and the columns that it is read with."""
    if not isinstance(row, dict):
        refuse(f"the row {str(row)[:80]!r}")
    names = {str(key).strip().lower(): key for key in row}
    known = {*OTHER_FORMATS, *COUNTED, *NOT_COUNTED, "label", "kto_tag", "messages", "content"}
    known.update(("conversations", "input"), *OF_ROW.values(), *sum(PAIRS.values(), ()))
    for name, key in names.items():
        is_verdict = name in ("label", "kto_tag") and str(row[key]).lower() in ("true", "false")
        if name in OTHER_FORMATS or (name in known and key != name) or is_verdict:
            refuse(f"the column {key!r}")
    forms = [("messages", [("messages", "conversations")]), *PAIRS.items()]
    for name, parts in [*forms, ("text", [("text", "content")])]:
        columns = [next((key for key in part if key in row), None) for part in parts]
        if None not in columns:
            break
    if None in columns or FORMAT not in ("auto", name):
        refuse(f"rows with {', '.join(map(str, row))} as {FORMAT}")
    if name not in ("messages", "labels", "text") and columns[0] != "input":
        columns.append("input")
    check_keys(row, OF_ROW[name])
    return name, columns


def messages_of(row, name, columns):
    if name != "messages":  # the columns of prompt and completion, and "input"
        question, answer = words(row[columns[0]]), words(row[columns[1]])
        if "input" in columns[2:] and (row.get("input") or "").strip():
            question = f"{question}\\n\\n{row['input']}"
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages = []
    for turn in row[columns[0]]:
        check_keys(turn, OF_TURN)
        role = turn.get("role", turn.get("from"))
        role = ROLES.get(role, role)
        if role not in ("system", "user", "assistant"):
            refuse(f"turns of the role {role!r}")
        content = words(turn.get("content", turn.get("value")))
        messages.append({"role": role, "content": content})
    if not any(message["role"] == "assistant" for message in messages):
        refuse("a row without an answer")
    return messages


def dated(template):
    """The template with the date of the run in place of the clock's."""
    if not DATE:
        return template
    now, call = datetime.fromisoformat(DATE), r"strftime_now\\(\\s*(['\\"])(.*?)\\1\\s*\\)"
    template = re.sub(call, lambda match: repr(now.strftime(match[2])), template)
    if "strftime_now(" in template:
        refuse("the date of this chat template")
    return template


def render(messages, prompt=False):
    return tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=prompt,
        **ARGUMENTS
    )


def stop_tokens():
    """The tokens at which generation stops: the model's, the tokenizer's, and the one that the
    template writes behind an answer where it is neither."""
    ids = model.generation_config.eos_token_id
    known = {*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id}
    known = {tokenizer.convert_ids_to_tokens(i) for i in known if i is not None}
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": f"\\ue000{i}\\ue001"} for i in range(4)
    ]
    last = render([turns[0], turns[3]]).partition(turns[3]["content"])[2]
    longer = render(turns).partition(turns[1]["content"])[2]
    for behind in (os.path.commonprefix([last, longer]), last):
        tokens = []
        while match := CONTROL.match(behind.lstrip()):
            tokens, behind = [*tokens, match[0]], behind.lstrip()[match.end() :]
        if tokens:
            special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
            taught = ([t for t in tokens if t in special] or tokens)[-1]
            return known if known & set(tokens) else known | {taught}
    return known


def squeezed(text):
    return "".join(str(text or "").split())


def answer_of(messages, index):
    """(text, where the answer begins and ends, whether the end token is added) of one answer under
    the prompt of asking."""
    prompt, text = render(messages[:index], prompt=True), render(messages[: index + 1])
    words = [squeezed(part) for part in re.split("</?think>", messages[index]["content"])]
    others = [turn for turn in messages[:index] if turn["role"] != "assistant"]
    prompts = [squeezed(turn["content"]) for turn in others]
    answer = text[len(prompt) :]
    if (
        not text.startswith(prompt)
        or any(part not in squeezed(answer) for part in words)
        or any(part not in squeezed(prompt) for part in prompts)
    ):
        raise SystemExit(
            "This script cannot count what the lab counts: the chat template writes an answer "
            f"otherwise than it asks for it. Train in the lab. {messages[index]}"
        )
    for match in CONTROL.finditer(text, len(prompt)):
        before = squeezed(text[len(prompt) : match.start()])
        if match[0] in STOPS and all(part in before for part in words):
            return text, len(prompt), match.end(), False
    end = len(text.rstrip())
    return text[:end], len(prompt), end, True


def encode(row):
    """[{token ids, labels}] of a row: labels count what the assistant says, and its end."""
    name, columns = format_of(row)
    if name == "text":
        begin = [i for i in tokenizer("")["input_ids"][:1] if i == tokenizer.bos_token_id]
        ids = tokenizer(words(row[columns[0]]), add_special_tokens=False)["input_ids"]
        ids = [*begin, *ids, tokenizer.eos_token_id]
        pieces = [ids[i : i + MAX_LENGTH] for i in range(0, len(ids), MAX_LENGTH)]
        return [{"input_ids": piece, "labels": [-100, *piece[1:]]} for piece in pieces]
    messages = messages_of(row, name, columns)
    if SYSTEM and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    indices = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    if LOSS_ON == "completion":
        indices = indices[-1:]
    answers = [answer_of(messages, index) for index in indices]
    whole = render(messages)
    is_one = all(
        whole.startswith(text[:end] + added * tokenizer.eos_token)
        or (whole.startswith(text[:end]) and index == len(messages) - 1)
        for index, (text, _, end, added) in zip(indices, answers)
    )
    if len(answers) == 1 and indices[-1] == len(messages) - 1:
        text, start, end, added = answers[0]
        return [coded(text, [(start, end)], added)]
    if not is_one:  # the template treats the last turn apart: each answer under its own prompt
        return [coded(text, [(start, end)], added) for text, start, end, added in answers]
    eos, last = tokenizer.eos_token, answers[-1]
    spans = [
        (start, end + (len(eos) if added and whole.startswith(eos, end) else 0))
        for _, start, end, added in answers
    ]
    is_added = last[3] and spans[-1][1] == last[2]
    return [coded(whole[: last[2]] if is_added else whole, spans, is_added)]


def coded(text, spans, added):
    """A token that overlaps a span is counted."""

    def tokens_of(cuts):
        ids, offsets = [], []
        for first, last in zip([0, *cuts], [*cuts, len(text)]):
            part = tokenizer(
                text[first:last], add_special_tokens=False, return_offsets_mapping=True
            )
            ids += part["input_ids"]
            offsets += [(start + first, end + first) for start, end in part["offset_mapping"]]
        return ids, offsets

    ids, offsets = tokens_of([])
    cuts = [  # where a token holds an answer's beginning and words in front of it
        begin
        for begin, _ in spans
        if any(start < begin < end and text[start:begin].strip() for start, end in offsets)
    ]
    if cuts:
        ids, offsets = tokens_of(cuts)
    labels, special = [], set(tokenizer.all_special_ids)
    for token, (start, end) in zip(ids, offsets):
        counts = any(
            begin <= start < stop or (start < begin < end and token not in special)
            for begin, stop in spans
        )
        labels.append(token if counts or LOSS_ON == "all" else -100)
    if added:
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return {"input_ids": ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}


control = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len)
CONTROL = re.compile("|".join(re.escape(t) for t in reversed(control) if t.strip()) or "(?!)")
CHAT_TEMPLATE = dated(tokenizer.get_chat_template())
STOPS = stop_tokens()
'''


def unread() -> dict[str, str]:
    """What the lab reads of a row and of a turn, and the script does not, to be evaluated."""
    beside = {"system", "history", "tools"}
    of_row = {
        form: sorted({name for part in beside & parts.keys() for name in parts[part]})
        for form, parts in FORMATS.items()
    }
    of_row["text"] = ["goes_on"]
    sides = {
        form: (parts.get("prompt"), parts.get("completion")) for form, parts in FORMATS.items()
    }
    pairs = ("alpaca", "question-answer", "prompt-completion", "labels")  # as they are detected
    of_turn = {*conversations.THOUGHTS, *conversations.LINKS, "tool_calls", "function_call"}
    other = {*MORE_TALKS, "conversation", "choices", "options", *LETTERS.lower()}
    other |= {"chosen", "rejected", "preferred_output", "non_preferred_output", "replies"}
    return {
        "other_formats": repr(sorted(other | {f"choice{index}" for index in range(11)})),
        "of_row": repr(of_row),
        "pairs": repr({form: sides[form] for form in pairs}),
        "of_turn": repr(sorted(of_turn | {"speaker", "text", "parts"})),
        "counted": repr(conversations.COUNTED),
        "not_counted": repr(conversations.NOT_COUNTED),
    }
