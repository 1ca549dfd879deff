"""What servers say to each other and keep on disk: values only, no behaviour.

Indexes start at 1; 0 is "before the first". Terms start at 0, in which nobody leads.
"""

from dataclasses import dataclass
from typing import NamedTuple

KINDS = NOOP, COMMAND, CONFIGURATION = 0, 1, 2


class Entry(NamedTuple):
    """One entry of the log.

    kind     NOOP (a leader's first entry), COMMAND (for the state machine), CONFIGURATION (a membership)
    command  bytes; of a CONFIGURATION, what ``Configuration.encode`` gives
    """

    index: int
    term: int
    kind: int
    command: bytes


class HardState(NamedTuple):
    """What a server must not forget: its term, and whom it voted for in it (Figure 2, "Persistent state")."""

    term: int
    voted_for: str | None


@dataclass(frozen=True, slots=True)
class RequestVote:
    """A candidate asks for a vote (section 5.2).

    pre_vote             ask whether a vote would be granted, in ``term``, without changing anything (thesis 9.6)
    leadership_transfer  the leader itself asked for this election, so hearing from it is no reason to refuse (thesis 3.10)
    """

    term: int
    candidate_id: str
    last_log_index: int
    last_log_term: int
    pre_vote: bool = False
    leadership_transfer: bool = False


@dataclass(frozen=True, slots=True)
class RequestVoteReply:
    """``term`` is the voter's; ``vote_granted`` means the candidate received the vote (or would)."""

    term: int
    vote_granted: bool


@dataclass(frozen=True, slots=True)
class AppendEntries:
    """The leader replicates entries; with none it is a heartbeat (section 5.3, Figure 2).

    prev_log_index  index of the entry just before ``entries``
    prev_log_term   term of that entry
    leader_commit   the leader's commit_index
    round           the read round this request belongs to; its answer confirms reads up to it (thesis 6.4)
    confirmed_index  up to here the follower has told this leader, in this term, that it has the leader's log on disk
    lease_ms        for so long, in milliseconds, the follower is asked to help nobody else to be elected (thesis 6.4.1); 0: it is not
    """

    term: int
    leader_id: str
    prev_log_index: int
    prev_log_term: int
    entries: tuple[Entry, ...] = ()
    leader_commit: int = 0
    round: int = 0
    confirmed_index: int = 0
    lease_ms: int = 0

    def __str__(self):
        """For the log: which entries, not what they say."""
        entries = f"{self.entries[0].index}..{self.entries[-1].index}" if self.entries else "none"
        return (f"AppendEntries(term={self.term}, leader_id={self.leader_id}, prev_log_index={self.prev_log_index}, "
                f"prev_log_term={self.prev_log_term}, entries={entries}, leader_commit={self.leader_commit}, round={self.round}, "
                f"confirmed_index={self.confirmed_index}, lease_ms={self.lease_ms})")


@dataclass(frozen=True, slots=True)
class AppendEntriesReply:
    """
    success         the follower's log holds the entry at prev_log_index with prev_log_term
    match_index     if so: the follower has on disk all of the leader's log up to here
    conflict_index  if not: where the leader may try next
    conflict_term   term of the entry that conflicts, 0 when the follower's log is too short (section 5.3)
    promised        it helps nobody else to be elected, for as long as it was asked from when the request came
    """

    term: int
    success: bool
    match_index: int = 0
    conflict_index: int = 0
    conflict_term: int = 0
    promised: bool = False


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """One chunk of the leader's state machine, for a follower whose next entries are compacted (section 7).

    last_included_index, last_included_term  the last entry the snapshot stands for
    size      bytes of the whole snapshot
    checksum  SHA-256 of the whole snapshot
    offset    where ``data`` belongs; a request without data asks how far the follower is
    """

    term: int
    leader_id: str
    last_included_index: int
    last_included_term: int
    size: int
    checksum: bytes
    offset: int
    data: bytes = b""

    def __str__(self):
        """For the log: which bytes, not what they are."""
        return (f"InstallSnapshot(term={self.term}, leader_id={self.leader_id}, last_included_index={self.last_included_index}, "
                f"size={self.size}, offset={self.offset}, data={len(self.data)} bytes)")


@dataclass(frozen=True, slots=True)
class InstallSnapshotReply:
    """``next_offset``: the follower wants the snapshot from here on; ``installed``: its state is at least as new."""

    term: int
    next_offset: int
    installed: bool


@dataclass(frozen=True, slots=True)
class ReadIndex:
    """A follower asks the leader how far it must have applied to answer a linearizable read (thesis 6.4)."""

    term: int
    follower_id: str


@dataclass(frozen=True, slots=True)
class ReadIndexReply:
    """``read_index`` is 0 when the server that was asked cannot confirm that it leads."""

    term: int
    read_index: int


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """The leader asks its successor to stand for election at once (thesis 3.10)."""

    term: int
    leader_id: str


@dataclass(frozen=True, slots=True)
class TimeoutNowReply:
    """``term`` is that of the server that was asked."""

    term: int
