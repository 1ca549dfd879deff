"""How servers come and go, one at a time (thesis chapter 4; what section 6 says of it), and how leadership is handed over (3.10)."""

import pytest
from one_server import (
    ELECTION, FIVE, FOURTH, HEARTBEAT, THREE, WITH_LEARNERS, accept, answer_votes, append, ask, candidate, configuration_entry, entries,
    follower, heartbeat, leader, members, propose, replicate, save, server, state, timeout,
)

from raftd.errors import NoLeader, NoQuorum, NotLeader
from raftd.raft.configuration import NOBODY, Member
from raftd.raft.log import Log
from raftd.raft.messages import AppendEntries, AppendEntriesReply, RequestVote, RequestVoteReply, TimeoutNow, TimeoutNowReply
from raftd.raft.roles import Candidate, Follower

FOUR = THREE.with_member(FOURTH)
LEARNER = Member("n4", "n4:1", voter=False)

# When a configuration counts (thesis 4.1)


def test_configuration_counts_when_appended():
    """A server uses the newest configuration in its log, committed or not (section 6; thesis 4.1)."""
    raft = leader(1)
    raft.propose_configuration(FOUR)
    assert raft.configuration == FOUR and raft.has_request_for("n4")
    other = server(1)
    other.handle(AppendEntries(1, "n2", 1, 1, (configuration_entry(2, 1, FOUR),)))
    assert other.configuration == FOUR and other.commit_index < 2


def test_configuration_counts_after_a_restart():
    """Also the newest in the log on disk, committed or not (thesis 4.1)."""
    raft = server(log=Log(0, 0, [*entries(1), configuration_entry(2, 1, FOUR)]))
    assert raft.configuration == FOUR and raft.commit_index == 0
    timeout(raft)
    assert raft.has_request_for("n4")


def test_configuration_goes_back_with_its_entry():
    """When the entry of a configuration is removed, the one before it counts again (thesis 4.1)."""
    raft = server(1)
    raft.handle(AppendEntries(1, "n2", 1, 1, (configuration_entry(2, 1, THREE.without("n3")),)))
    assert raft.configuration.voters == ["n1", "n2"]
    raft.handle(append(term=2, leader="n3", prev=(1, 1), terms=(2,)))
    assert raft.configuration == THREE


def test_configuration_is_exchanged_with_its_entry():
    """A conflict may replace a configuration by another at the same index (thesis 4.1)."""
    raft = server(1)
    raft.handle(AppendEntries(1, "n2", 1, 1, (configuration_entry(2, 1, THREE.without("n3")),)))
    raft.handle(AppendEntries(2, "n3", 1, 1, (configuration_entry(2, 2, FOUR),)))
    assert raft.configuration == FOUR and raft.configurations.latest_index == 2


def test_a_change_is_committed_by_a_majority_of_the_new_configuration():
    """The entry of a configuration is committed by the majority that it names itself (thesis 4.1)."""
    raft = leader(1)
    entry = raft.propose_configuration(FOUR)
    save(raft)
    replicate(raft, "n2")
    assert raft.commit_index < entry.index, "two of four"
    replicate(raft, "n4")
    assert raft.commit_index == entry.index


def test_a_removal_is_committed_by_a_majority_of_who_stays():
    """Who is being removed is not counted (thesis 4.1)."""
    raft = leader(1, configuration=members("n1", "n2", "n3", "n4"))
    entry = raft.propose_configuration(THREE)
    save(raft)
    raft.handle_reply("n4", append(term=raft.term, leader="n1", prev=(3, raft.term)), AppendEntriesReply(raft.term, True, 3))
    assert raft.commit_index < entry.index
    replicate(raft, "n2")
    assert raft.commit_index == entry.index


def test_an_election_is_won_in_the_newest_configuration():
    """A candidate needs the majority of its newest configuration, committed or not (thesis 4.1)."""
    raft = server(log=Log(0, 0, [*entries(1), configuration_entry(2, 1, FIVE.without("n5"))]))
    timeout(raft)
    answer_votes(raft, "n2")
    assert raft.role.pre_vote, "two of four"
    answer_votes(raft, "n4")
    assert not raft.role.pre_vote


def test_who_is_not_in_the_configuration_is_heard():
    """A server accepts entries of a leader that its configuration does not have: it may be in a newer one (thesis 4.1)."""
    raft = server(1)
    assert ask(raft, append(term=2, leader="n9", prev=(1, 1), terms=(2,))).success and raft.leader_id == "n9"


