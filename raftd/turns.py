"""Turns for large commands, so that those who write small ones rarely wait for one."""

import math
import threading
import time
from contextlib import contextmanager

LARGE_BYTES = 64 * 1024  # commands beyond it are large
GIVE_WAY_SECONDS = 0.1  # so long after a small command large ones give way
RESTS = 2  # as long as these many large commands took is the pause after one
MOST_REST_SECONDS = 0.25
MOST_WAITING = 8  # each takes a thread that others may need


class Turns:
    """There is one log, and whoever comes behind a large command waits until that is on the disks of a majority.

    So while small ones are written, large ones come one at a time, and rest after each in proportion to what it took: small ones find
    the log free most of the time. Among themselves large ones come as they are; so do those for whom too many wait already, or who have
    waited for half of their time: giving way refuses nobody.

    sleep  waits for so many seconds, or less when nothing is worth waiting for any more
    """

    def __init__(self, sleep, clock=time.monotonic):
        self._sleep, self._clock = sleep, clock
        self._one, self._places = threading.Lock(), threading.Semaphore(MOST_WAITING)
        self._small_at = self._rest_until = -math.inf

    def small(self):
        """A small command is written."""
        self._small_at = self._clock()

    @contextmanager
    def turn(self, timeout):
        """Take the turn of a large command that has *timeout* seconds. Gives how many of these are left."""
        began = self._clock()
        is_its_turn = self._wait_until(began + timeout / 2)
        started = self._clock()
        try:
            yield began + timeout - started
            if is_its_turn:
                now = self._clock()
                self._rest_until = now + min(RESTS * (now - started), MOST_REST_SECONDS)
        finally:
            if is_its_turn:
                self._one.release()

    def _wait_until(self, deadline):
        """True when it is its turn, False if it comes without one."""
        if not self._must_give_way() or not self._places.acquire(blocking=False):
            return False
        try:
            if not self._one.acquire(timeout=max(0.0, deadline - self._clock())):
                return False
        finally:
            self._places.release()
        if self._must_give_way() and (rest := min(self._rest_until, deadline) - self._clock()) > 0:
            self._sleep(rest)
        return True

    def _must_give_way(self):
        return self._clock() < self._small_at + GIVE_WAY_SECONDS
