"""The key/value store: what it keeps over crashes, damage, full disks and exchanges of its file."""

import contextlib
import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from copies import transfer
from raftd import sqlitefile
from raftd.errors import DamagedFiles, StartupError, Stopping, StorageFailed
from raftd.kv import (
    BadSnapshot,
    Conditions,
    Delete,
    Found,
    Get,
    KeyValueStore,
    Outcome,
    Position,
    Request,
    Set,
    Transaction,
    UnknownCommand,
    database,
    encode,
)
from raftd.kv import execution
from raftd.kv import store as store_module
from raftd.kv.snapshot import copy

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = b'{"members": "n1"}'
DEADLINE_SECONDS = 30

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def opened(tmp_path):
    """Open stores that the test need not close."""
    stores = []

    def open_store(directory=tmp_path):
        Path(directory).mkdir(exist_ok=True)
        stores.append(KeyValueStore(directory))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(opened):
    return opened()


def apply(store, *commands, term=1, configuration=CONFIGURATION):
    """Apply *commands* as the entries after the last one."""
    first = store.position.index + 1
    batch = [(first + offset, encode(command)) for offset, command in enumerate(commands)]
    return store.apply(batch, first + max(len(commands), 1) - 1, term, configuration)


def value(store, key):
    return store.read(Get(key)).value


def files(directory):
    return sorted(path.name for path in Path(directory).iterdir())


