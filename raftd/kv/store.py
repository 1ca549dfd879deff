"""The key/value state machine: applies committed commands to state.db, answers queries, gives and takes whole copies.

Must not know: the log, the network, who leads.

The state and the index at which it stands change in one transaction. A commit is not synced: after a power cut the file may be
older, never torn, and the log replays the rest. ``durable_index`` says up to where the log is no longer needed for that.
"""

import glob
import itertools
import logging
import os
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress

from raftd import sqlitefile
from raftd.errors import REPLACE_NODE, DamagedFiles, StartupError, Stopping, StorageFailed
from raftd.kv import database, execution, queries
from raftd.kv.clock import Clock
from raftd.kv.commands import Changes, Get, HasChanged, List
from raftd.kv.database import WAL_BYTES
from raftd.kv.encoding import decode, foresee, how_many
from raftd.kv.readers import Readers
from raftd.kv.recent import Recent
from raftd.kv.snapshot import BadSnapshot, Incoming, Snapshot, copy
from raftd.sqlitefile import check_is_still, file_id, present, storage_errors

log = logging.getLogger(__name__)

# The WAL is moved into the file after this much was applied, or when it has ``WAL_BYTES``, so that it stays small whenever the caller
# asks for a checkpoint.
_CHECKPOINT_COMMANDS = 4096
_CHECKPOINT_BYTES = 16 << 20
_INSTRUCTIONS_PER_STEP = 100_000  # of SQLite
_MOST_HEADS = 10_000  # of keys that are kept in memory
_VERIFIED_AT_ONCE_BYTES = 64 << 10


