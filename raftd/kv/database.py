"""The format of state.db: its tables, how it is opened, and how damage is told from a healthy file.

Must not know: what a command means, threads, how copies travel. A row carries a checksum, because SQLite itself does not notice
when a bit of it flips.
"""

import math
import os
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from raftd import sqlitefile
from raftd.errors import DamagedFiles, StorageFailed

APPLICATION_ID = 0x7261666B  # "rafk"
FORMAT = 1  # user_version

_SCHEMA = {
    "kv": "CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB NOT NULL, modified_index INTEGER NOT NULL,"
    " checksum INTEGER NOT NULL) WITHOUT ROWID",
    "position": "CREATE TABLE position (id INTEGER PRIMARY KEY CHECK (id = 1), applied_index INTEGER NOT NULL,"
    " applied_term INTEGER NOT NULL, configuration BLOB NOT NULL, installed_index INTEGER NOT NULL, checksum INTEGER NOT NULL)",
}
_ROWS_ABOVE = "SELECT key, value, modified_index, checksum FROM kv WHERE key > ? ORDER BY key"
_ROWS_BELOW = "SELECT key, value, modified_index, checksum FROM kv WHERE key < ? ORDER BY key DESC"
_ROW_BYTES = 100  # what a row costs besides its value
_WRITER_CACHE_KIB, _READER_CACHE_KIB = 16 << 10, 2 << 10
_WAL_KEPT_BYTES = 64 << 20  # what a reset WAL may keep of the disk; it grows beyond only while a long reader holds it
_WRITER_WAITS_SECONDS, _READER_WAITS_SECONDS = 0.05, 5.0

_INDEX = struct.Struct(">q")
_POSITION = struct.Struct(">qqq")


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


def create(path):
    """Make a new, empty file at *path*, all of it or nothing: an empty file is never a new one, but a damaged one."""
    draft = f"{path}.new"
    with closing(_connect(draft, "rwc", _WRITER_WAITS_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        for statement in _SCHEMA.values():
            connection.execute(statement)
        write_position(connection, Position(0, 0, b"", 0))
    sqlitefile.sync(draft)
    os.replace(draft, path)
    sqlitefile.sync_directory(path)


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


def check_rows(connection, path, upwards=True, beyond=None, most_bytes=math.inf):
    """Raise DamagedFiles unless the rows *beyond* that key (None: all) are as they were written, in the order of their keys.

    Stops after *most_bytes*; returns the last key that was looked at, None when all were.
    """
    statement, everything = (_ROWS_ABOVE, "") if upwards else (_ROWS_BELOW, b"")  # in SQLite's order a blob comes after all text
    size, last = 0, beyond
    for key, value, modified_index, checksum in connection.execute(statement, (everything if last is None else last,)):
        try:
            check_row(path, key, value, modified_index, checksum)
        except StorageFailed as error:
            raise DamagedFiles(str(error)) from error
        if last is not None and not (key > last if upwards else key < last):
            raise DamagedFiles(f"{path}: damaged: key {key!r} comes after {last!r}: a page of the file is not where it was")
        size, last = size + len(value) + _ROW_BYTES, key
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
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
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


def row_checksum(key, value, modified_index):
    return crc32(value, crc32(_INDEX.pack(modified_index) + key.encode()))


def check_row(path, key, value, modified_index, checksum):
    """Raise StorageFailed if the row of *key* is not as it was written."""
    intact = (type(key), type(value), type(modified_index)) == (str, bytes, int) and row_checksum(key, value, modified_index) == checksum
    if not intact:
        raise StorageFailed(f"{path}: damaged: the row of key {key!r} is not as it was written")


def _connect(path, mode, timeout):
    uri = f"{Path(path).absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def _pragma(connection, name, value):
    """Set a pragma; returns what SQLite made of it."""
    connection.execute(f"PRAGMA {name} = {value}").fetchall()
    return connection.execute(f"PRAGMA {name}").fetchone()[0]
