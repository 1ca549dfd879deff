"""When an entry is committed, and who learns of it (sections 5.3 and 5.4; Figure 2, Rules for Servers)."""

from one_server import (
    FIVE, FOURTH, HEARTBEAT, THREE, WITH_LEARNERS, accept, append, ask, follower, leader, members, propose, refuse, replicate, save,
)

from raftd.raft.core import Raft


def test_majority_on_disk_commits():
    """An entry is committed once it is on the disks of a majority; the leader's counts when it is done (section 5.3)."""
    raft = leader(1)
    entry = raft.propose(b"x")
    replicate(raft, "n2")
    assert raft.commit_index < entry.index, "the leader's own write is not done"
    save(raft)
    assert raft.commit_index == entry.index
    other = propose(raft)
    assert raft.commit_index < other.index


def test_less_than_a_majority_does_not_commit():
    """Of five servers two are none, and three are enough (Figure 2, leaders, 4)."""
    raft = leader(1, configuration=FIVE)
    entry = propose(raft)
    replicate(raft, "n4")
    assert raft.commit_index < entry.index
    replicate(raft, "n5")
    assert raft.commit_index == entry.index


def test_half_does_not_commit():
    """A majority of four servers is three (Figure 2, leaders, 4)."""
    raft = leader(1, configuration=members("n1", "n2", "n3", "n4"))
    entry = propose(raft)
    replicate(raft, "n4")
    assert raft.commit_index < entry.index
    replicate(raft, "n3")
    assert raft.commit_index == entry.index


def test_as_much_is_committed_as_a_majority_has():
    """The commit index is the largest that a majority has reached, not the largest that anybody has (Figure 2, leaders, 4)."""
    raft = leader(1, configuration=FIVE)
    for _ in range(6):
        propose(raft)
    for peer, index in (("n2", 8), ("n3", 5), ("n4", 4), ("n5", 3)):
        replicate(raft, peer, up_to=index)
    assert raft.commit_index == 5


def test_a_leader_takes_no_commit_back():
    """When a voter joins, a majority of the new configuration may have less: what is committed stays committed (section 5.4)."""
    raft = leader(1)
    for _ in range(3):
        propose(raft)
    replicate(raft, "n2")
    raft.propose_configuration(THREE.with_member(FOURTH))
    save(raft)
    replicate(raft, "n3", up_to=3)
    assert raft.commit_index == 5


def test_two_followers_commit_before_the_leaders_disk():
    """A majority is a majority without the leader as well (thesis 10.2.1)."""
    raft = leader(1)
    entry = raft.propose(b"x")
    replicate(raft, "n2", "n3")
    assert raft.commit_index == entry.index
    assert raft.take_committed(1000) == raft.log.entries(1, 2), "applied only when saved here"


def test_old_terms_are_not_committed_by_counting():
    """Only entries of the leader's own term are committed by counting (section 5.4.2; Figure 2, leaders, 4).

    In Figure 8 a majority has 2/2, and a server without it is elected and overwrites it.
    """
    raft = leader(1, 2, committed=False)
    replicate(raft, "n2", "n3", up_to=2)
    assert raft.commit_index == 0
    replicate(raft, "n2")
    assert raft.commit_index == 3, "the no-op of its own term, and with it all before"


def test_what_precedes_a_committed_entry_is_committed():
    """With an entry all before it in the leader's log is committed, also what earlier leaders made (section 5.3)."""
    raft = leader(1, 2, 2, 4, committed=False)
    replicate(raft, "n2")
    assert raft.commit_index == 5
    assert [entry.term for entry in raft.take_committed(1000)] == [1, 2, 2, 4, 5]


def test_learners_do_not_commit():
    """What a learner has does not count (thesis 4.2.1)."""
    raft = leader(1, configuration=WITH_LEARNERS)
    entry = propose(raft)
    replicate(raft, "n4", "n5")
    assert raft.commit_index < entry.index
    replicate(raft, "n3")
    assert raft.commit_index == entry.index


def test_a_refusal_commits_nothing():
    """Who refuses entries does not have them (section 5.3)."""
    raft = leader(1)
    entry = propose(raft)
    refuse(raft, "n2", (3, raft.term), 3)
    assert raft.commit_index < entry.index


def test_one_follower_that_answers_often_is_one():
    """A majority is of servers, not of answers (section 5.3)."""
    raft = leader(1, configuration=FIVE)
    entry = propose(raft)
    replicate(raft, "n2", "n2", "n2")
    assert raft.commit_index < entry.index


def test_every_request_tells_the_commit_index():
    """A leader tells in every AppendEntries what is committed, heartbeats included (section 5.3)."""
    raft = leader(1)
    propose(raft)
    replicate(raft, "n2")
    raft.tick(raft.now + HEARTBEAT)
    assert raft.request_for("n2").leader_commit == raft.data_for("n3").leader_commit == raft.commit_index == 3


def test_a_new_commit_index_is_told_soon():
    """Followers learn that an entry is committed without waiting for the next heartbeat (section 5.3)."""
    raft = leader(1)
    raft.tick(raft.now + HEARTBEAT)
    accept(raft, "n2")
    propose(raft)
    accept(raft, "n2", raft.data_for("n2"))
    assert raft.commit_index == 3 and raft.next_request_at("n2") == raft.now + Raft.NOTICE_SECONDS
    raft.tick(raft.now + Raft.NOTICE_SECONDS)
    assert raft.request_for("n2").leader_commit == 3 and raft.request_for("n2") is None


def test_a_follower_applies_what_it_learns_is_committed():
    """Once a follower learns that an entry is committed it applies it, and all before, in order (section 5.3)."""
    raft = follower(1, 1, 1)
    assert raft.take_committed(1000) == ()
    ask(raft, append(prev=(3, 1), commit=2))
    assert [entry.index for entry in raft.take_committed(1000)] == [1, 2]


def test_a_follower_knows_what_it_lacks():
    """It remembers the newest commit index that its leader told, though the entries are still missing here (section 5.3)."""
    raft = follower(1)
    assert raft.role.leader_commit == 0
    ask(raft, append(prev=(7, 1), commit=7))
    ask(raft, append(prev=(1, 1), commit=3))
    assert raft.role.leader_commit == 7 and raft.commit_index == 1


def test_a_new_leader_commits_nothing_by_itself():
    """To be elected commits nothing, not even what a majority is known to have: the first entry of the term does (section 5.4.2)."""
    raft = leader(1, 1, 1, committed=False, applied=1)
    assert raft.commit_index == 1
    replicate(raft, "n2", "n3", up_to=3)
    assert raft.commit_index == 1
    save(raft)
    replicate(raft, "n3")
    assert raft.commit_index == 4
