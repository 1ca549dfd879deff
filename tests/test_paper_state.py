"""What a server must not forget, and what it must not say before that is on its disk (Figure 2, State; thesis 3.8)."""

import pytest
from one_server import (
    ELECTION, HEARTBEAT, THREE, accept, answer_votes, append, ask, candidate, configuration_entry, entries, follower, leader, members,
    propose, replicate, save, server, snapshot, timeout,
)

from raftd.raft.core import Answer
from raftd.raft.messages import (
    AppendEntries, AppendEntriesReply, HardState, InstallSnapshotReply, ReadIndex, RequestVote, RequestVoteReply, TimeoutNow,
)
from raftd.raft.roles import Candidate, Follower, Leader

# What is kept


def test_a_server_begins_with_nothing():
    """At first boot there is no term, vote or log, and nothing is committed (Figure 2, persistent state; Figure 2, volatile state)."""
    raft = server()
    assert (raft.term, raft.voted_for, raft.log.last_index, raft.commit_index, raft.last_applied) == (0, None, 0, 0, 0)
    assert raft.log.first_index == 1


@pytest.mark.parametrize("request_of_term_9", [
    append(term=9), RequestVote(9, "n2", 9, 9), snapshot(leader_term=9), TimeoutNow(9, "n2"), ReadIndex(9, "n2"),
])
def test_the_term_never_falls(request_of_term_9):
    """The term is the newest that was seen, and only rises, whatever arrives late (Figure 2, persistent state)."""
    raft = server(1, term=10)
    ask(raft, append(term=11, prev=(1, 1)))
    raft.handle(request_of_term_9)
    assert raft.term == 11
    raft.handle_reply("n2", RequestVote(9, "n1", 1, 1), RequestVoteReply(9, True))
    assert raft.term == 11


def test_a_restart_forgets_no_vote():
    """After a restart the vote of the term still binds: to vote twice would elect two leaders (thesis 3.8)."""
    raft = server(1, term=5, voted_for="n3")
    assert not ask(raft, RequestVote(5, "n2", 9, 4)).vote_granted
    assert ask(raft, RequestVote(5, "n3", 9, 4)).vote_granted


def test_a_restart_begins_with_what_is_applied():
    """The commit index is not kept: it begins at what the state machine has, and the leader tells the rest (thesis 3.8)."""
    raft = server(1, 1, 1, applied=1)
    assert (raft.commit_index, raft.last_applied, raft.saved_index) == (1, 1, 3)
    ask(raft, append(term=2, prev=(3, 1), terms=(2,), commit=4))
    assert [entry.index for entry in raft.take_committed(1000)] == [2, 3, 4]


@pytest.mark.parametrize("late", [append(), append(prev=(1, 1), commit=1), append(prev=(2, 1), terms=(1,), commit=2)])
def test_commit_index_never_falls(late):
    """The commit index only rises, whatever arrives late (Figure 2, volatile state)."""
    raft = server(1, 1, 1)
    ask(raft, append(prev=(3, 1), commit=3))
    ask(raft, late)
    assert raft.commit_index == 3


def test_entries_are_applied_in_order_and_once():
    """What is committed and not applied yet is applied, in the order of the log (Figure 2, all servers, 1)."""
    raft = server(1, 1, 1, 1)
    ask(raft, append(prev=(4, 1), commit=3))
    first = raft.take_committed(1)
    assert [entry.index for entry in first] == [1], "a batch is limited, in bytes"
    raft.applied(1)
    assert [entry.index for entry in raft.take_committed(1000)] == [2, 3]
    raft.applied(3)
    assert not raft.has_committed and raft.take_committed(1000) == ()
    with pytest.raises(AssertionError):
        raft.applied(4)


