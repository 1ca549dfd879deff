"""The programs that use a simulated cluster, and what they may see of it.

A history is linearizable if every operation has a point between its call and its answer at which it takes effect, and the answers
are those of the operations one after the other in the order of their points. Here the points are known: a write takes effect where
its entry is in the log, a read after the last entry applied where it was answered. So it is checked as it happens: the point of an
operation comes after those of all that were answered before it was called, and its answer is the model's at that point.
"""

from dataclasses import dataclass

from raftd.errors import HistoryGone, RaftdError
from raftd.kv import Conditions, Delete, DeletePrefix, Expire, Fence, Get, If, Request, Set, Touch, Transaction, encode
from raftd.kv.encoding import foresee
from raftd.raft.roles import Read

KEYS = "a", "ab", "b"
PREFIXES = "", "a", "ab", "b", "c"
REMEMBERED = 12  # requests that a client may send again; more than the servers remember


@dataclass(eq=False)
class Write:
    """A write on its way: ``floor`` is the newest point of what was answered before it was called, ``called_at`` the time of that."""

    command: bytes
    floor: int
    called_at: float
    entry: object = None
    refused: bool = False  # the client was told that it certainly did not happen


class Clients:
    """What clients call and what they are told, at any server, as the judge sees it."""

    def __init__(self, judge, rng, tell_time, fastest):
        """*fastest*: so much faster than time itself the fastest clock runs."""
        self.judge, self._rng, self._tell_time, self._fastest = judge, rng, tell_time, fastest
        self.floor = 0
        self._requests = []  # those with an idempotency key, the newest
        self._called_at = {}  # index: when the write was called that became this entry
        self._watched = 0  # the id of the last change that was watched
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
            if rng.random() < faults.reads / 20:
                self._watch(server)
            if raft.is_leader and raft.log.last_index < raft.commit_index + 20:
                if rng.random() < faults.writes:
                    self._write(server, self._a_command(server))
                self._expire(server)
        except RaftdError:
            pass  # it said so before anything changed; the judge would see it if that were not true

    def _write(self, server, command):
        write = Write(encode(command), self.floor, self.judge.now)
        if write.command in self._writes:
            return  # the same, at the same time: no run could tell them apart
        write.entry = server.raft.propose(write.command)
        self._writes[write.command] = write
        server.proposed[write.entry.index] = write

    def _expire(self, server):
        """As the leader's runtime does it: an entry removes what has expired. It does not wait for the one before."""
        deadline = server.machine.next_deadline
        if deadline is not None and self._in_charge(server):
            now = server.state_clock.lead(server.raft.term)
            if deadline <= now and self._rng.random() < 0.2:
                self._write(server, Request(Expire(), now))

    def _a_command(self, server):
        """Each is another: by its value, so that a read tells which write it saw, or by a version that no key ever has."""
        rng = self._rng
        self._number += 1
        if rng.random() < 0.5 or not self._in_charge(server):
            return self._a_write(server)
        now = server.state_clock.lead(server.raft.term)
        if self._requests and rng.random() < 0.4:
            again = rng.choice(self._requests)
            return again._replace(time=now) if rng.random() < 0.8 else again._replace(time=now, command=self._a_write(server))
        fence = None
        if rng.random() < 0.2:
            key = rng.choice(KEYS)
            fence = Fence(key, server.machine.find(key).created_index or 1 if rng.random() < 0.7 else rng.randrange(1, 50))
        request = Request(self._a_richer_write(server), now, rng.choice(("", f"request {self._number}")), fence)
        if request.key:
            self._requests = [*self._requests[1 - REMEMBERED:], request]
        return request

    @staticmethod
    def _in_charge(server):
        """A leader that has not applied what was written before it does not know what time it is."""
        return server.machine.position.index >= server.raft.role.first_index

    def _a_richer_write(self, server):
        rng, kind = self._rng, self._rng.random()
        key, value, ttl = rng.choice(KEYS), b"%d" % self._number, rng.choice((1, 200, 1000, 3000))
        if kind < 0.3:
            return self._a_write(server)
        if kind < 0.55:
            return Set(key, value, ttl=ttl)
        if kind < 0.65:
            return Touch(key, ttl, Conditions(if_none_match=(self._number << 32,)))
        if kind < 0.7:
            return DeletePrefix(rng.choice(PREFIXES))
        then, otherwise = ([self._a_part(part, key, value, ttl) for part in range(rng.randrange(4))] for _ in range(2))
        return Transaction(tuple(self._a_condition(server, key) for key in KEYS if rng.random() < 0.4), tuple(then), tuple(otherwise))

    def _a_condition(self, server, key):
        seen, what = server.machine.find(key), self._rng.choice(("index", "exists", "value"))
        return If(key, what, {"index": seen.modified_index, "exists": bool(seen.modified_index), "value": seen.value or b""}[what])

    def _a_part(self, number, key, value, ttl):
        key = self._rng.choice((*KEYS, key))
        return self._rng.choice((Set(key, b"%d.%s" % (number, value)), Set(key, value, ttl=ttl), Delete(key), Get(key)))

    def _a_write(self, server):
        rng, key = self._rng, self._rng.choice(KEYS)
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

    def _watch(self, server):
        """Somebody who watches goes on at any server, from the last change it has seen; each shows the next ones, none is missing."""
        changes = self.judge.model.changes_at(server.machine.position.index)
        try:
            seen = server.machine.history(self._watched, self._rng.choice((1, 3, 1000)))
        except HistoryGone:
            self.judge.counts["histories that were gone"] += 1
            self._watched = changes[-1][0]  # it reads all keys anew, here
            return
        expected = [change for change in changes if change[0] > self._watched]
        assert seen == expected[:len(seen)] and (seen or not expected), f"{server.name} showed {seen} after {self._watched}, not {expected}"
        self.judge.counts["changes that were watched"] += len(seen)
        self._watched = seen[-1][0] if seen else self._watched

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
                outcome = outcomes[entry.index]
                assert outcome == self.judge.model.outcomes[entry.index], f"{server.name} answered {outcome} to {entry}"
                self._count(outcome)
                self._answered_by(server, entry.index)
            else:
                write.refused = True
                self.judge.counts["writes discarded"] += 1
                assert write.entry not in self.judge.committed, f"a client was told that {write.entry} was discarded"

    def _count(self, outcome):
        counts, kind = self.judge.counts, outcome.kind
        counts["writes refused by their condition" if kind == "refused" else "writes answered"] += 1
        counts[f"writes: {kind}"] += 1
        counts["requests replayed"] += outcome.replayed

    def _committed(self, entry):
        """A write takes effect once, after all that was answered before it was called; never if its client was told it had not."""
        write = self._writes.get(entry.command)
        assert write is not None, f"nobody wrote {entry}"
        assert write.entry == entry, f"{write.entry} took effect as {entry}"
        assert not write.refused, f"{entry} was committed, and its client told that it was not"
        assert entry.index > write.floor, f"{entry} took effect before what was answered before it was called"
        self._called_at[entry.index] = write.called_at
        for row in self.judge.model.expired.get(entry.index, ()):
            self._check_expired(row)

    def _check_expired(self, row):
        """No key lives shorter than it was told to, whoever has led meanwhile, however wrong the clocks."""
        self.judge.counts["keys that expired"] += 1
        lived = self.judge.now - self._called_at[row.deadline_of]
        assert lived * self._fastest * 1000 + 2 >= row.ttl, f"{row} lived {lived:.3f} s"

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
        found = server.machine.find(key)
        row = self.judge.model.at(key, found.applied_index)
        read, expected = (found.value, found.modified_index, found.created_index, found.version), row[:4] if row else (None, 0, 0, 0)
        assert read == expected, f"{server.name} read {read} at {found.applied_index}, not {expected}"
        return found.applied_index

    def _answered_by(self, server, index):
        """Not in the order of the log: what is foreseen may be answered before what comes before it."""
        server.answered_index = max(server.answered_index, index)
        self._answered(index)

    def _answered(self, point):
        self.floor = max(self.floor, point)