def test_who_is_not_in_the_configuration_gets_votes():
    """It also votes for such a candidate, for it may be needed to elect a leader (thesis 4.1)."""
    raft = server(1)
    assert ask(raft, RequestVote(2, "n9", 1, 1, pre_vote=True)).vote_granted
    assert ask(raft, RequestVote(2, "n9", 1, 1)).vote_granted and raft.voted_for == "n9"


def test_a_server_without_a_vote_votes_when_it_is_asked():
    """It may be a voter in a configuration that has not arrived yet (thesis 4.1)."""
    raft = server(1, configuration=members("n2", "n3", learners=("n1",)))
    assert ask(raft, RequestVote(2, "n2", 1, 1)).vote_granted


# One server at a time (thesis 4.1)


def test_one_change_at_a_time():
    """No change of membership before the one before it is committed (thesis 4.1)."""
    raft = leader(1)
    raft.propose_configuration(FOUR)
    save(raft)
    before = state(raft)
    with pytest.raises(NoQuorum):
        raft.propose_configuration(FOUR.with_member(Member("n5", "n5:1")))
    assert state(raft) == before
    replicate(raft, "n2", "n4")
    raft.propose_configuration(FOUR.with_member(Member("n5", "n5:1")))


def test_no_change_while_one_of_an_earlier_term_is_open():
    """A change that an earlier leader began must be committed as well, by the no-op of this term (thesis 4.1)."""
    raft = leader(log=Log(0, 0, [*entries(1), configuration_entry(2, 1, members("n1", "n2"))]), committed=False)
    with pytest.raises(NoQuorum):
        raft.propose_configuration(members("n1"))
    replicate(raft, "n2")
    raft.propose_configuration(members("n1"))


def test_no_change_before_the_term_has_committed():
    """No change of membership before the leader has committed an entry of its term (thesis 4.1).

    Ongaro's bug of 2015: two leaders could each begin a change, and their majorities would share no server.
    """
    raft = leader(1, committed=False)
    before = state(raft)
    with pytest.raises(NoQuorum):
        raft.propose_configuration(THREE.without("n3"))
    assert state(raft) == before
    replicate(raft, "n2")
    raft.propose_configuration(THREE.without("n3"))


@pytest.mark.parametrize("changed", [members("n1"), FIVE, members("n1", "n2", "n4")])
def test_two_votes_at_once_are_refused(changed):
    """A change adds or removes a single vote, or the majorities before and after need not share a server (thesis 4.1)."""
    raft = leader(1)
    with pytest.raises(AssertionError):
        raft.propose_configuration(changed)
    assert raft.configuration == THREE


def test_the_last_voter_stays():
    """Without a voter there is no majority, and nothing could be changed any more (thesis 4.1)."""
    raft = server(1, configuration=members("n1"))
    timeout(raft)
    with pytest.raises(AssertionError):
        raft.propose_configuration(members(learners=("n1",)))
    assert raft.configuration == members("n1")


@pytest.mark.parametrize("role", [follower, candidate])
def test_only_the_leader_changes_the_membership(role):
    """A change is an entry like others: the leader makes it (thesis 4.1)."""
    raft = role(1)
    with pytest.raises(NotLeader):
        raft.propose_configuration(FOUR)
    assert raft.configuration == THREE


def test_a_removed_member_is_served_no_more():
    """Who is no longer in the newest configuration gets nothing, and its late answers count for nothing (thesis 4.1)."""
    raft = leader(1)
    late = raft.request_for("n3")
    raft.propose_configuration(THREE.without("n3"))
    save(raft)
    raft.tick(raft.now + HEARTBEAT)
    assert not raft.has_request_for("n3") and not raft.has_data_for("n3") and not raft.needs_snapshot("n3")
    raft.handle_reply("n3", late, AppendEntriesReply(raft.term, True, 3))
    assert raft.commit_index == 2 and raft.match_index("n3") == 0


def test_a_server_of_no_cluster_waits_to_be_told():
    """A new server has no configuration: it stands for no election, and learns of its cluster from a leader (thesis 4.4)."""
    raft = server(configuration=NOBODY)
    timeout(raft)
    assert isinstance(raft.role, Follower) and raft.term == 0
    assert ask(raft, AppendEntries(1, "n2", 0, 0, (configuration_entry(1, 1, FOUR),))).success
    timeout(raft)
    assert isinstance(raft.role, Candidate)