def test_only_what_is_saved_is_applied():
    """A state machine is never ahead of the log on disk, or a crash would leave a state without its log (thesis 3.8)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1,), commit=2))
    assert [entry.index for entry in raft.take_committed(1000)] == [1]
    raft.applied(1)
    assert not raft.has_committed, "the applier would not sleep"
    save(raft)
    assert [entry.index for entry in raft.take_committed(1000)] == [2]


def test_what_a_leader_knows_dies_with_its_term():
    """What a leader knew of its followers does not outlive its term: next and match index begin anew (Figure 2, state on leaders)."""
    raft = leader(1)
    role = raft.role
    ask(raft, append(term=9, prev=(2, 2)))
    timeout(raft)
    answer_votes(raft, "n2")
    save(raft)
    answer_votes(raft, "n2")
    assert isinstance(raft.role, Leader) and raft.role is not role
    assert {(progress.match_index, progress.next_index) for progress in raft.role.progress.values()} == {(0, 3)}


# Term and vote are on disk before anything that depends on them leaves


def test_a_vote_leaves_only_when_durable():
    """Term and vote are on stable storage before the reply to an RPC leaves (Figure 2, persistent state): the original saved neither."""
    raft = server(1)
    answer = raft.handle(RequestVote(2, "n2", 1, 1))
    assert answer.reply is None
    unsaved = raft.take_unsaved()
    assert unsaved.hard_state == HardState(2, "n2") and answer.reply is None
    raft.saved(unsaved)
    assert answer.reply == RequestVoteReply(2, True)


def test_a_vote_in_a_term_that_is_durable_waits_as_well():
    """The vote alone is reason enough to wait for the disk (Figure 2, persistent state)."""
    raft = server(1, term=2)
    answer = raft.handle(RequestVote(2, "n2", 1, 1))
    assert answer.reply is None and raft.take_unsaved().hard_state == HardState(2, "n2")


@pytest.mark.parametrize("request_of_term_9", [
    append(term=9), append(term=9, prev=(7, 7)), RequestVote(9, "n2", 0, 0), snapshot(index=1, leader_term=9), ReadIndex(9, "n2"),
    TimeoutNow(9, "n2"),
])
def test_no_reply_leaves_before_the_term_is_durable(request_of_term_9):
    """A refusal, too, carries the new term, and leaves when that is on disk (Figure 2, persistent state)."""
    raft = server(1, term=3, applied=1)
    answer = raft.handle(request_of_term_9)
    assert answer.reply is None
    raft.answer_now(answer)
    assert answer.reply is None, "nor for an impatient caller"
    save(raft)
    assert answer.reply.term >= 9


def test_a_vote_that_is_repeated_before_it_is_durable_waits_as_well():
    """The second request for a vote that is being saved is no reason to send it earlier (Figure 2, persistent state)."""
    raft = server(1)
    raft.handle(RequestVote(2, "n2", 1, 1))
    unsaved = raft.take_unsaved()
    again = raft.handle(RequestVote(2, "n2", 1, 1))
    assert again.reply is None
    raft.saved(unsaved)
    assert again.reply == RequestVoteReply(2, True)


def test_a_write_of_an_older_vote_does_not_release_the_newer():
    """What is being written when the vote changes does not count for the new vote (Figure 2, persistent state)."""
    raft = server(1)
    raft.handle(append(term=2))
    older = raft.take_unsaved()
    answer = raft.handle(RequestVote(3, "n3", 1, 1, leadership_transfer=True))
    raft.saved(older)
    assert answer.reply is None
    save(raft)
    assert answer.reply == RequestVoteReply(3, True)


def test_a_vote_of_a_term_that_has_passed_is_not_sent():
    """The reply says what is so when it leaves: a vote of an older term is none (Figure 2, persistent state)."""
    raft = server(1)
    answer = raft.handle(RequestVote(2, "n2", 1, 1))
    raft.handle(append(term=5, leader="n3"))
    save(raft)
    assert answer.reply == RequestVoteReply(5, False)


def test_nobody_is_asked_for_a_vote_before_the_own_is_durable():
    """A candidate's own vote is a vote: it counts, and others are asked, when it is on disk (Figure 2, persistent state)."""
    raft = server(1, term=4)
    timeout(raft)
    answer_votes(raft, "n2")
    assert (raft.term, raft.voted_for) == (5, "n1") and raft.request_for("n2") is None and raft.role.votes == {}
    save(raft)
    assert raft.request_for("n2") == RequestVote(5, "n1", 1, 1) and raft.role.votes == {"n1": True}


def test_the_end_of_another_write_is_not_that_of_the_own_vote():
    """In a cluster of one the own vote elects: not when the write that ends was begun before (Figure 2, persistent state)."""
    raft = server(1, configuration=members("n1", "n2"))
    raft.handle(AppendEntries(1, "n2", 1, 1, (configuration_entry(2, 1, members("n1")),)))
    raft.tick(raft.next_tick - 0.01)
    earlier = raft.take_unsaved()
    raft.tick(raft.next_tick)
    raft.saved(earlier)
    assert isinstance(raft.role, Candidate) and raft.role.votes == {}
    save(raft)
    assert raft.is_leader


def test_a_question_waits_for_the_term_as_well():
    """A follower asks nothing in a term that is not on its disk (Figure 2, persistent state)."""
    raft = server(1)
    raft.handle(append(term=9, prev=(1, 1)))
    raft.read_index()
    assert raft.request_for("n2") is None
    save(raft)
    assert raft.request_for("n2") == ReadIndex(9, "n1")


