"""Compaction, and followers that need what is compacted (section 7; thesis chapter 5). What a snapshot holds is in test_kv_store.py."""

from dataclasses import replace

import pytest
from one_server import (
    ELECTION, FIVE, HEARTBEAT, THREE, accept, append, ask, configuration_entry, entries, follower, heartbeat, leader, members,
    propose, refuse, replicate, save, server, snapshot, state, terms,
)

from raftd.raft.configuration import NOBODY, Configurations
from raftd.raft.core import Base, Raft
from raftd.raft.log import ENTRY_BYTES, Log
from raftd.raft.messages import AppendEntries, AppendEntriesReply, InstallSnapshot, InstallSnapshotReply

# Compaction


def test_compaction_keeps_what_is_not_surely_on_disk():
    """The log is discarded only up to what is applied and durable in the state machine (section 7; thesis 5.2)."""
    raft = server(1, 1, 1, 1, 1, 1, applied=5)
    raft.compact(4, 0, 1000)
    save(raft)
    assert raft.log.snapshot_index == 4
    raft.compact(6, 0, 1000)
    save(raft)
    assert raft.log.snapshot_index == 5, "no more than is applied"


def test_only_committed_entries_are_compacted():
    """A snapshot stands for committed entries only; what follows may still be replaced (section 7)."""
    raft = follower(1, 1, 1, 1)
    ask(raft, append(prev=(4, 1), commit=2))
    raft.applied(2)
    raft.compact(4, 0, 1000)
    save(raft)
    assert raft.log.first_index == 3
    ask(raft, append(term=2, leader="n3", prev=(2, 1), terms=(2,)))
    assert terms(raft) == [2]


def test_compaction_leaves_a_tail():
    """Some entries stay, so that a follower that is a little slow does not need a snapshot (thesis 5)."""
    raft = server(1, 1, 1, 1, 1, 1, applied=6)
    raft.compact(6, 4, 1000)
    save(raft)
    assert raft.log.first_index == 3
    raft.compact(6, 4, 2)
    save(raft)
    assert raft.log.first_index == 5, "the smaller of the two limits"


def test_compaction_keeps_index_and_term_of_the_last_entry():
    """The term of the last entry that is gone is kept, to compare with what follows it (section 7)."""
    raft = server(1, 2, 3, applied=3)
    raft.compact(3, 0, 1000)
    assert raft.take_unsaved().base[:2] == (3, 3) and raft.log.last_term == 3
    other = server(4, snapshot=(3, 3))
    assert not ask(other, append(term=5, prev=(3, 2), terms=(5,))).success
    assert ask(other, append(term=5, prev=(3, 3), terms=(5,))).success


def test_compaction_keeps_the_configuration():
    """The newest configuration of what is gone is kept with it (section 7)."""
    two = members("n1", "n2")
    log = Log(0, 0, [*entries(1), configuration_entry(2, 1, two), *entries(1, first=3), configuration_entry(4, 1, members("n1"))])
    raft = server(log=log, applied=3)
    raft.compact(3, 0, 1000)
    assert raft.take_unsaved().base == Base(3, 1, two) and raft.configuration == members("n1")


def test_a_compaction_and_new_entries_go_to_disk_together():
    """Where the log begins, and what follows, is one write: no crash leaves a gap between them (section 7)."""
    raft = server(1, 1, 1, applied=2)
    raft.compact(2, 0, 1000)
    raft.handle(append(prev=(3, 1), terms=(1,)))
    unsaved = raft.take_unsaved()
    assert (unsaved.base[:2], unsaved.log_from, len(unsaved.entries)) == ((2, 1), 4, 1)
    raft.saved(unsaved)
    assert not raft.has_unsaved and (raft.log.first_index, raft.saved_index) == (3, 4)


# A leader that sends one


def behind(lacks=5):
    """A leader whose log begins at 11, and n3, which has all but what comes from *lacks* on."""
    raft = leader(3, snapshot=(10, 2))
    refuse(raft, "n3", (11, 3), lacks)
    return raft


def test_who_stands_where_it_knew_of_no_members_sends_no_snapshot():
    """What a snapshot says of the members is that of its last entry (section 7): of a server that had not joined yet, nothing.

    Seed 1700249 of bin/simulate: a member that installed it did not know any more that it was one.
    """
    raft = behind()
    raft.configurations = Configurations(10, NOBODY)
    raft.configurations.append(12, members("n1", "n2", "n3"))
    assert raft.last_applied < 12 and not raft.needs_snapshot("n3")
    raft.commit_index = 12
    raft.applied(11)
    assert not raft.needs_snapshot("n3")
    raft.applied(12)
    assert raft.needs_snapshot("n3")


