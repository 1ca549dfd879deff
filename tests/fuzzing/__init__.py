"""Hostile input: what is made up, what it is given to, and what must hold whatever came. For tests and ``bin/fuzz``.

Every input is made by functions of a ``random.Random``, so that one grammar has three drivers: a number (a case of ``bin/fuzz``,
the same each time), hypothesis (``st.randoms()``, which shrinks what it finds), and atheris (``Bytes``, which is led by the code
that an input reaches).
"""

import os
import random
import tempfile


class Finding(AssertionError):
    """Something that must never happen did. The text says what, and with which input."""


class Bytes(random.Random):
    """Takes its decisions from *data*; when that is used up, each is the first possible one."""

    def __init__(self, data):
        self._data, self._position = data, 0
        super().__init__(0)

    def seed(self, *_):
        pass

    def getrandbits(self, count):
        size = (count + 7) // 8
        taken = self._data[self._position:self._position + size].ljust(size, b"\0")
        self._position += size
        return int.from_bytes(taken, "big") >> (8 * size - count)

    def random(self):
        return self.getrandbits(53) / (1 << 53)


def scratch(name):
    """A new one, in memory if there is such a place: these files need no disk, only to be files."""
    return tempfile.mkdtemp(prefix=f"raftd-{name}-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


def case(name, number):
    """The Random of one case of the target *name*."""
    return random.Random(f"{name} {number}")


def rarely(rng, chance):
    """True with that chance; the first decision, to which hypothesis shrinks and ``Bytes`` falls back, is False."""
    return rng.randrange(1000) >= 1000 * (1 - chance)


def some(rng, most, make):
    """Up to *most* of what ``make(rng)`` gives, few more often than many."""
    return [make(rng) for _ in range(min(int(rng.random() ** 3 * (most + 1)), most))]


NUMBERS = (0, 1, 2, 3, 7, 127, 255, 256, 1000, 4095, 4096, 4097, 65535, 65536, 10**6, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
           1 << 32,
           1 << 40, 1 << 53, (1 << 61) - 1, 1 << 61, (1 << 62) - 1, 1 << 62, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def number(rng):
    """One of those at which something changes, or one near by."""
    return max(0, rng.choice(NUMBERS) + rng.choice((0, 0, 0, -1, 1)))


def spoiled(rng, data, tokens=()):
    """*data* with a few bytes changed, removed, repeated, moved, or with one of *tokens* put in."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        length = rng.choice((1, 1, 1, 2, 4, 8, 100))
        match rng.randrange(7):
            case 0:
                data[at:at + 1] = rng.randbytes(1)
            case 1:
                del data[at:at + length]
            case 2:
                data[at:at] = data[at:at + length]
            case 3:
                data[at:at] = rng.choice(tokens) if tokens else rng.randbytes(length)
            case 4:
                data[at:at] = data[at:at + 1] * rng.choice((2, 10, 1000))
            case 5:
                part = data[at:at + length]
                del data[at:at + length]
                to = rng.randint(0, len(data))
                data[to:to] = part
            case 6 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
    return bytes(data)
