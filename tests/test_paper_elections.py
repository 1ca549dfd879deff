"""Terms, votes and elections (sections 5.1, 5.2 and 5.4.1; Figure 2; thesis 9.6, 4.2.3 and 6.2)."""

import pytest
from one_server import (
    ELECTION, FIVE, HEARTBEAT, WITH_LEARNERS, answer_votes, append, ask, candidate, follower, heartbeat, leader, members, refuse, replicate,
    save, server, snapshot, state, timeout,
)

from raftd.config import Settings
from raftd.errors import NotLeader
from raftd.raft.messages import (
    NOOP, AppendEntriesReply, InstallSnapshotReply, ReadIndex, ReadIndexReply, RequestVote, RequestVoteReply, TimeoutNow, TimeoutNowReply,
)
from raftd.raft.roles import Candidate, Follower

# Terms and roles (section 5.1)


@pytest.mark.parametrize("request_of_term_9", [
    append(term=9), RequestVote(9, "n2", 9, 8), snapshot(leader_term=9), TimeoutNow(9, "n2"), ReadIndex(9, "n2"),
])
def test_larger_term_is_taken_over(request_of_term_9):
    """A server that sees a larger term takes it over (section 5.1; Figure 2, all servers, 2)."""
    raft = server(1, term=3, voted_for="n1")
    raft.handle(request_of_term_9)
    assert raft.term >= 9


@pytest.mark.parametrize("role", [candidate, leader])
def test_larger_term_makes_a_follower(role):
    """A candidate or leader whose term is out of date becomes a follower at once, without a vote (section 5.1)."""
    raft = role(1)
    raft.handle(append(term=9))
    assert isinstance(raft.role, Follower) and (raft.term, raft.voted_for) == (9, None)


@pytest.mark.parametrize("role", [follower, candidate, leader])
def test_larger_term_in_a_reply_makes_a_follower(role):
    """The same when a reply brings the larger term (section 5.1; Figure 2, all servers, 2)."""
    raft = role(1)
    raft.handle_reply("n2", RequestVote(2, "n1", 1, 1), RequestVoteReply(9, False))
    assert isinstance(raft.role, Follower) and (raft.term, raft.voted_for, raft.leader_id) == (9, None, None)


def test_a_granted_vote_of_a_larger_term_is_none():
    """A reply that brings a larger term elects nobody in the smaller one, whatever else it says (section 5.1)."""
    raft = candidate(1)
    raft.handle_reply("n2", raft.request_for("n2"), RequestVoteReply(9, True))
    assert isinstance(raft.role, Follower) and raft.term == 9


@pytest.mark.parametrize("stale", [append(term=2, terms=(2,)), RequestVote(2, "n2", 9, 9), ReadIndex(2, "n2"),
                                   TimeoutNow(2, "n2"), snapshot(leader_term=2)])
def test_stale_term_is_refused(stale):
    """A request with a stale term is refused, and changes nothing (section 5.1; Figure 2, AppendEntries, 1)."""
    raft = server(1, term=3, voted_for="n3")
    before = state(raft)
    reply = ask(raft, stale)
    assert reply.term == 3 and state(raft) == before
    assert not any(getattr(reply, field, False) for field in ("success", "vote_granted", "installed", "read_index"))


def test_a_vote_of_a_stale_term_is_refused_to_a_free_voter():
    """The term is looked at first: a server that has not voted in its term gives no vote in an older one (Figure 2, RequestVote, 1)."""
    raft = server(1, term=3)
    assert ask(raft, RequestVote(2, "n2", 9, 1)) == RequestVoteReply(3, False) and raft.voted_for is None


def test_followers_are_passive():
    """A follower sends nothing by itself, it only answers (section 5.1)."""
    raft = follower(1)
    raft.tick(ELECTION * 0.9)
    assert not any(raft.has_request_for(peer) or raft.has_data_for(peer) for peer in raft.peers)
    assert raft.next_request_at("n2") == float("inf")


