"""raft.db: the term, the vote, the log and the identity of one server, on SQLite. Knows nothing of Raft's rules.

WAL with ``synchronous=FULL``: what ``save`` has returned from is on the disk. A save that raised is neither there nor not
there; the connection is then good for nothing but ``close``, and the file must be opened and read again (``Storage.open``
writes what it finds to the main file and syncs it, because pages that a failed fsync left behind are not on the disk
although they can be read).
"""

import fcntl
import logging
import os
import sqlite3
import struct
import uuid
import zlib
from contextlib import contextmanager
from typing import NamedTuple

from raftd.errors import REPLACE_NODE, DamagedFiles, StartupError, StorageFailed
from raftd.raft.configuration import NOBODY, Configuration
from raftd.raft.core import Base
from raftd.raft.messages import Entry, HardState

log = logging.getLogger(__name__)

APPLICATION_ID = 0x72616674  # "raft"
FORMAT = 1

_SCHEMA = """
CREATE TABLE identity (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL, id TEXT NOT NULL, cluster TEXT NOT NULL);
CREATE TABLE hard_state (one INTEGER PRIMARY KEY CHECK (one = 1), term INTEGER NOT NULL, voted_for TEXT, checksum INTEGER NOT NULL);
CREATE TABLE base (one INTEGER PRIMARY KEY CHECK (one = 1), log_index INTEGER NOT NULL, term INTEGER NOT NULL,
                   configuration BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE log (log_index INTEGER PRIMARY KEY, term INTEGER NOT NULL, kind INTEGER NOT NULL, command BLOB NOT NULL,
                  checksum INTEGER NOT NULL);
"""


class Identity(NamedTuple):
    """name: in the cluster; id: of these very files, drawn once; cluster: which cluster they belong to."""

    name: str
    id: str
    cluster: str


class Saved(NamedTuple):
    """Everything that ``load`` found."""

    hard_state: HardState
    base: Base
    entries: list[Entry]


def new_id():
    """A random identity for a cluster or for the files of a server."""
    return uuid.uuid4().hex


def _checksum(*fields, data=b""):
    return zlib.crc32(data, zlib.crc32(struct.pack(f">{len(fields)}q", *fields)))


def _hard_state_checksum(term, voted_for):
    return _checksum(term, data=b"-" if voted_for is None else b"+" + voted_for.encode())


class DirectoryLock:
    """Keeps a second process out of a data path, for as long as it is held. Raises StartupError when another holds it."""

    def __init__(self, path):
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise StartupError(f"{path} is in use by another raftd process") from None

    def release(self):
        os.close(self._descriptor)


def sync_directory(path):
    """Make the names in *path* durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error):
    """True if this sqlite3.Error means that there is no room."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


