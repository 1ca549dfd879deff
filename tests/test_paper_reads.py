"""Linearizable reads without a write: ReadIndex (section 8; thesis 6.4). What the node does with the index is in test_node.py."""

import pytest
from one_server import (
    ELECTION, FIVE, HEARTBEAT, WITH_LEARNERS, accept, answer_votes, append, ask, candidate, finished, follower, heartbeat, leader,
    members, propose, refuse, replicate, save, server, timeout,
)

from raftd.errors import NoLeader
from raftd.raft.messages import AppendEntriesReply, ReadIndex, ReadIndexReply

# On the leader


def test_read_waits_for_a_majority():
    """A leader makes sure that it still is one: a majority answers a request sent after the read began (section 8; thesis 6.4)."""
    raft = leader(1)
    read = raft.read_index()
    assert not read.ready and raft.waiting_reads == 1
    accept(raft, "n2")
    assert finished(raft) == [read] and read.index == raft.commit_index == 2 and raft.waiting_reads == 0


def test_read_of_five_waits_for_two_others():
    """A majority it must be, as for a write (thesis 6.4)."""
    raft = leader(1, configuration=FIVE)
    read = raft.read_index()
    accept(raft, "n2")
    assert not read.ready
    accept(raft, "n5")
    assert read.ready


def test_a_read_asks_at_once():
    """A read does not wait for the next heartbeat, it begins a round of its own (thesis 6.4)."""
    raft = leader(1)
    heartbeat(raft, "n2", "n3")
    assert raft.request_for("n2") is None and raft.next_request_at("n2") > raft.now
    raft.read_index()
    assert raft.request_for("n2") is not None and raft.request_for("n3") is not None
    assert raft.request_for("n2") is None, "and once"


def test_a_read_that_is_confirmed_asks_nobody_more():
    """With a majority the round is over: the others hear from the leader when it is time (thesis 6.4)."""
    raft = leader(1)
    heartbeat(raft, "n2", "n3")
    read = raft.read_index()
    accept(raft, "n2")
    assert read.ready and raft.request_for("n3") is None


def test_request_under_way_does_not_confirm_a_later_read():
    """An answer to a request that was sent before the read began proves nothing about it (thesis 6.4). Stale reads of etcd came so.."""
    raft = leader(1)
    raft.tick(raft.now + HEARTBEAT)
    before = raft.request_for("n2")
    read = raft.read_index()
    accept(raft, "n2", before)
    assert not read.ready
    first = raft.request_for("n3")
    late = raft.read_index()
    accept(raft, "n3", first)
    assert read.ready and not late.ready


def test_entries_under_way_do_not_confirm_a_later_read():
    """Nor does an answer to entries that were sent before it began (thesis 6.4)."""
    raft = leader(1)
    propose(raft)
    before = raft.data_for("n2")
    read = raft.read_index()
    accept(raft, "n2", before)
    assert raft.commit_index == 3 and not read.ready
    propose(raft)
    accept(raft, "n2", raft.data_for("n2"))
    assert read.ready, "entries that were sent after it do"


def test_an_answer_counts_for_the_round_of_its_request():
    """The late answer to an earlier request does not confirm what a later one, still under way, asks (thesis 6.4)."""
    raft = leader(1)
    propose(raft)
    before = raft.data_for("n2")
    read = raft.read_index()
    later = raft.request_for("n2")
    accept(raft, "n2", before)
    assert not read.ready
    accept(raft, "n2", later)
    assert read.ready


def test_a_late_answer_takes_no_confirmation_back():
    """What a server has confirmed it has confirmed, though its answer to an earlier request comes after that (thesis 6.4)."""
    raft = leader(1, configuration=FIVE)
    raft.tick(raft.now + HEARTBEAT)
    before = raft.request_for("n2")
    read = raft.read_index()
    accept(raft, "n2")
    accept(raft, "n2", before)
    accept(raft, "n3")
    assert read.ready


def test_one_round_confirms_all_reads_before_it():
    """A round of requests is shared by all reads that began before it was sent (thesis 6.4)."""
    raft = leader(1)
    reads = [raft.read_index() for _ in range(100)]
    accept(raft, "n2")
    assert all(read.ready for read in reads) and raft.role.round == 1


