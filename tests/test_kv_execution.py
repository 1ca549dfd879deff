"""What commands do to the state, one after the other: exactly once, prefixes, transactions, expiry, and the history that is kept."""

from contextlib import closing

import pytest

from raftd.errors import HistoryGone, StorageFailed
from raftd.kv import (
    MAX_RESULT_BYTES, Changes, Conditions, Delete, DeletePrefix, Expire, Fence, Found, Get, If, KeyValueStore, List, Outcome, Request, Set,
    Touch, Transaction, encode,
)
from raftd.kv import execution
from raftd.kv.database import DELETED, EXPIRED, PUT, end_of
from raftd.kv.execution import Limits

FEW = Limits(requests=3, changes=5, change_bytes=100, removed_at_once=1, expired_at_once=2)


@pytest.fixture(params=["one by one", "together"])
def apply(request, store):
    """Applies commands, in batches of one or in one batch, and returns their Outcomes: it must make no difference."""
    def one_by_one(*commands):
        return [outcome for command in commands for outcome in together(command)]

    def together(*commands):
        first = store.position.index + 1
        return store.apply([(index, encode(command)) for index, command in enumerate(commands, first)], first + len(commands) - 1, 1, b"")
    return one_by_one if request.param == "one by one" else together


@pytest.fixture
def limits():
    return Limits()


@pytest.fixture
def store(tmp_path, limits):
    with closing(KeyValueStore(tmp_path, limits=limits)) as store:
        yield store
        store.verify()


def few(test):
    return pytest.mark.parametrize("limits", [FEW], ids=["few"])(test)


def keys(store):
    return [item.key for item in store.read(List("", limit=1000)).items]


def history(store, after=0):
    return [(change.id / 1_000_000, change.kind, change.previous_index, change.key, change.value)
            for change in store.read(Changes(after)).changes]


# Versions


def test_a_key_counts_its_versions_from_when_it_was_made(store, apply):
    apply(Set("a", b"1"), Set("b", b"1"), Set("a", b"2"), Set("a", b"3"))
    assert store.read(Get("a")) == Found(b"3", 4, 4, 1, 3)
    apply(Delete("a"), Set("a", b"4"))
    assert store.read(Get("a")) == Found(b"4", 6, 6, 6, 1)


# Exactly once


def test_a_request_happens_once_and_is_answered_alike_each_time(store, apply):
    once = Request(Set("a", b"1"), key="k")
    assert apply(once, Set("a", b"2"), once, once) == [
        Outcome("written", 1), Outcome("written", 2), Outcome("written", 1, replayed=True), Outcome("written", 1, replayed=True)]
    assert store.read(Get("a")) == Found(b"2", 2, 4, 1, 2)


@pytest.mark.parametrize("command, outcome", [
    (Delete("a"), Outcome("deleted", 2)),
    (Delete("none"), Outcome("missing", 2)),
    (Set("a", b"2", Conditions(if_none_match="*")), Outcome("refused", 1)),
    (Set("none", b"2", Conditions(if_match="*")), Outcome("refused", 0)),
    (Touch("a", 1000), Outcome("touched", 1)),
    (DeletePrefix("a"), Outcome("deleted-prefix", 2, 1)),
    (Transaction((If("a", "exists", False),), (), (Get("a"), Delete("a"))),
     Outcome("transacted", 2, (False, (Found(b"1", 1, 2, 1, 1), True)))),
], ids=lambda value: type(value).__name__)
def test_every_outcome_is_the_first_also_a_refusal(apply, command, outcome):
    """Whatever has become of the key meanwhile."""
    once = Request(command, key="k")
    assert apply(Set("a", b"1"), once, Delete("a"), once, Set("a", b"3"), once)[1::2] == [
        outcome, outcome._replace(replayed=True), outcome._replace(replayed=True)]


def test_a_key_of_another_request_is_refused_and_nothing_is_done(store, apply):
    apply(Request(Set("a", b"1"), key="k"))
    assert apply(Request(Set("a", b"2"), key="k"), Request(Delete("a"), key="k"), Request(Set("a", b"1"), key="k")) == [
        Outcome("reused", 2), Outcome("reused", 3), Outcome("written", 1, replayed=True)]
    assert store.read(Get("a")).value == b"1"