@pytest.mark.parametrize(("request_to_it", "reply"), [
    (append(prev=(1, 1)), AppendEntriesReply(1, True, 1)), (append(prev=(2, 1)), AppendEntriesReply(1, False, 0, 2, 0)),
    (RequestVote(2, "n2", 1, 1), RequestVoteReply(2, True)), (RequestVote(2, "n2", 1, 1, pre_vote=True), RequestVoteReply(1, True)),
    (ReadIndex(1, "n2"), ReadIndexReply(1, 0)), (snapshot(index=1), InstallSnapshotReply(1, 10, True)),
    (TimeoutNow(1, "n2"), TimeoutNowReply(2)),
])
def test_followers_answer(request_to_it, reply):
    """A follower answers whatever candidates and leaders ask (Figure 2, followers, 1)."""
    assert ask(server(1, applied=1), request_to_it) == reply


def test_candidates_only_ask_for_votes():
    """A candidate neither replicates nor tells that it leads (section 5.2)."""
    raft = candidate(1, 1)
    assert not raft.has_data_for("n2") and not raft.needs_snapshot("n2") and isinstance(raft.request_for("n2"), RequestVote)


@pytest.mark.parametrize("deposed", [leader, candidate, follower])
def test_within_a_term_the_vote_stays(deposed):
    """A server votes once in a term: nothing that happens within the term takes the vote back (section 5.2).

    Systems that cleared it on every step down had two leaders in a term.
    """
    raft = deposed(1, voted_for="n3")
    term, vote = raft.term, raft.voted_for
    raft.tick(raft.now + 3 * ELECTION)
    raft.handle(RequestVote(term + 1, "n2", 9, 9, pre_vote=True))
    raft.handle(RequestVote(term, "n2", 9, 9))
    raft.handle(append(term=term, leader="n2", prev=(1, 1)))
    raft.step_down("for another reason")
    assert (raft.term, raft.voted_for) == (term, vote) and isinstance(raft.role, Follower)


# Votes (section 5.2; section 5.4.1)


def test_votes_for_one_candidate_per_term():
    """Each server votes for at most one candidate in a term, first come first served (section 5.2; Figure 2, RequestVote, 2)."""
    raft = server(1)
    assert ask(raft, RequestVote(2, "n2", 1, 1)).vote_granted
    assert not ask(raft, RequestVote(2, "n3", 9, 1)).vote_granted
    assert raft.handle(RequestVote(2, "n2", 1, 1)).reply.vote_granted, "a repeated request gets the same answer, at once"
    assert ask(raft, RequestVote(3, "n3", 1, 1)).vote_granted


def test_a_candidate_gives_its_vote_to_nobody_else():
    """The vote that a candidate gave itself is as good as any other (section 5.2)."""
    raft = candidate(1)
    assert not ask(raft, RequestVote(raft.term, "n3", 9, 1)).vote_granted and isinstance(raft.role, Candidate)


@pytest.mark.parametrize("pre_vote", [False, True])
@pytest.mark.parametrize(("index", "term", "granted"), [(9, 1, False), (1, 3, True), (2, 2, False), (3, 2, True), (4, 2, True)])
def test_vote_compares_term_then_index(index, term, granted, pre_vote):
    """Up-to-date is the log whose last term is larger, and of the same last term the longer one (section 5.4.1).

    The original compared index or term: with two of three servers up there was no leader at all.
    """
    assert ask(server(1, 2, 2), RequestVote(5, "n2", index, term, pre_vote)).vote_granted is granted


@pytest.mark.parametrize(("index", "term", "granted"), [(4, 3, False), (5, 3, True), (9, 2, False), (1, 4, True)])
def test_a_log_that_is_compacted_ends_with_its_snapshot(index, term, granted):
    """The log of a server whose entries are all compacted ends with the last one that was (section 5.4.1; section 7)."""
    assert ask(server(snapshot=(5, 3)), RequestVote(5, "n2", index, term)).vote_granted is granted