# Newcomers (thesis 4.2.1)


def test_learners_get_the_log():
    """A new server first gets the log without a vote, so that it does not hold up commitment (section 6; thesis 4.2.1)."""
    raft = leader(1)
    entry = raft.propose_configuration(THREE.with_member(LEARNER))
    save(raft)
    replicate(raft, "n2")
    assert raft.commit_index == entry.index, "two of three: the learner is not one of them"
    accept(raft, "n4", AppendEntries(raft.term, "n1", 0, 0, raft.log.entries(1, 3), 3))
    assert raft.match_index("n4") == 3 and not raft.needs_snapshot("n4")


def test_learners_are_not_asked_and_do_not_count():
    """A learner is asked for no vote, and one that it gives does not count (thesis 4.2.1)."""
    raft = candidate(1, configuration=WITH_LEARNERS)
    assert raft.request_for("n4") is None
    for learner in ("n4", "n5"):
        raft.handle_reply(learner, RequestVote(raft.term, "n1", 1, 1), RequestVoteReply(raft.term, True))
    assert isinstance(raft.role, Candidate)


def test_learners_do_not_stand():
    """A learner that hears no leader waits (thesis 4.2.1)."""
    raft = server(1, configuration=members("n2", "n3", learners=("n1",)))
    timeout(raft)
    assert isinstance(raft.role, Follower) and raft.next_tick > raft.now, "no busier than others"


def test_a_learner_forgets_a_leader_that_it_hears_no_more():
    """Else it would refuse its readers nothing, and its asker would wait for ever (thesis 4.2.1)."""
    raft = follower(1, configuration=members("n2", "n3", learners=("n1",)))
    read = raft.read_index()
    timeout(raft)
    assert raft.leader_id is None and read.failed


def test_a_learner_that_becomes_a_voter_counts():
    """A learner is made a voter when it has caught up; from the moment that is in the log it counts (thesis 4.2.1)."""
    raft = leader(1, configuration=THREE.with_member(LEARNER))
    entry = raft.propose_configuration(raft.configuration.promoted("n4"))
    save(raft)
    replicate(raft, "n2")
    assert raft.commit_index < entry.index, "two of four"
    replicate(raft, "n4")
    assert raft.commit_index == entry.index
    promoted = server(log=Log(0, 0, [*entries(1), configuration_entry(2, 1, FOUR.without("n4"))]), configuration=members("n2", "n3"))
    timeout(promoted)
    assert isinstance(promoted.role, Candidate)


def test_how_far_a_learner_is_is_kept_when_it_becomes_a_voter():
    """A promotion is no new member: what it has confirmed counts at once (thesis 4.2.1)."""
    raft = leader(1, configuration=THREE.with_member(LEARNER))
    replicate(raft, "n4")
    raft.propose_configuration(raft.configuration.promoted("n4"))
    assert raft.match_index("n4") == 2


# A leader that is removed (thesis 4.2.2)


def test_removed_leader_leads_until_it_is_committed():
    """A leader that is being removed goes on, without counting itself, and leaves once that is committed (section 6; thesis 4.2.2)."""
    raft = leader(1)
    entry = raft.propose_configuration(THREE.without("n1"))
    save(raft)
    replicate(raft, "n2")
    heartbeat(raft, "n2", "n3")
    assert raft.is_leader and raft.commit_index < entry.index, "one of two, without itself"
    replicate(raft, "n3")
    assert raft.commit_index == entry.index
    request = raft.request_for("n2") or raft.request_for("n3")
    assert isinstance(request, TimeoutNow)
    raft.handle_reply("n2", request, TimeoutNowReply(raft.term))
    assert not raft.is_leader and raft.next_tick < float("inf")
    timeout(raft)
    assert not isinstance(raft.role, Candidate)


def test_removed_leader_does_not_leave_before_that_is_committed():
    """Until then it sends heartbeats and commits, however long that takes: its successor may not even have the entry (thesis 4.2.2)."""
    raft = leader(1)
    raft.propose_configuration(THREE.without("n1"))
    entry = propose(raft)
    for _ in range(20):
        heartbeat(raft, "n2", "n3")
    assert raft.is_leader and raft.role.transfer is None and raft.commit_index < entry.index
    raft.propose(b"still its own")