def test_a_request_is_remembered_after_a_restart_and_in_a_copy(tmp_path):
    once = Request(Set("a", b"1"), key="k")
    with closing(KeyValueStore(tmp_path)) as store:
        store.apply([(1, encode(once))], 1, 1, b"")
        snapshot = store.snapshot()
        data = snapshot.read(0, snapshot.size)
    with closing(KeyValueStore(tmp_path)) as again:
        assert again.apply([(2, encode(once))], 2, 1, b"") == [Outcome("written", 1, replayed=True)]
    (tmp_path / "other").mkdir()
    with closing(KeyValueStore(tmp_path / "other")) as other:
        incoming = other.receive(snapshot.index, snapshot.term, snapshot.size, snapshot.sha256)
        incoming.write(0, data)
        other.install(incoming)
        assert other.apply([(2, encode(once))], 2, 1, b"") == [Outcome("written", 1, replayed=True)]
    snapshot.close()


@few
def test_the_newest_requests_are_remembered_the_others_forgotten_in_the_order_of_the_log(apply):
    """A replay is no new request: it lets nothing be forgotten."""
    requests = [Request(Set("a", b"%d" % number), key=f"k{number}") for number in range(4)]
    outcomes = apply(*requests[:3], requests[0], requests[0], requests[3], requests[1], requests[2], requests[0], requests[1])
    assert [outcome.replayed for outcome in outcomes] == [False] * 3 + [True] * 2 + [False] + [True] * 2 + [False, False]


def test_what_is_remembered_is_small_so_that_all_the_newest_are(store, apply):
    """A transaction with an idempotency key answers less: nobody makes others be forgotten by reading much."""
    large = Transaction((), (Set("b", b"1"), *[Get("a")] * 8))
    (_, refused, done, again) = apply(Set("a", b"x" * (8 << 10) + b"y"), Request(large, key="k"), Request(large), Request(large, key="k"))
    assert (refused.kind, done.kind, again) == ("too-large", "transacted", refused._replace(replayed=True))
    assert apply(Request(Transaction((), (Get("a"),) * 7), key="l"))[0].kind == "transacted"
    assert store.read(Get("b")).version == 1


@few
def test_requests_that_are_forgotten_are_removed_from_the_file(store, apply):
    apply(*(Request(Set("a", b"%d" % number), key=f"k{number % 9}") for number in range(40)))
    [(rows,)] = store._readers.read(lambda connection: connection.execute("SELECT count(*) FROM requests").fetchall())
    assert FEW.requests <= rows <= FEW.requests + FEW.removed_at_once


# Fences


def test_a_fence_holds_as_long_as_the_key_that_the_token_has_made(store, apply):
    def fenced(token):
        return Request(Set("data", b"1"), fence=Fence("lock", token))
    assert apply(fenced(1), Set("lock", b"A"), fenced(1), fenced(2), Set("lock", b"A, still"), Touch("lock", 5000), fenced(2)) == [
        Outcome("fenced", 0), Outcome("written", 2), Outcome("fenced", 2), Outcome("written", 4), Outcome("written", 5),
        Outcome("touched", 5), Outcome("written", 7)]
    assert apply(Delete("lock"), fenced(2), Set("lock", b"B"), fenced(2), fenced(10)) == [
        Outcome("deleted", 8), Outcome("fenced", 0), Outcome("written", 10), Outcome("fenced", 10), Outcome("written", 12)]


# Transactions


def test_a_transaction_does_all_of_one_list(store, apply):
    both = (Set("x", b"then"), Delete("a"), Delete("none"), Get("x"), Get("none")), (Set("x", b"else"),)
    assert apply(Set("a", b"1"), Transaction((If("a", "value", b"1"),), *both), Transaction((If("a", "value", b"1"),), *both))[1:] == [
        Outcome("transacted", 2, (True, (True, True, False, Found(b"then", 2, 2, 2, 1), Found(None, 0, 2)))),
        Outcome("transacted", 3, (False, (True,)))]
    assert store.read(Get("x")) == Found(b"else", 3, 3, 2, 2)
    assert history(store) == [
        (1, PUT, 0, "a", b"1"), (1.999999, PUT, 0, "x", b"then"), (2, DELETED, 1, "a", b""), (3, PUT, 2, "x", b"else")]


