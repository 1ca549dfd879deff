"""The format of state.db: its tables, how it is opened, and how damage is told from a healthy file.

Must not know: what a command means, threads, how copies travel. A row carries a checksum, because SQLite itself does not notice
when a bit of it flips.

A value is kept once, in the change that wrote it. A key points to its latest change; who watches reads the changes in their order.
"""

import math
import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from raftd import sqlitefile
from raftd.errors import DamagedFiles, StorageFailed

APPLICATION_ID = 0x7261666B  # "rafk"
FORMAT = 2  # user_version
PUT, DELETED, EXPIRED = 1, 2, 3
CHANGE_KINDS = {PUT: "put", DELETED: "delete", EXPIRED: "expire"}
MOST_CHANGES_OF_AN_ENTRY = 1_000_000  # that have an id
LARGEST_ID = 2**63 - 1  # of SQLite; no log comes near it

_SCHEMA = {
    "kv": "CREATE TABLE kv (key TEXT PRIMARY KEY, change_id INTEGER NOT NULL, created_index INTEGER NOT NULL,"
    " version INTEGER NOT NULL, expires_at INTEGER NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
    "expiring": "CREATE INDEX expiring ON kv (expires_at) WHERE expires_at > 0",
    "changes": "CREATE TABLE changes (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, previous_index INTEGER NOT NULL,"
    " checksum INTEGER NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL)",
    "requests": "CREATE TABLE requests (id INTEGER PRIMARY KEY, key TEXT NOT NULL, digest BLOB NOT NULL, outcome BLOB NOT NULL,"
    " checksum INTEGER NOT NULL)",
    "request_keys": "CREATE UNIQUE INDEX request_keys ON requests (key)",
    "position": "CREATE TABLE position (id INTEGER PRIMARY KEY CHECK (id = 1), applied_index INTEGER NOT NULL,"
    " applied_term INTEGER NOT NULL, configuration BLOB NOT NULL, installed_index INTEGER NOT NULL, checksum INTEGER NOT NULL)",
    "totals": "CREATE TABLE totals (id INTEGER PRIMARY KEY CHECK (id = 1), time INTEGER NOT NULL, keys INTEGER NOT NULL,"
    " requests INTEGER NOT NULL, kept_requests INTEGER NOT NULL,"
    " history_start INTEGER NOT NULL, history_changes INTEGER NOT NULL, history_bytes INTEGER NOT NULL, checksum INTEGER NOT NULL)",
    # For people who open the file in a shell.
    "items": "CREATE VIEW items AS SELECT kv.key, value, (change_id + 999999) / 1000000 AS modified_index, created_index, version,"
    " expires_at FROM kv JOIN changes ON changes.id = change_id",
}
# The columns of a row in the order of what checks it.
HEAD = "change_id, created_index, version, expires_at, kv.checksum"
CHANGE = "changes.id, kind, previous_index, changes.checksum, changes.key, value"
WITH_CHANGES = "LEFT JOIN changes ON changes.id = change_id"
REQUEST = "id, digest, outcome, requests.checksum"
# So many there must be as these say.
_COUNTED = ("keys", "history_changes", "kept_requests", "kept_requests",
            "(SELECT count(*) FROM kv WHERE +expires_at > 0)")  # the + keeps SQLite from using the index
_COUNTS = ("kv NOT INDEXED", "changes WHERE id > history_start", "requests NOT INDEXED", "requests INDEXED BY request_keys",
           "kv INDEXED BY expiring WHERE expires_at > 0")
_ROW_BYTES = 100  # what a row costs besides its value
_WRITER_CACHE_KIB, _READER_CACHE_KIB = 16 << 10, 2 << 10
WAL_BYTES = 64 << 20  # what a reset WAL may keep of the disk
_WRITER_WAITS_SECONDS, _READER_WAITS_SECONDS = 0.05, 5.0

_POSITION, _TOTALS = struct.Struct(">qqq"), struct.Struct(">7q")
_HEAD, _CHANGE, _REQUEST = struct.Struct(">4q"), struct.Struct(">3q"), struct.Struct(">q")


