"""The rules of Raft one by one, on one server of the production core: each docstring is the claim, with its section."""

import random

import pytest

from raftd.config import Settings
from raftd.errors import NoLeader, NoQuorum, NotLeader
from raftd.raft.configuration import Configuration, Configurations, Member
from raftd.raft.core import Answer, Raft
from raftd.raft.log import Log
from raftd.raft.messages import (
    COMMAND,
    CONFIGURATION,
    NOOP,
    AppendEntries,
    AppendEntriesReply,
    Entry,
    HardState,
    InstallSnapshot,
    InstallSnapshotReply,
    ReadIndex,
    ReadIndexReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
    TimeoutNowReply,
)
from raftd.raft.roles import Candidate, Follower, Leader

ELECTION = Settings().election_timeout_seconds
HEARTBEAT = Settings().heartbeat_seconds


def members(*voters, learners=()):
    some = [Member(name, f"{name}:1") for name in voters] + [Member(name, f"{name}:1", voter=False) for name in learners]
    return Configuration({member.name: member for member in some})


THREE = members("n1", "n2", "n3")


def entries(*terms, first=1):
    return tuple(Entry(index, term, COMMAND, b"%d" % index) for index, term in enumerate(terms, first))


def server(*terms, term=None, voted_for=None, configuration=THREE, snapshot=(0, 0), applied=None, log=None, settings=None):
    """n1 as it comes up with a log of these *terms*."""
    log = log or Log(*snapshot, entries(*terms, first=snapshot[0] + 1))
    configurations = Configurations(snapshot[0], configuration)
    for entry in log.entries(log.first_index, log.last_index):
        if entry.kind == CONFIGURATION:
            configurations.append(entry.index, Configuration.decode(entry.command))
    hard_state = HardState(log.last_term if term is None else term, voted_for)
    applied = snapshot[0] if applied is None else applied
    return Raft("n1", hard_state, log, configurations, applied, settings or Settings(), random.Random(1), 0.0)


def save(raft):
    """The disk is quick."""
    while raft.has_unsaved:
        raft.saved(raft.take_unsaved())


def ask(raft, request):
    """The reply to *request* once all is on disk."""
    answer = raft.handle(request)
    save(raft)
    assert answer.reply is not None, request
    return answer.reply


def append(term=1, leader="n2", prev=(0, 0), terms=(), commit=0, round=0):
    return AppendEntries(term, leader, *prev, entries(*terms, first=prev[0] + 1), commit, round)


def timeout(raft):
    """The time of an election comes."""
    raft.tick(raft.next_tick)
    save(raft)


def answer_votes(raft, *voters, granted=True):
    for voter in voters:
        request = raft.request_for(voter)
        assert isinstance(request, RequestVote)
        raft.handle_reply(voter, request, RequestVoteReply(raft.term, granted))


def candidate(*terms, **more):
    raft = server(*terms, **more)
    timeout(raft)
    answer_votes(raft, "n2")
    assert raft.role.pre_vote is False
    save(raft)
    return raft


def leader(*terms, committed=True, **more):
    """n1 as leader of a new term; its no-op is saved, and committed with the help of n2."""
    raft = candidate(*terms, **more)
    answer_votes(raft, "n2")
    assert raft.is_leader
    save(raft)
    if committed:
        replicate(raft, "n2")
        assert raft.commit_index == raft.log.last_index
    return raft


def replicate(raft, *peers):
    """Each of *peers* has all of the leader's log on disk, and says so."""
    for peer in peers:
        last = raft.log.last_index
        acked_round = raft.role.progress[peer].acked_round
        request = AppendEntries(raft.term, "n1", last, raft.log.last_term, (), raft.commit_index, acked_round)
        raft.handle_reply(peer, request, AppendEntriesReply(raft.term, True, last))


def heartbeat(raft, *peers):
    """Each of *peers* answers a request made now."""
    for peer in peers:
        raft.tick(raft.now + HEARTBEAT)
        if not raft.is_leader:
            return
        request = raft.request_for(peer)
        raft.handle_reply(peer, request, AppendEntriesReply(raft.term, True, raft.role.progress[peer].match_index))


def state(raft):
    return (raft.term, raft.voted_for, type(raft.role), raft.commit_index, raft.log.last_index, raft.log.last_term,
            raft.configurations.latest_index, raft.has_unsaved)


# Terms and roles (section 5.1)


def test_starts_as_follower():
    """When servers start up, they are followers, with the term and vote they had saved (section 5.2)."""
    raft = server(1, 2, term=5, voted_for="n3")
    assert isinstance(raft.role, Follower) and (raft.term, raft.voted_for) == (5, "n3")


@pytest.mark.parametrize("request_of_term_9", [
    append(term=9), RequestVote(9, "n2", 9, 8), InstallSnapshot(9, "n2", 5, 5, 10, b"x", 0), TimeoutNow(9, "n2"),
    ReadIndex(9, "n2"),
])
def test_larger_term_is_taken_over(request_of_term_9):
    """A server that sees a larger term takes it over (section 5.1)."""
    raft = server(1, term=3, voted_for="n1")
    raft.handle(request_of_term_9)
    assert raft.term >= 9


@pytest.mark.parametrize("role", [candidate, leader])
def test_larger_term_makes_a_follower(role):
    """A candidate or leader whose term is out of date becomes a follower at once, without a vote (section 5.1)."""
    raft = role(1)
    raft.handle(append(term=9))
    assert isinstance(raft.role, Follower) and (raft.term, raft.voted_for) == (9, None)


@pytest.mark.parametrize("role", [candidate, leader])
def test_larger_term_in_a_reply_makes_a_follower(role):
    """The same when a reply brings the larger term (section 5.1)."""
    raft = role(1)
    raft.handle_reply("n2", RequestVote(2, "n1", 1, 1), RequestVoteReply(9, False))
    assert isinstance(raft.role, Follower) and raft.term == 9


