"""A cluster of the production core under a simulated clock, network and disk. One seed decides all; Figure 3 holds at every step.

A server's disk keeps what ``saved`` has reported and nothing else. Its state machine is a position in the one sequence of
committed entries, so that "applied the same" is "applied what ``History.committed`` says". Knows nothing of threads or sockets.
"""

import heapq
import random
import zlib
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from raftd.config import Settings
from raftd.errors import RaftdError
from raftd.raft.configuration import NOBODY, Configuration, Configurations, Member
from raftd.raft.core import Base, Raft
from raftd.raft.log import Log
from raftd.raft.messages import (
    COMMAND, CONFIGURATION, AppendEntriesReply, HardState, InstallSnapshot, InstallSnapshotReply, RequestVote, TimeoutNow,
)

RPC_SECONDS = 0.4
CHUNKS = 3  # a snapshot is sent in so many chunks
STEPS = 1200  # of one run under faults
BOUND_SECONDS = 15  # of simulated time, some ten election timeouts: when nothing fails any more, there is progress by then
KEPT_EVENTS = 60  # the last ones, to be shown when something goes wrong

# What ``History.counts`` counts: of a run over many seeds, none may be zero, or something was not exercised.
EXERCISED = ("elections", "writes committed", "reads answered", "entries truncated", "membership changes committed",
             "leadership handed over", "logs compacted", "snapshots installed", "crashes", "power cuts that lost unsynced state",
             "writes interrupted by a crash", "messages lost", "messages repeated", "pauses", "partitions")


@dataclass
class Faults:
    """How often what happens, each a chance per message, or per server and step; the defaults are peace.

    delay_seconds  the longest way of a message
    stall          a write that hangs for up to 1.5 s
    skew           how far clocks run faster or slower than time
    impatient      a server waits less long for its disk before it answers a peer
    """

    loss: float = 0.0
    duplicate: float = 0.0
    delay_seconds: float = 0.02
    crash: float = 0.0
    pause: float = 0.0
    cut: float = 0.0
    heal: float = 1.0
    writes: float = 0.02
    slow_disk: float = 0.0
    stall: float = 0.0
    membership: float = 0.0
    transfer: float = 0.0
    impatient: float = 0.0
    skew: float = 0.0

    @classmethod
    def drawn(cls, rng):
        """Rates anew for each seed, many of them nil: a mild mix of everything finds less than an odd one."""
        def some(most):
            return rng.choice((0, 0, most / 4, most)) * rng.random()
        return cls(writes=0.2, loss=some(0.3), duplicate=some(0.5), delay_seconds=rng.choice((0.005, 0.02, 0.1, 0.3)),
                   crash=some(0.004), pause=some(0.003), cut=some(0.02), heal=rng.choice((0.01, 0.05)),
                   slow_disk=rng.choice((0, 0.5, 0.9)), stall=some(0.01), membership=some(0.3), transfer=some(0.02),
                   impatient=some(0.5), skew=some(0.3))


class Disk:
    """raft.db and state.db of one server, as a power cut leaves them; ``position`` survives only a kill -9."""

    def __init__(self, configuration):
        self.hard_state, self.base, self.entries = HardState(0, None), Base(0, 0, configuration), []
        self.position = self.durable_position = 0

    @property
    def last_index(self):
        return self.base.index + len(self.entries)

    def term_at(self, index):
        """The term of the durable entry at *index*; None if it is not there, or compacted."""
        if index == self.base.index:
            return self.base.term
        return self.entries[index - self.base.index - 1].term if self.base.index < index <= self.last_index else None

    def holds(self, index, term):
        """True if the entry is durable here, in the log or in the state machine."""
        return index <= max(self.base.index, self.durable_position) or self.term_at(index) == term

    def save(self, unsaved):
        if unsaved.hard_state:
            old, new = self.hard_state, unsaved.hard_state
            assert new.term > old.term or (new.term == old.term and old.voted_for in (None, new.voted_for)), (old, new)
            self.hard_state = new
        rows = [entry for entry in self.entries if entry.index < unsaved.log_from] + list(unsaved.entries)
        self.base = unsaved.base or self.base
        self.entries = [entry for entry in rows if entry.index > self.base.index]
        indexes = [entry.index for entry in self.entries]
        assert indexes == list(range(self.base.index + 1, self.last_index + 1)), "a gap in the log on disk"
        terms = [self.base.term, *(entry.term for entry in self.entries)]
        assert terms == sorted(terms), terms


