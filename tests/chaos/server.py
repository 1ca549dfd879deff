"""raftd, to be broken: ``python server.py CLOCK [flags] PATH``.

It is raftd in every respect but two. Its limits are so small that the log is compacted and snapshots are sent all the time. And its
wall clock is wrong by as many seconds as the file CLOCK says, which may change at any time: the first number is added, and the clock
runs as many times as fast as the second says. (libfaketime would do that from outside, but CPython's waits take 50 ms under it.)
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import raftd.cli  # noqa: E402, the path had to be set first
from raftd.config import Settings  # noqa: E402

SMALL = {"compact_entries": 100, "keep_entries": 20, "compact_bytes": 2 << 20, "keep_bytes": 1 << 20, "snapshot_chunk_bytes": 64 << 10,
         "max_append_bytes": 256 << 10}


class SmallSettings(Settings):
    def __init__(self, **given):
        super().__init__(**{**SMALL, **given})


class WallClock:
    """Stands in for ``time.time``."""

    LOOK_SECONDS = 0.1

    def __init__(self, path):
        self._path, self._time = path, time.time
        self._started = self._looked = self._time()
        self._added, self._speed = 0.0, 1.0
        self._look()

    def __call__(self):
        now = self._time()
        if abs(now - self._looked) >= self.LOOK_SECONDS:
            self._looked = now
            self._look()
        return self._started + (now - self._started) * self._speed + self._added

    def _look(self):
        try:
            numbers = Path(self._path).read_text().split()
            self._added, self._speed = float(numbers[0]), float(numbers[1])
        except (OSError, ValueError, IndexError):  # it is not there, or just being written
            pass


def main(argv):
    clock, *flags = argv
    time.time = WallClock(clock)
    raftd.cli.Settings = SmallSettings
    return raftd.cli.main(flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