class Storage:
    """The open file. Not thread-safe: one thread saves; ``create`` or ``open`` make it."""

    def __init__(self, path, connection, identity):
        self.path, self.identity = path, identity
        self._connection = connection
        self._file_id = _file_id(path)
        self._last_index = None  # of the rows, once loaded

    @staticmethod
    def exists(directory):
        """True if *directory* holds the files of a server."""
        return os.path.exists(os.path.join(directory, "raft.db")) and _is_initialized(os.path.join(directory, "raft.db"))

    @classmethod
    def create(cls, directory, identity, configuration=NOBODY):
        """Make the files of a new server, all at once; its log begins with *configuration* at index 0."""
        path = os.path.join(directory, "raft.db")
        connection = _connect(path)
        encoded = configuration.encode()
        with _transaction(connection, path) as execute:
            for statement in _SCHEMA.strip().split(";\n"):
                execute(statement)
            execute(f"PRAGMA application_id = {APPLICATION_ID}")
            execute(f"PRAGMA user_version = {FORMAT}")
            execute("INSERT INTO identity VALUES (1, ?, ?, ?)", identity)
            execute("INSERT INTO hard_state VALUES (1, 0, NULL, ?)", (_hard_state_checksum(0, None),))
            execute("INSERT INTO base VALUES (1, 0, 0, ?, ?)", (encoded, _checksum(0, 0, data=encoded)))
        sync_directory(directory)
        return cls(path, connection, identity)

    @classmethod
    def open(cls, directory):
        """Open what ``create`` made. Raises DamagedFiles when it is something else, StorageFailed when the disk refuses."""
        path = os.path.join(directory, "raft.db")
        if not os.path.exists(path):
            raise DamagedFiles(f"{path} is missing; {REPLACE_NODE}")
        connection = _connect(path)
        try:
            _check_format(connection, path)
            with _translated(path):
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                row = connection.execute("SELECT name, id, cluster FROM identity").fetchone()
            if busy:
                raise StorageFailed(f"{path}: another program has it open")
            if row is None:
                raise DamagedFiles(f"{path} is damaged: no identity")
            return cls(path, connection, Identity(*row))
        except BaseException:
            connection.close()
            raise

    def reopen(self):
        """Open the file again, after a save that failed. Raises StorageFailed while the disk still refuses."""
        self._connection.close()
        again = self.open(os.path.dirname(self.path))
        self._connection, self._file_id = again._connection, again._file_id

    def load(self):
        """All that was saved, checked. Raises DamagedFiles with one line that says what and what to do."""
        with _translated(self.path):
            rows = {name: self._connection.execute(f"SELECT * FROM {name}").fetchall() for name in ("hard_state", "base")}
            if any(len(found) != 1 for found in rows.values()):
                self._damaged("no term or no beginning of the log")
            (_, term, voted_for, checksum), = rows["hard_state"]
            if checksum != _hard_state_checksum(term, voted_for):
                self._damaged("the term and vote do not match their checksum")
            (_, index, base_term, configuration, checksum), = rows["base"]
            if checksum != _checksum(index, base_term, data=configuration):
                self._damaged("the beginning of the log does not match its checksum")
            entries = self._load_entries(index)
        return Saved(HardState(term, voted_for), Base(index, base_term, Configuration.decode(configuration)), entries)

    def _load_entries(self, base_index):
        entries = []
        for row in self._connection.execute("SELECT * FROM log ORDER BY log_index"):
            index, term, kind, command, checksum = row
            if index != base_index + len(entries) + 1:
                self._damaged(f"entry {base_index + len(entries) + 1} of the log is missing")
            if checksum != _checksum(index, term, kind, data=command):
                self._damaged(f"entry {index} of the log does not match its checksum")
            entries.append(Entry(index, term, kind, command))
        self._last_index = base_index + len(entries)
        return entries

    def _damaged(self, what):
        raise DamagedFiles(f"{self.path} is damaged: {what}; {REPLACE_NODE}")

    def save(self, unsaved):
        """Make *unsaved* durable, all of it or none. Raises StorageFailed, and then the file must be opened again."""
        if _file_id(self.path) != self._file_id:  # SQLite would go on writing into a file without a name
            raise StorageFailed(f"{self.path} was removed or exchanged while raftd had it open")
        with _transaction(self._connection, self.path) as execute:
            if unsaved.hard_state:
                execute("UPDATE hard_state SET term = ?, voted_for = ?, checksum = ?",
                        (*unsaved.hard_state, _hard_state_checksum(*unsaved.hard_state)))
            if unsaved.log_from <= self._last_index:
                execute("DELETE FROM log WHERE log_index >= ?", (unsaved.log_from,))
            if unsaved.base:
                index, term, configuration = unsaved.base
                encoded = configuration.encode()
                execute("DELETE FROM log WHERE log_index <= ?", (index,))
                execute("UPDATE base SET log_index = ?, term = ?, configuration = ?, checksum = ?",
                        (index, term, encoded, _checksum(index, term, data=encoded)))
            self._connection.executemany(
                "INSERT INTO log VALUES (?, ?, ?, ?, ?)",
                [(*entry, _checksum(entry.index, entry.term, entry.kind, data=entry.command)) for entry in unsaved.entries])
        self._last_index = unsaved.last_index

    def close(self):
        self._connection.close()


def _file_id(path):
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _connect(path):
    """A connection whose every commit is durable; raises DamagedFiles if SQLite cannot do that with this file."""
    with _translated(path):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            mode, = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = OFF")  # else each page that compaction frees is written once more, as zeros
            level, = connection.execute("PRAGMA synchronous").fetchone()
            if (mode, level) != ("wal", 2):
                raise StorageFailed(f"{path}: SQLite refuses a write-ahead log with full syncs ({mode}, {level})")
        except BaseException:
            connection.close()
            raise
    return connection


def _is_initialized(path):
    """False for the empty file that a crash before the first commit of ``create`` leaves."""
    if os.path.getsize(path) == 0 and not os.path.exists(path + "-wal"):
        return False
    connection = _connect(path)
    try:
        with _translated(path):
            tables, = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            version, = connection.execute("PRAGMA user_version").fetchone()
        return bool(tables or version)
    finally:
        connection.close()


def _check_format(connection, path):
    with _translated(path):
        application_id, = connection.execute("PRAGMA application_id").fetchone()
        version, = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise DamagedFiles(f"{path} is not a file of raftd; choose another data path")
    if version != FORMAT:
        raise DamagedFiles(f"{path} has format {version}, and this raftd knows only {FORMAT}; use the raftd that wrote it, or a newer one")


@contextmanager
def _transaction(connection, path):
    with _translated(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection.execute
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def _translated(path):
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StorageFailed(f"{path}: {error}", full=is_full(error)) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError, ValueError, TypeError, struct.error) as error:
        raise DamagedFiles(f"{path} is damaged: {error}; {REPLACE_NODE}") from error
