"""How the log of a leader becomes that of its followers (section 5.3; section 5.5; Figure 2, AppendEntries)."""

import pytest
from one_server import (
    FIVE, HEARTBEAT, accept, answer_votes, append, ask, candidate, entries, follower, heartbeat, leader, propose, refuse, replicate, save,
    server, snapshot, state, terms, timeout,
)

from raftd.config import Settings
from raftd.raft.messages import COMMAND, NOOP, AppendEntries, AppendEntriesReply, Entry, RequestVote

# What a follower does


@pytest.mark.parametrize("prev", [(3, 1), (2, 2), (2, 0), (9, 1)])
def test_append_needs_the_entry_before(prev):
    """An append is refused without an entry at prev_log_index whose term is prev_log_term (Figure 2, AppendEntries, 2)."""
    raft = server(1, 1)
    assert not ask(raft, append(term=2, prev=prev, terms=(2,))).success
    assert terms(raft) == [1, 1] and raft.commit_index == 0


def test_append_that_fits_succeeds():
    """With the entry before, new entries are appended, and the follower says how far it agrees (Figure 2, AppendEntries, 4)."""
    raft = server(1, 1)
    assert ask(raft, append(term=2, prev=(2, 1), terms=(1, 2))) == AppendEntriesReply(2, True, 4)
    assert terms(raft) == [1, 1, 1, 2]


def test_conflict_removes_what_follows():
    """An entry that conflicts with a new one goes, and all that follow it (Figure 2, AppendEntries, 3)."""
    raft = server(1, 2, 2, 2)
    ask(raft, append(term=3, prev=(1, 1), terms=(3,)))
    assert terms(raft) == [1, 3]


def test_conflict_in_the_middle_of_a_request():
    """What agrees stays; the first entry with another term and all after it make way (Figure 2, AppendEntries, 3)."""
    raft = server(1, 1, 2, 2)
    kept = raft.log.entries(1, 2)
    ask(raft, append(term=3, prev=(0, 0), terms=(1, 1, 3, 3)))
    assert terms(raft) == [1, 1, 3, 3] and raft.log.entries(1, 2) == kept


@pytest.mark.parametrize("old", [append(), append(terms=(1,)), append(prev=(1, 1), terms=(1,)), append(prev=(2, 1))])
def test_old_append_removes_nothing(old):
    """Entries go only for a conflict, never because a late or repeated request is shorter (Figure 2, AppendEntries, 3).

    One such request cut acknowledged entries off a follower of the original: writes were lost in 11 of 20 runs.
    """
    raft = server(1, 1, 1)
    reply = ask(raft, old)
    assert reply.success and raft.log.last_index == 3 and not raft.has_unsaved
    assert reply.match_index == old.prev_log_index + len(old.entries), "no more than this leader is known to have"


def test_entries_that_are_here_are_not_appended_again():
    """Only what is not in the log yet is appended, and saved (Figure 2, AppendEntries, 4)."""
    raft = server(1, 1)
    raft.handle(append(term=2, prev=(0, 0), terms=(1, 1, 2)))
    assert terms(raft) == [1, 1, 2] and raft.take_unsaved().entries == raft.log.entries(3, 3)


def test_a_repeated_request_does_no_harm():
    """A follower that had done all, and crashed before it answered, gets the request again, and gives the answer (section 5.5)."""
    raft, request = server(1), append(term=2, prev=(1, 1), terms=(1, 2), commit=2)
    first = ask(raft, request)
    before = state(raft)
    assert ask(raft, request) == first and state(raft) == before


def test_follower_caps_leader_commit():
    """The commit index follows that of the leader, but no further than the last *new* entry (Figure 2, AppendEntries, 5).

    What comes after it in the follower's log may be of another leader.
    """
    raft = server(1, 1, 1)
    ask(raft, append(term=2, prev=(1, 1), commit=3))
    assert raft.commit_index == 1
    ask(raft, append(term=2, prev=(1, 1), terms=(1,), commit=3))
    assert raft.commit_index == 2
    ask(raft, append(term=2, prev=(3, 1), commit=9))
    assert raft.commit_index == 3


