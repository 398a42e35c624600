"""Duplicate and near-duplicate examples, and examples that leak into the held-out split.

Near duplicates are found by MinHash over runs of WIDTH bytes of the normalised text (Broder 1997):
PERMUTATIONS smallest hashes a row, compared in BANDS bands, and each candidate pair counted out:
the share of equal hashes estimates the Jaccard similarity.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 8
PERMUTATIONS = 64
BANDS = 16
SIMILAR = 0.8
MAX_EXAMPLE_BYTES = 20_000  # bytes of a row that are compared
MAX_PAIRS = 20_000


@dataclass(frozen=True)
class DuplicatePairs:
    """Pairs of places (first, second, similarity) with first < second; exact ones have 1.0."""

    exact: list[tuple[int, int, float]]
    near: list[tuple[int, int, float]]

    def across_split(self, held_out: set[int]) -> list[tuple[int, int, float]]:
        """The pairs of which exactly one row is held out: what the evaluation has seen before."""
        return [
            pair
            for pair in self.exact + self.near
            if (pair[0] in held_out) != (pair[1] in held_out)
        ]


def normal(text: str) -> str:
    """Normalised text: lower-cased, whitespace collapsed."""
    return " ".join(text.casefold().split())


def find_duplicates(texts: Sequence[str]) -> DuplicatePairs:
    """The twins among `texts`, each row paired with the first that it resembles."""
    plain = [normal(text) for text in texts]
    first: dict[str, int] = {}
    exact = []
    for index, text in enumerate(plain):
        if text in first:
            exact.append((first[text], index, 1.0))
        else:
            first[text] = index
    alone = sorted(first.values())
    if len(alone) < 2:
        return DuplicatePairs(exact, [])
    signatures = _signatures([plain[index] for index in alone])
    near = [(alone[first], alone[other], share) for first, other, share in _similar(signatures)]
    return DuplicatePairs(exact, near)


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


def _similar(signatures: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs that share a band and are similar enough, each later row once."""
    width = PERMUTATIONS // BANDS
    best: dict[int, tuple[int, float]] = {}
    looked = 0
    for band in range(BANDS):
        groups: dict[bytes, list[int]] = defaultdict(list)
        for index, part in enumerate(signatures[:, band * width : (band + 1) * width]):
            groups[part.tobytes()].append(index)
        for group in groups.values():
            for index in group[1:]:
                looked += 1
                if looked > MAX_PAIRS or index in best:
                    continue
                share = float((signatures[group[0]] == signatures[index]).mean())
                if share >= SIMILAR:
                    best[index] = (group[0], share)
    return sorted((first, index, share) for index, (first, share) in best.items())
