"""A leader that is found dead: its followers do not wait out an election timeout, and all the rules of elections hold nevertheless.

That is not in the paper, which only asks that elections be rare and soon over; so each claim names the rule that it must keep.
"""

import pytest
from one_server import (
    ELECTION, FIVE, answer_votes, append, ask, candidate, finished, follower, leader, members, save, server, state, timeout,
)

from raftd.raft.configuration import Configuration, Member
from raftd.raft.core import Raft
from raftd.raft.messages import RequestVote, RequestVoteReply
from raftd.raft.roles import Follower

TURN = Raft.TURN_SECONDS
SOON = 10 * TURN  # and yet much less than an election timeout


def bereft(*terms, **more):
    """n1, whose leader n2 has just been found dead."""
    raft = follower(*terms, **more)
    raft.leader_is_gone("n2", raft.term)
    return raft


def asked(raft):
    """n1, bereft, once it has asked whether it would be elected."""
    timeout(raft)
    assert raft.role.pre_vote
    return raft


def test_who_has_lost_its_leader_soon_asks_whether_it_would_be_elected():
    """A follower need not wait for an election timeout to know that there is no leader (section 5.2)."""
    raft = bereft(1)
    assert raft.leader_id is None and raft.next_tick - raft.now < SOON < ELECTION
    asked(raft)
    assert raft.request_for("n3") == RequestVote(2, "n1", 1, 1, pre_vote=True)


def test_who_has_lost_its_leader_raises_no_term_by_itself():
    """Before an election there is a pre-vote, however surely the leader is dead (thesis 9.6)."""
    raft = bereft(1, voted_for="n2")
    for _ in range(5):
        timeout(raft)
    assert (raft.term, raft.voted_for, raft.has_unsaved) == (1, "n2", False)


@pytest.mark.parametrize("pre_vote", [False, True])
def test_who_has_lost_its_leader_votes(pre_vote):
    """A leader that is not heard any more is no reason to refuse a vote (thesis 4.2.3)."""
    request = RequestVote(2, "n3", 1, 1, pre_vote)
    assert not ask(follower(1), request).vote_granted and ask(bereft(1), request).vote_granted


def test_who_has_lost_its_leader_still_compares_logs():
    """Whoever lacks an entry gets no vote, however soon it asks (section 5.4.1)."""
    assert not ask(bereft(1, 1), RequestVote(2, "n3", 1, 1, pre_vote=True)).vote_granted


@pytest.mark.parametrize(("leader_id", "term"), [("n3", 4), ("n2", 3), ("n2", 5), ("n1", 4)])
def test_what_is_said_of_another_leader_or_term_changes_nothing(leader_id, term):
    """A report is of one leader in one term, and may come when there is another already (section 5.1)."""
    raft = follower(4)
    before, due = state(raft), raft.next_tick
    raft.leader_is_gone(leader_id, term)
    assert (state(raft), raft.next_tick, raft.leader_id) == (before, due, "n2")


@pytest.mark.parametrize("role", [candidate, leader, server])
def test_only_a_follower_has_a_leader_to_lose(role):
    """Candidates, leaders, and those who know no leader go on as they were (section 5.1)."""
    raft = role(1)
    before, due, was = state(raft), raft.next_tick, raft.role
    for peer in raft.configuration.members:
        raft.leader_is_gone(peer, raft.term)
    assert (state(raft), raft.next_tick) == (before, due) and raft.role is was


def test_a_leader_that_lives_is_followed_again():
    """A leader that is heard after all, in the same term, ends the matter (Figure 2, candidates, 3)."""
    raft = asked(bereft(1))
    ask(raft, append(prev=(1, 1)))
    assert isinstance(raft.role, Follower) and raft.leader_id == "n2" and raft.next_tick - raft.now >= ELECTION


def test_reads_that_the_dead_leader_was_to_confirm_fail_at_once():
    """Whoever asked is to ask again, and not to wait for a leader that says nothing (thesis 6.4)."""
    raft = follower(1)
    read = raft.read_index("a read")
    raft.leader_is_gone("n2", 1)
    assert finished(raft) == [read] and read.failed


# One after the other


@pytest.mark.parametrize(("voters", "turn"), [
    (("n1", "n2", "n3"), 0), (("n2", "n1", "n3"), 0), (("n3", "n1", "n2"), 1), (("n2", "n3", "n4", "n5", "n1"), 3),
])
def test_those_who_have_lost_their_leader_stand_in_turn(voters, turn):
    """Votes are rarely split when servers stand at different times (section 5.2)."""
    raft = bereft(1, configuration=members(*voters))
    assert turn <= (raft.next_tick - raft.now) / TURN < turn + 0.6, "and half a turn later at the most, so that no two are at once"


