"""Raft, the algorithm: requests in, replies out. No thread, clock, file, socket, logger or randomness of its own.

The caller tells the time (``tick``), asks what to send (``request_for``, ``data_for``), what to write (``take_unsaved``) and
what to apply (``take_committed``), and reports what came of it (``handle_reply``, ``saved``, ``applied``). A run is
therefore a pure function of its inputs. Nothing that depends on the term, the vote or an entry is sent before ``saved`` has
reported it durable.

Section numbers are those of the paper (Ongaro and Ousterhout 2014, extended version); "thesis" is Ongaro's dissertation.
"""

import math
from itertools import chain, takewhile
from typing import NamedTuple

from raftd.errors import NoLeader, NoQuorum, NotLeader
from raftd.raft.configuration import Configuration
from raftd.raft.messages import (
    COMMAND, CONFIGURATION, NOOP, AppendEntries, AppendEntriesReply, Entry, HardState, InstallSnapshot, InstallSnapshotReply, ReadIndex,
    ReadIndexReply, RequestVote, RequestVoteReply, TimeoutNow, TimeoutNowReply,
)
from raftd.raft.roles import Candidate, Follower, Leader, Outgoing, Progress, Read, Transfer


class Base(NamedTuple):
    """Where the log begins: the state machine stands for all up to ``index``."""

    index: int
    term: int
    configuration: Configuration


class Unsaved(NamedTuple):
    """What must become durable, all of it or none: rows from ``log_from`` on are replaced by ``entries``."""

    hard_state: HardState | None
    base: Base | None
    log_from: int
    entries: tuple[Entry, ...]

    @property
    def last_index(self):
        return self.log_from - 1 + len(self.entries)


class Answer:
    """The reply to a peer's request: None until all that it promises is durable.

    needs_index  the log must be saved up to here first
    make_reply   makes the reply when that is so; None while something else is waited for
    context      the caller's own; the core does not look at it
    """

    __slots__ = ("request", "reply", "needs_index", "make_reply", "context")

    def __init__(self, request, make_reply=None, needs_index=0):
        self.request, self.reply, self.context = request, None, None
        self.make_reply, self.needs_index = make_reply, needs_index


