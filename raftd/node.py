"""The runtime of one server: the threads around the Raft core, and what waits for it.

**One lock guards the core and those who wait on it, and nothing else: no disk write, no RPC and no callback happens while it
is held.** What a thread needs it takes out under the lock, works on it without, and reports back under the lock.
``..._locked`` marks a helper that needs the lock held. Threads: ``election-timer``; ``log-writer``; ``applier``; and for
each peer ``to-NAME-small`` (votes, heartbeats, reads) and ``to-NAME-data`` (entries, snapshots), so that a heartbeat never
queues behind data. All are joined by ``stop``. Two short cuts save hand-overs, where all else is idle: who proposes for many
clients, or begins their reads, sends that to the peers itself and hears their replies without waiting (``_post``), and a
follower's thread that has received entries writes them itself.

A node knows neither SQLite nor HTTP, nor what a command means. It is handed

storage        ``load()``, ``save(unsaved)``, ``reopen()``, ``lost(index, term)``, ``close()``: see ``raftd.storage.Storage``
transport      ``connection(link)``, whose ``call(member, request, configuration_index)``, ``post(..., done)``, ``abort()``,
               ``interrupt()`` and ``close()`` reach a peer, ``identify(address)`` and ``refuses(address)``: see
               ``raftd.transport.Transport``
state machine  ``position``, ``steps``, ``is_awaited``, ``foresee``, ``how_many``, ``apply``, ``read``, ``checkpoint``, ``snapshot``,
               ``receive``, ``install``, ``close``: see ``raftd.kv.KeyValueStore``
"""

import logging
import math
import random
import threading
import time
from concurrent.futures import Future, wait
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from raftd import membership
from raftd.config import TRACE, Settings
from raftd.errors import (
    REPLACE_NODE,
    CommitTimeout,
    DamagedFiles,
    Discarded,
    LeadershipLost,
    NoLeader,
    NoQuorum,
    NotFound,
    NotLeader,
    Overloaded,
    PeerUnreachable,
    RaftdError,
    Refusal,
    StorageFailed,
    Stopping,
)
from raftd.raft.configuration import Configuration, Configurations, Member
from raftd.raft.core import Raft
from raftd.raft.log import Log
from raftd.raft.messages import COMMAND, CONFIGURATION, AppendEntries, InstallSnapshot, ReadIndex, RequestVote
from raftd.raft.roles import Candidate, Leader
from raftd.turns import LARGE_BYTES, Turns

log = logging.getLogger(__name__)

MAX_APPLY_BYTES = 1 << 20  # commands in one transaction of the state machine
# So long after others committed entries are applied, together, if nobody waits for them; and if somebody waits for changes of the state.
APPLY_PAUSE_SECONDS, AWAITED_PAUSE_SECONDS = 0.1, 0.05
MAX_UNAPPLIED, MAX_UNAPPLIED_BYTES = 2048, 1 << 20  # entries, and bytes of commands, that do not wait any longer
# Entries, and bytes of commands; a state machine that is further behind makes all who write wait for it.
MAX_ANSWERED_AHEAD, MAX_ANSWERED_AHEAD_BYTES = 8192, 4 << 20
STATUS_SECONDS = 0.2  # so long the status waits for what was answered to be applied
MAX_READY_LAG = 20_000  # entries; more than a busy server has in flight: one further behind is not ready
FAILURES_IN_A_ROW = 5  # of entries to a peer that answers what is small: then it is worth a line in the log
MAX_BEHIND = 50_000  # entries that a follower takes before those it has are written and applied
STATE_STALL_SECONDS = 5.0  # a state machine that is at work on one batch for so long has failed
MOST_INSTALL_PAUSE_SECONDS = 30.0  # between attempts to install a snapshot
RETRY_SECONDS = 0.5  # between attempts to use a disk that has failed
MOST_RETRY_SECONDS = 4.0  # the same, when it fails again and again soon after it could be opened: a disk that is nearly full
CALM_SECONDS = 10.0  # after which a failure is not that of before


class Applied(NamedTuple):
    """Where a command was applied, and what the state machine said to it."""

    index: int
    result: Any


@dataclass(frozen=True, slots=True)
class Proposal:
    """A command that somebody waits for. ``foreseen``: what the state machine will say, if that depends on nothing; None if it does."""

    term: int
    future: Future
    size: int
    foreseen: Any


class Ready(NamedTuple):
    """What a peer is to be sent."""

    member: Member
    request: Any
    configuration_index: int


@dataclass(eq=False)
class Link:
    """What a thread that sends to one peer works with, one request at a time, which is its flow control.

    data    whether it sends entries and snapshots, or what must not wait for those
    idle    nothing to send: ``wake`` is waited for, until ``due`` at the latest
    posted  what another thread has sent meanwhile (``_post``), until the reply is there, or ``post_due`` comes
    handed  what another thread has taken to be sent, and has left to this one
    closed  the peer has left the cluster
    """

    peer: str
    data: bool
    connection: Any
    wake: threading.Condition
    idle: bool = False
    due: float = math.inf
    posted: Ready | None = None
    post_due: float = math.inf
    handed: Ready | None = None
    closed: bool = False
    failures: int = 0  # in a row

    NAMES = {False: "small", True: "data"}

    @property
    def name(self):
        return self.NAMES[self.data]


@dataclass
class Outgoing:
    """The snapshot being sent, and to whom."""

    snapshot: Any
    peers: set = field(default_factory=set)