def test_who_is_refused_since_others_have_not_noticed_asks_again_soon():
    """A pre-vote that is refused changes nothing, so it may be asked for again (thesis 9.6)."""
    raft, began, times = bereft(1), 0.0, 0
    while raft.now < began + 0.9 * ELECTION:
        asked(raft)
        answer_votes(raft, "n3", granted=False)
        assert TURN <= raft.next_tick - raft.now < SOON
        times += 1
    assert 10 < times < 50 and raft.term == 1


def test_who_is_refused_for_an_election_timeout_becomes_patient_again():
    """The haste ends: with no other leader in sight, elections are as rare as ever (section 5.6; section 5.2)."""
    raft = bereft(1)
    while raft.now < 2 * ELECTION:
        asked(raft)
        answer_votes(raft, "n3", granted=False)
    assert raft.next_tick - raft.now > ELECTION - SOON
    asked(raft)
    answer_votes(raft, "n3", granted=False)
    assert raft.next_tick - raft.now >= ELECTION


def test_an_election_whose_votes_are_split_is_soon_followed_by_another():
    """Two that have lost their leader and stand at once need not wait for an election timeout each (section 5.2)."""
    raft = asked(bereft(1))
    answer_votes(raft, "n3")
    save(raft)
    assert not raft.role.pre_vote
    answer_votes(raft, "n3", granted=False)
    assert raft.next_tick - raft.now < SOON
    asked(raft)
    answer_votes(raft, "n3")
    save(raft)
    answer_votes(raft, "n3")
    assert raft.is_leader and raft.term == 3


def test_an_election_that_may_be_won_is_not_given_up():
    """A candidate waits for the votes that may still come, its own among them (section 5.2)."""
    raft = asked(bereft(1, configuration=FIVE))
    answer_votes(raft, "n3", granted=False)
    assert raft.next_tick - raft.now >= ELECTION
    answer_votes(raft, "n4", "n5")
    assert not raft.role.pre_vote
    raft.saved(raft.take_unsaved())
    answer_votes(raft, "n3", granted=False)
    assert raft.next_tick - raft.now >= ELECTION
    answer_votes(raft, "n4", "n5")
    assert raft.is_leader


def test_a_candidate_of_the_ordinary_kind_is_as_patient_as_ever():
    """Whoever merely heard no leader asks once in an election timeout (section 5.2)."""
    raft = server(1)
    timeout(raft)
    answer_votes(raft, "n2", "n3", granted=False)
    assert raft.next_tick - raft.now >= ELECTION


@pytest.mark.parametrize("end", [
    lambda raft: ask(raft, append(prev=(1, 1))), lambda raft: ask(raft, append(term=2, leader="n3", prev=(1, 1))),
    lambda raft: ask(raft, RequestVote(2, "n3", 1, 1)), lambda raft: raft.handle_reply("n3", None, RequestVoteReply(2, False)),
])
def test_another_leader_or_term_ends_the_haste(end):
    """What one dead leader was the reason for is over when there is another leader, or another term (section 5.1)."""
    raft = asked(bereft(1))
    end(raft)
    timeout(raft)
    answer_votes(raft, "n3", granted=False)
    assert raft.next_tick - raft.now >= ELECTION


# Who must not stand


def test_a_learner_does_not_stand_however_dead_the_leader_is():
    """A learner has no vote, and stands for nothing (thesis 4.2.1)."""
    raft = bereft(1, configuration=members("n2", "n3", "n4", learners=("n1",)))
    for _ in range(5):
        timeout(raft)
    assert isinstance(raft.role, Follower) and raft.leader_id is None


def test_nor_does_a_server_that_was_removed():
    """A server that the committed configuration leaves out disturbs nobody (thesis 4.2.3)."""
    raft = bereft(1, configuration=members("n2", "n3"))
    for _ in range(5):
        timeout(raft)
    assert isinstance(raft.role, Follower)


def test_nor_does_one_whose_state_cannot_be_written():
    """A server that could not lead must not win (section 5.2)."""
    raft = bereft(1)
    raft.withdrawn = "its state cannot be written"
    for _ in range(5):
        timeout(raft)
    assert isinstance(raft.role, Follower)


def test_nor_does_one_whose_disk_hangs():
    """A disk that does not answer is a failure (thesis 10.2.1)."""
    raft = follower(1)
    raft.handle(append(prev=(1, 1), terms=(1,)))
    raft.take_unsaved()
    raft.tick(raft.disk_due)
    assert raft.leader_id == "n2"
    raft.leader_is_gone("n2", 1)
    for _ in range(5):
        raft.tick(raft.next_tick)
    assert isinstance(raft.role, Follower) and raft.leader_id is None


def test_learners_are_not_counted_in_the_order():
    """Only voters stand (thesis 4.2.1)."""
    raft = bereft(1, configuration=Configuration({"n0": Member("n0", "n0:1", voter=False), **members("n2", "n1").members}))
    assert raft.next_tick - raft.now < TURN
