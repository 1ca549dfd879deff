"""The programs that use a simulated cluster, and what they may see of it.

A history is linearizable if every operation has a point between its call and its answer at which it takes effect, and the answers
are those of the operations one after the other in the order of their points. Here the points are known: a write takes effect where
its entry is in the log, a read after the last entry applied where it was answered. So it is checked as it happens: the point of an
operation comes after those of all that were answered before it was called, and its answer is the model's at that point.
"""

from dataclasses import dataclass

from raftd.errors import RaftdError
from raftd.kv.commands import Conditions, Delete, Set, encode, foresee
from raftd.raft.roles import Read

KEYS = "abc"


@dataclass(eq=False)
class Write:
    """A write on its way: ``floor`` is the newest point of what was answered before it was called."""

    command: bytes
    floor: int
    entry: object = None
    refused: bool = False  # the client was told that it certainly did not happen


class Clients:
    """What clients call and what they are told, at any server, as the judge sees it."""

    def __init__(self, judge, rng, tell_time):
        self.judge, self._rng, self._tell_time = judge, rng, tell_time
        self.floor = 0
        self._number = 0
        self._writes = {}  # command: Write, all that were ever proposed
        judge.on_commit = self._committed

    # Calls

    def call(self, server, faults):
        """Perhaps a client calls *server* now."""
        rng, raft = self._rng, server.raft
        try:
            if rng.random() < faults.reads:
                key, kind = rng.choice(KEYS), rng.random()
                if kind < 0.3:
                    self._read_stale(server, key)
                elif kind < 0.3 + faults.leases:
                    self._read_leased(server, key)
                else:
                    raft.read_index((key, self.floor))
            if rng.random() < faults.writes and raft.is_leader and raft.log.last_index < raft.commit_index + 20:
                self._write(server)
        except RaftdError:
            pass  # it said so before anything changed; the judge would see it if that were not true

    def _write(self, server):
        write = Write(encode(self._a_command(server)), self.floor)
        write.entry = server.raft.propose(write.command)
        self._writes[write.command] = write
        server.proposed[write.entry.index] = write

    def _a_command(self, server):
        """Each is another: by its value, so that a read tells which write it saw, or by a version that no key ever has."""
        rng, key = self._rng, self._rng.choice(KEYS)
        self._number += 1
        no_version = self._number << 32
        kind = rng.random()
        if kind < 0.4:
            return Set(key, b"%d" % self._number)
        if kind < 0.55:
            return Delete(key, Conditions(if_none_match=(no_version,)))
        if kind < 0.65:
            return Set(key, b"%d" % self._number, Conditions(if_none_match="*"))
        seen = server.machine.find(key).modified_index if rng.random() < 0.8 else rng.randrange(1, 50)
        conditions = Conditions(if_match=(seen, no_version))
        return Set(key, b"%d" % self._number, conditions) if kind < 0.9 else Delete(key, conditions)

    # Answers

    def answer_committed(self, server, indexes):
        """The entries at *indexes* are committed now: a write whose outcome depends on nothing is answered before it is applied."""
        for index in indexes:
            write = server.proposed.get(index)
            outcome = foresee(index, write.command) if write and server.raft.log.term_at(index) == write.entry.term else None
            if outcome:
                del server.proposed[index]
                assert outcome == self.judge.model.outcomes.get(index), f"{server.name} answered {outcome} to {write.entry}"
                self.judge.counts["writes answered before they were applied"] += server.raft.last_applied < index
                self._answered_by(server, index)

    def answer_writes(self, server, entries, outcomes):
        """The applier of *server* has applied *entries*, and tells who waits there."""
        for entry in entries:
            if (write := server.proposed.pop(entry.index, None)) is None:
                continue
            if write.entry == entry:
                kind, index = outcomes[entry.index]
                assert (kind, index) == self.judge.model.outcomes[entry.index], f"{server.name} answered {kind} {index} to {entry}"
                self.judge.counts["writes refused by their condition" if kind == "refused" else "writes answered"] += 1
                self._answered_by(server, entry.index)
            else:
                write.refused = True
                self.judge.counts["writes discarded"] += 1
                assert write.entry not in self.judge.committed, f"a client was told that {write.entry} was discarded"

    def _committed(self, entry):
        """A write takes effect once, after all that was answered before it was called; never if its client was told it had not."""
        write = self._writes.get(entry.command)
        assert write is not None, f"nobody wrote {entry}"
        assert write.entry == entry, f"{write.entry} took effect as {entry}"
        assert not write.refused, f"{entry} was committed, and its client told that it was not"
        assert entry.index > write.floor, f"{entry} took effect before what was answered before it was called"

    def answer_reads(self, server):
        """A read is answered from the state as it is then, once that has what the read needs."""
        raft = server.raft
        if raft.finished_reads:
            server.reads += raft.finished_reads
            raft.finished_reads.clear()
        waiting = []
        for read in server.reads:
            if read.failed:
                continue
            if server.machine.position.index < read.index:
                waiting.append(read)
                continue
            key, floor = read.context
            index = self._read(server, key)
            assert index >= floor, f"{server.name} read at {index}, after something at {floor} had been answered"
            self.judge.counts["linearizable reads answered"] += 1
            self._answered(index)
        server.reads = waiting

    def _read_leased(self, server, key):
        """The runtime tells the time first: without it a server that was paused does not know that its lease is over."""
        self._tell_time(server)
        if index := server.raft.leased_index():
            read = Read((key, self.floor))
            read.index = index
            server.reads.append(read)
            self.judge.counts["reads that rested on a lease"] += 1
        else:
            server.raft.read_index((key, self.floor))

    def _read_stale(self, server, key):
        """It may be old, but it was the state at some time, has what the server has answered, and never goes back."""
        if server.machine.position.index < server.answered_index:
            return  # it waits
        index = self._read(server, key)
        assert index >= server.stale_floor, f"{server.name} showed {server.stale_floor} and then {index}"
        server.stale_floor = index
        self.judge.counts["stale reads answered"] += 1

    def _read(self, server, key):
        """The index at which *key* was read."""
        value, modified_index, index = server.machine.find(key)
        expected = self.judge.model.at(key, index)
        assert (value, modified_index) == expected, f"{server.name} read {value} {modified_index} at {index}, not {expected}"
        return index

    def _answered_by(self, server, index):
        """Not in the order of the log: what is foreseen may be answered before what comes before it."""
        server.answered_index = max(server.answered_index, index)
        self._answered(index)

    def _answered(self, point):
        self.floor = max(self.floor, point)
