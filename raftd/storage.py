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
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

from raftd import sqlitefile
from raftd.errors import REPLACE_NODE, DamagedFiles, StartupError, StorageFailed
from raftd.promised import Promised, Said
from raftd.raft.configuration import NOBODY, Configuration
from raftd.raft.core import Base
from raftd.raft.messages import KINDS, Entry, HardState
from raftd.sqlitefile import execute_rows, file_id, present, storage_errors

log = logging.getLogger(__name__)

APPLICATION_ID = 0x72616674  # "raft"
FORMAT = 1

_SCHEMA = """
CREATE TABLE identity (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL, id TEXT NOT NULL, cluster TEXT NOT NULL,
                       checksum INTEGER NOT NULL);
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

    @property
    def last_index(self):
        return self.base.index + len(self.entries)

    def term_at(self, index):
        """None for an entry that is compacted, or not there."""
        if index == self.base.index:
            return self.base.term
        return self.entries[index - self.base.index - 1].term if self.base.index < index <= self.last_index else None


def new_id():
    """A random identity for a cluster or for the files of a server."""
    return uuid.uuid4().hex


def _checksum(*fields, data=b""):
    return zlib.crc32(data, zlib.crc32(struct.pack(f">{len(fields)}q", *fields)))


def _hard_state_checksum(term, voted_for):
    return _checksum(term, data=b"-" if voted_for is None else b"+" + voted_for.encode())


def _identity_checksum(identity):
    return _checksum(data="\0".join(identity).encode())


def _identity_in(connection, path):
    """Who this server is. A bit that has flipped in it could make two servers of one name."""
    rows = connection.execute("SELECT name, id, cluster, checksum FROM identity").fetchall()
    if len(rows) != 1 or _identity_checksum(identity := Identity(*map(str, rows[0][:3]))) != rows[0][3]:
        raise DamagedFiles(f"{path}: damaged: the identity of the server is not as it was written; {REPLACE_NODE}")
    return identity


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


class Storage:
    """The open file. Not thread-safe: one thread saves; ``create`` or ``open`` make it."""

    def __init__(self, path, connection, identity):
        self.path, self.identity = path, identity
        self._connection = connection
        self._file_ids = _file_ids(path)
        self._last_index, = connection.execute(
            "SELECT coalesce((SELECT max(log_index) FROM log), (SELECT log_index FROM base), 0)").fetchone()
        self._promised = Promised(os.path.dirname(path), identity.id)

    @staticmethod
    def exists(directory):
        """True if *directory* holds the files of a server. Raises OSError when that cannot be told."""
        return present(os.path.join(directory, "raft.db"))

    @classmethod
    def create(cls, directory, identity, configuration=NOBODY):
        """Make the files of a new server, all of it or nothing; its log begins with *configuration* at index 0. Raises StorageFailed."""
        path = os.path.join(directory, "raft.db")
        draft, encoded = f"{path}.new", configuration.encode()
        with storage_errors(path, damage=DamagedFiles):
            with suppress(FileNotFoundError):  # of a start that was interrupted
                os.remove(draft)
            with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = OFF")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                connection.executescript(_SCHEMA)
                connection.execute("INSERT INTO identity VALUES (1, ?, ?, ?, ?)", (*identity, _identity_checksum(identity)))
                connection.execute("INSERT INTO hard_state VALUES (1, 0, NULL, ?)", (_hard_state_checksum(0, None),))
                connection.execute("INSERT INTO base VALUES (1, 0, 0, ?, ?)", (encoded, _checksum(0, 0, data=encoded)))
            sqlitefile.sync(draft)
            os.replace(draft, path)
            sqlitefile.sync_directory(path)
        return cls.open(directory)

    @classmethod
    def open(cls, directory):
        """Open what ``create`` made. Raises DamagedFiles when it is something else, StorageFailed when the disk refuses."""
        path = os.path.join(directory, "raft.db")
        with storage_errors(path, damage=DamagedFiles):
            if not present(path):
                raise DamagedFiles(f"{path} is missing; {REPLACE_NODE}")
            sqlitefile.check_header(path, APPLICATION_ID, FORMAT)
            sqlitefile.check_wal(path)
            connection = _connect(path)
            try:
                tables = {name for name, in connection.execute("SELECT name FROM sqlite_schema")}
                if tables != {"identity", "hard_state", "base", "log"}:
                    raise DamagedFiles(f"{path}: damaged: its tables are not those of format {FORMAT}; {REPLACE_NODE}")
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if busy:
                    raise StorageFailed(f"{path}: another program has it open")
                return cls(path, connection, _identity_in(connection, path))
            except BaseException:
                connection.close()
                raise

    def reopen(self):
        """Open the file again, after a save that failed. Raises StorageFailed while the disk still refuses, DamagedFiles if it
        is another file: an older one may have forgotten a vote."""
        self._connection.close()
        with storage_errors(self.path):
            if present(self.path) and file_id(self.path) != self._file_ids[0]:  # SQLite would move our WAL into it
                raise DamagedFiles(f"{self.path} was exchanged while raftd had it open; {REPLACE_NODE}")
            again = self.open(os.path.dirname(self.path))
            self._promised.close()
            self._connection, self._promised, self._last_index = again._connection, again._promised, again._last_index
            self._file_ids = again._file_ids

    def load(self):
        """All that was saved, checked. Raises DamagedFiles with one line that says what and what to do."""
        try:
            with storage_errors(self.path, damage=DamagedFiles):
                saved = Saved(self._load_hard_state(), base := self._load_base(), self._load_entries(base.index))
                self._check_nothing_is_missing(saved)
                return saved
        except sqlitefile.WRONG_TYPES as error:  # not even the types are right
            raise DamagedFiles(f"{self.path}: damaged: {error}; {REPLACE_NODE}") from error

    def _check_nothing_is_missing(self, saved):
        if missing := self._promised.missing_from(saved):
            raise DamagedFiles(f"{self.path}: {missing} was in it and is not: the file or its write-ahead log is cut short, gone, or older "
                               f"than this server; {REPLACE_NODE}")
        term, voted_for = saved.hard_state
        self._promised.write(Said(term, voted_for is not None, saved.last_index, saved.term_at(saved.last_index)))

    def _only_row(self, table, complaint):
        rows = self._connection.execute(f"SELECT * FROM {table}").fetchall()
        if len(rows) != 1:
            self._damaged(complaint)
        return rows[0]

    def _load_hard_state(self):
        _, term, voted_for, checksum = self._only_row("hard_state", "no term and vote")
        if checksum != _hard_state_checksum(term, voted_for):
            self._damaged("the term and vote do not match their checksum")
        return HardState(term, voted_for)

    def _load_base(self):
        _, index, term, configuration, checksum = self._only_row("base", "no beginning of the log")
        if checksum != _checksum(index, term, data=configuration):
            self._damaged("the beginning of the log does not match its checksum")
        return Base(index, term, Configuration.decode(configuration))

    def _load_entries(self, base_index):
        entries = []
        for row in self._connection.execute("SELECT * FROM log ORDER BY log_index"):
            index, term, kind, command, checksum = row
            if index != base_index + len(entries) + 1:
                self._damaged(f"entry {base_index + len(entries) + 1} of the log is missing")
            if checksum != _checksum(index, term, kind, data=command):
                self._damaged(f"entry {index} of the log does not match its checksum")
            if kind not in KINDS:
                raise StartupError(f"{self.path}: entry {index} of the log is of kind {kind}, which this raftd does not know; upgrade it")
            entries.append(Entry(index, term, kind, command))
        return entries

    def _damaged(self, what):
        raise DamagedFiles(f"{self.path}: damaged: {what}; {REPLACE_NODE}")

    def save(self, unsaved):
        """Make *unsaved* durable, all of it or none. Raises StorageFailed, and then the file must be opened again."""
        with storage_errors(self.path):
            overwrites = unsaved.log_from <= self._last_index
            if overwrites:
                self._promised.take_back(unsaved.log_from - 1, self._term_at(unsaved.log_from - 1))
            self._save(unsaved, overwrites)
            self._last_index = unsaved.last_index
            self._promised.write(_said_after(unsaved, self._promised.said))

    def _term_at(self, index):
        """0 for an entry that is compacted: nothing need be said of that."""
        [(term,)] = self._connection.execute("SELECT coalesce((SELECT term FROM log WHERE log_index = ?), 0)", (index,))
        return term

    def _save(self, unsaved, overwrites):
        with self._transaction() as execute:
            if unsaved.hard_state:
                execute("UPDATE hard_state SET term = ?, voted_for = ?, checksum = ?",
                        (*unsaved.hard_state, _hard_state_checksum(*unsaved.hard_state)))
            if overwrites:
                execute("DELETE FROM log WHERE log_index >= ?", (unsaved.log_from,))
            if unsaved.base:
                index, term, configuration = unsaved.base
                encoded = configuration.encode()
                execute("DELETE FROM log WHERE log_index <= ?", (index,))
                execute("UPDATE base SET log_index = ?, term = ?, configuration = ?, checksum = ?",
                        (index, term, encoded, _checksum(index, term, data=encoded)))
            execute_rows(self._connection, "INSERT INTO log",
                         [(*entry, _checksum(entry.index, entry.term, entry.kind, data=entry.command)) for entry in unsaved.entries])

    def lost(self, index, term):
        """This entry was promised and is not there: remember that, so that ``load`` refuses these files. Raises StorageFailed.

        *term* is 0 if it is not known.
        """
        self._promised.add(index, term)

    @contextmanager
    def _transaction(self):
        if not self._have_their_names():  # SQLite would go on writing into a file without one
            raise StorageFailed(f"{self.path} or its WAL was removed or exchanged while raftd had it open")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection.execute
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _have_their_names(self):
        try:
            return _file_ids(self.path) == self._file_ids
        except FileNotFoundError:
            return False

    def close(self):
        """Idempotent."""
        self._connection.close()
        self._promised.close()


def _said_after(unsaved, said):
    """What can be said once *unsaved* is on the disk, too, after *said*."""
    if unsaved.hard_state:
        term, voted_for = unsaved.hard_state
        said = said._replace(term=term, voted=voted_for is not None)
    if unsaved.entries:
        return said._replace(last_index=unsaved.entries[-1].index, last_term=unsaved.entries[-1].term)
    if unsaved.base and unsaved.base.index == unsaved.last_index:
        return said._replace(last_index=unsaved.base.index, last_term=unsaved.base.term)
    return said


def _file_ids(path):
    """Which file is *path* now, and which is its write-ahead log."""
    return file_id(path), file_id(f"{path}-wal")


def _connect(path):
    """A connection whose every commit is durable; raises StorageFailed if SQLite cannot do that with this file."""
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
