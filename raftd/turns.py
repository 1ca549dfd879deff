"""Turns for large commands, so that those who write small ones rarely wait for one."""

import math
import threading
import time
from contextlib import contextmanager

from raftd.errors import Overloaded

LARGE_BYTES = 64 * 1024  # commands beyond it are large
GIVE_WAY_SECONDS = 0.1  # so long after a small command large ones give way
RESTS = 2  # as long as these many large commands took is the pause after one
MOST_REST_SECONDS = 0.25


class Turns:
    """There is one log, and whoever comes behind a large command waits until that is on the disks of a majority.

    So while small ones are written, large ones come one at a time, and rest after each in proportion to what it took: small ones find
    the log free most of the time. Among themselves large ones come as they are.

    sleep  waits for so many seconds, or less when nothing is worth waiting for any more
    """

    def __init__(self, sleep, clock=time.monotonic):
        self._sleep, self._clock = sleep, clock
        self._one = threading.Lock()
        self._small_at = self._rest_until = -math.inf

    def small(self):
        """A small command is written."""
        self._small_at = self._clock()

    @contextmanager
    def turn(self, timeout):
        """Take the turn of a large command, after up to *timeout* seconds; gives how many of these are left. Raises Overloaded."""
        deadline = self._clock() + timeout
        if not self._must_give_way():
            yield timeout
            return
        if not self._one.acquire(timeout=timeout):
            raise Overloaded("large values wait here until small ones have had their turn; try again in a second")
        try:
            if self._must_give_way() and (rest := min(self._rest_until, deadline) - self._clock()) > 0:
                self._sleep(rest)
            began = self._clock()
            yield max(0.0, deadline - began)
            now = self._clock()
            self._rest_until = now + min(RESTS * (now - began), MOST_REST_SECONDS)
        finally:
            self._one.release()

    def _must_give_way(self):
        return self._clock() < self._small_at + GIVE_WAY_SECONDS