def test_snapshot_is_sent_when_entries_are_compacted():
    """The leader sends a snapshot when it has discarded the next entry that a follower needs, and entries after it (section 7)."""
    raft = behind()
    assert raft.needs_snapshot("n3") and raft.data_for("n3") is None
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    request = raft.data_for("n3")
    assert request == InstallSnapshot(raft.term, "n1", 11, 3, 10, b"sum", 0)
    assert raft.is_sending_snapshot_to("n3") and not raft.needs_snapshot("n3"), "one is enough"
    raft.handle_reply("n3", request, InstallSnapshotReply(raft.term, 10, True))
    assert raft.match_index("n3") == 11
    assert raft.data_for("n3") == AppendEntries(raft.term, "n1", 11, 3, raft.log.entries(12, 12), 12, 0, 11)


def test_no_snapshot_for_who_needs_none():
    """Who lacks only entries that are still there gets these, and who lacks a single one that is not a snapshot (section 7)."""
    raft = behind(lacks=10)
    assert raft.needs_snapshot("n3") and raft.data_for("n3") is None
    raft = behind(lacks=11)
    assert not raft.needs_snapshot("n3") and raft.data_for("n3").prev_log_index == 10
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    assert not raft.is_sending_snapshot_to("n3")


def test_a_snapshot_that_the_log_does_not_lead_on_from_is_of_no_use():
    """After such a snapshot the follower would still lack entries that are gone (section 7)."""
    raft = behind()
    raft.snapshot_offered("n3", 9, 2, 10, b"sum")
    assert raft.needs_snapshot("n3") and raft.data_for("n3") is None


def test_chunks_are_sent_in_order():
    """The leader sends the chunk that the follower wants next (section 7; Figure 13, 3)."""
    raft = behind()
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    for next_offset in (4, 8, 0, 4):
        raft.handle_reply("n3", raft.data_for("n3"), InstallSnapshotReply(raft.term, next_offset, False))
        assert raft.data_for("n3").offset == next_offset, "also when it has to begin again"


def test_a_chunk_that_is_not_answered_is_sent_again():
    """A snapshot goes on where it stopped, when the follower answers again (section 7; section 5.5)."""
    raft = behind()
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    raft.handle_reply("n3", raft.data_for("n3"), InstallSnapshotReply(raft.term, 4, False))
    raft.handle_reply("n3", raft.data_for("n3"), None)
    assert not raft.has_data_for("n3")
    heartbeat(raft, "n3")
    assert raft.data_for("n3").offset == 4


def test_no_snapshot_is_made_for_who_does_not_answer():
    """A copy of all the data is made when there is somebody to take it (section 5.5)."""
    raft = behind()
    raft.handle_reply("n3", raft.request_for("n3"), None)
    assert not raft.needs_snapshot("n3")
    heartbeat(raft, "n3")
    assert raft.needs_snapshot("n3")


def test_answers_to_another_snapshot_do_not_count():
    """An answer to a snapshot that has made way for a newer one says nothing of the newer (section 7)."""
    raft = behind()
    raft.snapshot_offered("n3", 11, 3, 10, b"old")
    late = raft.data_for("n3")
    raft.snapshot_withdrawn("n3")
    raft.snapshot_offered("n3", 12, 4, 10, b"new")
    raft.handle_reply("n3", late, InstallSnapshotReply(raft.term, 8, False))
    assert raft.data_for("n3").offset == 0
    raft.handle_reply("n3", late, InstallSnapshotReply(raft.term, 10, True))
    assert raft.data_for("n3").last_included_index == 12 and raft.match_index("n3") == 0


def test_a_snapshot_that_was_withdrawn_is_made_anew():
    """When its copy is gone another is needed; late answers to it change nothing (section 7)."""
    raft = behind()
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    late = raft.data_for("n3")
    raft.snapshot_withdrawn("n3")
    raft.handle_reply("n3", late, InstallSnapshotReply(raft.term, 10, True))
    assert raft.needs_snapshot("n3") and raft.data_for("n3") is None


@pytest.mark.parametrize("term", [-1, 1])
def test_an_answer_of_another_term_does_not_count(term):
    """An answer of an older term is not for this leader; one of a newer deposes it (section 5.1)."""
    raft = behind()
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    raft.handle_reply("n3", raft.data_for("n3"), InstallSnapshotReply(raft.term + term, 10, True))
    assert raft.match_index("n3") == 0 and raft.is_leader == (term < 0)