def test_a_refused_candidate_brings_its_term_all_the_same():
    """A vote that is refused for the log still brings the larger term, in which the server has not voted (section 5.1)."""
    raft = server(1, 2, 2, voted_for="n1")
    assert ask(raft, RequestVote(5, "n2", 9, 1)) == RequestVoteReply(5, False)
    assert (raft.term, raft.voted_for) == (5, None) and ask(raft, RequestVote(5, "n3", 3, 2)).vote_granted


def test_refused_vote_does_not_delay_the_election():
    """The election timer is reset when a vote is granted, not when it is refused (Figure 2, followers, 2)."""
    raft = server(1, 2, 2)
    due = raft.next_tick
    raft.tick(due / 2)
    raft.handle(RequestVote(2, "n2", 1, 1))
    assert raft.next_tick == due
    raft.handle(RequestVote(2, "n2", 9, 2))
    assert raft.next_tick > due


def test_a_stale_leader_does_not_delay_the_election():
    """Only the current leader resets the election timer, not one of an older term (Figure 2, followers, 2)."""
    raft = server(1, term=3)
    due = raft.next_tick
    raft.tick(due / 2)
    for stale in (append(term=2), snapshot(leader_term=2)):
        raft.handle(stale)
    assert raft.next_tick == due and raft.leader_id is None


@pytest.mark.parametrize("valid", [append(prev=(1, 1)), append(prev=(7, 1)), snapshot()])
def test_the_current_leader_delays_the_election(valid):
    """Any request of the current leader does, also one that does not fit the log (Figure 2, followers, 2)."""
    raft = server(1)
    due = raft.next_tick
    raft.tick(due - 0.001)
    raft.handle(valid)
    assert raft.next_tick >= raft.now + ELECTION and raft.leader_id == "n2"


# Elections (section 5.2)


def test_starts_as_follower():
    """When servers start up, they are followers, with the term and vote they had saved (section 5.2)."""
    raft = server(1, 2, term=5, voted_for="n3")
    assert isinstance(raft.role, Follower) and (raft.term, raft.voted_for, raft.leader_id) == (5, "n3", None)


def test_election_timeouts_are_drawn_anew():
    """Election timeouts are chosen at random from an interval, anew for each election (section 5.2)."""
    raft, waits = server(1), set()
    for _ in range(20):
        before = raft.now
        raft.tick(raft.next_tick)
        waits.add(raft.next_tick - raft.now)
        assert ELECTION <= raft.next_tick - raft.now <= 2 * ELECTION and raft.now > before
    assert len(waits) > 15


@pytest.mark.parametrize("out_of_proportion", [
    {"heartbeat_seconds": 0.4}, {"rpc_timeout_seconds": 0.5}, {"election_timeout_seconds": 0.15}, {"heartbeat_seconds": 0},
])
def test_times_are_in_proportion(out_of_proportion):
    """A heartbeat, and an RPC that is lost, must take much less time than an election timeout (section 5.6)."""
    Settings().check()
    with pytest.raises(ValueError):
        Settings(**out_of_proportion).check()


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


def test_time_does_not_go_back():
    """Threads that tell the time one after the other may have looked at the clock in another order (section 5.6)."""
    raft = follower(1)
    raft.tick(0.3)
    raft.tick(0.2)
    assert raft.now == 0.3


def test_an_election_raises_the_term_by_one():
    """To begin an election a server raises its term, by one, and votes for itself (Figure 2, candidates, 1)."""
    raft = server(1, term=4, voted_for="n2")
    timeout(raft)
    answer_votes(raft, "n2")
    assert (raft.term, raft.voted_for) == (5, "n1")
    save(raft)
    assert raft.request_for("n3") == RequestVote(5, "n1", 1, 1)