def test_removed_leader_takes_no_more_commands():
    """Once its removal is committed it only hands over: nothing it would append could be its to commit (thesis 4.2.2)."""
    raft = leader(1)
    raft.propose_configuration(THREE.without("n1"))
    raft.propose(b"still its own")
    save(raft)
    replicate(raft, "n2", "n3")
    with pytest.raises(NoLeader):
        raft.propose(b"x")


def test_removed_leader_leaves_though_its_successor_is_silent():
    """A successor that does not answer for an election timeout keeps nobody in office (thesis 4.2.2)."""
    raft = leader(1)
    raft.propose_configuration(THREE.without("n1"))
    save(raft)
    replicate(raft, "n2", "n3")
    heartbeat(raft, "n2", "n3")
    assert raft.is_leader, "it is given time"
    for _ in range(6):
        heartbeat(raft, "n2", "n3")
    assert not raft.is_leader


def test_leader_without_a_vote_leaves():
    """A leader that has become a learner is no voter of the committed configuration, and leads no longer (thesis 4.2.2)."""
    raft = leader(1)
    raft.propose_configuration(THREE.with_member(Member("n1", "n1:1", voter=False)))
    save(raft)
    replicate(raft, "n2", "n3")
    for _ in range(7):
        heartbeat(raft, "n2", "n3")
    assert not raft.is_leader


def test_removed_leader_does_not_count_its_own_answer():
    """Neither reads nor its office may rest on itself while it is being removed (thesis 4.2.2)."""
    raft = leader(1)
    raft.propose_configuration(THREE.without("n1"))
    read = raft.read_index()
    accept(raft, "n2")
    assert not read.ready, "one of two"
    for _ in range(7):
        heartbeat(raft, "n2")
    assert not raft.is_leader


def test_left_out_server_stands_until_that_is_committed():
    """A server that its newest configuration leaves out still stands for election: it may be needed to commit it (thesis 4.2.2).

    Its own vote does not count, as in Figure 4.6. Otherwise n2 could never win here, and n1 would never try.
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


# Servers that are removed (thesis 4.2.3)


def test_removed_server_that_knows_it_stands_no_more():
    """Once the configuration without it is committed, a server does not disturb the others (thesis 4.2.3)."""
    log = Log(0, 0, [*entries(1), configuration_entry(2, 1, THREE.without("n1"))])
    raft = server(log=log, applied=2)
    timeout(raft)
    assert isinstance(raft.role, Follower)


def test_removed_server_that_does_not_know_it_is_not_heard():
    """A removed server that times out neither raises the term of those that hear a leader nor gets a vote (section 6; thesis 4.2.3)."""
    raft = follower(1)
    ask(raft, AppendEntries(1, "n2", 1, 1, (configuration_entry(2, 1, THREE.without("n3")),), 2))
    assert not ask(raft, RequestVote(2, "n3", 1, 1, pre_vote=True)).vote_granted
    assert not ask(raft, RequestVote(50, "n3", 9, 49)).vote_granted
    assert raft.term == 1 and raft.leader_id == "n2"


# Leadership transfer (thesis 3.10)


def test_transfer():
    """The leader stops taking commands, brings its successor's log up to date, and asks it to stand at once (thesis 3.10)."""
    raft = leader(1)
    raft.transfer_leadership("n3")
    with pytest.raises(NoLeader):
        raft.propose(b"x")
    with pytest.raises(NoLeader):
        raft.propose_configuration(FOUR)
    assert not isinstance(raft.request_for("n3"), TimeoutNow), "its log is not complete yet"
    accept(raft, "n3", raft.data_for("n3"))
    assert raft.request_for("n3") == TimeoutNow(raft.term, "n1")
    assert raft.request_for("n3") is None, "once"


def test_transfer_waits_for_all_of_the_log():
    """The successor must have all the leader's log, or it might not be elected, and could lose what it lacks (thesis 3.10)."""
    raft = leader(1)
    propose(raft)
    replicate(raft, "n2")
    replicate(raft, "n3", up_to=2)
    raft.transfer_leadership("n3")
    assert not isinstance(raft.request_for("n3"), TimeoutNow)


def test_transfer_is_given_up_after_an_election_timeout():
    """If the transfer does not complete within an election timeout, the leader goes on (thesis 3.10)."""
    raft = leader(1)
    raft.transfer_leadership("n3")
    for _ in range(int(ELECTION / HEARTBEAT) - 1):
        heartbeat(raft, "n2")
    with pytest.raises(NoLeader):
        raft.propose(b"x")
    for _ in range(2):
        heartbeat(raft, "n2")
    raft.propose(b"x")
    replicate(raft, "n3")
    assert not isinstance(raft.request_for("n3"), TimeoutNow), "it asks nobody any more"