class Server:
    """One server: its disk, which survives, and all that a crash takes away."""

    def __init__(self, name, configuration, rng, settings):
        self.name, self.rng, self.settings = name, rng, settings
        self.disk = Disk(configuration)
        self.limits = rng.choice((1, 30, 4 << 20)), rng.choice((1, 1000))  # of one write: bytes, and entries forgotten
        self.speed = 1.0
        self.up = False

    def boot(self, now, history):
        """What the runtime does at start. A state that the log does not lead up to was installed; the log then begins there."""
        disk = self.disk
        assert disk.position >= disk.base.index, "the state machine is behind the beginning of the log"
        configurations = Configurations(disk.base.index, disk.base.configuration)
        for entry in disk.entries:
            if entry.kind == CONFIGURATION:
                configurations.append(entry.index, Configuration.decode(entry.command))
        log, term = Log(disk.base.index, disk.base.term, disk.entries), history.term_at(disk.position)
        self.clock = now
        agrees = log.term_at(disk.position) == term
        applied = disk.position if agrees else disk.base.index
        self.raft = Raft(self.name, disk.hard_state, log, configurations, applied, self.settings, self.rng, now)
        self.raft.MAX_WRITE_BYTES, self.raft.MAX_COMPACTED_ENTRIES = self.limits
        if not agrees:
            self.raft.snapshot_installed(disk.position, term, history.configuration_at(disk.position))
        self.up, self.paused_until = True, 0.0
        self.writing = self.write_done = None
        self.incoming, self.installing = {}, []
        self.proposed, self.reads = {}, []
        self.led_to = None

    def crash(self, power_cut, history):
        self.up = False
        history.counts["crashes"] += 1
        history.counts["writes interrupted by a crash"] += self.writing is not None
        if power_cut:
            history.counts["power cuts that lost unsynced state"] += self.disk.position > self.disk.durable_position
            self.disk.position = self.disk.durable_position

    # What the threads of the runtime do, one action at a time

    def write(self, now, faults, history):
        raft = self.raft
        if self.writing is None:
            self.writing = raft.take_unsaved()
            seconds = 1.5 if self.rng.random() < faults.stall else 0.1 if self.rng.random() < faults.slow_disk else 0
            self.write_done = now + self.rng.random() * seconds
        elif now >= self.write_done:
            history.counts["entries truncated"] += self.writing.log_from <= self.disk.last_index
            history.counts["logs compacted"] += self.writing.base is not None
            self.disk.save(self.writing)
            written, self.writing = self.writing, None
            raft.saved(written)

    def apply(self, history):
        """The applier: installs what was received, or applies what is committed, and tells who waits."""
        disk = self.disk
        if self.installing:
            self._install(self.installing.pop(0), history)
        elif entries := self.raft.take_committed(self.rng.choice((1, 1000))):
            assert entries[0].index == disk.position + 1, "an entry was skipped or applied twice"
            for entry in entries:
                history.check_applied(entry)
                if self.proposed.pop(entry.index, None) == entry:
                    history.floor = max(history.floor, entry.index)
            disk.position = entries[-1].index
            self.raft.applied(disk.position)

    def _install(self, answer, history):
        request, disk = answer.request, self.disk
        if request.last_included_index > disk.position:
            disk.position = disk.durable_position = request.last_included_index
            configuration = history.configuration_at(disk.position)
            self.raft.snapshot_installed(disk.position, request.last_included_term, configuration)
            history.counts["snapshots installed"] += 1
        self.raft.chunk_stored(answer, request.size, installed=True)

    def checkpoint(self, keep_entries):
        self.disk.durable_position = self.disk.position
        self.raft.compact(self.disk.durable_position, keep_entries, 10_000)

    def receive_chunk(self, answer):
        """A chunk that ``handle`` left to the caller."""
        request = answer.request
        offset = self.incoming.get(request.checksum, 0)
        if request.data and request.offset == offset:
            offset = self.incoming[request.checksum] = offset + len(request.data)
        if offset == request.size:
            self.installing.append(answer)
        else:
            self.raft.chunk_stored(answer, offset, installed=False)

    def answer_reads(self, history):
        """A read is answered with the state as it is then; no later read may see an older one."""
        self.reads += self.raft.finished_reads
        self.raft.finished_reads.clear()
        waiting = []
        for read in self.reads:
            if read.failed:
                continue
            if self.disk.position < read.index:
                waiting.append(read)
                continue
            assert self.disk.position >= read.context, f"{self.name} read at {self.disk.position} what was {read.context} before"
            history.floor = max(history.floor, self.disk.position)
            history.counts["reads answered"] += 1
        self.reads = waiting