@pytest.mark.parametrize("stale", [append(term=2, terms=(2,)), RequestVote(2, "n2", 9, 9), ReadIndex(2, "n2"),
                                   TimeoutNow(2, "n2"), InstallSnapshot(2, "n2", 5, 2, 9, b"x", 0)])
def test_stale_term_is_refused(stale):
    """A request with a stale term is refused, and changes nothing (section 5.1)."""
    raft = server(1, term=3, voted_for="n3")
    before = state(raft)
    reply = ask(raft, stale)
    assert reply.term == 3 and state(raft) == before
    assert not any(getattr(reply, field, False) for field in ("success", "vote_granted", "installed", "read_index"))


def test_same_term_leaves_the_vote():
    """A server votes once in a term: nothing that happens within the term takes the vote back (section 5.2)."""
    raft = server(1, term=3, voted_for="n3")
    raft.handle(append(term=3, prev=(1, 1)))
    raft.handle(RequestVote(4, "n2", 9, 9, pre_vote=True))
    timeout(raft)
    assert isinstance(raft.role, Candidate) and raft.role.pre_vote
    raft.handle(append(term=3, prev=(1, 1)))
    assert (raft.term, raft.voted_for) == (3, "n3")
    deposed = leader(1)
    term = deposed.term
    deposed.tick(deposed.now + 3 * ELECTION)
    assert isinstance(deposed.role, Follower) and (deposed.term, deposed.voted_for) == (term, "n1")


# Votes (sections 5.2 and 5.4.1)


def test_votes_for_one_candidate_per_term():
    """Each server votes for at most one candidate in a term, first come first served (section 5.2)."""
    raft = server(1)
    assert ask(raft, RequestVote(2, "n2", 1, 1)).vote_granted
    assert not ask(raft, RequestVote(2, "n3", 9, 1)).vote_granted
    assert ask(raft, RequestVote(2, "n2", 1, 1)).vote_granted, "a repeated request gets the same answer"
    assert ask(raft, RequestVote(3, "n3", 1, 1)).vote_granted


@pytest.mark.parametrize(("index", "term", "granted"), [(9, 1, False), (1, 3, True), (2, 2, False), (3, 2, True), (4, 2, True)])
def test_vote_compares_term_then_index(index, term, granted):
    """Up-to-date is the log whose last term is larger, and of the same last term the longer one (section 5.4.1)."""
    assert ask(server(1, 2, 2), RequestVote(5, "n2", index, term)).vote_granted is granted
    assert ask(server(1, 2, 2), RequestVote(5, "n2", index, term, pre_vote=True)).vote_granted is granted


def test_vote_leaves_only_when_durable():
    """Term and vote are on stable storage before the reply to a RPC leaves (Figure 2, State): the original saved neither."""
    raft = server(1)
    answer = raft.handle(RequestVote(2, "n2", 1, 1))
    assert answer.reply is None
    unsaved = raft.take_unsaved()
    assert unsaved.hard_state == HardState(2, "n2") and answer.reply is None
    raft.saved(unsaved)
    assert answer.reply == RequestVoteReply(2, True)


def test_vote_in_a_term_that_is_durable_waits_as_well():
    """The vote alone is reason enough to wait for the disk (Figure 2, State)."""
    raft = server(1, term=2)
    answer = raft.handle(RequestVote(2, "n2", 1, 1))
    assert answer.reply is None and raft.take_unsaved().hard_state == HardState(2, "n2")


def test_a_write_of_an_older_vote_does_not_release_the_newer():
    """What is being written when the vote changes does not count for the new vote (Figure 2, State)."""
    raft = server(1)
    raft.handle(append(term=2))
    older = raft.take_unsaved()
    answer = raft.handle(RequestVote(3, "n3", 1, 1, leadership_transfer=True))
    raft.saved(older)
    assert answer.reply is None
    save(raft)
    assert answer.reply == RequestVoteReply(3, True)


def test_a_vote_granted_in_a_term_that_has_passed_is_not_sent_as_granted():
    """The reply says what is so when it leaves: a vote of an older term is none."""
    raft = server(1)
    answer = raft.handle(RequestVote(2, "n2", 1, 1))
    raft.handle(append(term=5, leader="n3"))
    save(raft)
    assert answer.reply == RequestVoteReply(5, False)


def test_refused_vote_does_not_delay_the_election():
    """The election timer is reset when a vote is granted, not when it is refused (Figure 2, Rules for Servers, Followers)."""
    raft = server(1, 2, 2)
    due = raft.next_tick
    raft.tick(due / 2)
    raft.handle(RequestVote(2, "n2", 1, 1))
    assert raft.next_tick == due
    raft.handle(RequestVote(2, "n2", 9, 2))
    assert raft.next_tick > due


# Elections (section 5.2)


def test_election_timeouts_are_drawn_anew():
    """Election timeouts are chosen at random from an interval, anew for each election (section 5.2)."""
    raft, waits = server(1), set()
    for _ in range(20):
        before = raft.now
        raft.tick(raft.next_tick)
        waits.add(raft.next_tick - raft.now)
        assert ELECTION <= raft.next_tick - raft.now <= 2 * ELECTION and raft.now > before
    assert len(waits) > 15


def test_without_a_leader_an_election_begins():
    """A follower that hears nothing for an election timeout begins an election (section 5.2): first it only asks."""
    raft = server(1, term=4)
    raft.tick(raft.next_tick - 0.001)
    assert isinstance(raft.role, Follower)
    timeout(raft)
    assert raft.role.pre_vote and raft.request_for("n2") == RequestVote(5, "n1", 1, 1, pre_vote=True)


