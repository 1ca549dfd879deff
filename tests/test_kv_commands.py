"""The bytes of commands, and what conditions mean."""

import pytest

from raftd.errors import StartupError
from raftd.kv import (
    Conditions, Delete, DeletePrefix, Expire, Fence, Found, Get, If, Outcome, Request, Set, Touch, Transaction, UnknownCommand, decode,
    encode,
)
from raftd.kv.encoding import decode_outcome, digest, encode_outcome, foresee, how_many, MAX_READING

ALL_BYTES = bytes(range(256))


@pytest.mark.parametrize(
    "command",
    [
        Set("color", b"red"),
        Set("color", b""),
        Set("any/bytes", ALL_BYTES),
        Set("a/b//c", b"1"),
        Set("/", b"1"),
        Set("n\0ul", b"\0"),
        Set("Köln 🚲", b"1"),
        Set("k" * 4096, b"1"),
        Set("large", b"x" * (1 << 20)),
        Delete("color"),
        Set("k", b"v", Conditions(if_match="*")),
        Set("k", b"v", Conditions(if_none_match="*")),
        Set("k", ALL_BYTES, Conditions(if_match=(1, 2**63 - 1))),
        Set("k", b"v", Conditions(if_match=(7,), if_none_match=(8, 9))),
        Set("k", b"v", Conditions(if_match=(), if_none_match="*")),
        Delete("k", Conditions(if_match=(3,))),
        Delete("k", Conditions(if_match="*", if_none_match=(3,))),
        Set("k", ALL_BYTES, Conditions(if_match=(3,)), ttl=1),
        Set("k", b"", ttl=2**40),
        Touch("k", 1, Conditions(if_match="*")),
        DeletePrefix(""),
        DeletePrefix("a/b"),
        Expire(),
        Transaction((), (Set("Köln", ALL_BYTES), Set("k", b"", ttl=7), Delete("k"), Get("k")), (Get("other"),)),
        Transaction((If("k", "index", 2**63 - 1), If("k", "exists", True), If("k", "exists", False), If("k", "value", b"")), ()),
        Transaction((), ()), Transaction((), (Set("k", b"v", ttl=7), Set("l", b""))), Transaction((), (), (Set("k", b"v"),)),
        Transaction((If("k", "exists", True),), (Set("k", b"v"),)),
        Transaction((), tuple(Set(f"Köln {number}", ALL_BYTES[number:]) for number in range(128))),
        Request(Set("k", b"v"), 1, "a key", Fence("a=b", 7)),
        Request(Transaction((), (Get("k"),)), 0, "x" * 255),
        Request(DeletePrefix("a"), 2**50),
    ],
    ids=lambda command: repr(command)[:60],
)
def test_every_command_survives_its_bytes(command):
    assert decode(encode(command)) == command
    assert type(decode(encode(command))) is type(command)


@pytest.mark.parametrize("command", [Set("k", b"v"), Set("Köln 🚲", b""), Set("k" * 4096, ALL_BYTES)], ids=lambda command: command.key[:5])
def test_what_comes_of_a_plain_write_is_known_beforehand(command):
    assert foresee(7, encode(command)) == Outcome("written", 7)


@pytest.mark.parametrize("time", [0, 1, 2**62])
def test_what_comes_of_what_expires_is_known_beforehand(time):
    for ttl in (0, 5):
        assert foresee(7, encode(Request(Set("Köln", ALL_BYTES, ttl=ttl), time))) == Outcome("written", 7)
        batch = Transaction((), (Set("k", b"v", ttl=ttl), Set("l", b"", ttl=9)))
        assert foresee(7, encode(Request(batch, time))) == Outcome("transacted", 7, (True, (True, True)))


@pytest.mark.parametrize("sets", [
    (), (Set("k", b"v"),), (Set("Köln", ALL_BYTES), Set("k", b""), Set("k" * 4096, b"v"), Set("k", b"w"))], ids=len)
def test_what_comes_of_a_plain_batch_is_known_beforehand(sets):
    assert foresee(7, encode(Transaction((), sets))) == Outcome("transacted", 7, (True, (True,) * len(sets)))


