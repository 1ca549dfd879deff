"""What both databases need: is this file ours, what an error of SQLite means, and when a name or a file is on the disk.

Must not know: what is in the tables.
"""

import errno
import io
import os
import sqlite3
import struct
import sys
from array import array
from contextlib import closing, contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path

from raftd.errors import REPLACE_NODE, DamagedFiles, StorageFailed

_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_WAL_HEADER, _FRAME_HEADER = struct.Struct(">8I"), struct.Struct(">6I")
WRONG_TYPES = (ValueError, TypeError, AttributeError, struct.error)  # what reading a damaged row may raise, besides
_ROWS_AT_ONCE = (512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
PREPARED_STATEMENTS = 256  # that a connection which writes many rows keeps: all there are of these sizes
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def present(path):
    """True if there is something at *path*. Unlike ``os.path.exists``, it takes no error but "not there" for absence; raises OSError."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def check_header(path, application_id, format_number):
    """Raise DamagedFiles unless *path* begins as a database of ours, of a known format. Changes nothing, not even a foreign file's WAL.

    No connection to *path* may be open: closing a file of one's own drops SQLite's locks on it (fcntl(2)).
    """
    with open(path, "rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise DamagedFiles(f"{path}: damaged, or not a file of raftd: it does not begin as a SQLite database")
    user_version, found_id = struct.unpack_from(">I", header, 60)[0], struct.unpack_from(">I", header, 68)[0]
    if found_id != application_id:
        raise DamagedFiles(f"{path}: not a file of raftd (application_id {found_id:#x}); choose another data path")
    if user_version != format_number:
        todo = "upgrade" if user_version > format_number else "use the raftd that wrote it"
        raise DamagedFiles(f"{path}: format {user_version} is unknown to this raftd, which knows {format_number}; {todo}")


def check_wal(path):
    """Raise DamagedFiles if the write-ahead log of *path* has lost what was synced. For files whose every commit is synced.

    SQLite takes the first frame that does not match its checksum for the end of an interrupted write, and forgets all that comes
    after it without a word. But where each transaction is synced before the next begins, an interrupted one is the last: a frame
    that begins another after it proves that bits have flipped in what was durable (https://www.sqlite.org/walformat.html).
    """
    with open(f"{path}-wal", "rb") if present(f"{path}-wal") else io.BytesIO() as file:
        header = file.read(_WAL_HEADER.size)
        if len(header) < _WAL_HEADER.size or not any(header):
            return  # nothing was written yet
        magic, _, page_size, _, *salts, one, two = _WAL_HEADER.unpack(header)
        byteorder = {0x377F0682: "little", 0x377F0683: "big"}.get(magic)
        checksum = _wal_checksum(header[:24], (0, 0), byteorder)
        if not byteorder or checksum != (one, two):
            if any(file.read()):
                raise _damaged_wal(path)
            return  # it is synced before anything is written behind it: this one was interrupted, and nothing is lost
        intact, transactions = True, 0  # those that end after the first frame that is not intact
        while len(frame := file.read(_FRAME_HEADER.size + page_size)) == _FRAME_HEADER.size + page_size:
            _, pages_after_commit, *frame_salts, one, two = _FRAME_HEADER.unpack_from(frame)
            if frame_salts != salts:
                intact = False  # of an earlier round through the file, or damaged
                continue
            if intact:
                checksum = _wal_checksum(frame[_FRAME_HEADER.size:], _wal_checksum(frame[:8], checksum, byteorder), byteorder)
                intact = checksum == (one, two)
            elif transactions:
                raise _damaged_wal(path)
            transactions += bool(pages_after_commit) and not intact


def _damaged_wal(path, what="does not match its checksum"):
    return DamagedFiles(f"{path}-wal: damaged: what was on the disk for sure {what}; {REPLACE_NODE}")


def check_wal_is_not_behind(path, number):
    """Raise DamagedFiles if *path* alone is ahead of what it is together with its write-ahead log, by ``number(connection)``, which
    never falls.

    What has been moved into the file stays in the log until that is written anew. If its end is lost meanwhile, SQLite takes what is
    left for newer than the file, and mixes the two. No connection to *path* may be open, and none that writes may have been: when it
    is closed it moves what is left of the log into the file.
    """
    if not present(f"{path}-wal") or not os.path.getsize(f"{path}-wal"):
        return
    others_may_use = present(f"{path}-shm")
    try:
        alone, together = _look(path, "immutable=1", number), _look(path, "mode=ro", number)
    except (sqlite3.Error, DamagedFiles, *WRONG_TYPES):
        return  # a file in the middle of a checkpoint may be anything; what is damaged is found when it is opened
    finally:
        if not others_may_use:
            with suppress(FileNotFoundError):
                os.remove(f"{path}-shm")
    if together < alone:
        raise _damaged_wal(path, f"and is in {path} has been lost there")


def _look(path, how, number):
    with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?{how}", uri=True)) as connection:
        return number(connection)


def _wal_checksum(data, checksum, byteorder):
    """SQLite's, over pairs of 32-bit words."""
    words = array("I", data)
    if byteorder != sys.byteorder:
        words.byteswap()
    (one, two), pairs = checksum, iter(words)
    for first, second in zip(pairs, pairs, strict=True):
        one = one + first + two & 0xFFFFFFFF
        two = two + second + one & 0xFFFFFFFF
    return one, two


@contextmanager
def storage_errors(path, damage=StorageFailed):
    """Let errors of SQLite and of the system out as StorageFailed, those that mean a damaged file as *damage*."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # Python's own complaint that a text is not UTF-8 has no code: that too is damage. So is a complaint of SQLite itself that
        # quotes such a text, which Python then cannot read.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            advice = f"; if it is so again at the next start, {REPLACE_NODE}" if damage is DamagedFiles else ""
            raise damage(f"{path}: damaged: {' '.join(str(error).split())}{advice}") from error
        full, trouble = (True, "") if code == sqlite3.SQLITE_FULL else _trouble(path)
        raise StorageFailed(f"{path}: {error}{trouble}", full=full) from error
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror or error}", full=error.errno in _FULL_ERRNOS) from error


def _trouble(path):
    """(whether the disk is full, what is wrong with it): SQLite knows of an I/O error, and says no more of it."""
    try:
        status = os.statvfs(os.path.dirname(path))
    except OSError:
        return False, ""
    if status.f_flag & os.ST_RDONLY:
        return False, " (the file system is read-only)"
    if status.f_bavail == 0:
        return True, " (the disk is full)"
    if status.f_files and status.f_favail == 0:
        return True, " (no inode is free)"
    return False, ""


def execute_rows(cursor, insert, rows):
    """``INSERT ... VALUES`` *rows* (tuples of one length), many with one statement.

    The interpreter's lock is given up and taken again for each statement: on a busy server that, not SQLite, is the time of a batch.
    """
    for some in _pieces(rows):
        cursor.execute(_statement(insert, len(some[0]), len(some)), list(chain.from_iterable(some)))


def execute_in(cursor, statement, keys):
    """*statement* followed by ``IN`` and *keys*, many at a time, for the same reason; returns the rows that come of it."""
    return [row for some in _pieces(keys) for row in cursor.execute(_statement_in(statement, len(some)), some)]


def _pieces(items):
    """*items*, a list, piece by piece; of few sizes, so that the prepared statements are found again."""
    start = 0
    for count in _ROWS_AT_ONCE:
        while len(items) - start >= count:
            yield items[start:start + count]
            start += count


@cache
def _statement_in(statement, count):
    return f"{statement} IN ({', '.join('?' * count)})"


@cache
def _statement(insert, width, count):
    row = f"({', '.join('?' * width)})"
    return f"{insert} VALUES {', '.join([row] * count)}"


def file_id(path):
    """Which file has this name now."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def check_is_still(known, path):
    """Raise StorageFailed if another file has the name *path* than the one *known* by its ``file_id``: SQLite does not notice."""
    if file_id(path) != known:
        raise StorageFailed(f"{path}: another file has taken its place; restart raftd")


def sync_directory(path):
    """Make the entry of *path* in its directory durable."""
    sync(os.path.dirname(path))


def sync(path):
    """Make the file, or directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