def open_files(directory):
    """What this process holds open under *directory*."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [link for link in links if link.startswith(str(directory))]


def edit(directory, *statements):
    """Change the file of a closed store behind its back."""
    with contextlib.closing(sqlite3.connect(Path(directory) / "state.db")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def run_python(script, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True, **options
    )


def wait_until(condition):
    """True as soon as *condition* holds, False at the deadline."""
    pause = threading.Event()
    for _ in range(DEADLINE_SECONDS * 200):
        if condition():
            return True
        pause.wait(0.005)
    return False


# Commands


def test_a_new_store_stands_before_the_first_entry(store, tmp_path):
    assert store.position == Position(0, 0, b"", 0)
    assert store.durable_index == 0
    assert store.read(Get("k"))[:3] == (None, 0, 0)
    assert set(files(tmp_path)) <= {"state.db", "state.db-wal", "state.db-shm"}


def test_outcomes_come_in_order_and_each_sees_the_ones_before(store):
    outcomes = apply(
        store,
        Set("a", b"1"),
        Set("a", b"2", Conditions(if_match=(1,))),
        Set("a", b"3", Conditions(if_match=(1,))),
        Delete("a"),
        Delete("a"),
        Set("a", b"4", Conditions(if_none_match="*")),
    )
    assert outcomes == [
        Outcome("written", 1),
        Outcome("written", 2),
        Outcome("refused", 2),
        Outcome("deleted", 4),
        Outcome("missing", 5),
        Outcome("written", 6),
    ]
    assert store.read(Get("a"))[:3] == (b"4", 6, 6)


# The key "there" was last written at 1; each command is entry 2.
@pytest.mark.parametrize(
    "command, outcome",
    [
        (Set("there", b"n", Conditions(if_match="*")), Outcome("written", 2)),
        (Set("there", b"n", Conditions(if_match=(1,))), Outcome("written", 2)),
        (Set("there", b"n", Conditions(if_match=(9, 1))), Outcome("written", 2)),
        (Set("there", b"n", Conditions(if_match=(9,))), Outcome("refused", 1)),
        (Set("there", b"n", Conditions(if_none_match="*")), Outcome("refused", 1)),
        (Set("there", b"n", Conditions(if_none_match=(1,))), Outcome("refused", 1)),
        (Set("there", b"n", Conditions(if_none_match=(9,))), Outcome("written", 2)),
        (Set("gone", b"n", Conditions(if_match="*")), Outcome("refused", 0)),
        (Set("gone", b"n", Conditions(if_match=(1,))), Outcome("refused", 0)),
        (Set("gone", b"n", Conditions(if_none_match="*")), Outcome("written", 2)),
        (Delete("there", Conditions(if_match="*")), Outcome("deleted", 2)),
        (Delete("there", Conditions(if_match=(1,))), Outcome("deleted", 2)),
        (Delete("there", Conditions(if_match=(9,))), Outcome("refused", 1)),
        (Delete("there", Conditions(if_none_match="*")), Outcome("refused", 1)),
        (Delete("there"), Outcome("deleted", 2)),
        (Delete("gone"), Outcome("missing", 2)),
        (Delete("gone", Conditions(if_match="*")), Outcome("refused", 0)),
        (Delete("gone", Conditions(if_match=(1,))), Outcome("refused", 0)),
        (Delete("gone", Conditions(if_none_match="*")), Outcome("missing", 2)),
    ],
)
def test_conditional_writes(store, command, outcome):
    apply(store, Set("there", b"old"))
    assert apply(store, command) == [outcome]
    expected = {"written": b"n", "deleted": None, "missing": None}.get(outcome.kind, b"old" if command.key == "there" else None)
    assert value(store, command.key) == expected
    assert store.position.index == 2, "a refused command, too, is an applied entry"


@pytest.mark.parametrize(
    "key",
    ["a/b", "/", "a//b", "n\0ul", "n\0", "n", "Köln 🚲", "\u00e9", "e\u0301", "\ufffd", "k" * 4096, "'; DROP TABLE kv", "%"],
    ids=ascii,
)
def test_any_key_and_no_other(store, key):
    apply(store, Set(key, key.encode()))
    assert value(store, key) == key.encode()
    for other in (key + "x", key + "\0", key.upper() + "U", key[:-1] + "?"):
        assert value(store, other) is None


def test_any_value(store):
    values = {"empty": b"", "bytes": bytes(range(256)), "text": "ö".encode(), "large": random.Random(1).randbytes(1 << 20)}
    apply(store, *(Set(key, content) for key, content in values.items()))
    assert {key: value(store, key) for key in values} == values


def test_an_unknown_command_changes_nothing(store):
    apply(store, Set("a", b"1"))
    with pytest.raises(UnknownCommand):
        store.apply([(2, encode(Set("a", b"2"))), (3, b"\x63\x63what")], 3, 1, b"")
    assert store.position == Position(1, 1, CONFIGURATION, 0)
    assert store.read(Get("a"))[:3] == (b"1", 1, 1)


def test_entries_without_a_command_move_the_position(store):
    """A no-op of Raft has an index, but nothing for the state machine."""
    assert store.apply([], 7, 3, b"new configuration") == []
    assert store.position == Position(7, 3, b"new configuration", 0)
    assert store.read(Get("k")).applied_index == 7


@pytest.mark.parametrize("batch, index", [([], 5), ([], 4), ([(5, b"")], 6), ([(7, b"")], 6)])
def test_an_index_is_applied_once(store, batch, index):
    store.apply([], 5, 1, b"")
    with pytest.raises(AssertionError):
        store.apply([(at, encode(Set("a", b"1"))) for at, _ in batch], index, 1, b"")


def test_a_batch_that_fails_in_the_middle_leaves_nothing_and_can_be_applied_again(store, monkeypatch):
    apply(store, Set("a", b"1"))
    batch = [(2, encode(Set("a", b"2"))), (3, encode(Set("b", b"2"))), (4, encode(Set("c", b"2")))]
    original = execution.head_checksum

    def fail_at_c(key, *rest):
        if key == "c":
            raise OSError(errno.EIO, "Input/output error")
        return original(key, *rest)

    monkeypatch.setattr(execution, "head_checksum", fail_at_c)
    with pytest.raises(StorageFailed, match="Input/output error") as caught:
        store.apply(batch, 4, 1, b"")
    assert caught.value.status == 500
    monkeypatch.undo()
    assert store.position.index == 1
    assert store.read(Get("a"))[:3] == (b"1", 1, 1)
    assert value(store, "b") is None
    assert [outcome.kind for outcome in store.apply(batch, 4, 1, b"")] == ["written"] * 3
    assert store.read(Get("b"))[:3] == (b"2", 3, 4)


class Interrupted:
    """A connection whose statements fail once *allowed* of them are done; what is begun can still be rolled back."""

    def __init__(self, connection, allowed):
        self._connection, self._allowed = connection, allowed

    def cursor(self):
        return InterruptedCursor(self._connection.cursor(), self)

    def count(self, statement):
        if self._allowed == 0 and statement != "ROLLBACK":
            raise sqlite3.OperationalError("disk I/O error")
        self._allowed -= statement != "ROLLBACK"


class InterruptedCursor:
    def __init__(self, cursor, connection):
        self._cursor, self._connection = cursor, connection

    def execute(self, statement, *values):
        self._connection.count(statement)
        return self._cursor.execute(statement, *values)

    def __getattr__(self, name):
        return getattr(self._cursor, name)


def test_a_batch_that_is_interrupted_anywhere_leaves_nothing_and_can_be_applied_again(store, monkeypatch):
    """Data and index are of one transaction: an index without its data skips entries after a crash, data without it repeats them."""
    apply(store, Set("a", b"1"), Set("b", b"1"))
    batch = list(enumerate(map(encode, (Set("a", b"2"), Delete("b"), Set("c", b"2"), Set("a", b"3", Conditions(if_match=(3,))))), 3))
    for allowed in range(100):
        with monkeypatch.context() as patch:
            patch.setattr(store, "_writer", Interrupted(store._writer, allowed))
            try:
                store.apply(batch, 6, 2, b"new")
                break
            except StorageFailed:
                pass
        assert store.position == Position(2, 1, CONFIGURATION, 0)
        assert [store.read(Get(key)) for key in "abc"] == [Found(b"1", 1, 2, 1, 1), Found(b"1", 2, 2, 2, 1), Found(None, 0, 2)], allowed
    assert allowed > 6, "each statement was the last one once"
    assert [store.read(Get(key)) for key in "abc"] == [Found(b"3", 6, 6, 1, 3), Found(None, 0, 6), Found(b"2", 5, 6, 5, 1)]


# Opening again, crashes


def test_a_new_file_is_on_the_disk_before_it_has_its_name_and_so_is_the_name_before_it_counts(opened, tmp_path, monkeypatch):
    """Else a power cut leaves a file that is empty, or none, under a log that relies on it."""
    events = recorded_syncs(monkeypatch, tmp_path)
    opened()
    assert events == ["sync state.db.new", "rename state.db.new", "sync ."]


def recorded_syncs(monkeypatch, directory):
    """What is synced and renamed from now on, in order."""
    events, real_sync, real_replace = [], sqlitefile.sync, os.replace

    def sync(path):
        events.append(f"sync {os.path.relpath(path, directory)}")
        real_sync(path)

    def replace(source, target):
        events.append(f"rename {os.path.relpath(source, directory)}")
        real_replace(source, target)

    monkeypatch.setattr(sqlitefile, "sync", sync)
    monkeypatch.setattr(os, "replace", replace)
    return events


def test_everything_is_there_after_reopening(opened, tmp_path):
    first = opened()
    apply(first, Set("a", b"1"), Set("b", b"2"), Delete("a"), term=4)
    first.close()
    assert files(tmp_path) == ["state.db"], "a closed store is one file"
    second = opened()
    assert second.position == Position(3, 4, CONFIGURATION, 0)
    assert second.durable_index == 3
    assert second.read(Get("b"))[:3] == (b"2", 2, 3)
    assert value(second, "a") is None


def test_the_file_opens_in_the_sqlite_shell(store, tmp_path):
    apply(store, Set("a", b"1"))
    store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        assert connection.execute("SELECT key, value, modified_index FROM items").fetchall() == [("a", b"1", 1)]
        assert connection.execute("SELECT applied_index, applied_term FROM position").fetchall() == [(1, 1)]
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("PRAGMA application_id").fetchone() == (0x7261666B,)


def test_pragmas_that_durability_rests_on(store):
    settings = {name: store._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert settings == {"journal_mode": "wal", "synchronous": 1}
    assert store._writer.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,), "SQLite ignores errors of its own checkpoints"


def test_durable_index_moves_with_checkpoints_only(store):
    apply(store, Set("a", b"1"))
    assert store.durable_index == 0
    assert store.checkpoint() == 1
    apply(store, Set("a", b"2"))
    assert store.durable_index == 1
    assert store.checkpoint() == store.durable_index == 2
    assert store.checkpoint() == 2


def test_what_a_long_reader_holds_back_is_not_durable(store, tmp_path):
    apply(store, Set("a", b"1"))
    store.checkpoint()
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM kv").fetchall()
        apply(store, Set("a", b"2"))
        apply(store, Set("b", b"2"))
        assert store.checkpoint() == 1
        assert store.durable_index == 1
        reader.execute("COMMIT")
    assert store.checkpoint() == 3


WRITE_LOOP = """
import sys
from raftd.kv import KeyValueStore, Set, encode
store = KeyValueStore(sys.argv[1])
while True:
    first = store.position.index + 1
    batch = [(i, encode(Set(f"k{i % 50}", b"%d" % i))) for i in range(first, first + 7)]
    store.apply(batch, first + 6, 1, b"%d" % (first + 6))
    print("applied", first + 6, flush=True)
    if first % 5 == 0:
        print("durable", store.checkpoint(), flush=True)
"""


def check_write_loop(store):
    """Each key has the value that the loop had given it at the store's index."""
    index = store.position.index
    assert store.position.configuration == b"%d" % index
    for at in range(max(1, index - 49), index + 1):
        assert store.read(Get(f"k{at % 50}"))[:3] == (b"%d" % at, at, index)


