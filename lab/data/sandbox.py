"""Chat templates are programs of strangers. Here they run with bounds on their work and size.

The environment is the one of transformers (`apply_chat_template`), with which a test compares it on
every template of trl; it differs in its bounds. A rendering may take so many steps, and no text or
list in it may grow beyond a size, both of which follow from the length of the chat. What makes text
larger is counted before it is made, so that `'a' * 10**9` costs nothing.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LONGEST_TEMPLATE = 200_000  # characters; the longest that models bring have 30,000
STEPS = 500_000  # turns of loops, calls, outputs, of an empty chat
STEPS_A_CHARACTER = 2
SIZE = 1_000_000  # characters or entries of whatever a template makes
SIZE_A_CHARACTER = 8
SECONDS = 1.0  # of processor time: an honest rendering takes milliseconds
SECONDS_A_CHARACTER = 2e-6
BITS = 4096  # of an integer
DIGITS = re.compile(r"\d+")
NESTED = re.compile(r"\{[^{}]*:[^{}]*\{")  # a format whose width is a value
STAR = re.compile(r"%[^%a-zA-Z]*\*")
FILTERS_KEPT = (
    "abs attr batch capitalize center count d default dictsort e escape first float forceescape "
    "format groupby indent int items join last length list lower map max min reject rejectattr "
    "replace reverse round safe select selectattr slice sort string sum title trim truncate unique "
    "upper urlencode wordcount"
).split()
REFUSED = {"encode", "translate", "maketrans", "to_bytes", "from_bytes", "fromhex", "hex"}
CLOCK = 64  # steps between two looks at the clock


class TooMuch(Exception):
    """The template does more than rendering a chat can take."""


class Work:
    """What one rendering may still do. `characters` is the length of the chat."""

    def __init__(self, characters: int) -> None:
        self.steps = STEPS + STEPS_A_CHARACTER * characters
        self.size = SIZE + SIZE_A_CHARACTER * characters
        self.ends = time.thread_time() + SECONDS + SECONDS_A_CHARACTER * characters
        self.until_clock = CLOCK
        self._weights: dict[int, tuple[Any, int]] = {}

    def spend(self, size: int = 0) -> None:
        """Count a step that handles `size` characters or entries."""
        self.steps -= 1 + size // 256
        if self.steps < 0:
            raise TooMuch("it takes too many steps")
        self.until_clock -= 1 + size // 4096
        if self.until_clock < 0:
            self.until_clock = CLOCK
            if time.thread_time() > self.ends:
                raise TooMuch("it takes too long")

    def allow(self, size: int) -> None:
        """Raise TooMuch where a text or list of this size may not be made."""
        if size > self.size:
            raise TooMuch(f"it makes a text or list of more than {self.size:,} characters")
        self.spend(max(0, size))

    def weigh(self, value: Any) -> int:
        """About the characters that `value` has as text, each part as often as it stands there."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            return 1 + int(value).bit_length() // 3
        if isinstance(value, Namespace):
            return 1 + self._sum(value._Namespace__attrs.values())
        if isinstance(value, (KeysView, ValuesView)):
            return 1 + self._sum(value)
        if isinstance(value, ItemsView):
            return 1 + self._sum(itertools.chain.from_iterable(value))
        if not isinstance(value, (list, tuple, dict)):
            return 1
        known = self._weights.get(id(value))
        if known is None:
            parts = itertools.chain(value, value.values()) if isinstance(value, dict) else value
            known = (value, 1 + self._sum(parts))  # the value is held: its id stays its own
            self._weights[id(value)] = known
        return known[1]

    def _sum(self, parts: Iterable[Any]) -> int:
        total = 0
        for part in parts:
            self.spend()
            total += 1 + self.weigh(part)
            if total > self.size:
                raise TooMuch(f"it makes a text or list of more than {self.size:,} characters")
        return total

    def checked(self, value: Any) -> Any:
        """`value`, if its size is allowed."""
        if isinstance(value, (str, int, list, tuple, dict)):
            self.allow(self.weigh(value))
        return value


class _Current(threading.local):
    work: Work | None = None


_current = _Current()


def _work() -> Work:
    """The bounds of what goes on in this thread; compiling folds constants under its own."""
    if _current.work is None:
        raise TooMuch("it runs outside of a rendering")
    return _current.work