def test_heartbeats_prevent_elections():
    """As long as it receives valid RPCs of a leader, a server remains a follower (section 5.2)."""
    raft = server(1)
    for tenth in range(100):
        raft.tick(tenth / 10)
        raft.handle(append(prev=(1, 1)))
    assert isinstance(raft.role, Follower) and raft.term == 1


def test_pre_vote_changes_nothing():
    """A server raises its term only after a majority has said it would vote for it (thesis 9.6). The original had no pre-vote."""
    raft = server(1, term=4, voted_for="n3")
    for _ in range(10):
        timeout(raft)
        answer_votes(raft, "n2", "n3", granted=False)
    assert (raft.term, raft.voted_for) == (4, "n3")
    answer_votes_of_other = server(1, term=4, voted_for="n3")
    assert ask(answer_votes_of_other, RequestVote(5, "n2", 1, 1, pre_vote=True)).vote_granted
    assert state(answer_votes_of_other) == state(server(1, term=4, voted_for="n3"))


def test_pre_vote_needs_a_larger_term():
    """A pre-vote for a term that has already begun here is refused: that vote could not be given (thesis 9.6)."""
    assert not ask(server(1, term=5), RequestVote(5, "n2", 9, 5, pre_vote=True)).vote_granted


def test_candidate_raises_the_term_and_votes_for_itself_durably():
    """To begin an election a server raises its term and votes for itself (section 5.2). Nobody is asked before it is on disk."""
    raft = server(1, term=4)
    timeout(raft)
    answer_votes(raft, "n2")
    assert (raft.term, raft.voted_for) == (5, "n1") and raft.request_for("n2") is None and raft.role.votes == {}
    save(raft)
    assert raft.request_for("n2") == RequestVote(5, "n1", 1, 1) and raft.role.votes == {"n1": True}


def test_majority_of_votes_wins():
    """A candidate wins with the votes of a majority of all servers (section 5.2), and not with fewer."""
    raft = server(1, configuration=members("n1", "n2", "n3", "n4", "n5"))
    timeout(raft)
    answer_votes(raft, "n2", "n3")
    save(raft)
    answer_votes(raft, "n2")
    answer_votes(raft, "n4", granted=False)
    assert isinstance(raft.role, Candidate)
    answer_votes(raft, "n3")
    assert raft.is_leader


def test_votes_of_another_election_do_not_count():
    """A late reply to an earlier election, or to a pre-vote, is no vote in this one (section 5.2)."""
    raft = server(1)
    timeout(raft)
    pre_vote = raft.request_for("n2")
    answer_votes(raft, "n3")
    save(raft)
    raft.handle_reply("n2", pre_vote, RequestVoteReply(1, True))
    raft.handle_reply("n3", RequestVote(raft.term - 1, "n1", 1, 1), RequestVoteReply(raft.term - 1, True))
    assert isinstance(raft.role, Candidate) and raft.role.votes == {"n1": True}


def test_learners_votes_do_not_count():
    """A server without a vote neither stands for election nor counts in one (thesis 4.2.1)."""
    raft = candidate(1, configuration=members("n1", "n2", "n3", learners=("n4", "n5")))
    assert raft.request_for("n4") is None
    raft.handle_reply("n4", RequestVote(raft.term, "n1", 1, 1), RequestVoteReply(raft.term, True))
    raft.handle_reply("n5", RequestVote(raft.term, "n1", 1, 1), RequestVoteReply(raft.term, True))
    assert isinstance(raft.role, Candidate)
    learner = server(1, configuration=members("n2", "n3", learners=("n1",)))
    timeout(learner)
    assert isinstance(learner.role, Follower)


def test_candidate_yields_to_a_leader_of_its_term():
    """A candidate that hears from a leader whose term is at least as large recognises it and becomes a follower (section 5.2)."""
    raft = candidate(1)
    term = raft.term
    assert ask(raft, append(term=term, prev=(1, 1))).success
    assert isinstance(raft.role, Follower) and raft.leader_id == "n2" and raft.voted_for == "n1"


def test_single_server_leads_itself():
    """A majority of one is one; what it commits is on its disk first (section 5.2)."""
    raft = server(1, configuration=members("n1"))
    raft.tick(0.0)
    assert not raft.is_leader
    save(raft)
    assert raft.is_leader and raft.commit_index == 2
    entry = raft.propose(b"x")
    assert raft.commit_index < entry.index
    save(raft)
    assert raft.commit_index == entry.index


def test_leader_begins_with_a_noop():
    """A leader appends a blank no-op entry at the start of its term (section 8)."""
    raft = leader(1, 1, committed=False)
    entry, = raft.log.entries(3, raft.log.last_index)
    assert (entry.term, entry.kind) == (raft.term, NOOP)


