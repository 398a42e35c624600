"""A small picture of a decoder with the parts that a method trains marked.

`figure({"attention": "B·A", "head": ALL})`: a part named ALL is filled, for any other label a
small box is drawn beside it. Colours work on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

ALL = "all"  # the part's own weights train
PARTS = {
    "input": "virtual tokens",
    "embeddings": "token embeddings",
    "norm_1": "norm",
    "attention": "attention  q k v o",
    "norm_2": "norm",
    "feed_forward": "feed-forward  up down",
    "final_norm": "norm",
    "head": "head",
}
LAYER = ("norm_1", "attention", "norm_2", "feed_forward")
TRAINED, FROZEN = "#e8590c", "#868e96"
WIDTH, HIGH, GAP, LEFT, BOX, SIDE = 340, 24, 8, 12, 170, 120


def figure(trains: Mapping[str, str], note: str = "") -> str:
    """An SVG of at most 340 x 330 units. `trains` maps names of PARTS to ALL or a label.

    "norm" stands for all norms. Raises KeyError for an unknown part.
    """
    marked = dict(trains)
    if "norm" in marked:
        label = marked.pop("norm")
        marked |= dict.fromkeys(("norm_1", "norm_2", "final_norm"), label)
    for part in marked:
        PARTS[part]
    pieces, top = [], GAP
    first_of_layer = last_of_layer = 0
    for part, title in PARTS.items():
        if part == "input" and part not in marked:
            continue
        if part == LAYER[0]:
            top += 6
            first_of_layer = top
        pieces.append(_box(LEFT, top, BOX, title, is_trained=marked.get(part) == ALL))
        label = marked.get(part, ALL)
        if label != ALL:
            pieces.append(_side(top, label))
        elif part == "input":
            pieces[-1] = _box(LEFT, top, BOX, title, is_trained=True)
        top += HIGH + GAP
        if part == LAYER[-1]:
            last_of_layer = top - GAP
            top += 6
    frame = (
        f'<rect x="{LEFT - 6}" y="{first_of_layer - 6}" width="{BOX + 12}" '
        f'height="{last_of_layer - first_of_layer + 12}" rx="6" fill="none" '
        f'stroke="{FROZEN}" stroke-dasharray="3 3"/>'
        f'<text x="{LEFT + BOX + 10}" y="{first_of_layer + 4}" font-size="11" '
        f'fill="{FROZEN}">× L layers</text>'
    )
    if note:
        pieces.append(
            f'<text x="{LEFT}" y="{top + 12}" font-size="11" fill="{FROZEN}">{escape(note)}</text>'
        )
        top += 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 4}" '
        f'width="{WIDTH}" font-family="sans-serif" role="img" '
        f'aria-label="{escape(_spoken(marked))}">{frame}{"".join(pieces)}</svg>'
    )


def _box(left: int, top: int, width: int, title: str, *, is_trained: bool) -> str:
    colour = TRAINED if is_trained else FROZEN
    fill = f'fill="{TRAINED}" fill-opacity="0.25"' if is_trained else 'fill="none"'
    return (
        f'<rect x="{left}" y="{top}" width="{width}" height="{HIGH}" rx="4" {fill} '
        f'stroke="{colour}"/><text x="{left + width / 2:g}" y="{top + 16}" font-size="12" '
        f'text-anchor="middle" fill="{colour}">{escape(title)}</text>'
    )


def _side(top: int, label: str) -> str:
    left = LEFT + BOX + 30
    line = f'<path d="M{LEFT + BOX} {top + HIGH / 2:g} H{left}" stroke="{TRAINED}" fill="none"/>'
    return line + _box(left, top, SIDE, label, is_trained=True)


def _spoken(marked: Mapping[str, str]) -> str:
    named = [
        PARTS[part] if label == ALL else f"{label} beside {PARTS[part]}"
        for part, label in marked.items()
    ]
    return f"A decoder. Trained: {', '.join(named) or 'nothing'}."
