"""Which keys of a record say something that no example of the lab can hold.

Keys that tell where a record comes from change nothing. Any other key that is not read, and that
holds something, is noted by its name: nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from lab.schema import quote

METADATA = frozenset(
    """
    id _id uid uuid guid idx index key hash md5 sha1 sha256 checksum no nr number row row_number
    source sources origin dataset dataset_name data_source subset split config file filename path
    url urls link links href license licence copyright author authors creator annotator
    annotators worker user_name username model model_name generator engine provider created
    created_at updated updated_at timestamp time date year version revision language lang
    languages locale country score scores rating ratings rank quality confidence votes upvotes
    downvotes likes stars tags tag labels_source category categories topic topics subject
    subjects domain domains field genre keyword keywords type kind task task_id task_type
    task_name difficulty level grade source_name length len tokens num_tokens n_tokens
    token_count num_turns turns_count words word_count chars temperature top_p seed
    toxicity redacted
    """.split()
)
METADATA_ENDINGS = ("_id", "_ids", "_idx", "_index", "_url", "_at", "_date", "_time", "_hash",
                    "_count", "_score", "_version", "_model", "_source")  # fmt: skip
METADATA_BEGINNINGS = ("__index_level", "unnamed:", "score_", "rating_", "num_", "meta_")
MAX_METADATA_CHARS = 300  # characters: what is longer is a text of its own
NESTED_METADATA = frozenset(
    ("metadata", "meta", "extra_info", "info", "statistics", "stats", "moderation")
)
CONTEXT = frozenset(("context", "contexts", "passage", "document", "background", "knowledge"))
MEDIA = {"image": "pictures", "picture": "pictures", "photo": "pictures", "pixel": "pictures",
         "audio": "sounds", "speech": "sounds", "video": "videos", "frames": "videos"}  # fmt: skip
ANSWERS = ("canonical_solution", "answer_key", "answerkey", "solution", "solutions", "answer",
           "answers", "correct_answer", "best_answer", "gold", "gold_answer", "ground_truth",
           "reference", "reference_answer", "expected_output", "final_answer", "code", "program",
           "summary", "translation", "highlights", "explanation", "rationale", "label_text",
           "generation", "model_answer", "output_text", "target_text", "assistant")  # fmt: skip
QUESTIONS = ("problem", "task", "title", "ask", "input_text", "source_text", "user", "goal",
             "question_text", "problem_statement", "article", "dialogue", "document", "stem",
             "nl", "human")  # fmt: skip
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "cot",
            "chain_of_thought", "complex_cot", "rationale", "reasoning_steps")  # fmt: skip
MAX_NOTED = 12  # unused keys of one record that are named


def folded(name: Any) -> str:
    """A name without capitals and outer blanks: how columns of spreadsheets are compared."""
    return name.strip().lower() if isinstance(name, str) else str(name)


def media_of(name: str) -> str:
    """ "pictures" for `image_url`; "" for a key that names no medium."""
    return next((kind for part, kind in MEDIA.items() if part in name), "")


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict, tuple)) and not value)


def is_metadata(name: str, value: Any) -> bool:
    """Whether a key, by its folded name and its value, tells where a record comes from."""
    if media_of(name) or name in CONTEXT or name == "tool_call_id":
        return False
    if name in NESTED_METADATA:
        return True
    if not (
        name in METADATA or name.endswith(METADATA_ENDINGS) or name.startswith(METADATA_BEGINNINGS)
    ):
        return False
    values = value if isinstance(value, list) else [value]
    return all(_is_short(item) for item in values)


def _is_short(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_METADATA_CHARS and "\n" not in value.strip()
    return not isinstance(value, (list, dict))


def unused(record: dict[Any, Any], read: Collection[str], inside: str = "") -> Iterator[str]:
    """A sentence for each key of a record that holds something, is not read, and is not metadata.
    `inside` says where such a key stands, if not in the record itself: "a message"."""
    count = 0
    for key, value in record.items():
        if key in read or is_empty(value) or is_metadata(name := folded(key), value):
            continue
        count += 1
        if count > MAX_NOTED:
            yield f"more than {MAX_NOTED} keys{inside and f' of {inside}'} are not used"
            return
        yield _sentence(quote(str(key)), name, value, inside)


def _sentence(shown: str, name: str, value: Any, inside: str) -> str:
    start = f"'{shown}'{inside and f' of {inside}'} is not used"
    if media := media_of(name):
        return f"{start}: the text is learned without its {media}"
    if inside:
        return start
    if name in THOUGHTS and isinstance(value, str):
        return (
            f"{start}; set data.columns.thought to '{shown}' to learn it as what is thought first"
        )
    if name == "chat_template_kwargs":
        return f"{start}; set data.template_args to use the same for all rows"
    if name in ("rejected", "non_preferred_output"):
        return f"{start}: only the chosen answers are learned"
    if name in CONTEXT:
        return f"{start}; set data.columns.input to '{shown}' to put it behind the prompt"
    if name in ANSWERS and isinstance(value, str):
        return f"{start}; set data.columns.completion to '{shown}' to learn it as the answer"
    return start


def mapping_offer(record: dict[Any, Any], questions: Collection[str]) -> str:
    """What could be set in data.columns for a record of no known format; "" if nothing offers
    itself. `questions` are the names that the formats know for prompts."""
    names = {folded(key): str(key) for key in record}
    question = next((names[name] for name in (*questions, *QUESTIONS) if name in names), "")
    answer = next(
        (f"{names[n]}{inner}" for n in ANSWERS
         if n in names and (inner := _place_of_text(record.get(names[n]))) is not None), "",
    )  # fmt: skip
    if not question or not answer:
        return ""
    choices = next((names[name] for name in ("choices", "options") if name in names), "")
    parts = {"prompt": question, **({"choices": choices} if choices else {}), "completion": answer}
    written = ", ".join(f'"{part}": "{quote(name)}"' for part, name in parts.items())
    return f"to learn '{quote(answer)}' as the answer, set data.columns to {{{written}}}"


def _place_of_text(value: Any) -> str | None:
    """Where the text of an answer stands in its column: "" for a text itself, ".0" for the first of
    a list, ".text.0" for that of an object; None if there is none."""
    if isinstance(value, (str, int, float)):
        return ""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return ".0"
    if isinstance(value, dict):
        inner = _place_of_text(value.get("text"))
        return None if inner is None else f".text{inner}"
    return None