@pytest.mark.parametrize("role", [follower, candidate])
def test_only_the_leader_hands_over(role):
    """Who does not lead has nothing to hand over (thesis 3.10)."""
    raft = role(1)
    before = state(raft)
    with pytest.raises(NotLeader):
        raft.transfer_leadership("n3")
    assert state(raft) == before


def test_one_transfer_at_a_time():
    """A second transfer waits until the first has ended: two successors would stand against each other (thesis 3.10)."""
    raft = leader(1)
    raft.transfer_leadership("n3")
    with pytest.raises(NoLeader):
        raft.transfer_leadership("n2")
    assert raft.role.transfer.target == "n3"


@pytest.mark.parametrize("target", ["n1", "n4", "n9"])
def test_only_another_voter_can_take_over(target):
    """Neither the leader itself, nor a learner, nor a stranger can win the election (thesis 3.10)."""
    raft = leader(1, configuration=THREE.with_member(LEARNER))
    with pytest.raises(AssertionError):
        raft.transfer_leadership(target)
    assert raft.role.transfer is None


def test_who_is_asked_stands_at_once():
    """Who is asked stands as if its election timeout had passed, without a pre-vote, though it hears its leader (thesis 3.10)."""
    raft = follower(1)
    ask(raft, TimeoutNow(1, "n2"))
    assert raft.term == 2 and raft.voted_for == "n1"
    assert raft.request_for("n3") == RequestVote(2, "n1", 1, 1, leadership_transfer=True)


def test_others_vote_for_the_successor_though_they_hear_the_leader():
    """An election that the leader has asked for is no disturbance (thesis 4.2.3; thesis 3.10)."""
    raft = follower(1)
    assert not ask(raft, RequestVote(2, "n3", 1, 1, pre_vote=True, leadership_transfer=True)).vote_granted, "there is nothing to ask"
    assert ask(raft, RequestVote(2, "n3", 1, 1, leadership_transfer=True)) == RequestVoteReply(2, True)


def test_the_leader_yields_to_its_successor():
    """The successor's larger term makes the old leader a follower, which votes for it (thesis 3.10)."""
    raft = leader(1)
    term = raft.term
    assert ask(raft, RequestVote(term + 1, "n3", 2, term, leadership_transfer=True)) == RequestVoteReply(term + 1, True)
    assert isinstance(raft.role, Follower)


def test_a_successor_needs_an_up_to_date_log_like_any_other():
    """That the leader asked for it excuses from no other rule of votes (section 5.4.1; thesis 3.10)."""
    raft = server(1, 2, 2)
    assert not ask(raft, RequestVote(3, "n3", 1, 1, leadership_transfer=True)).vote_granted
    ask(raft, RequestVote(3, "n2", 3, 2))
    assert not ask(raft, RequestVote(3, "n3", 3, 2, leadership_transfer=True)).vote_granted


def test_an_election_after_a_failed_transfer_begins_with_a_pre_vote():
    """A successor that did not win is again a server like others (thesis 3.10; thesis 9.6)."""
    raft = follower(1)
    ask(raft, TimeoutNow(1, "n2"))
    timeout(raft)
    assert raft.role.pre_vote and raft.request_for("n3") == RequestVote(3, "n1", 1, 1, pre_vote=True)


def test_a_call_to_stand_is_not_for_everybody():
    """A learner cannot lead, and neither the leader nor an old call begins an election (thesis 3.10)."""
    learner = server(1, configuration=members("n2", "n3", learners=("n1",)))
    assert ask(learner, TimeoutNow(1, "n2")) == TimeoutNowReply(1) and learner.term == 1
    lead = leader(1)
    assert ask(lead, TimeoutNow(lead.term, "n1")) == TimeoutNowReply(lead.term) and lead.is_leader
    newer = follower(1, term=3)
    assert ask(newer, TimeoutNow(2, "n3")) == TimeoutNowReply(3) and newer.term == 3


def test_the_best_successor_lacks_least():
    """Without a name the voter that has most of the log takes over (thesis 3.10)."""
    raft = leader(1, configuration=WITH_LEARNERS)
    propose(raft)
    replicate(raft, "n3", "n4")
    assert raft.best_successor == "n3"
