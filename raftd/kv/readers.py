"""The connections that read state.db, and the gate that keeps them away while the file is exchanged.

Must not know: what is read.
"""

import threading
from contextlib import contextmanager

from raftd.errors import Stopping
from raftd.kv.database import open_reader
from raftd.sqlitefile import check_is_still, storage_errors

_MOST_IDLE = 16


class Readers:
    """A pool of read-only connections, one for each reader at a time; safe from many threads.

    ``file_id`` says which file is the right one; whoever exchanges it sets it.
    """

    def __init__(self, path):
        self._path, self.file_id = path, None
        self._changed = threading.Condition()
        self._idle = []
        self._busy = 0
        self._excluded = False
        self._closed = False

    @property
    def are_to_go(self):
        """True if a long reader should give up, since others wait for it to go."""
        return self._excluded or self._closed

    def read(self, look, *args):
        """What ``look(connection, *args)`` returns. Waits while readers are excluded; raises Stopping when closed, StorageFailed."""
        connection = self._take()
        try:
            connection = connection or self._open()
            return look(connection, *args)
        except BaseException:
            if connection:
                connection.close()
                connection = None
            with storage_errors(self._path):
                raise
        finally:
            self._give_back(connection)

    @contextmanager
    def excluded(self):
        """Inside, no reading connection is open; who wants to read waits."""
        with self._changed:
            self._excluded = True
        try:
            self._close_all()
            yield
        finally:
            with self._changed:
                self._excluded = False
                self._changed.notify_all()

    def close(self):
        """Refuse new readers, wait for those that read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._close_all()

    def _open(self):
        connection = open_reader(self._path)
        try:
            check_is_still(self.file_id, self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take(self):
        with self._changed:
            while self._excluded and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Stopping()
            self._busy += 1
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection):
        if connection is not None and len(self._idle) >= _MOST_IDLE:  # about: many may come to that at once
            connection.close()
            connection = None
        with self._changed:
            if connection is not None:
                self._idle.append(connection)
            self._busy -= 1
            if not self._busy:
                self._changed.notify_all()

    def _close_all(self):
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