class Node:
    """One running server. ``start`` it, ``propose`` and ``read``, ``stop`` it.

    name          of this server, in the cluster
    address       ``HOST:PORT`` under which peers and clients reach it
    on_failure    called with an exception, in a thread of its own, when the node cannot go on
    """

    def __init__(self, name, address, storage, transport, state_machine, settings=None, on_failure=None, random=random):
        self.name, self.address = name, address
        self.settings = (settings or Settings()).check()
        self._storage, self._transport, self._state_machine = storage, transport, state_machine
        self._on_failure, self._random = on_failure or (lambda error: None), random
        self._lock = threading.Lock()
        self._timer_wake, self._timer_due = threading.Condition(self._lock), math.inf  # until when the timer sleeps
        self._writer_wake = threading.Condition(self._lock)
        self._applier_wake = threading.Condition(self._lock)
        self._changed = threading.Condition(self._lock)  # role, leader, configuration, commit of a configuration, applier idle
        self._proposals, self._waiting_bytes = {}, 0
        self._orphans_fail_at = None  # when proposals of a leader that was deposed give up learning their fate
        self._applied_waiters = []  # (index, future)
        self._answered_index = 0  # of the last write that was answered
        self._state_is_full = False  # why its state could not be written, when it could not last
        self._apply_at, self._unapplied_bytes = math.inf, 0  # when the applier wakes by itself; of commands that are committed
        self._links, self._lost_peers = {}, {}
        self._writer_idle = self._applier_idle = True
        self._saving_here = False  # the log is being written by a thread that has an answer to give, not by the log-writer
        self._save_failure, self._save_seconds = None, 0.0  # of such a thread; how long the last write took
        self._applying_since = None  # when the applier began with what it is at; not of an installation, which takes its time
        self._seen_steps = 0  # of the state machine
        self._disk_has_stalled = False  # the log says that the write under way takes too long
        self._install = None  # (incoming, answer) for the applier
        self._install_pause = self._no_install_before = 0.0
        self._chunks_fail = False  # said in the log already
        self._outgoing = None
        self._outgoing_lock = threading.Lock()  # held while a snapshot is made: the others that need one wait for this one
        self._incoming_lock = threading.Lock()  # held while a chunk is written: chunks of one snapshot come one after the other
        self._stopping = threading.Event()
        self._silent = None  # the StorageFailed that made this server silent for Raft
        self._catch_up_to = None  # what was committed when it was first asked, since its files were opened, whether it is ready
        self._retry_pause, self._log_open_since = RETRY_SECONDS, -math.inf  # when it was last opened after a failure
        self._threads = []
        self._started_at = time.monotonic()
        self._raft = self._restore(storage.load())
        self._seen = (self._raft.role, self._raft.term, self._raft.configuration)
        self._seen_commit = self._raft.commit_index
        self._told = self._who_leads_locked()
        self._draining = False
        self._turns = Turns(self._stopping.wait)

    # Start and stop

    def _restore(self, saved):
        return restore(self.name, saved, self._state_machine.position, self.settings, self._random, time.monotonic())

    def start(self):
        """Start the threads. Returns self."""
        self._run("election-timer", self._timer_loop)
        self._run("log-writer", self._writer_loop)
        self._run("applier", self._applier_loop)
        return self

    def _run(self, name, target, *args):
        thread = threading.Thread(target=self._guarded, args=(target, *args), name=name)
        thread.start()
        with self._lock:
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        return thread

    def _running_threads(self):
        with self._lock:
            return [thread for thread in self._threads if thread.is_alive()]

    def _guarded(self, target, *args):
        """A thread that fails must not fail silently: without it the node is no server any more."""
        try:
            target(*args)
        except Exception as error:
            log.debug("thread failed", exc_info=True)
            with self._lock:
                self._silent = self._silent or StorageFailed(f"this node has failed: {error}")
                self._fail_everything_locked(self._silent)
            self._on_failure(error)

    def stop(self):
        """Fail what waits, end every thread, close the files. Idempotent."""
        self.halt()
        self._state_machine.close()
        self._storage.close()

    def halt(self):
        """``stop``, but for closing the files: what is asked from now on is told that the node stops."""
        self._stopping.set()
        with self._lock:
            self._fail_proposals_locked(LeadershipLost("this node stops, with the command in its log"))
            self._fail_everything_locked(Stopping())
            for condition in (self._timer_wake, self._writer_wake, self._applier_wake, self._changed):
                condition.notify_all()
            for link in self._all_links_locked():
                link.wake.notify_all()
                link.connection.interrupt()
        while threads := self._running_threads():  # the timer may have started some meanwhile
            for thread in threads:
                thread.join()
        with self._outgoing_lock:
            self._drop_outgoing()

    def drain(self, timeout):
        """Before a planned stop: refuse new writes, and wait up to *timeout* seconds for those that wait, and until all that is
        committed is applied, unless the state cannot be written."""
        deadline, applied = time.monotonic() + timeout, Future()
        with self._lock:
            self._draining = True
            while self._proposals and (remaining := deadline - time.monotonic()) > 0:
                self._changed.wait(remaining)
            cannot = self._silent or self._raft.withdrawn
            self._wake_when_applied_locked(0 if cannot else self._raft.applicable_index, applied)
        wait([applied], max(0, deadline - time.monotonic()))

    def hand_over(self, timeout):
        """Before a planned stop: give leadership away, if this node has it and somebody can take it. Returns the new leader or None."""
        try:
            return self.transfer_leadership(None, timeout)
        except RaftdError as error:
            log.debug("leadership was not handed over reason=%s", error)
            return None

    # What every change of the core is followed by

    def _settle_locked(self, posts=None):
        """Wake whoever has something to do now, and only those.

        *posts*, a list, takes what the caller will send itself, without the lock (``_post``), instead of the threads that send.
        """
        raft = self._raft
        if raft.finished_reads:
            finished, raft.finished_reads = raft.finished_reads, []
            for read in finished:
                self._wake_when_applied_locked(read.index, read.context)
        if raft.finished_answers:
            finished, raft.finished_answers = raft.finished_answers, []
            for answer in finished:
                if answer.context:
                    _resolve(answer.context, answer.reply)
        if raft.commit_index != self._seen_commit:
            self._committed_locked()
        if self._applier_idle and raft.has_committed and (self._apply_at == math.inf or self._must_apply_locked()):
            self._applier_wake.notify()
        if self._seen[0] is not raft.role or self._seen[1] != raft.term or self._seen[2] is not raft.configuration:
            self._role_changed_locked()
        if raft.next_tick < self._timer_due:
            self._timer_wake.notify()
        for links in self._links.values():
            for link in links:
                if link.idle and link.posted is None and self._should_go_on_locked(link):
                    if posts is None or not self._take_post_locked(link, posts):
                        self._wake_locked(link)
        if self._writer_idle and raft.has_unsaved:
            self._writer_wake.notify()

    @staticmethod
    def _wake_locked(link):
        link.idle = False
        link.wake.notify()

    def _committed_locked(self):
        """A write whose outcome does not depend on the state is answered when it is committed; all others when they are applied.

        Who reads afterwards finds it: a read waits until it is applied (thesis 6.4; ``_answered_index``).
        """
        raft, first = self._raft, self._seen_commit + 1
        entries = raft.log.entries(max(first, raft.log.first_index), raft.commit_index)
        self._unapplied_bytes += sum([len(entry.command) for entry in entries])
        self._seen_commit = raft.commit_index
        if not self._proposals or raft.commit_index - raft.last_applied > MAX_ANSWERED_AHEAD \
                or self._unapplied_bytes > min(MAX_ANSWERED_AHEAD_BYTES, self.settings.max_waiting_bytes):
            return
        for entry in entries:
            proposal = self._proposals.get(entry.index)
            if proposal and proposal.foreseen is not None and proposal.term == entry.term:
                self._answer_locked(entry.index, self._proposals.pop(entry.index), proposal.foreseen)
        if self._draining:
            self._changed.notify_all()

    def _answer_locked(self, index, proposal, result):
        self._waiting_bytes -= proposal.size
        self._answered_index = max(self._answered_index, index)  # what is foreseen may be answered before what comes before it
        _resolve(proposal.future, Applied(index, result))

    def _must_apply_locked(self):
        """True if committed entries should not wait for others to be applied with: somebody waits for them, or they are many."""
        raft = self._raft
        return bool(self._applied_waiters) or raft.commit_index - raft.last_applied >= MAX_UNAPPLIED \
            or self._unapplied_bytes >= MAX_UNAPPLIED_BYTES \
            or (bool(self._proposals) and next(iter(self._proposals)) <= raft.commit_index)

    def _tick_locked(self):
        """Tell the core the time; not while it is only to be thrown away."""
        if not self._silent:
            self._raft.tick(time.monotonic())

    def _has_work_locked(self, link):
        if link.data:
            return self._raft.has_data_for(link.peer) or self._raft.needs_snapshot(link.peer)
        return self._raft.has_request_for(link.peer)

    def _should_go_on_locked(self, link):
        """True if an idle *link* has work, or will have earlier than it knows."""
        return self._has_work_locked(link) if link.data else self._due_locked(link) < link.due

    def _role_changed_locked(self):
        raft, (old_role, old_term, old_configuration) = self._raft, self._seen
        self._seen = (raft.role, raft.term, raft.configuration)
        self._told = self._who_leads_locked()
        if old_configuration is not raft.configuration:
            voters, members = raft.configuration.voters, raft.configuration.members
            log.info("members index=%s voters=%s learners=%s", raft.configurations.latest_index, ",".join(voters) or "none",
                     ",".join(name for name in members if name not in voters) or "none")
            if self.name in old_configuration.members and self.name not in members:
                log.warning("this node has been removed from the cluster index=%s", raft.configurations.latest_index)
        if old_role is not raft.role or old_term != raft.term:
            self._log_role_locked(old_role)
        if isinstance(old_role, Leader) and not raft.is_leader:
            self._deposed_locked(old_term)
        for peer in [peer for peer in self._links if peer not in raft.configuration.members]:
            for link in self._links.pop(peer):
                link.closed = True
                link.wake.notify()
        if old_role is not raft.role:
            self._lost_peers.pop(raft.leader_id, None)  # it is heard; whether it can be reached shows anew
        self._timer_wake.notify()
        self._changed.notify_all()

    def _log_role_locked(self, old_role):
        raft = self._raft
        level = logging.DEBUG if _is_waiting(old_role) and _is_waiting(raft.role) else logging.INFO
        log.log(level, "became %s term=%s leader=%s last_index=%s commit_index=%s reason=%s", self._role_name_locked(), raft.term,
                raft.leader_id or "unknown", raft.log.last_index, raft.commit_index, raft.reason)

    def _role_name_locked(self):
        raft = self._raft
        if isinstance(raft.role, (Leader, Candidate)):
            return type(raft.role).__name__.lower()
        return "follower" if raft.configuration.is_voter(self.name) else "learner"

    def _deposed_locked(self, old_term):
        """Another leader will decide what becomes of the entries in flight: wait a little to hear it. Without one, say so at once."""
        if self._raft.term > old_term and not self._silent:
            self._orphans_fail_at = time.monotonic() + self.settings.election_timeout_seconds
        else:
            log.warning("no leader any more, writes and linearizable reads are refused until there is one reason=%s%s", self._raft.reason,
                        self._lost_peers_locked())
            self._fail_proposals_locked(LeadershipLost(f"this node leads no longer: {self._raft.reason}"))

    def _fail_proposals_locked(self, error):
        proposals, self._proposals, self._waiting_bytes, self._orphans_fail_at = self._proposals, {}, 0, None
        for proposal in proposals.values():
            _fail(proposal.future, error)

    def _fail_orphans_locked(self):
        """Nobody has said what becomes of the proposals of an earlier term."""
        self._orphans_fail_at = None
        for index in [index for index, proposal in self._proposals.items() if proposal.term < self._raft.term]:
            self._drop_proposal_locked(index, LeadershipLost(f"this node led no longer when it was to be committed: {self._raft.reason}"))

    def _fail_everything_locked(self, error):
        self._fail_proposals_locked(error)
        waiters, self._applied_waiters = self._applied_waiters, []
        for _, future in waiters:
            _fail(future, error)
        self._raft.abandon_reads()
        self._settle_locked()

    # Clients

    def propose(self, command, timeout):
        """Replicate *command* and apply it; waits up to *timeout* seconds and returns Applied(index, result). Large ones give way
        to small ones (``Turns``).

        Raises NotLeader, NoLeader, Overloaded, StorageFailed, Stopping (nothing was proposed), CommitTimeout, LeadershipLost (it may
        still be applied), Discarded (it never will be).
        """
        if len(command) <= LARGE_BYTES:
            return self._wait_for_commit(self.submit(command), timeout)
        with self._turns.turn(timeout) as left:
            return self._wait_for_commit(self.submit(command), timeout, left)

    def submit(self, command):
        """``propose`` without waiting: a Future of what it returns or raises, but for CommitTimeout, which is for the caller to say.

        Raises at once what means that nothing was proposed. Callbacks of the future run while the node is locked: they may only
        hand the matter over to another thread.
        """
        with self._lock:
            self._check_running_locked()
            return self._propose_locked(self._raft.propose, command, len(command))

    def submit_all(self, proposals):
        """``submit`` for many pairs (command, future), in their order, for the price of one. Returns those of which nothing was proposed.

        A future may be anything with ``done``, ``set_result`` and ``set_exception``.
        """
        with self._lock:
            try:
                self._check_running_locked()
            except RaftdError:
                return proposals
            self._raft.tick(time.monotonic())
            refused = [proposal for proposal in proposals if not self._submit_locked(*proposal)]
            self._settle_locked(posts := [])
        self._post(posts)
        return refused

    def _submit_locked(self, command, future):
        try:
            self._append_locked(self._raft.propose, command, len(command), future)
        except RaftdError:
            return False
        return True

    def submit_read(self, future=None, leased=False):
        """The beginning of a linearizable read, without waiting: a Future of the index at which the state may be asked now.

        0 means: ask again. *leased*: a leader that has a lease need not ask its followers. Raises NoLeader, StorageFailed, Stopping at
        once. As to *future*, see ``submit_all``; to callbacks, ``submit``.
        """
        with self._lock:
            self._check_running_locked()
            future = self._submit_read_locked(future, leased)
            self._settle_locked(posts := [])
        self._post(posts)
        return future

    def _submit_read_locked(self, future=None, leased=False):
        if self._raft.withdrawn:  # what would have to be applied first cannot be
            raise StorageFailed(self._raft.withdrawn)
        waiting = len(self._applied_waiters) + self._raft.waiting_reads
        if waiting >= self.settings.max_waiting_writes:
            raise Overloaded(f"{waiting} reads are waiting; try again in a second")
        future = future or Future()
        self._raft.tick(time.monotonic())
        if leased and (index := self._raft.leased_index()):
            self._wake_when_applied_locked(index, future)
        else:
            self._raft.read_index(future)
        return future

    def _propose_locked(self, append, command, size):
        future = Future()
        self._raft.tick(time.monotonic())
        try:
            self._append_locked(append, command, size, future)
        finally:
            self._settle_locked()
        return future

    def _append_locked(self, append, command, size, future):
        """*append* is the core's method for this kind of entry."""
        if self._draining:
            raise Stopping()
        if len(self._proposals) >= self.settings.max_waiting_writes or self._waiting_bytes + size > self.settings.max_waiting_bytes:
            raise Overloaded(f"{len(self._proposals)} writes of {self._waiting_bytes} bytes are waiting; try again in a second")
        try:
            entry = append(command)
        except NotLeader:
            raise self._not_leading_locked() from None
        except NoQuorum as error:
            raise NoQuorum(f"{error}{self._lost_peers_locked()}") from None
        if entry.index in self._proposals:  # of an earlier term, in whose place this one stands now
            self._drop_proposal_locked(entry.index, LeadershipLost())
        foreseen = self._state_machine.foresee(entry.index, command) if entry.kind == COMMAND else None
        self._proposals[entry.index] = Proposal(entry.term, future, size, foreseen)
        self._waiting_bytes += size
        if size <= LARGE_BYTES:
            self._turns.small()

    def _not_leading_locked(self):
        """The error that says why nothing is proposed here."""
        if self._raft.withdrawn and self._raft.leader_id is None:  # that says more
            return StorageFailed(self._raft.withdrawn, self._state_is_full)
        return NotLeader(leader=self._leader_url_locked())

    def _drop_proposal_locked(self, index, error):
        proposal = self._proposals.pop(index)
        self._waiting_bytes -= proposal.size
        _fail(proposal.future, error)

    def _wait_for_commit(self, future, timeout, left=None):
        """*left*: so much of *timeout* has not passed yet; all of it if that is not said."""
        try:
            return future.result(timeout if left is None else left)
        except TimeoutError:
            with self._lock:
                raise CommitTimeout(f"not committed within {timeout:g} s{self._lost_peers_locked()}") from None

    def read(self, query, level="linearizable", min_index=0, timeout=5.0):
        """The state machine's answer to *query*.

        ``linearizable``: never older than any write that was answered before this call (thesis 6.4). ``leader``: the same, as long as
        clocks run alike (``Raft.leased_index``). ``stale``: the state of this node now, with all writes that it has answered itself. In
        any case at least as new as *min_index*. Raises NoLeader, NoQuorum, StorageFailed, Stopping.
        """
        deadline = time.monotonic() + timeout
        if self._stopping.is_set():
            raise Stopping()
        if level != "stale":
            min_index = max(min_index, self._read_index(deadline, leased=level == "leader"))
        elif not self._has_what_it_answered:
            min_index = max(min_index, self._answered_index)
        if min_index:
            self._wait_until_applied(min_index, deadline)
        return self._state_machine.read(query)

    @property
    def _has_what_it_answered(self):
        """True if a stale read need not wait; also if it might wait for long. Needs no lock: each is one value."""
        raft = self._raft
        return self._answered_index <= raft.last_applied or bool(raft.withdrawn or self._silent or raft.disk_stalled_seconds)

    def look_up(self, query):
        """``read`` in the state as it is, whatever has been written: for who knows that it is new enough."""
        return self._state_machine.read(query)

    def submit_stale_read(self, future):
        """The beginning of a stale read, as ``submit_read`` is that of a linearizable one."""
        if self._has_what_it_answered:
            future.set_result(True)
            return
        with self._lock:
            self._wake_when_applied_locked(self._answered_index, future)

    def _read_index(self, deadline, leased):
        """Where the state machine stands, far enough. A node without a leader waits for one as long as an election takes, no longer."""
        leader_deadline = min(deadline, time.monotonic() + 2 * self.settings.election_timeout_seconds)
        while True:
            with self._lock:
                self._check_running_locked()
                self._wait_for_leader_locked(leader_deadline)
                future = self._submit_read_locked(leased=leased)
                self._settle_locked()
            try:
                index = future.result(max(0, deadline - time.monotonic()))
            except TimeoutError:
                with self._lock:
                    raise NoQuorum(f"no majority confirmed the leader in time{self._lost_peers_locked()}") from None
            if index:
                return index
            with self._lock:
                if self._raft.reason == self._raft.NO_MAJORITY:
                    raise NoQuorum(f"no majority answers{self._lost_peers_locked()}")
                self._changed.wait(min(self.settings.heartbeat_seconds, max(0, deadline - time.monotonic())))

    def _wait_for_leader_locked(self, deadline):
        self._raft.tick(time.monotonic())
        self._settle_locked()
        while self._raft.leader_id is None:
            if not self._changed.wait(max(0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                raise NoLeader(f"no leader is known{self._lost_peers_locked()}")
            self._check_running_locked()

    def _wait_until_applied(self, index, deadline):
        with self._lock:
            if self._raft.last_applied >= index:
                return
            self._check_running_locked(silent_too=False)
            future = Future()
            self._wake_when_applied_locked(index, future)
        try:
            future.result(max(0, deadline - time.monotonic()))
        except TimeoutError:
            with self._lock:
                self._give_up_locked(future)
                raise NoQuorum(f"entry {index} was not applied here in time; this node stands at {self._raft.last_applied}") from None

    def _give_up_locked(self, future):
        """Nobody waits any more for an entry to be applied."""
        self._applied_waiters = [waiter for waiter in self._applied_waiters if waiter[1] is not future]

    def _check_running_locked(self, silent_too=True):
        if self._stopping.is_set():
            raise Stopping()
        if silent_too and self._silent:
            raise copy(self._silent)  # an exception that is raised again and again would collect tracebacks

    def _lost_peers_locked(self):
        lost = sorted(name for name in self._lost_peers if name in self._raft.configuration.members)
        return f"; out of reach: {', '.join(lost)}" if lost else ""

    # What a node tells of itself

    @property
    def is_installing(self):
        """True while another server's state takes the place of this one's: reads wait for that."""
        return self._install is not None

    def out_of_reach(self):
        """The end of a line that says why something is not served: the peers that do not answer, or nothing."""
        with self._lock:
            return self._lost_peers_locked()

    @property
    def state_machine(self):
        """The one that was handed in, for who knows what it is."""
        return self._state_machine

    def term_in_charge(self, timeout):
        """(the term in which this node leads, once all that was written in earlier ones is applied here; what is left of *timeout*
        seconds).

        Raises NoQuorum when that takes longer than *timeout*, NotLeader, StorageFailed, Stopping.
        """
        raft, deadline = self._raft, time.monotonic() + timeout
        term = raft.term
        if not self._in_charge(raft):  # without the lock: what has been applied stays so
            with self._lock:
                self._check_running_locked()
                if not self._raft.is_leader:
                    raise self._not_leading_locked()
                term, first_index = self._raft.term, self._raft.role.first_index
            self._wait_until_applied(first_index, deadline)
        return term, max(0.0, deadline - time.monotonic())

    @staticmethod
    def _in_charge(raft):
        role = raft.role
        return isinstance(role, Leader) and raft.last_applied >= role.first_index

    def wait_to_lead(self):
        """Wait until this node leads, and has applied all that was written before; returns the term, None when it stops instead."""
        with self._lock:
            while not self._stopping.is_set():
                if self._raft.is_leader and self._in_charge(self._raft):
                    return self._raft.term
                self._changed.wait()
            return None

    def _leader_locked(self):
        member = self._raft.configuration.members.get(self._raft.leader_id)
        return member and {"name": member.name, "address": member.address}

    def _leader_url_locked(self):
        leader = self._leader_locked()
        return f"http://{leader['address']}" if leader else None

    def headers(self):
        """The X-Raft-... headers that every answer carries. The index is that of which a read here shows all, at the least."""
        # Without the lock: they need not be of one moment.
        return {"X-Raft-Index": str(max(self._raft.last_applied, self._answered_index)), **self._told}

    def _who_leads_locked(self):
        told, leader = {"X-Raft-Term": str(self._raft.term), "X-Raft-Node": self.name}, self._leader_url_locked()
        return {**told, "X-Raft-Leader": leader} if leader else told

    @property
    def cluster(self):
        """The id of the cluster that the files of this node belong to."""
        return self._storage.identity.cluster

    def leader(self):
        """{"name", "address"} of the leader, or None."""
        with self._lock:
            return self._leader_locked()

    def members(self):
        """What ``GET /members`` shows."""
        with self._lock:
            return [self._member_locked(member) for member in self._raft.configuration.members.values()]

    def _member_locked(self, member):
        raft = self._raft
        role = "unknown" if member.voter else "learner"
        if member.name == raft.leader_id:
            role = "leader"
        elif member.name == self.name:
            role = self._role_name_locked()
        elif member.voter and raft.leader_id:
            role = "follower"
        shown = {"name": member.name, "address": member.address, "voter": member.voter, "role": role,
                 "match_index": None, "last_contact_seconds": None}
        if member.name == self.name:
            shown |= {"match_index": raft.saved_index, "last_contact_seconds": 0.0}
        elif raft.is_leader and member.name in raft.role.progress:
            progress = raft.role.progress[member.name]
            shown |= {"match_index": progress.match_index, "last_contact_seconds": round(time.monotonic() - progress.last_heard, 3)}
        elif member.name == raft.leader_id:
            shown["last_contact_seconds"] = round(time.monotonic() - raft.role.last_heard, 3)
        return shown

    def identity(self):
        """Who answers here, for a leader that is asked to take this server in."""
        return self._storage.identity._asdict()

    def status(self):
        """What ``GET /status`` shows, but for the version. What this node has answered is applied then, unless its state is slow."""
        applied = Future()
        self.submit_stale_read(applied)
        wait([applied], STATUS_SECONDS)
        members = self.members()
        with self._lock:
            self._give_up_locked(applied)
            raft = self._raft
            return {
                "name": self.name, "address": self.address, "cluster": self.cluster, "role": self._role_name_locked(),
                "term": raft.term, "voted_for": raft.voted_for, "leader": self._leader_locked(), "commit_index": raft.commit_index,
                "last_applied": raft.last_applied, "first_log_index": raft.log.first_index, "last_log_index": raft.log.last_index,
                "snapshot_index": raft.log.snapshot_index, "members": members,
                "uptime_seconds": round(time.monotonic() - self._started_at, 3),
            }

    def not_ready(self):
        """None if a linearizable read would be served now, else one line that says why not."""
        with self._lock:
            raft = self._raft
            self._tick_locked()
            self._settle_locked()
            if self._stopping.is_set() or self._silent:
                return str(self._silent or Stopping())
            if raft.disk_stalled_seconds:
                return f"the disk has not answered for {raft.disk_stalled_seconds:.1f} s"
            if time.monotonic() >= self._state_due_locked():
                return f"the state cannot be written: it has not answered for {time.monotonic() - self._applying_since:.1f} s"
            if raft.withdrawn:
                return raft.withdrawn
            if self.name not in raft.configuration.members:
                return "not a member of the cluster"
            if raft.leader_id is None:
                return f"no leader is known{self._lost_peers_locked()}"
            if raft.leader_id in self._lost_peers:
                if not raft.waiting_reads:  # nobody else asks the leader something, so that it would be found again
                    raft.read_index(Future())
                    self._settle_locked()
                return f"{raft.leader_id} leads, and cannot be reached"
            if raft.is_leader and raft.commit_index < raft.role.first_index:
                return f"no entry of term {raft.term} is committed yet{self._lost_peers_locked()}"
            known_commit = raft.commit_index if raft.is_leader else raft.role.leader_commit
            if not known_commit:
                return f"{raft.leader_id} has not told yet what is committed"
            self._catch_up_to = self._catch_up_to or known_commit
            if raft.last_applied < max(self._catch_up_to, known_commit - MAX_READY_LAG):
                return f"catching up: {raft.last_applied} of {known_commit} entries are applied"
        return None

    # Membership: the primitives; ``raftd.membership`` makes the steps of chapter 4 of the thesis from them

    def join(self, name, address, voter=True, timeout=600.0):
        """Make the server *name* at *address* a member: see ``membership.join``."""
        membership.join(self, self._transport.identify, name, address, voter, time.monotonic() + timeout)

    def remove(self, name, timeout=10.0, id=None):
        """Remove the member *name*, with *id* only if that is the one of its files: see ``membership.remove``."""
        membership.remove(self, name, id, time.monotonic() + timeout)

    def transfer_leadership(self, name=None, timeout=5.0):
        """Hand leadership to *name*, or to the voter that is most up to date; returns {"name", "address"} of the new leader."""
        membership.transfer_leadership(self, name, time.monotonic() + timeout)
        leader = self.leader()
        if leader is None:
            raise NoLeader("leadership was given away, and the new leader is not known yet")
        return leader

    def change_configuration(self, change, deadline):
        """Replicate the configuration that ``change(configuration)`` makes of the newest one, and wait until it is committed.

        Waits for a change that is under way. Does nothing when *change* returns None. Raises what ``propose`` raises.
        """
        with self._lock:
            while not self._may_change_configuration_locked():
                if not self._changed.wait(max(0, deadline - time.monotonic())):
                    raise NoQuorum(f"the membership change before this one is not committed yet{self._lost_peers_locked()}")
            configuration = change(self._raft.configuration)
            if configuration is None:
                return
            future = self._propose_locked(self._raft.propose_configuration, configuration, 0)
        self._wait_for_commit(future, max(0, deadline - time.monotonic()))

    def _may_change_configuration_locked(self):
        """Only a committed configuration is a fact to decide by: another may still be rolled back."""
        self._check_running_locked()
        self._tick_locked()
        self._settle_locked()
        raft = self._raft
        if not raft.is_leader:
            raise NotLeader(leader=self._leader_url_locked())
        return raft.configurations.latest_index <= raft.commit_index and raft.commit_index >= raft.role.first_index

    def look(self, question):
        """What ``question(core)`` says, under the lock. It must only look."""
        with self._lock:
            self._tick_locked()
            self._settle_locked()
            return question(self._raft)

    def wait_until(self, question, deadline, pause=1.0):
        """Wait until ``question(core)`` is true; asks at every change of role, leader or membership, when a learner answers, and
        after *pause* seconds. Returns its last answer. Raises Stopping."""
        with self._lock:
            while True:
                self._check_running_locked()
                answer, remaining = question(self._raft), deadline - time.monotonic()
                if answer or remaining <= 0:
                    return answer
                self._changed.wait(min(remaining, pause))

    def begin_transfer(self, target):
        """Begin to hand leadership to the voter *target*. Raises NotFound, NotLeader, NoLeader."""
        with self._lock:
            self._check_running_locked()
            if not self._raft.configuration.is_voter(target):  # any more
                raise NotFound(f"no voter is named {target}")
            try:
                self._raft.transfer_leadership(target)
            except NotLeader:
                raise NotLeader(leader=self._leader_url_locked()) from None
            finally:
                self._settle_locked()

    # Peers

    def admit(self, sender, configuration_index):
        """Refuse a stranger: raises Refusal.

        Who is not in the configuration here may still be in a newer one that has not arrived yet, and must be heard then (thesis
        4.1). Up to the commit_index every configuration has arrived; what comes after may not be that which others have.
        """
        with self._lock:
            self._admit_locked(sender, configuration_index, self._raft.commit_index)

    def _admit_locked(self, sender, configuration_index, known):
        raft = self._raft
        members = (raft.configuration.members, raft.configurations.at(raft.commit_index)[1].members)
        if configuration_index <= known and not any(sender in them for them in members):
            raise Refusal(f"{sender} is not a member of this cluster")

    def handle(self, sender, configuration_index, request):
        """The reply to a peer's *request*, once what it promises is durable. Raises Refusal."""
        with self._lock:
            if self._stopping.is_set() or self._silent:
                raise Refusal(f"{self.name} is stopping" if self._stopping.is_set() else f"{self.name}: {self._silent}")
            self._admit_locked(sender, configuration_index, self._known_configurations_locked(request))
            self._check_truth_locked(sender, request)
            if isinstance(request, AppendEntries) and request.entries:
                self._check_room_locked()
            self._raft.tick(time.monotonic())
            answer = self._raft.handle(request)
            if self._raft.lost:
                self._lost_locked()
                raise Refusal(f"{self.name}: {self._silent}")
            if isinstance(request, RequestVote) and answer.make_reply is None:
                self._raft.drop(answer)
                raise Refusal(f"{self.name} has just started, and votes a moment later")
            wants_chunk = isinstance(request, InstallSnapshot) and answer.make_reply is None
            unsaved = self._take_to_save_here_locked(answer)
            if unsaved is None:
                future = self._future_of_locked(answer)
                self._settle_locked()
        if wants_chunk:
            self._store_chunk(answer)
        if unsaved is not None:
            self._save_here(unsaved)
            with self._lock:
                future = self._future_of_locked(answer)
        return answer.reply if future is None else self._wait_for_reply(answer, future)

    @staticmethod
    def _future_of_locked(answer):
        """The Future of its reply, if that is not there yet."""
        if answer.reply is None:
            answer.context = Future()
        return answer.context

    def _lost_locked(self):
        """Be silent from now on: the log-writer remembers why, and ends the node."""
        self._silent = StorageFailed(f"entry {self._raft.lost[0]} was confirmed by this server, and is not in its log")
        self._writer_wake.notify()

    def _check_truth_locked(self, sender, request):
        if request.term > self._raft.term + MAX_TERM_STEP:
            raise Refusal(f"term {request.term} cannot be: it is {self._raft.term} here")
        if getattr(request, SENDERS.get(type(request), "leader_id")) != sender or sender == self.name:
            raise Refusal(f"{sender} speaks for another server")
        if contradiction := self._raft.contradiction(request):
            raise Refusal(f"that cannot be: {contradiction}")

    def _check_room_locked(self):
        """What cannot be written or applied here must not pile up in memory: heartbeats are heard, entries have to wait.

        Only what this server alone can make less counts: entries that are not committed yet may need those that come to be so.
        """
        raft, most_bytes = self._raft, self.settings.max_waiting_bytes
        behind = max(raft.commit_index - raft.last_applied, raft.log.last_index - raft.saved_index)
        if behind > MAX_BEHIND or (raft.log.size > most_bytes and raft.log.size_after(raft.log.last_index - behind) > most_bytes):
            raise Refusal(f"{self.name} has {behind} entries to write and to apply first")

    def _known_configurations_locked(self, request):
        """Up to where a stranger cannot be in a configuration that is news here.

        A leader that its newest configuration leaves out leads until it is committed, and then asks another to (thesis 4.2.2).
        """
        commit_index = self._raft.commit_index
        return commit_index if isinstance(request, RequestVote) else self._raft.configurations.at(commit_index)[0] - 1

    def _wait_for_reply(self, answer, future):
        """Half the time that the caller has; then the best answer that can be given."""
        try:
            return future.result(self.settings.rpc_timeout_seconds / 2)
        except TimeoutError:
            pass
        with self._lock:
            if self._silent:
                self._raft.drop(answer)
                raise Refusal(f"{self.name}: {self._silent}")
            if isinstance(answer.request, InstallSnapshot) and answer.make_reply is None:  # all is here, and being installed
                self._raft.chunk_stored(answer, answer.request.size, installed=False)
            self._raft.answer_now(answer)
            self._settle_locked()
            if answer.reply is None:
                self._raft.drop(answer)
                raise Refusal(f"{self.name} cannot answer in time: its disk is slow, or it cannot confirm that it leads")
            return answer.reply

    def _store_chunk(self, answer):
        """Section 7, InstallSnapshot, steps 2 to 5. The last chunk hands the snapshot to the applier, which installs it and answers."""
        request = answer.request
        with self._lock:
            if self._install is not None or time.monotonic() < self._no_install_before:  # ask again
                return
        try:
            with self._incoming_lock:
                incoming = self._state_machine.receive(request.last_included_index, request.last_included_term, request.size,
                                                       request.checksum)
                if request.data:
                    incoming.write(request.offset, request.data)
                complete, next_offset = incoming.complete, incoming.next_offset
        except RaftdError as error:
            with self._lock:
                level, self._chunks_fail = logging.DEBUG if self._chunks_fail else logging.ERROR, True
                self._raft.drop(answer)
            log.log(level, "a chunk of a snapshot cannot be stored leader=%s error=%s", request.leader_id, error)
            raise Refusal(f"{self.name}: {error}") from error
        with self._lock:
            self._chunks_fail = False
            if not complete or self._install is not None:
                self._raft.chunk_stored(answer, next_offset, installed=False)
            else:
                self._install = (incoming, answer)
                self._applier_wake.notify()
            self._settle_locked()

    def connection_lost(self, sender):
        """A connection that *sender* had opened to this node has ended: if it leads, and nobody listens there any more, it is dead.

        May take as long as an RPC. It has then been asked once; whatever else it says, an election timeout decides.
        """
        with self._lock:
            raft, leader = self._raft, self._raft.configuration.members.get(sender)
            term, follows = raft.term, leader is not None and raft.leader_id == sender and not raft.is_leader
        if follows and self._transport.refuses(leader.address):
            with self._lock:
                self._tick_locked()
                if not self._silent:
                    self._raft.leader_is_gone(sender, term)
                self._settle_locked()

    def _timer_loop(self):
        """Elections, CheckQuorum, orphaned proposals; and the links of new peers, since threads are not started under the lock."""
        while not self._stopping.is_set():
            with self._lock:
                now = time.monotonic()
                self._tick_locked()
                if self._orphans_fail_at and now >= self._orphans_fail_at:
                    self._fail_orphans_locked()
                self._look_at_disks_locked(now)
                self._give_up_posts_locked(now)
                self._settle_locked()
                new_links = self._new_links_locked()
                if not new_links and not self._stopping.is_set():
                    self._timer_due = self._next_due_locked(now)
                    self._timer_wake.wait(self._timer_due - now)
            for link in new_links:
                self._run(f"to-{link.peer}-{link.name}", self._link_loop, link)

    def _next_due_locked(self, now):
        """When the timer has something to do, though nothing else happens."""
        due = [now + RETRY_SECONDS if self._silent else self._raft.next_tick, self._orphans_fail_at or math.inf]
        due += (link.post_due for link in self._all_links_locked() if link.posted)
        if not self._silent and not self._disk_has_stalled:
            due.append(self._raft.disk_due)
        if not self._raft.withdrawn:
            due.append(self._state_due_locked())
        return min(due)

    def _state_due_locked(self):
        """When the state machine will have been at work for so long that it has failed; math.inf when it is not at work."""
        return math.inf if self._applying_since is None else self._applying_since + STATE_STALL_SECONDS

    def _look_at_disks_locked(self, now):
        """A disk that hangs is told while it does. Nobody wakes the timer for a write, so that may come an election timeout later."""
        if not self._silent and self._raft.disk_stalled_seconds and not self._disk_has_stalled:
            self._disk_has_stalled = True
            log.warning("the disk does not answer, this node neither leads nor confirms what it is sent until it does seconds=%.3f",
                        self._raft.disk_stalled_seconds)
        if now >= self._state_due_locked() and self._state_machine.steps != self._seen_steps:  # it has much to do, and does it
            self._seen_steps, self._applying_since = self._state_machine.steps, now
        if now >= self._state_due_locked() and not self._raft.withdrawn:
            self._withdraw_locked(f"it has not answered for {STATE_STALL_SECONDS:g} s")

    def _new_links_locked(self):
        new = [peer for peer in self._raft.peers if peer not in self._links]
        for peer in new:
            self._links[peer] = [Link(peer, data, self._transport.connection(Link.NAMES[data]), threading.Condition(self._lock))
                                 for data in (False, True)]
        return [link for peer in new for link in self._links[peer]]

    def _all_links_locked(self):
        return [link for links in self._links.values() for link in links]

    def _take_post_locked(self, link, posts):
        """Add to *posts* what this thread can send for *link*, whose thread sleeps on: that saves two hand-overs. False if nothing."""
        raft = self._raft
        if self._silent or self._stopping.is_set():
            return False
        request = raft.data_for(link.peer) if link.data else raft.request_for(link.peer)
        if request is None:
            return False
        ready = Ready(raft.configuration.members[link.peer], request, raft.configurations.latest_index)
        if not isinstance(request, AppendEntries):
            link.handed = ready
            return False
        link.posted, link.post_due = ready, raft.now + self._patience_with(link, request)
        posts.append((link, link.connection, ready))
        return True

    def _patience_with(self, link, request):
        """Seconds until a reply is given up and the thread of *link* calls. With what is small, so few that it can still be heard then:
        a leader that hears no majority for an election timeout leads no longer."""
        if not link.data:
            return self.settings.rpc_timeout_seconds / 2
        size = sum(len(entry.command) for entry in request.entries)
        return self.settings.rpc_timeout_seconds + size / self.settings.slowest_link_bytes_per_second

    def _post(self, posts):
        """Send what ``_settle_locked`` has taken, and wait for nothing. What cannot be sent so is left to the thread that it is for."""
        for link, connection, ready in posts:
            self._guarded(self._post_one, link, connection, ready)

    def _post_one(self, link, connection, ready):
        if not connection.post(*ready, partial(self._guarded, self._post_ended, link, connection, ready)):
            self._post_ended(link, connection, ready, None)

    def _post_ended(self, link, connection, ready, reply):
        """*reply* is None if there will be none: then the thread of *link* calls, and finds out why."""
        log.log(TRACE, "rpc peer=%s request=%s reply=%s", link.peer, ready.request, reply)
        with self._lock:
            if link.posted is not ready:  # it came too late, and nobody else has that connection any more
                connection.close()
                return
            if reply is None:
                self._hand_back_locked(link)
                return
            link.posted = None
            self._replied_locked(link, ready, reply)
            self._settle_locked(posts := [])
        self._post(posts)

    def _hand_back_locked(self, link):
        link.posted, link.handed = None, link.posted
        self._wake_locked(link)

    def _give_up_posts_locked(self, now):
        """Be it the peer that is late or the thread which waits for its reply: the thread of the link calls, and finds out."""
        for link in self._all_links_locked():
            if link.posted is not None and link.post_due <= now:
                self._change_connection_locked(link)
                self._hand_back_locked(link)

    def _change_connection_locked(self, link):
        """Whoever waits for a reply on the old one closes it."""
        link.connection.abort()
        link.connection = self._transport.connection(link.name)

    def _link_loop(self, link):
        """Send *link*'s peer what it needs. What piles up meanwhile goes in the next request: batching for free."""
        try:
            while (ready := self._next_request(link)) is not None:
                self._call(link, ready)
        finally:
            with self._lock:
                if link.posted is not None:
                    self._change_connection_locked(link)
                link.posted = None
            link.connection.close()

    def _next_request(self, link):
        """What is ready to be sent, or None when the link is closed."""
        while True:
            with self._lock:
                self._wait_for_work_locked(link)
                if self._stopping.is_set() or link.closed:
                    return None
                if link.handed:
                    ready, link.handed = link.handed, None
                    return ready
                raft = self._raft
                needs_snapshot = link.data and raft.needs_snapshot(link.peer)
                if needs_snapshot:
                    raft.reserve_snapshot(link.peer)
                elif (request := raft.data_for(link.peer) if link.data else raft.request_for(link.peer)) is not None:
                    self._settle_locked()
                    return Ready(raft.configuration.members[link.peer], request, raft.configurations.latest_index)
            if needs_snapshot:
                self._offer_snapshot(link.peer)

    def _wait_for_work_locked(self, link):
        while not self._stopping.is_set() and not link.closed:
            self._tick_locked()
            if self._silent:
                link.handed = None
            elif link.handed or (link.posted is None and self._has_work_locked(link)):
                return
            link.idle, link.due = True, self._due_locked(link)
            link.wake.wait(None if link.due == math.inf else max(0, link.due - time.monotonic()))
            link.idle = False

    def _due_locked(self, link):
        """When *link* has something to send although nothing else happens."""
        return math.inf if link.data or link.posted or self._silent else self._raft.next_request_at(link.peer)

    def _call(self, link, ready):
        request = ready.request
        if isinstance(request, InstallSnapshot):
            if (request := self._with_chunk(link.peer, request)) is None:
                return
            ready = ready._replace(request=request)
        reply = failure = None
        try:
            reply = link.connection.call(*ready)
        except PeerUnreachable as error:
            failure = error
        log.log(TRACE, "rpc peer=%s request=%s reply=%s", link.peer, request, failure or reply)
        with self._lock:
            self._replied_locked(link, ready, reply, failure)
            self._settle_locked()
        if isinstance(request, InstallSnapshot) and reply is not None and reply.installed:
            log.info("sent a snapshot peer=%s index=%s", link.peer, request.last_included_index)
            self._release_outgoing()

    def _replied_locked(self, link, ready, reply, failure=None):
        """*reply* is None if there was none, because of *failure*."""
        if self._silent or link.closed:  # closed: who has that name by now is perhaps another
            return
        self._raft.tick(time.monotonic())
        self._raft.handle_reply(link.peer, ready.request, reply)
        if reply is not None:
            self._answered_locked(link, ready.member)
        elif not self._stopping.is_set():
            self._unanswered_locked(link, failure)

    def _unanswered_locked(self, link, error):
        """A peer is lost when it does not answer something small. If only entries fail, again and again, that is another matter."""
        link.failures += 1
        if not link.data:
            if link.peer not in self._lost_peers:
                log.warning("peer lost peer=%s error=%s", link.peer, error)
            self._lost_peers[link.peer] = str(error)
        elif link.failures == FAILURES_IN_A_ROW:
            log.warning("entries do not get through to a peer peer=%s error=%s", link.peer, error)

    def _answered_locked(self, link, member):
        if not link.data and self._lost_peers.pop(link.peer, None):
            log.info("peer found peer=%s address=%s", link.peer, member.address)
        if link.data and link.failures >= FAILURES_IN_A_ROW:
            log.info("entries get through to a peer again peer=%s address=%s", link.peer, member.address)
        link.failures = 0
        if not self._raft.configuration.is_voter(link.peer):
            self._changed.notify_all()  # somebody may wait for a learner to catch up

    # Snapshots to followers that are too far behind

    def _offer_snapshot(self, peer):
        """Make a snapshot for *peer*, or use the one that is being sent to others while the log still leads on from it."""
        try:
            with self._outgoing_lock:
                out = self._outgoing
                if out is None or out.snapshot.index < self._raft.log.snapshot_index:
                    self._drop_outgoing()
                    out = self._outgoing = Outgoing(self._make_snapshot(peer))
                out.peers.add(peer)
        except RaftdError as error:
            self._snapshot_failed(peer, error)
            return
        with self._lock:
            self._raft.snapshot_offered(peer, out.snapshot.index, out.snapshot.term, out.snapshot.size, out.snapshot.sha256)

    def _make_snapshot(self, peer):
        started = time.monotonic()
        snapshot = self._state_machine.snapshot(self._check_not_stopping)
        log.info("made a snapshot to send peer=%s index=%s bytes=%s seconds=%.3f", peer, snapshot.index, snapshot.size,
                 time.monotonic() - started)
        return snapshot

    def _check_not_stopping(self):
        if self._stopping.is_set():
            raise Stopping()

    def _snapshot_failed(self, peer, error):
        with self._lock:
            self._raft.snapshot_withdrawn(peer)
        if not self._stopping.is_set():
            log.error("no snapshot for a follower peer=%s error=%s", peer, error)
        self._stopping.wait(RETRY_SECONDS)

    def _drop_outgoing(self):
        """Needs ``_outgoing_lock``."""
        if self._outgoing:
            try:
                self._outgoing.snapshot.close()
            except StorageFailed as error:
                log.warning("the copy of a snapshot could not be removed error=%s", error)
            self._outgoing = None

    def _with_chunk(self, peer, request):
        """*request* with its data; None when that snapshot has made way for a newer one."""
        try:
            with self._outgoing_lock:
                out = self._outgoing
                if out is not None and out.snapshot.sha256 == request.checksum:
                    return replace(request, data=out.snapshot.read(request.offset, self.settings.snapshot_chunk_bytes))
        except StorageFailed as error:
            with self._outgoing_lock:
                self._drop_outgoing()
            self._snapshot_failed(peer, error)
            return None
        with self._lock:
            self._raft.snapshot_withdrawn(peer)
        return None

    def _release_outgoing(self):
        """Remove the copy once nobody is being sent it. Waits for nothing, since the applier calls it too."""
        if not self._outgoing_lock.acquire(blocking=False):
            return
        try:
            with self._lock:
                needed = self._outgoing and any(self._raft.is_sending_snapshot_to(peer) for peer in self._outgoing.peers)
            if not needed:
                self._drop_outgoing()
        finally:
            self._outgoing_lock.release()

    # The disk

    def _writer_loop(self):
        """Make unsaved state durable, a batch at a time; while one batch syncs the next gathers."""
        while (unsaved := self._wait_for_unsaved()) is not None:
            try:
                if (failure := self._save_failure) is not None:
                    self._save_failure = None
                    raise failure
                self._save(unsaved)
            except StorageFailed as error:
                if not self._recover(error):
                    break
        if self._raft.lost:
            self._end_as_older_copy()

    def _save(self, unsaved):
        """Make *unsaved* durable, and tell the core. Raises StorageFailed."""
        started = time.monotonic()
        self._storage.save(unsaved)
        with self._lock:
            now = time.monotonic()
            self._save_seconds = now - started
            if self._saving_here:
                self._saved_here_locked()
            if self._raft.lost:
                return
            self._raft.tick(now)
            self._raft.saved(unsaved)
            has_stalled, self._disk_has_stalled = self._disk_has_stalled, False
            self._settle_locked()
        if has_stalled:
            log.info("the disk answers again seconds=%.3f entries=%s", now - started, len(unsaved.entries))
        elif now - started > self.settings.election_timeout_seconds / 2:
            log.warning("slow disk seconds=%.3f entries=%s", now - started, len(unsaved.entries))

    def _wait_for_unsaved(self):
        """What is to be written next, or has been written in vain by another thread; None when nothing is any more."""
        with self._lock:
            while self._saving_here or not (self._raft.has_unsaved or self._raft.lost or self._save_failure):
                if self._stopping.is_set() and not self._saving_here:
                    return None
                self._writer_idle = not self._saving_here
                self._writer_wake.wait()
            self._writer_idle = False
            if self._raft.lost:
                return None
            if self._save_failure:
                return ()
            self._raft.tick(time.monotonic())
            return self._raft.take_unsaved()

    def _take_to_save_here_locked(self, answer):
        """What the thread that has *answer* to give should write itself, or None if that is for the log-writer.

        The leader sends nothing more before it has the answer, so nobody waits for this thread but the leader, and a hand-over to
        the log-writer and back is saved. Not on a slow disk: there an answer is due before the disk has done all (``_wait_for_reply``).
        """
        raft = self._raft
        if not (answer.needs_index and answer.reply is None and self._writer_idle and raft.has_unsaved) or self._save_failure \
                or self._stopping.is_set() or self._save_seconds > self.settings.rpc_timeout_seconds / 8 \
                or self._seen != (raft.role, raft.term, raft.configuration):  # a change of role is told at once
            return None
        self._writer_idle, self._saving_here = False, True
        return raft.take_unsaved()

    def _save_here(self, unsaved):
        try:
            self._save(unsaved)
        except Exception as error:  # the log-writer knows what is to be done
            with self._lock:
                self._save_failure = error
                self._saved_here_locked()

    def _saved_here_locked(self):
        self._saving_here, self._writer_idle = False, True
        if self._save_failure or self._raft.lost or self._stopping.is_set():
            self._writer_wake.notify()

    def _end_as_older_copy(self):
        try:
            self._storage.lost(*self._raft.lost)
        except StorageFailed as error:
            log.error("that these files are an older copy cannot be written error=%s", error)
        raise DamagedFiles(f"{self._silent}: its files are older than what it has said since; {REPLACE_NODE}")

    def _recover(self, error):
        """The log could not be written: be silent until the file has been opened and read again. False when the node ends first."""
        log.error("the log cannot be written, this node is silent until it can error=%s", error)
        with self._lock:
            if self._raft.lost:
                return False
            self._silent, self._disk_has_stalled = error, False
            self._raft.step_down("the log cannot be written")
            self._fail_everything_locked(error)
            self._changed.notify_all()
        is_another = time.monotonic() - self._log_open_since > CALM_SECONDS
        self._retry_pause = RETRY_SECONDS if is_another else min(2 * self._retry_pause, MOST_RETRY_SECONDS)
        while not self._stopping.wait(self._retry_pause):
            self._release_outgoing()  # who leads no more sends it to nobody, and it may be what fills the disk
            try:
                self._storage.reopen()
                saved = self._storage.load()
            except StorageFailed as again:
                log.debug("the log still cannot be written error=%s", again)
                continue
            with self._lock:
                while not self._applier_idle and not self._stopping.is_set():
                    self._changed.wait()
                if self._stopping.is_set():
                    return False
                if self._raft.withdrawn:  # the log must not begin at a state that is not on the disk
                    continue
                self._raft = self._restore(saved)
                self._silent = self._catch_up_to = None
                self._seen_commit, self._unapplied_bytes = self._raft.commit_index, 0
                self._answered_index = min(self._answered_index, self._raft.commit_index)  # of the rest only others know now
                self._settle_locked()
                for link in self._all_links_locked():
                    link.wake.notify()
            self._log_open_since = time.monotonic()
            log.info("the log is open again term=%s last_index=%s", saved.hard_state.term, saved.base.index + len(saved.entries))
            return True
        return False

    # The state machine

    def _applier_loop(self):
        """Give committed entries to the state machine, a batch at a time, and tell those who wait."""
        unchecked_entries, unchecked_bytes = self._raft.last_applied - self._raft.log.snapshot_index, self._raft.log.size
        while True:
            with self._lock:
                if not self._wait_for_committed_locked():
                    return
                self._applier_idle, self._applying_since = False, None if self._install else time.monotonic()
                install, entries = self._install, () if self._silent else self._as_many_as_may(self._raft.take_committed(MAX_APPLY_BYTES))
                configuration = self._raft.configurations.at(entries[-1].index)[1].encode() if entries else None
            try:
                if install:
                    self._install_snapshot(*install)
                elif self._raft.last_applied < self._state_machine.position.index:
                    self._follow_state()
                    entries = ()
                elif entries:
                    results = self._apply(entries, configuration)
                else:
                    self._state_machine.checkpoint()
                self._state_recovered()
            except StorageFailed as error:
                self._state_failed(error)
                continue
            if install or not entries:
                continue
            size = self._applied(entries, results)
            unchecked_entries += len(entries)
            unchecked_bytes += size
            if unchecked_entries >= self.settings.compact_entries or unchecked_bytes >= self.settings.compact_bytes:
                unchecked_entries = unchecked_bytes = 0
                self._compact()

    def _as_many_as_may(self, entries):
        """The first of *entries*: so many that all their outcomes may be in memory together."""
        return entries[:self._state_machine.how_many([entry.command if entry.kind == COMMAND else b"" for entry in entries])]

    def _wait_for_committed_locked(self):
        """False when the node stops. Entries that nobody waits for, soon after others, are given a little time to become more."""
        ended = time.monotonic()
        while True:
            has_work, now = self._has_work_for_applier_locked(), time.monotonic()
            due = ended + (AWAITED_PAUSE_SECONDS if self._state_machine.is_awaited else APPLY_PAUSE_SECONDS)
            if has_work and (now >= due or self._install or self._raft.withdrawn or self._must_apply_locked()):
                self._apply_at = math.inf
                return True
            if self._stopping.is_set():
                return False
            if not self._applier_idle:
                self._applier_idle, self._applying_since = True, None
                self._changed.notify_all()
            self._apply_at = due if has_work else math.inf
            self._applier_wake.wait(self._apply_at - now if has_work else None)

    def _has_work_for_applier_locked(self):
        """A state that could not be written is tried again although there is nothing to apply, or nothing may be."""
        raft = self._raft
        return bool(self._install or ((raft.has_committed and not self._silent or raft.withdrawn) and not self._stopping.is_set()))

    def _apply(self, entries, configuration):
        """The results of the commands among *entries*, in their order."""
        batch = [(entry.index, entry.command) for entry in entries if entry.kind == COMMAND]
        return self._state_machine.apply(batch, entries[-1].index, entries[-1].term, configuration)

    def _applied(self, entries, results):
        """Tell who waits; returns the bytes of the commands."""
        size = sum([len(entry.command) for entry in entries])
        with self._lock:
            self._raft.tick(time.monotonic())
            self._raft.applied(entries[-1].index)
            self._unapplied_bytes = self._unapplied_bytes - size if self._raft.last_applied < self._raft.commit_index else 0
            if self._proposals:
                self._answer_applied_locked(entries, iter(results))
            self._wake_applied_waiters_locked()
            if self._draining or any(entry.kind != COMMAND for entry in entries):
                self._changed.notify_all()
            self._settle_locked()
        return size

    def _answer_applied_locked(self, entries, results):
        for entry in entries:
            result = next(results) if entry.kind == COMMAND else None
            proposal = self._proposals.pop(entry.index, None)
            if proposal is None:
                continue
            if proposal.term == entry.term:
                self._answer_locked(entry.index, proposal, result)
            else:
                self._waiting_bytes -= proposal.size
                _fail(proposal.future, Discarded("another leader put another entry in its place"))

    def _wake_applied_waiters_locked(self):
        waiters, self._applied_waiters = self._applied_waiters, []
        for index, future in waiters:
            self._wake_when_applied_locked(index, future)

    def _wake_when_applied_locked(self, index, future):
        if self._raft.last_applied >= index:
            _resolve(future, index)
        else:
            self._applied_waiters.append((index, future))
            if self._applier_idle and self._raft.has_committed:
                self._applier_wake.notify()

    def _state_failed(self, error):
        """The state cannot be written: lead no longer, and try again until it can."""
        with self._lock:
            self._withdraw_locked(error)
            self._fail_proposals_locked(error)
            self._applier_idle, self._applying_since = True, None
            self._settle_locked()
            self._changed.notify_all()
        self._release_outgoing()  # as in ``_recover``
        self._stopping.wait(RETRY_SECONDS)

    def _withdraw_locked(self, reason):
        if not self._raft.withdrawn:
            log.error("the state cannot be written, this node neither leads nor votes for itself until it can error=%s", reason)
        self._state_is_full = isinstance(reason, StorageFailed) and reason.status == 507
        self._raft.withdrawn = f"the state cannot be written: {reason}"
        self._raft.step_down(self._raft.withdrawn)

    def _state_recovered(self):
        if self._raft.withdrawn:
            with self._lock:
                self._raft.withdrawn = self._applying_since = None  # else the timer finds that the batch which has ended takes too long
            log.info("the state can be written again")

    def _compact(self):
        """The state machine is the snapshot: once it is surely on disk, the log before it is not needed."""
        started = time.monotonic()
        with self._lock:
            self._applying_since = started  # another piece of work, with a time of its own
        try:
            durable_index = self._state_machine.checkpoint()
        except StorageFailed as error:
            self._state_failed(error)
            return
        with self._lock:
            self._raft.compact(durable_index, self.settings.keep_entries, self.settings.keep_bytes)
            snapshot_index = self._raft.log.snapshot_index
            self._settle_locked()
        log.debug("compacted snapshot_index=%s durable_index=%s seconds=%.3f", snapshot_index, durable_index, time.monotonic() - started)
        self._release_outgoing()

    def _install_snapshot(self, incoming, answer):
        """The state machine takes the leader's state in place of its own, and the log follows (section 7)."""
        request, started, installed = answer.request, time.monotonic(), False
        try:
            if request.last_included_index > self._state_machine.position.index:
                self._state_machine.install(incoming)
            self._follow_state()
            installed = self._state_machine.position.index >= request.last_included_index
        except StorageFailed:
            raise
        except RaftdError as error:
            log.warning("a snapshot was refused leader=%s error=%s", request.leader_id, error)
        finally:
            with self._lock:
                self._install = None
                self._pause_installs_locked(installed)
                self._raft.chunk_stored(answer, request.size if installed else 0, installed)
                self._settle_locked()
        if installed:
            log.info("installed a snapshot leader=%s index=%s bytes=%s seconds=%.3f", request.leader_id, request.last_included_index,
                     request.size, time.monotonic() - started)

    def _follow_state(self):
        """The log begins where an installed state stands, once that is surely on disk: until then it may still be gone after a crash."""
        position = self._state_machine.position
        if position.index <= self._raft.last_applied:
            return
        if self._state_machine.checkpoint() < position.index:
            raise StorageFailed(f"the state that was installed at {position.index} is not on the disk yet")
        configuration = _configuration_at(position.index, position.configuration)
        with self._lock:
            self._raft.tick(time.monotonic())
            self._raft.snapshot_installed(position.index, position.term, configuration)
            self._wake_applied_waiters_locked()
            self._settle_locked()

    def _pause_installs_locked(self, installed):
        """What cannot be installed now is sent again and again: each time after a longer pause."""
        self._install_pause = 0 if installed else min(MOST_INSTALL_PAUSE_SECONDS, 2 * self._install_pause or RETRY_SECONDS)
        self._no_install_before = time.monotonic() + self._install_pause


SENDERS = {RequestVote: "candidate_id", ReadIndex: "follower_id"}  # the field of a request that names its sender; else it is leader_id
MAX_TERM_STEP = 1 << 40  # no honest peer is further ahead; one that lies cannot use the terms up


def restore(name, saved, position, settings, random, now):
    """The core, from what the disk holds: *saved*, of the storage, and *position*, of the state machine.

    The two are compared: neither may have lost what the other relies on. Raises DamagedFiles.
    """
    base = saved.base
    raft_log = Log(base.index, base.term, saved.entries)
    configurations = Configurations(base.index, base.configuration)
    for entry in saved.entries:
        if entry.kind == CONFIGURATION:
            configurations.append(entry.index, _configuration_at(entry.index, entry.command))
    was_installed = position.index == position.installed_index and position.index > 0
    agrees = raft_log.term_at(position.index) == position.term and (
        position.index == 0 or configurations.at(position.index)[1].encode() == position.configuration)
    if not agrees and not (was_installed and position.index > base.index):
        raise DamagedFiles(
            f"state.db stands at entry {position.index} of term {position.term}, but the log in raft.db has entries {base.index + 1} "
            f"to {raft_log.last_index} and not that one with those members: a file was lost or exchanged; {REPLACE_NODE}")
    applied = position.index if agrees else base.index
    raft = Raft(name, saved.hard_state, raft_log, configurations, applied, settings, random, now)
    if not agrees:  # a crash came between the installation of a snapshot and the log
        raft.snapshot_installed(position.index, position.term, _configuration_at(position.index, position.configuration))
    return raft


def _is_waiting(role):
    """True for a server that knows no leader and has not begun a term of its own: it may go on so for hours."""
    return role.pre_vote if isinstance(role, Candidate) else not isinstance(role, Leader) and role.leader_id is None


def _configuration_at(index, data):
    """The members in *data*, of the log or of a state machine. Raises DamagedFiles: whoever has written that is no raftd."""
    try:
        return Configuration.decode(data)
    except (ValueError, TypeError) as error:
        raise DamagedFiles(f"the members at entry {index} cannot be: {error}; {REPLACE_NODE}") from error


def _resolve(future, value):
    """Give *future* its value, unless it has been given up."""
    if not future.done():
        future.set_result(value)


def _fail(future, error):
    if not future.done():
        future.set_exception(copy(error))