DEPENDING = (
    Transaction((If("k", "exists", True),), (Set("k", b"v"),)), Transaction((), (Set("k", b"v", ttl=5),)),
    Transaction((), (Set("k", b"v"), Get("k"))), Transaction((), (Set("k", b"v"), Delete("k"))), Transaction((), (), (Set("k", b"v"),)),
    *(Request(what, time, key, fence) for what in (Set("k", b"v", ttl=5), Transaction((), (Set("k", b"v", ttl=5),)))
      for time, key, fence in ((0, "k", None), (9, "k", None), (9, "", Fence("k", 1)))),
    *(Request(what, 9) for what in (
        Set("k", b"v", Conditions(if_match="*"), 5), Touch("k", 5), Delete("k"), DeletePrefix("k"), Expire(),
        Transaction((If("k", "exists", True),), (Set("k", b"v", ttl=5),)), Transaction((), (Set("k", b"v", ttl=5), Get("k"))),
        Transaction((), (), (Set("k", b"v", ttl=5),)))),
)


@pytest.mark.parametrize("data", [
    encode(Delete("k")), encode(Set("k", b"v", Conditions(if_match="*"))), encode(Set("k", b"v", Conditions(if_none_match="*"))),
    encode(Set("k", b"v", Conditions(if_match=(7,)))), encode(Delete("k", Conditions(if_match=(3,)))),
    encode(Set("k", b"v", ttl=5)), encode(Request(Set("k", b"v"), key="k")),
    *map(encode, DEPENDING),
    b"", b"\x01\x01", b"\x01\x01\x00", b"\x01\x01\x00\x00", b"\x02\x01\x00\x00\x01kv", b"\x01\x63\x00\x00\x01kv",
    b"\x01\x01\x00\x00\x05kv", b"\x01\x01\x00\x00\x01\xffv", b"\x01\x0a\x00\x00\x00\x00\x00",
    encode(Request(Set("k", b"v", ttl=5), 9))[:-8], encode(Request(Set("k", b"v", ttl=5), 9))[:20],
    encode(Request(Set("k", b"v"), 9))[:-7] + b"\x63\x00\x00\x01kv",
])
def test_what_depends_on_the_state_or_is_no_command_is_not_foreseen(data):
    assert foresee(7, data) is None


@pytest.mark.parametrize(
    "command, data",
    [
        (Set("key", b"value"), b"\x01\x01\x00\x00\x03keyvalue"),
        (Delete("key"), b"\x01\x02\x00\x00\x03key"),
        (Transaction((), (Set("key", b"value"), Set("k", b""))),
         b"\x01\x0a\x00\x00\x00\x00\x00\x00\x02\x00\x03\x00\x01\x00\x00\x00\x05\x00\x00\x00\x00keykvalue"),
        (Set("k", b"v", Conditions(if_none_match="*")), b"\x01\x01\x04\x00\x01kv"),
        (
            Set("k", b"v", Conditions(if_match=(5,))),
            b"\x01\x01\x02\x00\x01k\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x05v",
        ),
    ],
)
def test_bytes_never_change(command, data):
    assert encode(command) == data
    assert decode(data) == command


def test_numbers_that_cannot_be_an_index_match_nothing_and_are_dropped():
    conditions = Conditions(if_match=(10**30, 5, 0, -1, 2**63))
    assert decode(encode(Set("k", b"v", conditions))).conditions == Conditions(if_match=(5,))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x02\x01\x00\x00\x01kv",  # a later format
        b"\x01\x63\x00\x00\x01kv",  # an operation of a later raftd
        b"\x01\x06\x00\x00\x00" + bytes(3) + b"\x01\x63" + bytes(20),  # a condition of a transaction of a later raftd
        b"\x01\x06\x00\x00\x00" + bytes(7) + b"\x01\x63" + bytes(20),  # an operation in one
        b"\x01\x07\x00\x00\x00more",
        b"\x01\x0a\x00\x00\x00\xff\xff\xff\xffmore",  # a batch of more keys than there are bytes
        b"\x01\x0a\x00\x00\x00\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00kv",  # of which something is left
        b"\x01\x0a\x00\x00\x00\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00\xff",
        b"\x01\x01\x00",
        b"\x01\x01\x00\x00",
        b"\x01\x00\x00\x00\x01kv",
        b"\x01\x01\x03\x00\x01kv",  # a condition of a later raftd
        b"\x01\x01\x10\x00\x01kv",
        b"\x01\x01\x03\x00\x01k" + bytes(20),  # such a one, that could be read as a list
        b"\x01\x01\x0c\x00\x01k" + bytes(20),
        b"\x01\x01\x00\x00\x05key",  # shorter than its key
        b"\x01\x02\x00\x00\x03keyrest",
        b"\x01\x01\x00\x00\x01\xff",  # not UTF-8
        b"\x01\x01\x02\x00\x01k\xff\xff\xff\xff\x00",  # more indexes than there are
    ],
)
def test_unknown_bytes_stop_the_server(data):
    with pytest.raises(UnknownCommand, match="this raftd does not know .*upgrade") as caught:
        decode(data)
    assert isinstance(caught.value, StartupError)
    assert "\n" not in str(caught.value)


