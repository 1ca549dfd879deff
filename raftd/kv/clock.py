"""The time by which keys expire. It goes on while a leader leads, and is told to the others by entries of the log.

Must not know: keys, who leads, the log.

No clock on a wall decides when a key expires: those of two servers differ, and are set. The time of the state is what the leaders
have written into it. A leader goes on from there by its own monotonic clock; whoever leads next goes on from what it has applied, plus
what has passed since. So a new leader neither gives a key its time anew nor takes any of it away, and by as much as an entry takes to
be applied it may live longer. While no server runs the time stands still.
"""

import threading
import time


class Clock:
    """Tells the time of the state, in milliseconds. Safe from many threads."""

    def __init__(self, monotonic=time.monotonic):
        self._monotonic, self._lock = monotonic, threading.Lock()
        self._heard, self._heard_at = 0, monotonic()
        self._term, self._began, self._began_at = None, 0, 0.0

    def hear(self, told):
        """An entry that was applied says that it is *told* (or later: it has taken a while to come here)."""
        with self._lock:
            self._heard, self._heard_at = told, self._monotonic()

    def now(self):
        """What time it is, as far as is known here: a little too early rather than too late."""
        with self._lock:
            return self._after(self._heard, self._heard_at)

    def lead(self, term):
        """What time it is for the leader of *term*, which must have applied all entries of earlier ones: its own clock may have gone
        faster than that of the leader before, and what that one has written last counts.

        Through the whole term it goes by one clock: what it says comes back to it with a delay, and to go on from that would make it
        ever slower.
        """
        with self._lock:
            now = self._after(self._heard, self._heard_at)
            if self._term != term:
                self._term, self._began, self._began_at = term, now, self._monotonic()
            return max(now, self._after(self._began, self._began_at))

    def _after(self, told, at):
        """What time it is now, if it was *told* at that moment of the clock of this process."""
        return told + int((self._monotonic() - at) * 1000)
