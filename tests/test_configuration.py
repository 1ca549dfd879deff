"""Who votes, what a majority is, and that a configuration goes back with its entry (thesis chapter 4)."""

from itertools import combinations

import pytest

from raftd.raft.configuration import NOBODY, Configuration, Configurations, Member


def cluster(*voters, learners=()):
    members = [Member(name, f"{name}:4001") for name in voters] + [Member(name, f"{name}:4001", voter=False) for name in learners]
    return Configuration({member.name: member for member in members})


@pytest.mark.parametrize("size", range(1, 8))
def test_a_majority_is_more_than_half(size):
    names = [f"n{number}" for number in range(size)]
    for count in range(size + 1):
        for some in combinations(names, count):
            assert cluster(*names).is_majority(set(some)) == (count > size / 2)


def test_learners_and_strangers_do_not_count():
    members = cluster("a", "b", "c", learners=("d", "e"))
    assert not members.is_majority({"a", "d", "e", "x", "y"})
    assert members.is_majority({"a", "b"})
    assert members.voters == ["a", "b", "c"] and not members.is_voter("d") and not members.is_voter("x")


def test_nobody_has_no_majority():
    """A server that belongs to no cluster yet cannot elect itself."""
    assert not NOBODY.is_majority(set()) and not NOBODY.is_majority({"a"})


def test_a_change_makes_a_new_configuration():
    before = cluster("a", "b")
    after = before.with_member(Member("c", "c:4001", voter=False)).promoted("c").without("a")
    assert before == cluster("a", "b") and after == cluster("b", "c")


def test_a_member_that_is_already_there_is_replaced():
    moved = cluster("a", "b").with_member(Member("a", "elsewhere:1"))
    assert len(moved.members) == 2 and moved.members["a"].address == "elsewhere:1"


def test_one_vote_at_a_time():
    two = cluster("a", "b")
    assert two.differs_by_one_vote_at_most(cluster("a", "b", "c"))
    assert two.differs_by_one_vote_at_most(cluster("a"))
    assert two.differs_by_one_vote_at_most(cluster("a", "b", learners=("c", "d")))
    assert not two.differs_by_one_vote_at_most(cluster("a", "c"))
    assert not two.differs_by_one_vote_at_most(cluster("a", "b", "c", "d"))
    assert not cluster("a", "b", "c").differs_by_one_vote_at_most(cluster("a"))


@pytest.mark.parametrize("size", range(1, 6))
def test_majorities_of_neighbours_share_a_server(size):
    """What one change at a time is for (thesis 4.1, Figure 4.3)."""
    names = [f"n{number}" for number in range(size)]
    one, other = cluster(*names), cluster(*names, "new")
    groups = [set(some) for count in range(size + 2) for some in combinations([*names, "new"], count)]
    for first in filter(one.is_majority, groups):
        for second in filter(other.is_majority, groups):
            assert first & second


def test_encode_and_decode_give_the_same():
    members = Configuration({"ä b": Member("ä b", "[::1]:4001", False, "f00"), "n2": Member("n2", "host:1")})
    assert Configuration.decode(members.encode()) == members
    assert Configuration.decode(NOBODY.encode()) == NOBODY


NO_CONFIGURATIONS = [
    b"", b"null", b"1", b'""', b"{}", b'["ab"]', b"[1]", b'[["n1"]]', b'[["n1","a:1",true,"",0]]', b'[[1,"a:1",true,""]]',
    b'[["n1",1,true,""]]', b'[["n1","a:1",1,""]]', b'[["n1","a:1",true,null]]', b'[[["n1"],"a:1",true,""]]', b'[["","a:1",true,""]]',
    b'[["n1\\n","a:1",true,""]]', b'[["n1","\\ud800:1",true,""]]', '[["n1","é:1",true,""]]'.encode(), b'[["n1","a:1",true,"\\u0000"]]',
    b'[["n1","a:1",true,""],["n1","b:1",true,""]]', b'[["' + b"n" * 1000 + b'","a:1",true,""]]', b"[" * 100_000, b"[" + b"9" * 5000 + b"]",
    b"\xff",
]


@pytest.mark.parametrize("data", NO_CONFIGURATIONS, ids=lambda data: ascii(data[:40]))
def test_what_encode_has_not_made_is_no_configuration(data):
    """In a log it would stay: a name that is a number would end the threads of every server that reads it, at each start."""
    with pytest.raises((ValueError, TypeError)):
        Configuration.decode(data)


def history():
    configurations = Configurations(0, cluster("a"))
    configurations.append(3, cluster("a", "b"))
    configurations.append(7, cluster("a", "b", "c"))
    return configurations


def test_the_newest_counts_from_the_moment_it_is_appended():
    assert history().latest == cluster("a", "b", "c") and history().latest_index == 7


def test_a_configuration_goes_back_with_its_entry():
    configurations = history()
    configurations.truncate(8)
    assert configurations.latest_index == 7
    configurations.truncate(7)
    assert configurations.latest == cluster("a", "b")
    configurations.truncate(1)
    assert (configurations.latest, configurations.latest_index) == (cluster("a"), 0)


def test_the_configuration_of_the_snapshot_cannot_be_removed():
    with pytest.raises(AssertionError):
        history().truncate(0)


def test_at_gives_the_one_in_force_at_an_index():
    configurations = history()
    assert [configurations.at(index)[0] for index in (0, 2, 3, 6, 7, 99)] == [0, 0, 3, 3, 7, 7]


def test_compact_keeps_the_one_in_force():
    configurations = history()
    configurations.compact(5)
    assert configurations.at(5) == (3, cluster("a", "b")) and configurations.latest_index == 7
    configurations.compact(7)
    configurations.truncate(8)
    assert configurations.latest_index == 7
    with pytest.raises(AssertionError):
        configurations.truncate(7)


def test_appending_out_of_order_is_refused():
    with pytest.raises(AssertionError):
        history().append(7, cluster("a"))


def test_reset_forgets_all_others():
    configurations = history()
    configurations.reset(20, cluster("x"))
    assert configurations.latest == cluster("x") and configurations.at(20) == (20, cluster("x"))