class Bounded(ImmutableSandboxedEnvironment):
    """The environment of transformers, with bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=self.text,
        )
        self.filters = {name: _bounded(FILTERS[name]) for name in FILTERS_KEPT} | OWN_FILTERS
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counted().visit(source), *args, **kwargs)

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """The text of a template, macro or block."""
        work, collected, size = _work(), [], 0
        for part in parts:
            size += len(part)
            work.allow(size) if size > work.size else work.spend()
            collected.append(part)
        return "".join(collected)

    def text(self, value: Any) -> str:
        """What is written of a value."""
        work = _work()
        work.allow(work.weigh(value))
        return value if isinstance(value, str) else str(value)

    def joined(self, *parts: Any) -> str:
        """The operator ~."""
        texts = [self.text(part) for part in parts]
        _work().allow(sum(map(len, texts)))
        return "".join(texts)

    def built(self, value: Any) -> Any:
        """A list, tuple or object that stands in the template."""
        return _work().checked(value)

    def counted(self, values: Any) -> Iterator[Any]:
        """What a loop goes over."""
        return _counted(values)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        work = _work()
        if operator == "%" and isinstance(left, str):
            return _percent(left, right)
        if operator == "*":
            if isinstance(left, int) and not isinstance(right, int):
                left, right = right, left
            if isinstance(right, int) and isinstance(left, (str, list, tuple)):
                work.allow(work.weigh(left) * max(0, right))
        is_whole = isinstance(left, int) and isinstance(right, int)
        if is_whole and operator in ("*", "**"):
            bits = int(left).bit_length()
            size = bits * max(0, right) if operator == "**" else bits + int(right).bit_length()
            if abs(left) > 1 and size > BITS:
                raise TooMuch("it computes with numbers of thousands of digits")
        if operator == "+" and isinstance(left, (str, list, tuple)):
            work.allow(work.weigh(left) + work.weigh(right))
        work.spend()
        return work.checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        work = _work()
        work.spend()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = _method(owner, str(getattr(__obj, "__name__", "")), args)
        return work.checked(super().call(__context, __obj, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in REFUSED and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        plain = super().wrap_str_format(value)
        if plain is None:
            return None
        pattern = value.__self__

        @functools.wraps(plain)
        def bounded(*args: Any, **kwargs: Any) -> str:
            if NESTED.search(pattern):
                raise TooMuch("it formats with a width that is a value")
            given = [*args, *kwargs.values()]
            _work().allow(_formatted(pattern, "{", given))
            return plain(*args, **kwargs)

        return bounded


class _Counted(NodeTransformer):
    """Sends what the sandbox cannot intercept through the environment: the operator ~, the turns
    of loops, and lists, tuples and objects."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("joined", node.nodes, node)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("counted", [node.iter], node)
        return node

    def _visit_built(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        is_read = getattr(node, "ctx", "load") == "load"  # not (a, b) of `for a, b in …`
        if not is_read or all(isinstance(part, nodes.Const) for part in node.iter_child_nodes()):
            return node  # type: ignore[no-any-return]
        return _through("built", [node], node)

    visit_List = visit_Tuple = visit_Dict = _visit_built


def _through(name: str, arguments: list[Any], node: nodes.Node) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name)
    call = nodes.Call(function, arguments, [], None, None)
    call.set_lineno(node.lineno)
    return call


class _Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}, which some templates put around answers."""

    tags = {"generation"}  # noqa: RUF012 (as the class above declares it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # namespace(self=…) is possible
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _Namespace._check(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(
                f"a namespace cannot hold {name!r}: it begins with an underscore"
            )


class _Dict:
    """The global `dict`, without what the class itself would open."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: Any) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    _work().allow(_formatted(pattern, "%", []))
    return datetime.now().strftime(pattern)


def _counted(values: Any) -> Iterator[Any]:
    work = _work()
    for value in values:
        work.spend()
        yield value


def _formatted(pattern: str, mark: str, values: Iterable[Any]) -> int:
    """An upper bound of the characters of a pattern with these values."""
    work = _work()
    if any(len(digits) > 9 for digits in DIGITS.findall(pattern)):
        raise TooMuch("it formats with a width of many digits")
    widths = [int(digits) for digits in DIGITS.findall(pattern)]
    return len(pattern) + pattern.count(mark) * max([40, *widths, *map(work.weigh, values)])


def _percent(left: str, right: Any) -> str:
    """The operator % of a text."""
    if STAR.search(left):
        raise TooMuch("it formats with a width that is a value")
    values = right.values() if isinstance(right, dict) else right
    _work().allow(_formatted(left, "%", values if isinstance(right, (tuple, dict)) else [right]))
    return str(left % right)