class Raft:
    """One server of a Raft cluster.

    name        this server
    hard_state  as it was saved; ``log`` and ``configurations`` likewise
    applied     index at which the state machine stands
    settings    ``heartbeat_seconds``, ``election_timeout_seconds``, ``max_append_bytes``
    random      a ``random.Random``, for election timeouts
    now         seconds, on any clock that never goes back

    Invariants: last_applied <= commit_index; last_applied <= saved_index <= log.last_index.
    """

    NO_MAJORITY = "no majority answers"  # the ``reason`` of a leader that stepped down by CheckQuorum
    MAX_WRITE_BYTES = 4 << 20  # commands in one write, at least one entry
    SLOWEST_DISK_BYTES_PER_SECOND = 8 << 20  # a large write may take as much longer
    MAX_COMPACTED_ENTRIES = 1000  # forgotten in one write
    SNAPSHOT_PATIENCE_SECONDS = 30.0  # a snapshot for a peer that has been silent for so long is given up
    NOTICE_SECONDS = 0.01  # a new commit_index waits this long for a request with entries to carry it to a peer
    LEASE_HEARTBEATS = 3  # for so long followers promise to elect nobody else, but at most for half an election timeout
    LEASE_TRUST = 0.8  # on such a part of that the leader counts: the clock of a follower may run faster than its own by a quarter
    LEASE_WANTED_SECONDS = 1.0  # for so long after it was last asked for a lease is renewed
    TURN_SECONDS = 0.02  # so far apart stand those who have lost their leader: a few times what asking for votes takes

    def __init__(self, name, hard_state, log, configurations, applied, settings, random, now):
        self.name, self.log, self.configurations = name, log, configurations
        self.term, self.voted_for = hard_state
        self.role = Follower()
        self.reason = "started"  # why the role is what it is, for the operator
        self.commit_index = self.last_applied = applied
        self.saved_index = log.last_index
        self.lost = None  # (index, term) of an entry that this server has confirmed and has no more, or None
        self.withdrawn = None  # why this server must neither lead nor stand for election, or None
        self.finished_reads = []  # reads that became ready or failed; the caller takes them away
        self.finished_answers = []  # answers whose reply is there; likewise
        self._settings, self._random, self.now = settings, random, now
        self._hard_state_saved = True
        self._base_saved = True
        self._compact_to = log.snapshot_index  # where compaction is going, a step with each write
        self._unsaved_from = log.last_index + 1
        self._saving_since = None  # when the write under way began
        self.disk_due = math.inf  # when it will have taken so long that the disk has failed
        self._answers = []
        self._retry_at = {}  # peers that did not answer, and when to try again
        self._gone, self._hasty_until = None, -math.inf  # the leader that was lost; until then elections are soon tried again
        lease_seconds = min(self.LEASE_HEARTBEATS * settings.heartbeat_seconds, settings.election_timeout_seconds / 2)
        self._lease_ms = math.ceil(1000 * lease_seconds)  # what is asked for, and promised at the most
        self._promised_until = -math.inf  # helps to elect nobody until then
        self._perhaps_promised_until = now + self._lease_ms / 1000  # the same, if it has promised so before it started
        self._timer = now
        if self.configuration.voters != [name]:  # a cluster of one has nobody to wait for
            self._set_election_timer()

    # What others may ask

    @property
    def configuration(self):
        return self.configurations.latest

    @property
    def peers(self):
        """Every other member of the cluster."""
        return [name for name in self.configuration.members if name != self.name]

    @property
    def leader_id(self):
        match self.role:
            case Leader():
                return self.name
            case Follower(leader_id):
                return leader_id
        return None

    @property
    def is_leader(self):
        return isinstance(self.role, Leader)

    @property
    def next_tick(self):
        """When ``tick`` has something to do."""
        return self._timer

    @property
    def disk_stalled_seconds(self):
        """For how long the disk has not answered, if that is so long that it has failed, else 0."""
        return self.now - self._saving_since if self.now >= self.disk_due else 0.0

    # Time

    def tick(self, now):
        """Tell the time, in seconds; what is due happens."""
        self.now = max(now, self.now)
        if self.now < self._timer:
            return
        if self.is_leader:
            self._check_leadership()
        else:
            self._election_due()

    def _set_election_timer(self):
        timeout = self._settings.election_timeout_seconds
        self._timer = self.now + timeout * (1 + self._random.random())

    def leader_is_gone(self, leader_id, term):
        """*leader_id*, which led *term* when its connection broke, is dead: its host refuses connections where it listened.

        Its follower need not wait out an election timeout. It forgets that leader, which is then no reason to refuse a vote, and soon
        asks whether it would be elected. All else stays as it is (pre-votes, the comparison of logs, a refusal by whoever hears the
        leader), so that a report that is false deposes no leader that a majority hears, and one that is believed by many costs an
        election, never safety. What this server has promised for a lease (thesis 6.4.1) it keeps all the same.
        """
        match self.role:
            case Follower(leader) if (leader, self.term) == (leader_id, term):
                self._become_follower(term, None, f"{leader_id} is gone")
                self._gone, self._hasty_until = leader_id, self._timer
                self._stand_in_turn(0)

    def _stand_in_turn(self, pause_turns):
        """Those who have lost their leader stand one after the other, in an order that all know: else they would share the votes."""
        others = [name for name in self.configuration.voters if name != self._gone]
        turn = others.index(self.name) if self.name in others else len(others)
        first = max(self.now, self._promised_until, self._perhaps_promised_until)
        self._timer = min(self._timer, first + self.TURN_SECONDS * (pause_turns + turn + self._random.random() / 2))

    def _check_leadership(self):
        """CheckQuorum (thesis 6.2): who hears no majority for an election timeout leads no longer. A stalled disk counts as failure."""
        self._timer = self.now + self._settings.heartbeat_seconds
        leader, timeout = self.role, self._settings.election_timeout_seconds
        heard = {peer for peer, progress in leader.progress.items() if self.now - progress.last_heard <= timeout}
        for peer, progress in leader.progress.items():
            if progress.reserved_from is not None and self.now - progress.last_heard > self.SNAPSHOT_PATIENCE_SECONDS:
                self.snapshot_withdrawn(peer)
        if leader.transfer and self.now >= leader.transfer.deadline:
            leader.transfer = None
        if self.withdrawn:
            self._become_follower(self.term, None, self.withdrawn)
        elif self.now >= self.disk_due:
            self._become_follower(self.term, None, "the disk has not answered for an election timeout")
        elif not self.configuration.is_majority(heard | {self.name}):
            self._become_follower(self.term, None, self.NO_MAJORITY)
        elif self._is_removed() and not leader.transfer:
            self._become_follower(self.term, None, "removed from the cluster")

    def _election_due(self):
        self._set_election_timer()
        if self._may_stand() and not self.withdrawn and self.now < self.disk_due:
            self._stand_for_election(pre_vote=True, reason="no leader heard")
        elif self.leader_id is not None:
            self._become_follower(self.term, None, "no leader heard")

    def _may_stand(self):
        """A voter; also one that its newest configuration leaves out, until that is committed: nobody else may have it (thesis 4.2.2)."""
        return self.configuration.is_voter(self.name) or self.configurations.at(self.commit_index)[1].is_voter(self.name)

    # Roles

    def _become_follower(self, term, leader_id, reason):
        """Section 5.1: a larger term is taken over at once, without a vote in it. In the same term the vote stays."""
        assert term >= self.term, (term, self.term)
        if term > self.term:
            self.term, self.voted_for, self._hard_state_saved = term, None, False
        self._hasty_until = -math.inf
        self._change_role(Follower(leader_id), reason)
        self._set_election_timer()

    def _stand_for_election(self, pre_vote, reason, leadership_transfer=False):
        """Section 5.2. The own vote counts like any other: once it is durable."""
        if not pre_vote:
            self.term, self.voted_for, self._hard_state_saved = self.term + 1, self.name, False
        self._change_role(Candidate(pre_vote, leadership_transfer, {self.name: True} if pre_vote else {}), reason)
        self._set_election_timer()
        self._count_votes()

    def _count_votes(self):
        candidate = self.role
        if not self.configuration.is_majority({peer for peer, granted in candidate.votes.items() if granted}):
            if self.now < self._hasty_until and self._cannot_win(candidate):
                self._stand_in_turn(1)
        elif candidate.pre_vote:
            self._stand_for_election(pre_vote=False, reason="a majority would vote for it")
        else:
            self._become_leader()

    def _cannot_win(self, candidate):
        """Too many have refused: they did not know yet that the leader is gone, or another stands as well."""
        return not self.configuration.is_majority({voter for voter in self.configuration.voters
                                                   if candidate.votes.get(voter, voter != self._gone)})

    def _become_leader(self):
        """A no-op first: only an entry of the own term can be committed by counting (sections 5.4.2 and 8)."""
        self._change_role(Leader(first_index=self.log.last_index + 1), "elected")
        self._timer = self.now + self._settings.heartbeat_seconds
        self._follow_configuration()
        self._append(NOOP, b"")

    def _change_role(self, role, reason):
        old = self.role
        self.role, self.reason = role, reason
        match old:
            case Leader(reads=reads):
                self._fail_reads(reads)
            case Follower(reads=reads, asked=asked):
                self._fail_reads(reads + asked)

    def step_down(self, reason):
        """Neither lead nor stand for election until the next election timeout; a follower does neither."""
        if not isinstance(self.role, Follower):
            self._become_follower(self.term, None, reason)

    def abandon_reads(self):
        """Fail every read that waits."""
        match self.role:
            case Leader(reads=reads) as leader:
                leader.reads = []
                self._fail_reads(reads)
            case Follower(reads=reads, asked=asked) as follower:
                follower.reads, follower.asked, follower.asking = [], [], None
                self._fail_reads(reads + asked)

    def _fail_reads(self, reads):
        for read in reads:
            self._finish_read(read, 0)
        self._release_answers()

    # Proposals

    def propose(self, command):
        """Append *command* to the log; returns its entry. Raises NotLeader or NoLeader, and then nothing has changed."""
        self._check_may_propose()
        return self._append(COMMAND, command)

    def propose_configuration(self, configuration):
        """Append a new membership, in force at once; returns its entry.

        One server at a time (thesis 4.1), only after the one before is committed, and only after this term has committed an entry
        (Ongaro, "bug in single-server membership changes", raft-dev, 2015). Raises NoQuorum while that is not so.
        """
        self._check_may_propose()
        if self.configurations.latest_index > self.commit_index:
            raise NoQuorum("the membership change before this one is not committed yet")
        if self.commit_index < self.role.first_index:
            raise NoQuorum("the leader has not committed an entry of its term yet")
        assert configuration.voters and configuration.differs_by_one_vote_at_most(self.configuration), configuration
        return self._append(CONFIGURATION, configuration.encode())

    def _check_may_propose(self):
        if not self.is_leader:
            raise NotLeader()
        if self.role.transfer:
            raise NoLeader(f"leadership is being handed to {self.role.transfer.target}")

    def _append(self, kind, command):
        entry = Entry(self.log.last_index + 1, self.term, kind, command)
        self.log.append(entry)
        if kind == CONFIGURATION:
            self.configurations.append(entry.index, Configuration.decode(command))
            self._follow_configuration()
        return entry

    def _follow_configuration(self):
        """A leader keeps Progress for just the members of its newest configuration."""
        progress = self.role.progress
        for peer in self.peers:
            if peer not in progress:
                progress[peer] = Progress(next_index=self.log.last_index + 1, last_heard=self.now)
        for peer in set(progress) - set(self.peers):
            del progress[peer]
        self.role.lease_until = -math.inf  # the majority that has promised it is perhaps none any more
        self.role.lease_rounds.clear()

    def transfer_leadership(self, target):
        """Hand leadership to the voter *target*, within an election timeout or not at all (thesis 3.10). Raises NotLeader, NoLeader."""
        self._check_may_propose()
        assert target != self.name and self.configuration.is_voter(target), target
        self.role.transfer = Transfer(target, self.now + self._settings.election_timeout_seconds)

    @property
    def best_successor(self):
        """The voter that lacks least of the log, or None."""
        voters = [peer for peer in self.role.progress if self.configuration.is_voter(peer)]
        return max(voters, key=lambda peer: (self.role.progress[peer].match_index, self.role.progress[peer].last_heard), default=None)

    # Reads

    def read_index(self, context=None):
        """Begin a linearizable read (thesis 6.4). It is done when it appears in ``finished_reads``. Raises NoLeader."""
        read = Read(context)
        match self.role:
            case Leader():
                self._begin_read(read)
            case Follower(leader_id, reads=reads) if leader_id is not None:
                reads.append(read)
            case _:
                raise NoLeader()
        return read

    def leased_index(self):
        """What must be applied before a read is answered without a word to anybody, or 0 if this server has no lease (thesis 6.4.1).

        Needs the time: it must have been told (``tick``) after the read was asked for. Then no other leader has been elected yet, if
        no follower's clock runs faster than this server's by more than a quarter, and none has jumped or stood still. From now on the
        lease is renewed for ``LEASE_WANTED_SECONDS``.
        """
        match self.role:
            case Leader(lease_until=lease_until, first_index=first_index, successor_called=False) as leader:
                leader.lease_wanted_until = self.now + self.LEASE_WANTED_SECONDS
                if self.now < lease_until and self.commit_index >= first_index:
                    return self.commit_index
        return 0

    @property
    def _lease_seconds(self):
        """How much of what followers promise the leader counts on."""
        return self.LEASE_TRUST * self._lease_ms / 1000

    def _extend_lease(self):
        """A lease begins when the requests were sent that a majority has answered: who promises something does so later."""
        leader = self.role
        promised = self._reached_by_majority({peer: progress.promised_round for peer, progress in leader.progress.items()}, leader.round)
        while leader.lease_rounds and leader.lease_rounds[0][0] <= promised:
            _, began = leader.lease_rounds.popleft()
            if self.configuration.is_voter(self.name):  # else the others are a majority already, and may elect one of them
                leader.lease_until = began + self._lease_seconds

    @property
    def waiting_reads(self):
        """How many reads are not finished yet."""
        match self.role:
            case Leader(reads=reads):
                return len(reads)
            case Follower(reads=reads, asked=asked):
                return len(reads) + len(asked)
        return 0

    def _begin_read(self, read):
        leader = self.role
        if not leader.round_open:  # a request that is already under way proves nothing about a read that begins now
            self._begin_round()
        read.round = leader.round
        if self.commit_index >= leader.first_index:
            read.index = self.commit_index
        leader.reads.append(read)
        self._confirm_reads()

    def _begin_round(self):
        leader = self.role
        leader.round, leader.round_open = leader.round + 1, True
        while leader.lease_rounds and leader.lease_rounds[0][1] + self._lease_seconds <= self.now:  # nobody has promised in time
            leader.lease_rounds.popleft()
        if self.now < leader.lease_wanted_until:
            leader.lease_rounds.append((leader.round, self.now))

    def _confirm_reads(self):
        """Reads whose round a majority has answered, once the no-op of the term is committed."""
        leader = self.role
        if not leader.reads or self.commit_index < leader.first_index:
            return
        answered = self._reached_by_majority({peer: progress.acked_round for peer, progress in leader.progress.items()}, leader.round)
        waiting = [read for read in leader.reads if read.round > answered]
        confirmed = [read for read in leader.reads if read.round <= answered]
        leader.reads = waiting
        for read in confirmed:
            self._finish_read(read, read.index or self.commit_index)
        if confirmed:
            self._release_answers()

    def _reached_by_majority(self, values, own):
        """The largest value that a majority of the voters has reached; *own* is this server's."""
        reached = sorted((own if name == self.name else values[name] for name in self.configuration.voters), reverse=True)
        return reached[len(reached) // 2]

    def _finish_read(self, read, index):
        """*index* 0: nobody can confirm it any more."""
        read.index, read.ready, read.failed = index, index > 0, index == 0
        if not isinstance(read.context, Answer):
            self.finished_reads.append(read)
            return
        read.context.make_reply = lambda: ReadIndexReply(self.term, index)
        asker = read.context.request.follower_id
        if self.is_leader and asker in self.role.progress and self.role.progress[asker].sent_commit < index:
            self.role.progress[asker].notice_due = self.now  # it cannot answer before it knows of the commit

    # Requests of peers

    def handle(self, request):
        """The Answer to a peer's *request*; its ``reply`` may come later, when it appears in ``finished_answers``."""
        if request.term > self.term and self._takes_over_term_of(request):
            self._become_follower(request.term, None, f"term {request.term} has begun")
        match request:
            case AppendEntries():
                answer = self._append_entries(request)
            case RequestVote():
                answer = self._request_vote(request)
            case ReadIndex():
                answer = self._read_index(request)
            case InstallSnapshot():
                answer = self._install_snapshot(request)
            case TimeoutNow():
                answer = self._timeout_now(request)
        self._answers.append(answer)
        self._release_answers()
        return answer

    def contradiction(self, request):
        """What shows that no server which keeps to the rules has sent *request*, or None.

        Raft is for servers that fail, not for those that lie. But what plainly cannot be is better refused than obeyed.
        """
        if not isinstance(request, (AppendEntries, InstallSnapshot)):
            return None
        if request.term == self.term and self.leader_id not in (None, request.leader_id):
            return f"{self.leader_id} leads term {self.term}"
        if isinstance(request, AppendEntries) and request.term >= self.term and request.prev_log_index <= self.commit_index:
            claims = chain([(request.prev_log_index, request.prev_log_term)], ((entry.index, entry.term) for entry in request.entries))
            for index, term in takewhile(lambda claim: claim[0] <= self.commit_index, claims):
                if index >= self.log.snapshot_index and self.log.term_at(index) != term:
                    return f"entry {index} is committed here, and of term {self.log.term_at(index)}, not {term}"
        return None

    def answer_now(self, answer):
        """The caller waits no longer: reply with what is durable so far, if the term is."""
        answer.needs_index = 0
        self._release_answers()

    def drop(self, answer):
        """Nobody waits for *answer* any more."""
        if answer in self._answers:
            self._answers.remove(answer)

    def _release_answers(self):
        waiting = []
        for answer in self._answers:
            durable = answer.needs_index <= self.saved_index or answer.request.term != self.term
            if self._hard_state_saved and durable and answer.make_reply:
                answer.reply = answer.make_reply()
                self.finished_answers.append(answer)
            else:
                waiting.append(answer)
        self._answers = waiting

    def _takes_over_term_of(self, request):
        """Section 5.1, but neither a pre-vote nor a vote asked for while a leader is heard changes anything (thesis 9.6, 4.2.3)."""
        return not isinstance(request, RequestVote) or not (request.pre_vote or self._refuses_votes(request))

    def _refuses_votes(self, request):
        """Leader stickiness (thesis 4.2.3): who hears a leader helps nobody to depose it, unless the leader itself asked for that."""
        if request.leadership_transfer and not request.pre_vote:
            return False
        if self.now < self._promised_until or self._must_wait_to_vote(request):
            return True
        match self.role:
            case Leader():
                return True
            case Follower(leader_id, last_heard):
                return leader_id is not None and self.now - last_heard < self._settings.election_timeout_seconds
        return False

    def _must_wait_to_vote(self, request):
        """Who has just started does not know what it has promised. It gives no answer then, rather than a refusal, so that it is asked
        again; a pre-vote breaks no promise."""
        return self.now < self._perhaps_promised_until and not (request.pre_vote or request.leadership_transfer)

    def _request_vote(self, request):
        """Figure 2, RequestVote, "Receiver implementation"."""
        if self._must_wait_to_vote(request):
            return Answer(request)
        granted = self.log.is_up_to_date(request.last_log_index, request.last_log_term) and not self._refuses_votes(request)
        if request.pre_vote:
            granted = granted and request.term > self.term
            return Answer(request, lambda: RequestVoteReply(self.term, granted))
        granted = granted and request.term == self.term and self.voted_for in (None, request.candidate_id)
        if granted and self.voted_for is None:
            self.voted_for, self._hard_state_saved = request.candidate_id, False
        if granted:
            self._set_election_timer()
        return Answer(request, lambda: RequestVoteReply(self.term, granted and self.term == request.term))

    def _hear_leader(self, request):
        """A valid request of the leader of this term."""
        assert not self.is_leader, f"two leaders in term {self.term}: {self.name} and {request.leader_id}"
        if not isinstance(self.role, Follower) or self.role.leader_id != request.leader_id:
            self._become_follower(self.term, request.leader_id, f"heard the leader {request.leader_id}")
        self.role.last_heard = self.now
        self._set_election_timer()

    def _append_entries(self, request):
        """Figure 2, AppendEntries, "Receiver implementation"."""
        if request.term < self.term:
            return Answer(request, lambda: AppendEntriesReply(self.term, False))
        promised = self._promise(request.lease_ms)
        self._hear_leader(request)
        self.role.leader_commit = max(self.role.leader_commit, request.leader_commit)
        self._check_nothing_is_lost(request)
        if not self.log.matches(request.prev_log_index, request.prev_log_term):
            index, term = self.log.conflict(request.prev_log_index)
            return Answer(request, lambda: AppendEntriesReply(self.term, False, 0, index, term, promised))
        self._accept_entries(request)
        matched = self.role.matched_index  # a heartbeat is answered at once, with what is durable
        return Answer(request, lambda: self._appended_reply(request, matched, promised), needs_index=matched if request.entries else 0)

    def _promise(self, lease_ms):
        """True if nobody is elected with the help of this server for so long (thesis 6.4.1): no longer than it waits after a restart."""
        promised = 0 < lease_ms <= self._lease_ms
        if promised:
            self._promised_until = max(self._promised_until, self.now + lease_ms / 1000)
        return promised

    def _check_nothing_is_lost(self, request):
        """A log keeps what it has of the leader of the term (section 5.3). If it does not, these are older files: see ``lost``."""
        index, prev = request.confirmed_index, (request.prev_log_index, request.prev_log_term)
        if index > self.log.last_index:
            self.lost = index, 0  # which term it was of, nobody says
        elif index and index == prev[0] and not self.log.matches(*prev):
            self.lost = prev

    def _accept_entries(self, request):
        first_new = self.log.first_new(request.entries)
        if first_new is not None:
            assert first_new > self.commit_index, "a committed entry would be overwritten"
            self.log.merge(request.entries)
            self._log_changed_from(first_new)
        last_new = request.prev_log_index + len(request.entries)
        self.role.matched_index = max(self.role.matched_index, last_new)
        self.commit_index = max(self.commit_index, min(request.leader_commit, last_new))

    def _appended_reply(self, request, matched, promised):
        if self.term != request.term:
            return AppendEntriesReply(self.term, False)
        return AppendEntriesReply(self.term, True, min(self.saved_index, matched), promised=promised)

    def _log_changed_from(self, index):
        """Entries from *index* on are new: what was saved there, or is being saved, does not count (the late "written" event)."""
        self._unsaved_from = min(self._unsaved_from, index)
        self.saved_index = min(self.saved_index, index - 1)
        self.configurations.truncate(index)
        for entry in self.log.entries(index, self.log.last_index):
            if entry.kind == CONFIGURATION:
                self.configurations.append(entry.index, Configuration.decode(entry.command))

    def _read_index(self, request):
        answer = Answer(request)
        if self.is_leader and request.term == self.term:
            self._begin_read(Read(answer))
        else:
            answer.make_reply = lambda: ReadIndexReply(self.term, 0)
        return answer

    def _timeout_now(self, request):
        if request.term == self.term and not self.is_leader and self.configuration.is_voter(self.name) and not self.withdrawn:
            self._stand_for_election(pre_vote=False, reason=f"{request.leader_id} hands leadership over", leadership_transfer=True)
        return Answer(request, lambda: TimeoutNowReply(self.term))

    def _install_snapshot(self, request):
        """Section 7. While ``make_reply`` is None the caller stores the chunk, and reports it with ``chunk_stored``."""
        if request.term < self.term:
            return Answer(request, lambda: InstallSnapshotReply(self.term, 0, False))
        self._hear_leader(request)
        answer = Answer(request)
        if request.last_included_index <= self.commit_index:
            self.chunk_stored(answer, request.size, installed=True)
        return answer

    def chunk_stored(self, answer, next_offset, installed):
        """The snapshot of *answer* is wanted from *next_offset* on, or *installed*: the state here is at least as new."""
        request = answer.request
        if installed:
            answer.needs_index = request.last_included_index
        answer.make_reply = lambda: InstallSnapshotReply(
            self.term, next_offset, installed and request.last_included_index <= self.saved_index)
        self._release_answers()

    def snapshot_installed(self, index, term, configuration):
        """The state machine now stands for all up to *index*; the log follows, keeping what comes after if it agrees (section 7)."""
        if index <= self.last_applied:
            return
        if self.log.term_at(index) == term:
            self.log.compact(index)
            self.configurations.compact(index)
        else:
            self.log.reset(index, term)
            self.configurations.reset(index, configuration)
        self._unsaved_from = max(min(self._unsaved_from, self.log.last_index + 1), index + 1)
        self.saved_index = max(min(self.saved_index, self.log.last_index), index)
        self.commit_index = max(self.commit_index, index)
        self.last_applied = index
        self._base_saved = False
        self._release_answers()

    # Requests to peers

    def next_request_at(self, peer):
        """When ``request_for(peer)`` has something though nothing else happens: not later than now if it has; math.inf for never."""
        wanted_at = math.inf
        match self.role:
            case Leader(progress=progress) if peer in progress and self.now < self.disk_due:
                wanted_at = -math.inf if self._must_hand_over_to(peer) else self._must_hear_at(progress[peer])
            case Candidate(votes=votes) if peer not in votes and self.configuration.is_voter(peer):
                wanted_at = -math.inf
            case Follower(leader_id, reads=reads, asking=asking) if peer == leader_id and reads and asking is None:
                wanted_at = -math.inf
        if not self._hard_state_saved:
            return math.inf
        return max(wanted_at, self._retry_at[peer]) if peer in self._retry_at else wanted_at

    def has_request_for(self, peer):
        """True if ``request_for(peer)`` has something now."""
        return self.next_request_at(peer) <= self.now

    def _must_hand_over_to(self, peer):
        transfer = self.role.transfer
        return bool(transfer) and transfer.target == peer and not transfer.sent \
            and self.role.progress[peer].match_index == self.log.last_index

    def _must_hear_at(self, progress):
        if self.role.reads and progress.sent_round < self.role.reads[-1].round:
            return -math.inf
        return min(progress.heartbeat_due, progress.notice_due)

    def request_for(self, peer):
        """A small request that *peer* should get now, or None: a vote, a heartbeat, a read, or the call to stand for election."""
        if not self.has_request_for(peer):
            return None
        match self.role:
            case Leader(transfer=transfer, progress=progress):
                if not self._must_hand_over_to(peer):
                    return self._append_entries_for(progress[peer], ())
                transfer.sent = self.role.successor_called = True
                return TimeoutNow(self.term, self.name)
            case Candidate(pre_vote, leadership_transfer):
                term = self.term + 1 if pre_vote else self.term
                return RequestVote(term, self.name, self.log.last_index, self.log.last_term, pre_vote, leadership_transfer)
            case Follower(reads=reads) as follower:
                follower.asked, follower.reads, follower.asking = reads, [], ReadIndex(self.term, self.name)
                return follower.asking

    def _append_entries_for(self, progress, entries):
        prev_log_index = progress.next_index - 1
        prev_log_term = self.log.term_at(prev_log_index)
        if prev_log_term is None:  # compacted; such a peer waits for a snapshot, and hears only that the leader lives
            prev_log_index = prev_log_term = 0
        lease_ms = self._lease_ms if self.now < self.role.lease_wanted_until else 0
        if lease_ms and not self.role.round_open:
            self._begin_round()
        self.role.round_open = False
        progress.sent_round, progress.sent_commit = self.role.round, self.commit_index
        progress.heartbeat_due, progress.notice_due = self.now + self._settings.heartbeat_seconds, math.inf
        return AppendEntries(self.term, self.name, prev_log_index, prev_log_term, entries, self.commit_index, self.role.round,
                             progress.match_index, lease_ms)

    def needs_snapshot(self, peer):
        """True if *peer* lacks entries that are compacted, and no snapshot has been offered for it (``snapshot_offered``).

        Not as long as the state here stands before the entry with which this server became a member: until then it knew of no members,
        and who installed that would know of none.
        """
        match self.role:
            case Leader(progress=progress) if peer in progress and progress[peer].next_index <= self.log.snapshot_index:
                return progress[peer].snapshot is None and peer not in self._retry_at \
                    and bool(self.configurations.at(self.last_applied)[1].members)
        return False

    def reserve_snapshot(self, peer):
        """A snapshot for *peer* is about to be made: compaction leaves what comes after it."""
        if self.needs_snapshot(peer):
            self.role.progress[peer].reserved_from = self.last_applied

    def snapshot_offered(self, peer, index, term, size, checksum):
        """A snapshot to send to *peer*, taken at *index*. One that the log does not lead on from is of no use."""
        if self.needs_snapshot(peer) and index >= self.log.snapshot_index:
            progress = self.role.progress[peer]
            progress.snapshot, progress.reserved_from = Outgoing(index, term, size, checksum), index

    def is_sending_snapshot_to(self, peer):
        return self.is_leader and peer in self.role.progress and self.role.progress[peer].snapshot is not None

    def snapshot_withdrawn(self, peer):
        """The snapshot for *peer* is gone, or is given up; if it is still needed, another must be made."""
        if self.is_leader and peer in self.role.progress:
            self.role.progress[peer].snapshot = self.role.progress[peer].reserved_from = None

    def match_index(self, peer):
        """How far *peer* is known to have this leader's log on disk; 0 when this server does not lead or know it."""
        return self.role.progress[peer].match_index if self.is_leader and peer in self.role.progress else 0

    def silent_for(self, peer):
        """Seconds since *peer* last answered this leader; 0 when this server does not lead or know it."""
        return self.now - self.role.progress[peer].last_heard if self.is_leader and peer in self.role.progress else 0.0

    def has_data_for(self, peer):
        """True if ``data_for(peer)`` has something now. A peer that did not answer gets data once it has answered something small."""
        match self.role:
            case Leader(progress=progress) if peer in progress and self._lacks_something(progress[peer]):
                return peer not in self._retry_at and self._hard_state_saved and self.now < self.disk_due
        return False

    def _lacks_something(self, progress):
        return progress.snapshot is not None or self.log.snapshot_index < progress.next_index <= self.log.last_index

    def data_for(self, peer):
        """A request with entries, or for a chunk of a snapshot (the caller puts in the data), that *peer* should get now, or None."""
        if not self.has_data_for(peer):
            return None
        progress = self.role.progress[peer]
        if (out := progress.snapshot) is not None:
            return InstallSnapshot(self.term, self.name, out.index, out.term, out.size, out.checksum, out.offset)
        return self._append_entries_for(progress, self.log.entries_from(progress.next_index, self._settings.max_append_bytes))

    # Replies of peers

    def handle_reply(self, peer, request, reply):
        """What *peer* said to *request*; None if it did not answer in time, or could not be reached.

        The caller must not tell what it asked before *peer* left the membership: who bears that name now may have joined without any
        of the files that the other had, and a reply says nothing of who gave it.
        """
        if reply is None:
            self._retry_at[peer] = self.now + self._settings.heartbeat_seconds
            self._unanswered(request)
            return
        self._retry_at.pop(peer, None)
        if reply.term > self.term:
            self._become_follower(reply.term, None, f"{peer} is in term {reply.term}")
        match request, self.role:
            case RequestVote(), Candidate():
                self._vote_reply(peer, request, reply)
            case ReadIndex(), Follower():
                self._read_index_reply(request, reply)
            case (AppendEntries() | InstallSnapshot() | TimeoutNow()), Leader() if request.term == self.term:
                self._follower_reply(peer, request, reply)

    def _unanswered(self, request):
        """Reads that the leader was asked about fail, and who still wants one asks again: none is kept that nobody waits for."""
        match self.role:
            case Follower(asked=asked, asking=asking) as follower if request is asking:
                follower.asked, follower.asking = [], None
                self._fail_reads(asked)

    def _vote_reply(self, peer, request, reply):
        """A vote counts only in the election it was asked for."""
        candidate = self.role
        election = (self.term + 1, True) if candidate.pre_vote else (self.term, False)
        if (request.term, request.pre_vote) == election:
            candidate.votes[peer] = reply.vote_granted
            self._count_votes()

    def _read_index_reply(self, request, reply):
        """An index of 0 fails the reads: it leads no longer, and its successor will say so."""
        follower = self.role
        if request is not follower.asking:
            return
        asked, follower.asked, follower.asking = follower.asked, [], None
        for read in asked:
            self._finish_read(read, reply.read_index)

    def _follower_reply(self, peer, request, reply):
        progress = self.role.progress.get(peer)
        if progress is None or reply.term < self.term:
            return
        progress.last_heard = self.now
        match request:
            case AppendEntries():
                progress.acked_round = max(progress.acked_round, request.round)
                if reply.promised:
                    progress.promised_round = max(progress.promised_round, request.round)
                    self._extend_lease()
                self._append_entries_reply(progress, request, reply)
                self._confirm_reads()
            case InstallSnapshot():
                self._install_snapshot_reply(progress, request, reply)
            case TimeoutNow() if self._is_removed():
                self._become_follower(self.term, None, "removed from the cluster")

    def _append_entries_reply(self, progress, request, reply):
        if reply.success:
            last_new = request.prev_log_index + len(request.entries)
            progress.match_index = max(progress.match_index, reply.match_index)
            progress.next_index = max(progress.next_index, progress.match_index + 1, last_new + 1)
            self._reserve_what_is_missing(progress)
            if progress.match_index > self.commit_index:
                self._advance_commit_index()
        elif request.prev_log_index == progress.next_index - 1:  # else a late answer, to what has been settled since
            next_index = min(self._next_index_after(reply), request.prev_log_index)
            progress.next_index = max(next_index, progress.match_index + 1)

    def _next_index_after(self, reply):
        """Section 5.3: skip all entries of a conflicting term at once, not one for each request."""
        if not reply.conflict_term:
            return reply.conflict_index
        last = self.log.last_index_of_term(reply.conflict_term)
        return last + 1 if self.log.term_at(last) == reply.conflict_term else min(last + 1, reply.conflict_index)

    def _install_snapshot_reply(self, progress, request, reply):
        snapshot = progress.snapshot
        if snapshot is None or snapshot.checksum != request.checksum:
            return
        if reply.installed:
            progress.snapshot = None
            progress.match_index = max(progress.match_index, request.last_included_index)  # which is committed
            progress.next_index = max(progress.next_index, progress.match_index + 1)
            self._reserve_what_is_missing(progress)
        else:
            snapshot.offset = reply.next_offset

    def _reserve_what_is_missing(self, progress):
        """Whoever has installed a snapshot has to catch up from there, or it was sent in vain."""
        if progress.snapshot is None and progress.reserved_from is not None:
            has_caught_up = progress.match_index >= self.commit_index
            progress.reserved_from = None if has_caught_up else max(progress.reserved_from, progress.match_index)

    # Commit

    def _advance_commit_index(self):
        """Figure 2, "Rules for Servers", leaders: a majority has it on disk, and it is of this term (section 5.4.2)."""
        leader = self.role
        index = self._reached_by_majority({peer: progress.match_index for peer, progress in leader.progress.items()}, self.saved_index)
        if index <= self.commit_index or self.log.term_at(index) != self.term:
            return
        self.commit_index = index
        for progress in leader.progress.values():
            progress.notice_due = min(progress.notice_due, self.now + self.NOTICE_SECONDS)
        self._confirm_reads()
        if self._is_removed() and not leader.transfer:
            self._leave()

    def _is_removed(self):
        """A leader that is not a voter of the committed configuration leads no longer (thesis 4.2.2)."""
        return self.configurations.latest_index <= self.commit_index and not self.configuration.is_voter(self.name)

    def _leave(self):
        """The configuration without this leader is committed; another is asked to lead at once (thesis 4.2.2, 3.10)."""
        self.role.transfer = Transfer(self.best_successor, self.now + self._settings.election_timeout_seconds)

    # The disk

    @property
    def has_unsaved(self):
        return not (self._hard_state_saved and self._base_saved and self._unsaved_from > self.log.last_index) \
            or self._compact_to > self.log.snapshot_index

    def take_unsaved(self):
        """What must be written now, or None. The caller writes it, and then calls ``saved`` with it; one at a time.

        Never so much that the disk takes long for it: a write that takes long counts as a failure.
        """
        assert self._saving_since is None, "one write at a time"
        if not self.has_unsaved:
            return None
        self._compact_a_step()
        entries = self.log.entries_from(self._unsaved_from, self.MAX_WRITE_BYTES)
        hard_state = None if self._hard_state_saved else HardState(self.term, self.voted_for)
        base = None if self._base_saved else self.base
        unsaved = Unsaved(hard_state, base, self._unsaved_from, entries)
        self._base_saved, self._unsaved_from, self._saving_since = True, unsaved.last_index + 1, self.now
        size = sum(len(entry.command) for entry in entries)
        self.disk_due = self.now + self._settings.election_timeout_seconds + size / self.SLOWEST_DISK_BYTES_PER_SECOND
        return unsaved

    def _compact_a_step(self):
        if self._compact_to > self.log.snapshot_index:
            step = self.log.entries_from(self.log.first_index, self.MAX_WRITE_BYTES)[:self.MAX_COMPACTED_ENTRIES]
            index = min(self._compact_to, step[-1].index)
            self.log.compact(index)
            self.configurations.compact(index)
            self._base_saved = False

    @property
    def base(self):
        return Base(self.log.snapshot_index, self.log.snapshot_term, self.configurations.at(self.log.snapshot_index)[1])

    def saved(self, unsaved):
        """*unsaved* is durable. It counts as far as it is still what the term, the vote and the log are."""
        self._saving_since, self.disk_due = None, math.inf
        if unsaved.hard_state == (self.term, self.voted_for):
            self._hard_state_saved = True
        self.saved_index = max(self.saved_index, min(unsaved.last_index, self._unsaved_from - 1))
        match self.role:
            case Leader():
                self._advance_commit_index()
            case Candidate(pre_vote=False, votes=votes) if self._hard_state_saved and self.name not in votes:
                votes[self.name] = True
                self._count_votes()
        self._release_answers()

    # The state machine

    @property
    def applicable_index(self):
        """Up to here the log is committed, and durable here, so that the state is never ahead of its log."""
        return min(self.commit_index, self.saved_index)

    @property
    def has_committed(self):
        return self.applicable_index > self.last_applied

    def take_committed(self, max_bytes):
        """Entries to apply next, in order, up to ``applicable_index``."""
        if not self.has_committed:
            return ()
        entries = self.log.entries_from(self.last_applied + 1, max_bytes)
        return entries[:self.applicable_index - self.last_applied]

    def applied(self, index):
        """The state machine stands at *index*."""
        assert self.last_applied <= index <= self.commit_index, (self.last_applied, index, self.commit_index)
        self.last_applied = index

    def compact(self, durable_index, keep_entries, keep_bytes):
        """Begin to forget entries that the state machine surely has on disk, but for a tail for slow followers.

        While a snapshot is on its way, and until its receiver has caught up, what comes after it is kept, or it would need another, and
        so on as long as clients write: up to 16 times as many bytes, however many entries these are.
        """
        index = min(durable_index, self.last_applied, self.saved_index)
        reserved_from = self._oldest_reserved_index()
        first_kept = self.log.tail_start(index, keep_entries, keep_bytes)
        if reserved_from is not None and reserved_from < first_kept - 1:
            first_kept = min(first_kept, self.log.first_within(reserved_from + 1, 16 * keep_bytes))
        self._compact_to = max(self._compact_to, first_kept - 1)

    def _oldest_reserved_index(self):
        if not self.is_leader:
            return None
        reserved = [progress.reserved_from for progress in self.role.progress.values()]
        return min((index for index in reserved if index is not None), default=None)