class Position(NamedTuple):
    """Where in the log the keys and values stand.

    index, term      of the last applied entry; 0 before the first
    configuration    the configuration at that entry, in bytes of its owner
    installed_index  the index at which another server's state was installed here, 0 if none ever was
    """

    index: int
    term: int
    configuration: bytes
    installed_index: int


class Totals(NamedTuple):
    """What the state knows besides keys and changes.

    time             of the clock of the leaders, in milliseconds: see ``raftd.kv.clock``
    keys             how many there are
    requests         how many there were with an idempotency key; they are numbered from 1
    kept_requests    how many are in the table
    history_start    no change after this id is missing; of those up to it only the ones that are the latest of a key are kept
    history_changes, history_bytes  how many come after it, and how large their values are together
    """

    time: int = 0
    keys: int = 0
    requests: int = 0
    kept_requests: int = 0
    history_start: int = 0
    history_changes: int = 0
    history_bytes: int = 0


class Head(NamedTuple):
    """A key as it is, but for the value, which stands in the change. ``expires_at``: when the time of the state is that; 0: never."""

    change_id: int
    created_index: int
    version: int
    expires_at: int

    @property
    def modified_index(self):
        return index_of(self.change_id)


class Change(NamedTuple):
    """What has become of a key. ``previous_index``: what wrote it before, 0 if it was not there."""

    id: int
    kind: int
    previous_index: int
    key: str
    value: bytes


def change_id(index, more=0):
    """The id of a change made by the entry at *index*, after which that entry makes so many *more*: ids rise with the order."""
    return min(index * MOST_CHANGES_OF_AN_ENTRY - more, LARGEST_ID)