def test_stickiness():
    """Who has heard a leader within the minimum election timeout neither votes nor takes over the term (thesis 4.2.3)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1)))
    raft.tick(ELECTION * 0.9)
    assert not ask(raft, RequestVote(7, "n3", 9, 6)).vote_granted and raft.term == 1
    assert not ask(raft, RequestVote(7, "n3", 9, 6, pre_vote=True)).vote_granted
    raft.tick(ELECTION * 1.1)
    assert ask(raft, RequestVote(7, "n3", 9, 6)).vote_granted and raft.term == 7


def test_leader_is_not_deposed_by_votes():
    """A leader that a majority answers does not give way to a candidate (thesis 4.2.3)."""
    raft = leader(1)
    term = raft.term
    assert not ask(raft, RequestVote(term + 5, "n3", 99, term + 4)).vote_granted
    assert raft.is_leader and raft.term == term


# Log replication (section 5.3)


def test_append_needs_the_entry_before():
    """An append is refused without an entry at prev_log_index whose term is prev_log_term (Figure 2, AppendEntries, 2)."""
    raft = server(1, 1)
    for prev in ((3, 1), (2, 2)):
        assert not ask(raft, append(term=2, prev=prev, terms=(2,))).success
    assert raft.log.last_index == 2
    assert ask(raft, append(term=2, prev=(2, 1), terms=(2,))) == AppendEntriesReply(2, True, 3)


def test_conflict_removes_what_follows():
    """An entry that conflicts with a new one goes, and all that follow it (Figure 2, AppendEntries, 3)."""
    raft = server(1, 2, 2, 2)
    ask(raft, append(term=3, prev=(1, 1), terms=(3,)))
    assert (raft.log.last_index, raft.log.last_term) == (2, 3)


@pytest.mark.parametrize("old", [append(), append(terms=(1,)), append(prev=(1, 1), terms=(1,)), append(prev=(2, 1))])
def test_old_append_removes_nothing(old):
    """Entries go only for a conflict, never because a late or repeated request is shorter (section 5.3).

    One such request cut acknowledged entries off a follower of the original: writes were lost in 11 of 20 runs.
    """
    raft = server(1, 1, 1)
    reply = ask(raft, old)
    assert reply.success and raft.log.last_index == 3 and not raft.has_unsaved
    assert reply.match_index == old.prev_log_index + len(old.entries), "no more than this leader is known to have"


def test_append_is_answered_when_saved():
    """A follower says that it has entries when they are on its disk (Figure 2, State)."""
    raft = server(1)
    answer = raft.handle(append(prev=(1, 1), terms=(1, 1)))
    assert answer.reply is None
    unsaved = raft.take_unsaved()
    assert answer.reply is None and unsaved.log_from == 2 and len(unsaved.entries) == 2
    raft.saved(unsaved)
    assert answer.reply == AppendEntriesReply(1, True, 3)


def test_an_answer_that_cannot_wait_promises_only_what_is_durable():
    """The same when the caller's patience ends before the disk is done."""
    raft = server(1)
    answer = raft.handle(append(prev=(1, 1), terms=(1, 1)))
    raft.answer_now(answer)
    assert answer.reply == AppendEntriesReply(1, True, 1)


def test_a_late_write_does_not_confirm_what_has_replaced_it():
    """A write that ends after a conflict has replaced its entries says nothing of the new ones (the late "written" event)."""
    raft = server(1)
    raft.handle(append(term=1, leader="n2", prev=(1, 1), terms=(1, 1, 1)))
    late = raft.take_unsaved()
    answer = raft.handle(append(term=2, leader="n3", prev=(1, 1), terms=(2, 2)))
    raft.saved(late)
    assert raft.saved_index == 1 and answer.reply is None
    save(raft)
    assert answer.reply == AppendEntriesReply(2, True, 3)


def test_follower_caps_leader_commit():
    """commit_index follows leader_commit, but no further than the last *new* entry (Figure 2, AppendEntries, 5)."""
    raft = server(1, 1, 1)
    ask(raft, append(term=2, prev=(1, 1), commit=3))
    assert raft.commit_index == 1
    ask(raft, append(term=2, prev=(1, 1), terms=(1,), commit=3))
    assert raft.commit_index == 2
    ask(raft, append(term=2, prev=(3, 1), commit=9))
    assert raft.commit_index == 3


def test_commit_index_never_falls():
    """commit_index increases monotonically (Figure 2, State), whatever arrives late."""
    raft = server(1, 1, 1)
    ask(raft, append(prev=(3, 1), commit=3))
    ask(raft, append(prev=(1, 1), commit=1))
    assert raft.commit_index == 3


def test_only_what_is_saved_is_applied():
    """A state machine is never ahead of the log on disk, or a crash would leave a state without its log."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1,), commit=2))
    assert [entry.index for entry in raft.take_committed(1000)] == [1]
    raft.applied(1)
    assert not raft.has_committed, "the applier would not sleep"
    save(raft)
    assert [entry.index for entry in raft.take_committed(1000)] == [2]


def test_leader_backs_off_by_whole_terms():
    """After a refusal the leader goes back past all entries of the conflicting term at once (section 5.3)."""
    raft = leader(1, 1, 4, 4, 5, 5, 6, 6, 6, committed=False)
    raft.role.progress["n3"].next_index = 10
    refused = append(term=raft.term, leader="n1", prev=(9, 6))
    raft.handle_reply("n3", refused, AppendEntriesReply(raft.term, False, 0, 4, 3))
    assert raft.role.progress["n3"].next_index == 3, "it has nothing of term 3: after the last entry of an older term"
    raft.role.progress["n3"].next_index = 10
    raft.handle_reply("n3", refused, AppendEntriesReply(raft.term, False, 0, 2, 4))
    assert raft.role.progress["n3"].next_index == 5, "it has entries of term 4 too: after its last one"
    raft.role.progress["n3"].next_index = 10
    raft.handle_reply("n3", refused, AppendEntriesReply(raft.term, False, 0, 6, 0))
    assert raft.role.progress["n3"].next_index == 6, "the follower's log is short"


def test_a_late_refusal_does_not_move_next_index_below_match_index():
    """What a follower has confirmed is not sent to it again (Figure 2, State on leaders)."""
    raft = leader(1, 1, 1)
    replicate(raft, "n3")
    progress = raft.role.progress["n3"]
    late = append(term=raft.term, leader="n1", prev=(progress.next_index - 1, raft.term))
    raft.handle_reply("n3", late, AppendEntriesReply(raft.term, False, 0, 1, 0))
    assert progress.next_index == progress.match_index + 1 == raft.log.last_index + 1


def test_followers_log_becomes_the_leaders():
    """Whatever its log was (Figure 7), a follower ends with the leader's (section 5.3)."""
    theirs = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    for mine in ((1, 1, 1, 4, 4, 5, 5, 6, 6), (1, 1, 1, 4), theirs + (6,), theirs + (7, 7), (1, 1, 1, 4, 4, 4, 4),
                 (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3)):
        lead, raft = leader(*theirs, term=7, committed=False), server(*mine, term=7)
        lead.role.progress["n3"].next_index = lead.log.last_index
        for _ in range(10):
            request = lead.data_for("n3")
            if request is None:
                break
            lead.handle_reply("n3", request, ask(raft, request))
        assert raft.log.entries(1, raft.log.last_index) == lead.log.entries(1, lead.log.last_index)
        assert lead.role.progress["n3"].match_index == lead.log.last_index