@pytest.mark.parametrize("condition, at_none, at_value", [
    (If("a", "index", 0), True, False), (If("a", "index", 1), False, True), (If("a", "index", 2), False, False),
    (If("a", "exists", True), False, True), (If("a", "exists", False), True, False),
    (If("a", "value", b"1"), False, True), (If("a", "value", b""), False, False),
])
def test_conditions_of_transactions(apply, condition, at_none, at_value):
    ask = Transaction((condition,), (Get("b"),))
    none, _, value = apply(Transaction((If("x", "exists", False), condition), (Get("b"),)), Delete("b"), ask)
    assert none.detail[0] is at_none and value.detail[0] is at_none
    (also,) = apply(Transaction((), (Delete("a"),)))[:1]
    assert also.detail == (True, (False,))


def test_conditions_of_transactions_on_a_key_that_is_there(apply):
    conditions = [If("a", "index", 0), If("a", "index", 1), If("a", "exists", True), If("a", "exists", False), If("a", "value", b"1"),
                  If("a", "value", b"")]
    outcomes = apply(Set("a", b"1"), *(Transaction((condition,), ()) for condition in conditions))[1:]
    assert [outcome.detail[0] for outcome in outcomes] == [False, True, True, False, True, False]


def test_all_conditions_must_hold_and_none_is_what_holds_always(apply):
    yes, no = If("none", "exists", False), If("none", "exists", True)
    outcomes = apply(*(Transaction(conditions, ()) for conditions in ((), (yes,), (yes, no), (no, yes), (no,), (yes, yes))))
    assert [outcome.detail[0] for outcome in outcomes] == [True, True, False, False, False, True]


def test_operations_of_a_transaction_see_those_before_them(store, apply):
    (outcome,) = apply(Transaction((), (
        Set("a", b"1"), Get("a"), Set("a", b"2"), Get("a"), Delete("a"), Get("a"), Delete("a"), Set("a", b"3"))))
    assert outcome.detail == (True, (True, Found(b"1", 1, 1, 1, 1), True, Found(b"2", 1, 1, 1, 2), True, Found(None, 0, 1), False, True))
    assert history(store) == [(0.999997, PUT, 0, "a", b"1"), (0.999998, PUT, 1, "a", b"2"), (0.999999, DELETED, 1, "a", b""),
                              (1, PUT, 0, "a", b"3")]
    assert store.read(Get("a")) == Found(b"3", 1, 1, 1, 1)


def test_a_batch_is_told_in_its_order(store, apply):
    """A transaction that only writes; also a key twice."""
    (outcome,) = apply(Transaction((), (Set("b", b"1"), Set("a", b"2"), Set("b", b"3"))))
    assert outcome == Outcome("transacted", 1, (True, (True, True, True)))
    assert [change[2:] for change in history(store)] == [
        (0, "b", b"1"), (0, "a", b"2"), (1, "b", b"3")]
    assert store.read(Get("b")) == Found(b"3", 1, 1, 1, 2) and keys(store) == ["a", "b"]


