"""The in-memory tail of the log: matching, merging, compaction, and the hints that find a common point fast."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftd.raft.log import ENTRY_BYTES, Log
from raftd.raft.messages import COMMAND, Entry


def entries(*terms, first=1, command=b"x"):
    return [Entry(index, term, COMMAND, command) for index, term in enumerate(terms, first)]


def log(*terms, snapshot=(0, 0)):
    return Log(*snapshot, entries(*terms, first=snapshot[0] + 1))


def terms(some_log):
    return [entry.term for entry in some_log.entries(some_log.first_index, some_log.last_index)]


def test_an_empty_log_ends_where_its_snapshot_does():
    assert (log().last_index, log().last_term, log().first_index) == (0, 0, 1)
    later = log(snapshot=(7, 3))
    assert (later.last_index, later.last_term, later.first_index) == (7, 3, 8)


def test_term_at_knows_the_snapshot_and_the_entries_and_nothing_else():
    some = log(3, 3, 4, snapshot=(7, 2))
    assert [some.term_at(index) for index in (6, 7, 8, 10, 11)] == [None, 2, 3, 4, None]


def test_a_gap_after_the_snapshot_is_refused():
    with pytest.raises(AssertionError):
        Log(3, 1, entries(1, first=5))


def test_append_takes_only_the_next_index_and_no_older_term():
    some = log(1, 2)
    with pytest.raises(AssertionError):
        some.append(Entry(4, 2, COMMAND, b""))
    with pytest.raises(AssertionError):
        some.append(Entry(3, 1, COMMAND, b""))
    some.append(Entry(3, 2, COMMAND, b""))
    assert terms(some) == [1, 2, 2]


def test_up_to_date_compares_the_term_before_the_index():
    """The original compared index or term, and stayed without a leader."""
    some = log(1, 2, 2)
    assert some.is_up_to_date(1, 3)
    assert not some.is_up_to_date(9, 1)
    assert some.is_up_to_date(3, 2) and some.is_up_to_date(4, 2)
    assert not some.is_up_to_date(2, 2)


def test_what_is_compacted_matches_any_leader():
    some = log(4, snapshot=(7, 3))
    assert some.matches(3, 1) and some.matches(7, 3) and some.matches(8, 4)
    assert not some.matches(7, 2) and not some.matches(8, 3) and not some.matches(9, 4)


def test_merge_appends_what_is_new():
    some = log(1)
    assert some.merge(entries(1, 2, 2)) == 2
    assert terms(some) == [1, 2, 2]


def test_merge_of_an_old_request_removes_nothing():
    """The original cut acknowledged entries off a follower for a stale or repeated request that was shorter."""
    some = log(1, 1, 2, 2)
    assert some.merge(entries(1, 1)) is None
    assert some.merge(()) is None
    assert some.merge(entries(1, 2, first=2)) is None
    assert terms(some) == [1, 1, 2, 2]


def test_merge_removes_from_a_conflict_on_and_no_earlier():
    some = log(1, 1, 2, 2)
    assert some.merge(entries(1, 1, 3)) == 3
    assert terms(some) == [1, 1, 3]


def test_merge_skips_what_is_compacted():
    some = log(3, 3, snapshot=(5, 2))
    assert some.merge(entries(1, 2, 3, 3, 4, first=4)) == 8
    assert terms(some) == [3, 3, 4] and some.snapshot_index == 5


def test_conflict_of_a_short_log_is_its_end():
    assert log(1, 1).conflict(9) == (3, 0)
    assert log(snapshot=(5, 1)).conflict(9) == (6, 0)


def test_conflict_names_the_first_index_of_the_term():
    assert log(1, 2, 2, 2).conflict(4) == (2, 2)
    assert log(2, 2, snapshot=(5, 2)).conflict(7) == (6, 2)


def test_last_index_of_term_is_that_of_the_term_or_of_an_older_one():
    some = log(1, 1, 3, 3, 5)
    assert [some.last_index_of_term(term) for term in (0, 1, 2, 3, 4, 5, 9)] == [0, 2, 2, 4, 4, 5, 5]


def test_entries_from_gives_what_fits_and_at_least_one():
    some = Log(0, 0, entries(1, 1, 1, command=b"12345"))
    assert len(some.entries_from(1, 10)) == 2
    assert len(some.entries_from(1, 1)) == 1
    assert len(some.entries_from(1, 1000)) == 3
    assert some.entries_from(4, 1000) == ()
    with pytest.raises(AssertionError):
        log(1, snapshot=(5, 1)).entries_from(5, 10)


def test_compact_forgets_up_to_the_index_and_keeps_its_term():
    some = log(1, 2, 3)
    some.compact(2)
    assert (some.snapshot_index, some.snapshot_term, terms(some)) == (2, 2, [3])
    some.compact(2)
    assert terms(some) == [3]
    with pytest.raises(AssertionError):
        some.compact(4)
    with pytest.raises(AssertionError):
        some.compact(1)


def test_tail_start_keeps_within_both_limits():
    some = Log(0, 0, entries(1, 1, 1, 1, command=b"12345"))
    assert some.tail_start(4, 2, 1000) == 3
    assert some.tail_start(4, 100, 12) == 3
    assert some.tail_start(4, 100, 1000) == 1
    assert some.tail_start(4, 0, 1000) == 5


def test_entries_and_their_sizes_are_found_after_a_compaction():
    some = Log(0, 0, [Entry(index, 1, COMMAND, b"x" * index) for index in range(1, 6)])
    some.compact(2)
    assert [entry.index for entry in some.entries(3, 4)] == [3, 4]
    assert [some.size_after(index) for index in (0, 2, 4, 5)] == [12, 12, 5, 0]
    assert [some.tail_start(5, 9, limit) for limit in (4, 5, 9, 99)] == [6, 5, 4, 3]
    assert some.last_index_of_term(1) == 5


def test_what_is_kept_for_a_receiver_is_bounded_by_its_memory():
    some = Log(0, 0, [Entry(index, 1, COMMAND, b"x" * 100 * index) for index in range(1, 6)])
    some.compact(1)
    three = 3 * ENTRY_BYTES + 1200  # from 3 on
    assert [some.first_within(first, three) for first in (1, 2, 3, 4, 6)] == [3, 3, 3, 4, 6]
    assert [some.first_within(2, limit) for limit in (1 << 20, three - 1, 0)] == [2, 4, 6]


def test_reset_begins_anew():
    some = log(1, 1, 1)
    some.reset(9, 4)
    assert (some.last_index, some.last_term, some.size) == (9, 4, 0)


TERMS = st.lists(st.integers(1, 4), max_size=12).map(sorted)


@given(TERMS, TERMS, st.integers(0, 12), st.integers(0, 12))
def test_merge_gives_the_common_part_then_the_leaders(mine, leaders, skip, count):
    """Whatever part of a leader's log arrives where it matches: nothing of it is lost, nothing else goes without a conflict."""
    some, prev = log(*mine), min(skip, len(leaders))
    if not some.matches(prev, leaders[prev - 1] if prev else 0):
        return
    sent = leaders[prev:prev + count]
    if mine[:prev] != leaders[:prev]:
        return  # not two logs of one cluster: Log Matching does not hold
    some.merge(entries(*sent, first=prev + 1))
    conflict = any(old != new for old, new in zip(mine[prev:], sent, strict=False))
    kept = [] if conflict else mine[prev + len(sent):]
    assert terms(some) == leaders[:prev] + sent + kept


@given(TERMS, st.integers(0, 12), st.lists(st.integers(4, 6), max_size=5).map(sorted))
def test_size_counts_the_bytes_of_all_commands(mine, index, more):
    some = log(*mine)
    some.compact(min(index, len(mine)))
    some.merge(entries(*more, first=some.last_index + 1, command=b"four"))
    if some.last_index > some.snapshot_index:
        some.merge(entries(9, first=some.last_index))
    kept = some.entries(some.first_index, some.last_index)
    assert some.size == sum(len(entry.command) for entry in kept)
