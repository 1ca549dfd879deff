"""The changes that are kept in memory for those who watch: what they say is what the table says, and there are never many."""

import random
from contextlib import closing

import pytest

from copies import transfer
from raftd.errors import Stopping
from raftd.kv import Changes, Delete, DeletePrefix, KeyValueStore, Set, Transaction, encode, queries, recent
from raftd.kv.recent import Recent


@pytest.fixture
def store(tmp_path):
    with closing(KeyValueStore(tmp_path)) as store:
        yield store


@pytest.fixture
def waits(store):
    """While there is something in it, somebody waits for changes."""
    waits = [True]
    store.subscribe(lambda: None, lambda: bool(waits))
    return waits


def apply(store, *commands):
    """As the next entries; without a command, an entry that has none."""
    first = store.position.index + 1
    store.apply([(index, encode(command)) for index, command in enumerate(commands, first)], first + max(len(commands), 1) - 1, 1, b"")


def of_the_table(store, query):
    return store._readers.read(queries.history, store._path, query)


def command(rng):
    key = f"{rng.choice('ab')}{rng.randrange(20)}"
    return rng.choices([Set(key, b"x" * rng.randrange(50)), Delete(key), DeletePrefix(f"a{rng.randrange(3)}"),
                        Transaction((), (Set(key, b"1"), Delete("a1"), Set("b2", b"2")))], (10, 4, 0.1, 2))[0]


@pytest.mark.parametrize("seed", range(5))
def test_memory_and_table_say_the_same(store, waits, seed, monkeypatch):
    monkeypatch.setattr(recent, "MOST_BATCHES", 6)
    monkeypatch.setattr(recent, "MOST_CHANGES", 40)
    monkeypatch.setattr(recent, "MOST_BYTES", 1000)
    rng, from_memory = random.Random(seed), 0
    for _ in range(150):
        if rng.random() < 0.05:
            waits.clear() if waits else waits.append(True)
        apply(store, *(command(rng) for _ in range(rng.choice((0, 1, 3, 12)))))
        for _ in range(8):
            after = max(0, store.position.index * 1_000_000 - rng.choice((rng.randrange(3), rng.randrange(60_000_000))))
            query = Changes(after, rng.choice((0, 1, 5, 1000)), rng.choice((0, 60, 8 << 20)))
            from_memory += store._recent.history(query) is not None
            assert store.read(query) == of_the_table(store, query), query
    assert 100 < from_memory < 1100


def test_nothing_is_kept_while_nobody_waits(store, waits):
    apply(store, Set("a", b"1"))
    assert store._recent.batches
    waits.clear()
    apply(store, Set("a", b"2"))
    assert not store._recent.batches


def test_there_are_never_many(store, waits, monkeypatch):
    monkeypatch.setattr(recent, "MOST_CHANGES", 100)
    monkeypatch.setattr(recent, "MOST_BYTES", 10_000)
    for size, commands, kept in ((1, 1, 32), (1, 30, 3), (3000, 1, 3), (20_000, 1, 1), (1, 200, 1)):
        for _ in range(40):
            apply(store, *[Set(f"k{number}", b"x" * size) for number in range(commands)])
        assert len(store._recent.batches) == kept, (size, commands)
        assert store._recent.history(Changes(store._recent.after)).changes[0].id > store._recent.after
    apply(store, DeletePrefix("k"))
    assert not store._recent.batches, "a prefix may be of any number of keys"


def test_a_copy_takes_the_place_of_what_was_applied(store, waits, tmp_path):
    (tmp_path / "leader").mkdir()
    with closing(KeyValueStore(tmp_path / "leader")) as leader:
        for number in range(5):
            apply(leader, Set("a", b"%d" % number))
        apply(store, Set("a", b"0"))
        transfer(leader, store)
        assert [change.value for change in store.read(Changes(1_000_000)).changes] == [b"1", b"2", b"3", b"4"]


def test_a_store_that_is_closed_says_so(store, waits):
    """Else who waits for more, for which nobody waits any more, would ask again and again."""
    apply(store, Set("a", b"1"))
    store.close()
    for after in (0, 1_000_000):
        with pytest.raises(Stopping):
            store.read(Changes(after))


def test_what_is_older_is_not_known():
    first = Recent.none(7)
    assert first.history(Changes(7_000_000)) == ([], 7) and first.history(Changes(6_999_999)) is None
    assert first.followed_by([], 8).history(Changes(7_000_000)) == ([], 8)