def test_an_election_resets_the_timer():
    """A candidate draws a new timeout at the start of its election (section 5.2; Figure 2, candidates, 1)."""
    raft = server(1)
    timeout(raft)
    raft.tick(raft.next_tick - 0.001)
    answer_votes(raft, "n2")
    assert not raft.role.pre_vote and raft.next_tick >= raft.now + ELECTION


def test_everyone_is_asked_until_it_has_answered():
    """Votes are asked for in parallel, of every other voter, and again from who did not answer (section 5.1; section 5.2)."""
    raft = candidate(1, configuration=FIVE)
    requests = {peer: raft.request_for(peer) for peer in raft.peers}
    assert set(requests.values()) == {RequestVote(raft.term, "n1", 1, 1)}
    raft.handle_reply("n2", requests["n2"], None)
    assert raft.request_for("n2") is None, "not at once"
    raft.tick(raft.now + HEARTBEAT)
    assert raft.request_for("n2") == requests["n2"]
    answer_votes(raft, "n2", granted=False)
    assert raft.request_for("n2") is None


def test_majority_of_votes_wins():
    """A candidate wins with the votes of a majority, and not with fewer (section 5.2; Figure 2, candidates, 2)."""
    raft = candidate(1, configuration=FIVE)
    answer_votes(raft, "n2")
    answer_votes(raft, "n4", "n5", granted=False)
    assert isinstance(raft.role, Candidate)
    answer_votes(raft, "n3")
    assert raft.is_leader


def test_half_of_the_votes_do_not_win():
    """A majority is more than half: two of four servers could be two of each of two sides (section 5.2)."""
    raft = server(1, configuration=members("n1", "n2", "n3", "n4"))
    timeout(raft)
    answer_votes(raft, "n2")
    assert raft.role.pre_vote
    answer_votes(raft, "n3")
    save(raft)
    answer_votes(raft, "n2")
    assert isinstance(raft.role, Candidate)


def test_a_vote_that_is_repeated_counts_once():
    """A server has one vote, however often its reply arrives (section 5.2)."""
    raft = candidate(1, configuration=FIVE)
    request = raft.request_for("n2")
    for _ in range(3):
        raft.handle_reply("n2", request, RequestVoteReply(raft.term, True))
    assert isinstance(raft.role, Candidate)


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


def test_a_vote_is_no_pre_vote_of_the_next_election():
    """A vote that arrives when its election is over says nothing of the next one (thesis 9.6)."""
    raft = candidate(1)
    vote = raft.request_for("n2")
    timeout(raft)
    raft.handle_reply("n2", vote, RequestVoteReply(raft.term, True))
    assert raft.role.pre_vote and raft.role.votes == {"n1": True}


def test_candidate_yields_to_a_leader_of_its_term():
    """A candidate that hears the leader of its term, or of a newer one, follows it (Figure 2, candidates, 3)."""
    raft = candidate(1)
    term = raft.term
    assert ask(raft, append(term=term, prev=(1, 1))).success
    assert isinstance(raft.role, Follower) and raft.leader_id == "n2" and raft.voted_for == "n1"


def test_candidate_goes_on_against_a_stale_leader():
    """A candidate refuses a leader whose term is smaller, and remains a candidate (section 5.2)."""
    raft = candidate(1)
    assert ask(raft, append(term=raft.term - 1, prev=(1, 1))) == AppendEntriesReply(raft.term, False)
    assert isinstance(raft.role, Candidate) and raft.leader_id is None


def test_a_split_vote_is_followed_by_another_election():
    """A candidate that neither wins nor loses begins again, in a larger term (Figure 2, candidates, 4)."""
    raft = candidate(1)
    answer_votes(raft, "n2", "n3", granted=False)
    term = raft.term
    timeout(raft)
    answer_votes(raft, "n2")
    assert not raft.role.pre_vote and (raft.term, raft.voted_for) == (term + 1, "n1")


