"""How figures read, on pages and in the terminal."""

from __future__ import annotations

import math
import time
from typing import Any


def duration(seconds: float | None) -> str:
    """95 → "1 min 35 s"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds_left:02d} s"


def count(value: float | None) -> str:
    """134515008 → "134.5 M"."""
    return _scaled(value, ((1e9, " B"), (1e6, " M"), (1e3, " k"), (1, "")), digits=1)


def quantity(value: Any, noun: str, plural: str = "") -> str:
    """1 and "row" → "1 row", 1234 → "1,234 rows"; of what is written. The plural ends in s, or
    is given. What is no number, as in a damaged record, reads "– rows"."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    number = f"{value:,.0f}" if is_number and math.isfinite(value) else "–"
    return f"{number} {noun}" if number == "1" else f"{number} {plural or f'{noun}s'}"


def size(value: float | None) -> str:
    """Bytes in powers of ten: 23118622 → "23.12 MB"."""
    return _scaled(value, ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")), digits=2)


def _scaled(value: float | None, units: tuple[tuple[float, str], ...], digits: int) -> str:
    """`value` in the largest unit that it reaches; whole in the last one."""
    if value is None:
        return "–"
    for scale, unit in units[:-1]:
        if abs(value) >= scale:
            return f"{value / scale:.{digits}f}{unit}"
    return f"{value:,.0f}{units[-1][1]}"


def short_id(name: str) -> str:
    """An id of the Hub with twelve letters of its commit: "org/name#0123456789ab"."""
    before, sign, commit = name.partition("#")
    return f"{before}#{commit[:12]}" if sign and len(commit) == 40 else name


def rate(value: float) -> str:
    """A learning rate: 0.0002 → "2e-4", 0.03 → "0.03"."""
    if not math.isfinite(value) or value == 0 or abs(value) >= 0.01:
        return f"{value:g}"
    digits, _, exponent = f"{value:.6e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def flops(value: float) -> str:
    """An amount of floating-point operations: 4e12 → "4e12 FLOPs"."""
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)} FLOPs" if value >= 1e5 else f"{value:,.0f} FLOPs"


def budget(amount: float, axis: str) -> str:
    """ "20,000 tokens", "4e12 FLOPs"."""
    if axis == "flops":
        return flops(amount)
    return f"{amount:,.10g} {axis.removesuffix('s') if amount == 1 else axis}"


def percent(share: float) -> str:
    """A share of one, without its sign: 0.36 → "36 %", 0.035 → "3.5 %"."""
    value = abs(100 * share)
    return f"{value:.{0 if value >= 9.95 or not value else 1}f} %"


def signed_percent(change: float) -> str:
    """A relative change with its sign: −0.214 → "−21 %"."""
    return f"{'+' if change > 0 else '−' if change < 0 else '±'}{percent(change)}"


def signed(value: float, digits: int = 2) -> str:
    """A difference, always with its sign: "+0.06", "−0.31"; "±0.00" where rounding leaves none."""
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return f"±{text}"
    return f"{'−' if value < 0 else '+'}{text}"


def when(moment: float) -> str:
    """A moment as a person says it: "5 min ago", or its date."""
    age = time.time() - moment
    if age < 90:
        return "just now"
    if age < 5400:
        return f"{age / 60:.0f} min ago"
    if age < 36 * 3600:
        return f"{age / 3600:.0f} h ago"
    return time.strftime("%d %b %Y", time.localtime(moment))