def test_entries_of_one_request_are_limited():
    """One request carries at most max_append_bytes of commands, but always at least one entry."""
    raft = leader(1, settings=Settings(max_append_bytes=10))
    for command in (b"x" * 6, b"y" * 6, b"z" * 60):
        raft.propose(command)
    sent = []
    while raft.has_data_for("n2"):
        request = raft.data_for("n2")
        sent.append([entry.command[:1] for entry in request.entries])
        last = request.entries[-1].index
        raft.handle_reply("n2", request, AppendEntriesReply(raft.term, True, last))
    assert sent == [[b"x"], [b"y"], [b"z"]]


# Commitment (sections 5.3 and 5.4)


def test_majority_on_disk_commits():
    """An entry is committed once it is on the disks of a majority; the leader's counts only when it is done (section 5.3)."""
    raft = leader(1)
    entry = raft.propose(b"x")
    replicate(raft, "n2")
    assert raft.commit_index < entry.index, "the leader's own write is not done"
    save(raft)
    assert raft.commit_index == entry.index
    other = raft.propose(b"y")
    save(raft)
    assert raft.commit_index < other.index


def test_two_followers_commit_before_the_leaders_disk():
    """A majority is a majority without the leader as well (thesis 10.2.1)."""
    raft = leader(1)
    entry = raft.propose(b"x")
    replicate(raft, "n2", "n3")
    assert raft.commit_index == entry.index
    assert raft.take_committed(1000) == raft.log.entries(1, 2), "applied only when saved here"


def test_old_terms_are_not_committed_by_counting():
    """Only entries of the leader's own term are committed by counting; older ones with them (section 5.4.2, Figure 8)."""
    raft = leader(1, 2, committed=False)
    request = append(term=raft.term, leader="n1", prev=(1, 1), terms=(2,))
    raft.handle_reply("n2", request, AppendEntriesReply(raft.term, True, 2))
    raft.handle_reply("n3", request, AppendEntriesReply(raft.term, True, 2))
    assert raft.commit_index == 0
    replicate(raft, "n2")
    assert raft.commit_index == 3


def test_learners_do_not_commit():
    """What a learner has does not count (thesis 4.2.1)."""
    raft = leader(1, configuration=members("n1", "n2", "n3", learners=("n4", "n5")))
    entry = raft.propose(b"x")
    save(raft)
    replicate(raft, "n4", "n5")
    assert raft.commit_index < entry.index


def test_a_reply_to_an_earlier_term_does_not_count():
    """A reply to a request of an earlier term of this leader says nothing now."""
    raft = leader(1)
    entry = raft.propose(b"x")
    save(raft)
    earlier = append(term=raft.term - 1, leader="n1", prev=(3, 1))
    raft.handle_reply("n2", earlier, AppendEntriesReply(raft.term - 1, True, 3))
    raft.handle_reply("n2", earlier, AppendEntriesReply(raft.term, True, 3))
    assert raft.commit_index < entry.index


def test_only_the_leader_accepts_commands():
    """Clients' commands are taken by the leader alone (section 8)."""
    for raft in (server(1), candidate(1)):
        before = state(raft)
        with pytest.raises(NotLeader):
            raft.propose(b"x")
        assert state(raft) == before


# Leaders that nobody hears (thesis 6.2)


def test_check_quorum():
    """A leader that no majority has answered for an election timeout steps down (thesis 6.2). The original's never did."""
    raft = leader(1)
    raft.tick(raft.now + ELECTION * 0.9)
    assert raft.is_leader
    raft.tick(raft.now + ELECTION * 0.2)
    assert isinstance(raft.role, Follower) and raft.leader_id is None


def test_check_quorum_hears_a_majority_of_voters_only():
    """Answers of learners do not keep a leader in office (thesis 6.2)."""
    raft = leader(1, configuration=members("n1", "n2", "n3", learners=("n4", "n5")))
    for _ in range(8):
        heartbeat(raft, "n4", "n5")
    assert not raft.is_leader
    kept = leader(1)
    for _ in range(20):
        heartbeat(kept, "n3")
    assert kept.is_leader


def test_stalled_disk_is_a_failure():
    """A leader whose write takes longer than an election timeout falls silent and steps down."""
    raft = leader(1)
    raft.propose(b"x")
    stuck = raft.take_unsaved()
    for _ in range(7):
        for peer in ("n2", "n3"):
            if request := raft.request_for(peer):
                raft.handle_reply(peer, request, AppendEntriesReply(raft.term, True, 2))
        raft.tick(raft.now + HEARTBEAT)
    assert not raft.is_leader and raft.data_for("n2") is None
    timeout_at = raft.next_tick
    raft.tick(timeout_at)
    assert not isinstance(raft.role, Candidate), "nor does it stand for election"
    raft.saved(stuck)
    timeout(raft)
    assert isinstance(raft.role, Candidate)


# Reads (thesis 6.4)


def finished(raft):
    done, raft.finished_reads[:] = list(raft.finished_reads), []
    return done