def test_single_server_leads_itself():
    """A majority of one is one; it leads at once, and what it commits is on its disk first (section 5.2)."""
    raft = server(1, configuration=members("n1"))
    raft.tick(0.0)
    assert not raft.is_leader
    save(raft)
    assert raft.is_leader and raft.commit_index == 2
    entry = raft.propose(b"x")
    assert raft.commit_index < entry.index
    save(raft)
    assert raft.commit_index == entry.index


def test_a_new_leader_is_heard_at_once():
    """A server that has won tells all others, so that no other election begins (Figure 2, leaders, 1)."""
    raft = leader(1, committed=False)
    assert raft.next_request_at("n2") <= raft.now and raft.next_request_at("n9") == float("inf"), "now; a stranger never"
    for peer in ("n2", "n3"):
        request = raft.request_for(peer)
        assert (request.term, request.leader_id, request.entries) == (raft.term, "n1", ())
        assert raft.request_for(peer) is None and raft.next_tick > raft.now, "once"


def test_an_idle_leader_is_heard_again_and_again():
    """A leader repeats its heartbeat when nothing else is to be sent (Figure 2, leaders, 1)."""
    raft = leader(1)
    for peer in ("n2", "n3"):
        raft.request_for(peer)
    raft.tick(raft.now + HEARTBEAT * 0.9)
    assert raft.request_for("n2") is None and raft.next_request_at("n2") <= raft.now + HEARTBEAT * 0.11
    raft.tick(raft.now + HEARTBEAT * 0.2)
    assert raft.request_for("n2") is not None and raft.next_tick > raft.now, "and looks at the clock again"


def test_leader_begins_with_a_noop():
    """A leader appends a blank entry at the start of its term (section 8)."""
    raft = leader(1, 1, committed=False)
    entry, = raft.log.entries(3, raft.log.last_index)
    assert (entry.term, entry.kind) == (raft.term, NOOP)


def test_two_leaders_in_a_term_stop_the_server():
    """At most one leader is elected in a term: a leader that hears another one must not go on (section 5.2)."""
    raft = leader(1)
    with pytest.raises(AssertionError, match="two leaders"):
        raft.handle(append(term=raft.term))


# Pre-votes (thesis 9.6)


def test_pre_vote_changes_nothing_where_it_is_asked():
    """Who asks for pre-votes, and gets none, stays in its term with its vote, however long (thesis 9.6)."""
    raft = server(1, term=4, voted_for="n3")
    for _ in range(10):
        timeout(raft)
        answer_votes(raft, "n2", "n3", granted=False)
    assert (raft.term, raft.voted_for) == (4, "n3")


def test_a_server_alone_does_not_raise_its_term():
    """A server that reaches nobody asks on in the same term. The original's was 45 terms ahead after 10 s (thesis 9.6)."""
    raft = server(1, term=4)
    for _ in range(45):
        timeout(raft)
    assert raft.term == 4 and raft.role.pre_vote


def test_pre_vote_changes_nothing_where_it_is_granted():
    """To grant a pre-vote is to promise nothing: term, vote and timer stay, and nothing is to be saved (thesis 9.6)."""
    raft = server(1, term=4, voted_for="n3")
    before, due = state(raft), raft.next_tick
    for asker in ("n2", "n3", "n2"):
        answer = raft.handle(RequestVote(5, asker, 1, 1, pre_vote=True))
        assert answer.reply == RequestVoteReply(4, True), "at once, and to all who could win"
    assert state(raft) == before and raft.next_tick == due


@pytest.mark.parametrize("term", [3, 4, 5])
def test_pre_vote_needs_a_larger_term(term):
    """A pre-vote for a term that has begun here is refused: that vote might not be given (thesis 9.6)."""
    assert not ask(server(1, term=5), RequestVote(term, "n2", 9, 5, pre_vote=True)).vote_granted