def test_kill_9_in_a_write_loop(opened, tmp_path):
    randomness = random.Random(3)
    for _ in range(6):
        child = run_python(WRITE_LOOP, tmp_path)
        lines = [child.stdout.readline() for _ in range(randomness.randrange(10, 200))]
        child.kill()
        lines += child.communicate(timeout=DEADLINE_SECONDS)[0].splitlines(keepends=True)
        last = max(int(line.split()[1]) for line in lines if line.endswith("\n"))
        store = opened()
        assert store.position.index >= last > 7, "what was applied is gone"
        check_write_loop(store)
        store.close()


def test_crash_while_the_file_is_made_leaves_nothing_half(opened, tmp_path):
    script = """
import os, signal, sys
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from raftd.kv import KeyValueStore
KeyValueStore(sys.argv[1])
"""
    assert run_python(script, tmp_path).wait(DEADLINE_SECONDS) == -signal.SIGKILL
    assert files(tmp_path) == ["state.db.new"]
    assert opened().position.index == 0
    assert "state.db.new" not in files(tmp_path)


def test_leftovers_of_copies_are_removed(opened, tmp_path):
    for name in ("state.db.incoming-3", "state.db.incoming-3-journal", "state.db.outgoing-1", "state.db.new", "state.db.new-wal",
                 "state.db.new-shm"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "raft.db").write_bytes(b"not mine")
    opened().close()
    assert files(tmp_path) == ["raft.db", "state.db"]


def test_close_is_idempotent_and_lets_go_of_everything(store, tmp_path):
    apply(store, Set("a", b"1"))
    value(store, "a")
    store.close()
    store.close()
    assert open_files(tmp_path) == []
    for use in (lambda: store.read(Get("a")), store.snapshot, lambda: apply(store, Set("a", b"2")), store.checkpoint):
        with pytest.raises(Stopping):
            use()


# Damage


def closed_store_with_data(directory):
    store = KeyValueStore(directory)
    apply(store, *(Set(f"key{i}", b"value %d " % i * 20) for i in range(200)), configuration=b"MARK" * 10)
    store.close()
    return Path(directory) / "state.db"


def make_garbage(path):
    path.write_bytes(random.Random(1).randbytes(20_000))


def make_foreign(path):
    path.unlink()
    edit(path.parent, "CREATE TABLE kv (key, value)")


def make_foreign_with_wal(path):
    make_foreign(path)
    edit(path.parent, "PRAGMA journal_mode = WAL", "INSERT INTO kv VALUES (1, 2)")


