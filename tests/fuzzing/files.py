"""The files of a server, changed by a disk, a person or an enemy: opening them gives what they were, or one clear line."""

import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

from fuzzing import NUMBERS, Finding, rarely, scratch, spoiled
from raftd.config import Settings
from raftd.errors import RaftdError, StartupError
from raftd.kv import Get, KeyValueStore, Set, encode
from raftd.node import Node
from raftd.raft.configuration import Configuration, Member
from raftd.raft.core import Base, Unsaved
from raftd.raft.messages import COMMAND, NOOP, Entry, HardState
from raftd.storage import Identity, Storage

IDENTITY = Identity("n1", "id-n1", "c1")
MEMBERS = Configuration({"n1": Member("n1", "127.0.0.1:1", True, "id-n1"), "n2": Member("n2", "127.0.0.1:2", True, "id-n2")})
ENTRIES, KEYS, COMPACTED = 60, 20, 10
KV_ROOT = 1  # page of state.db, counted from 0
NAMES = ("raft.db", "state.db", "raft.db-wal", "state.db-wal", "raft.promised")
VALUES = (None, 0, 1, -1, 1 << 62, -(1 << 63), (1 << 63) - 1, 1.5, float("inf"), "", "n1", "é", b"", b"\xff", b"[]", b"[" * 3000,
          "x" * 1000, "[]", b"x" * 5000)
SCHEMA_EDITS = ("DROP TABLE {table}", "ALTER TABLE {table} ADD COLUMN more", "CREATE TABLE other (x)", "CREATE VIEW other AS SELECT 1",
                "CREATE TRIGGER {table} AFTER UPDATE ON {table} BEGIN DELETE FROM {table}; END", "CREATE INDEX other ON {table} (checksum)",
                "PRAGMA user_version = 0", "PRAGMA user_version = 3", "PRAGMA application_id = 0", "PRAGMA page_size = 512; VACUUM",
                "PRAGMA auto_vacuum = 1; VACUUM", "PRAGMA journal_mode = DELETE",
                "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE'",
                "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 2",
                "PRAGMA writable_schema = ON; DELETE FROM sqlite_schema")
FOREIGN = (
    "CREATE TABLE t (x); INSERT INTO t VALUES (1)", "CREATE TABLE log (log_index, term, kind, command, checksum)",
    "PRAGMA application_id = 0x72616674; PRAGMA user_version = 1; CREATE TABLE identity (a); CREATE TABLE hard_state (a);"
    " CREATE TABLE base (a); CREATE TABLE log (a); INSERT INTO identity VALUES (1)",
    "PRAGMA application_id = 0x7261666b; PRAGMA user_version = 2; CREATE TABLE kv (key); CREATE TABLE position (id)",
)


