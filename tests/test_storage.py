"""raft.db: what was saved is there after a crash, damage is found and named, and a disk that refuses is believed."""

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from cluster import needs_strace
from raftd import sqlitefile
from raftd.errors import DamagedFiles, StartupError, StorageFailed
from raftd.raft.configuration import NOBODY, Configuration, Member
from raftd.raft.core import Base, Unsaved
from raftd.raft.messages import COMMAND, Entry, HardState
from raftd.storage import DirectoryLock, Identity, Storage, new_id

ROOT = Path(__file__).resolve().parent.parent
IDENTITY = Identity("n1", "f" * 32, "c" * 32)
ONE = Configuration({"n1": Member("n1", "localhost:4001")})


def entries(*terms, first=1, command=b"command"):
    return tuple(Entry(index, term, COMMAND, command) for index, term in enumerate(terms, first))


def unsaved(rows=(), hard_state=None, base=None, log_from=None):
    return Unsaved(hard_state, base, rows[0].index if log_from is None else log_from, tuple(rows))


@contextmanager
def opened(directory, create=False):
    storage = Storage.create(directory, IDENTITY, ONE) if create else Storage.open(directory)
    try:
        yield storage, storage.load()
    finally:
        storage.close()


@pytest.fixture
def saved(tmp_path):
    """A directory with ten entries of term 1 in its log, closed."""
    with opened(tmp_path, create=True) as (storage, _):
        storage.save(unsaved(entries(*[1] * 10), hard_state=HardState(1, "n1")))
    return tmp_path


def terms(found):
    return [entry.term for entry in found.entries]


# What was saved is there


def test_a_new_server_has_nothing_but_its_name(tmp_path):
    assert not Storage.exists(tmp_path)
    with opened(tmp_path, create=True) as (storage, found):
        assert storage.identity == IDENTITY
        assert found == (HardState(0, None), Base(0, 0, ONE), [])
    assert Storage.exists(tmp_path)
    with opened(tmp_path) as (storage, found):
        assert storage.identity == IDENTITY and found == (HardState(0, None), Base(0, 0, ONE), [])


def test_term_and_vote_survive(tmp_path):
    """The original saved neither: a node voted twice in a term after a restart."""
    with opened(tmp_path, create=True) as (storage, _):
        for hard_state in (HardState(3, None), HardState(3, "n2"), HardState(4, None), HardState(9, "ñ3")):
            storage.save(unsaved(hard_state=hard_state, log_from=1))
    with opened(tmp_path) as (_, found):
        assert found.hard_state == HardState(9, "ñ3")


def test_entries_survive_byte_by_byte(tmp_path):
    rows = [Entry(1, 1, 0, b""), Entry(2, 1, 1, bytes(range(256))), Entry(3, 5, 2, ONE.encode()),
            Entry(4, 5, 1, b"x" * 1_000_000)]
    with opened(tmp_path, create=True) as (storage, _):
        storage.save(unsaved(rows[:2]))
        storage.save(unsaved(rows[2:]))
    with opened(tmp_path) as (_, found):
        assert found.entries == rows


def test_a_conflict_replaces_rows(saved):
    with opened(saved) as (storage, _):
        storage.save(unsaved(entries(2, 2, first=4)))
    with opened(saved) as (storage, found):
        assert terms(found) == [1, 1, 1, 2, 2]
        storage.save(unsaved(entries(3, first=6)))
    with opened(saved) as (_, found):
        assert terms(found) == [1, 1, 1, 2, 2, 3]


def test_a_conflict_with_the_last_row_replaces_it(saved):
    """Also when that row was saved since the file was opened."""
    with opened(saved) as (storage, _):
        storage.save(unsaved(entries(2, first=10)))
        storage.save(unsaved(entries(2, 2, first=11)))
        storage.save(unsaved(entries(3, first=12)))
    with opened(saved) as (_, found):
        assert terms(found) == [1] * 9 + [2, 2, 3]


def test_compaction_moves_the_beginning(saved):
    two = ONE.with_member(Member("n2", "localhost:4002", False, "abc"))
    with opened(saved) as (storage, _):
        storage.save(unsaved(base=Base(7, 1, two), log_from=11))
        storage.save(unsaved(entries(2, first=11)))
    with opened(saved) as (_, found):
        assert found.base == Base(7, 1, two) and [entry.index for entry in found.entries] == [8, 9, 10, 11]


