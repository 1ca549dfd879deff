"""Removes keys when their time is over: the leader proposes it, by the time of the state, and so every server does it at the same place
of the log.

Must not know: HTTP, what an entry does to the tables. ``raftd.kv.clock`` says what time it is.
"""

import logging
import threading
import time

from raftd.errors import RaftdError
from raftd.kv import LIMITS, Expire, Request, encode

log = logging.getLogger(__name__)

GROUP_SECONDS = 0.05  # keys that expire within this time go with one entry
RETRY_SECONDS = 0.1
PROPOSE_SECONDS = 5.0
# While keys wait for their time, the state is told what time it is, so that it is not much earlier again after a restart of all servers,
# or of who leads next: whenever a tenth of what the next one has left is over, within these limits.
TOLD_SHARE, LEAST_TOLD_SECONDS, MOST_TOLD_SECONDS = 0.1, 1.0, 10.0


class Expiry:
    """Does so for *node* and its state machine, a ``KeyValueStore``, from ``start`` to ``stop``; a thread that sleeps until it is time."""

    def __init__(self, node):
        self._node, self._state = node, node.state_machine
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="expiry")
        self._state.subscribe(self._applied)
        self._deadline = None

    def start(self):
        """Returns self."""
        self._thread.start()
        return self

    def stop(self):
        """Once the node stops. Waits for the thread."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def _applied(self):
        """In the applier's thread, after each batch."""
        if self._state.next_deadline != self._deadline:
            self._deadline = self._state.next_deadline
            self._wake.set()

    def _run(self):
        while not self._stopping.is_set() and (term := self._node.wait_to_lead()) is not None:
            self._wake.clear()
            deadline = self._state.next_deadline
            if deadline is None and not self._stopping.is_set():
                self._wake.wait()
            if deadline is None:
                continue
            now = self._state.clock.lead(term)
            due = min(deadline, self._tell_at(deadline))
            if due > now:
                self._wake.wait((due - now) / 1000)
                continue
            self._propose(now)

    def _tell_at(self, deadline):
        """When the state is told the time at the latest."""
        told = self._state.time
        seconds = min(max(TOLD_SHARE * (deadline - told) / 1000, LEAST_TOLD_SECONDS), MOST_TOLD_SECONDS)
        return told + int(seconds * 1000)

    def _propose(self, now):
        """Others have as much of the time as this takes: very many keys may expire at the same moment."""
        began = time.monotonic()
        try:
            applied = self._node.propose(encode(Request(Expire(), now)), PROPOSE_SECONDS)
            taken = time.monotonic() - began
            pause = taken if applied.result.detail == LIMITS.expired_at_once else max(GROUP_SECONDS, taken)
        except RaftdError as error:
            log.debug("expiry was put off reason=%s", error)
            pause = RETRY_SECONDS
        except Exception:  # without this thread nothing would expire any more, and nobody would know
            log.exception("expiry has failed, and is tried again")
            pause = RETRY_SECONDS
        self._stopping.wait(pause)
