"""Frames: what is encoded comes back the same, and hostile bytes are a WireError and nothing else."""

import random
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftd import wire
from raftd.errors import Refusal
from raftd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    InstallSnapshot,
    InstallSnapshotReply,
    ReadIndex,
    ReadIndexReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
    TimeoutNowReply,
)

NUMBER = st.integers(0, wire.MAX_NUMBER)
NAME = st.text(max_size=20).filter(lambda text: text.isprintable())
FLAG, DATA = st.booleans(), st.binary(max_size=200)


@st.composite
def append_entries(draw):
    """What a leader can send: terms that do not decrease, up to its own; indexes in a row."""
    terms = sorted(draw(st.lists(NUMBER, min_size=2, max_size=8)))
    prev_log_index = draw(st.integers(0, wire.MAX_NUMBER - 10))
    entries = tuple(Entry(index, term, draw(st.sampled_from((0, 1))), draw(DATA))
                    for index, term in enumerate(terms[1:-1], prev_log_index + 1))
    return AppendEntries(terms[-1], draw(NAME), prev_log_index, terms[0], entries, draw(NUMBER), draw(NUMBER))


MESSAGES = st.one_of(
    append_entries(),
    st.builds(RequestVote, NUMBER, NAME, NUMBER, NUMBER, FLAG, FLAG), st.builds(RequestVoteReply, NUMBER, FLAG),
    st.builds(AppendEntriesReply, NUMBER, FLAG, NUMBER, NUMBER, NUMBER),
    st.builds(InstallSnapshot, NUMBER, NAME, NUMBER, NUMBER, NUMBER, st.binary(min_size=32, max_size=32), NUMBER, DATA),
    st.builds(InstallSnapshotReply, NUMBER, NUMBER, FLAG),
    st.builds(ReadIndex, NUMBER, NAME), st.builds(ReadIndexReply, NUMBER, NUMBER),
    st.builds(TimeoutNow, NUMBER, NAME), st.builds(TimeoutNowReply, NUMBER),
)

EXAMPLES = [
    AppendEntries(7, "n1", 4, 5, (Entry(5, 6, 1, b"x" * 9), Entry(6, 7, 0, b""), Entry(7, 7, 2, b"[]")), 4, 3),
    AppendEntries(1, "n1", 0, 0),
    RequestVote(3, "n2", 9, 2, True, False), RequestVoteReply(3, True), AppendEntriesReply(3, False, 0, 5, 2, True),
    InstallSnapshot(3, "n1", 10, 2, 100, b"s" * 32, 50, b"data"), InstallSnapshotReply(3, 54, False), ReadIndex(3, "n3"),
    ReadIndexReply(3, 17), TimeoutNow(3, "n1"), TimeoutNowReply(3),
]


def split(frame):
    return frame[:wire.HEADER.size], frame[wire.HEADER.size:]


def sealed(kind, payload, configuration_index=0):
    """A frame as a peer that knows the checksum would make it, whatever is in it."""
    checksum = zlib.crc32(payload, zlib.crc32(struct.pack(">BQ", kind, configuration_index)))
    return wire.HEADER.pack(len(payload), kind, configuration_index, checksum), payload


def decoded(header, payload):
    """The message; None for a WireError. Anything else fails the test."""
    try:
        return wire.decode(header, payload)[0]
    except wire.WireError as error:
        assert len(str(error).splitlines()) == 1
        return None


def test_the_examples_are_all_kinds():
    assert {type(message) for message in EXAMPLES} == set(wire.REPLIES) | set(wire.REPLIES.values())


@pytest.mark.parametrize("message", EXAMPLES, ids=repr)
def test_round_trip(message):
    header, payload = split(wire.encode(message, 42))
    assert wire.payload_length(header) == len(payload)
    assert wire.decode(header, payload) == (message, 42)


@given(MESSAGES, NUMBER)
def test_round_trip_of_anything_valid(message, configuration_index):
    assert wire.decode(*split(wire.encode(message, configuration_index))) == (message, configuration_index)


def test_a_refusal_keeps_its_text():
    with pytest.raises(Refusal, match="^not a member — élu$"):
        wire.decode(*split(wire.encode_refusal("not a member — élu")))


@pytest.mark.parametrize("message", EXAMPLES, ids=repr)
def test_any_flipped_bit_is_noticed(message):
    """Bit errors that pass TCP's checksum are never taken for a message (fault 27)."""
    frame = wire.encode(message, 42)
    for bit in range(32, 8 * len(frame)):  # the length is not covered: the receiver reads another number of bytes
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decoded(*split(bytes(flipped))) is None, bit


