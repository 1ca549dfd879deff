"""One server of the production core, n1, and what happens to it: for the tests of test_paper_*.py.

Its disk is ``save``, its peers are what the tests say they answer, its clock goes when it is told to.
"""

import random

from raftd.config import Settings
from raftd.raft.configuration import Configuration, Configurations, Member
from raftd.raft.core import Raft
from raftd.raft.log import Log
from raftd.raft.messages import (
    COMMAND, CONFIGURATION, AppendEntries, AppendEntriesReply, Entry, HardState, InstallSnapshot, RequestVote, RequestVoteReply,
)

ELECTION = Settings().election_timeout_seconds
HEARTBEAT = Settings().heartbeat_seconds


def members(*voters, learners=()):
    some = [Member(name, f"{name}:1") for name in voters] + [Member(name, f"{name}:1", voter=False) for name in learners]
    return Configuration({member.name: member for member in some})


THREE = members("n1", "n2", "n3")
FIVE = members("n1", "n2", "n3", "n4", "n5")
WITH_LEARNERS = members("n1", "n2", "n3", learners=("n4", "n5"))
FOURTH = Member("n4", "n4:1")


def entries(*terms, first=1):
    return tuple(Entry(index, term, COMMAND, b"%d" % index) for index, term in enumerate(terms, first))


def configuration_entry(index, term, configuration):
    return Entry(index, term, CONFIGURATION, configuration.encode())


# The server


def server(*terms, term=None, voted_for=None, configuration=THREE, snapshot=(0, 0), applied=None, log=None, settings=None, started=None):
    """n1 as it comes up with a log of these *terms*, at 0.0, when what it may have promised before it *started* is over."""
    log = log or Log(*snapshot, entries(*terms, first=snapshot[0] + 1))
    configurations = Configurations(snapshot[0], configuration)
    for entry in log.entries(log.first_index, log.last_index):
        if entry.kind == CONFIGURATION:
            configurations.append(entry.index, Configuration.decode(entry.command))
    hard_state = HardState(log.last_term if term is None else term, voted_for)
    applied = snapshot[0] if applied is None else applied
    settings = settings or Settings()
    raft = Raft("n1", hard_state, log, configurations, applied, settings, random.Random(1),
                -settings.election_timeout_seconds / 2 if started is None else started)
    raft.tick(0.0)
    return raft


def follower(*terms, leader="n2", **more):
    """n1 with a log of these *terms*; it has just heard of its leader."""
    raft = server(*terms, **more)
    ask(raft, append(term=raft.term, leader=leader, prev=(raft.log.last_index, raft.log.last_term)))
    return raft


def candidate(*terms, **more):
    """n1 in an election for a new term, which is saved."""
    raft = server(*terms, **more)
    timeout(raft)
    answer_votes(raft, *raft.configuration.voters[1:1 + len(raft.configuration.voters) // 2])
    assert raft.role.pre_vote is False
    save(raft)
    return raft


def leader(*terms, committed=True, **more):
    """n1 as leader of a new term; its no-op is saved, and committed with the help of n2 (and n3, of five)."""
    raft = candidate(*terms, **more)
    helpers = raft.configuration.voters[1:1 + len(raft.configuration.voters) // 2]
    answer_votes(raft, *helpers)
    assert raft.is_leader
    save(raft)
    if committed:
        replicate(raft, *helpers)
        assert raft.commit_index == raft.log.last_index
    return raft


def state(raft):
    return (raft.term, raft.voted_for, type(raft.role), raft.commit_index, raft.log.last_index, raft.log.last_term,
            raft.configurations.latest_index, raft.has_unsaved)


def terms(raft):
    return [entry.term for entry in raft.log.entries(raft.log.first_index, raft.log.last_index)]


# Requests to it


def append(term=1, leader="n2", prev=(0, 0), terms=(), commit=0, round=0):
    return AppendEntries(term, leader, *prev, entries(*terms, first=prev[0] + 1), commit, round)


def snapshot(index=5, term=1, leader_term=1, offset=0, data=b""):
    return InstallSnapshot(leader_term, "n2", index, term, 10, b"sum", offset, data)


def ask(raft, request):
    """The reply to *request* once all is on disk."""
    answer = raft.handle(request)
    save(raft)
    assert answer.reply is not None, request
    return answer.reply


# Its disk, its clock, and the answers of its peers


def save(raft):
    """The disk is quick."""
    while raft.has_unsaved:
        raft.saved(raft.take_unsaved())


def timeout(raft):
    """The time of an election comes."""
    raft.tick(raft.next_tick)
    save(raft)


def answer_votes(raft, *voters, granted=True):
    for voter in voters:
        request = raft.request_for(voter)
        assert isinstance(request, RequestVote)
        raft.handle_reply(voter, request, RequestVoteReply(raft.term, granted))


def propose(raft, command=b"x"):
    """*command* in the log of the leader, and on its disk."""
    entry = raft.propose(command)
    save(raft)
    return entry


def replicate(raft, *peers, up_to=None):
    """Each of *peers* has the leader's log on disk, all of it or *up_to* an index, and says so. Confirms no read."""
    for peer in peers:
        last = raft.log.last_index if up_to is None else up_to
        acked_round = raft.role.progress[peer].acked_round
        request = AppendEntries(raft.term, "n1", last, raft.log.term_at(last), (), raft.commit_index, acked_round)
        raft.handle_reply(peer, request, AppendEntriesReply(raft.term, True, last))


def accept(raft, peer, request=None):
    """*peer* answers *request*, or one that is made now: its log agrees up to there, and is on its disk."""
    request = request or raft.request_for(peer)
    raft.handle_reply(peer, request, AppendEntriesReply(raft.term, True, request.prev_log_index + len(request.entries)))


def refuse(raft, peer, prev, conflict_index, conflict_term=0):
    """*peer* has no entry *prev*, (index, term), and says what it has instead."""
    request = append(term=raft.term, leader="n1", prev=prev)
    raft.handle_reply(peer, request, AppendEntriesReply(raft.term, False, 0, conflict_index, conflict_term))


def heartbeat(raft, *peers):
    """A heartbeat later each of *peers* answers that the leader lives."""
    raft.tick(raft.now + HEARTBEAT)
    for peer in peers:
        if isinstance(request := raft.request_for(peer), AppendEntries):
            raft.handle_reply(peer, request, AppendEntriesReply(raft.term, True, raft.role.progress[peer].match_index))


def finished(raft):
    """The reads that are ready, or have failed, since this was last asked."""
    done, raft.finished_reads[:] = list(raft.finished_reads), []
    return done
