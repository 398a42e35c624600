"""The filters that chat templates use, with bounds. Those that make a text longer are written
here; the others are jinja's, whose results are counted."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2.filters import FILTERS

from lab.data.work import SIZE, TooMuch, counted, percent, replaced, work_now

FILTERS_KEPT = (
    "abs attr batch capitalize center count d default dictsort e escape first float forceescape "
    "format groupby indent int items join last length list lower map max min reject rejectattr "
    "replace reverse round safe select selectattr slice sort string sum title trim truncate unique "
    "upper urlencode wordcount"
).split()


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is counted. What it is applied to is bounded already."""

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        work_now().spend()
        return work_now().checked(function(*args, **kwargs))

    return bounded


def _most(value: Any, most: int) -> Any:
    if isinstance(value, (int, float)) and abs(value) > most:
        raise TooMuch(f"a filter takes {most:,} at most")
    return value


def _center(value: Any, width: int = 80) -> str:
    work_now().allow(max(len(str(value)), width))
    return str(value).center(width)


def _indent(s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    step = len(width) if isinstance(width, str) else _most(width, SIZE)
    work_now().allow(len(str(s)) + (1 + str(s).count("\n")) * max(0, step))
    return str(FILTERS["indent"](str(s), width, first, blank))


def _batch(value: Any, linecount: int, fill_with: Any = None) -> list[list[Any]]:
    return list(FILTERS["batch"](counted(value), _most(linecount, 10_000), fill_with))


@jinja2.pass_eval_context
def _join(context: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    parts, work = list(counted(value)), work_now()
    work.allow(work.weigh(parts) + len(str(d)) * len(parts))
    return str(FILTERS["join"](context, parts, d, attribute))


def _slice(value: Any, slices: int, fill_with: Any = None) -> list[list[Any]]:
    # jinja's own may be asynchronous; this is what it does
    values, count = list(counted(value)), int(_most(slices, 10_000))
    each, more = divmod(len(values), count)
    parts, start = [], 0
    for index in range(count):
        end = start + each + (index < more)
        part = values[start:end]
        parts.append([*part, fill_with] if fill_with is not None and index >= more else part)
        start = end
    return parts


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    replaced(str(s), str(old), str(new))
    return str(s).replace(str(old), str(new), -1 if count is None else count)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    return float(FILTERS["round"](value, _most(precision, 100), method))


@jinja2.pass_environment
def _sum(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, (int, float)):
        raise TypeError("the filter sum adds numbers")
    return FILTERS["sum"](environment, counted(iterable), attribute, start)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    return percent(str(value), kwargs or args)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    work = work_now()
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
ALL = {name: _bounded(FILTERS[name]) for name in FILTERS_KEPT} | {
    name: _bounded(function) for name, function in _OWN.items()
}
