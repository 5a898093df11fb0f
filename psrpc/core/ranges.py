"""A set of whole numbers kept as disjoint ranges, small where it is dense."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence


class Ranges:
    """Whole numbers, as sorted disjoint ranges [low, high)."""

    def __init__(self, ranges: Iterable[Sequence[int]] = ()) -> None:
        """Holds `ranges`: pairs (low, high), sorted and with gaps between them, as iterated over.

        Raises ValueError for others.
        """
        self._lows: list[int] = []
        self._highs: list[int] = []
        for low, high in ranges:
            if low >= high or (self._highs and low <= self._highs[-1]):
                raise ValueError(f"[{low}, {high}) does not follow the ranges before it")
            self._lows.append(low)
            self._highs.append(high)

    def __contains__(self, number: int) -> bool:
        i = bisect_right(self._lows, number) - 1
        return i >= 0 and number < self._highs[i]

    def __len__(self) -> int:
        return sum(high - low for low, high in self)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(tuple(self._lows), tuple(self._highs), strict=True)

    def continued_by(self, number: int) -> bool:
        """Whether `number` follows the last range at once."""
        return bool(self._highs) and self._highs[-1] == number

    def extend(self) -> None:
        """Put the number in that follows the last range."""
        self._highs[-1] += 1

    def add(self, number: int) -> None:
        """Put `number` in; nothing happens where it is in already."""
        i = bisect_right(self._lows, number) - 1
        if i >= 0 and number < self._highs[i]:
            return
        joins_left = i >= 0 and self._highs[i] == number
        joins_right = i + 1 < len(self._lows) and self._lows[i + 1] == number + 1
        if joins_left and joins_right:
            self._highs[i] = self._highs.pop(i + 1)
            del self._lows[i + 1]
        elif joins_left:
            self._highs[i] = number + 1
        elif joins_right:
            self._lows[i + 1] = number
        else:
            self._lows.insert(i + 1, number)
            self._highs.insert(i + 1, number + 1)