def test_a_read_that_is_asked_again_needs_a_new_round():
    """A read that was given up and begun again is a new read, which no earlier round confirms (thesis 6.4)."""
    raft = leader(1)
    lost = raft.read_index()
    before = raft.request_for("n2")
    raft.abandon_reads()
    again = raft.read_index()
    accept(raft, "n2", before)
    assert lost.failed and not again.ready
    accept(raft, "n2")
    assert again.ready and not lost.ready


def test_a_round_that_is_lost_is_sent_again():
    """When nobody answered, the next heartbeat belongs to the round too, and confirms the read (thesis 6.4)."""
    raft = leader(1)
    read = raft.read_index()
    for peer in ("n2", "n3"):
        raft.handle_reply(peer, raft.request_for(peer), None)
    heartbeat(raft, "n3")
    assert read.ready


def test_a_refusal_confirms_as_well():
    """A follower whose log does not fit yet confirms all the same that it knows of no newer leader (thesis 6.4)."""
    raft = leader(1)
    read = raft.read_index()
    request = raft.request_for("n3")
    raft.handle_reply("n3", request, AppendEntriesReply(raft.term, False, 0, 1, 0))
    assert read.ready


@pytest.mark.parametrize("term", [-1, 1])
def test_an_answer_of_another_term_confirms_nothing(term):
    """An answer of an older term is not for this leader; one of a newer deposes it (thesis 6.4)."""
    raft = leader(1)
    read = raft.read_index()
    raft.handle_reply("n2", raft.request_for("n2"), AppendEntriesReply(raft.term + term, False))
    assert not read.ready and raft.is_leader == (term < 0)


def test_an_answer_to_an_earlier_leadership_confirms_nothing():
    """Rounds are counted anew by each leader; those of an earlier term of the same server do not count (thesis 6.4)."""
    raft = leader(1)
    read = raft.read_index()
    raft.handle_reply("n2", append(term=raft.term - 1, leader="n1", round=99), AppendEntriesReply(raft.term, True, 1))
    assert not read.ready


def test_read_waits_for_the_noop():
    """A new leader does not know what is committed until an entry of its term is: reads wait for it (section 8; thesis 6.4)."""
    raft = leader(1, 1, committed=False)
    read = raft.read_index()
    raft.handle_reply("n3", raft.request_for("n3"), AppendEntriesReply(raft.term, True, 1))
    assert not read.ready
    replicate(raft, "n3")
    assert read.ready and read.index == 3


def test_read_is_ready_when_the_leaders_own_disk_commits_the_noop():
    """Whatever commits the no-op ends the wait: also the leader's own disk, when the others were faster (thesis 6.4)."""
    raft = candidate(1)
    answer_votes(raft, "n2")
    read = raft.read_index()
    accept(raft, "n3", raft.data_for("n3"))
    assert raft.is_leader and raft.commit_index == 0 and not read.ready
    save(raft)
    assert raft.commit_index == 2 and read.ready


def test_read_index_of_a_new_leader_is_not_what_it_knew_before():
    """A read that began before the no-op was committed has the index of the no-op, at least: more may be committed (thesis 6.4)."""
    raft = leader(1, 1, applied=1, committed=False)
    read = raft.read_index()
    accept(raft, "n3", raft.data_for("n3"))
    assert raft.commit_index == 3 and read.ready and read.index == 3


def test_read_index_is_that_of_its_beginning():
    """The read index is the commit index when the read began; writes that come later do not delay it (thesis 6.4)."""
    raft = leader(1)
    read = raft.read_index()
    propose(raft)
    replicate(raft, "n2")
    accept(raft, "n2")
    assert raft.commit_index == 3 and read.ready and read.index == 2


def test_read_index_is_not_older_than_a_write_before_it():
    """What was committed before the read began is seen by it (thesis 6.4)."""
    raft = leader(1)
    entry = propose(raft)
    replicate(raft, "n2")
    read = raft.read_index()
    accept(raft, "n2")
    assert read.index == entry.index


