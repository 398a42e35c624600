"""Duplicate and near-duplicate examples, and examples that leak into the held-out split.

Near duplicates are found by MinHash over runs of WIDTH bytes of the normalised text (Broder 1997):
PERMUTATIONS smallest hashes a row, compared in BANDS bands, and each candidate pair counted out:
the share of equal hashes estimates the Jaccard similarity.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

WIDTH = 8
PERMUTATIONS = 64
BANDS = 16
SIMILAR = 0.8
NEARLY = 1 - 0.5 / PERMUTATIONS  # of texts that differ, though all of their hashes are equal
MAX_EXAMPLE_BYTES = 20_000  # bytes of a row that are compared
MAX_PAIRS = 20_000


@dataclass(frozen=True)
class DuplicatePairs:
    """Pairs of places (first, second, similarity) with first < second; exact ones have 1.0.
    `exact_leaks` and `near_leaks`: (training row, held-out row, similarity), each held-out row
    once at most: what the evaluation has seen before."""

    exact: list[tuple[int, int, float]]
    near: list[tuple[int, int, float]]
    exact_leaks: list[tuple[int, int, float]] = field(default_factory=list)
    near_leaks: list[tuple[int, int, float]] = field(default_factory=list)


def normal(text: str) -> str:
    """Normalised text: lower-cased, whitespace collapsed."""
    return " ".join(text.casefold().split())


def find_duplicates(texts: Sequence[str], held_out: Collection[int] = ()) -> DuplicatePairs:
    """The twins among `texts`, each row paired with the first that it resembles; and the rows at
    the places `held_out` that resemble one of the others."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        places[normal(text)].append(index)
    same = list(places.values())
    exact = [(rows[0], row, 1.0) for rows in same for row in rows[1:]]
    exact.sort(key=lambda pair: pair[1])
    signatures = _signatures(list(places)) if len(same) > 1 else None
    near = [] if signatures is None else _similar(signatures)
    pairs = [(same[first][0], same[other][0], share) for first, other, share in near]
    return DuplicatePairs(exact, pairs, *_leaks(same, signatures, set(held_out)))


def _leaks(
    same: list[list[int]], signatures: np.ndarray | None, held_out: set[int]
) -> tuple[list[tuple[int, int, float]], list[tuple[int, int, float]]]:
    """(exact, near); `same`: the places of each text, by which the signatures are ordered."""
    trained = {
        group: next(row for row in rows if row not in held_out)
        for group, rows in enumerate(same)
        if not held_out.issuperset(rows)
    }
    exact = [
        (row, other, 1.0)
        for group, row in trained.items()
        for other in same[group]
        if other in held_out
    ]
    near = []
    others = [group for group in range(len(same)) if group not in trained]
    if signatures is not None and trained and others:
        order = [*trained, *others]
        for first, other, share in _similar(signatures[order], len(trained)):
            near += [(trained[order[first]], row, share) for row in same[order[other]]]
    return sorted(exact, key=lambda pair: pair[1]), sorted(near, key=lambda pair: pair[1])


def _signatures(texts: list[str]) -> np.ndarray:
    """(N, PERMUTATIONS) uint32 MinHash signatures."""
    chance = np.random.default_rng(20261122)
    factors = chance.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    shifts = chance.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
    powers = np.uint64(1099511628211) ** np.arange(WIDTH, dtype=np.uint64)
    signatures = np.empty((len(texts), PERMUTATIONS), np.uint32)
    for index, text in enumerate(texts):
        data = np.frombuffer(text.encode()[:MAX_EXAMPLE_BYTES].ljust(WIDTH), np.uint8).astype(
            np.uint64
        )
        runs = np.lib.stride_tricks.sliding_window_view(data, WIDTH)
        hashes = np.unique((runs * powers).sum(1, dtype=np.uint64))
        mixed = (hashes[:, None] * factors + shifts) >> np.uint64(32)
        signatures[index] = mixed.min(0)
    return signatures


def _similar(signatures: np.ndarray, num_first: int | None = None) -> list[tuple[int, int, float]]:
    """Pairs that share a band and are similar enough, each later row once. With `num_first`, each
    pair has one of that many first rows, and one of the rest."""
    width = PERMUTATIONS // BANDS
    best: dict[int, tuple[int, float]] = {}
    looked = 0
    for band in range(BANDS):
        groups: dict[bytes, list[int]] = defaultdict(list)
        for index, part in enumerate(signatures[:, band * width : (band + 1) * width]):
            groups[part.tobytes()].append(index)
        for group in groups.values():
            if num_first is not None and group[0] >= num_first:
                continue
            for index in group[1:]:
                if num_first is not None and index < num_first:
                    continue
                looked += 1
                if looked > MAX_PAIRS or index in best:
                    continue
                share = float((signatures[group[0]] == signatures[index]).mean())
                if share >= SIMILAR:
                    best[index] = (group[0], min(share, NEARLY))
    return sorted((first, index, share) for index, (first, share) in best.items())
