"""One server of a simulated cluster: its disk, which survives, and all that a crash takes away.

What the threads of the runtime do is here one action at a time: ``write`` is the log writer, ``apply`` the applier.
"""

import sqlite3
from hashlib import sha256
from types import SimpleNamespace
from typing import NamedTuple

from raftd.kv import Changes, database, decode, execution, queries
from raftd.kv.clock import Clock
from raftd.node import restore
from raftd.raft.configuration import Configuration
from raftd.raft.core import Base
from raftd.raft.messages import COMMAND, HardState
from raftd.storage import Saved
from simulation.model import LIMITS

CHUNKS = 3  # a snapshot is sent in so many


def _empty_database():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA page_size = 512")
    database.create_tables(connection)
    return connection.serialize()


EMPTY = _empty_database()


class StateMachine:
    """state.db: the production tables, commands and queries over a database in memory, and what of it is on the disk.

    image    as it is on the disk for sure
    batches  the transactions since then; a power cut leaves any number of the first of them
    """

    def __init__(self):
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._load(EMPTY)

    def _load(self, image):
        self._connection.deserialize(image)
        self.image, self.batches = image, []
        self.position = database.read_position(self._connection, "state.db")
        self.durable_index = self.position.index
        self._known = execution.know(self._connection, "state.db")

    def apply(self, entries, configuration):
        """{index: Outcome} of the commands among *entries*, in one transaction with the index."""
        position = self.position._replace(index=entries[-1].index, term=entries[-1].term, configuration=configuration)
        batch = [(entry.index, decode(entry.command)) for entry in entries if entry.kind == COMMAND]
        self.batches.append((batch, position))
        return self._transact(batch, position)

    def _transact(self, batch, position):
        cursor = self._connection.cursor()
        cursor.execute("BEGIN")
        outcomes, known, written = execution.execute(cursor, "state.db", batch, position, self._known, LIMITS)
        after = max(database.change_id(self.position.index), known.totals.history_start)
        assert written is None or [row for row in written if row[0] > after] == cursor.execute(
            "SELECT * FROM changes WHERE id > ? ORDER BY id", (after,)).fetchall(), "who watches would be told something else"
        cursor.execute("COMMIT")
        self.position, self._known = position, known._replace(heads={**self._known.heads, **known.heads})
        return {index: outcome for (index, _), outcome in zip(batch, outcomes, strict=True)}

    @property
    def time(self):
        return self._known.totals.time

    @property
    def next_deadline(self):
        return self._known.next_deadline

    def find(self, key):
        return queries.find(self._connection, "state.db", key, lambda: 0)

    def rows(self):
        """{key: (value, modified_index, created_index, version, expires_at)}, each compared with its checksum."""
        database.check_all(self._connection, "state.db")
        return {key: tuple(row) for key, *row in self._connection.execute("SELECT * FROM items")}

    def history(self, after=None, limit=-1):
        """What has happened since the change *after*, since the beginning of what is kept if that is None. Raises HistoryGone."""
        start = database.read_totals(self._connection, "state.db").history_start if after is None else after
        return [tuple(change) for change in queries.history(self._connection, "state.db", Changes(start, limit)).changes]

    def checkpoint(self):
        if self.batches:
            self.image, self.batches, self.durable_index = self._connection.serialize(), [], self.position.index

    def lose_power(self, rng):
        """Some of the first transactions that were not synced are there all the same."""
        survivors = self.batches[:rng.randrange(len(self.batches) + 1)]
        self._load(self.image)
        for batch, position in survivors:
            self._transact(batch, position)
        self.batches = survivors

    def snapshot(self):
        return Outgoing(self.position.index, self.position.term, self._connection.serialize())

    def install(self, data):
        self._connection.deserialize(data)
        position = database.read_position(self._connection, "state.db")
        database.write_position(self._connection, position._replace(installed_index=position.index))
        self._load(self._connection.serialize())


