"""What a server holds only while it is follower, candidate or leader; changing the role throws it away."""

import math
from collections import deque
from dataclasses import dataclass, field

from raftd.raft.messages import ReadIndex


class Read:
    """A linearizable read on its way (thesis 6.4).

    index    once ``ready``: what must be applied before the state machine is asked
    round    on a leader: a majority must answer a request of this round, or a later one
    failed   the role that was to confirm it is gone; ask again
    context  the caller's own; the core does not look at it
    """

    __slots__ = ("index", "round", "ready", "failed", "context")

    def __init__(self, context=None):
        self.index, self.round, self.ready, self.failed, self.context = None, 0, False, False, context


@dataclass
class Follower:
    """Also a server that has not heard of any leader yet, and a learner.

    last_heard     when the leader was last heard, on the clock that ``tick`` tells
    matched_index  up to here the log is known to be that of ``leader_id``
    leader_commit  the newest commit_index it told, much of which may still be missing here; 0 before it told any
    reads          reads to ask the leader about
    asked, asking  those of the request under way, and that request
    """

    leader_id: str | None = None
    last_heard: float = -math.inf
    matched_index: int = 0
    leader_commit: int = 0
    reads: list[Read] = field(default_factory=list)
    asked: list[Read] = field(default_factory=list)
    asking: ReadIndex | None = None


@dataclass
class Candidate:
    """``pre_vote``: only asking whether an election could be won (thesis 9.6); the term is still the old one."""

    pre_vote: bool
    leadership_transfer: bool = False
    votes: dict[str, bool] = field(default_factory=dict)


@dataclass
class Transfer:
    """Leadership is being handed to ``target``; given up at ``deadline`` (thesis 3.10)."""

    target: str
    deadline: float
    sent: bool = False


@dataclass
class Outgoing:
    """A snapshot on its way to a follower; ``offset`` is what the follower wants next."""

    index: int
    term: int
    size: int
    checksum: bytes
    offset: int = 0


@dataclass
class Progress:
    """What the leader knows of one peer.

    Invariant: 0 <= match_index < next_index.

    last_heard      when it last answered
    acked_round     newest read round it answered
    promised_round  newest read round it answered with the promise that a lease rests on
    sent_round, sent_commit   newest read round and commit_index it was told
    heartbeat_due   when it must hear from the leader again
    notice_due      when a new commit_index is worth a request of its own
    reserved_from   compaction leaves what comes after: where the snapshot that is made for it, or sent, stands, at the least; then,
                    until it has caught up, its match_index
    """

    next_index: int
    match_index: int = 0
    last_heard: float = 0.0
    acked_round: int = 0
    promised_round: int = 0
    sent_round: int = 0
    sent_commit: int = 0
    heartbeat_due: float = -math.inf
    notice_due: float = math.inf
    snapshot: Outgoing | None = None
    reserved_from: int | None = None


@dataclass
class Leader:
    """
    first_index  index of the no-op of its term; nothing may be read or reconfigured before it is committed
    round        the current read round; ``round_open`` until a request has carried it
    lease_until  a majority has promised to elect nobody else before that, on the clock that ``tick`` tells (thesis 6.4.1)
    lease_wanted_until  requests ask for that promise until then
    lease_rounds  (round, when it began) of those that may extend the lease when a majority has answered them with the promise
    successor_called  another was asked to stand, whom voters help whatever they have promised: there is no lease any more
    """

    first_index: int
    progress: dict[str, Progress] = field(default_factory=dict)
    round: int = 0
    round_open: bool = False
    reads: list[Read] = field(default_factory=list)
    transfer: Transfer | None = None
    lease_until: float = -math.inf
    lease_wanted_until: float = -math.inf
    lease_rounds: deque[tuple[int, float]] = field(default_factory=deque)
    successor_called: bool = False
