"""What no run may contradict: Figure 3 of the paper, what the dissertation adds, and that nothing durable is forgotten.

Asserted after every step, over all incarnations of all servers. Of the servers only what changed since the last look is looked at.
"""

from collections import Counter

from raftd.raft.configuration import Configuration
from raftd.raft.core import Raft
from raftd.raft.messages import (
    COMMAND, CONFIGURATION, AppendEntriesReply, InstallSnapshotReply, RequestVote,
)
from raftd.raft.roles import Leader
from simulation.model import LIMITS, Model

# What ``Judge.counts`` counts: of a run over many seeds, none may be zero, or something was not exercised.
EXERCISED = (
    "elections", "writes committed", "writes answered", "writes answered before they were applied",
    "writes refused by their condition", "writes: reused", "writes: fenced", "writes: transacted", "writes: touched", "writes: expired",
    "writes: deleted-prefix", "requests replayed", "keys that expired", "changes that were watched", "histories that were gone",
    "writes of unknown outcome", "writes discarded", "linearizable reads answered",
    "reads that rested on a lease", "stale reads answered", "entries truncated", "membership changes committed", "learners promoted",
    "leadership handed over", "leaders deposed for want of a majority", "leaders deposed by a stalled disk", "logs compacted",
    "snapshots installed", "snapshots interrupted", "crashes", "power cuts that lost unsynced state",
    "writes interrupted by a crash that happened", "writes interrupted by a crash that did not happen", "disks stalled",
    "leaders walled in", "leaders found dead", "leaders taken for dead that lived", "leaders found dead too late", "messages lost",
    "messages repeated", "pauses", "partitions: one way", "partitions: one link", "partitions: dangling", "partitions: cut off",
    "partitions: deaf", "partitions: mute", "partitions: halves", "partitions: bridge",
)


