"""Names beside what they name, moved apart where they would overlap."""

from __future__ import annotations

import numpy as np


def spread(positions: np.ndarray, least: float, low: float, high: float) -> np.ndarray:
    """Positions at least `least` apart and within [low, high], in the same order, near the given ones.

    Blocks of names that touch share one centre, the mean of where their names belong (pool adjacent violators).
    Where not all have room, they are spaced evenly.
    """
    positions = np.asarray(positions, dtype=float)
    if len(positions) < 2 or least * (len(positions) - 1) >= high - low:
        return np.linspace(low, high, len(positions))[np.argsort(np.argsort(positions, kind="stable"))]
    order = np.argsort(positions, kind="stable")
    # With least * i taken off, "at least apart" is "not falling": a monotone regression.
    room = least * np.arange(len(order))
    blocks: list[list[float]] = []  # mean, size
    for value in positions[order] - room:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, size = blocks.pop()
            before, count = blocks[-1]
            blocks[-1] = [(before * count + mean * size) / (count + size), count + size]
    level = np.concatenate([np.full(int(size), mean) for mean, size in blocks])
    result = np.empty(len(order))
    result[order] = np.clip(level, low, high - room[-1]) + room
    return result
