"""Copies of the state on their way between servers: one going out, one coming in.

Must not know: the live state.db, how chunks are sent. A copy is one file, complete in itself.
"""

import contextlib
import hashlib
import os
import threading
from contextlib import closing

from raftd import sqlitefile
from raftd.errors import DamagedFiles, RaftdError, StorageFailed
from raftd.kv import database
from raftd.sqlitefile import storage_errors

_PAGES_PER_STEP = 1024  # of a copy, between two looks at whether to go on


class BadSnapshot(RaftdError):
    """A received copy of the state is not what was announced; the old state is untouched."""


class Snapshot:
    """A copy of the state at (index, term), for another server.

    size    in bytes
    sha256  of the whole file
    """

    def __init__(self, path):
        self.path = path
        with storage_errors(path):
            with closing(database.open_alone(path)) as connection:
                self.index, self.term, self.configuration, _ = database.read_position(connection, path)
            self.size, self.sha256 = measure(path)

    def read(self, offset, length):
        """Up to *length* bytes from *offset*; safe from many threads; raises StorageFailed, also when closed."""
        with storage_errors(self.path), open(self.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)

    def close(self):
        """Remove the file; idempotent."""
        _remove(self.path)


class Incoming:
    """Collects a copy, chunk by chunk, in a file of its own; safe from many threads."""

    def __init__(self, path, index, term, size, sha256):
        self.path = path
        self.index, self.term, self.size, self.sha256 = index, term, size, sha256
        self.next_offset = 0
        self._lock = threading.Lock()
        with storage_errors(path):
            self._file = open(path, "wb", buffering=0)

    def announces(self, index, term, size, sha256):
        """True if this is a copy of just that."""
        return (self.index, self.term, self.size, self.sha256) == (index, term, size, sha256)

    @property
    def complete(self):
        return self.next_offset == self.size

    def write(self, offset, data):
        """Take *data* if it is what comes next, else ignore it. When the disk fails in the middle, what fitted is kept."""
        with self._lock, storage_errors(self.path):
            if offset != self.next_offset or self._file.closed:
                return
            if offset + len(data) > self.size:
                raise BadSnapshot(f"a snapshot of {self.size} bytes was announced, but there is more")
            rest = memoryview(data)
            while rest:
                written = os.pwrite(self._file.fileno(), rest, self.next_offset)
                self.next_offset += written
                rest = rest[written:]

    def finish(self):
        """Verify all that was announced and make the copy ready to take the place of state.db, durable.

        Raises BadSnapshot if it is not what was announced, StorageFailed if the disk fails.
        """
        with self._lock:
            if self._file.closed:
                raise BadSnapshot("a received snapshot was given up for another")
            self._file.close()
        with storage_errors(self.path, damage=BadSnapshot):
            if measure(self.path) != (self.size, self.sha256):
                raise BadSnapshot("a received snapshot has not the announced size and SHA-256")
            try:
                self._check_and_mark()
            except DamagedFiles as error:
                raise BadSnapshot(str(error)) from error
            sqlitefile.sync(self.path)

    def _check_and_mark(self):
        database.check_header(self.path)
        with closing(database.open_alone(self.path)) as connection:
            database.check_tables(connection, self.path)
            database.check_pages(connection, self.path)
            database.check_all(connection, self.path)
            database.read_totals(connection, self.path)
            position = database.read_position(connection, self.path)
            if (position.index, position.term) != (self.index, self.term):
                raise BadSnapshot(
                    f"a snapshot of index {self.index} term {self.term} was announced,"
                    f" but it stands at index {position.index} term {position.term}"
                )
            database.write_position(connection, position._replace(installed_index=position.index))

    def discard(self):
        """Remove the file, if it has not become state.db; idempotent."""
        with self._lock:
            self._file.close()
        _remove(self.path)


def copy(source, path, go_on):
    """Write what the connection *source* sees at this moment to a new file at *path*; later writes do not get in.

    *go_on* is called between the steps and may raise to give up; then, and on any error, no file is left.
    """
    try:
        with storage_errors(path), closing(database.open_alone(path, "rwc")) as target:
            target.execute("PRAGMA synchronous = OFF")  # worth nothing until complete; who needs it durable syncs it then
            source.execute("BEGIN")
            try:
                source.execute("SELECT 1 FROM position").fetchall()  # from here on all of the copy is of one moment
                source.backup(target, pages=_PAGES_PER_STEP, progress=lambda *_: go_on())
            finally:
                source.execute("COMMIT")
            target.execute("PRAGMA journal_mode = DELETE")  # the backup has copied that the source has a WAL
    except BaseException:
        _remove(path)
        raise


def measure(path):
    """(size in bytes, SHA-256) of the file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return file.tell(), digest


def _remove(path):
    try:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror}") from error