def index_of(id_of_change):
    """The index of the entry that made this change."""
    return -(-id_of_change // MOST_CHANGES_OF_AN_ENTRY)


def seconds_left(expires_at, now):
    """Until that time of the state, None if it is never; ``now()`` tells the time."""
    return max(0, expires_at - now()) / 1000 if expires_at else None


def end_of(prefix):
    """What comes, in the order of SQLite, after all texts that begin with *prefix*, and before all others that come after it."""
    prefix = prefix.rstrip("\U0010ffff")
    if not prefix:
        return b""  # a blob comes after all text
    last = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(0xE000 if last == 0xD800 else last)  # there are no characters between


def create(path):
    """Make a new, empty file at *path*, all of it or nothing: an empty file is never a new one, but a damaged one."""
    draft = f"{path}.new"
    with closing(_connect(draft, "rwc", _WRITER_WAITS_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        create_tables(connection)
    sqlitefile.sync(draft)
    os.replace(draft, path)
    sqlitefile.sync_directory(path)


def create_tables(connection):
    """Make the tables of a state in which nothing has happened."""
    for statement in _SCHEMA.values():
        connection.execute(statement)
    write_position(connection, Position(0, 0, b"", 0))
    write_totals(connection, Totals())


def check_header(path):
    """Raise DamagedFiles unless *path* begins as a state.db of a known format; see ``sqlitefile.check_header``."""
    sqlitefile.check_header(path, APPLICATION_ID, FORMAT)


def check_tables(connection, path):
    """Raise DamagedFiles unless the tables are ours, to the letter."""
    if dict(connection.execute("SELECT name, sql FROM sqlite_schema")) != _SCHEMA:
        raise DamagedFiles(f"{path}: damaged: its tables are not those of format {FORMAT}")


def check_size(connection, path):
    """Raise DamagedFiles if the file, its WAL empty, is too short: SQLite takes a last page that is cut short for whole."""
    (size,) = connection.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()
    if os.path.getsize(path) < size:
        raise DamagedFiles(f"{path}: damaged: {os.path.getsize(path)} of {size} bytes are left")


def check_pages(connection, path):
    """Raise DamagedFiles unless SQLite finds the structure of the whole file sound; takes time in proportion to its size."""
    [(verdict,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
    if verdict != "ok":
        raise DamagedFiles(f"{path}: damaged: {' '.join(verdict.split())}")


class _Walk(NamedTuple):
    """A way through all rows of a table: what to read, the column it is in the order of, what comes before all, what checks a row."""

    rows: str
    by: str
    first: Any
    check: Callable


def check_all(connection, path):
    """Raise DamagedFiles unless every row is there, and as it was written."""
    check_counts(connection, path)
    for walk in walks():
        check_rows(connection, path, walk)


def check_counts(connection, path):
    """Raise DamagedFiles unless there are as many rows, and entries of indexes, as there must be.

    Where rows have been there may be a page of another table, in which all is as it was written.
    """
    counts = [f"(SELECT count(*) FROM {rows})" for rows in _COUNTS]
    rows = connection.execute(f"SELECT {', '.join([*_COUNTED, *counts])} FROM totals").fetchall()
    if len(rows) != 1 or rows[0][:len(_COUNTS)] != rows[0][len(_COUNTS):]:
        raise DamagedFiles(f"{path}: damaged: keys, changes or requests are missing")


def walks():
    """The ways on which every row, and every entry of an index, is passed."""
    is_indexed = "expires_at = 0 OR EXISTS (SELECT 1 FROM kv AS other INDEXED BY expiring" \
                 " WHERE other.expires_at > 0 AND other.expires_at = kv.expires_at AND other.key = kv.key)"
    return (
        _Walk(f"SELECT kv.key, {HEAD}, changes.key, {is_indexed} FROM kv {WITH_CHANGES}",
              "kv.key", "", _check_key),
        _Walk(f"SELECT {CHANGE} FROM changes", "id", -1, check_change),
        _Walk(f"SELECT key, {REQUEST} FROM requests INDEXED BY request_keys", "key", "", check_request),
    )


def check_rows(connection, path, walk, upwards=True, beyond=None, most_bytes=math.inf):
    """Raise DamagedFiles unless the rows of *walk* *beyond* that one (None: all) are as they were written, and in order.

    Stops after *most_bytes*; returns what names the last row that was looked at, None when all were.
    """
    everything = walk.first if upwards else b""  # in SQLite's order a blob comes after all else
    order = f"> ? ORDER BY {walk.by}" if upwards else f"< ? ORDER BY {walk.by} DESC"
    size, last = 0, beyond
    for row in connection.execute(f"{walk.rows} WHERE {walk.by} {order}", (everything if last is None else last,)):
        try:
            walk.check(path, *row)
        except StorageFailed as error:
            raise DamagedFiles(str(error)) from error
        if last is not None and not (row[0] > last if upwards else row[0] < last):
            raise DamagedFiles(f"{path}: damaged: {row[0]!r} comes after {last!r}: a page of the file is not where it was")
        size, last = size + _ROW_BYTES + (len(row[-1]) if type(row[-1]) is bytes else 0), row[0]
        if size > most_bytes:
            return last
    return None


def open_writer(path):
    """The connection that writes *path*: WAL, and never a checkpoint of its own, since SQLite drops the errors of those."""
    connection = _connect(path, "rw", _WRITER_WAITS_SECONDS)
    try:
        modes = [_pragma(connection, "journal_mode", "WAL"), _pragma(connection, "synchronous", "NORMAL")]
        if modes != ["wal", 1]:
            raise StorageFailed(f"{path}: SQLite cannot keep a write-ahead log here (journal_mode and synchronous are {modes})")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        connection.execute("PRAGMA secure_delete = OFF")  # else the pages of a replaced value are written once more, as zeros
        connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path):
    """A connection that sees committed state only and cannot change the file."""
    connection = _connect(path, "ro", _READER_WAITS_SECONDS)
    connection.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
    return connection


def open_alone(path, mode="rw"):
    """A connection to a file nobody else has open, without WAL: when it is closed, the file is complete in itself."""
    connection = _connect(path, mode, _WRITER_WAITS_SECONDS)
    connection.execute("PRAGMA journal_mode = DELETE")
    return connection


def checkpoint(connection, mode):
    """Move the WAL into the file and sync it; returns (nothing is left in the WAL to move, nobody stood in the way)."""
    busy, frames, moved = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return frames >= 0 and frames == moved, not busy


def read_position(connection, path):
    """The one row of the table; raises DamagedFiles if it is not as it was written."""
    rows = connection.execute(
        "SELECT applied_index, applied_term, configuration, installed_index, checksum FROM position"
    ).fetchall()
    if len(rows) == 1:
        *fields, checksum = rows[0]
        position = Position(*fields)
        if [type(field) for field in position] == [int, int, bytes, int] and _position_checksum(position) == checksum:
            return position
    raise DamagedFiles(f"{path}: damaged: the index at which it stands cannot be read")


def write_position(cursor, position):
    cursor.execute(
        "INSERT INTO position VALUES (1, :index, :term, :configuration, :installed_index, :checksum)"
        " ON CONFLICT (id) DO UPDATE SET applied_index = :index, applied_term = :term,"
        " configuration = :configuration, installed_index = :installed_index,"
        " checksum = :checksum",
        {**position._asdict(), "checksum": _position_checksum(position)},
    )


def _position_checksum(position):
    return crc32(position.configuration, crc32(_POSITION.pack(position.index, position.term, position.installed_index)))


def read_totals(connection, path):
    """The one row of the table; raises DamagedFiles if it is not as it was written."""
    rows = connection.execute(f"SELECT {', '.join(Totals._fields)}, checksum FROM totals").fetchall()
    if len(rows) == 1 and {type(field) for field in rows[0]} == {int} and crc32(_TOTALS.pack(*rows[0][:-1])) == rows[0][-1]:
        return Totals(*rows[0][:-1])
    raise DamagedFiles(f"{path}: damaged: the totals cannot be read")


def write_totals(cursor, totals):
    cursor.execute("REPLACE INTO totals VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)", (*totals, crc32(_TOTALS.pack(*totals))))


# Rows and their checksums, -1 for what cannot be such a row. A check raises StorageFailed if the row is not as it was written.


def head_checksum(key, change_id, created_index, version, expires_at):
    try:
        return crc32(_HEAD.pack(change_id, created_index, version, expires_at) + key.encode())
    except sqlitefile.WRONG_TYPES:
        return -1


def change_checksum(id, kind, previous_index, key, value):
    try:
        return crc32(value, crc32(_CHANGE.pack(id, kind, previous_index) + key.encode()))
    except sqlitefile.WRONG_TYPES:
        return -1


def request_checksum(key, id, digest, outcome):
    try:
        return crc32(outcome, crc32(_REQUEST.pack(id) + digest + key.encode()))
    except sqlitefile.WRONG_TYPES:
        return -1


def check_head(path, key, change_id, created_index, version, expires_at, checksum):
    if head_checksum(key, change_id, created_index, version, expires_at) != checksum:
        raise damaged_row(path, key)


def check_change(path, id, kind, previous_index, checksum, key, value):
    if change_checksum(id, kind, previous_index, key, value) != checksum:
        raise damaged_row(path, key)


def value_in(path, key, change):
    """The value in *change*, the columns CHANGE of the latest change of *key*, or None if it is not there."""
    if change is None or change[4] != key:
        raise damaged_row(path, key)
    check_change(path, *change)
    return change[5]


def check_request(path, key, id, digest, outcome, checksum):
    if request_checksum(key, id, digest, outcome) != checksum:
        raise StorageFailed(f"{path}: damaged: what came of the request with the idempotency key {key!r} is not as it was written")


def _check_key(path, key, *head_and_checksum):
    *head, changed_key, expires = head_and_checksum
    check_head(path, key, *head)
    if changed_key != key or not expires:
        raise damaged_row(path, key)


def damaged_row(path, key):
    return StorageFailed(f"{path}: damaged: the row of key {key!r} is not as it was written")


def _connect(path, mode, timeout):
    uri = f"{Path(path).absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False,
                           cached_statements=sqlitefile.PREPARED_STATEMENTS)


def _pragma(connection, name, value):
    """Set a pragma; returns what SQLite made of it."""
    connection.execute(f"PRAGMA {name} = {value}").fetchall()
    return connection.execute(f"PRAGMA {name}").fetchone()[0]
