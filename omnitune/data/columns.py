"""Columns of an index: a million rows in little memory, each made again when it is asked for."""

import pickle
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")
H = TypeVar("H")


class Rows(Sequence[T]):
    """A sequence whose rows are made again by `row` each time."""

    @abstractmethod
    def row(self, i: int) -> T:
        """Make row i, which is from 0 to below the length."""

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> list[T]: ...
    def __getitem__(self, i: int | slice) -> T | list[T]:
        found = range(len(self))[i]
        return self.row(found) if isinstance(found, int) else [self.row(k) for k in found]

    def __iter__(self) -> Iterator[T]:
        return map(self.row, range(len(self)))


class Objects(Rows[T]):
    """Values of any class that can be pickled, each for itself: 4 bytes beside its own, in one buffer."""

    def __init__(self, values: Iterable[T] = ()):
        self.buffer, self.ends = bytearray(), array("I", [0])
        for value in values:
            self.append(value)

    def append(self, value: T) -> None:
        self.buffer += self.encode(value)
        if len(self.buffer) >> 32 and self.ends.typecode == "I":
            self.ends = array("Q", self.ends)
        self.ends.append(len(self.buffer))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def row(self, i: int) -> T:
        return self.decode(self.buffer[self.ends[i] : self.ends[i + 1]])

    def encode(self, value: T) -> bytes:
        return pickle.dumps(value)

    def decode(self, piece: bytearray) -> T:
        value: T = pickle.loads(piece)
        return value


class Texts(Objects[str]):
    """Strings."""

    def encode(self, value: str) -> bytes:
        return value.encode(errors="surrogatepass")  # names of files may hold bytes that are no text

    def decode(self, piece: bytearray) -> str:
        return piece.decode(errors="surrogatepass")


class Digests(Rows[str]):
    """Hashes of 128 bits, as `files.digest` spells them; an empty one where there is nothing to hash."""

    def __init__(self, digests: Iterable[str] = ()):
        self.buffer = b"".join(bytes.fromhex(digest).ljust(16, b"\0") for digest in digests)

    def __len__(self) -> int:
        return len(self.buffer) // 16

    def row(self, i: int) -> str:
        return self.buffer[16 * i : 16 * i + 16].hex()


class Repeated(Rows[H], Generic[H]):
    """Values of which few differ: 4 bytes each, and every value once."""

    def __init__(self, values: Iterable[H] = ()):
        self.numbers, self.places = array("I"), dict[H, int]()
        self.values: list[H] = []
        """Each value once, in the order of first appearance."""
        for value in values:
            self.append(value)

    def append(self, value: H) -> None:
        if value not in self.places:
            self.places[value] = len(self.values)
            self.values.append(value)
        self.numbers.append(self.places[value])

    def __len__(self) -> int:
        return len(self.numbers)

    def row(self, i: int) -> H:
        return self.values[self.numbers[i]]

    def by_value(self) -> Iterator[tuple[H, Sequence[int]]]:
        """Pairs of a value and the rows that have it, in order."""
        found = [array("I") for _ in self.values]
        for i, number in enumerate(self.numbers):
            found[number].append(i)
        return zip(self.values, found, strict=True)