class Original:
    """Files of a server that was killed (with what its write-ahead logs had), and what they may be found to say.

    after_save   {index of the last entry: (hard state, base, entries)} after each save
    at           {index: {key: value}} of the state after each batch
    """

    def __init__(self, directory, killed):
        self.directory, self.killed, self.after_save, self.at = directory, killed, {}, {0: {}}
        live = tempfile.mkdtemp(dir=directory)
        storage, state = Storage.create(live, IDENTITY, MEMBERS), KeyValueStore(live)
        self._note(storage)
        self._write(storage, state)
        self.files = {}
        if killed:
            self._read(live)
        state.close()
        storage.close()
        if not killed:
            self._read(live)
        shutil.rmtree(live)

    def _write(self, storage, state):
        data, applied, rng = {}, 0, random.Random(7)
        for first in range(1, ENTRIES + 1, 3):
            entries = []
            for index in range(first, first + 3):
                key, value = f"k{index % KEYS}", b"%d:" % index + rng.randbytes(rng.choice((5, 500, 5000)))
                entries.append(Entry(index, 1 + index // 20, *((COMMAND, encode(Set(key, value))) if index % 5 else (NOOP, b""))))
                if index % 5:
                    data = {**data, key: value}
                self.at[index] = data
            base = Base(COMPACTED, 1, MEMBERS) if first == 31 else None
            storage.save(Unsaved(HardState(entries[-1].term, "n2"), base, first, tuple(entries)))
            self._note(storage)
            if first % 2:  # the state is a little behind
                batch = [entry for entry in self._all_entries if applied < entry.index <= first + 2]
                applied = batch[-1].index
                state.apply([(entry.index, entry.command) for entry in batch if entry.kind == COMMAND], applied, batch[-1].term,
                            MEMBERS.encode())
            if first == 25:
                state.checkpoint()
        self.applied = applied

    def _note(self, storage):
        saved = storage.load()
        self._all_entries = saved.entries
        self.after_save[saved.base.index + len(saved.entries)] = (saved.hard_state, saved.base, saved.entries)

    def _read(self, live):
        self.files = {path.name: path.read_bytes() for path in Path(live).iterdir()}

    def put(self, directory):
        for name, data in self.files.items():
            (directory / name).write_bytes(data)


def looked_at(directory):
    """What a start finds in *directory*: (hard state, base, entries, position, {key: value, or the error}); raises as a start does."""
    storage = state = None
    try:
        storage = Storage.open(directory)
        saved = storage.load()
        state = KeyValueStore(directory, may_create=not saved.base.index)
        connection = SimpleNamespace(call=None, interrupt=lambda: None, close=lambda: None)
        Node(storage.identity.name, "127.0.0.1:1", storage, SimpleNamespace(connection=lambda lane: connection), state, Settings())
        if storage.identity != IDENTITY:
            raise Finding(f"it is another server: {storage.identity}")
        found = {key: _value(state, key) for key in (f"k{number}" for number in range(KEYS))}
        if any(value is None for value in found.values()):
            state.verify()  # a key that has changed looks missing, until all is read once: a server does it soon after the start
        return *saved, state.position, found
    finally:
        for file in filter(None, (state, storage)):
            file.close()


def _value(state, key):
    try:
        return state.read(Get(key)).value
    except RaftdError as error:
        return error


class Files:
    """``with Files() as files: files.attack(rng)``. Raises Finding; ``counts`` says what was exercised."""

    name, unit = "files", "files"
    exercised = ("files", "refused", "opened as they were", "opened as they were before the last writes", "rows refused when read")

    def __enter__(self):
        self.counts, self._directory = Counter(), Path(scratch("files"))
        self._originals = [Original(self._directory, killed) for killed in (False, True)]
        return self

    def __exit__(self, *_):
        shutil.rmtree(self._directory, ignore_errors=True)

    def attack(self, rng):
        directory, original = self._directory / "case", rng.choice(self._originals)
        directory.mkdir()
        try:
            original.put(directory)
            done = [change(rng, directory) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
            try:
                self._look(directory, original)
            except Exception as error:
                raise Finding(f"{error!r}\n{'killed' if original.killed else 'closed'}, then {done}") from error
        finally:
            shutil.rmtree(directory)
        self.counts["files"] += 1

    def _look(self, directory, original):
        try:
            found = looked_at(directory)
        except (StartupError, RaftdError) as error:
            if not str(error).strip() or len(str(error).splitlines()) != 1:
                raise Finding(f"not one line: {error}") from error
            self.counts["refused"] += 1
            return
        hard_state, base, entries, position, values = found
        last = base.index + len(entries)
        if original.after_save.get(last) != (hard_state, base, entries):
            raise Finding(f"another log: {hard_state} {base} {last}")
        wrong = {key: value for key, value in values.items()
                 if not isinstance(value, RaftdError) and value != original.at[position.index].get(key)}
        if wrong:
            raise Finding(f"another state at {position.index}: {wrong}")
        newest = (last, position.index) == (ENTRIES, original.applied)
        self.counts["opened as they were" if newest else "opened as they were before the last writes"] += 1
        self.counts["rows refused when read"] += any(isinstance(value, RaftdError) for value in values.values())


# What is done to them


def change(rng, directory):
    """Do something to a file; returns what it was, for a person."""
    names = [name for name in NAMES if (directory / name).exists()]
    if not names:
        return "nothing, since nothing is left"
    name = rng.choice(names)
    how = rng.choice((flip, flip, write_block, write_block, move_page, truncate, extend, spoil, put_another, edit_header, edit_row,
                      edit_row, edit_row,
                      edit_schema, remove))
    return f"{how.__name__} {name}: {how(rng, directory / name)}"


def flip(rng, path):
    data, places = bytearray(path.read_bytes()), []
    for _ in range(rng.choice((1, 2, 10)) if data else 0):
        places.append(rng.randrange(len(data)))
        data[places[-1]] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return places


def write_block(rng, path):
    """Zeros, ones or anything over a part of it."""
    data = bytearray(path.read_bytes())
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 8, 100, 512, 4096))
    at -= at % 4096 if rarely(rng, 0.3) else 0
    data[at:at + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))[:max(0, len(data) - at)]
    path.write_bytes(data)
    return at, length