class KeyValueStore:
    """The keys and values under one directory.

    ``apply``, ``checkpoint``, ``install`` and ``close`` belong to one thread at a time, the applier; all else to any thread.

    steps   rises while ``apply`` is at work, as long as the disk answers
    clock   the Clock by which keys expire
    """

    def __init__(self, directory, may_create=True, limits=execution.LIMITS):
        """Open state.db, or create it if *may_create*, to keep as much as *limits* say.

        Raises DamagedFiles or another StartupError, and then has changed nothing.
        """
        self._path = os.path.join(os.path.abspath(directory), "state.db")
        self._readers = Readers(self._path)
        self._writer = None
        self._closed = False
        self._copies = itertools.count(1)  # numbers the files of copies
        self._incoming = None
        self._incoming_lock = threading.Lock()
        self._sync_failed = False  # see _write_anew
        self._durable_index = 0
        self.clock = Clock()
        self._limits, self._subscribers = limits, []  # (what is called, whether it waits)
        self.steps = 0
        try:
            with storage_errors(self._path, damage=DamagedFiles):
                self._find_file(may_create)
                self._open()
        except StorageFailed as error:
            raise StartupError(str(error)) from error

    @property
    def position(self):
        """The Position of the last committed batch."""
        return self._position

    @property
    def time(self):
        """What time the state was told last, in milliseconds; the clock goes on from there."""
        return self._known.totals.time

    @property
    def next_deadline(self):
        """When, by the clock, the next key expires; None if none will."""
        return self._known.next_deadline

    def subscribe(self, applied, waits=lambda: False):
        """Call *applied* whenever the state has changed, in the applier's thread: it must be quick, and raise nothing. *waits* says
        whether somebody waits for that."""
        self._subscribers.append((applied, waits))

    @property
    def is_awaited(self):
        """True if somebody waits for changes: then ``apply`` should not be put off for long, and what it changes is kept in memory."""
        return any([waits() for _, waits in list(self._subscribers)])

    def changes_after(self, position):
        """About how many changes of the history come after that one (``change_id``)."""
        totals, newest = self._known.totals, database.change_id(self._position.index)
        return totals.history_changes * (newest - position) // max(1, newest - totals.history_start)

    def wait_for_more(self, position, seconds):
        """Wait, in the thread that calls, until there is a state after the change *position* (``change_id``); False after so many
        *seconds* without."""
        return self._wait_until(lambda: database.change_id(self._position.index) > position, seconds)

    def wait_for_change(self, key, index, seconds):
        """The same, until *key* has changed after the entry *index*."""
        return self._wait_until(lambda: self.read(HasChanged(key, index)), seconds)

    def _wait_until(self, truth, seconds):
        changed, deadline = threading.Event(), time.monotonic() + seconds
        subscriber = changed.set, lambda: True
        self.subscribe(*subscriber)
        try:
            while not truth():
                if self._closed or not changed.wait(max(0, deadline - time.monotonic())):
                    return False
                changed.clear()
            return True
        finally:
            self._subscribers.remove(subscriber)

    @property
    def durable_index(self):
        """The applied index that is surely on disk."""
        return self._durable_index

    def apply(self, batch, index, term, configuration):
        """Apply the (index, command) pairs of *batch* in order and move to *index*; returns an Outcome for each.

        All of it happens or, when this raises StorageFailed or UnknownCommand, nothing; after StorageFailed call it again.
        """
        assert self._position.index < index, (self._position, index)
        assert not batch or self._position.index < batch[0][0] <= batch[-1][0] <= index, (self._position, index)
        commands = [(entry_index, decode(data)) for entry_index, data in batch]
        position = self._position._replace(index=index, term=term, configuration=configuration)
        with storage_errors(self._path):
            self._prepare_to_write()
            with self._transaction() as cursor:
                outcomes, known, written = execution.execute(cursor, self._path, commands, position, self._known, self._limits)
        is_told = written is not None and self.is_awaited
        self._recent = self._recent.followed_by(written, index) if is_told else Recent.none(index)
        self._position = position
        self._follow(known)
        self._commands_in_wal += len(batch)
        self._bytes_in_wal += sum([len(data) for _, data in batch])
        return outcomes

    foresee = staticmethod(foresee)
    how_many = staticmethod(how_many)

    def read(self, query):
        """The answer to a Get, List, Changes or HasChanged, as Found, Listed, History or bool; never waits for ``apply``.

        Raises StorageFailed if what was asked for is not as it was written, HistoryGone. The newest Changes come from memory.
        """
        match query:
            case Get(key):
                return self._readers.read(queries.find, self._path, key, self.clock.now)
            case List():
                return self._readers.read(queries.list_keys, self._path, query, self.clock.now)
            case Changes():
                recent = None if self._closed else self._recent.history(query)
                return recent or self._readers.read(queries.history, self._path, query)
            case HasChanged():
                return self._readers.read(queries.has_changed, self._path, query)
        raise AssertionError(f"no query: {query!r}")

    def verify(self, pause=lambda: None):
        """Read all of it while it is in use; raises DamagedFiles if any of it is not as it was written, StorageFailed, Stopping.

        A bit that flips in a key makes the key look missing, which no read notices. In the upper pages of the tree it also leads
        who looks for other keys astray, past the damage: but not from both sides. *pause* is called between the steps.
        """
        self._readers.read(self._verified, database.check_counts)
        for walk, upwards in itertools.product(database.walks(), (True, False)):
            last = None
            while True:
                pause()
                last = self._readers.read(self._verified, database.check_rows, walk, upwards, last, _VERIFIED_AT_ONCE_BYTES)
                if last is None:
                    break

    def _verified(self, connection, check, *args):
        with storage_errors(self._path, damage=DamagedFiles), self._advice_on_damage():
            return check(connection, self._path, *args)

    def checkpoint(self):
        """Sync what was applied into state.db as far as long readers let it; returns ``durable_index``, raises StorageFailed."""
        with storage_errors(self._path):
            self._reopen()
            if self._sync_failed:
                self._write_anew()
                return self._durable_index
            all_moved, reset = self._checkpoint("RESTART")
            if all_moved:
                self._durable_index = self._position.index
            self._commands_in_wal = self._bytes_in_wal = 0
            self._held_wal_bytes = 0 if reset else self._wal_bytes()  # by a long reader
        return self._durable_index

    def snapshot(self, go_on=lambda: None):
        """A copy of the state at this moment, as Snapshot, made while ``apply`` goes on.

        *go_on* is called now and then, and may raise to give it up. Raises StorageFailed if there is no room for it, Stopping if
        it gives way to ``install`` or ``close``.
        """
        path = f"{self._path}.outgoing-{next(self._copies)}"
        self._readers.read(copy, path, lambda: (go_on(), self._go_on_copying()))
        return Snapshot(path)

    def receive(self, index, term, size, sha256):
        """The Incoming that collects the announced copy; it goes on where an earlier call for the same copy stopped."""
        with self._incoming_lock:
            if self._incoming and self._incoming.announces(index, term, size, sha256):
                return self._incoming
            if self._incoming:
                self._incoming.discard()
            path = f"{self._path}.incoming-{next(self._copies)}"
            self._incoming = Incoming(path, index, term, size, sha256)
            return self._incoming

    def install(self, incoming):
        """Put a received copy in the place of the state; *incoming* is used up, whatever happens.

        Raises BadSnapshot if it is not what was announced or is older than the state, StorageFailed if the disk fails; the old
        state is still there then, unless it was the last sync that failed: ``position`` tells.
        """
        with self._incoming_lock:
            if self._incoming is incoming:
                self._incoming = None
        try:
            if incoming.index < self._position.index:
                raise BadSnapshot(f"a snapshot of index {incoming.index} is older than the state at {self._position.index}")
            incoming.finish()
            with storage_errors(self._path):
                self._reopen()
                self._exchange(incoming.path)
        finally:
            incoming.discard()

    def close(self):
        """Wait for readers, checkpoint, close; idempotent. A checkpoint that fails is no loss: the WAL stays."""
        self._closed = True
        self._tell_subscribers()
        self._readers.close()
        with self._incoming_lock:
            if self._incoming:
                self._incoming.discard()
                self._incoming = None
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            with storage_errors(self._path):
                database.checkpoint(writer, "TRUNCATE")
        except StorageFailed as error:
            log.warning("checkpoint failed at close error=%s", error)
        finally:
            writer.close()

    # Opening

    def _find_file(self, may_create):
        """Leave a file of a known format at the path, and nothing of earlier runs beside it but its WAL."""
        if not present(self._path):
            if not may_create:
                raise DamagedFiles(f"{self._path} is missing, and the log does not go back to its beginning; {REPLACE_NODE}")
            if present(f"{self._path}-wal"):  # SQLite would apply it to the new file
                raise DamagedFiles(
                    f"{self._path}: missing, but its state.db-wal is there; bring it back, or start anew without both"
                )
            self._remove_leftovers()
            database.create(self._path)
        database.check_header(self._path)
        sqlitefile.check_wal_is_not_behind(self._path, lambda connection: database.read_position(connection, self._path).index)
        self._remove_leftovers()

    def _remove_leftovers(self):
        for kind in ("incoming-[0-9]*", "outgoing-[0-9]*", "new", "new-journal", "new-wal", "new-shm"):
            for path in glob.glob(f"{glob.escape(self._path)}.{kind}"):
                os.remove(path)

    def _open(self):
        """Connect, and read where the state stands. What is left in the WAL is synced, so that all of it is durable."""
        writer = database.open_writer(self._path)
        writer.set_progress_handler(self._step, _INSTRUCTIONS_PER_STEP)
        try:
            with self._advice_on_damage():
                database.check_tables(writer, self._path)
                position = database.read_position(writer, self._path)
                self._recent, self._position = Recent.none(position.index), position
                known = execution.know(writer, self._path)
                all_moved, _ = database.checkpoint(writer, "TRUNCATE")
                if all_moved:
                    database.check_size(writer, self._path)
            self._readers.file_id = file_id(self._path)
        except BaseException:
            writer.close()
            raise
        self._writer = writer
        self._known = known
        self.clock.hear(max(known.totals.time, self.clock.now()))  # it was told before the file was opened again, and time has passed
        self._tell_subscribers()
        self._commands_in_wal = self._bytes_in_wal = self._held_wal_bytes = 0
        if all_moved and not self._sync_failed:
            self._durable_index = self._position.index

    def _step(self):
        self.steps += 1
        return 0  # else SQLite gives up

    def _follow(self, known):
        """What else has become of the state. Keys that were written last are likely to be written again."""
        if known.totals.time != self._known.totals.time:
            self.clock.hear(known.totals.time)
        heads = self._known.heads
        heads.update(known.heads)
        if (surplus := len(heads) - _MOST_HEADS) > 0:
            for key in list(itertools.islice(heads, surplus + _MOST_HEADS // 2)):
                del heads[key]
        self._known = known._replace(heads=heads)
        self._tell_subscribers()

    def _tell_subscribers(self):
        for applied, _ in list(self._subscribers):
            applied()

    @contextmanager
    def _advice_on_damage(self):
        try:
            yield
        except DamagedFiles as error:
            raise DamagedFiles(f"{error}; {REPLACE_NODE}") from error

    def _reopen(self):
        """Connect again if an earlier attempt failed."""
        if self._closed:
            raise Stopping()
        if self._writer is None:
            self._open()

    # Writing

    def _prepare_to_write(self):
        self._reopen()
        check_is_still(self._readers.file_id, self._path)  # SQLite would go on writing into a file without a name
        if self._commands_in_wal >= _CHECKPOINT_COMMANDS or self._bytes_in_wal >= _CHECKPOINT_BYTES \
                or self._wal_bytes() > self._held_wal_bytes + WAL_BYTES:
            self.checkpoint()

    def _wal_bytes(self):
        return os.path.getsize(f"{self._path}-wal")

    @contextmanager
    def _transaction(self):
        cursor = self._writer.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            yield cursor
            cursor.execute("COMMIT")
        except BaseException:
            with suppress(Exception):  # what matters is the first error; SQLite may have rolled back already
                cursor.execute("ROLLBACK")
            raise

    def _checkpoint(self, mode):
        try:
            with storage_errors(self._path):
                return database.checkpoint(self._writer, mode)
        except StorageFailed as error:
            # A disk that is merely full refuses the write, before any sync.
            failed_to_sync = getattr(error.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_FSYNC
            self._sync_failed = self._sync_failed or failed_to_sync or error.status != 507
            raise

    def _write_anew(self):
        """Replace state.db by a fresh copy of itself.

        After a failed sync the kernel takes for clean what never reached the disk, and the next sync succeeds without it. So the
        disk is believed again only for bytes that were written again.
        """
        path = f"{self._path}.new"
        copy(self._writer, path, self._go_on_copying)
        sqlitefile.sync(path)
        self._exchange(path)

    def _go_on_copying(self):
        if self._readers.are_to_go:
            raise Stopping("the copy of the state was given up, since state.db is about to be closed")

    def _exchange(self, path):
        """Put the complete, synced file at *path* in the place of state.db; a crash leaves one or the other, never a mix.

        A WAL belongs to one file only, and SQLite would apply that of the old file to the new one. So it is emptied and its
        removal is on disk before the new file takes the name.
        """
        with self._readers.excluded():
            if not self._checkpoint("TRUNCATE")[1]:
                raise StorageFailed(f"{self._path}: another process has it open")
            self._writer.close()
            self._writer = None
            try:
                for leftover in (f"{self._path}-wal", f"{self._path}-shm"):
                    with suppress(FileNotFoundError):
                        os.remove(leftover)
                sqlitefile.sync_directory(self._path)
                os.replace(path, self._path)
                self._sync_failed = True  # until the new name, too, is on disk
                self._readers.file_id = file_id(self._path)
                sqlitefile.sync_directory(self._path)
                self._sync_failed = False
            finally:
                self._open()