def test_another_leaders_snapshot_does_not_count():
    """An answer to what this server sent in an earlier term of its own is none to what it sends now (section 5.1)."""
    raft = behind()
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    earlier = InstallSnapshot(raft.term - 1, "n1", 11, 3, 10, b"sum", 0)
    raft.handle_reply("n3", earlier, InstallSnapshotReply(raft.term, 10, True))
    assert raft.match_index("n3") == 0 and raft.is_sending_snapshot_to("n3")


def test_an_installed_snapshot_counts_like_entries():
    """What a snapshot stands for is on the follower's disk: with the entries after it, it makes a majority (section 7)."""
    raft = leader(3, snapshot=(10, 2), committed=False)
    refuse(raft, "n3", (11, 3), 5)
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    raft.handle_reply("n3", raft.data_for("n3"), InstallSnapshotReply(raft.term, 10, True))
    assert raft.commit_index == 10, "nothing of the own term yet"
    accept(raft, "n3", raft.data_for("n3"))
    assert raft.commit_index == 12


def test_an_installed_snapshot_takes_nothing_back():
    """The follower may have confirmed more meanwhile than the snapshot stands for (Figure 2, state on leaders)."""
    raft = behind()
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    replicate(raft, "n3")
    raft.handle_reply("n3", raft.data_for("n3"), InstallSnapshotReply(raft.term, 10, True))
    assert raft.match_index("n3") == 12 and not raft.has_data_for("n3")


def test_chunks_keep_the_leader_in_office():
    """A follower that answers to chunks hears this leader (thesis 6.2)."""
    raft = behind()
    raft.snapshot_offered("n3", 11, 3, 10, b"sum")
    for offset in range(8):
        raft.tick(raft.now + HEARTBEAT)
        raft.handle_reply("n3", raft.data_for("n3"), InstallSnapshotReply(raft.term, offset, False))
    assert raft.is_leader


def test_a_peer_that_waits_for_a_snapshot_hears_heartbeats():
    """A follower that is sent a snapshot still hears that the leader lives, and confirms reads (section 5.2; thesis 6.4)."""
    raft, other = behind(), server(1, 1)
    read = raft.read_index()
    request = raft.request_for("n3")
    assert request.entries == () and (request.prev_log_index, request.prev_log_term) == (0, 0)
    raft.handle_reply("n3", request, ask(other, request))
    assert read.ready and raft.match_index("n3") == 0 and raft.needs_snapshot("n3") and other.commit_index == 0


def sending(patience=Raft.SNAPSHOT_PATIENCE_SECONDS):
    """A leader at 21 that has compacted up to 5, and sends n3 a snapshot that stands at 12."""
    raft = leader(*[1] * 20)
    raft.applied(raft.commit_index)
    raft.log.compact(5)
    raft.configurations.compact(5)
    raft.SNAPSHOT_PATIENCE_SECONDS = patience
    refuse(raft, "n3", (20, 1), 2)
    raft.snapshot_offered("n3", 12, 1, 10, b"sum")
    return raft


def test_compaction_keeps_what_a_snapshot_under_way_needs():
    """Entries after a snapshot that is being sent are kept, or its receiver would need another one (thesis 5)."""
    raft = sending()
    raft.compact(21, 1, 1 << 20)
    save(raft)
    assert raft.log.first_index == 13


def test_compaction_keeps_what_is_missing_until_it_has_arrived():
    """Or who has installed a snapshot while clients write would need another one, again and again (thesis 5)."""
    raft = sending()
    raft.handle_reply("n3", raft.data_for("n3"), InstallSnapshotReply(raft.term, 10, True))
    raft.compact(21, 1, 1 << 20)
    save(raft)
    assert raft.log.first_index == 13
    raft.tick(raft.now + HEARTBEAT)
    request = raft.data_for("n3")
    some = replace(request, entries=request.entries[:4])
    raft.handle_reply("n3", some, AppendEntriesReply(raft.term, True, match_index=16))
    raft.compact(21, 1, 1 << 20)
    save(raft)
    assert raft.log.first_index == 17
    raft.handle_reply("n3", raft.data_for("n3"), AppendEntriesReply(raft.term, True, match_index=21))
    raft.compact(21, 1, 1 << 20)
    save(raft)
    assert raft.log.first_index == 21


