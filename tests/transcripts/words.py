"""How servers, logs and messages are written in transcripts. An entry is index/term: 3/2 is entry 3, which is of term 2."""

from raftd.raft.messages import (
    AppendEntries, AppendEntriesReply, InstallSnapshot, InstallSnapshotReply, ReadIndex, ReadIndexReply, RequestVote, RequestVoteReply,
    TimeoutNow, TimeoutNowReply,
)
from raftd.raft.roles import Candidate, Leader


def listed(entries):
    return " ".join(f"{entry.index}/{entry.term}" for entry in entries)


def described(message):
    """*message* in the words of the paper; who sends it is said before. Index and term of one entry stand together."""
    match message:
        case RequestVote(term, _, last_log_index, last_log_term, pre_vote, leadership_transfer):
            marks = " pre_vote" * pre_vote + " leadership_transfer" * leadership_transfer
            return f"RequestVote term={term} last_log={last_log_index}/{last_log_term}{marks}"
        case AppendEntries(term, _, prev_log_index, prev_log_term, entries, leader_commit, round):
            return (f"AppendEntries term={term} prev_log={prev_log_index}/{prev_log_term} entries=({listed(entries)}) "
                    f"leader_commit={leader_commit} round={round}")
        case InstallSnapshot(term, _, last_included_index, last_included_term, size, _, offset, data):
            return (f"InstallSnapshot term={term} last_included={last_included_index}/{last_included_term} "
                    f"bytes {offset} to {offset + len(data)} of {size}")
        case ReadIndex(term) | TimeoutNow(term):
            return f"{type(message).__name__} term={term}"
        case RequestVoteReply(term, vote_granted):
            return f"term={term} vote_granted={vote_granted}"
        case AppendEntriesReply(term, True, match_index):
            return f"term={term} success=True match_index={match_index}"
        case AppendEntriesReply(term, False, _, conflict_index, conflict_term):
            return f"term={term} success=False conflict={conflict_index}/{conflict_term}"
        case InstallSnapshotReply(term, next_offset, installed):
            return f"term={term} next_offset={next_offset} installed={installed}"
        case ReadIndexReply(term, read_index):
            return f"term={term} read_index={read_index}"
        case TimeoutNowReply(term):
            return f"term={term}"


def written(unsaved):
    """What was one write to the disk."""
    hard_state, base = unsaved.hard_state, unsaved.base
    parts = [f"term={hard_state.term} vote={hard_state.voted_for or 'none'}" if hard_state else "",
             f"log begins after {base.index}/{base.term}" if base else "", f"entries=({listed(unsaved.entries)})"]
    return " ".join(filter(None, parts))


def role_of(raft):
    match raft.role:
        case Leader():
            return f"leads in term {raft.term}"
        case Candidate(pre_vote=True):
            return f"asks whether it would be elected in term {raft.term + 1}"
        case Candidate():
            return f"stands for election in term {raft.term}"
    return f"follows {raft.leader_id} in term {raft.term}" if raft.leader_id else f"follows nobody in term {raft.term}: {raft.reason}"


def log_of(raft):
    """``..2/1 [3/1 4/2] 5/2 | 6/2``: compacted up to 2/1; 3/1 and 4/2 are committed, 5/2 is not, and 6/2 is not even on the disk."""
    log = raft.log
    compacted = [f"..{log.snapshot_index}/{log.snapshot_term}"] if log.snapshot_index else []
    words = [f"{'| ' if entry.index == raft.saved_index + 1 else ''}{entry.index}/{entry.term}"
             for entry in log.entries(log.first_index, log.last_index)]
    committed = raft.commit_index - log.snapshot_index
    return " ".join([*compacted, f"[{' '.join(words[:committed])}]", *words[committed:]])


def state_of(raft):
    return f"{role_of(raft)}, vote={raft.voted_for or 'none'} log={log_of(raft)}"


def members_of(raft):
    learners = [member.name for member in raft.configuration.members.values() if not member.voter]
    return f"voters=({' '.join(raft.configuration.voters)})" + f" learners=({' '.join(learners)})" * bool(learners)