# Entries are on disk before they are confirmed


def test_an_append_is_answered_when_saved():
    """A follower says that it has entries when they are on its disk (Figure 2, persistent state)."""
    raft = server(1)
    answer = raft.handle(append(prev=(1, 1), terms=(1, 1)))
    assert answer.reply is None
    unsaved = raft.take_unsaved()
    assert answer.reply is None and unsaved.log_from == 2 and len(unsaved.entries) == 2
    raft.saved(unsaved)
    assert answer.reply == AppendEntriesReply(1, True, 3)


def test_a_repeated_append_is_answered_when_saved_as_well():
    """That the entries were here already, but not on disk, is no reason to confirm them (Figure 2, persistent state)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1, 1)))
    again = raft.handle(append(prev=(1, 1), terms=(1, 1)))
    heartbeat = raft.handle(append(prev=(3, 1)))
    assert again.reply is None and heartbeat.reply == AppendEntriesReply(1, True, 1)
    save(raft)
    assert again.reply == AppendEntriesReply(1, True, 3)


def test_an_answer_that_cannot_wait_promises_only_what_is_durable():
    """When the caller's patience ends before the disk is done, only what is on it is confirmed (Figure 2, persistent state)."""
    raft = server(1)
    answer = raft.handle(append(prev=(1, 1), terms=(1, 1)))
    raft.answer_now(answer)
    assert answer.reply == AppendEntriesReply(1, True, 1)


def test_an_answer_that_nobody_waits_for_is_forgotten():
    """A caller that has gone gets no late answer, which it might take for that to another request (section 5.1)."""
    raft = server(1)
    answer = raft.handle(append(prev=(1, 1), terms=(1,)))
    raft.drop(answer)
    raft.drop(answer)
    save(raft)
    assert isinstance(answer, Answer) and answer.reply is None and raft.finished_answers == []


def test_a_late_write_does_not_confirm_what_has_replaced_it():
    """A write that ends after a conflict has replaced its entries says nothing of the new ones (Figure 2, persistent state).

    The late "written" event: it confirmed entries of a later term in another system.
    """
    raft = server(1)
    raft.handle(append(term=1, leader="n2", prev=(1, 1), terms=(1, 1, 1)))
    late = raft.take_unsaved()
    answer = raft.handle(append(term=2, leader="n3", prev=(1, 1), terms=(2, 2)))
    raft.saved(late)
    assert raft.saved_index == 1 and answer.reply is None
    save(raft)
    assert answer.reply == AppendEntriesReply(2, True, 3)


def test_an_append_of_a_term_that_has_passed_is_not_confirmed():
    """What was accepted from a leader that is deposed before the disk is done, is not said to be the new leader's (section 5.1)."""
    raft = server(1)
    answer = raft.handle(append(prev=(1, 1), terms=(1, 1)))
    raft.handle(RequestVote(5, "n3", 9, 4, leadership_transfer=True))
    save(raft)
    assert answer.reply == AppendEntriesReply(5, False)
    replaced = raft.handle(append(term=5, leader="n3", prev=(3, 1), terms=(5, 5)))
    raft.handle(append(term=6, leader="n2", prev=(3, 1), terms=(6,)))
    save(raft)
    assert replaced.reply == AppendEntriesReply(6, False), "also when there will never be so many entries"


def test_a_late_write_confirms_what_has_not_been_replaced():
    """Of a write whose end was replaced meanwhile, the beginning is on disk (Figure 2, persistent state)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1, 1, 1)))
    late = raft.take_unsaved()
    raft.handle(append(term=2, leader="n3", prev=(2, 1), terms=(2,)))
    raft.saved(late)
    assert raft.saved_index == 2
    unsaved = raft.take_unsaved()
    assert unsaved.log_from == 3 and [entry.term for entry in unsaved.entries] == [2]


def test_what_replaces_saved_entries_is_not_saved_yet():
    """After a conflict what was on disk counts no longer, for the answer and for the state machine (Figure 2, persistent state)."""
    raft = server(1, 1, 1)
    assert raft.saved_index == 3
    answer = raft.handle(append(term=2, prev=(1, 1), terms=(2, 2), commit=3))
    assert raft.saved_index == 1 and answer.reply is None
    assert [entry.index for entry in raft.take_committed(1000)] == [1]
    unsaved = raft.take_unsaved()
    assert unsaved.log_from == 2 and unsaved.entries == raft.log.entries(2, 3)


def test_a_leader_counts_its_own_entries_when_they_are_durable():
    """The leader, too, has an entry when it is on its disk: what is being written does not count yet (thesis 10.2.1)."""
    raft = leader(1)
    entry = raft.propose(b"x")
    unsaved = raft.take_unsaved()
    later = raft.propose(b"y")
    replicate(raft, "n2")
    assert raft.commit_index < entry.index
    raft.saved(unsaved)
    assert raft.commit_index == entry.index < later.index


def test_one_write_at_a_time():
    """What is taken while a write is under way could reach the disk first, and leave a gap after a crash (Figure 2, persistent state)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1,)))
    raft.take_unsaved()
    raft.handle(append(prev=(2, 1), terms=(1,)))
    with pytest.raises(AssertionError):
        raft.take_unsaved()