def _replaced(text: str, old: str, new: str) -> None:
    """Count what text.replace(old, new) makes."""
    times = text.count(old) if old else len(text) + 1
    _work().allow(len(text) + times * len(new))


def _method(text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a method of text, after its result was counted."""
    work = _work()
    first = args[0] if args else None
    if name in ("center", "ljust", "rjust", "zfill") and isinstance(first, int):
        work.allow(max(len(text), first))
    elif name == "expandtabs":
        work.allow(len(text) + text.count("\t") * (first if isinstance(first, int) else 8))
    elif name == "replace" and len(args) > 1 and isinstance(first, str):
        _replaced(text, first, str(args[1]))
    elif name == "join" and args:
        parts = list(_counted(first))
        work.allow(work.weigh(parts) + len(text) * len(parts))
        args = (parts, *args[1:])
    return args


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is counted. What it is applied to is bounded already."""

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _work().spend()
        return _work().checked(function(*args, **kwargs))

    return bounded


def _most(value: Any, most: int) -> Any:
    if isinstance(value, (int, float)) and abs(value) > most:
        raise TooMuch(f"a filter takes {most:,} at most")
    return value


def _center(value: Any, width: int = 80) -> str:
    _work().allow(max(len(str(value)), width))
    return str(value).center(width)


def _indent(s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    step = len(width) if isinstance(width, str) else _most(width, SIZE)
    _work().allow(len(str(s)) + (1 + str(s).count("\n")) * max(0, step))
    return str(FILTERS["indent"](str(s), width, first, blank))


def _batch(value: Any, linecount: int, fill_with: Any = None) -> list[list[Any]]:
    return list(FILTERS["batch"](_counted(value), _most(linecount, 10_000), fill_with))


@jinja2.pass_eval_context
def _join(context: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    parts, work = list(_counted(value)), _work()
    work.allow(work.weigh(parts) + len(str(d)) * len(parts))
    return str(FILTERS["join"](context, parts, d, attribute))


def _slice(value: Any, slices: int, fill_with: Any = None) -> list[list[Any]]:
    # jinja's own may be asynchronous; this is what it does
    values, count = list(_counted(value)), int(_most(slices, 10_000))
    each, more = divmod(len(values), count)
    parts, start = [], 0
    for number in range(count):
        end = start + each + (number < more)
        part = values[start:end]
        parts.append([*part, fill_with] if fill_with is not None and number >= more else part)
        start = end
    return parts


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    _replaced(str(s), str(old), str(new))
    return str(s).replace(str(old), str(new), -1 if count is None else count)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    return float(FILTERS["round"](value, _most(precision, 100), method))


@jinja2.pass_environment
def _sum(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, (int, float)):
        raise TypeError("the filter sum adds numbers")
    return FILTERS["sum"](environment, _counted(iterable), attribute, start)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    return _percent(str(value), kwargs or args)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    work = _work()
    work.allow(work.weigh(x))
    work.allow(len(indent) if isinstance(indent, str) else int(_most(indent or 0, 1000)))
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None and separators is None:
        return encoder.encode(x)
    parts, size = [], 0
    for part in encoder.iterencode(x):
        size += len(part)
        work.allow(size) if size > work.size else work.spend()
        parts.append(part)
    return "".join(parts)


_OWN: dict[str, Any] = {
    "batch": _batch,
    "center": _center,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "slice": _slice,
    "string": _string,
    "sum": _sum,
    "tojson": _tojson,
}
OWN_FILTERS = {name: _bounded(function) for name, function in _OWN.items()}


@functools.lru_cache(maxsize=1)
def _environment() -> Bounded:
    return Bounded()


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> jinja2.Template:
    """The template of this text. Raises what its parser and its compiler raise, and TooMuch."""
    if len(source) > LONGEST_TEMPLATE:
        raise TooMuch(f"it has more than {LONGEST_TEMPLATE:,} characters")
    before, _current.work = _current.work, Work(len(source))
    try:
        return _environment().from_string(source)
    finally:
        _current.work = before


def render(source: str, messages: list[dict[str, str]], **variables: Any) -> str:
    """What a template makes of a chat. Raises whatever a template can raise: any Exception, and
    TooMuch where it breaks its bounds."""
    template = compiled(source)
    characters = sum(len(text) + 16 for message in messages for text in message.values())
    before, _current.work = _current.work, Work(characters)
    try:
        return template.render(messages=messages, **variables)
    finally:
        _current.work = before