def test_read_waits_for_a_majority():
    """A read is confirmed by a majority that answers a request sent after the read began (thesis 6.4)."""
    raft = leader(1)
    read = raft.read_index()
    assert not read.ready
    request = raft.request_for("n2")
    raft.handle_reply("n2", request, AppendEntriesReply(raft.term, True, 2))
    assert finished(raft) == [read] and read.index == raft.commit_index == 2


def test_request_under_way_does_not_confirm_a_later_read():
    """An answer to a request that was sent before the read began proves nothing about it (thesis 6.4; etcd's stale read)."""
    raft = leader(1)
    raft.tick(raft.now + HEARTBEAT)
    before = raft.request_for("n2")
    read = raft.read_index()
    raft.handle_reply("n2", before, AppendEntriesReply(raft.term, True, 2))
    assert not read.ready
    first = raft.request_for("n3")
    late = raft.read_index()
    raft.handle_reply("n3", first, AppendEntriesReply(raft.term, True, 2))
    assert read.ready and not late.ready


def test_read_waits_for_the_noop():
    """A new leader does not know what is committed until an entry of its term is (thesis 6.4): reads wait for its no-op."""
    raft = leader(1, 1, committed=False)
    read = raft.read_index()
    request = raft.request_for("n3")
    raft.handle_reply("n3", request, AppendEntriesReply(raft.term, True, 1))
    assert not read.ready
    replicate(raft, "n3")
    assert read.ready and read.index == 3


def test_read_index_is_that_of_its_beginning():
    """The read index is the commit index when the read began; writes that come later do not delay it (thesis 6.4)."""
    raft = leader(1)
    read = raft.read_index()
    raft.propose(b"x")
    save(raft)
    replicate(raft, "n2")
    raft.handle_reply("n2", raft.request_for("n2"), AppendEntriesReply(raft.term, True, 3))
    assert read.ready and read.index == 2


def test_learners_do_not_confirm_reads():
    """A majority of the voters it is (thesis 6.4)."""
    raft = leader(1, configuration=members("n1", "n2", "n3", learners=("n4", "n5")))
    read = raft.read_index()
    for peer in ("n4", "n5"):
        raft.handle_reply(peer, raft.request_for(peer), AppendEntriesReply(raft.term, True, 2))
    assert not read.ready


def test_reads_of_a_deposed_leader_fail():
    """A read that was not confirmed when the leader stepped down is never answered: it would be stale (thesis 6.4)."""
    raft = leader(1)
    read = raft.read_index()
    request = raft.request_for("n2")
    raft.handle(append(term=9))
    raft.handle_reply("n2", request, AppendEntriesReply(raft.term, True, 2))
    assert read.failed and not read.ready and finished(raft) == [read]


def test_follower_asks_the_leader():
    """A follower answers a read by asking the leader for its commit index (thesis 6.4)."""
    raft = server(1)
    with pytest.raises(NoLeader):
        raft.read_index()
    raft.handle(append(prev=(1, 1)))
    read = raft.read_index()
    request = raft.request_for("n2")
    assert request == ReadIndex(1, "n1") and raft.request_for("n3") is None
    late = raft.read_index()
    raft.handle_reply("n2", request, ReadIndexReply(1, 7))
    assert read.ready and read.index == 7 and not late.ready, "the later one was not asked about"


def test_unanswered_question_fails_its_reads_and_no_others():
    """Nothing keeps a read that nobody may wait for any more; the answer to a question that was given up does not count."""
    raft = server(1)
    raft.handle(append(prev=(1, 1)))
    lost = raft.read_index()
    question = raft.request_for("n2")
    later = raft.read_index()
    raft.handle_reply("n2", question, None)
    assert (lost.failed, later.failed, raft.waiting_reads) == (True, False, 1)
    raft.tick(HEARTBEAT)
    request = raft.request_for("n2")
    raft.handle_reply("n2", question, ReadIndexReply(1, 7))
    assert not later.ready
    raft.handle_reply("n2", request, ReadIndexReply(1, 7))
    assert later.ready and not lost.ready


def test_leader_answers_a_follower_when_confirmed():
    """The leader answers a follower's question under the same conditions as its own reads (thesis 6.4)."""
    raft = leader(1)
    answer = raft.handle(ReadIndex(raft.term, "n3"))
    assert answer.reply is None
    raft.handle_reply("n2", raft.request_for("n2"), AppendEntriesReply(raft.term, True, 2))
    assert answer.reply == ReadIndexReply(raft.term, 2)


def test_who_leads_no_longer_confirms_nothing():
    """A question to a server that does not lead, or stops leading, is answered with 0: ask another (thesis 6.4)."""
    assert ask(server(1), ReadIndex(1, "n3")) == ReadIndexReply(1, 0)
    raft = leader(1)
    answer = raft.handle(ReadIndex(raft.term, "n3"))
    raft.handle(append(term=9))
    save(raft)
    assert answer.reply == ReadIndexReply(9, 0)


# Membership (thesis chapter 4)


def configuration_entry(index, term, configuration):
    return Entry(index, term, CONFIGURATION, configuration.encode())


def test_configuration_counts_when_appended():
    """A server uses the newest configuration in its log, committed or not (thesis 4.1)."""
    raft = leader(1)
    four = THREE.with_member(Member("n4", "n4:1"))
    raft.propose_configuration(four)
    assert raft.configuration == four and "n4" in raft.role.progress
    follower = server(1)
    follower.handle(AppendEntries(1, "n2", 1, 1, (configuration_entry(2, 1, four),)))
    assert follower.configuration == four