def test_learners_do_not_confirm_reads():
    """A majority of the voters it is (thesis 6.4; thesis 4.2.1)."""
    raft = leader(1, configuration=WITH_LEARNERS)
    read = raft.read_index()
    accept(raft, "n4")
    accept(raft, "n5")
    assert not read.ready


def test_a_leader_alone_confirms_its_reads():
    """In a cluster of one the leader is the majority (thesis 6.4)."""
    raft = server(1, configuration=members("n1"))
    timeout(raft)
    read = raft.read_index()
    assert raft.is_leader and read.ready and read.index == 2


def test_the_first_entry_of_all_can_be_read():
    """A new cluster has nothing but the no-op of its first leader, and can be read all the same (thesis 6.4)."""
    raft = leader()
    read = raft.read_index()
    accept(raft, "n2")
    assert read.ready and read.index == 1


def test_reads_of_a_deposed_leader_fail():
    """A read that was not confirmed when the leader was deposed is never answered: it would be stale (thesis 6.4)."""
    raft = leader(1)
    read = raft.read_index()
    request = raft.request_for("n2")
    raft.handle(append(term=9))
    accept(raft, "n2", request)
    assert read.failed and not read.ready and finished(raft) == [read]


def test_reads_of_a_leader_that_steps_down_fail():
    """Nor is one of a leader that no majority answers (thesis 6.4; thesis 6.2)."""
    raft = leader(1)
    read = raft.read_index()
    raft.tick(raft.now + 2 * ELECTION)
    assert read.failed and not read.ready


def test_askers_are_told_when_the_leader_steps_down():
    """A follower that asked a leader which steps down by itself is told so at once, and asks another (thesis 6.4; thesis 6.2)."""
    raft = leader(1)
    answer = raft.handle(ReadIndex(raft.term, "n3"))
    raft.tick(raft.now + 2 * ELECTION)
    assert answer.reply == ReadIndexReply(raft.term, 0)


@pytest.mark.parametrize("role", [server, candidate])
def test_who_knows_no_leader_cannot_read(role):
    """Without a leader there is nobody to confirm a read (thesis 6.4)."""
    raft = role(1)
    with pytest.raises(NoLeader):
        raft.read_index()
    assert raft.waiting_reads == 0


# On a follower


def test_follower_asks_the_leader():
    """A follower answers a read from its own state, having asked the leader for its commit index (thesis 6.4)."""
    raft = follower(1)
    read = raft.read_index()
    assert raft.request_for("n3") is None
    request = raft.request_for("n2")
    assert request == ReadIndex(1, "n1") and not read.ready
    raft.handle_reply("n2", request, ReadIndexReply(1, 7))
    assert finished(raft) == [read] and read.ready and read.index == 7


def test_a_question_covers_the_reads_before_it_only():
    """A read that began after the question was sent is not answered by it, but by the next one (thesis 6.4)."""
    raft = follower(1)
    early = raft.read_index()
    request = raft.request_for("n2")
    late = raft.read_index()
    assert raft.request_for("n2") is None, "one question at a time"
    raft.handle_reply("n2", request, ReadIndexReply(1, 7))
    assert early.ready and not late.ready
    raft.handle_reply("n2", raft.request_for("n2"), ReadIndexReply(1, 8))
    assert late.ready and late.index == 8


def test_unanswered_question_fails_its_reads_and_no_others():
    """The answer to a question that was given up counts neither for its reads nor for later ones (thesis 6.4)."""
    raft = follower(1)
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


def test_a_leader_that_cannot_confirm_fails_the_read():
    """An answer without an index fails the reads: who was asked leads no longer (thesis 6.4)."""
    raft = follower(1)
    read = raft.read_index()
    raft.handle_reply("n2", raft.request_for("n2"), ReadIndexReply(1, 0))
    assert read.failed and not read.ready


@pytest.mark.parametrize("change", [append(term=2, leader="n3", prev=(1, 1)), append(term=2, leader="n2", prev=(1, 1))])
def test_reads_fail_when_the_leader_changes(change):
    """A read whose leader is gone fails, whether the leader was asked already or not (thesis 6.4)."""
    raft = follower(1)
    asked = raft.read_index()
    question = raft.request_for("n2")
    waiting = raft.read_index()
    ask(raft, change)
    assert asked.failed and waiting.failed
    raft.handle_reply("n2", question, ReadIndexReply(1, 7))
    assert not asked.ready and not waiting.ready and raft.waiting_reads == 0