@dataclass
class History:
    """What no run may contradict; kept over all incarnations.

    floor  no linearizable read that begins now may be answered from a state older than this index
    """

    first_configuration: Configuration
    committed: list = field(default_factory=list)
    commit_terms: list = field(default_factory=list)
    leaders: dict = field(default_factory=dict)
    votes: dict = field(default_factory=dict)
    entries: dict = field(default_factory=dict)
    floor: int = 0
    counts: Counter = field(default_factory=Counter)

    def term_at(self, index):
        return self.committed[index - 1].term if index else 0

    def configuration_at(self, index):
        rows = [entry for entry in self.committed[:index] if entry.kind == CONFIGURATION]
        return Configuration.decode(rows[-1].command) if rows else self.first_configuration

    def check_applied(self, entry):
        """State Machine Safety: nobody ever applies another entry at the same index."""
        assert self.committed[entry.index - 1] == entry, (entry, self.committed[entry.index - 1])


class Cluster:
    """Servers, the network between them, and the judge."""

    def __init__(self, seed, size=3, spares=2, faults=None):
        self.rng = rng = random.Random(seed)
        self.faults = faults or Faults.drawn(rng)
        names = [f"n{number}" for number in range(1, size + spares + 1)]
        members = Configuration({name: Member(name, f"{name}:1") for name in names[:size]})
        self.settings = Settings(max_append_bytes=rng.choice((1, 40, 1 << 20)))
        self.keep_entries = rng.choice((0, 3, 50, 10_000))
        self.history = History(members)
        self.servers = {name: Server(name, members if name in members.members else NOBODY, rng, self.settings) for name in names}
        self.now, self.trace = 0.0, 0
        self.events = deque(maxlen=KEPT_EVENTS)  # (seconds, what), to be shown as text
        self._heap, self._sequence = [], 0
        self._busy, self._cut = {}, set()
        self._commits = {}
        self._checked = {}
        for server in self.servers.values():
            server.speed = 1 + self.faults.skew * (rng.random() - 0.5)
            server.boot(0.0, self.history)

    # The course of events

    def step(self):
        """Up to 20 ms: what is due arrives, then every server that runs does some of what it has to do, in any order."""
        self.now += self.rng.random() * 0.02
        while self._heap and self._heap[0][0] <= self.now:
            _, _, action, args = heapq.heappop(self._heap)
            action(*args)
        self._break_things()
        for server in self.servers.values():
            if not server.up or server.paused_until > self.now:
                continue
            actions = [self._tick, self._disk, self._apply, self._client, self._send]
            self.rng.shuffle(actions)
            for action in actions:
                action(server)
        self.check()
        rafts = [server.raft for server in self.servers.values()]
        seen = [(raft.term, raft.commit_index, raft.log.last_index) for raft in rafts]
        self.trace = zlib.crc32(repr(seen).encode(), self.trace)

    def peace(self):
        """From now on nothing fails; what is down comes back."""
        self.faults = Faults()
        self._cut.clear()
        for server in self.servers.values():
            server.paused_until, server.speed = 0.0, 1.0
            if not server.up:
                server.boot(self.now, self.history)

    def cut_off(self, name):
        """Nothing reaches *name*, and nothing comes from it."""
        for other in self.servers:
            self.cut_link(name, other)

    def cut_link(self, one, other):
        self._cut |= {(one, other), (other, one)}

    def _tick(self, server):
        server.clock = max(server.clock, self.now * server.speed)
        server.raft.tick(server.clock)

    def _disk(self, server):
        server.write(self.now, self.faults, self.history)
        self._check_commit(server)

    def _apply(self, server):
        server.apply(self.history)
        server.answer_reads(self.history)
        if self.rng.random() < 0.02:
            server.checkpoint(self.keep_entries)

    def _break_things(self):
        faults, rng = self.faults, self.rng
        for server in self.servers.values():
            if not server.up:
                if rng.random() < 0.03:
                    server.boot(self.now, self.history)
                    self._note_event(server.name, "starts again")
            elif rng.random() < faults.crash:
                server.crash(rng.random() < 0.5, self.history)
                self._note_event(server.name, "crashes")
            elif rng.random() < faults.pause:
                server.paused_until = self.now + rng.random() * 3
                self.history.counts["pauses"] += 1
                self._note_event(server.name, "pauses until", server.paused_until)
        if rng.random() < faults.cut:
            one, other = rng.sample(list(self.servers), 2)
            everyone = [name for name in self.servers if name != one]
            self._cut |= rng.choice(({(one, other)}, {(one, name) for name in everyone}, {(name, one) for name in everyone}))
            self.history.counts["partitions"] += 1
            self._note_event(one, "is cut; links down:", *sorted(self._cut))
        if rng.random() < faults.heal:
            self._cut.clear()

    def _client(self, server):
        rng, raft = self.rng, server.raft
        try:
            if rng.random() < 0.1:
                raft.read_index(self.history.floor)
            if raft.is_leader and rng.random() < self.faults.writes and raft.log.last_index < raft.commit_index + 20:
                self._note(server, raft.propose(b"%d" % self._next()))
            if raft.is_leader and rng.random() < self.faults.membership:
                configuration = self._another_configuration(raft.configuration)
                if configuration.voters and configuration.differs_by_one_vote_at_most(raft.configuration):
                    raft.propose_configuration(configuration)
            if raft.is_leader and rng.random() < self.faults.transfer and raft.best_successor:
                raft.transfer_leadership(raft.best_successor)
        except RaftdError:
            pass  # it said so before anything changed; the invariants would show if that were not true

    def _another_configuration(self, configuration):
        name = self.rng.choice(list(self.servers))
        if name not in configuration.members:
            return configuration.with_member(Member(name, f"{name}:1", voter=False))
        if not configuration.is_voter(name):
            return configuration.promoted(name)
        return configuration.without(name)

    def _note(self, server, entry):
        server.proposed[entry.index] = entry

    # The network

    def _next(self):
        self._sequence += 1
        return self._sequence

    def _later(self, seconds, action, *args):
        heapq.heappush(self._heap, (self.now + seconds, self._next(), action, args))

    def _send(self, server):
        raft = server.raft
        for peer in raft.peers:
            if peer not in self.servers:
                continue
            for lane in ("small", "data"):
                if (server.name, peer, lane) not in self._busy and (request := self._request(server, peer, lane)):
                    self._call(server, peer, lane, request)

    def _request(self, server, peer, lane):
        raft = server.raft
        if lane == "small":
            return raft.request_for(peer)
        if raft.needs_snapshot(peer) and (index := server.disk.position):
            raft.snapshot_offered(peer, index, self.history.term_at(index), CHUNKS, b"%d" % index)
        request = raft.data_for(peer)
        if isinstance(request, InstallSnapshot):
            request = replace(request, data=bytes(int(request.offset < CHUNKS)))
        return request

    def _call(self, server, peer, lane, request):
        self._check_request(server, request)
        call = (server.name, peer, lane)
        self._busy[call] = request
        self._later(RPC_SECONDS, self._finish, call, request, server.raft, None)
        self._carry(call[0], peer, self._deliver, call, request, server.raft, True)
        if self.rng.random() < self.faults.duplicate:
            self.history.counts["messages repeated"] += 1
            self._carry(call[0], peer, self._deliver, call, request, server.raft, False)

    def _carry(self, sender, receiver, action, *args):
        if (sender, receiver) not in self._cut and self.rng.random() >= self.faults.loss:
            self._later(self.rng.random() * self.faults.delay_seconds, action, *args)
        else:
            self.history.counts["messages lost"] += 1

    def _deliver(self, call, request, asker, answers):
        """The request arrives; the reply leaves when there is one, or when the caller's patience ends."""
        server = self.servers[call[1]]
        if not server.up:
            return
        if server.paused_until > self.now:
            self._later(server.paused_until - self.now, self._deliver, call, request, asker, answers)
            return
        before = server.raft.term, server.raft.voted_for
        self.history.counts["leadership handed over"] += isinstance(request, TimeoutNow)
        self._note_event(call[0], "->", call[1], request)
        answer = server.raft.handle(request)
        self._check_commit(server)
        if isinstance(request, RequestVote) and request.pre_vote:
            assert before == (server.raft.term, server.raft.voted_for), "a pre-vote changed something"
        if isinstance(request, InstallSnapshot) and answer.make_reply is None:
            server.receive_chunk(answer)
        deadline = self.now + RPC_SECONDS / (8 if self.rng.random() < self.faults.impatient else 2)
        self._await_reply(call, server.raft, answer, deadline, asker, answers)

    def _await_reply(self, call, asked, answer, deadline, asker, answers):
        server = self.servers[call[1]]
        if not server.up or server.raft is not asked:
            return
        if answer.reply is None and self.now >= deadline:
            asked.answer_now(answer)
        if answer.reply is None and self.now >= deadline:
            asked.drop(answer)
        elif answer.reply is None or server.paused_until > self.now:
            self._later(0.005, self._await_reply, call, asked, answer, deadline, asker, answers)
        else:
            self._check_reply(server, answer)
            if answers:
                self._carry(call[1], call[0], self._finish, call, answer.request, asker, answer.reply)

    def _finish(self, call, request, asker, reply):
        """The reply arrives, or (None) does not in time; a server that is paused meets it when it wakes."""
        server = self.servers[call[0]]
        if self._busy.get(call) is not request:
            return
        if server.paused_until > self.now:
            self._later(server.paused_until - self.now, self._finish, call, request, asker, reply)
            return
        del self._busy[call]
        self._note_event(call[0], "<-", call[1], reply or "no answer")
        if server.up and server.raft is asker:
            asker.handle_reply(call[1], request, reply)
            self._check_commit(server)

    def _note_event(self, *what):
        self.events.append((self.now, what))

    def story(self):
        """The last events, a line each."""
        lines = [f"{seconds:8.3f}  {' '.join(map(str, what))}" for seconds, what in self.events]
        states = [f"{server.name}: {'up' if server.up else 'down'} {type(server.raft.role).__name__} term={server.raft.term} "
                  f"log={server.raft.log.snapshot_index}..{server.raft.log.last_index} commit={server.raft.commit_index} "
                  f"disk={server.disk.hard_state} ..{server.disk.last_index}" for server in self.servers.values()]
        return "\n".join(lines + states)

    # The judge

    def check(self):
        """Everything that must be true at every moment."""
        for server in self.servers.values():
            if server.up:
                self._check_indexes(server)
                self._check_commit(server)
        for server in self.servers.values():
            if server.up and server.raft.is_leader:
                self._check_leader(server)
        if self.rng.random() < 0.1:
            self.check_logs()

    def _check_request(self, server, request):
        """Nothing that depends on the term or the vote leaves before both are durable."""
        hard_state = server.disk.hard_state
        if isinstance(request, RequestVote) and not request.pre_vote:
            assert hard_state == (request.term, server.name), (hard_state, request)
            self._check_vote(server.name, request.term, server.name)
        elif not isinstance(request, RequestVote):
            assert hard_state.term >= request.term, (hard_state, request)

    def _check_reply(self, server, answer):
        """Nor does a reply before all that it promises is."""
        request, reply, disk = answer.request, answer.reply, server.disk
        durable = max(disk.last_index, disk.durable_position)
        assert disk.hard_state.term >= reply.term, (disk.hard_state, reply)
        match reply:
            case AppendEntriesReply(success=True, match_index=index):
                assert index <= durable, f"{server.name} has {durable} on disk, and says {index}"
            case InstallSnapshotReply(installed=True):
                index = request.last_included_index
                assert index <= durable, f"{server.name} has {durable} on disk, and says {index} is installed"
        if isinstance(request, RequestVote) and not request.pre_vote and reply.vote_granted:
            assert disk.hard_state == (request.term, request.candidate_id), (disk.hard_state, request)
            self._check_vote(server.name, request.term, request.candidate_id)

    def _check_vote(self, name, term, candidate):
        assert self.history.votes.setdefault((name, term), candidate) == candidate, f"{name} voted twice in term {term}"

    def _check_indexes(self, server):
        raft = server.raft
        assert raft.last_applied <= raft.commit_index <= raft.log.last_index, server.name
        assert raft.last_applied <= raft.saved_index <= raft.log.last_index, server.name
        assert raft.saved_index <= max(server.disk.last_index, server.disk.durable_position), server.name
        assert raft.term >= server.disk.hard_state.term, server.name

    def _check_commit(self, server):
        """What one commits, all commit; an entry is committed by a leader when a majority has it on disk."""
        raft, history = server.raft, self.history
        incarnation, known = self._commits.get(server.name, (None, 0))
        known = max(known if incarnation is raft else 0, raft.log.snapshot_index)
        assert incarnation is not raft or self._commits[server.name][1] <= raft.commit_index, "commit_index went back"
        for index in range(known + 1, raft.commit_index + 1):
            entry, = raft.log.entries(index, index)
            if index > len(history.committed):
                history.committed.append(entry)
                history.commit_terms.append(raft.term)
                history.counts["membership changes committed"] += entry.kind == CONFIGURATION
                history.counts["writes committed"] += entry.kind == COMMAND
                holders = {name for name, other in self.servers.items() if other.disk.holds(index, entry.term)}
                assert raft.configuration.is_majority(holders), f"{entry} was committed with only {holders}"
            assert history.committed[index - 1] == entry, f"{server.name} committed {entry}, not {history.committed[index - 1]}"
        self._commits[server.name] = raft, raft.commit_index

    def _check_leader(self, server):
        raft, history = server.raft, self.history
        history.counts["elections"] += raft.term not in history.leaders
        assert history.leaders.setdefault(raft.term, server.name) == server.name, f"two leaders in term {raft.term}"
        last = raft.log.last_index, raft.log.last_term
        if server.led_to and server.led_to[0] == raft.term and server.led_to[1] > raft.log.snapshot_index:
            assert raft.log.term_at(server.led_to[1]) == server.led_to[2], "a leader removed or replaced an entry of its own log"
        server.led_to = raft.term, *last
        checked = max(self._checked.get(raft.term, 0), raft.log.snapshot_index)
        for index in range(checked + 1, len(history.committed) + 1):
            if history.commit_terms[index - 1] < raft.term:
                assert raft.log.term_at(index) == history.term_at(index), f"the leader of term {raft.term} lacks entry {index}"
        self._checked[raft.term] = len(history.committed)
        newest = raft.term == max(other.disk.hard_state.term for other in self.servers.values())
        for peer, progress in raft.role.progress.items():
            assert 0 <= progress.match_index < progress.next_index, (server.name, peer, progress)
            if newest and progress.match_index > raft.log.snapshot_index:
                disk = self.servers[peer].disk
                assert disk.holds(progress.match_index, raft.log.term_at(progress.match_index)), (server.name, peer, progress)

    def check_logs(self):
        """Log Matching: (index, term) names one entry and one predecessor, everywhere, for ever. Members are as the log says."""
        for server in self.servers.values():
            log, configurations = server.raft.log, server.raft.configurations
            previous = log.snapshot_term
            for entry in log.entries(log.first_index, log.last_index):
                seen = self.history.entries.setdefault((entry.index, entry.term), (entry, previous))
                assert seen == (entry, previous), f"{server.name}: {entry} after term {previous}, elsewhere {seen}"
                previous = entry.term
            changes = [e for e in log.entries(log.first_index, log.last_index) if e.kind == CONFIGURATION]
            if changes:
                assert configurations.latest_index == changes[-1].index, f"{server.name} uses an old configuration"
                assert configurations.latest == Configuration.decode(changes[-1].command), server.name
            if server.raft.is_leader:
                assert sum(entry.index > len(self.history.committed) for entry in changes) <= 1, "two uncommitted configurations"

    # The end

    @property
    def leader(self):
        """The leader of the newest term, if every member follows it."""
        leaders = [server for server in self.servers.values() if server.up and server.raft.is_leader]
        return max(leaders, key=lambda server: server.raft.term, default=None)

    def led(self):
        """True if all members follow one leader, which has committed an entry of its term."""
        leader = self.leader
        if leader is None or leader.raft.commit_index < leader.raft.role.first_index:
            return False
        return leader.raft.configuration.is_voter(leader.name) and all(
            self.servers[name].raft.leader_id == leader.name for name in leader.raft.configuration.members)

    def converged(self):
        """True if, besides, they have its log and have applied what it has."""
        if not self.led():
            return False
        raft = self.leader.raft
        members = [self.servers[name] for name in raft.configuration.members]
        return all((server.raft.log.last_index, server.raft.log.last_term) == (raft.log.last_index, raft.log.last_term)
                   and server.disk.position == raft.commit_index for server in members)


def run_until(cluster, truth, seconds):
    """True if *truth* came within so many simulated seconds."""
    end = cluster.now + seconds
    while cluster.now < end:
        cluster.step()
        if truth():
            return True
    return False


def run(seed):
    """One run: first faults, under which nothing wrong may happen (safety), then peace, in which there is progress (liveness).

    Returns the counts of what it exercised; raises AssertionError with the story of the end.
    """
    cluster = Cluster(seed, size=3 if seed % 2 else 5)
    counts = cluster.history.counts
    try:
        for _ in range(STEPS):
            cluster.step()
        cluster.peace()
        committed, reads = len(cluster.history.committed), counts["reads answered"]

        def progress():
            return len(cluster.history.committed) > committed + 1 and counts["reads answered"] > reads and cluster.converged()
        assert run_until(cluster, progress, BOUND_SECONDS), "no progress on a healthy network"
        cluster.check_logs()
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r}\n{cluster.story()}\nagain: bin/simulate --seeds 1 --from {seed}") from error
    return counts
