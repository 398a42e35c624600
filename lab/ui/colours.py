"""How the colours of runs look: the hex of a chart, the dot of a text. A run keeps its colour on
every page; the base model is grey and dotted everywhere.

The smallest distance of two of the seven (CIE76, Machado 2009 at full severity) is 25 for normal
sight on light, 41 on dark, and 11 or more for every colour blindness.
"""

from __future__ import annotations

from lab.paths import RunDir
from lab.runs.colours import NAMES, colour_of

LIGHT = dict(
    zip(NAMES, ("#146ed5", "#b65400", "#7f23a5", "#095542", "#d60b72", "#554b02"), strict=True)
)
DARK = dict(
    zip(NAMES, ("#5499fc", "#ee8444", "#e9a2fa", "#2fe3d6", "#fb6594", "#cdb432"), strict=True)
)
BASE = {False: "#566568", True: "#a3b3b5"}  # by whether the page is dark
BASE_DOT = ":gray[●]"


def dot(colour: str) -> str:
    """A dot in Markdown, in the theme's hue of that name."""
    return f":{colour}[●]"


def hex_of(colour: str, dark: bool) -> str:
    return (DARK if dark else LIGHT)[colour]


def hex_of_run(run: RunDir, dark: bool) -> str:
    return hex_of(colour_of(run), dark)