def test_leader_answers_a_follower_when_confirmed():
    """The leader answers a follower's question under the same conditions as its own reads (thesis 6.4)."""
    raft = leader(1)
    answer = raft.handle(ReadIndex(raft.term, "n3"))
    assert answer.reply is None
    accept(raft, "n2")
    assert answer.reply == ReadIndexReply(raft.term, 2)


def test_a_question_is_no_answer():
    """That a follower asks does not confirm that it follows: its question was sent before the read began here (thesis 6.4)."""
    raft = leader(1)
    before = raft.request_for("n3")
    answer = raft.handle(ReadIndex(raft.term, "n3"))
    accept(raft, "n3", before)
    assert answer.reply is None


def test_leader_answers_a_follower_after_its_noop():
    """Also for a follower's read the no-op of the term must be committed (thesis 6.4)."""
    raft = leader(1, 1, committed=False)
    answer = raft.handle(ReadIndex(raft.term, "n3"))
    raft.handle_reply("n2", raft.request_for("n2"), AppendEntriesReply(raft.term, True, 1))
    assert answer.reply is None
    replicate(raft, "n2")
    assert answer.reply == ReadIndexReply(raft.term, 3)


@pytest.mark.parametrize("role", [server, follower, candidate])
def test_who_does_not_lead_confirms_nothing(role):
    """A question to a server that does not lead is answered with 0: ask another (thesis 6.4)."""
    raft = role(1)
    assert ask(raft, ReadIndex(raft.term, "n3")) == ReadIndexReply(raft.term, 0)


def test_who_is_deposed_while_asked_confirms_nothing():
    """A leader that is deposed before it could confirm says so (thesis 6.4)."""
    raft = leader(1)
    answer = raft.handle(ReadIndex(raft.term, "n3"))
    raft.handle(append(term=9))
    save(raft)
    assert answer.reply == ReadIndexReply(9, 0)


def test_a_question_of_an_older_term_is_not_confirmed():
    """A follower that does not know this leader's term yet learns it, and asks again (section 5.1)."""
    raft = leader(1)
    assert ask(raft, ReadIndex(raft.term - 1, "n3")) == ReadIndexReply(raft.term, 0) and raft.waiting_reads == 0


def test_an_asker_is_told_what_is_committed():
    """Who asked must know that the index is committed before it can answer: it is told at once (thesis 6.4)."""
    raft = leader(1)
    heartbeat(raft, "n2", "n3")
    propose(raft)
    accept(raft, "n3", raft.data_for("n3"))
    raft.handle(ReadIndex(raft.term, "n3"))
    accept(raft, "n2", raft.data_for("n2"))
    assert raft.request_for("n3").leader_commit == raft.commit_index == 3


def test_who_is_no_member_may_ask():
    """An asker may have been removed meanwhile, which its own log does not say yet: it gets its answer (thesis 6.4)."""
    raft = leader(1)
    answer = raft.handle(ReadIndex(raft.term, "n9"))
    accept(raft, "n2")
    assert answer.reply == ReadIndexReply(raft.term, 2)


def test_reads_in_wait_are_counted_and_can_be_given_up():
    """A server that stops answers no read any more: those that wait fail, and nothing is kept of them (thesis 6.4)."""
    for raft in (leader(1), follower(1)):
        reads = [raft.read_index()]
        raft.request_for("n2")
        reads.append(raft.read_index())
        assert raft.waiting_reads == 2
        raft.abandon_reads()
        assert raft.waiting_reads == 0 and all(read.failed for read in reads)


def test_a_refused_append_is_no_confirmation_of_the_log():
    """That a leader is confirmed by a refusal commits nothing (thesis 6.4)."""
    raft = leader(1)
    entry = propose(raft)
    raft.read_index()
    refuse(raft, "n2", (3, raft.term), 3)
    assert raft.commit_index < entry.index