def test_follower_commits_no_more_than_the_leader():
    """What the leader has not committed yet the follower does not, although it has it (Figure 2, AppendEntries, 5)."""
    raft = server(1)
    ask(raft, append(prev=(1, 1), terms=(1, 1), commit=2))
    assert raft.commit_index == 2 and raft.log.last_index == 3


def test_a_refused_append_commits_nothing():
    """An append that does not fit tells nothing about what is committed here (Figure 2, AppendEntries, 5)."""
    raft = server(1, 1)
    ask(raft, append(term=2, prev=(2, 2), commit=2))
    assert raft.commit_index == 0


def test_a_committed_entry_is_never_overwritten():
    """A server that would have to replace a committed entry stops: nothing it is told could be right (section 5.4)."""
    raft = server(1, 1)
    ask(raft, append(prev=(2, 1), commit=2))
    with pytest.raises(AssertionError, match="committed"):
        raft.handle(append(term=2, prev=(1, 1), terms=(2,)))


def with_three_committed(*snapshot):
    """n1 with entries up to 5, of which 3 are committed; it follows n2."""
    raft = server(*(1, 2, 2, 2, 2)[sum(snapshot[:1]):], term=3, snapshot=snapshot or (0, 0))
    ask(raft, append(term=3, prev=(3, 2), commit=3))
    return raft


@pytest.mark.parametrize("lie", [
    append(term=3, prev=(3, 1)), append(term=4, leader="n3", prev=(2, 1)), append(term=3, prev=(2, 2), terms=(3,)),
    append(term=9, leader="n3", terms=(1, 2, 3)), append(term=3, leader="n3", prev=(3, 2)),
])
def test_no_leader_contradicts_what_is_committed(lie):
    """Every leader of this term or a later one has all that is committed, and there is one in a term (section 5.4; section 5.2)."""
    assert with_three_committed().contradiction(lie)


@pytest.mark.parametrize("honest", [
    append(term=3, prev=(3, 2)), append(term=3), append(term=3, prev=(2, 2), terms=(2, 3)), append(term=4, leader="n3", prev=(4, 3)),
    append(term=4, leader="n3", prev=(1, 1), terms=(2, 2, 4)), append(term=2, leader="n3", prev=(3, 1)), append(term=3, prev=(9, 3)),
    RequestVote(3, "n3", 1, 1), snapshot(index=2, term=2, leader_term=4),
])
@pytest.mark.parametrize("compacted", [(), (1, 1), (3, 2)])
def test_what_late_and_new_leaders_say_is_no_contradiction(honest, compacted):
    """Requests that are late, conflict after what is committed, or are about what is compacted, are all in order (section 5.3)."""
    assert with_three_committed(*compacted).contradiction(honest) is None


def test_a_heartbeat_confirms_what_it_knows_to_agree():
    """Of a longer log only what has been compared is said to be the leader's; the rest may be of another (section 5.3)."""
    raft = server(1, 2, 2)
    assert ask(raft, append(term=3, prev=(1, 1))) == AppendEntriesReply(3, True, 1)
    assert ask(raft, append(term=3, prev=(2, 2))) == AppendEntriesReply(3, True, 2)
    assert ask(raft, append(term=3, prev=(1, 1))) == AppendEntriesReply(3, True, 2), "the same leader's log, compared before"


def test_what_agreed_with_one_leader_is_not_said_to_another():
    """How far the log is that of the leader is forgotten with the leader (section 5.3)."""
    raft = server(1)
    ask(raft, append(prev=(1, 1), terms=(1, 1)))
    assert ask(raft, append(term=2, leader="n3", prev=(1, 1))) == AppendEntriesReply(2, True, 1)


@pytest.mark.parametrize(("log", "prev", "hint"), [
    ((1, 1), (5, 1), (3, 0)), ((1, 2, 2, 2), (4, 3), (2, 2)), ((1, 2, 2, 3), (4, 2), (4, 3)), ((2, 2), (2, 3), (1, 2)),
])
def test_a_refusal_says_where_the_conflicting_term_begins(log, prev, hint):
    """A follower that refuses names the term of the conflicting entry and the first index it has of that term (section 5.3)."""
    reply = ask(server(*log), append(term=4, prev=prev))
    assert (reply.success, reply.match_index) == (False, 0) and (reply.conflict_index, reply.conflict_term) == hint