def test_compaction_keeps_it_by_bytes_not_by_entries():
    """A large state takes long, and clients write small things by the thousand meanwhile (thesis 5)."""
    for count, first in ((9, 13), (4, 18)):
        raft = sending()
        raft.compact(21, 0, count * (ENTRY_BYTES + 10) // 16)
        save(raft)
        assert raft.log.first_index == first


def test_compaction_keeps_what_a_snapshot_that_is_being_made_needs():
    """From the moment that it is begun (thesis 5)."""
    raft = sending()
    raft.snapshot_withdrawn("n3")
    raft.reserve_snapshot("n3")
    for _ in range(3):
        propose(raft)
    replicate(raft, "n2")
    raft.tick(raft.now + HEARTBEAT)
    raft.handle_reply("n3", raft.request_for("n3"), AppendEntriesReply(raft.term, True))
    raft.applied(24)
    raft.compact(24, 1, 1 << 20)
    save(raft)
    assert raft.log.first_index == 22


def test_compaction_waits_for_the_oldest_of_two_snapshots():
    """Each receiver needs what comes after its own (thesis 5)."""
    raft = leader(*[1] * 20, configuration=FIVE)
    raft.applied(21)
    raft.log.compact(5)
    for peer, index in (("n4", 12), ("n5", 17)):
        refuse(raft, peer, (20, 1), 2)
        raft.snapshot_offered(peer, index, 1, 10, b"sum")
    raft.compact(21, 1, 1 << 20)
    save(raft)
    assert raft.log.first_index == 13


def test_compaction_leaves_the_tail_though_a_newer_snapshot_is_under_way():
    """A snapshot that needs less than the tail does not make the tail shorter (thesis 5)."""
    raft = sending()
    raft.snapshot_withdrawn("n3")
    raft.snapshot_offered("n3", 21, 1, 10, b"sum")
    raft.compact(21, 4, 1 << 20)
    save(raft)
    assert raft.log.first_index == 18


def test_compaction_waits_for_nobody_who_needs_no_snapshot():
    """Nothing is kept for who gets entries, nor by a server that does not lead (thesis 5)."""
    raft = leader(*[1] * 20)
    raft.applied(10)
    raft.reserve_snapshot("n3")
    raft.applied(21)
    raft.compact(21, 1, 1 << 20)
    save(raft)
    other = server(1)
    other.reserve_snapshot("n3")
    other.snapshot_withdrawn("n3")
    raft.snapshot_withdrawn("n9")
    assert not raft.is_sending_snapshot_to("n9")
    assert raft.log.first_index == 21 and not other.is_sending_snapshot_to("n3")


def test_compaction_does_not_wait_for_ever():
    """A receiver that is silent for long, or that the log has grown past by far, is not waited for (thesis 5)."""
    raft = sending(patience=ELECTION)
    for _ in range(3):
        heartbeat(raft, "n2")
    assert raft.is_sending_snapshot_to("n3")
    for _ in range(4):
        heartbeat(raft, "n2")
    assert not raft.is_sending_snapshot_to("n3")
    raft.compact(21, 1, 1 << 20)
    save(raft)
    assert raft.log.first_index == 21
    grown = sending()
    grown.compact(21, 0, 0)
    save(grown)
    assert grown.log.first_index == 22, "sixteen times nothing"


# A follower that gets one


def test_chunks_are_answered_with_what_comes_next():
    """A reply to a chunk says from where on the snapshot is wanted (section 7; Figure 13, 4)."""
    raft = server(1)
    answer = raft.handle(snapshot(data=b"abcd"))
    assert answer.reply is None and answer.make_reply is None
    raft.chunk_stored(answer, 4, installed=False)
    assert answer.reply == InstallSnapshotReply(1, 4, False)


def test_an_older_term_is_answered_at_once():
    """A chunk of a leader of an older term is not stored (Figure 13, 1)."""
    raft = server(1, term=3)
    answer = raft.handle(snapshot(leader_term=2))
    assert answer.reply == InstallSnapshotReply(3, 0, False) and raft.leader_id is None


def test_snapshot_replaces_a_log_that_does_not_contain_it():
    """A log that does not lead up to the snapshot is discarded, with its conflicting tail (section 7; Figure 13, 7).

    Systems that kept the tail had entries there that nobody had committed.
    """
    raft = server(1, 1, 1, 1, 1, 1, 1)
    raft.snapshot_installed(5, 2, members("n1", "n2"))
    assert (raft.log.snapshot_index, raft.log.snapshot_term, raft.log.last_index) == (5, 2, 5)
    assert raft.configuration.voters == ["n1", "n2"]
    assert (raft.commit_index, raft.last_applied, raft.saved_index) == (5, 5, 5)
    unsaved = raft.take_unsaved()
    assert unsaved.base[:2] == (5, 2) and unsaved.log_from == 6 and unsaved.entries == ()


def test_snapshot_replaces_a_shorter_log():
    """Usually the snapshot holds what the log does not: all of it is superseded (section 7)."""
    raft = server(1, 1)
    raft.snapshot_installed(5, 1, THREE)
    assert (raft.log.first_index, raft.log.last_index, raft.log.last_term) == (6, 5, 1)
    assert ask(raft, append(prev=(5, 1), terms=(1,))) == AppendEntriesReply(1, True, 6)


def test_snapshot_keeps_the_entries_after_it():
    """If the log has the last included entry, what follows it is kept (section 7; Figure 13, 6)."""
    raft = server(1, 1, 1, 1)
    raft.snapshot_installed(2, 1, THREE)
    assert (raft.log.snapshot_index, raft.log.last_index, raft.saved_index) == (2, 4, 4)
    assert not raft.take_unsaved().entries, "they are on disk already"


def test_entries_after_the_snapshot_that_are_not_saved_are_saved():
    """What follows the snapshot in memory only, must still go to disk (Figure 2, persistent state)."""
    raft = server(1)
    raft.handle(append(prev=(1, 1), terms=(1, 1, 1)))
    raft.snapshot_installed(2, 1, THREE)
    unsaved = raft.take_unsaved()
    assert unsaved.base[:2] == (2, 1) and unsaved.log_from == 3 and raft.saved_index == 2
    raft.saved(unsaved)
    assert raft.saved_index == 4


def test_the_configuration_is_that_of_the_snapshot():
    """With the log a configuration in it goes, for the one that the snapshot holds (section 7; Figure 13, 8)."""
    raft = server(log=Log(0, 0, [*entries(1, 1), configuration_entry(3, 1, members("n1"))]))
    assert raft.configuration == members("n1")
    raft.snapshot_installed(5, 2, THREE)
    assert raft.configuration == THREE and raft.take_unsaved().base == Base(5, 2, THREE)


def test_a_configuration_after_the_snapshot_stays():
    """What follows the snapshot is kept with all that it says (section 7)."""
    raft = server(log=Log(0, 0, [*entries(1, 1, 1), configuration_entry(4, 1, members("n1", "n2"))]))
    raft.snapshot_installed(2, 1, THREE)
    assert raft.configuration == members("n1", "n2") and raft.base.configuration == THREE


def test_old_snapshot_changes_nothing():
    """A snapshot that stands for less than the state is ignored, and answered as installed (section 7)."""
    raft = server(1, 1, 1, applied=3)
    before = state(raft)
    assert ask(raft, snapshot(index=2)).installed
    raft.snapshot_installed(2, 1, THREE)
    assert state(raft) == before


def test_a_snapshot_that_comes_twice_changes_nothing():
    """A repeated snapshot does not take back what came after the first (section 7)."""
    raft = server(1)
    raft.snapshot_installed(5, 2, THREE)
    ask(raft, append(term=2, prev=(5, 2), terms=(2, 2), commit=7))
    raft.applied(7)
    for index in (5, 7):
        raft.snapshot_installed(index, 2, THREE)
    assert (raft.last_applied, raft.log.last_index, raft.commit_index, raft.log.snapshot_index) == (7, 7, 7, 5)


def test_a_snapshot_takes_no_commit_back():
    """More may be committed here than the snapshot stands for, though it is not applied yet (Figure 2, volatile state)."""
    raft = server(1, 1, 1, 1)
    ask(raft, append(prev=(4, 1), commit=4))
    raft.snapshot_installed(2, 1, THREE)
    assert (raft.commit_index, raft.last_applied) == (4, 2)


def test_what_is_committed_already_needs_no_snapshot():
    """What is committed here arrives by the log, and is applied from there (section 7)."""
    raft = server(1, 1, 1)
    ask(raft, append(prev=(3, 1), commit=3))
    assert ask(raft, snapshot(index=3)) == InstallSnapshotReply(1, 10, True) and raft.last_applied == 0


def test_a_snapshot_is_not_confirmed_by_what_is_only_in_memory():
    """A snapshot counts as installed when the log on disk begins after it (Figure 2, persistent state)."""
    raft = server(1)
    answer = raft.handle(snapshot(data=b"0123456789"))
    assert answer.make_reply is None
    raft.chunk_stored(answer, 10, installed=True)
    assert answer.reply is None, "the log does not reach so far"
    raft.snapshot_installed(5, 1, THREE)
    save(raft)
    assert answer.reply == InstallSnapshotReply(1, 10, True)


def test_entries_after_an_installed_snapshot_are_applied_from_there():
    """The state machine goes on after the last included entry (section 7)."""
    raft = server(1)
    raft.snapshot_installed(5, 2, THREE)
    ask(raft, append(term=2, prev=(5, 2), terms=(2,), commit=6))
    assert [entry.index for entry in raft.take_committed(1000)] == [6]