def test_a_majority_of_pre_votes_begins_the_election():
    """The term is raised only after a majority has said that it would vote (thesis 9.6)."""
    raft = server(1, configuration=FIVE)
    timeout(raft)
    answer_votes(raft, "n2")
    assert raft.role.pre_vote and raft.term == 1
    answer_votes(raft, "n3")
    assert not raft.role.pre_vote and raft.term == 2


def test_a_larger_term_in_a_refused_pre_vote_is_taken_over():
    """A server that was away learns the term from those that refuse it, or it could never be elected again (thesis 9.6)."""
    raft = server(1, term=4, voted_for="n3")
    timeout(raft)
    raft.handle_reply("n2", raft.request_for("n2"), RequestVoteReply(7, False))
    assert isinstance(raft.role, Follower) and (raft.term, raft.voted_for) == (7, None)


def test_a_leader_ends_a_pre_vote():
    """A server that only asks still follows the leader of its term (thesis 9.6)."""
    raft = server(1)
    timeout(raft)
    assert ask(raft, append(prev=(1, 1))).success and raft.leader_id == "n2" and raft.term == 1


def test_who_only_asks_still_votes():
    """A pre-vote is no vote for oneself: who asks may vote for another in the same term (thesis 9.6)."""
    raft = server(1)
    timeout(raft)
    assert ask(raft, RequestVote(2, "n3", 1, 1)).vote_granted and isinstance(raft.role, Follower)


# Who hears a leader (thesis 4.2.3)


@pytest.mark.parametrize("pre_vote", [False, True])
def test_who_hears_a_leader_helps_nobody_to_depose_it(pre_vote):
    """Within the minimum election timeout of hearing a leader a server neither votes nor takes over the term (thesis 4.2.3)."""
    raft = follower(1)
    raft.tick(ELECTION * 0.9)
    assert ask(raft, RequestVote(7, "n3", 9, 6, pre_vote)) == RequestVoteReply(1, False) and raft.leader_id == "n2"
    raft.tick(ELECTION * 1.1)
    assert ask(raft, RequestVote(7, "n3", 9, 6, pre_vote)).vote_granted


@pytest.mark.parametrize("pre_vote", [False, True])
def test_leader_is_not_deposed_by_votes(pre_vote):
    """A leader that a majority answers does not give way to a candidate, whatever its term (thesis 4.2.3)."""
    raft = leader(1)
    term = raft.term
    assert not ask(raft, RequestVote(term + 5, "n3", 99, term + 4, pre_vote)).vote_granted
    assert raft.is_leader and raft.term == term


@pytest.mark.parametrize("heard", [append(prev=(1, 1)), append(prev=(9, 1)), snapshot()])
def test_any_request_of_the_leader_is_a_sign_of_life(heard):
    """A heartbeat, entries that do not fit, a chunk of a snapshot: all show that the leader lives (thesis 4.2.3)."""
    raft = server(1)
    raft.tick(ELECTION * 0.8)
    raft.handle(heard)
    raft.tick(ELECTION * 1.7)
    assert not ask(raft, RequestVote(7, "n3", 9, 6)).vote_granted


def test_a_leader_of_an_older_term_is_no_reason_to_refuse():
    """Hearing from who leads no longer keeps nobody from being elected (thesis 4.2.3)."""
    raft = server(1, term=3)
    raft.handle(append(term=2, prev=(1, 1)))
    assert ask(raft, RequestVote(4, "n3", 1, 1)).vote_granted


def test_who_has_given_its_leader_up_votes():
    """A server that stands for election itself does not refuse others for a leader it no longer hears (thesis 4.2.3)."""
    raft = follower(1)
    timeout(raft)
    assert ask(raft, RequestVote(2, "n3", 1, 1)).vote_granted


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
    raft = leader(1, configuration=WITH_LEARNERS)
    for _ in range(8):
        heartbeat(raft, "n4", "n5")
    assert not raft.is_leader
    kept = leader(1)
    for _ in range(20):
        heartbeat(kept, "n3")
    assert kept.is_leader