def test_a_snapshot_replaces_the_whole_log(saved):
    with opened(saved) as (storage, _):
        storage.save(unsaved(base=Base(50, 3, NOBODY), log_from=51))
        storage.save(unsaved(entries(3, first=51)))
    with opened(saved) as (_, found):
        assert found.base == Base(50, 3, NOBODY) and [entry.index for entry in found.entries] == [51]


def test_a_save_is_all_or_nothing(saved):
    """The hard state of a save whose entries fail is not there either."""
    with opened(saved) as (storage, _):
        with pytest.raises((StorageFailed, DamagedFiles)):
            storage.save(unsaved([*entries(2, first=11), *entries(2, first=11)], hard_state=HardState(2, "n2")))
    with opened(saved) as (_, found):
        assert found.hard_state == HardState(1, "n1") and len(found.entries) == 10


def test_reopen_reads_what_is_on_the_disk(saved):
    with opened(saved) as (storage, _):
        storage.reopen()
        assert len(storage.load().entries) == 10
        storage.save(unsaved(entries(1, first=11)))
        assert len(storage.load().entries) == 11


def test_reopen_knows_where_the_log_ends(saved):
    """The save that failed may have happened: what comes then overwrites it."""
    with opened(saved) as (storage, _):
        save = storage._save

        def save_and_fail(*arguments):
            save(*arguments)
            raise sqlite3.OperationalError("disk I/O error")
        storage._save = save_and_fail
        with pytest.raises(StorageFailed):
            storage.save(unsaved(entries(1, 1, 1, first=11)))
        storage._save = save
        storage.reopen()
        assert len(storage.load().entries) == 13
        storage.save(unsaved(entries(2, first=12)))
        assert terms(storage.load()) == [1] * 11 + [2]


def test_reopen_closes_the_connection_that_has_failed(saved):
    """It would go on to show what the kernel has, and the disk perhaps never got."""
    with opened(saved) as (storage, _):
        failed = storage._connection
        storage.reopen()
        with pytest.raises(sqlite3.ProgrammingError):
            failed.execute("SELECT 1")


def test_what_is_found_at_the_start_is_brought_to_the_disk(saved, tmp_path_factory):
    """It can be read, but was perhaps never synced: the server must not promise it again before it is in the main file."""
    copy = tmp_path_factory.mktemp("copy") / "data"
    crashed_copy(saved, copy)
    with opened(copy) as (_, found):
        assert len(found.entries) == 40 and (copy / "raft.db-wal").stat().st_size == 0
        main_file_alone = tmp_path_factory.mktemp("alone")
        shutil.copy(copy / "raft.db", main_file_alone)
    with opened(main_file_alone) as (_, again):
        assert again == found


def test_the_log_is_written_ahead_and_synced_fully(tmp_path):
    """Anything less lost acknowledged rows when the power was cut; read back, because SQLite may refuse."""
    with opened(tmp_path, create=True) as (storage, _):
        assert storage._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert storage._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    with opened(tmp_path) as (storage, _):
        assert storage._connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_file_that_sqlite_does_not_sync_fully_is_refused(saved, monkeypatch):
    """SQLite does not complain where it cannot do what it was told, it does less."""
    class Stubborn(sqlite3.Connection):
        def execute(self, statement, *values):
            return super().execute(statement.replace("= FULL", "= NORMAL"), *values)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Stubborn))
    with pytest.raises(StorageFailed, match="refuses a write-ahead log with full syncs"):
        Storage.open(saved)


@needs_strace
def test_every_save_reaches_the_disk_before_it_returns(tmp_path):
    """One sync for each save: the original answered before any."""
    code = ("from test_storage import *\ns = Storage.create(sys.argv[1], IDENTITY, ONE)\ns.load()\n"
            "for i in range(1, 51): s.save(unsaved(entries(1, first=i))); os.write(1, b'saved\\n')")
    calls = tmp_path / "calls"
    command = ["strace", "-f", "-o", calls, "-e", "trace=fdatasync,fsync,write", sys.executable, "-c", code, tmp_path]
    subprocess.run(command, env=environment(), check=True, timeout=60, stdout=subprocess.DEVNULL)
    lines = [line for line in calls.read_text().splitlines() if "sync(" in line or '"saved' in line]
    kinds = ["sync" if "sync(" in line else "saved" for line in lines]
    acknowledged = [before for before, kind in zip(kinds, kinds[1:], strict=False) if kind == "saved"]
    assert len(acknowledged) == 50 and set(acknowledged) == {"sync"}


# Crashes


def environment():
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