def test_a_shortened_command_is_refused_at_every_length():
    for command in (Delete("key", Conditions(if_match=(1, 2), if_none_match=(3,))), Touch("key", 5), Expire(),
                    Transaction((If("a", "value", b"v"), If("b", "index", 5)), (Set("a", b"1", ttl=5), Delete("b"), Get("c")), (Get("c"),)),
                    Transaction((), (Set("key", b""), Set("k", b"value"))), Request(Delete("key"), 5, "request", Fence("lock", 7))):
        data = encode(command)
        for length in range(len(data)):
            with pytest.raises(UnknownCommand):
                decode(data[:length])


OUTCOMES = [
    *(Outcome(kind, 7) for kind in ("written", "deleted", "touched", "missing", "refused", "fenced", "too-large")),
    Outcome("refused", 0), Outcome("deleted-prefix", 7, 0), Outcome("deleted-prefix", 7, 10**6), Outcome("expired", 7, 3),
    Outcome("transacted", 7, (True, ())), Outcome("transacted", 2**62, (False, (True, False, True))),
    Outcome("transacted", 7, (True, (Found(ALL_BYTES, 5, 7, 3, 2), Found(None, 0, 7), Found(b"", 7, 7, 7, 1, 0.0)))),
    Outcome("transacted", 7, (True, (Found(b"v", 7, 7, 7, 1, 1.234),))),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: repr(outcome)[:60])
def test_every_outcome_survives_its_bytes_as_one_that_is_replayed(outcome):
    assert decode_outcome(encode_outcome(outcome)) == outcome._replace(replayed=True)


@pytest.mark.parametrize("command, reads", [
    (Set("k", b"v"), False), (Transaction((), (Set("k", b"v"),)), False), (Transaction((), (Get("k"),)), True),
    (Transaction((), (), (Get("k"),)), True), (Request(Transaction((), (Get("k"),)), 5, "key", Fence("lock", 7)), True),
    (Request(Transaction((), (Set("k", b"v"),)), 5, "key"), False), (Request(Set("k", b"v"), 0, "key"), False), (Expire(), False),
])
def test_of_commands_that_answer_values_a_few_are_done_together(command, reads):
    data = encode(command)
    assert how_many([data] * MAX_READING) == MAX_READING
    assert how_many([data] * 100) == (MAX_READING if reads else 100)
    assert how_many([encode(Set("k", b"v")), data] * 50) == (2 * MAX_READING + 1 if reads else 100)


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x08", b"\x01\x08" + b"\xff" * 40, b"garbage"])
def test_bytes_that_are_no_command_answer_nothing(data):
    assert how_many([data] * 100) == 100


def test_a_request_is_told_from_others_by_all_but_its_time_and_key():
    request = Request(Set("k", b"v", ttl=5), 1000, "key", Fence("lock", 7))
    assert digest(request) == digest(request._replace(time=2000)) == digest(Request(Set("k", b"v", ttl=5), 0, "key", Fence("lock", 7)))
    others = [request._replace(command=command) for command in (
        Set("k", b"w", ttl=5), Set("k", b"v", ttl=6), Set("k", b"v"), Set("l", b"v", ttl=5), Delete("k"),
        Set("k", b"v", Conditions(if_match="*"), ttl=5))]
    others += [request._replace(fence=None), request._replace(fence=Fence("lock", 8)), request._replace(fence=Fence("loc", 7))]
    assert len({digest(request), *map(digest, others)}) == len(others) + 1


@pytest.mark.parametrize(
    "conditions, missing, at_5, at_6",
    [
        (Conditions(), True, True, True),
        (Conditions(if_match="*"), False, True, True),
        (Conditions(if_match=(5,)), False, True, False),
        (Conditions(if_match=(4, 5)), False, True, False),
        (Conditions(if_match=()), False, False, False),
        (Conditions(if_match=(0,)), False, False, False),
        (Conditions(if_none_match="*"), True, False, False),
        (Conditions(if_none_match=(5,)), True, False, True),
        (Conditions(if_none_match=()), True, True, True),
        (Conditions(if_none_match=(0,)), True, True, True),
        (Conditions(if_match="*", if_none_match=(5,)), False, False, True),
        (Conditions(if_match="*", if_none_match="*"), False, False, False),
    ],
)
def test_conditions(conditions, missing, at_5, at_6):
    assert [conditions.hold(index) for index in (0, 5, 6)] == [missing, at_5, at_6]