class Judge:
    """Knows all that was ever committed, voted and led, and compares.

    committed, commit_terms   the one sequence of entries, and the leader's term in which each was committed
    on_commit                 called with each entry of a command when it is committed: the clients have a say too
    """

    def __init__(self, servers, configuration):
        self.servers, self.first_configuration = servers, configuration
        self.committed, self.commit_terms, self.model, self.now = [], [], Model(), 0.0
        self.leaders, self.votes, self.entries = {}, {}, {}
        self.on_commit = lambda entry: None
        self.counts = Counter()
        self._led_to = {}  # term: up to where the committed entries were looked for in its leader's log

    def term_at(self, index):
        return self.committed[index - 1].term if index else 0

    def configuration_at(self, index, first=None):
        rows = [entry for entry in self.committed[:index] if entry.kind == CONFIGURATION]
        return Configuration.decode(rows[-1].command) if rows else first or self.first_configuration

    def check(self, now):
        """Everything that must be true after every step."""
        self.now = now
        for server in self.servers.values():
            if server.up:
                self._check_server(server)

    def _check_server(self, server):
        raft, known = server.raft, server.known
        log = raft.log
        last = log._entries[-1] if log._entries else None
        now = (raft.term, raft.voted_for, raft.commit_index, raft.last_applied, raft.saved_index, log.snapshot_index, last, raft.role,
               len(log._entries), server.log.hard_state, server.log.last_index)
        if known != now:
            self._check_indexes(server)
            self.check_commit(server)
            if known is not None:
                self._check_order(server, known)
            if known is None or known[5:9] != now[5:9]:
                self.check_log(server)
            server.known = now
        if isinstance(raft.role, Leader):
            self._check_leader(server)
            self._check_lease(server)

    def _check_indexes(self, server):
        raft = server.raft
        assert raft.last_applied <= raft.commit_index <= raft.log.last_index, server.name
        assert raft.last_applied <= raft.saved_index <= raft.log.last_index, server.name
        assert raft.saved_index <= server.durable_index, f"{server.name} takes for saved what is not on its disk"
        assert raft.term >= server.log.hard_state.term, server.name

    def _check_order(self, server, known):
        """What an incarnation must not take back: its term, its vote, its commit_index, its last_applied."""
        raft, (term, voted_for, commit_index, last_applied, *_) = server.raft, known
        assert raft.term >= term, f"{server.name} fell from term {term} to {raft.term}"
        assert raft.term > term or voted_for in (None, raft.voted_for), f"{server.name} took back its vote of term {term}"
        assert raft.commit_index >= commit_index, f"{server.name}: commit_index went back from {commit_index} to {raft.commit_index}"
        assert raft.last_applied >= last_applied, f"{server.name}: last_applied went back"

    # Commit and apply

    def check_commit(self, server):
        """What one commits, all commit; an entry is committed by a leader, when a majority has it on disk."""
        raft = server.raft
        known = server.known[2] if server.known else 0
        for index in range(max(known, raft.log.snapshot_index) + 1, raft.commit_index + 1):
            entry, = raft.log.entries(index, index)
            if index > len(self.committed):
                self._commit(entry, raft)
            assert self.committed[index - 1] == entry, f"{server.name} committed {entry}, not {self.committed[index - 1]}"

    def _commit(self, entry, raft):
        assert raft.is_leader, f"{entry} was committed by {raft.name}, which does not lead"
        holders = {name for name, other in self.servers.items() if other.holds(entry.index, entry.term)}
        assert raft.configuration.is_majority(holders), f"{entry} was committed with only {holders}"
        self.committed.append(entry)
        self.commit_terms.append(raft.term)
        if entry.kind == COMMAND:
            self.counts["writes committed"] += 1
            self.model.commit(entry)
            self.on_commit(entry)
        elif entry.kind == CONFIGURATION:
            self._commit_configuration(entry)

    def _commit_configuration(self, entry):
        """Thesis 4.1: any two majorities of neighbours share a server."""
        before, now = self.configuration_at(entry.index - 1), Configuration.decode(entry.command)
        assert now.differs_by_one_vote_at_most(before), f"{before} was followed by {now}"
        self.counts["membership changes committed"] += 1
        self.counts["learners promoted"] += any(name in before.members and not before.is_voter(name) for name in now.voters)

    def check_applied(self, entry):
        """State Machine Safety: nobody ever applies another entry at the same index."""
        assert self.committed[entry.index - 1] == entry, (entry, self.committed[entry.index - 1])

    def check_state(self, server):
        """The state machine is what the committed commands come to, and knows where it stands."""
        position = server.machine.position
        rows = {key: row[:5] for key, row in self.model.rows_at(position.index).items()}
        assert server.machine.rows() == rows, f"{server.name} has another state at {position.index}"
        self._check_history(server.name, server.machine.history(), self.model.changes_at(position.index))
        if position.index:
            assert position.term == self.term_at(position.index), (server.name, position)
            # A server that joins knows of nobody until the log, or a copy of the state, tells it.
            known = {self.configuration_at(position.index, first).encode() for first in (None, server.first_configuration)}
            assert position.configuration in known, (server.name, position)

    def _check_history(self, name, kept, changes):
        """The newest changes are there, all of them, but for those that nobody needs to keep."""
        assert kept == changes[len(changes) - len(kept):], f"{name} has another history"
        size = sum(len(change[4]) for change in changes[-len(kept) - 1:])
        assert len(kept) == len(changes) or len(kept) >= LIMITS.changes or size > LIMITS.change_bytes, f"{name} has forgotten too much"

    # Leaders

    def _check_leader(self, server):
        """Election Safety, Leader Append-Only, Leader Completeness, and that it knows no more of its peers than is true."""
        raft = server.raft
        if raft.term not in self.leaders:
            self.counts["elections"] += 1
            self.leaders[raft.term] = [server.name, raft, raft.log.last_index, raft.log.last_term]
        name, incarnation, index, term = leader = self.leaders[raft.term]
        assert name == server.name and incarnation is raft, f"two leaders in term {raft.term}: {name} and {server.name}"
        if index > raft.log.snapshot_index:
            assert raft.log.term_at(index) == term, f"{name} removed or replaced an entry of its own log as leader"
        leader[2:] = raft.log.last_index, raft.log.last_term
        self._check_completeness(raft)
        self._check_progress(server)

    def _check_lease(self, server):
        """Nobody is elected while another leader has a lease, whether a read makes use of it or not (thesis 6.4.1)."""
        newest, role = max(self.leaders), server.raft.role
        if server.raft.term < newest and not role.successor_called:
            left = role.lease_until - server.clock_now(self.now)
            assert left <= 0, f"{self.leaders[newest][0]} was elected while {server.name} has a lease for {left:.3f} s"

    def _check_completeness(self, raft):
        checked = max(self._led_to.get(raft.term, 0), raft.log.snapshot_index)
        for index in range(checked + 1, len(self.committed) + 1):
            if self.commit_terms[index - 1] < raft.term:
                assert raft.log.term_at(index) == self.term_at(index), f"the leader of term {raft.term} lacks entry {index}"
        self._led_to[raft.term] = len(self.committed)

    def _check_progress(self, server):
        raft = server.raft
        newest = all(other.log.hard_state.term <= raft.term for other in self.servers.values())
        for peer, progress in raft.role.progress.items():
            assert 0 <= progress.match_index < progress.next_index, (server.name, peer, progress)
            if newest and progress.match_index > raft.log.snapshot_index:
                term = raft.log.term_at(progress.match_index)
                assert self.servers[peer].holds(progress.match_index, term), f"{server.name} overrates {peer}: {progress}"
        changes = sum(index > len(self.committed) for index, _ in raft.configurations._history)
        assert changes <= 1, f"{server.name} has {changes} uncommitted configurations"

    def check_leadership(self, server):
        """CheckQuorum (thesis 6.2). Called when *server*, which leads, has just been told the time."""
        raft, peers = server.raft, server.raft.role.progress
        if server.led_term != raft.term:
            server.led_term, server.peers, server.heard_majority = raft.term, set(), server.clock
        for peer in peers.keys() - server.peers:
            server.heard[peer] = server.clock  # a new member has an election timeout to answer, too
        server.peers = set(peers)
        oldest = server.clock - server.settings.election_timeout_seconds
        heard = {peer for peer in peers if server.heard[peer] >= oldest}
        if raft.configuration.is_majority(heard | {server.name}):
            server.heard_majority = server.clock
        silence = server.clock - server.heard_majority
        assert silence <= 2 * server.settings.heartbeat_seconds, f"{server.name} leads, and hears only {sorted(heard)}"

    # Logs

    def check_log(self, server):
        """Log Matching: (index, term) names one entry and one predecessor, everywhere, for ever. Members are as the log says."""
        log, configurations, entries = server.raft.log, server.raft.configurations, self.entries
        previous, changes = log.snapshot_term, 0
        for entry in log._entries:
            pair = entry, previous
            assert entries.setdefault(entry[:2], pair) == pair, f"{server.name}: {pair}, elsewhere {entries[entry[:2]]}"
            previous = entry.term
            if entry.kind == CONFIGURATION:
                changes = entry.index
        if changes:
            assert configurations.latest_index == changes, f"{server.name} uses an old configuration"
            change, = log.entries(changes, changes)
            assert configurations.latest == Configuration.decode(change.command), server.name

    def check_removed(self, server, entries):
        """Nothing durable is forgotten: what was committed is removed from no disk. But who has not come to the term in which it was
        committed has not vouched for it: there the leader of an older term, who was elected without it, may replace it (section 5.4.2)."""
        self.counts["entries truncated"] += bool(entries)
        for entry in entries:
            vouched = entry.index <= len(self.committed) and server.log.hard_state.term >= self.commit_terms[entry.index - 1]
            assert not vouched or self.committed[entry.index - 1] != entry, f"{server.name} removes {entry}, which is committed"

    # Messages

    def check_request(self, server, request):
        """Nothing that depends on the term or the vote leaves before both are durable."""
        hard_state = server.log.hard_state
        if not isinstance(request, RequestVote):
            assert hard_state.term >= request.term, (hard_state, request)
        elif not request.pre_vote:
            assert hard_state == (request.term, server.name), (hard_state, request)
            self._check_vote(server.name, request.term, server.name)

    def check_reply(self, server, answer):
        """Nor does a reply before all that it promises is."""
        request, reply, hard_state = answer.request, answer.reply, server.log.hard_state
        assert hard_state.term >= reply.term, (hard_state, reply)
        match reply:
            case AppendEntriesReply(success=True, match_index=index):
                assert index <= server.durable_index, f"{server.name} has {server.durable_index} on disk, and says {index}"
            case InstallSnapshotReply(installed=True):
                index = request.last_included_index
                assert index <= server.durable_index, f"{server.name} has {server.durable_index} on disk, and says {index} is installed"
        if isinstance(request, RequestVote) and not request.pre_vote and reply.vote_granted:
            assert hard_state == (request.term, request.candidate_id), (hard_state, request)
            self._check_vote(server.name, request.term, request.candidate_id)

    def _check_vote(self, name, term, candidate):
        assert self.votes.setdefault((name, term), candidate) == candidate, f"{name} voted twice in term {term}"

    def count_deposed(self, reason):
        self.counts["leaders deposed for want of a majority"] += reason == Raft.NO_MAJORITY
        self.counts["leaders deposed by a stalled disk"] += "disk" in reason
