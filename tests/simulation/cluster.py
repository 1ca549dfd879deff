"""The course of events: servers, the network between them, what breaks, and when. ``run`` is one seed from its faults to its peace."""

import heapq
import random
from collections import deque
from dataclasses import replace
from itertools import permutations

from simulation.clients import Clients
from simulation.faults import Faults, partition
from simulation.judge import Judge
from simulation.server import Server

from raftd.config import Settings
from raftd.errors import RaftdError
from raftd.raft.configuration import NOBODY, Configuration, Member
from raftd.raft.messages import InstallSnapshot, RequestVote, TimeoutNow
from raftd.raft.roles import Candidate, Follower, Leader

RPC_SECONDS = 0.4
STEPS = 1000  # of one run under faults
SMALL = {6: (1, 2), 13: (2, 1)}  # seed, of twenty: so few servers, and spares; they lead alone, or cannot lose one
BOUND = 30  # election timeouts: when nothing fails any more, there is progress by then
KEPT_EVENTS = 60  # the last ones, to be shown when something goes wrong
CALLED_MEANWHILE = Faults(reads=1, writes=1)
_ORDERS = list(permutations(range(5)))


class Cluster:
    """Servers, clients, the network, and the judge. With *record* every event is kept, not just the last."""

    def __init__(self, seed, size=3, spares=2, faults=None, record=False):
        self.rng = rng = random.Random(seed)
        self.faults = faults or Faults.drawn(rng)
        self.names = names = [f"n{number}" for number in range(1, size + spares + 1)]
        members = Configuration({name: Member(name, f"{name}:1") for name in names[:size]})
        self.settings = Settings(max_append_bytes=rng.choice((1, 40, 1 << 20)),
                                 election_timeout_seconds=self.faults.patience * Settings().election_timeout_seconds)
        self.keep_entries = rng.choice((0, 3, 50, 10_000))
        self.servers = {name: Server(name, members if name in members.members else NOBODY, rng, self.settings, lambda: self.now)
                        for name in names}
        self.judge = Judge(self.servers, members)
        self.counts = self.judge.counts
        self.clients = Clients(self.judge, rng, self._tick, 1 + self.faults.skew / 2)
        self.now = 0.0
        self.events = deque(maxlen=None if record else KEPT_EVENTS)  # (seconds, what), to be shown as text
        self._heap, self._sequence = [], 0
        self._busy, self._cut = {}, set()
        for server in self.servers.values():
            server.speed = 1 + self.faults.skew * (rng.random() - 0.5)
            server.boot(0.0)

    def step(self):
        """Up to 20 ms: what is due arrives, then every server that runs does some of what it has to do, in any order."""
        rng, heap = self.rng, self._heap
        self.now = now = self.now + rng.random() * 0.02
        for server in self.servers.values():
            if 0 < server.paused_until <= now:
                self._wake(server)
        while heap and heap[0][0] <= now:
            _, _, action, args = heapq.heappop(heap)
            action(*args)
        self._break_things()
        actions = self._tick, self._write, self._apply, self._call, self._send
        for server in self.servers.values():
            if server.up and server.paused_until <= now:
                for number in _ORDERS[int(rng.random() * len(_ORDERS))]:
                    actions[number](server)
        self.judge.check(now)

    # What a server does

    def _wake(self, server):
        """It does not know yet how long it slept, when it finds what clients have asked meanwhile."""
        server.paused_until = 0.0
        self._note(server.name, "wakes")
        if server.up:
            self.clients.call(server, replace(CALLED_MEANWHILE, leases=self.faults.leases))

    def _tick(self, server):
        raft = server.raft
        led = isinstance(raft.role, Leader)
        server.tell_time(self.now)
        if led:
            if raft.is_leader:
                self.judge.check_leadership(server)
            else:
                self.judge.count_deposed(raft.reason)

    def _write(self, server):
        server.write(self.now, self.faults, self.judge)

    def _apply(self, server):
        server.apply(self.clients)
        if server.reads or server.raft.finished_reads:
            self.clients.answer_reads(server)
        if self.rng.random() < 0.02:
            server.checkpoint(self.keep_entries)

    def _call(self, server):
        self.clients.call(server, self.faults)
        if (self.faults.membership or self.faults.transfer) and server.raft.is_leader:
            self._operate(server.raft)

    def _operate(self, raft):
        """An operator changes the members, or hands leadership over."""
        rng, faults = self.rng, self.faults
        try:
            if rng.random() < faults.membership:
                configuration = self._another_configuration(raft.configuration)
                if configuration.voters and configuration.differs_by_one_vote_at_most(raft.configuration):
                    raft.propose_configuration(configuration)
            if rng.random() < faults.transfer and raft.best_successor:
                raft.transfer_leadership(raft.best_successor)
        except RaftdError:
            pass  # it said so before anything changed; the judge would see it if that were not true

    def _another_configuration(self, configuration):
        name = self.rng.choice(self.names)
        if name not in configuration.members:
            return configuration.with_member(Member(name, f"{name}:1", voter=False))
        if not configuration.is_voter(name):
            return configuration.promoted(name)
        return configuration.without(name)

    # What breaks

    def _break_things(self):
        faults, rng = self.faults, self.rng
        for server in self.servers.values():
            chance = rng.random()
            if not server.up:
                if chance < 0.03:
                    self._boot(server)
            elif chance < faults.crash:
                self.crash(server, rng.random() < 0.5)
            elif chance < faults.crash + faults.pause:
                server.paused_until = self.now + rng.random() * 3
                self.counts["pauses"] += 1
                self._note(server.name, "pauses until", server.paused_until)
            if server.up and rng.random() < faults.mistaken:
                self.find_leader_dead(server)
        if self.leader and rng.random() < faults.walled:
            self._wall_in(self.leader)
        if rng.random() < faults.cut:
            kind, links = partition(self.names, self.leader and self.leader.name, rng)
            self._cut |= links
            self.counts[f"partitions: {kind}"] += 1
            self._note("partition:", kind, *sorted(links))
        if self._cut and rng.random() < faults.heal:
            self._cut.clear()
            self._note("all links work again")

    def _wall_in(self, leader):
        self.cut_off(leader.name)
        self.counts["leaders walled in"] += 1
        self._note("a wall around", leader.name)
        for server in self.servers.values():
            if server.up and server.raft.leader_id == leader.name:
                self.find_leader_dead(server)

    def crash(self, server, power_cut=False):
        """*server* stops; its followers may notice, if its host still runs."""
        server.crash(power_cut, self.judge)
        self._note(server.name, "loses its power" if power_cut else "crashes")
        for other in self.servers.values():
            if other.up and other.raft.leader_id == server.name and not power_cut and self.rng.random() < self.faults.noticed:
                self.find_leader_dead(other)  # one of its connections ends; what came by the other may still be looked at
                self.find_leader_dead(other, self.faults.delay_seconds)

    def find_leader_dead(self, server, after_seconds=0.0):
        """A connection of *server*'s leader has ended; a little later *server* finds, rightly or not, that nobody listens there."""
        raft = server.raft
        if raft.leader_id not in (None, server.name):
            seconds = after_seconds + self.rng.random() * self.faults.delay_seconds
            self._later(seconds, self._leader_is_gone, server, raft, raft.leader_id, raft.term)

    def _leader_is_gone(self, server, raft, leader_id, term):
        if not server.up or server.raft is not raft:
            return
        if server.paused_until > self.now:
            self._later(server.paused_until - self.now, self._leader_is_gone, server, raft, leader_id, term)
            return
        self._note(server.name, "finds that", leader_id, "of term", term, "is gone")
        before, is_late = (raft.term, raft.voted_for, raft.role), (raft.leader_id, raft.term) != (leader_id, term)
        self.counts["leaders found dead too late" if is_late else "leaders taken for dead that lived" if self.servers[leader_id].up
                    else "leaders found dead"] += 1
        raft.leader_is_gone(leader_id, term)
        assert (raft.term, raft.voted_for) == before[:2], "the word that a leader is dead is no reason for another term or vote"
        assert raft.role is before[2] or not is_late, f"{server.name} believed what was said of another leader, or of another term"

    def _boot(self, server):
        server.boot(self.now)
        self.judge.check_state(server)
        self._note(server.name, "starts again, its state at", server.machine.position.index)

    def peace(self):
        """From now on nothing fails; what is down comes back."""
        self._note("peace")
        self.faults = Faults()
        self._cut.clear()
        for server in self.servers.values():
            server.paused_until, server.speed = 0.0, 1.0
            if not server.up:
                self._boot(server)

    def cut_off(self, name):
        """Nothing reaches *name*, and nothing comes from it."""
        for other in self.servers:
            self.cut_link(name, other)

    def cut_link(self, one, other):
        self._cut |= {(one, other), (other, one)}

    # The network

    def _later(self, seconds, action, *args):
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + seconds, self._sequence, action, args))

    def _send(self, server):
        raft = server.raft
        match raft.role:
            case Leader():
                for peer in raft.peers:
                    self._send_small(server, peer)
                    self._send_data(server, peer)
            case Follower(leader_id, reads=reads):
                if reads:
                    self._send_small(server, leader_id)
            case Candidate():
                for peer in raft.peers:
                    self._send_small(server, peer)

    def _send_small(self, server, peer):
        call = server.name, peer, "small"
        if call not in self._busy and (request := server.raft.request_for(peer)):
            self._ask(call, request, server.raft)

    def _send_data(self, server, peer):
        raft, call = server.raft, (server.name, peer, "data")
        if call in self._busy:
            return
        if raft.needs_snapshot(peer):
            server.offer_snapshot(peer)
        request = raft.data_for(peer)
        if isinstance(request, InstallSnapshot):
            data = server.with_chunk(peer, request)
            request = None if data is None else replace(request, data=data)
        if request:
            self._ask(call, request, raft)

    def _ask(self, call, request, asker):
        self.judge.check_request(self.servers[call[0]], request)
        self._busy[call] = request
        self._later(RPC_SECONDS, self._finish, call, request, asker, None)
        self._carry(call[0], call[1], self._deliver, call, request, asker, True)
        if self.rng.random() < self.faults.duplicate:
            self.counts["messages repeated"] += 1
            self._carry(call[0], call[1], self._deliver, call, request, asker, False)

    def _carry(self, sender, receiver, action, *args):
        if (sender, receiver) not in self._cut and self.rng.random() >= self.faults.loss:
            self._later(self.rng.random() * self.faults.delay_seconds, action, *args)
        else:
            self.counts["messages lost"] += 1

    def _deliver(self, call, request, asker, answers):
        """The request arrives; the reply leaves when there is one, or when the caller's patience ends."""
        server = self.servers[call[1]]
        if not server.up:
            return
        if server.paused_until > self.now:
            self._later(server.paused_until - self.now, self._deliver, call, request, asker, answers)
            return
        self._note(call[0], "->", call[1], request)
        answer = self._handle(server, request)
        deadline = self.now + RPC_SECONDS / (8 if self.rng.random() < self.faults.impatient else 2)
        self._await_reply(call, server.raft, answer, deadline, asker, answers)

    def _handle(self, server, request):
        raft = server.raft
        self._tick(server)
        before = raft.term, raft.voted_for
        answer = raft.handle(request)
        assert raft.lost is None, "whole files are taken for an older copy"
        self.judge.check_commit(server)
        match request:
            case RequestVote(pre_vote=True):
                assert before == (raft.term, raft.voted_for), "a pre-vote changed something"
            case TimeoutNow():
                self.counts["leadership handed over"] += 1
            case InstallSnapshot() if answer.make_reply is None:
                server.receive_chunk(answer)
        return answer

    def _await_reply(self, call, asked, answer, deadline, asker, answers):
        server = self.servers[call[1]]
        if not server.up or server.raft is not asked:
            return
        if answer.reply is None and self.now >= deadline:
            if isinstance(answer.request, InstallSnapshot) and answer.make_reply is None:  # all is here, and being installed
                asked.chunk_stored(answer, answer.request.size, installed=False)
            asked.answer_now(answer)
            if answer.reply is None:
                asked.drop(answer)
                return
        if answer.reply is None or server.paused_until > self.now:
            self._later(0.005, self._await_reply, call, asked, answer, deadline, asker, answers)
        else:
            self.judge.check_reply(server, answer)
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
        self._note(call[0], "<-", call[1], reply or "no answer")
        if server.up and server.raft is asker:
            if reply:
                server.heard[call[1]] = server.clock
            asker.handle_reply(call[1], request, reply)
            self.judge.check_commit(server)

    # What is told

    def _note(self, *what):
        self.events.append((self.now, what))

    def story(self):
        """The events that are kept, a line each, and how the servers stand."""
        lines = [f"{seconds:8.3f}  {' '.join(map(str, what))}" for seconds, what in self.events]
        states = [f"{server.name}: {'up' if server.up else 'down'} {type(server.raft.role).__name__} term={server.raft.term} "
                  f"log={server.raft.log.snapshot_index}..{server.raft.log.last_index} commit={server.raft.commit_index} "
                  f"disk={server.log.hard_state} ..{server.log.last_index} state={server.machine.position.index}"
                  for server in self.servers.values()]
        return "\n".join(lines + states)

    @property
    def leader(self):
        """The leader of the newest term, or None."""
        leaders = [server for server in self.servers.values() if server.up and server.raft.is_leader]
        return max(leaders, key=lambda server: server.raft.term, default=None)

    def led(self):
        """True if all members follow one leader, which has committed an entry of its term."""
        leader = self.leader
        if leader is None or leader.raft.commit_index < leader.raft.role.first_index:
            return False
        return leader.raft.configuration.is_voter(leader.name) and all(
            self.servers[name].raft.leader_id == leader.name for name in leader.raft.configuration.members)

    def has_applied(self, index):
        """True if, besides, all of them have applied more than *index*."""
        return self.led() and all(server.machine.position.index > index for server in self._members())

    def converged(self):
        """True if, besides, they have its log and have applied what it has."""
        if not self.led():
            return False
        raft = self.leader.raft
        return all((server.raft.log.last_index, server.raft.log.last_term) == (raft.log.last_index, raft.log.last_term)
                   and server.machine.position.index == raft.commit_index for server in self._members())

    def _members(self):
        return [self.servers[name] for name in self.leader.raft.configuration.members]


