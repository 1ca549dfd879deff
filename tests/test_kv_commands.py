"""The bytes of commands, and what conditions mean."""

import pytest

from raftd.errors import StartupError
from raftd.kv import Conditions, Delete, Outcome, Set, UnknownCommand, decode, encode
from raftd.kv.commands import foresee

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
    ],
    ids=lambda command: repr(command)[:60],
)
def test_every_command_survives_its_bytes(command):
    assert decode(encode(command)) == command
    assert type(decode(encode(command))) is type(command)


@pytest.mark.parametrize("command", [Set("k", b"v"), Set("Köln 🚲", b""), Set("k" * 4096, ALL_BYTES)], ids=lambda command: command.key[:5])
def test_what_comes_of_a_plain_write_is_known_beforehand(command):
    assert foresee(7, encode(command)) == Outcome("written", 7)


@pytest.mark.parametrize("data", [
    encode(Delete("k")), encode(Set("k", b"v", Conditions(if_match="*"))), encode(Set("k", b"v", Conditions(if_none_match="*"))),
    encode(Set("k", b"v", Conditions(if_match=(7,)))), encode(Delete("k", Conditions(if_match=(3,)))),
    b"", b"\x01\x01", b"\x02\x01\x00\x00\x01kv", b"\x01\x09\x00\x00\x01kv", b"\x01\x01\x00\x00\x05kv", b"\x01\x01\x00\x00\x01\xffv",
])
def test_what_depends_on_the_state_or_is_no_command_is_not_foreseen(data):
    assert foresee(7, data) is None


@pytest.mark.parametrize(
    "command, data",
    [
        (Set("key", b"value"), b"\x01\x01\x00\x00\x03keyvalue"),
        (Delete("key"), b"\x01\x02\x00\x00\x03key"),
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
        b"\x01\x09\x00\x00\x01kv",  # an operation of a later raftd
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
    data = encode(Delete("key", Conditions(if_match=(1, 2), if_none_match=(3,))))
    for length in range(len(data)):
        with pytest.raises(UnknownCommand):
            decode(data[:length])


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
