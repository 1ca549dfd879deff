"""Reads that rest on a lease: followers have promised to elect nobody else for a while (section 8; thesis 6.4.1).

What a lease takes for granted is that clocks run alike; that the promise is kept whatever happens to who made it is shown here.
"""

from dataclasses import replace

import pytest
from one_server import (
    ELECTION, FIVE, HEARTBEAT, WITH_LEARNERS, append, ask, candidate, finished, follower, heartbeat, leader, members, propose,
    replicate, save, server, timeout,
)

from raftd.errors import NoLeader
from raftd.raft.configuration import Configuration, Member
from raftd.raft.core import Raft
from raftd.raft.messages import AppendEntriesReply, RequestVote, TimeoutNow
from raftd.raft.roles import Follower

PROMISE = min(Raft.LEASE_HEARTBEATS * HEARTBEAT, ELECTION / 2)
LEASE = Raft.LEASE_TRUST * PROMISE
LEASE_MS = int(1000 * PROMISE)


def accept(raft, peer, request=None):
    """As a follower does that keeps to the rules: it promises what it is asked to."""
    request = request or raft.request_for(peer)
    reply = AppendEntriesReply(raft.term, True, request.prev_log_index + len(request.entries), promised=bool(request.lease_ms))
    raft.handle_reply(peer, request, reply)


def asks_for(lease_ms, prev, term=1):
    """A heartbeat of n2."""
    return replace(append(term=term, prev=prev), lease_ms=lease_ms)


def wanting(**more):
    """n1, a leader that was asked for a lease, and has a read that waits meanwhile."""
    raft = leader(1, **more)
    assert raft.leased_index() == 0
    raft.read_index()
    return raft