def test_what_is_compacted_matches():
    """What a server has compacted was committed, so every later leader has it: it need not be compared (section 7)."""
    raft = server(4, snapshot=(5, 3))
    assert ask(raft, append(term=4, prev=(3, 2), terms=(3, 3, 4, 4))) == AppendEntriesReply(4, True, 7)
    assert terms(raft) == [4, 4]


# What a leader does


def test_an_entry_holds_the_command_and_the_leaders_term():
    """A command becomes an entry with the term in which the leader received it, at the next index (section 5.3; Figure 2, leaders, 2)."""
    raft = leader(1)
    entry = raft.propose(b"color=red")
    assert entry == Entry(3, raft.term, COMMAND, b"color=red") and raft.log.entries(3, 3) == (entry,)


def test_leader_never_overwrites_its_log():
    """A leader only appends to its own log: it neither replaces nor removes entries (section 5.3; Figure 3)."""
    raft = leader(1, 1)
    held = raft.log.entries(1, 3)
    raft.propose(b"x")
    ask(raft, RequestVote(raft.term, "n3", 9, 9))
    ask(raft, append(term=raft.term - 1, terms=(9, 9)))
    refuse(raft, "n2", prev=(3, raft.term), conflict_index=1)
    assert raft.log.entries(1, 3) == held and raft.log.last_index == 4


def test_next_index_begins_after_the_leaders_last_entry():
    """A new leader takes it that each follower has all of its log, and knows of none of it (Figure 2, state on leaders)."""
    raft = leader(1, 1, 1, committed=False)
    assert {(progress.next_index, progress.match_index) for progress in raft.role.progress.values()} == {(4, 0)}
    heartbeats = [raft.request_for(peer) for peer in ("n2", "n3")]
    assert {(request.prev_log_index, request.prev_log_term) for request in heartbeats} == {(3, 1)}


def test_entries_are_sent_from_next_index_on():
    """If the log reaches to next_index, entries are sent from there on, to each follower (Figure 2, leaders, 3)."""
    raft = leader(1, committed=False)
    raft.propose(b"x")
    for peer in ("n2", "n3"):
        request = raft.data_for(peer)
        assert request == AppendEntries(raft.term, "n1", 1, 1, raft.log.entries(2, 3), 0, request.round)
        assert [entry.kind for entry in request.entries] == [NOOP, COMMAND]


def test_success_moves_next_and_match_index():
    """When a follower has them, next_index and match_index go on (Figure 2, leaders, 3)."""
    raft = leader(1, committed=False)
    accept(raft, "n2", raft.data_for("n2"))
    progress = raft.role.progress["n2"]
    assert (progress.match_index, progress.next_index) == (2, 3) and not raft.has_data_for("n2")


def test_a_success_that_is_not_durable_moves_next_index_only():
    """What is on its way to a follower's disk need not be sent again, and does not count yet (section 5.3)."""
    raft = leader(1, committed=False)
    request = raft.data_for("n2")
    raft.handle_reply("n2", request, AppendEntriesReply(raft.term, True, 1))
    progress = raft.role.progress["n2"]
    assert (progress.match_index, progress.next_index) == (1, 3)
    refuse(raft, "n2", prev=(2, raft.term), conflict_index=2)
    assert progress.next_index == 2, "it has crashed before they were saved, and gets them again"


def test_an_answer_that_tells_of_more_moves_both():
    """A follower may say to a heartbeat that it has more than that asks about: this is not sent again (section 5.3)."""
    raft = leader(1, 1, 1, committed=False)
    refuse(raft, "n3", (3, 1), 2)
    raft.handle_reply("n3", raft.request_for("n3"), AppendEntriesReply(raft.term, True, 3))
    progress = raft.role.progress["n3"]
    assert (progress.match_index, progress.next_index) == (3, 4)