def run_until(cluster, truth, seconds):
    """True if *truth* came within so many simulated seconds."""
    end = cluster.now + seconds
    while cluster.now < end:
        cluster.step()
        if truth():
            return True
    return False


def run(seed, record=False):
    """One run: first faults, under which nothing wrong may happen (safety), then peace, in which there is progress (liveness).

    Returns the Cluster; raises AssertionError with the story of the end.
    """
    size, spares = SMALL.get(seed % 20) or ((3, 2) if seed % 2 else (5, 1))
    cluster = Cluster(seed, size, spares, record=record)
    try:
        for _ in range(STEPS):
            cluster.step()
        cluster.peace()
        _await_progress(cluster)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r}\n{cluster.story()}\nagain: bin/simulate --seeds 1 --from {seed}") from error
    return cluster


def _await_progress(cluster):
    """While clients go on, all members come to have what is new; once nobody writes, they have the same."""
    committed, reads = len(cluster.judge.committed), cluster.counts["linearizable reads answered"]
    seconds = BOUND * cluster.settings.election_timeout_seconds

    def progress():
        return cluster.has_applied(committed + 1) and cluster.counts["linearizable reads answered"] > reads
    assert run_until(cluster, progress, seconds), "no progress on a healthy network"
    cluster.faults = replace(cluster.faults, writes=0)
    assert run_until(cluster, cluster.converged, seconds), "the members do not come to have the same"
    for server in cluster.servers.values():
        cluster.judge.check_log(server)
        cluster.judge.check_state(server)