def holder(**more):
    """n1, a leader whose lease has just begun."""
    raft = wanting(**more)
    for peer in raft.configuration.voters[1:1 + len(raft.configuration.voters) // 2]:
        accept(raft, peer)
    assert raft.leased_index() == raft.commit_index > 0
    return raft


def later(raft, seconds):
    raft.tick(raft.now + seconds)
    return raft


# On the leader


def test_a_lease_begins_with_the_promise_of_a_majority():
    """With it a read needs no word to anybody (thesis 6.4.1)."""
    raft = wanting(configuration=FIVE)
    accept(raft, "n2")
    assert raft.leased_index() == 0
    accept(raft, "n5")
    assert raft.leased_index() == raft.commit_index == 2


def test_a_lease_ends_with_time():
    """Who has heard nothing since may have been replaced (thesis 6.4.1)."""
    raft = holder()
    assert later(raft, LEASE - 0.001).leased_index() and not later(raft, 0.002).leased_index()
    assert raft.is_leader


def test_a_lease_ends_before_the_promise_does_on_a_clock_that_runs_faster_by_a_quarter():
    """The rates of clocks are bounded, not the same (thesis 6.4.1)."""
    assert LEASE * 1.25 <= PROMISE


def test_a_lease_begins_when_the_request_was_sent():
    """When the answer comes, the promise in it may have ended long ago (thesis 6.4.1)."""
    raft = wanting()
    request = raft.request_for("n2")
    later(raft, LEASE / 2)
    accept(raft, "n2", request)
    assert raft.leased_index()
    assert not later(raft, LEASE / 2).leased_index()


def test_an_answer_to_an_earlier_request_extends_no_lease():
    """It promises from when that was sent (thesis 6.4.1)."""
    raft = wanting()
    early = raft.request_for("n2")
    later(raft, LEASE)
    raft.read_index()
    assert raft.request_for("n3").lease_ms
    accept(raft, "n2", early)
    assert raft.leased_index() == 0


def test_only_an_answer_to_a_request_that_asked_for_it_is_a_promise():
    """A heartbeat of before promises nothing: its receiver would vote at once for whoever finds the leader gone (thesis 6.4.1)."""
    raft = leader(1)
    raft.read_index()
    before = raft.request_for("n2")
    assert before.lease_ms == 0 and raft.leased_index() == 0
    raft.read_index()
    accept(raft, "n2", before)
    assert raft.leased_index() == 0
    assert raft.request_for("n3").lease_ms == LEASE_MS
    assert raft.role.lease_rounds, "and now one is asked for"


def test_entries_ask_for_the_promise_as_well():
    """Whatever is sent while a lease is wanted extends it (thesis 6.4.1)."""
    raft = holder()
    later(raft, LEASE)
    assert raft.leased_index() == 0
    propose(raft)
    accept(raft, "n2", raft.data_for("n2"))
    assert raft.leased_index() == raft.commit_index == 3


def test_heartbeats_renew_a_lease_that_is_in_use():
    """So that it does not end between two reads (thesis 6.4.1)."""
    raft = holder()
    for _ in range(20):
        later(raft, HEARTBEAT)
        accept(raft, "n2"), accept(raft, "n3")
        assert raft.leased_index()


def test_a_lease_that_is_not_used_is_not_renewed():
    """A promise delays elections when the leader dies: nobody is asked for it in vain (thesis 6.4.1)."""
    raft, renewed = holder(), 0
    while later(raft, HEARTBEAT).now < raft.role.lease_wanted_until:
        request = raft.request_for("n2")
        assert request.lease_ms
        accept(raft, "n2", request)
        renewed += 1
    assert renewed >= 5
    later(raft, HEARTBEAT)
    assert raft.request_for("n2").lease_ms == 0 and not raft.role.lease_rounds


def test_renewal_is_no_reason_for_more_requests():
    """Each request begins a round of its own then; a read that waits is asked for once (thesis 6.4.1; thesis 6.4)."""
    raft = holder(configuration=FIVE)
    later(raft, HEARTBEAT / 2)
    read = raft.read_index()
    requests = {peer: raft.request_for(peer) for peer in ("n2", "n3", "n4", "n5")}
    assert all(requests.values()) and not any(raft.request_for(peer) for peer in requests)
    for peer in ("n2", "n3"):
        accept(raft, peer, requests[peer])
    assert read.ready and not any(raft.request_for(peer) for peer in requests)


def test_learners_promise_nothing_that_counts():
    """They have no vote to keep (thesis 4.2.1; thesis 6.4.1)."""
    raft = wanting(configuration=WITH_LEARNERS)
    accept(raft, "n4"), accept(raft, "n5")
    assert raft.leased_index() == 0
    accept(raft, "n2")
    assert raft.leased_index()


def test_a_new_leader_has_no_lease_before_its_noop_is_committed():
    """It does not know yet what is (section 8; thesis 6.4.1)."""
    raft = leader(1, snapshot=(5, 1), committed=False)
    assert raft.leased_index() == 0 and raft.commit_index == 5
    raft.read_index()
    accept(raft, "n2", raft.request_for("n2"))
    assert raft.role.lease_until > raft.now and raft.leased_index() == 0
    replicate(raft, "n2")
    assert raft.leased_index() == raft.commit_index == 7


@pytest.mark.parametrize("role", [server, follower, candidate])
def test_only_a_leader_has_a_lease(role):
    """Others ask it (thesis 6.4.1)."""
    assert role(1).leased_index() == 0


def test_a_lease_is_over_when_the_leader_steps_down():
    """What was promised, was promised to the leader of a term (thesis 6.4.1)."""
    raft = holder()
    raft.step_down("a test")
    assert raft.leased_index() == 0
    with pytest.raises(NoLeader):
        raft.read_index()


def test_a_successor_that_was_called_ends_the_lease_for_good():
    """Voters help it whatever they have promised, and however late it stands (thesis 3.10; thesis 6.4.1)."""
    raft = holder()
    replicate(raft, "n2")
    raft.transfer_leadership("n2")
    assert isinstance(raft.request_for("n2"), TimeoutNow)
    assert raft.leased_index() == 0
    while raft.role.transfer:
        heartbeat(raft, "n2", "n3")
    raft.read_index()
    accept(raft, "n3")
    assert raft.is_leader and raft.leased_index() == 0


@pytest.mark.parametrize("change", [FIVE.with_member(Member("n6", "n6:1", voter=False)), FIVE.without("n5")])
def test_a_lease_ends_with_a_change_of_members(change):
    """The majority that has promised may be none of the members two changes later (thesis 4.1; thesis 6.4.1)."""
    raft = holder(configuration=FIVE)
    raft.propose_configuration(change)
    save(raft)
    assert raft.leased_index() == 0
    raft.read_index()
    accept(raft, "n2")
    assert raft.leased_index() == 0
    accept(raft, "n3")
    assert raft.leased_index(), "and begins anew, with a majority of the new ones"


def test_a_cluster_of_one_has_its_own_promise():
    """Its majority is itself (thesis 6.4.1); a read that waits for nobody needs no lease."""
    raft = server(1, configuration=Configuration({"n1": Member("n1", "n1:1")}))
    timeout(raft)
    save(raft)
    assert raft.is_leader and raft.leased_index() == 0
    read = raft.read_index()
    assert finished(raft) == [read] and read.ready


def test_an_answer_without_a_promise_counts_for_reads_only():
    """A follower whose election timeout is shorter promises nothing (thesis 6.4; thesis 6.4.1)."""
    raft = wanting()
    request = raft.request_for("n2")
    raft.handle_reply("n2", request, AppendEntriesReply(raft.term, True, request.prev_log_index))
    assert not raft.waiting_reads and raft.leased_index() == 0


# On a follower


def promised(*terms, **more):
    """n1, which has just promised n2 to elect nobody else."""
    raft = follower(*terms, **more)
    assert ask(raft, asks_for(LEASE_MS, (raft.log.last_index, raft.log.last_term), raft.term)).promised
    return raft


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_promise_is_kept_though_the_leader_is_gone(pre_vote):
    """Perhaps it is not: a firewall refuses connections as well (thesis 6.4.1; thesis 4.2.3)."""
    raft = promised(1)
    raft.leader_is_gone("n2", 1)
    later(raft, PROMISE - 0.001)
    assert not ask(raft, RequestVote(2, "n3", 1, 1, pre_vote)).vote_granted and raft.term == 1
    later(raft, 0.002)
    assert ask(raft, RequestVote(2, "n3", 1, 1, pre_vote)).vote_granted


def test_who_has_promised_does_not_stand_before_that_is_over():
    """It would vote for itself (section 5.2; thesis 6.4.1)."""
    raft = promised(1)
    raft.leader_is_gone("n2", 1)
    assert raft.leader_id is None and PROMISE < raft.next_tick - raft.now < ELECTION
    timeout(raft)
    assert raft.role.pre_vote, "and then soon"


def test_a_promise_outlives_a_restart():
    """Nobody knows any more what was promised before it (thesis 3.8; thesis 6.4.1)."""
    raft = promised(1)
    again = Raft("n1", (raft.term, raft.voted_for), raft.log, raft.configurations, 0, raft._settings, raft._random, 100.0)
    waiting = again.handle(RequestVote(2, "n3", 1, 1))
    assert waiting.reply is None and again.term == 1, "neither given nor refused: it is to be asked for again"
    later(again, PROMISE - 0.001)
    assert again.handle(RequestVote(2, "n3", 1, 1)).reply is None
    later(again, 0.002)
    assert ask(again, RequestVote(2, "n3", 1, 1)).vote_granted


def test_who_has_just_started_would_vote():
    """A pre-vote breaks no promise, and a refusal would be remembered (thesis 9.6; thesis 6.4.1)."""
    raft = server(1, started=0.0)
    assert ask(raft, RequestVote(2, "n3", 1, 1, pre_vote=True)).vote_granted and raft.handle(RequestVote(2, "n3", 1, 1)).reply is None
    assert ask(raft, RequestVote(2, "n3", 1, 1, leadership_transfer=True)).vote_granted, "nor does a vote that the leader has asked for"


def test_who_has_just_started_and_lost_its_leader_stands_later():
    """It would vote for itself (section 5.2; thesis 6.4.1)."""
    raft = server(1, started=0.0)
    ask(raft, append(prev=(1, 1)))
    raft.leader_is_gone("n2", 1)
    assert PROMISE < raft.next_tick < ELECTION


def test_who_leaves_the_cluster_has_no_lease():
    """The others are a majority without it, and may elect one of them at once (thesis 4.2.2; thesis 6.4.1)."""
    raft = leader(1, configuration=members("n1", "n2"))
    raft.propose_configuration(raft.configuration.without("n1"))
    save(raft)
    assert raft.leased_index() == 0
    raft.read_index()
    accept(raft, "n2")
    assert raft.is_leader and raft.leased_index() == 0


def test_promises_that_nobody_makes_are_not_waited_for_in_memory():
    """Followers with a shorter election timeout answer, and promise nothing (thesis 6.4.1)."""
    raft = leader(1)
    for _ in range(1000):
        raft.leased_index()
        raft.read_index()
        request = raft.request_for("n2")
        raft.handle_reply("n2", request, AppendEntriesReply(raft.term, True, request.prev_log_index))
        later(raft, LEASE / 20)
    assert raft.is_leader and len(raft.role.lease_rounds) <= 21


def test_nobody_promises_more_than_it_would_remember():
    """After a restart it waits for as long as it asks others to promise, by its own settings (thesis 3.8; thesis 6.4.1)."""
    raft = follower(1)
    assert not ask(raft, asks_for(LEASE_MS + 1, (1, 1))).promised
    raft.leader_is_gone("n2", 1)
    assert ask(raft, RequestVote(2, "n3", 1, 1)).vote_granted


def test_a_promise_does_not_stand_in_the_way_of_a_successor():
    """The leader itself has called it, and counts on no promise any more (thesis 3.10; thesis 6.4.1)."""
    assert ask(promised(1), RequestVote(2, "n3", 1, 1, leadership_transfer=True)).vote_granted
    raft = promised(1)
    ask(raft, TimeoutNow(1, "n2"))
    assert not isinstance(raft.role, Follower) and raft.term == 2


def test_a_promise_is_not_shortened_by_a_request_that_asks_for_none():
    """What was promised before still counts for the leader (thesis 6.4.1)."""
    raft = promised(1)
    ask(raft, append(prev=(1, 1)))
    raft.leader_is_gone("n2", 1)
    assert not ask(raft, RequestVote(2, "n3", 1, 1)).vote_granted


def test_who_refuses_the_entries_promises_all_the_same():
    """That its log differs says nothing of whom it elects (section 5.3; thesis 6.4.1)."""
    raft = holder()
    later(raft, LEASE)
    request = raft.request_for("n2")
    raft.handle_reply("n2", request, AppendEntriesReply(raft.term, False, 0, 1, 1, promised=True))
    assert raft.leased_index()
    other = follower(1)
    reply = ask(other, asks_for(LEASE_MS, (5, 1)))
    assert reply.promised and not reply.success
    other.leader_is_gone("n2", 1)
    assert not ask(other, RequestVote(2, "n3", 1, 1)).vote_granted


def test_nothing_is_promised_to_the_leader_of_an_older_term():
    """It leads no longer (section 5.1; thesis 6.4.1)."""
    raft = follower(2, term=3)
    assert not ask(raft, asks_for(LEASE_MS, (1, 2), term=2)).promised
    raft.leader_is_gone("n2", 3)
    assert ask(raft, RequestVote(4, "n3", 1, 2)).vote_granted