def test_configuration_goes_back_with_its_entry():
    """When the entry of a configuration is removed, the one before it counts again (thesis 4.1)."""
    raft = server(1)
    raft.handle(AppendEntries(1, "n2", 1, 1, (configuration_entry(2, 1, THREE.without("n3")),)))
    assert raft.configuration.voters == ["n1", "n2"]
    raft.handle(append(term=2, leader="n3", prev=(1, 1), terms=(2,)))
    assert raft.configuration == THREE


def test_one_change_at_a_time():
    """No change of membership before the one before it is committed (thesis 4.1)."""
    raft = leader(1)
    raft.propose_configuration(THREE.with_member(Member("n4", "n4:1")))
    before = state(raft)
    with pytest.raises(NoQuorum):
        raft.propose_configuration(raft.configuration.with_member(Member("n5", "n5:1")))
    assert state(raft) == before


def test_no_change_before_the_term_has_committed():
    """No change of membership before the leader has committed an entry of its term (Ongaro's bug of 2015)."""
    raft = leader(1, committed=False)
    with pytest.raises(NoQuorum):
        raft.propose_configuration(THREE.without("n3"))
    replicate(raft, "n2")
    raft.propose_configuration(THREE.without("n3"))


def test_two_votes_at_once_are_refused():
    """A change adds or removes a single vote (thesis 4.1)."""
    with pytest.raises(AssertionError):
        leader(1).propose_configuration(members("n1"))


def test_removed_leader_leads_until_it_is_committed():
    """A leader that is being removed goes on, does not count itself, and leaves once that is committed (thesis 4.2.2)."""
    raft = leader(1)
    entry = raft.propose_configuration(THREE.without("n1"))
    save(raft)
    replicate(raft, "n2")
    assert raft.is_leader and raft.commit_index < entry.index, "one of two, without itself"
    replicate(raft, "n3")
    assert raft.commit_index == entry.index
    request = raft.request_for("n2") or raft.request_for("n3")
    assert isinstance(request, TimeoutNow)
    raft.handle_reply("n2", request, TimeoutNowReply(raft.term))
    assert not raft.is_leader and raft.next_tick < float("inf")
    timeout(raft)
    assert not isinstance(raft.role, Candidate)


def test_left_out_server_stands_until_that_is_committed():
    """A server that its newest configuration leaves out still stands for election: it may be needed to commit it (thesis 4.2.2).

    Its own vote does not count (Figure 4.6). Otherwise n2 could never win here, and n1 would never try.
    """
    two = members("n1", "n2")
    log = Log(0, 0, [*entries(1), configuration_entry(2, 1, two.without("n1"))])
    raft = server(log=log, configuration=two, applied=1)
    timeout(raft)
    assert raft.role.pre_vote
    answer_votes(raft, "n2")
    save(raft)
    assert isinstance(raft.role, Candidate), "without n2 it has no vote that counts"
    answer_votes(raft, "n2")
    save(raft)
    assert raft.is_leader
    replicate(raft, "n2")
    assert raft.commit_index == 3


def test_removed_server_that_knows_it_stands_no_more():
    """Once the configuration without it is committed, a server does not disturb the others (thesis 4.2.3)."""
    log = Log(0, 0, [*entries(1), configuration_entry(2, 1, THREE.without("n1"))])
    raft = server(log=log, applied=2)
    timeout(raft)
    assert isinstance(raft.role, Follower)


# Leadership transfer (thesis 3.10)


def test_transfer():
    """The leader stops taking commands, brings its successor's log up to date, and asks it to stand at once (thesis 3.10)."""
    raft = leader(1)
    raft.transfer_leadership("n3")
    with pytest.raises(NoLeader):
        raft.propose(b"x")
    assert not isinstance(raft.request_for("n3"), TimeoutNow), "its log is not complete yet"
    replicate(raft, "n3")
    assert raft.request_for("n3") == TimeoutNow(raft.term, "n1")


def test_transfer_is_given_up_after_an_election_timeout():
    """If the transfer does not complete within an election timeout, the leader goes on (thesis 3.10)."""
    raft = leader(1)
    raft.transfer_leadership("n3")
    for _ in range(6):
        heartbeat(raft, "n2")
    assert raft.is_leader
    raft.propose(b"x")