def test_a_transaction_that_would_answer_too_much_does_nothing(store, apply):
    value = b"x" * (MAX_RESULT_BYTES // 8)
    outcomes = apply(*(Set(f"k{number}", value) for number in range(8)),
                     Transaction((), (Set("a", b"1"), *(Get(f"k{number}") for number in range(8)))),
                     Transaction((), (Set("b", b"1"), *(Get(f"k{number}") for number in range(8)), Get("b"))))
    assert outcomes[8].kind == "transacted" and outcomes[9] == Outcome("too-large", MAX_RESULT_BYTES)
    assert (store.read(Get("a")).value, store.read(Get("b")).value) == (b"1", None)


def test_a_transaction_looks_at_no_value_that_it_does_not_need(store, apply, monkeypatch):
    """Else a few bytes in the log would make every server read a gigabyte."""
    looked_at, value = [], execution.Batch._value
    apply(Set("a", b"x" * (1 << 20)))
    monkeypatch.setattr(execution.Batch, "_value", lambda batch, key, head: looked_at.append(key) or value(batch, key, head))
    refused = Transaction((), (Get("a"),) * 128)
    assert [outcome.kind for outcome in apply(refused, Transaction((If("a", "value", b"y"),) * 128, ()))] == ["too-large", "transacted"]
    assert looked_at == []
    assert apply(Transaction((If("a", "value", b"x" * (1 << 20)), If("a", "exists", False)), (), (Get("a"),)))[0].detail[0] is False
    assert looked_at == ["a", "a"]


# Prefixes


SOME = ["", "a", "a/", "a/b", "a/b/c", "ab", "b", "á", "\U0010ffff", "a\U0010ffff", "a\U0010ffff\U0010ffff", "\ud7ff", "\ue000", "a0", "a.",
        "B"]


@pytest.mark.parametrize("prefix", [*SOME, "c", "a\ud7ff", "\U0010ffff\U0010ffff"])
def test_a_prefix_is_of_just_the_keys_that_begin_with_it(store, apply, prefix):
    apply(*(Set(key, b"1") for key in SOME if key))
    assert [item.key for item in store.read(List(prefix)).items] == sorted(key for key in SOME if key and key.startswith(prefix))
    (outcome,) = apply(DeletePrefix(prefix))
    assert outcome.detail == sum(key != "" and key.startswith(prefix) for key in SOME)
    assert keys(store) == sorted(key for key in SOME if key and not key.startswith(prefix))


@pytest.mark.parametrize("prefix, end", [("", b""), ("a", "b"), ("a\U0010ffff", "b"), ("\U0010ffff", b""), ("\ud7ff", "\ue000")])
def test_the_end_of_a_prefix(prefix, end):
    assert end_of(prefix) == end


def test_a_prefix_is_deleted_in_one_entry_key_by_key(store, apply):
    assert apply(Set("a/2", b"2"), Set("b", b"1"), Set("a/1", b"1"), DeletePrefix("a/"), Set("a/1", b"again"), DeletePrefix("x"))[3:] == [
        Outcome("deleted-prefix", 4, 2), Outcome("written", 5), Outcome("deleted-prefix", 6, 0)]
    assert history(store, 3_000_000) == [(3.999999, DELETED, 3, "a/1", b""), (4, DELETED, 1, "a/2", b""), (5, PUT, 0, "a/1", b"again")]
    assert store.read(Get("a/1")) == Found(b"again", 5, 6, 5, 1)


@few
def test_of_a_large_prefix_only_the_newest_changes_are_kept(store, apply):
    apply(*(Set(f"a{number}", b"1") for number in range(9)), Set("b", b"1"), DeletePrefix("a"), Set("c", b"1"))
    assert keys(store) == ["b", "c"]
    kept = history(store, 10_999_995)
    assert [change[3] for change in kept][-5:] == ["a5", "a6", "a7", "a8", "c"]
    with pytest.raises(HistoryGone):
        history(store, 10_000_000)


# Lists


def test_a_list_is_read_page_by_page(store, apply):
    apply(*(Set(f"k{number}", b"%d" % number) for number in range(7)), Set("other", b""))
    after, pages = "", []
    while after is not None:
        listed = store.read(List("k", after, 3))
        pages.append([(item.key, item.value) for item in listed.items])
        after = listed.next
        assert listed.applied_index == 8
    assert pages == [[(f"k{number}", b"%d" % number) for number in page] for page in ((0, 1, 2), (3, 4, 5), (6,))]
    assert store.read(List("k", limit=7)).next is None
    assert store.read(List("k", keys_only=True)).items[0][:5] == ("k0", None, 1, 1, 1)
    assert store.read(List("k", after="z")).items == [] == store.read(List("z")).items


def test_a_page_is_found_without_a_look_at_those_before_it(store, apply):
    apply(*(Set(f"k{number:05}", b"1") for number in range(2000)))
    steps, first = [], []
    store._readers.read(lambda connection: connection.set_progress_handler(lambda: steps.append(1), 100))
    for after in ("", "k00000", "k01900"):
        steps.clear()
        assert len(store.read(List("k", after, 50)).items) == 50
        first = steps[:] if not after else first
        assert len(steps) < 2 * len(first) + 5, after
    assert [item.key for item in store.read(List("k01", "a", 1)).items] == ["k01000"]
    assert [item.key for item in store.read(List("k01", "k01000", 1)).items] == ["k01001"]


def test_a_list_of_large_values_is_bounded(store, apply):
    apply(*(Set(f"k{number:02}", b"x" * (1 << 20)) for number in range(12)))
    listed = store.read(List("", limit=1000))
    assert 8 <= len(listed.items) <= 9 and listed.next == listed.items[-1].key
    assert len(store.read(List("", after=listed.next, limit=1000)).items) == 12 - len(listed.items)


# Expiry


def test_a_key_expires_by_an_entry_and_by_the_time_in_it(store, apply):
    apply(Request(Set("a", b"1", ttl=1000), 5000), Request(Set("b", b"1", ttl=500), 5000), Set("c", b"1"))
    assert store.next_deadline == 5500
    assert apply(Request(Expire(), 5499), Request(Expire(), 5500)) == [Outcome("expired", 4, 0), Outcome("expired", 5, 1)]
    assert keys(store) == ["a", "c"] and store.next_deadline == 6000
    assert history(store, 3_000_000) == [(5, EXPIRED, 2, "b", b"")]
    apply(Request(Expire(), 10**6))
    assert keys(store) == ["c"] and store.next_deadline is None


def test_the_time_of_the_state_never_goes_back(store, apply):
    """What a deposed leader has proposed by an earlier time lives as long as from now on."""
    apply(Request(Set("a", b"1"), 5000, "k"), Request(Set("b", b"1", ttl=1000), 3000), Request(Expire(), 4000), Request(Expire(), 5999))
    assert (store.time, keys(store)) == (5999, ["a", "b"])
    apply(Request(Expire(), 6000))
    assert keys(store) == ["a"]


def test_writing_again_or_touching_gives_a_key_another_time(store, apply):
    apply(Request(Set("a", b"1", ttl=1000), 1000), Request(Set("b", b"1", ttl=1000), 1000), Request(Set("c", b"1", ttl=1000), 1000))
    touch = apply(Request(Touch("a", 5000), 1500), Set("b", b"2"), Request(Touch("none", 5000), 1500))
    assert touch == [Outcome("touched", 1), Outcome("written", 5), Outcome("missing", 6)]
    apply(Request(Expire(), 3000))
    assert keys(store) == ["a", "b"]
    assert store.read(Get("a")).expires_in == pytest.approx(3.5, abs=0.2)
    assert store.read(Get("b")).expires_in is None
    assert [change[3] for change in history(store)] == ["a", "b", "c", "b", "c"], "a touch is no change"
    assert store.read(Get("a"))[3:5] == (1, 1)
    apply(Request(Expire(), 6500))
    assert keys(store) == ["b"]


def test_the_next_deadline_follows_all_that_becomes_of_keys(store, apply):
    """It is looked for only when it may be another one."""
    def after(*commands):
        apply(*(Request(command, 1000) for command in commands))
        return store.next_deadline
    assert after(Set("a", b"1", ttl=500), Set("a", b"1", ttl=300), Set("b", b"1")) == 1300
    assert after(Set("b", b"2")) == 1300
    assert after(Transaction((), (Set("b", b"1", ttl=200), Set("c", b"1", ttl=250)))) == 1200
    assert after(Touch("b", 5000)) == 1250
    assert after(Delete("c")) == 1300
    assert after(Set("c", b"1", ttl=100), Transaction((), (Delete("c"), Get("a")))) == 1300
    assert after(Set("a", b"2")) == 6000
    assert after(Set("p/1", b"1", ttl=1), Delete("none")) == 1001
    assert after(DeletePrefix("p/")) == 6000
    assert after(DeletePrefix("")) is None
    assert after(Set("a", b"1", ttl=500)) == 1500
    apply(Request(Expire(), 1500))
    assert store.next_deadline is None


def test_a_condition_may_refuse_a_touch(store, apply):
    late = Request(Touch("a", 9000, Conditions(if_match=(7,))), 1000)
    assert apply(Request(Set("a", b"1", ttl=1000), 1000), late)[1] == Outcome("refused", 1)
    apply(Request(Expire(), 2000))
    assert keys(store) == []


@few
def test_many_keys_expire_little_by_little_the_earliest_first(store, apply):
    apply(*(Request(Set(f"k{number}", b"1", ttl=1000 - number), 1000) for number in range(5)))
    assert [outcome.detail for outcome in apply(*[Request(Expire(), 9000)] * 3)] == [2, 2, 1]
    assert [change[3] for change in history(store, 5_000_000)] == ["k4", "k3", "k2", "k1", "k0"]


def test_in_a_transaction_a_key_may_expire(store, apply):
    outcome = apply(Request(Transaction((), (Set("a", b"1", ttl=1000), Get("a"))), 5000))[0]
    assert outcome.detail[1][1] == Found(b"1", 1, 1, 1, 1, 1.0)
    assert store.next_deadline == 6000


# History


@few
def test_the_newest_changes_are_kept_and_every_key_its_value(store, apply):
    apply(Set("old", b"kept"), *(Set(f"k{number % 3}", b"%d" % number) for number in range(20)))
    assert store.read(Get("old")).value == b"kept"
    with pytest.raises(HistoryGone) as caught:
        history(store, 10_000_000)
    kept = history(store, caught.value.oldest * 1_000_000)
    assert 5 <= len(kept) <= 6 and kept[-1] == (21, PUT, 18, "k1", b"19")
    assert [change[0] for change in kept] == list(range(22 - len(kept), 22))


@few
def test_large_values_make_the_history_shorter(store, apply):
    apply(*(Set(f"k{number}", b"x" * 60) for number in range(4)))
    with pytest.raises(HistoryGone) as caught:
        history(store, 0)
    assert len(history(store, caught.value.oldest * 1_000_000)) == 1
    assert all(store.read(Get(f"k{number}")).value == b"x" * 60 for number in range(4))


def test_a_history_is_read_piece_by_piece(store, apply):
    apply(*(Set("k", b"%d" % number) for number in range(5)))
    assert [change.value for change in store.read(Changes(1_000_000, 2)).changes] == [b"1", b"2"]
    assert store.read(Changes(5_000_000)) == ([], 5)
    assert store.read(Changes(7_000_000)) == ([], 5)


def test_a_piece_of_a_history_is_not_much_larger_than_wanted(store, apply):
    apply(*(Set("k", b"x" * 60) for _ in range(5)))
    pieces, after = [], 0
    while changes := store.read(Changes(after, 1000, 100)).changes:
        pieces.append(len(changes))
        after = changes[-1].id
    assert pieces == [2, 2, 1]


def test_a_history_tells_any_key_and_value(store, apply):
    told = [("\0", b""), ('"', b"\0\xff"), ("ž\n\u2028\U0001f600", bytes(range(256))), ("\\", "€".encode())]
    apply(*(Set(*key_and_value) for key_and_value in told))
    assert [(change.key, change.value) for change in store.read(Changes(0)).changes] == told


@pytest.mark.parametrize("damage", ["key = X'6bff'", "key = 'kk'", "value = X'30'", "kind = 2", "kind = 'put'", "previous_index = NULL",
                                    "checksum = 7", "id = 2500000"])
def test_a_history_with_damage_is_not_told(tmp_path, damage):
    with closing(KeyValueStore(tmp_path)) as store:
        store.apply([(index, encode(Set("k", b"%d" % index))) for index in (1, 2, 3)], 3, 1, b"")
        store._writer.execute("PRAGMA writable_schema = 1")
        store._writer.execute("UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '') WHERE name = 'changes'")
        store._writer.execute("PRAGMA writable_schema = RESET")
        store._writer.execute(f"UPDATE changes SET {damage} WHERE id = 2000000")
        with pytest.raises(StorageFailed, match="damaged"):
            store.read(Changes(0))
        assert len(store.read(Changes(2_999_999)).changes) == 1


@few
def test_what_nobody_needs_is_removed_from_the_file(store, apply):
    """Of a key that is written again and again one value is kept, besides the history."""
    apply(*(Set(f"k{number}", value * 10) for value in (b"x", b"y") for number in range(30)), DeletePrefix("k1"))
    [(changes,)] = store._readers.read(lambda connection: connection.execute("SELECT count(*) FROM changes").fetchall())
    assert changes <= len(keys(store)) + FEW.changes + FEW.removed_at_once