def test_a_refusal_moves_next_index_back():
    """After a refusal next_index decreases, and the leader tries again (Figure 2, leaders, 3)."""
    raft = leader(1, 1, 1, committed=False)
    refuse(raft, "n2", prev=(3, 1), conflict_index=2)
    assert raft.data_for("n2").prev_log_index == 1


@pytest.mark.parametrize(("hint", "next_index"), [
    ((4, 3), 3), ((2, 3), 2), ((2, 4), 5), ((6, 0), 6), ((12, 0), 9), ((9, 6), 9), ((1, 1), 3),
])
def test_leader_backs_off_by_whole_terms(hint, next_index):
    """After a refusal the leader goes back past all entries of the conflicting term at once (section 5.3).

    A term that it has none of: after its last entry of an older one. One that it has: after its last entry of that one. A short
    log: to its end. Always back, at least by one.
    """
    raft = leader(1, 1, 4, 4, 5, 5, 6, 6, 6, committed=False)
    refuse(raft, "n3", (9, 6), *hint)
    assert raft.role.progress["n3"].next_index == next_index


def test_backing_off_ends_at_the_first_entry():
    """A follower that has nothing in common with the leader gets the whole log (section 5.3)."""
    raft = leader(2, 2, committed=False)
    refuse(raft, "n3", (2, 2), 1, 1)
    request = raft.data_for("n3")
    assert (request.prev_log_index, request.prev_log_term, len(request.entries)) == (0, 0, 3)


THEIRS = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)


@pytest.mark.parametrize("mine", [
    pytest.param((1, 1, 1, 4, 4, 5, 5, 6, 6), id="a"), pytest.param((1, 1, 1, 4), id="b"), pytest.param((*THEIRS, 6), id="c"),
    pytest.param((*THEIRS, 7, 7), id="d"), pytest.param((1, 1, 1, 4, 4, 4, 4), id="e"),
    pytest.param((1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3), id="f"), pytest.param((), id="empty"),
])
def test_followers_log_becomes_the_leaders(mine):
    """Whatever its log was, a follower ends with the leader's, after one refusal for each term (section 5.3; Figure 7)."""
    lead, raft = leader(*THEIRS, term=7, committed=False), server(*mine, term=7)
    for _ in range(4):
        if request := lead.data_for("n3"):
            lead.handle_reply("n3", request, ask(raft, request))
    assert raft.log.entries(1, raft.log.last_index) == lead.log.entries(1, lead.log.last_index)
    assert lead.match_index("n3") == lead.log.last_index


def test_what_is_not_answered_is_sent_again():
    """A leader repeats a request until it is answered, for ever, also after the entry is committed (section 5.3; section 5.5)."""
    raft = leader(1)
    propose(raft)
    replicate(raft, "n2")
    assert raft.commit_index == 3
    for _ in range(20):
        request = raft.data_for("n3")
        assert [entry.index for entry in request.entries] == [2, 3]
        raft.handle_reply("n3", request, None)
        heartbeat(raft, "n2", "n3")
    accept(raft, "n3", raft.data_for("n3"))
    assert not raft.has_data_for("n3")


def test_who_does_not_answer_gets_entries_when_it_answers_again():
    """A peer that is down is asked in small requests, and gets entries once it has answered one (section 5.5)."""
    raft = leader(1)
    raft.handle_reply("n3", raft.data_for("n3"), None)
    assert not raft.has_data_for("n3") and not raft.has_request_for("n3")
    assert raft.next_request_at("n3") == raft.now + HEARTBEAT
    heartbeat(raft, "n3")
    assert raft.has_data_for("n3")


def test_entries_of_one_request_are_limited():
    """One request carries at most max_append_bytes of commands, but at least one entry, however large (section 5.3)."""
    raft = leader(1, settings=Settings(max_append_bytes=10))
    for command in (b"x" * 6, b"y" * 6, b"z" * 60):
        raft.propose(command)
    sent = []
    while raft.has_data_for("n2") and len(sent) < 5:
        request = raft.data_for("n2")
        sent.append([entry.command[:1] for entry in request.entries])
        accept(raft, "n2", request)
    assert sent == [[b"x"], [b"y"], [b"z"]]


