"""Chat templates are programs of strangers. Here they run with bounds on their work and size.

The environment is the one of transformers (`apply_chat_template`), with which a test compares it on
every template of trl; it differs in its bounds. A rendering may take so many steps, and no text or
list in it may grow beyond a size, both of which follow from the length of the chat. What makes text
larger is counted before it is made, so that `'a' * 10**9` costs nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lab.data import filters
from lab.data.work import TooMuch, Work, counted, current, formatted, method, percent, work_now

MAX_TEMPLATE_CHARS = 200_000  # characters; the longest that models bring have 30,000
BITS = 4096  # of an integer
NESTED = re.compile(r"\{[^{}]*:[^{}]*\{")  # a format whose width is a value
REFUSED = {"encode", "translate", "maketrans", "to_bytes", "from_bytes", "fromhex", "hex"}


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
        self.filters = dict(filters.ALL)
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: _strftime(datetime.now(), pattern),
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counted().visit(source), *args, **kwargs)

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """The text of a template, macro or block."""
        work, collected, size = work_now(), [], 0
        for part in parts:
            size += len(part)
            work.allow(size) if size > work.size else work.spend()
            collected.append(part)
        return "".join(collected)

    def text(self, value: Any) -> str:
        """What is written of a value."""
        work = work_now()
        work.allow(work.weigh(value))
        return value if isinstance(value, str) else str(value)

    def joined(self, *parts: Any) -> str:
        """The operator ~."""
        texts = [self.text(part) for part in parts]
        work_now().allow(sum(map(len, texts)))
        return "".join(texts)

    def built(self, value: Any) -> Any:
        """A list, tuple or object that stands in the template."""
        return work_now().checked(value)

    def counted(self, values: Any) -> Iterator[Any]:
        """What a loop goes over."""
        return counted(values)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        work = work_now()
        if operator == "%" and isinstance(left, str):
            return percent(left, right)
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
        work = work_now()
        work.spend()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = method(owner, str(getattr(__obj, "__name__", "")), args)
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
            work_now().allow(formatted(pattern, "{", given))
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


def _strftime(now: datetime, pattern: str) -> str:
    work_now().allow(formatted(pattern, "%", []))
    return now.strftime(pattern)


def _characters(value: Any) -> int:
    """The length of all texts in a value, with a little for each entry."""
    if isinstance(value, str):
        return len(value) + 16
    if isinstance(value, dict):
        return 16 + sum(map(_characters, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return 16 + sum(map(_characters, value))
    return 16


@functools.lru_cache(maxsize=1)
def _environment() -> Bounded:
    return Bounded()


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> jinja2.Template:
    """The template of this text. Raises what its parser and its compiler raise, and TooMuch."""
    if len(source) > MAX_TEMPLATE_CHARS:
        raise TooMuch(f"it has more than {MAX_TEMPLATE_CHARS:,} characters")
    before, current.work = current.work, Work(len(source))
    try:
        return _environment().from_string(source)
    finally:
        current.work = before


def render(
    source: str, messages: list[dict[str, Any]], *, now: datetime | None = None, **variables: Any
) -> str:
    """What a template makes of a chat; `now` is the time that it may ask for, by default that of
    the clock. Raises whatever a template can raise: any Exception, and TooMuch where it breaks its
    bounds."""
    template = compiled(source)
    if now is not None:
        variables["strftime_now"] = functools.partial(_strftime, now)
    before, current.work = current.work, Work(_characters([messages, variables.get("tools")]))
    try:
        return template.render(messages=messages, **variables)
    finally:
        current.work = before