def move_page(rng, path):
    """One page takes the place of another, but not of the first with keys.

    A leaf in the place of the root is a whole tree to every look that costs less than to count all pages.
    """
    data = bytearray(path.read_bytes())
    pages = max(1, len(data) // 4096)
    here, there = rng.randrange(pages), rng.randrange(pages)
    if there == KV_ROOT and path.name == "state.db":
        there = 0
    data[there * 4096:there * 4096 + 4096] = data[here * 4096:here * 4096 + 4096]
    path.write_bytes(data)
    return here, there


def truncate(rng, path):
    size = rng.choice((0, 1, 16, 99, 100, 4096, max(0, path.stat().st_size - 1), rng.randint(0, path.stat().st_size)))
    os.truncate(path, size)
    return size


def extend(rng, path):
    data = rng.choice((bytes(4096), rng.randbytes(100), b"x", rng.randbytes(5000)))
    with open(path, "ab") as file:
        file.write(data)
    return len(data)


def spoil(rng, path):
    path.write_bytes(spoiled(rng, path.read_bytes()))


def put_another(rng, path):
    """Another file in its place: random bytes, another one of raftd's, a database of somebody else."""
    match rng.randrange(3):
        case 0:
            path.write_bytes(rng.choice((b"", rng.randbytes(5000), b"SQLite format 3\0" + rng.randbytes(8000))))
        case 1:
            path.write_bytes((path.parent / rng.choice([name for name in NAMES if (path.parent / name).exists()])).read_bytes())
        case 2:
            path.unlink()
            with closing(sqlite3.connect(path)) as connection:
                connection.executescript(statement := rng.choice(FOREIGN))
            return statement


def edit_header(rng, path):
    """The fields of SQLite's header, or of that of its log: page size, formats, counts, encoding."""
    data = bytearray(path.read_bytes().ljust(100, b"\0"))
    at = rng.randrange(16, 100)
    data[at:at + 4] = rng.choice((bytes(4), b"\xff" * 4, rng.choice(NUMBERS).to_bytes(8, "big")[-4:]))
    path.write_bytes(data)
    return at


def edit_row(rng, path):
    """A value of a row, with SQLite: all that SQLite itself would notice is right, and the checksum of the row is not.

    Not the removal of a key, nor of the last entry: like a row with a right checksum, that is what only raftd should write, and
    nothing tells it from that.
    """
    def edit(connection):
        table, = rng.choice(connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall() or [("log",)])
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        if not columns:  # what was done before has damaged the schema
            return "nothing"
        column, value = rng.choice(columns), rng.choice(VALUES)
        key, = rng.choice(connection.execute(f"SELECT {columns[0]} FROM {table}").fetchall() or [(1,)])
        connection.execute("PRAGMA ignore_check_constraints = ON")
        if rarely(rng, 0.2) and table != "kv" and (table, key) != ("log", ENTRIES):
            connection.execute(f"DELETE FROM {table} WHERE {columns[0]} = ?", (key,))
            return "delete", table, key
        connection.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE {columns[0]} = ?", (value, key))
        return table, column, key, value
    return _with_sqlite(path, edit)


def edit_schema(rng, path):
    def edit(connection):
        table = rng.choice(("log", "base", "hard_state", "identity") if path.name.startswith("raft") else ("kv", "position"))
        statement = rng.choice(SCHEMA_EDITS).format(table=table)
        connection.executescript(statement)
        return statement
    return _with_sqlite(path, edit)


def _with_sqlite(path, edit):
    main = path.with_name(path.name.removesuffix("-wal"))
    try:
        with closing(sqlite3.connect(main, isolation_level=None)) as connection:
            return edit(connection)
    except (sqlite3.Error, OverflowError) as error:  # what was done to it before does not let SQLite
        return error


def remove(rng, path):
    path.unlink()