class Outgoing:
    """A copy of the state, to be sent."""

    def __init__(self, index, term, data):
        self.index, self.term, self.data, self.checksum = index, term, data, sha256(data).digest()

    def chunk(self, offset):
        return self.data[offset:offset + -(-len(self.data) // CHUNKS)]


class Incoming(NamedTuple):
    """A copy of the state as far as it has come; ``announced`` is (index, term, size, checksum)."""

    announced: tuple
    data: bytearray


class Log:
    """raft.db: the term, the vote and the entries that are on the disk. A save happens as a whole or not at all."""

    def __init__(self, configuration):
        self.hard_state, self.base, self.entries = HardState(0, None), Base(0, 0, configuration), []

    last_index, term_at = Saved.last_index, Saved.term_at

    def removed_by(self, unsaved):
        """The entries that *unsaved* replaces."""
        return self.entries[max(0, unsaved.log_from - self.base.index - 1):]

    def save(self, unsaved):
        if unsaved.hard_state:
            old, new = self.hard_state, unsaved.hard_state
            assert new.term > old.term or (new.term == old.term and old.voted_for in (None, new.voted_for)), (old, new)
            self.hard_state = new
        rows = self.entries[:max(0, unsaved.log_from - self.base.index - 1)] + list(unsaved.entries)
        if unsaved.base:
            self.base = unsaved.base
            rows = [entry for entry in rows if entry.index > self.base.index]
        if rows and (unsaved.entries or unsaved.base):
            assert rows[0].index == self.base.index + 1 and rows[-1].index == self.base.index + len(rows), "a gap in the log on disk"
            assert self.base.term <= rows[0].term <= rows[-1].term, rows
        self.entries = rows


class Server:
    """``log`` and ``machine`` are what is on its disk; all else is gone after a crash."""

    def __init__(self, name, configuration, rng, settings, time):
        self.name, self.rng, self.settings, self._time = name, rng, settings, time
        self.first_configuration = configuration  # as its files were made; a server that joins later knows of nobody
        self.log, self.machine = Log(configuration), StateMachine()
        self.limits = rng.choice((1, 30, 4 << 20)), rng.choice((1, 1000))  # of one write: bytes, and entries forgotten
        self.speed, self.haste, self.up = 1.0, rng.choice((0.1, 1.0)), False  # haste: to apply what is committed
        self.stale_floor = 0  # a stale read has shown this index

    def boot(self, now):
        """As the runtime starts: the production code compares the two files and makes the core of them."""
        saved = SimpleNamespace(hard_state=self.log.hard_state, base=self.log.base, entries=self.log.entries)
        self.clock = self.clock_at = now
        self.state_clock = Clock(lambda: self.clock_now(self._time()))  # also of one who wakes, and whose core does not know it yet
        self.state_clock.hear(self.machine.time)
        self.raft = restore(self.name, saved, self.machine.position, self.settings, self.rng, now)
        self.raft.MAX_WRITE_BYTES, self.raft.MAX_COMPACTED_ENTRIES = self.limits
        self.up, self.paused_until = True, 0.0
        self.writing, self.write_done = None, 0.0
        self.outgoing, self.incoming, self.installing, self.installed = None, None, None, None
        self.proposed, self.reads = {}, []
        self.seen_commit, self.answered_index = self.raft.commit_index, 0
        # Of a leader, on its own clock: when each peer last answered, and when last a majority of them had.
        self.led_term, self.heard, self.heard_majority, self.peers = None, {}, 0.0, set()
        self.known = None  # what the judge saw of it last

    def clock_now(self, now):
        """Its clock runs on, at its own speed; also in a pause."""
        return self.clock + self.speed * (now - self.clock_at)

    def tell_time(self, now):
        self.clock, self.clock_at = self.clock_now(now), now
        self.raft.tick(self.clock)

    def holds(self, index, term):
        """True if the entry is on the disk here, in the log or in the state machine."""
        return index <= max(self.log.base.index, self.machine.durable_index) or self.log.term_at(index) == term

    @property
    def durable_index(self):
        return max(self.log.last_index, self.machine.durable_index)

    def crash(self, power_cut, judge):
        """The write under way happens as a whole or not at all."""
        counts, self.up = judge.counts, False
        counts["crashes"] += 1
        counts["snapshots interrupted"] += self.incoming is not None or self.installing is not None or self.installed is not None
        counts["writes of unknown outcome"] += len(self.proposed)
        if self.writing is not None:
            happened = self.rng.random() < 0.5
            counts["writes interrupted by a crash that " + ("happened" if happened else "did not happen")] += 1
            if happened:
                self._save(self.writing, judge)
        if power_cut:
            was = self.machine.position.index
            self.machine.lose_power(self.rng)
            counts["power cuts that lost unsynced state"] += self.machine.position.index < was
            self.stale_floor = min(self.stale_floor, self.machine.position.index)

    # The log writer

    def write(self, now, faults, judge):
        raft = self.raft
        if self.writing is None:
            if raft.has_unsaved:
                self.writing = raft.take_unsaved()
                seconds = 1.5 if self.rng.random() < faults.stall else 0.1 if self.rng.random() < faults.slow_disk else 0
                judge.counts["disks stalled"] += seconds == 1.5
                self.write_done = now + self.rng.random() * seconds
        elif now >= self.write_done:
            written, self.writing = self.writing, None
            self._save(written, judge)
            raft.saved(written)
            judge.check_commit(self)

    def _save(self, unsaved, judge):
        if unsaved.log_from <= self.log.last_index:
            judge.check_removed(self, self.log.removed_by(unsaved))
        judge.counts["logs compacted"] += unsaved.base is not None
        self.log.save(unsaved)

    # The applier

    def apply(self, clients):
        """It installs what was received, or applies what is committed, perhaps later, and tells who waits.

        Who need not wait for that is told before, as the runtime does it.
        """
        if self.raft.commit_index > self.seen_commit:
            first, self.seen_commit = self.seen_commit + 1, self.raft.commit_index
            clients.answer_committed(self, range(first, self.seen_commit + 1))
        if self.installing or self.installed:
            self._install(clients.judge)
        elif self.raft.has_committed and self.rng.random() < self.haste:
            entries = self.raft.take_committed(self.rng.choice((1, 1000)))
            assert entries[0].index == self.machine.position.index + 1, "an entry was skipped or applied twice"
            for entry in entries:
                clients.judge.check_applied(entry)
            configuration = self.raft.configurations.at(entries[-1].index)[1].encode()
            told = self.machine.time
            outcomes = self.machine.apply(entries, configuration)
            if self.machine.time != told:
                self.state_clock.hear(self.machine.time)
            self.raft.applied(entries[-1].index)
            if self.proposed:
                clients.answer_writes(self, entries, outcomes)

    def _install(self, judge):
        """First the state, durable; then, as another step that a crash may come before, the log."""
        if self.installing:
            (answer, data), self.installing = self.installing, None
            if answer.request.last_included_index > self.machine.position.index:
                assert sha256(data).digest() == answer.request.checksum
                self.machine.install(bytes(data))
                self.state_clock.hear(self.machine.time)
                judge.check_state(self)
            self.installed = answer
            return
        answer, self.installed, position = self.installed, None, self.machine.position
        if position.index > self.raft.last_applied:
            self.raft.snapshot_installed(position.index, position.term, Configuration.decode(position.configuration))
            judge.counts["snapshots installed"] += 1
        self.raft.chunk_stored(answer, answer.request.size, installed=position.index >= answer.request.last_included_index)

    def checkpoint(self, keep_entries):
        self.machine.checkpoint()
        self.raft.compact(self.machine.durable_index, keep_entries, 10_000)

    # Snapshots

    def offer_snapshot(self, peer):
        """Made at once or a little later than asked for; what was committed meanwhile is not in it."""
        if self.outgoing is None or self.rng.random() < 0.3 or self.outgoing.index < self.raft.log.snapshot_index:
            self.raft.reserve_snapshot(peer)
            if not self.machine.position.index:
                return
            self.outgoing = self.machine.snapshot()
        out = self.outgoing
        self.raft.snapshot_offered(peer, out.index, out.term, len(out.data), out.checksum)

    def with_chunk(self, peer, request):
        """*request* with its data; None when that copy has made way for a newer one."""
        if self.outgoing.checksum == request.checksum:
            return self.outgoing.chunk(request.offset)
        self.raft.snapshot_withdrawn(peer)
        return None

    def receive_chunk(self, answer):
        """A chunk that ``handle`` left to the caller. While a copy is being installed nothing else is taken."""
        request = answer.request
        if self.installing or self.installed:
            return
        announced = request.last_included_index, request.last_included_term, request.size, request.checksum
        if self.incoming is None or self.incoming.announced != announced:
            self.incoming = Incoming(announced, bytearray())
        data = self.incoming.data
        if request.data and request.offset == len(data):
            data += request.data
        if len(data) == request.size:
            self.installing, self.incoming = (answer, data), None
        else:
            self.raft.chunk_stored(answer, len(data), installed=False)