def test_entries_keep_the_term_they_were_made_in():
    """A later leader sends older entries as they are: an entry keeps index, term and command for ever (section 5.4.2)."""
    raft = leader(1, 3, 3, term=7, committed=False)
    refuse(raft, "n2", (3, 3), 1)
    assert raft.data_for("n2").entries[:3] == entries(1, 3, 3) and raft.term == 8


# Answers that are late, or are to something else


def test_a_late_success_moves_nothing_back():
    """What a follower has confirmed stays confirmed: match_index only rises (Figure 2, state on leaders)."""
    raft = leader(1, 1)
    replicate(raft, "n3")
    progress = raft.role.progress["n3"]
    raft.handle_reply("n3", append(term=raft.term, leader="n1", prev=(1, 1)), AppendEntriesReply(raft.term, True, 1))
    assert (progress.match_index, progress.next_index) == (3, 4)


def test_a_late_refusal_does_not_move_next_index_below_match_index():
    """What a follower has confirmed is not sent to it again (Figure 2, state on leaders)."""
    raft = leader(1, 1, 1)
    replicate(raft, "n3")
    refuse(raft, "n3", (raft.log.last_index, raft.term), 1)
    progress = raft.role.progress["n3"]
    assert progress.next_index == progress.match_index + 1 == raft.log.last_index + 1


def test_a_refusal_of_what_has_been_settled_since_changes_nothing():
    """A refusal counts only for the request that next_index stands for now (section 5.3)."""
    raft = leader(1, 1, 1, 1, committed=False)
    refuse(raft, "n3", (4, 1), 3)
    assert raft.role.progress["n3"].next_index == 3
    refuse(raft, "n3", (4, 1), 1)
    assert raft.role.progress["n3"].next_index == 3


def test_an_answer_to_an_earlier_term_counts_for_nothing():
    """An answer to a request of an earlier term of this leader says nothing now: not of the log, nor of the disk (section 5.3)."""
    raft = leader(1)
    entry = propose(raft)
    earlier = append(term=raft.term - 1, leader="n1", prev=(3, 1))
    raft.handle_reply("n2", earlier, AppendEntriesReply(raft.term - 1, True, 3))
    raft.handle_reply("n2", earlier, AppendEntriesReply(raft.term, True, 3))
    assert raft.commit_index < entry.index and raft.role.progress["n2"].match_index == 2


def test_an_answer_of_an_older_term_counts_for_nothing():
    """An answer that was given in an older term is not one to this leader (section 5.1)."""
    raft = leader(1)
    entry = propose(raft)
    request = raft.data_for("n2")
    raft.handle_reply("n2", request, AppendEntriesReply(raft.term - 1, True, entry.index))
    assert raft.commit_index < entry.index


def test_an_answer_of_a_stranger_counts_for_nothing():
    """Who is no member, or no longer, adds nothing to a majority (section 5.3)."""
    raft = leader(1, configuration=FIVE)
    entry = propose(raft)
    request = append(term=raft.term, leader="n1", prev=(3, raft.term))
    for stranger in ("n6", "n7"):
        raft.handle_reply(stranger, request, AppendEntriesReply(raft.term, True, 3))
    assert raft.commit_index < entry.index


def test_answers_to_a_follower_or_candidate_change_nothing():
    """Who leads no longer, or not yet, counts no answers to entries (section 5.3)."""
    for raft in (follower(1), candidate(1)):
        before = state(raft)
        raft.handle_reply("n2", append(term=raft.term, leader="n1", prev=(1, 1)), AppendEntriesReply(raft.term, True, 1))
        assert state(raft) == before


def test_a_second_leadership_counts_from_the_beginning():
    """What was confirmed in an earlier leadership may be gone: it is asked for again (Figure 2, state on leaders)."""
    raft = leader(1)
    propose(raft)
    late = raft.data_for("n2")
    ask(raft, append(term=9, prev=(2, 2)))
    timeout(raft)
    answer_votes(raft, "n2")
    save(raft)
    answer_votes(raft, "n2")
    save(raft)
    raft.handle_reply("n2", late, AppendEntriesReply(raft.term, True, 3))
    assert raft.role.progress["n2"].match_index == 0 and raft.commit_index == 2