def test_timeout_now():
    """Who is asked stands for election at once, without a pre-vote, and others vote although they hear a leader (thesis 3.10)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1)))
    ask(raft, TimeoutNow(1, "n2"))
    request = raft.request_for("n3")
    assert request == RequestVote(2, "n1", 1, 1, leadership_transfer=True)
    other = server(1)
    other.handle(append(prev=(1, 1)))
    assert ask(other, RequestVote(2, "n3", 1, 1, leadership_transfer=True)).vote_granted


def test_withdrawn_server_neither_leads_nor_stands():
    """A server that must not lead takes no part in elections but as a voter, also when it is asked to."""
    raft = server(1)
    raft.withdrawn = "its disk failed"
    timeout(raft)
    raft.handle(TimeoutNow(1, "n2"))
    assert isinstance(raft.role, Follower)
    lead = leader(1)
    lead.withdrawn = "its disk failed"
    lead.tick(lead.next_tick)
    assert isinstance(lead.role, Follower)


# Snapshots (section 7)


def snapshot(index=5, term=1, leader_term=1, offset=0, data=b""):
    return InstallSnapshot(leader_term, "n2", index, term, 10, b"sum", offset, data)


def test_snapshot_is_sent_when_entries_are_compacted():
    """The leader sends a snapshot when it has discarded the next entry that a follower needs (section 7)."""
    raft = leader(3, snapshot=(10, 2))
    raft.role.progress["n3"].next_index = 5
    assert raft.needs_snapshot("n3") and raft.data_for("n3") is None
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    request = raft.data_for("n3")
    assert request == InstallSnapshot(raft.term, "n1", 11, 3, 10, b"sum", 0)
    raft.handle_reply("n3", request, InstallSnapshotReply(raft.term, 4, False))
    assert raft.data_for("n3").offset == 4
    raft.handle_reply("n3", raft.data_for("n3"), InstallSnapshotReply(raft.term, 10, True))
    assert raft.role.progress["n3"].match_index == 11 and raft.data_for("n3").prev_log_index == 11


def test_a_peer_that_waits_for_a_snapshot_hears_heartbeats():
    """A follower that is sent a snapshot still hears that the leader lives, and confirms reads."""
    raft, follower = leader(3, snapshot=(10, 2)), server(1, 1)
    raft.role.progress["n3"].next_index = 5
    raft.tick(raft.now + HEARTBEAT)
    request = raft.request_for("n3")
    assert request.entries == () and ask(follower, request).success


def test_snapshot_replaces_a_log_that_does_not_contain_it():
    """A log that does not lead up to the snapshot is discarded, with its conflicting tail (section 7)."""
    raft = server(1, 1, 1, 1, 1, 1, 1)
    raft.snapshot_installed(5, 2, members("n1", "n2"))
    assert (raft.log.snapshot_index, raft.log.snapshot_term, raft.log.last_index) == (5, 2, 5)
    assert raft.configuration.voters == ["n1", "n2"]
    assert (raft.commit_index, raft.last_applied, raft.saved_index) == (5, 5, 5)
    unsaved = raft.take_unsaved()
    assert unsaved.base[:2] == (5, 2) and unsaved.log_from == 6 and unsaved.entries == ()


def test_snapshot_keeps_the_entries_after_it():
    """If the log has the last included entry, what follows it is kept (section 7)."""
    raft = server(1, 1, 1, 1)
    raft.snapshot_installed(2, 1, THREE)
    assert (raft.log.snapshot_index, raft.log.last_index, raft.saved_index) == (2, 4, 4)


def test_old_snapshot_changes_nothing():
    """A snapshot that stands for less than the state is ignored, and answered as installed (section 7)."""
    raft = server(1, 1, 1, applied=3)
    before = state(raft)
    assert ask(raft, snapshot(index=2)).installed
    raft.snapshot_installed(2, 1, THREE)
    assert state(raft) == before


def test_snapshot_reply_waits_for_the_disk():
    """That a follower has what a snapshot stands for is said when it is durable there, and never before (Figure 2, State)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1, 1), commit=3))
    answer = raft.handle(snapshot(index=3))
    assert answer.reply is None
    raft.answer_now(answer)
    assert answer.reply is None or not answer.reply.installed
    save(raft)
    again = ask(raft, snapshot(index=3))
    assert again.installed


def test_chunks_are_answered_with_what_comes_next():
    """A reply to a chunk says from where on the snapshot is wanted (section 7, Figure 13)."""
    raft = server(1)
    answer = raft.handle(snapshot(data=b"abcd"))
    assert answer.reply is None and answer.make_reply is None
    raft.chunk_stored(answer, 4, installed=False)
    assert answer.reply == InstallSnapshotReply(1, 4, False)


def test_compaction_keeps_what_is_not_surely_on_disk():
    """The log is discarded only up to what the state machine has durably (section 7), less a tail for slow followers."""
    raft = server(1, 1, 1, 1, 1, 1, applied=5)
    raft.compact(4, 0, 1000)
    save(raft)
    assert raft.log.snapshot_index == 4
    raft.compact(6, 0, 1000)
    save(raft)
    assert raft.log.snapshot_index == 5, "no more than is applied"
    kept = server(1, 1, 1, 1, 1, 1, applied=6)
    kept.compact(6, 4, 1000)
    save(kept)
    assert kept.log.first_index == 3


def test_one_write_is_limited():
    """A write that takes long counts as a failed disk: what is large is written, and forgotten, in steps."""
    raft = server(1)
    raft.MAX_WRITE_BYTES = raft.MAX_COMPACTED_ENTRIES = 1
    raft.handle(append(prev=(1, 1), terms=(1, 1), commit=3))
    for index in (2, 3):
        unsaved = raft.take_unsaved()
        assert [entry.index for entry in unsaved.entries] == [index] and raft.saved_index == index - 1
        raft.saved(unsaved)
        assert raft.saved_index == index
    raft.applied(3)
    raft.compact(3, 0, 1000)
    save(raft)
    assert raft.log.snapshot_index == 3 and not raft.has_unsaved


def test_compaction_keeps_what_a_snapshot_under_way_needs():
    """Entries after a snapshot that is being sent are kept, or its receiver would need another one."""
    raft = leader(*[1] * 20)
    save(raft)
    raft.applied(raft.commit_index)
    raft.log.compact(5)
    raft.configurations.compact(5)
    raft.role.progress["n3"].next_index = 2
    raft.snapshot_offered("n3", 12, 1, 10, b"sum")
    raft.compact(21, 1, 1 << 20)
    save(raft)
    assert raft.log.first_index == 13


def test_answer_is_dropped():
    """An answer for which nobody waits any more is forgotten."""
    raft = server(1)
    answer = raft.handle(append(prev=(1, 1), terms=(1,)))
    raft.drop(answer)
    save(raft)
    assert isinstance(answer, Answer) and answer.reply is None and raft.finished_answers == []


def test_leader_object_dies_with_the_role():
    """What a leader knew of its followers does not outlive its term (Figure 2, "Reinitialized after election")."""
    raft = leader(1)
    role = raft.role
    raft.handle(append(term=9, prev=(2, 2)))
    save(raft)
    raft.tick(raft.next_tick)
    answer_votes(raft, "n2")
    save(raft)
    answer_votes(raft, "n2")
    assert isinstance(raft.role, Leader) and raft.role is not role
    assert all(progress.match_index == 0 for progress in raft.role.progress.values())