@pytest.mark.parametrize("message", EXAMPLES, ids=repr)
def test_a_truncated_payload_is_refused_even_with_a_good_checksum(message):
    header, payload = split(wire.encode(message, 0))
    kind = wire.HEADER.unpack(header)[1]
    for length in range(len(payload)):
        assert decoded(*sealed(kind, payload[:length])) is None, length
        assert decoded(header, payload[:length]) is None, length
    assert decoded(*sealed(kind, payload + b"\0")) is None


@pytest.mark.parametrize("message", EXAMPLES, ids=repr)
def test_huge_numbers_are_refused(message):
    """A term of 2^63 would not fit in the log file; taken over, it would stop the cluster for good (fault 61)."""
    fields = [name for name in message.__slots__ if type(getattr(message, name)) is int and name != "round"]
    for name in fields:
        for huge in (wire.MAX_NUMBER + 1, 1 << 63, (1 << 64) - 1):
            try:
                frame = wire.encode(replace(message, **{name: huge}), 0)
            except struct.error:
                continue  # it cannot even be written
            assert decoded(*split(frame)) is None, (name, huge)


@pytest.mark.parametrize("kind", [0, 12, 77, 254])
def test_unknown_kinds_are_refused(kind):
    for payload in (b"", b"\0" * 8, b"\0" * 100):
        assert decoded(*sealed(kind, payload)) is None


@given(st.integers(0, 254), st.binary(max_size=300), st.integers(0, (1 << 64) - 1))
def test_any_bytes_with_a_good_checksum_are_a_message_or_a_wire_error(kind, payload, configuration_index):
    decoded(*sealed(kind, payload, configuration_index))


def test_changed_bytes_with_a_good_checksum_are_a_message_or_a_wire_error():
    """Closer to home than random bytes: real messages with a few bytes changed, cut out or put in."""
    rng = random.Random(7)
    for _ in range(4000):
        header, payload = split(wire.encode(rng.choice(EXAMPLES), 0))
        payload = bytearray(payload)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(payload) or 1)
            payload[at:at + rng.randint(0, 4)] = rng.choice((b"", b"\xff", b"\0", rng.randbytes(4), b"\xff" * 8))
        message = decoded(*sealed(wire.HEADER.unpack(header)[1], bytes(payload)))
        if isinstance(message, AppendEntries):
            terms = [message.prev_log_term, *(entry.term for entry in message.entries), message.term]
            assert terms == sorted(terms) and message.prev_log_index + len(message.entries) <= wire.MAX_NUMBER


@pytest.mark.parametrize("bad", [
    AppendEntries(3, "n1", 4, 3, (Entry(5, 2, 1, b""),)), AppendEntries(3, "n1", 4, 2, (Entry(5, 4, 1, b""),)),
    AppendEntries(3, "n1", 4, 2, (Entry(5, 3, 1, b""), Entry(6, 2, 1, b""))), AppendEntries(3, "n1", 4, 4),
])
def test_terms_out_of_order_are_refused(bad):
    """A log whose terms decrease is no log; nobody's may become one (section 5.3)."""
    assert decoded(*split(wire.encode(bad, 0))) is None


@pytest.mark.parametrize("command", [b"", b"nonsense", b"[1]", b'[["n1"]]', b'[["n1","a:1",true,"",0]]', b"\xff", b"null",
                                     b"[" * 100_000, b'[[[],"",true,""]]'], ids=range(9))
def test_a_membership_that_cannot_be_read_is_refused(command):
    """It is read when it is appended; found out only then, the log would already hold what cannot be undone."""
    assert decoded(*split(wire.encode(AppendEntries(3, "n1", 4, 2, (Entry(5, 3, 2, command),)), 0))) is None


def test_a_million_entries_that_are_not_there_are_refused_at_once():
    payload = struct.pack(">QQQQQI", 3, 4, 2, 0, 0, (1 << 32) - 1) + struct.pack(">I", 2) + b"n1"
    assert decoded(*sealed(1, payload)) is None


def test_a_frame_that_is_too_long_is_refused_before_it_is_read():
    with pytest.raises(wire.WireError, match="allowed"):
        wire.payload_length(wire.HEADER.pack(wire.MAX_PAYLOAD + 1, 1, 0, 0))
    assert wire.payload_length(wire.HEADER.pack(wire.MAX_PAYLOAD, 1, 0, 0)) == wire.MAX_PAYLOAD


def test_an_entry_of_a_kind_that_is_not_known_is_refused():
    """A server that meets an entry it does not know must stop before it takes it into its log."""
    frame = wire.encode(AppendEntries(3, "n1", 4, 2, (Entry(5, 3, 9, b"from the future"),)), 0)
    with pytest.raises(wire.WireError, match="upgrade"):
        wire.decode(frame[:wire.HEADER.size], frame[wire.HEADER.size:])
