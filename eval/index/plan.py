"""The memory and the disk that an index needs, from the sizes of a model."""

from __future__ import annotations

from monet.eval.index.firing import FIRING_TOKENS
from monet.eval.index.tables import BINS, INTERVALS, SAMPLES
from monet.eval.index.units import Units


def bytes_needed(groups: int, keys: int, top: int, labels: int, vocabulary: int, token_memory: int) -> dict[str, int]:
    """Memory of the tables during a pass, in bytes, for all routing groups together.

    Args:
        groups, keys: R and E.
        top: contexts of each unit.
        labels: labels of the text.
        vocabulary: token ids.
        token_memory: MiB that exact counts of firing tokens may take.
    """
    units = Units(groups, keys).per_group * groups
    tokens = 4 * vocabulary * units
    return {
        "contexts": units * (12 * top + 4),
        "samples": units * INTERVALS * (16 * SAMPLES + 4),
        "histogram": units * 4 * BINS,
        "sums by label": units * 8 * labels,
        "sums of squares": units * 8,
        "firing tokens": tokens if tokens <= token_memory << 20 else 0,
    }


def bytes_on_disk(groups: int, keys: int, top: int, labels: int) -> dict[str, int]:
    """Size of the fixed-size arrays of a complete index, in bytes; the parquet files come in addition."""
    units = Units(groups, keys).per_group * groups
    return {
        "contexts": units * 10 * top,
        "samples": units * 10 * INTERVALS * SAMPLES,
        "histogram": units * 4 * BINS,
        "sums by label": units * 8 * labels,
        "sums of squares": units * 8,
        "firing tokens": units * (12 * FIRING_TOKENS + 12),
    }


def readable(size: int) -> str:
    """Bytes for people: 1.2 GB, 34.5 MB, 120 kB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
