"""Whether the numbers of a model's config.json can be those of a model, before one is built.

The largest open models have some 130 layers, hidden sizes of 53 thousand, a million tokens and some
thousand experts. Building what lies far beyond takes memory and minutes even without weights.
"""

from __future__ import annotations

from typing import Any

from lab.errors import LabError
from lab.formatting import quantity
from lab.schema import number_text, quote

MAX_CONFIG_BYTES = 4_000_000  # bytes of a config.json
MAX_DEPTH, MAX_ENTRIES = 12, 100_000  # of objects in each other, and of one object, list or text
LAYERS, EXPERTS, HEADS, LABELS = 2_000, 65_536, 8_192, 100_000
WIDEST, VOCABULARY, POSITIONS = 4_194_304, 16_777_216, 1_000_000_000
OTHER_COUNT, OTHER = 1_000_000, 10**12
LAYERS_WITH_EXPERTS = 1_000_000

# What every architecture that has it divides by or builds: whole numbers from 1 on.
NEEDED = frozenset(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim vocab_size max_position_embeddings n_embd n_layer n_head n_positions n_ctx "
    "d_model d_ff n_heads n_layers num_layers num_heads ffn_dim ffn_hidden_size "
    "num_decoder_layers decoder_layers decoder_attention_heads decoder_ffn_dim "
    "moe_intermediate_size num_labels".split()
)
ROPE_ONLY = "qk_rope_head_dim"  # beside it, head_dim is what positions turn: it may be 0
# By the words of a field's name; the first that fits holds.
BOUNDS: tuple[tuple[frozenset[str], int], ...] = (
    (frozenset(("theta", "seed", "base", "id", "ids", "token", "tokens")), OTHER),
    (frozenset(("vocab", "vocabulary")), VOCABULARY),
    (frozenset(("layers", "blocks")), LAYERS),
    (frozenset(("position", "positions", "length", "window", "ctx", "context", "seq")), POSITIONS),
    (
        frozenset(
            "size sizes d dim dims width hidden rank embd inner ff ffn channels features state "
            "kernel".split()
        ),
        WIDEST,
    ),
    (frozenset(("layer", "block", "depth", "depths")), LAYERS),
    (frozenset(("expert", "experts")), EXPERTS),
    (frozenset(("head", "heads", "group", "groups")), HEADS),
    (frozenset(("labels", "label")), LABELS),
    (frozenset(("num", "n", "count")), OTHER_COUNT),
)


def check(config: dict[str, Any], name: str) -> None:
    """Raise LabError with all that is wrong if `config`, of the model `name`, cannot be built."""
    problems: list[str] = []
    _look(config, "", 1, problems)
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if type(heads) is int and type(shared) is int and shared > 0 and heads % shared:
        problems.append(
            f"num_key_value_heads is {shared}, which does not divide {quantity(heads, 'head')}"
        )
    if problems:
        shown = "; ".join(problems[:8]) + (
            f"; and {len(problems) - 8:,} more" if len(problems) > 8 else ""
        )
        raise LabError(
            f"No model can be built from the config.json of '{quote(name)}': {shown}.",
            "Correct these fields, or choose another model.",
        )


def check_file(size: int, name: str) -> None:
    """Raise LabError for a config.json of `size` bytes that is too large to be read."""
    if size > MAX_CONFIG_BYTES:
        raise LabError(
            f"The config.json of '{quote(name)}' has {size:,} bytes; at most "
            f"{MAX_CONFIG_BYTES:,} are read.",
            "A config.json has a few kB.",
        )


def _look(config: dict[Any, Any], within: str, depth: int, problems: list[str]) -> None:
    if depth > MAX_DEPTH:
        problems.append(f"{within[:80]} is nested more than {MAX_DEPTH} times")
        return
    layers, experts = 0, 0
    for key, value in config.items():
        path = f"{within}{quote(str(key))}"
        if isinstance(value, (list, dict, str)) and len(value) > MAX_ENTRIES:
            problems.append(
                f"{path} has {quantity(len(value), 'entry', 'entries')}, at most "
                f"{MAX_ENTRIES:,} are allowed"
            )
        elif isinstance(value, dict):
            _look(value, f"{path}.", depth + 1, problems)
        else:
            needed = str(key) in NEEDED and not (key == "head_dim" and ROPE_ONLY in config)
            wrong = _wrong(str(key), value, needed)
            if wrong:
                problems.append(f"{path} {wrong}")
            elif type(value) is int and words_of(str(key)) & {"layer", "layers"}:
                layers = max(layers, value)
            elif type(value) is int and words_of(str(key)) & {"expert", "experts"}:
                experts = max(experts, value if value <= EXPERTS else 0)
        if isinstance(value, list) and len(value) <= MAX_ENTRIES:
            for place_in, item in enumerate(value):
                if isinstance(item, dict):
                    _look(item, f"{path}.{place_in}.", depth + 1, problems)
    if layers * experts > LAYERS_WITH_EXPERTS:
        problems.append(
            f"{within}{quantity(layers, 'layer')} of {quantity(experts, 'expert')} are more than "
            f"{LAYERS_WITH_EXPERTS:,} experts"
        )


def _wrong(key: str, value: Any, needed: bool) -> str:
    """What is wrong with one number, or a list of them; "" if nothing."""
    if isinstance(value, list):
        wrong = (_wrong(key, item, needed) for item in value if not isinstance(item, (list, dict)))
        return next((f"holds a value that {problem}" for problem in wrong if problem), "")
    if value is None:
        return ""
    low, high = 1 if needed else -OTHER, most(key)
    if high == POSITIONS and isinstance(value, float) and value.is_integer():
        value = int(value)  # seconds times a rate, in some configs
    if needed and type(value) is not int:
        return f"is {quote(value)}, and must be a whole number"
    if type(value) is int and not low <= value <= high:
        if needed:
            return f"is {number_text(value)}, and must be from 1 to {number_text(high)}"
        return f"is {number_text(value)}, and must be at most {number_text(high)}"
    return ""


def most(key: str) -> int:
    """The largest value of a field, by the words of its name."""
    words = words_of(key)
    return next((bound for names, bound in BOUNDS if words & names), OTHER)


def words_of(key: str) -> frozenset[str]:
    return frozenset(key.lower().split("_"))