def test_what_waits_for_the_disk_is_written_whole():
    """Term, vote and entries that belong together go to disk in one write (Figure 2, persistent state)."""
    raft = server(1)
    raft.handle(append(term=4, prev=(1, 1), terms=(2, 4)))
    unsaved = raft.take_unsaved()
    assert (unsaved.hard_state, unsaved.log_from, unsaved.entries) == (HardState(4, None), 2, entries(2, 4, first=2))
    raft.saved(unsaved)
    assert not raft.has_unsaved and raft.take_unsaved() is None


def test_what_gathers_is_written_from_its_beginning():
    """While one write is under way the next gathers: all of it, and nothing between is left out (Figure 2, persistent state)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1,)))
    raft.saved(raft.take_unsaved())
    for index in (2, 3, 4):
        raft.handle(append(prev=(index, 1), terms=(1,)))
    unsaved = raft.take_unsaved()
    assert unsaved.log_from == 3 and unsaved.entries == raft.log.entries(3, 5)


def test_one_write_is_limited():
    """A write that takes long counts as a failed disk: what is large is written, and forgotten, in steps (thesis 5.2)."""
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
    for index in (1, 2, 3):
        unsaved = raft.take_unsaved()
        assert unsaved.base.index == index
        raft.saved(unsaved)
    assert not raft.has_unsaved


# Disks that stall or fail


def keep_answering(raft, seconds):
    """The peers answer whatever the leader still sends them."""
    end = raft.now + seconds
    while raft.now < end and raft.is_leader:
        raft.tick(raft.now + HEARTBEAT)
        for peer in ("n2", "n3"):
            if request := raft.request_for(peer):
                raft.handle_reply(peer, request, AppendEntriesReply(raft.term, True, 2))


def test_a_stalled_disk_is_a_failure():
    """A leader whose write takes longer than an election timeout falls silent and steps down (thesis 6.2).

    It could not commit anything, but would keep a better one from being elected.
    """
    raft = leader(1)
    raft.propose(b"x")
    stuck = raft.take_unsaved()
    raft.tick(raft.now + ELECTION + 0.01)
    assert not raft.is_leader and raft.request_for("n2") is None and raft.data_for("n2") is None
    timeout_at = raft.next_tick
    raft.tick(timeout_at)
    assert not isinstance(raft.role, Candidate), "nor does it stand for election"
    raft.saved(stuck)
    timeout(raft)
    assert isinstance(raft.role, Candidate)


def test_a_leader_with_a_stalled_disk_steps_down_though_all_answer():
    """A majority that answers is not enough: the disk must, too (thesis 6.2)."""
    raft = leader(1)
    raft.propose(b"x")
    raft.take_unsaved()
    keep_answering(raft, 2 * ELECTION)
    assert not raft.is_leader
    kept = leader(1)
    keep_answering(kept, 2 * ELECTION)
    assert kept.is_leader


def test_a_stalled_leader_sends_nothing_more():
    """Between two looks at the clock of its leadership, too, a leader with a stalled disk is silent (thesis 6.2)."""
    raft = leader(1)
    raft.propose(b"x")
    raft.take_unsaved()
    raft.now += ELECTION + 0.01
    assert raft.is_leader and not raft.has_request_for("n2") and not raft.has_data_for("n2")


def test_a_large_write_may_take_longer():
    """What is a stall depends on how much there is to write (thesis 6.2)."""
    raft = leader(1)
    raft.propose(b"x" * raft.SLOWEST_DISK_BYTES_PER_SECOND)
    raft.MAX_WRITE_BYTES = raft.SLOWEST_DISK_BYTES_PER_SECOND
    raft.take_unsaved()
    keep_answering(raft, ELECTION + 0.9)
    assert raft.is_leader
    keep_answering(raft, 0.3)
    assert not raft.is_leader


def test_a_follower_with_a_stalled_disk_does_not_stand():
    """A follower whose disk stalls forgets its leader when it hears it no more, and leaves the election to others (thesis 6.2)."""
    raft = follower(1)
    raft.handle(append(prev=(1, 1), terms=(1,)))
    raft.take_unsaved()
    raft.tick(raft.next_tick)
    assert isinstance(raft.role, Follower) and raft.leader_id is None and raft.term == 1


def test_a_withdrawn_server_neither_leads_nor_stands():
    """A server that must not lead takes no part in elections but as a voter, also when it is asked to (thesis 3.10)."""
    raft = server(1)
    raft.withdrawn = "its disk failed"
    timeout(raft)
    raft.handle(TimeoutNow(1, "n2"))
    assert isinstance(raft.role, Follower) and ask(raft, RequestVote(2, "n2", 1, 1)).vote_granted
    lead = leader(1)
    lead.withdrawn = "its disk failed"
    lead.tick(lead.next_tick)
    assert isinstance(lead.role, Follower)


@pytest.mark.parametrize("role", [candidate, leader])
def test_a_server_that_cannot_write_steps_down_and_keeps_its_vote(role):
    """Who steps down by itself stays in its term, with its vote, and waits for an election timeout (section 5.2)."""
    raft = role(1)
    term = raft.term
    raft.step_down("the log cannot be written")
    assert isinstance(raft.role, Follower) and (raft.term, raft.voted_for, raft.leader_id) == (term, "n1", None)
    assert raft.next_tick >= raft.now + ELECTION


def test_a_follower_that_cannot_write_keeps_its_leader():
    """There is nothing to step down from: the leader is still the leader (section 5.2)."""
    raft = follower(1)
    due = raft.next_tick
    raft.step_down("the log cannot be written")
    assert raft.leader_id == "n2" and raft.next_tick == due


def test_a_write_under_way_when_a_snapshot_comes_says_nothing_of_what_follows():
    """Entries that a snapshot has replaced while they were written are not there, though the write has ended (section 7)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1,) * 7))
    late = raft.take_unsaved()
    raft.snapshot_installed(5, 2, THREE)
    answer = raft.handle(append(term=2, prev=(5, 2), terms=(2, 2)))
    raft.saved(late)
    assert raft.saved_index == 5 and answer.reply is None
    unsaved = raft.take_unsaved()
    assert unsaved.base[:2] == (5, 2) and unsaved.entries == entries(2, 2, first=6)
    raft.saved(unsaved)
    assert answer.reply == AppendEntriesReply(2, True, 7)