def swap_bytes(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


DAMAGES = {
    "garbage": (make_garbage, "not a file of raftd"),
    "foreign": (make_foreign, "not a file of raftd"),
    "foreign with WAL": (make_foreign_with_wal, "not a file of raftd"),
    "emptied": (lambda path: path.write_bytes(b""), "damaged"),
    "header only": (lambda path: path.write_bytes(path.read_bytes()[:100]), "damaged"),
    "a byte short": (lambda path: os.truncate(path, path.stat().st_size - 1), "damaged"),
    "half": (lambda path: os.truncate(path, path.stat().st_size // 2), "damaged"),
    "unknown format": (lambda path: edit(path.parent, "PRAGMA user_version = 3"), "format 3 is unknown.*upgrade"),
    "format 0": (lambda path: edit(path.parent, "PRAGMA user_version = 0"), "format 0 is unknown"),
    "another table": (lambda path: edit(path.parent, "CREATE TABLE more (a)"), "its tables are not those"),
    "a table less": (lambda path: edit(path.parent, "DROP TABLE position"), "its tables are not those"),
    "schema byte": (lambda path: swap_bytes(path, b"applied_term", b"\xffpplied_term"), "damaged"),
    "applied_index": (lambda path: edit(path.parent, "UPDATE position SET applied_index = 199"), "damaged"),
    "applied_term": (lambda path: edit(path.parent, "UPDATE position SET applied_term = 2"), "damaged"),
    "installed_index": (lambda path: edit(path.parent, "UPDATE position SET installed_index = 2"), "damaged"),
    "type of term": (lambda path: edit(path.parent, "UPDATE position SET applied_term = 'x'"), "damaged"),
    "type of configuration": (lambda path: edit(path.parent, "UPDATE position SET configuration = 5"), "damaged"),
    "no position": (lambda path: edit(path.parent, "DELETE FROM position"), "damaged"),
    "a bit in the position row": (lambda path: swap_bytes(path, b"MARKMARK", b"MARKOARK"), "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line_and_left_alone(tmp_path, damage):
    path = closed_store_with_data(tmp_path)
    make, text = DAMAGES[damage]
    make(path)
    before = path.read_bytes()
    with pytest.raises(DamagedFiles, match=text) as caught:
        KeyValueStore(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert open_files(tmp_path) == []
    if "not" in text or "format" in text:
        assert path.read_bytes() == before
        assert files(tmp_path) == ["state.db"]


def test_a_missing_file_is_not_made_when_the_log_cannot_fill_it(tmp_path):
    with pytest.raises(DamagedFiles, match="missing.*join it again"):
        KeyValueStore(tmp_path, may_create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_looked_at_is_not_made_anew(tmp_path, monkeypatch):
    path = closed_store_with_data(tmp_path)
    before = path.read_bytes()

    def refuse(path, **_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with monkeypatch.context() as patch:
        patch.setattr("raftd.sqlitefile.os.stat", refuse)
        with pytest.raises(StartupError):
            KeyValueStore(tmp_path)
    assert path.read_bytes() == before


def test_a_wal_without_its_file_is_refused(tmp_path):
    """SQLite would apply it to whatever file has the name next."""
    closed_store_with_data(tmp_path).unlink()
    (tmp_path / "state.db-wal").write_bytes(b"x" * 5000)
    with pytest.raises(DamagedFiles, match="missing, but its state.db-wal is there"):
        KeyValueStore(tmp_path)
    assert files(tmp_path) == ["state.db-wal"]


def test_no_directory_is_an_error_of_one_line(tmp_path):
    with pytest.raises(StartupError, match="state.db") as caught:
        KeyValueStore(tmp_path / "none")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage, may_be_written",
    [
        (lambda path: edit(path.parent, "UPDATE changes SET value = CAST('value 5 ' AS BLOB) WHERE key = 'key7'"), True),
        (lambda path: edit(path.parent, "UPDATE kv SET change_id = change_id + 1000000 WHERE key = 'key7'"), False),
        (lambda path: edit(path.parent, "UPDATE kv SET change_id = (SELECT change_id FROM kv WHERE key = 'key8') WHERE key = 'key7'"),
         False),
        (lambda path: edit(path.parent, "UPDATE kv SET version = 2 WHERE key = 'key7'"), False),
        (lambda path: edit(path.parent, "UPDATE kv SET expires_at = 5 WHERE key = 'key7'"), False),
        (lambda path: edit(path.parent, "UPDATE kv SET created_index = 'text' WHERE key = 'key7'"), False),
        (lambda path: edit(path.parent, "UPDATE changes SET value = 'text' WHERE key = 'key7'"), True),
        (lambda path: edit(path.parent, "UPDATE changes SET kind = 2 WHERE key = 'key7'"), True),
        (lambda path: edit(path.parent, "DELETE FROM changes WHERE key = 'key7'"), True),
    ],
    ids=["value", "version of the value", "change of another key", "number of versions", "deadline", "type", "type of the value",
         "kind", "no value"],
)
def test_a_row_that_changed_is_never_served(opened, tmp_path, damage, may_be_written):
    """Nor does a write decide by it: this server would differ from the others. Where it does not look, it makes the key whole again."""
    damage(closed_store_with_data(tmp_path))
    store = opened()
    with pytest.raises(StorageFailed, match="damaged: the row of key 'key7'"):
        store.read(Get("key7"))
    if may_be_written:
        apply(store, Set("key7", b"whole again"))
        assert value(store, "key7") == b"whole again"
        return
    for write in (Set("key7", b"1", Conditions(if_match="*")), Set("key7", b"1"), Delete("key7")):
        with pytest.raises(StorageFailed, match="damaged: the row of key 'key7'"):
            apply(store, Set("other", b"1"), write)
    assert store.position.index == 200
    assert value(store, "other") is None
    assert value(store, "key8") == b"value 8 " * 20


def test_no_flipped_byte_anywhere_gives_a_wrong_answer(tmp_path):
    path = closed_store_with_data(tmp_path)
    whole = path.read_bytes()
    randomness = random.Random(5)
    noticed = verified = 0
    for _ in range(300):
        path.write_bytes(whole)
        flip(path, randomness.randrange(len(whole)))
        try:
            store = KeyValueStore(tmp_path)
        except StartupError:
            noticed += 1
            continue
        assert store.position == Position(200, 1, b"MARK" * 10, 0)
        wrong = False
        for i in range(0, 200, 7):
            try:
                found = store.read(Get(f"key{i}"))
            except StorageFailed:
                noticed, wrong = noticed + 1, True
            else:
                assert found.value in (None, b"value %d " % i * 20)
                wrong = wrong or found.value is None  # it was a key that changed: only who reads all of them can know
        if wrong:
            with pytest.raises(DamagedFiles, match="join it again"):
                store.verify()
            verified += 1
        store.close()
    assert noticed > 30 and verified > 30


@pytest.mark.timeout(60)  # without the order of the keys the look at all of them went on for ever
@pytest.mark.parametrize("all_tables", [True, False], ids=["no table is empty", "empty tables"])
def test_a_page_in_the_place_of_another_is_damage(tmp_path, all_tables):
    """A disk that writes to the wrong place leaves rows that are all intact, twice, and others nowhere."""
    with contextlib.closing(KeyValueStore(tmp_path)) as store:
        apply(store, *(Set(f"key{i}", b"value %d" % i, ttl=i % 2 * all_tables) for i in range(600)))
        apply(store, Set("one", b"more"), *(Request(Set(f"key{i}", b"again"), key=f"request {i}") for i in range(0, 600 * all_tables, 3)))
    path = tmp_path / "state.db"
    whole = path.read_bytes()
    pages = [whole[start:start + 4096] for start in range(0, len(whole), 4096)]
    leaves = [number for number, page in enumerate(pages) if page[0] in (0x0A, 0x0D)]
    assert len(leaves) > 15
    for place in leaves:
        for other in random.Random(place).sample(sorted({*leaves} - {place}), 8):
            if pages[place] == pages[other]:
                continue  # both are of empty tables
            path.write_bytes(b"".join([*pages[:place], pages[other], *pages[place + 1:]]))
            with pytest.raises(DamagedFiles):
                store = KeyValueStore(tmp_path)
                try:
                    store.verify()
                finally:
                    store.close()


def test_a_bit_that_makes_another_type_of_a_key_is_damage_too(tmp_path):
    closed_store_with_data(tmp_path)
    edit(tmp_path, "UPDATE kv SET key = CAST(key AS BLOB) WHERE key = 'key77'")
    store = KeyValueStore(tmp_path)
    with pytest.raises(DamagedFiles, match="join it again"):
        store.verify()
    copied, other = store.snapshot(), tmp_path / "other"
    other.mkdir()
    receiver = KeyValueStore(other)
    incoming = receiver.receive(copied.index, copied.term, copied.size, copied.sha256)
    incoming.write(0, copied.read(0, copied.size))
    with pytest.raises(BadSnapshot, match="damaged"):
        receiver.install(incoming)
    copied.close(), store.close(), receiver.close()


def test_an_index_that_is_gone_is_damage(store, tmp_path):
    apply(store, Set("a", b"1"))
    edit(tmp_path, "DELETE FROM position")
    with pytest.raises(StorageFailed, match="damaged: the index at which it stands is gone"):
        store.read(Get("a"))


def test_a_log_of_writes_that_has_lost_what_the_file_has_is_damage(store, tmp_path):
    """What was moved into the file stays in the WAL until that is written anew, and SQLite would take it for newer than the file."""
    for i in range(20):
        apply(store, Set(f"key{i}", b"x" * 3000))
    assert store.checkpoint() == 20
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for name in ("state.db", "state.db-wal"):
        shutil.copy(tmp_path / name, crashed)
    wal, whole = crashed / "state.db-wal", (crashed / "state.db-wal").read_bytes()
    for damage in (lambda: flip(wal, len(whole) // 2), lambda: os.truncate(wal, len(whole) // 2)):
        damage()
        for _ in range(2):
            with pytest.raises(DamagedFiles, match="state.db-wal: damaged.*has been lost there; remove this node"):
                KeyValueStore(crashed)
        assert files(crashed) == ["state.db", "state.db-wal"], "what a person could look at is gone"
        wal.write_bytes(whole)
    again = KeyValueStore(crashed)
    assert again.position.index == 20 and value(again, "key19") == b"x" * 3000
    again.close()


def test_a_file_that_cannot_be_read_is_not_a_missing_key(store, tmp_path):
    apply(store, *(Set(f"key{i}", b"x" * 3000) for i in range(200)))
    store.checkpoint()
    os.truncate(tmp_path / "state.db", 8192)
    with pytest.raises(StorageFailed):
        for i in range(200):
            assert store.read(Get(f"key{i}")).value == b"x" * 3000


def test_a_file_that_lost_its_name_is_noticed(store, tmp_path):
    apply(store, Set("a", b"1"))
    moved = tmp_path / "moved"
    os.rename(tmp_path / "state.db", moved)
    with pytest.raises(StorageFailed):
        apply(store, Set("a", b"2"))
    shutil.copy(moved, tmp_path / "state.db")
    with pytest.raises(StorageFailed, match="another file has taken its place"):
        apply(store, Set("a", b"2"))
    assert store.position.index == 1
    os.rename(moved, tmp_path / "state.db")
    apply(store, Set("a", b"2"))
    assert value(store, "a") == b"2"


def test_nothing_is_read_from_a_file_that_has_taken_its_place(opened, store, tmp_path):
    """It may be sound, and of another server: who opens it anew must not take it for the state of this one."""
    other = opened(tmp_path / "other")
    apply(other, Set("a", b"of another server"))
    other.close()
    apply(store, Set("a", b"1"))
    os.rename(tmp_path / "state.db", tmp_path / "moved")
    os.rename(tmp_path / "other/state.db", tmp_path / "state.db")
    with pytest.raises(StorageFailed, match="another file has taken its place"):
        value(store, "a")
    os.rename(tmp_path / "moved", tmp_path / "state.db")
    assert value(store, "a") == b"1"


# Readers


def test_many_readers_see_whole_states_while_batches_are_applied(store):
    """Each batch gives both keys its index; a reader that saw half a batch would see an index that is not the value."""
    stop, failures, answers = threading.Event(), [], []

    def read_on(key):
        last = count = 0
        try:
            while not stop.is_set():
                found = store.read(Get(key))
                assert found.value is None or int(found.value) == found.applied_index
                assert found.applied_index >= last
                last = found.applied_index
                count += 1
        except BaseException as error:
            failures.append(error)
        answers.append(count)

    threads = [threading.Thread(target=read_on, args=(key,)) for key in "abab"]
    for thread in threads:
        thread.start()
    for index in range(2, 1000, 2):
        store.apply([(index - 1, encode(Set("a", b"%d" % index))), (index, encode(Set("b", b"%d" % index)))], index, 1, b"")
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert failures == []
    assert min(answers) > 0


def test_the_wal_stays_small_under_constant_reads_and_no_checkpoint_asked_for(store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_CHECKPOINT_COMMANDS", 500)
    stop = threading.Event()

    def read_on():
        while not stop.is_set():
            store.read(Get("k1"))

    threads = [threading.Thread(target=read_on) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            apply(store, *(Set(f"k{i}", b"x" * 200) for i in range(100)))
        assert (tmp_path / "state.db-wal").stat().st_size < 2 << 20
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)


def test_a_few_commands_that_change_many_pages_do_not_let_the_wal_grow(store, tmp_path, monkeypatch):
    """Each key of a transaction may stand on a page of its own. While a long reader holds the WAL, it is not tried again each time."""
    monkeypatch.setattr(store_module, "WAL_BYTES", 1 << 20)
    store._writer.execute(f"PRAGMA journal_size_limit = {1 << 20}")
    wal, rng, checkpoints, checkpoint = tmp_path / "state.db-wal", random.Random(1), [], database.checkpoint
    monkeypatch.setattr(database, "checkpoint", lambda *how: checkpoints.append(how) or checkpoint(*how))

    def write(count):
        for _ in range(count):
            apply(store, Transaction((), tuple(Set(f"{rng.random()}", b"x" * 200) for _ in range(128))))
    write(60)
    assert checkpoints and wal.stat().st_size < 2 << 20
    store._readers.read(lambda connection: (connection.execute("BEGIN"), connection.execute("SELECT 1 FROM totals").fetchall(),
                                            checkpoints.clear(), write(60), connection.rollback()))
    assert 0 < len(checkpoints) <= wal.stat().st_size >> 20
    write(20)
    assert wal.stat().st_size < 2 << 20


def test_idle_connections_are_bounded(store):
    barrier = threading.Barrier(40)

    def hold():
        store._readers.read(lambda connection: barrier.wait(DEADLINE_SECONDS))

    threads = [threading.Thread(target=hold) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert 0 < len(store._readers._idle) <= 16


def test_a_connection_that_failed_is_not_used_again(store, tmp_path):
    def fail(connection):
        connection.execute("BEGIN")  # would show the state of now for ever
        connection.execute("SELECT * FROM kv").fetchall()
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageFailed):
        store._readers.read(fail)
    apply(store, Set("a", b"1"))
    assert store.read(Get("a"))[:3] == (b"1", 1, 1)


# Snapshots


def fill(store, megabytes, content):
    for i in range(megabytes):
        apply(store, *(Set(f"fill{i}-{j}", content * 1024) for j in range(1024 // len(content))))


def test_a_snapshot_is_one_whole_file(store, tmp_path):
    apply(store, Set("a", b"1"), term=3)
    snapshot = store.snapshot()
    assert (snapshot.index, snapshot.term, snapshot.configuration) == (1, 3, CONFIGURATION)
    data = Path(snapshot.path).read_bytes()
    assert len(data) == snapshot.size
    assert b"".join(snapshot.read(offset, 1000) for offset in range(0, snapshot.size, 1000)) == data
    assert snapshot.read(snapshot.size, 1000) == b""
    assert [name for name in files(tmp_path) if "outgoing" in name] == [Path(snapshot.path).name], "no WAL or journal beside it"
    assert data[18:20] == b"\1\1", "the file does not ask for a WAL"
    snapshot.close()
    snapshot.close()
    assert not any("outgoing" in name for name in files(tmp_path))
    with pytest.raises(StorageFailed):
        snapshot.read(0, 10)


def test_a_snapshot_is_of_one_moment_while_apply_goes_on(store, opened, tmp_path):
    fill(store, 12, b"old.")
    apply(store, Set("first", b"old"), Set("zlast", b"old"))
    index = store.position.index
    go_on = store._go_on_copying

    def apply_meanwhile():
        go_on()
        apply(store, Set("first", b"new"), Set("fill0-1", b"new"), Set("zlast", b"new"), Set("more", b"x" * 100_000))
        store.checkpoint()

    store._go_on_copying = apply_meanwhile
    other = opened(tmp_path / "other")
    snapshot = transfer(store, other, chunk_bytes=1 << 20)
    assert store.position.index > index + 8, "apply did not go on while the copy was made"
    assert snapshot.index == other.position.index == index
    assert [value(other, key) for key in ("first", "fill0-1", "zlast", "more")] == [b"old", b"old." * 1024, b"old", None]
    assert value(store, "zlast") == b"new"


def test_a_copy_is_complete_without_a_wal(store, tmp_path):
    apply(store, Set("a", b"1"))
    copy(store._writer, str(tmp_path / "copy"), lambda: None)
    assert [name for name in files(tmp_path) if name.startswith("copy")] == ["copy"]
    assert (tmp_path / "copy").read_bytes()[18:20] == b"\1\1"


def test_two_snapshots_at_a_time(store):
    apply(store, Set("a", b"1"))
    first = store.snapshot()
    apply(store, Set("a", b"2"))
    second = store.snapshot()
    assert (first.index, second.index) == (1, 2)
    first.close()
    assert len(second.read(0, second.size)) == second.size


def test_a_snapshot_gives_way_to_close(store, tmp_path):
    fill(store, 12, b"old.")
    go_on, closer = store._go_on_copying, threading.Thread(target=store.close)

    def close_meanwhile():
        if closer.ident is None:
            closer.start()
        assert wait_until(lambda: store._readers.are_to_go)
        go_on()

    store._go_on_copying = close_meanwhile
    with pytest.raises(Stopping):
        store.snapshot()
    closer.join(DEADLINE_SECONDS)
    assert not closer.is_alive()
    assert files(tmp_path) == ["state.db"]


# Receiving and installing


@pytest.fixture
def leader(opened, tmp_path):
    """A store at index 30 of term 5, with its own configuration."""
    store = opened(tmp_path / "leader")
    apply(store, *(Set(f"key{i}", b"leader %d" % i) for i in range(30)), term=5, configuration=b"leader's")
    return store


@pytest.fixture
def follower(opened, tmp_path):
    """A store at index 10 of term 2, not checkpointed, with a key the leader does not have."""
    store = opened(tmp_path / "follower")
    apply(store, Set("own", b"old"), *(Set(f"key{i}", b"old %d" % i) for i in range(9)), term=2, configuration=b"old")
    return store


LEADER_STATE = [(f"key{i}", b"leader %d" % i, i + 1) for i in range(30)]
FOLLOWER_STATE = [("own", b"old", 1), *((f"key{i}", b"old %d" % i, i + 2) for i in range(9))]
OLD, NEW = Position(10, 2, b"old", 0), Position(30, 5, b"leader's", 30)


def check_is(store, position, state):
    assert store.position == position
    for key in {key for key, *_ in LEADER_STATE + FOLLOWER_STATE}:
        expected = next(((content, at) for name, content, at in state if name == key), (None, 0))
        assert store.read(Get(key))[:3] == (*expected, position.index)
    assert store._writer.execute("PRAGMA quick_check").fetchall() == [("ok",)]


def receive_all(snapshot, target):
    incoming = target.receive(snapshot.index, snapshot.term, snapshot.size, snapshot.sha256)
    incoming.write(0, snapshot.read(0, snapshot.size))
    assert incoming.complete
    return incoming


def test_install_replaces_the_state(leader, follower, opened, tmp_path):
    transfer(leader, follower)
    check_is(follower, NEW, LEADER_STATE)
    assert follower.durable_index == 30
    assert set(files(tmp_path / "follower")) <= {"state.db", "state.db-wal", "state.db-shm"}
    apply(follower, Set("own", b"after"))
    follower.close()
    again = opened(tmp_path / "follower")
    assert again.position == Position(31, 1, CONFIGURATION, 30), "the installed index is kept by later entries"
    assert value(again, "own") == b"after"
    check_is(leader, Position(30, 5, b"leader's", 0), LEADER_STATE)


def test_install_again_and_again(leader, follower):
    for round_number in range(5):
        apply(leader, Set("key0", b"%d" % round_number))
        apply(follower, Set("own", b"x" * 10_000))  # fills the WAL that must not outlive its file
        transfer(leader, follower)
        assert value(follower, "key0") == b"%d" % round_number
        assert value(follower, "own") is None
        assert follower.position.installed_index == leader.position.index


def test_an_older_snapshot_is_refused(leader, follower):
    older = leader.snapshot()
    apply(leader, Set("key0", b"newer"))
    transfer(leader, follower)
    with pytest.raises(BadSnapshot, match="older"):
        follower.install(receive_all(older, follower))
    assert follower.position.index == 31
    assert value(follower, "key0") == b"newer"


def test_a_snapshot_of_the_same_index_may_be_installed_twice(leader, follower):
    transfer(leader, follower)
    transfer(leader, follower)
    check_is(follower, NEW, LEADER_STATE)


def test_chunks_are_taken_in_order_only(leader, follower):
    snapshot = leader.snapshot()
    incoming = follower.receive(snapshot.index, snapshot.term, snapshot.size, snapshot.sha256)
    incoming.write(100, snapshot.read(100, 50))
    assert incoming.next_offset == 0
    incoming.write(0, snapshot.read(0, 100))
    incoming.write(0, b"late repetition" * 10)
    incoming.write(50, b"overlap" * 10)
    assert incoming.next_offset == 100
    assert not incoming.complete
    incoming.write(100, snapshot.read(100, snapshot.size))
    assert incoming.complete
    follower.install(incoming)
    check_is(follower, NEW, LEADER_STATE)


def test_a_transfer_goes_on_where_it_stopped(leader, follower):
    snapshot = leader.snapshot()
    announced = (snapshot.index, snapshot.term, snapshot.size, snapshot.sha256)
    follower.receive(*announced).write(0, snapshot.read(0, 1000))
    assert follower.receive(*announced).next_offset == 1000
    assert follower.receive(31, 5, snapshot.size, b"another").next_offset == 0
    assert follower.receive(*announced).next_offset == 0, "what came in between has taken its place"


def test_a_transfer_that_was_given_up_for_another_cannot_be_installed(leader, follower):
    snapshot = leader.snapshot()
    incoming = receive_all(snapshot, follower)
    follower.receive(31, 5, snapshot.size, b"another")
    incoming.write(0, b"late")
    with pytest.raises(BadSnapshot, match="given up"):
        follower.install(incoming)
    check_is(follower, OLD, FOLLOWER_STATE)


def rebuilt(change):
    """A damage that the hash does not show: what is announced is the damaged file."""

    def damage(snapshot, announced):
        change(Path(snapshot.path))
        data = Path(snapshot.path).read_bytes()
        return data, {**announced, "size": len(data), "sha256": hashlib.sha256(data).digest()}

    return damage


def edit_snapshot(*statements):
    def change(path):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return rebuilt(change)


def flipped(snapshot, announced):
    data = bytearray(snapshot.read(0, snapshot.size))
    data[len(data) // 2] ^= 1
    return bytes(data), announced


def whole(snapshot):
    return snapshot.read(0, snapshot.size)


BAD_COPIES = {
    "a bit flipped": flipped,
    "cut short": lambda snapshot, announced: (whole(snapshot)[:-1], announced),
    "nothing came": lambda snapshot, announced: (b"", announced),
    "wrong index": lambda snapshot, announced: (whole(snapshot), {**announced, "index": 31}),
    "wrong term": lambda snapshot, announced: (whole(snapshot), {**announced, "term": 4}),
    "wrong hash": lambda snapshot, announced: (whole(snapshot), {**announced, "sha256": b"\0" * 32}),
    "empty": lambda snapshot, announced: (b"", {**announced, "size": 0}),
    "empty, rightly announced": rebuilt(lambda path: path.write_bytes(b"")),
    "garbage": rebuilt(lambda path: path.write_bytes(random.Random(1).randbytes(20_000))),
    "half a database": rebuilt(lambda path: os.truncate(path, path.stat().st_size // 2)),
    "another program's": edit_snapshot("PRAGMA application_id = 7"),
    "unknown format": edit_snapshot("PRAGMA user_version = 3"),
    "another table": edit_snapshot("CREATE TABLE more (a)"),
    "position changed": edit_snapshot("UPDATE position SET applied_index = 30, applied_term = 5, installed_index = 3"),
    "a value changed": edit_snapshot("UPDATE changes SET value = x'00' WHERE id = (SELECT min(id) FROM changes)"),
    "totals changed": edit_snapshot("UPDATE totals SET requests = 7"),
    "a key without its value": edit_snapshot("DELETE FROM changes WHERE id = (SELECT min(id) FROM changes)"),
    "broken page of keys": rebuilt(lambda path: swap_bytes(path, path.read_bytes()[4096:4196], b"\xff" * 100)),
}


@pytest.mark.parametrize("damage", BAD_COPIES)
def test_a_bad_copy_leaves_the_old_state(leader, follower, opened, tmp_path, damage):
    snapshot = leader.snapshot()
    announced = {"index": 30, "term": 5, "size": snapshot.size, "sha256": snapshot.sha256}
    data, announced = BAD_COPIES[damage](snapshot, announced)
    incoming = follower.receive(**announced)
    incoming.write(0, data)
    with pytest.raises(BadSnapshot) as caught:
        follower.install(incoming)
    assert "\n" not in str(caught.value)
    check_is(follower, OLD, FOLLOWER_STATE)
    assert set(files(tmp_path / "follower")) == {"state.db", "state.db-wal", "state.db-shm"}
    assert follower.receive(**announced).next_offset == 0, "nothing of it is used again"
    apply(follower, Set("own", b"goes on"))
    follower.close()
    assert value(opened(tmp_path / "follower"), "own") == b"goes on"


def test_more_than_announced_is_refused(leader, follower):
    incoming = follower.receive(30, 5, 10, b"x")
    with pytest.raises(BadSnapshot, match="more"):
        incoming.write(0, b"x" * 11)


def test_when_the_name_changes_the_old_wal_is_gone_for_good(leader, follower, tmp_path, monkeypatch):
    """Synced: the new file, then the directory without the WAL, then the directory with the new name."""
    directory, real_replace = str(tmp_path / "follower"), os.replace

    def replace(source, target):
        assert not [name for name in files(directory) if name in ("state.db-wal", "state.db-shm", "state.db-journal")]
        assert open_files(directory) == [], "a connection to the old file is open"
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    events = recorded_syncs(monkeypatch, directory)
    value(follower, "own")  # leaves an idle reading connection
    transfer(leader, follower)
    assert events == ["sync state.db.incoming-1", "sync .", "rename state.db.incoming-1", "sync ."]


@pytest.mark.parametrize("error, status", [(errno.EIO, 500), (errno.ENOSPC, 507)])
def test_a_refused_rename_leaves_the_old_state_and_can_be_tried_again(leader, follower, tmp_path, monkeypatch, error, status):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageFailed) as caught:
        transfer(leader, follower)
    assert caught.value.status == status
    check_is(follower, OLD, FOLLOWER_STATE)
    assert not any("incoming" in name for name in files(tmp_path / "follower"))
    monkeypatch.undo()
    apply(follower, Set("own", b"goes on"))
    transfer(leader, follower)
    check_is(follower, NEW, LEADER_STATE)


def test_after_a_rename_that_may_not_be_on_disk_nothing_new_counts_as_durable(leader, follower, monkeypatch):
    real_sync, syncs = sqlitefile.sync, []

    def fail_third(path):
        syncs.append(path)
        if len(syncs) == 3:
            raise OSError(errno.EIO, "Input/output error")
        real_sync(path)

    monkeypatch.setattr(sqlitefile, "sync", fail_third)
    with pytest.raises(StorageFailed):
        transfer(leader, follower)
    check_is(follower, NEW, LEADER_STATE)
    assert follower.durable_index == 0
    assert follower.checkpoint() == 30


def test_a_store_that_could_not_be_reopened_is_reopened_later(leader, follower, monkeypatch):
    def refuse(path):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(database, "open_writer", refuse)
    with pytest.raises(StorageFailed):
        transfer(leader, follower)
    with pytest.raises(StorageFailed):
        follower.checkpoint()
    assert follower.read(Get("key3")).value == b"leader 3", "reads need no writer"
    monkeypatch.undo()
    assert follower.checkpoint() == 30
    check_is(follower, NEW, LEADER_STATE)


def test_another_process_on_the_file_forbids_the_exchange(leader, follower, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "follower" / "state.db", isolation_level=None)) as shell:
        shell.execute("BEGIN")
        shell.execute("SELECT * FROM kv").fetchall()
        with pytest.raises(StorageFailed, match="another process"):
            transfer(leader, follower)
        check_is(follower, OLD, FOLLOWER_STATE)
        shell.execute("COMMIT")
    transfer(leader, follower)
    check_is(follower, NEW, LEADER_STATE)


def test_readers_see_the_old_state_or_the_new_during_installs(leader, follower, opened, tmp_path):
    """Each state has its index as every value; readers check that, through many exchanges."""
    stop, failures, seen = threading.Event(), [], set()

    def read_on():
        last = 0
        try:
            while not stop.is_set():
                found = follower.read(Get("key3"))
                assert found.applied_index >= last
                last = found.applied_index
                if last > 30:
                    assert found.value == b"%d" % last
                seen.add(last)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read_on) for _ in range(5)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        apply(leader, Set("key3", b"%d" % (leader.position.index + 1)))
        transfer(leader, follower, chunk_bytes=1 << 20)
        apply(leader, Set("key3", b"%d" % (leader.position.index + 1)))
        apply(follower, Set("key3", b"%d" % (follower.position.index + 1)))
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
    assert failures == []
    assert len(seen) > 3


def test_a_snapshot_gives_way_to_install(leader, follower):
    fill(follower, 12, b"old.")
    fill(leader, 14, b"new.")
    assert leader.position.index > follower.position.index
    incoming = receive_all(leader.snapshot(), follower)
    go_on, installer = follower._go_on_copying, threading.Thread(target=follower.install, args=(incoming,))

    def install_meanwhile():
        if installer.ident is None:
            installer.start()
        assert wait_until(lambda: follower._readers.are_to_go or not installer.is_alive())
        go_on()

    follower._go_on_copying = install_meanwhile
    with pytest.raises(Stopping):
        follower.snapshot()
    installer.join(DEADLINE_SECONDS)
    assert not installer.is_alive()
    assert follower.position.index == leader.position.index


# Kills the process at the Nth call of what changes the disk, before it or after it.
INSTALL_AND_DIE = """
import os, signal, sys
directory, copy, digest, moment, when = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
from raftd import sqlitefile
from raftd.kv import KeyValueStore, Set, database, encode
store = KeyValueStore(directory)
store.apply([(10, encode(Set("key8", b"old 8")))], 10, 2, b"old")  # in the WAL, not in the file
data = open(copy, "rb").read()
incoming = store.receive(30, 5, len(data), digest)
incoming.write(0, data)
calls = 0
def deadly(function):
    def call(*arguments):
        global calls
        calls += 1
        if calls == moment and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return function(*arguments)
        finally:
            if calls == moment and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)
    return call
for module, name in [(os, "replace"), (os, "remove"), (sqlitefile, "sync"), (database, "checkpoint"), (database, "open_writer"),
                     (database, "write_position"), (database, "check_pages")]:
    setattr(module, name, deadly(getattr(module, name)))
store.install(incoming)
assert store.position.index == 30
os._exit(0)
"""


def test_kill_9_at_every_step_of_an_install(leader, opened, tmp_path):
    base, directory = tmp_path / "base", tmp_path / "killed"
    base.mkdir()
    store = KeyValueStore(base)
    apply(store, Set("own", b"old"), *(Set(f"key{i}", b"old %d" % i) for i in range(8)), term=2, configuration=b"old")
    store.close()
    snapshot = leader.snapshot()
    results = []
    for moment in range(1, 40):
        for when in ("before", "after"):
            shutil.copytree(base, directory)
            child = run_python(INSTALL_AND_DIE, directory, snapshot.path, snapshot.sha256.hex(), moment, when)
            status = child.wait(DEADLINE_SECONDS)
            child.stdout.close()
            assert status in (0, -signal.SIGKILL)
            survivor = KeyValueStore(directory)
            new = survivor.position == NEW
            check_is(survivor, *((NEW, LEADER_STATE) if new else (OLD, FOLLOWER_STATE)))
            survivor.close()
            assert files(directory) == ["state.db"]
            shutil.rmtree(directory)
            results.append(new)
        if status == 0:
            break
    assert status == 0, "the install has more steps than this test takes"
    assert results == sorted(results) and len(results) > 16, "first the old state, then the new"
    assert set(results) == {False, True}


# A disk that fails


def test_the_time_goes_on_while_the_file_is_written_anew(store):
    """What it says was told some time ago."""
    apply(store, Request(Set("a", b"1", ttl=10_000), 5_000))
    assert wait_until(lambda: store.clock.now() >= 5_050)
    before = store.clock.now()
    store._write_anew()
    assert before <= store.clock.now() < before + 5_000 and store.time == 5_000


def test_after_a_failed_sync_the_file_is_written_anew_before_anything_counts(store, tmp_path, monkeypatch):
    """The next sync would succeed without the data: the kernel has forgotten that it never reached the disk."""
    apply(store, Set("a", b"1"))
    store.checkpoint()
    apply(store, Set("a", b"2"))
    file_before = (tmp_path / "state.db").stat().st_ino

    def fail(connection, mode):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(database, "checkpoint", fail)
    with pytest.raises(StorageFailed):
        store.checkpoint()
    with pytest.raises(StorageFailed):
        store.checkpoint()
    assert store.durable_index == 1
    monkeypatch.undo()
    assert store.checkpoint() == 2
    assert (tmp_path / "state.db").stat().st_ino != file_before
    assert store.read(Get("a"))[:3] == (b"2", 2, 2)
    apply(store, Set("a", b"3"))
    assert store.checkpoint() == 3
    assert store.position == Position(3, 1, CONFIGURATION, 0)


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a disk of 1 MiB, and a function that makes it larger."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], check=False, capture_output=True
    ).returncode
    if mounted == 0:
        yield directory, lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(directory)], check=True)
        subprocess.run(["umount", "-l", str(directory)], check=True)
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        yield directory, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_up(store):
    """Apply until the disk is full; returns the batch that failed, as arguments of apply."""
    for _ in range(2000):
        index = store.position.index + 1
        arguments = ([(index, encode(Set(f"k{index}", b"x" * 5000)))], index, 1, b"%d" % index)
        try:
            store.apply(*arguments)
        except StorageFailed as error:
            return arguments, error
    raise AssertionError("the disk is not small")


def check_filled(store, count):
    for index in range(1, count + 1):
        assert store.read(Get(f"k{index}"))[:3] == (b"x" * 5000, index, store.position.index)
    assert store.read(Get(f"k{count + 1}")).value is None
    assert store.position.configuration == b"%d" % count


def test_full_disk(small_disk, opened):
    directory, enlarge = small_disk
    store = opened(directory)
    arguments, error = fill_up(store)
    mounted = os.path.ismount(directory)
    assert error.status == (507 if mounted else 500)
    assert "\n" not in str(error)
    count = store.position.index
    assert count > 20
    check_filled(store, count)
    with pytest.raises(StorageFailed):
        store.apply(*arguments)
    check_filled(store, count)
    with contextlib.suppress(StorageFailed):
        store.checkpoint()
    assert store.durable_index in (0, count)
    enlarge()
    assert [outcome.kind for outcome in store.apply(*arguments)] == ["written"]
    check_filled(store, count + 1)
    assert store.checkpoint() == count + 1
    store.close()
    check_filled(opened(directory), count + 1)


def test_a_store_killed_on_a_full_disk_is_whole(small_disk, opened, tmp_path):
    directory, enlarge = small_disk
    store = opened(directory)
    fill_up(store)
    count = store.position.index
    enlarge()
    image = tmp_path / "image"
    image.mkdir()
    for name in ("state.db", "state.db-wal"):  # what a killed process leaves
        subprocess.run(["cp", str(directory / name), str(image)], check=True)
    check_filled(opened(image), count)


@pytest.fixture
def large_leader(opened, tmp_path):
    """A store larger than the small disk; asked for before it, since the small disk may be a limit of this process."""
    store = opened(tmp_path / "large")
    apply(store, *(Set(f"k{i}", b"y" * 10_000) for i in range(200)))
    store.checkpoint()
    return store


def test_no_room_for_copies(large_leader, small_disk, opened):
    directory, enlarge = small_disk
    store = opened(directory)
    apply(store, *(Set(f"k{i}", b"x" * 4000) for i in range(60)))
    store.checkpoint()
    with pytest.raises(StorageFailed) as caught:
        transfer(large_leader, store, chunk_bytes=1 << 17)
    if os.path.ismount(directory):
        assert caught.value.status == 507
        with pytest.raises(StorageFailed) as caught:
            store.snapshot()
        assert caught.value.status == 507
        assert not any("outgoing" in name for name in files(directory))
    assert value(store, "k7") == b"x" * 4000
    enlarge()
    snapshot = large_leader.snapshot()
    incoming = store.receive(snapshot.index, snapshot.term, snapshot.size, snapshot.sha256)
    assert incoming.next_offset > 0 or not os.path.ismount(directory), "what had room is kept"
    incoming.write(incoming.next_offset, snapshot.read(incoming.next_offset, snapshot.size))
    assert incoming.complete
    store.install(incoming)
    assert value(store, "k7") == b"y" * 10_000