SAVE_LOOP = """
import sys
from test_storage import *
storage = Storage.open(sys.argv[1])
last = storage.load().entries[-1].index
while True:
    last += 1
    storage.save(unsaved(entries(1, first=last), hard_state=HardState(last, "n1")))
    if last % 50 == 0:
        storage.save(unsaved(base=Base(last - 20, 1, ONE), log_from=last + 1))
    print(last, flush=True)
"""


@contextmanager
def saving(directory):
    """A process that saves entry after entry, and prints the index of each when it is durable."""
    process = subprocess.Popen([sys.executable, "-c", SAVE_LOOP, directory], env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def check_contains(directory, index):
    with opened(directory) as (_, found):
        assert found.entries[-1].index in (index, index + 1), "only what was not yet acknowledged may be there or not"
        assert found.hard_state.term == found.entries[-1].index, "term and entry were one save"


def test_kill_9_loses_nothing_acknowledged(saved):
    for count in (1, 7, 49, 50, 120):
        with saving(saved) as process:
            lines = [process.stdout.readline() for _ in range(count)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        check_contains(saved, int(lines[-1]))


def test_files_copied_in_the_middle_are_complete_up_to_the_last_acknowledged(saved, tmp_path_factory):
    """As the files of a machine that stops at that moment."""
    copy = tmp_path_factory.mktemp("copy") / "data"
    with saving(saved) as process:
        lines = [process.stdout.readline() for _ in range(130)]
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        shutil.copytree(saved, copy)
        process.kill()
        lines += process.stdout.readlines()
    check_contains(copy, int(lines[-1]))


def crashed_copy(directory, copy, promised=False):
    """The files of a server whose machine stopped, with the -wal that a clean end would have removed.

    What was promised was not synced, and says less than there is; *promised*: the process was killed, and it says all.
    """
    with opened(directory) as (storage, _):
        before = (directory / "raft.promised").read_bytes()
        for index in range(11, 41):
            storage.save(unsaved(entries(1, first=index)))
        shutil.copytree(directory, copy)
    if not promised:
        (copy / "raft.promised").write_bytes(before)
    return copy / "raft.db-wal"


@pytest.mark.parametrize("keep", [0, 10, 0.1, 0.5, 0.9, -1])
def test_a_torn_write_ahead_log_leaves_a_clean_beginning(saved, tmp_path_factory, keep):
    """The original went on after a torn last record, and lost all that it acknowledged then at the next start."""
    copy = tmp_path_factory.mktemp("copy") / "data"
    wal = crashed_copy(saved, copy)
    size = wal.stat().st_size
    os.truncate(wal, int(size * keep) if isinstance(keep, float) else keep % size)
    with opened(copy) as (storage, found):
        last = found.entries[-1].index
        assert 10 <= last < 41
        assert found.entries == list(entries(*[1] * last))
        storage.save(unsaved(entries(2, first=last + 1)))
    with opened(copy) as (_, found):
        assert terms(found) == [1] * last + [2]


@pytest.mark.parametrize("promised", [True, False], ids=["after kill -9", "after a power cut"])
def test_flipped_bits_in_the_write_ahead_log_take_nothing_back(saved, tmp_path_factory, promised):
    """SQLite forgets what follows a frame that does not match its checksum: votes and entries that were acknowledged (fault 47).

    After a power cut the last transaction may be one that was interrupted.
    """
    copy = tmp_path_factory.mktemp("copy") / "data"
    wal = crashed_copy(saved, copy, promised)
    files = {path: path.read_bytes() for path in (wal, copy / "raft.db")}
    refused, last_save = 0, range(len(files[wal]) - 4200, len(files[wal]), 101)
    for position in [*range(0, len(files[wal]), 331), *last_save]:
        for path, data in files.items():
            path.write_bytes(data)
        flipped = bytearray(files[wal])
        flipped[position] ^= 1 << position % 8
        wal.write_bytes(flipped)
        try:
            with opened(copy) as (_, found):
                assert [entry.index for entry in found.entries] == list(range(1, len(found.entries) + 1))
                assert len(found.entries) == 40 if promised else len(found.entries) >= 38, position
        except DamagedFiles as error:
            assert len(str(error).splitlines()) == 1
            if "raft.db-wal: damaged" in str(error):
                assert wal.read_bytes() == flipped, "what a person could look at is gone"
            else:
                assert promised and "was in it and is not" in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("length", [13, 20, 31])
def test_a_torn_header_of_the_write_ahead_log_has_lost_nothing(saved, tmp_path_factory, length):
    """It is synced before anything is written behind it; but before what was written behind it, it is damage (fault 46)."""
    copy = tmp_path_factory.mktemp("copy") / "data"
    wal = crashed_copy(saved, copy)
    data = wal.read_bytes()
    torn = data[:length] + bytes(32 - length)
    wal.write_bytes(torn + data[32:])
    assert "raft.db-wal: damaged" in damage_of(copy)
    wal.write_bytes(torn)
    with opened(copy) as (storage, found):
        assert terms(found) == [1] * len(found.entries) and len(found.entries) >= 10
        storage.save(unsaved(entries(2, first=len(found.entries) + 1)))
    with opened(copy) as (_, again):
        assert terms(again) == [*terms(found), 2]


def test_an_interrupted_start_leaves_nothing_that_counts(tmp_path):
    """The file gets its name when it is complete; an empty one with that name is damage."""
    (tmp_path / "raft.db.new").write_bytes(b"half of a file")
    assert not Storage.exists(tmp_path)
    with opened(tmp_path, create=True) as (_, found):
        assert found.entries == []
    assert sorted(path.name for path in tmp_path.iterdir() if "new" in path.name) == []
    (tmp_path / "raft.db").write_bytes(b"")
    assert "raft.db" in damage_of(tmp_path)


def test_a_new_file_is_on_the_disk_before_it_has_its_name_and_so_is_the_name_before_it_counts(tmp_path, monkeypatch):
    """Else a power cut leaves an empty file, or none, and with it a server that has forgotten what it promised."""
    events, real_sync, real_replace = [], sqlitefile.sync, os.replace
    monkeypatch.setattr(sqlitefile, "sync", lambda path: (events.append(f"sync {os.path.relpath(path, tmp_path)}"), real_sync(path)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append(f"rename {os.path.relpath(old, tmp_path)}"), real_replace(old, new)))
    with opened(tmp_path, create=True):
        assert events == ["sync raft.db.new", "rename raft.db.new", "sync ."]


# Damage


def alter(directory, statement, *values):
    connection = sqlite3.connect(directory / "raft.db")
    with connection:
        connection.execute(statement, values)
    connection.close()


def damage_of(directory):
    """The text with which the files are refused."""
    with pytest.raises(DamagedFiles) as caught:
        with opened(directory):
            pass
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and str(directory / "raft.db") in text
    return text


@pytest.mark.parametrize(("statement", "what"), [
    ("UPDATE log SET command = x'00' WHERE log_index = 5", "entry 5"),
    ("UPDATE log SET term = 2 WHERE log_index = 10", "entry 10"),
    ("UPDATE log SET kind = 0 WHERE log_index = 1", "entry 1"),
    ("UPDATE log SET log_index = 11 WHERE log_index = 10", "entry 10"),
    ("DELETE FROM log WHERE log_index = 5", "entry 5"),
    ("DELETE FROM log WHERE log_index = 1", "entry 1"),
    ("UPDATE hard_state SET term = 0", "term and vote"),
    ("UPDATE hard_state SET voted_for = NULL", "term and vote"),
    ("UPDATE hard_state SET voted_for = 'n2'", "term and vote"),
    ("DELETE FROM hard_state", "no term"),
    ("UPDATE base SET term = 1", "beginning"),
    ("UPDATE base SET configuration = x'5b5d'", "beginning"),
    ("DELETE FROM base", "beginning"),
    ("DELETE FROM identity", "identity"),
    ("UPDATE identity SET name = 'n3'", "identity"),
    ("UPDATE identity SET id = 'e' || substr(id, 2)", "identity"),
    ("UPDATE identity SET cluster = 'd' || substr(cluster, 2)", "identity"),
    ("UPDATE log SET term = 'x' WHERE log_index = 5", ""),
    ("UPDATE log SET command = 'text' WHERE log_index = 5", ""),
])
def test_changed_rows_are_refused_by_name(saved, statement, what):
    """SQLite does not notice flipped bits; a checksum for each row does, and a gap is a gap (fault 47)."""
    alter(saved, statement)
    assert what in damage_of(saved).replace(str(saved), "")


def test_flipped_bytes_never_become_entries(saved):
    """A flipped byte anywhere in the file: what is read is what was saved, or it is refused in one line."""
    with opened(saved) as (_, before):
        pass
    original = (saved / "raft.db").read_bytes()
    for position in range(0, len(original), 23):
        flipped = bytearray(original)
        flipped[position] ^= 0x10
        (saved / "raft.db").write_bytes(flipped)
        try:
            with opened(saved) as (storage, found):
                assert (storage.identity, found) == (IDENTITY, before), position
        except (DamagedFiles, StorageFailed) as error:
            assert len(str(error).splitlines()) == 1


def test_a_file_cut_short_is_refused(saved):
    os.truncate(saved / "raft.db", (saved / "raft.db").stat().st_size // 2)
    damage_of(saved)


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize("name", ["raft.db", "raft.db-wal"])
def test_a_file_removed_while_it_is_open_is_noticed(saved, name, idle):
    """SQLite goes on writing into a file that has no name any more."""
    with opened(saved) as (storage, _):
        if not idle:
            storage.save(unsaved(entries(1, first=11)))
        os.remove(saved / name)
        with pytest.raises(StorageFailed, match="was removed or exchanged"):
            storage.save(unsaved(entries(1, first=12)))


def test_an_error_is_no_absence(saved, monkeypatch):
    """A disk that cannot say whether the file is there: it must not be made anew."""
    before = (saved / "raft.db").read_bytes()
    monkeypatch.setattr("raftd.sqlitefile.os.stat", refuse_stat)
    with pytest.raises(OSError):
        Storage.exists(saved)
    with pytest.raises(StorageFailed):
        Storage.open(saved)
    assert (saved / "raft.db").read_bytes() == before


def refuse_stat(path, **_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "raft.db").write_bytes(b"not a database, and long enough to be taken for one" * 100)
    damage_of(tmp_path)
    (tmp_path / "raft.db").unlink()
    alter(tmp_path, "CREATE TABLE mine (x)")
    assert "not a file of raftd" in damage_of(tmp_path)
    assert Storage.exists(tmp_path), "and is not taken for an empty data path, and overwritten"


def test_a_damage_that_sqlite_quotes_is_one_line_too(saved):
    """The complaint has the bytes in it, and Python could not read it: that was another exception."""
    path = saved / "raft.db"
    path.write_bytes(path.read_bytes().replace(b"CHECK (one", b"CH\xc5CK (one"))
    assert "damaged" in damage_of(saved)


def test_an_unknown_format_is_refused_by_its_number(saved):
    alter(saved, "PRAGMA user_version = 7")
    assert "format 7" in damage_of(saved)


def test_other_tables_than_ours_are_refused(saved):
    alter(saved, "CREATE TABLE more (x)")
    assert "its tables are not those of format 1" in damage_of(saved)


# One process


def test_a_second_process_is_kept_out(tmp_path):
    """Two processes on one data path of the original both answered, and nothing was left."""
    lock = DirectoryLock(tmp_path)
    code = "import sys\nfrom raftd.storage import DirectoryLock\nDirectoryLock(sys.argv[1])"
    command = [sys.executable, "-c", code, tmp_path]
    refused = subprocess.run(command, env=environment(), timeout=30, capture_output=True, text=True)
    assert refused.returncode and f"{tmp_path} is in use by another raftd process" in refused.stderr
    with pytest.raises(StartupError):
        DirectoryLock(tmp_path)
    lock.release()
    assert subprocess.run(command, env=environment(), timeout=30).returncode == 0
    DirectoryLock(tmp_path).release()


def test_a_second_opener_is_told_so(saved):
    """Without the lock on the directory, such as another program: no hang, no damage."""
    with opened(saved):
        with pytest.raises(StorageFailed):
            Storage.open(saved)


def test_identities_are_random():
    assert len({new_id() for _ in range(100)}) == 100


# A disk that is full


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.root
def test_a_full_disk_is_reported_and_nothing_acknowledged_is_lost(small_disk):
    with opened(small_disk, create=True) as (storage, _):
        last = 0
        with pytest.raises(StorageFailed) as caught:
            while True:
                storage.save(unsaved(entries(1, first=last + 1, command=b"x" * 5000), hard_state=HardState(last + 1, "n1")))
                last += 1
        assert caught.value.status == 507 and len(str(caught.value).splitlines()) == 1 and last > 10
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    with opened(small_disk) as (storage, found):
        assert [entry.index for entry in found.entries] == list(range(1, last + 1))
        assert found.hard_state == HardState(last, "n1")
        storage.save(unsaved(entries(2, first=last + 1)))
    with opened(small_disk) as (_, found):
        assert len(found.entries) == last + 1


@pytest.mark.root
def test_a_new_server_on_a_full_disk_can_try_again(small_disk):
    """Also in the same process, once there is room: the first attempt leaves nothing locked and nothing half made."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (508 << 10))
    with pytest.raises(StorageFailed):
        Storage.create(small_disk, IDENTITY, ONE)
    ballast.unlink()
    assert not Storage.exists(small_disk)
    with opened(small_disk, create=True) as (_, found):
        assert found.entries == []