def test_a_leader_knows_how_long_a_peer_has_been_silent():
    """What an answer is for the leader's office it is for the operator, who asks which peer is away (thesis 6.2)."""
    raft = leader(1)
    heartbeat(raft, "n2")
    heartbeat(raft, "n3")
    assert [round(raft.silent_for(name), 3) for name in ("n2", "n3", "n9")] == [HEARTBEAT, 0, 0]
    assert follower(1).silent_for("n2") == 0


def test_check_quorum_needs_more_than_half():
    """Of five, two that answer are enough besides the leader, and one is not (thesis 6.2)."""
    kept, lost = leader(1, configuration=FIVE), leader(1, configuration=FIVE)
    for _ in range(10):
        heartbeat(kept, "n4", "n5")
        heartbeat(lost, "n5")
    assert kept.is_leader and not lost.is_leader


def test_a_refusal_is_an_answer():
    """A follower whose log does not fit keeps the leader in office like any other: it takes it for the leader (thesis 6.2)."""
    raft = leader(1, 1, committed=False)
    for _ in range(10):
        raft.tick(raft.now + HEARTBEAT)
        refuse(raft, "n3", prev=(2, 1), conflict_index=1)
    assert raft.is_leader


def test_an_answer_to_an_earlier_leadership_keeps_nobody_in_office():
    """What a peer answered to an older term of this leader does not show that it follows it now (thesis 6.2)."""
    raft = leader(1)
    for _ in range(10):
        raft.tick(raft.now + HEARTBEAT)
        raft.handle_reply("n2", append(term=raft.term - 1, leader="n1"), AppendEntriesReply(raft.term, True, 1))
    assert not raft.is_leader


def test_a_leader_that_steps_down_keeps_term_and_vote():
    """To step down by oneself is no new term: the vote for oneself stands (section 5.2)."""
    raft = leader(1)
    term = raft.term
    raft.tick(raft.now + 2 * ELECTION)
    assert (raft.term, raft.voted_for) == (term, "n1") and not raft.has_unsaved
    assert not ask(raft, RequestVote(term, "n3", 9, term)).vote_granted


def test_followers_know_the_leader_and_forget_it():
    """A follower names the leader to clients, until it gives it up or the term changes (thesis 6.2)."""
    raft = follower(1)
    assert raft.leader_id == "n2"
    raft.handle(append(term=2, leader="n3", prev=(1, 1)))
    assert raft.leader_id == "n3"
    raft.handle(ReadIndex(3, "n2"))
    assert raft.leader_id is None, "term 3 has begun, and nobody knows who leads in it"
    raft.handle(append(term=3, leader="n2", prev=(1, 1)))
    timeout(raft)
    assert raft.leader_id is None


def test_only_the_leader_accepts_commands():
    """Clients' commands are taken by the leader alone, which is named (section 5.1; section 8)."""
    for raft in (follower(1), candidate(1)):
        before = state(raft)
        with pytest.raises(NotLeader):
            raft.propose(b"x")
        assert state(raft) == before
    assert leader(1).leader_id == "n1"


def test_commands_of_a_deposed_leader_are_refused():
    """A leader that was deposed takes no command, also before it knows who leads (section 5.1)."""
    raft = leader(1)
    raft.handle_reply("n2", append(term=raft.term, leader="n1"), AppendEntriesReply(raft.term + 1, False))
    with pytest.raises(NotLeader):
        raft.propose(b"x")
    assert not raft.has_data_for("n2") and not raft.has_request_for("n2")


def test_a_single_answer_keeps_no_leader_of_five():
    """What one peer has answered does not stand for another (thesis 6.2)."""
    raft = leader(1, configuration=FIVE)
    replicate(raft, "n2", "n2", "n2")
    raft.tick(raft.now + ELECTION * 1.1)
    assert not raft.is_leader