@pytest.mark.parametrize("written", [1, 7])
def test_a_write_under_way_when_a_snapshot_comes_takes_nothing_back(written):
    """What the snapshot stands for is durable, however little the write that ends then was about (section 7)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1,) * written))
    late = raft.take_unsaved()
    raft.snapshot_installed(5, 2, THREE)
    raft.saved(late)
    assert raft.saved_index == raft.last_applied == 5


def test_an_installed_snapshot_is_confirmed_when_the_log_follows_on_disk():
    """That a follower has what a snapshot stands for is said when it is durable there, and never before (Figure 2, persistent state)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1, 1), commit=3))
    answer = raft.handle(snapshot(index=3))
    assert answer.reply is None
    raft.answer_now(answer)
    assert answer.reply == InstallSnapshotReply(1, 10, False)
    save(raft)
    assert ask(raft, snapshot(index=3)) == InstallSnapshotReply(1, 10, True)


def test_a_candidates_vote_for_itself_counts_in_its_own_election_only():
    """A write of the vote that ends after the election is over elects nobody (Figure 2, persistent state)."""
    raft = server(1, configuration=THREE)
    timeout(raft)
    answer_votes(raft, "n2")
    late = raft.take_unsaved()
    raft.handle(append(term=raft.term + 1, leader="n3"))
    raft.saved(late)
    assert isinstance(raft.role, Follower) and raft.has_unsaved
    save(raft)
    assert not any(raft.has_request_for(peer) or raft.has_data_for(peer) for peer in raft.peers)


def test_reads_are_confirmed_while_the_disk_works():
    """A write under way delays neither heartbeats nor reads, as long as it does not stall (thesis 10.2.1)."""
    raft = leader(1)
    propose(raft)
    raft.propose(b"y")
    raft.take_unsaved()
    read = raft.read_index()
    accept(raft, "n2")
    assert read.ready
