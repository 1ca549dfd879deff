"""Messages of peers as bytes: frames of a fixed header, with a checksum, and a payload per kind of message. Knows no socket.

    length u32 | kind u8 | configuration_index u64 | crc32 u32 | payload

``length`` counts the payload, the checksum covers kind, configuration_index and payload. Big-endian throughout. ``PROTOCOL``
names the format; peers that speak another one are refused when they connect.
"""

import struct
import zlib
from dataclasses import fields

from raftd.errors import Refusal
from raftd.raft.configuration import Configuration
from raftd.raft.messages import (
    CONFIGURATION,
    KINDS,
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

PROTOCOL = "raftd/3"
MAX_PAYLOAD = 64 << 20  # bytes; larger frames are refused before they are read
MAX_NUMBER = 1 << 62  # terms and indexes beyond it do not fit in the log file

HEADER = struct.Struct(">IBQI")
_ENTRY = struct.Struct(">QBI")
_APPEND = struct.Struct(">QQQQQQII")
_CHECKED = struct.Struct(">BQ")
_REFUSAL = 255

# One letter for each field: n number, f flag, s string, b bytes. AppendEntries has a form of its own.
_FIELDS = {
    RequestVote: "nsnnff", RequestVoteReply: "nf", AppendEntriesReply: "nfnnnf", InstallSnapshot: "nsnnnbnb", InstallSnapshotReply: "nnf",
    ReadIndex: "ns", ReadIndexReply: "nn", TimeoutNow: "ns", TimeoutNowReply: "n",
}
_NUMBERS = {kinds: struct.Struct(f">{kinds.replace('n', 'Q').replace('f', 'B')}") for kinds in _FIELDS.values() if set(kinds) <= {*"nf"}}
_NAMES = {kind: [field.name for field in fields(kind)] for kind in _FIELDS}
_KINDS = {AppendEntries: 1} | {kind: number for number, kind in enumerate(_FIELDS, 2)}
_CLASSES = {number: kind for kind, number in _KINDS.items()}
REPLIES = {RequestVote: RequestVoteReply, AppendEntries: AppendEntriesReply, InstallSnapshot: InstallSnapshotReply,
           ReadIndex: ReadIndexReply, TimeoutNow: TimeoutNowReply}


class WireError(Exception):
    """These bytes are not a message of this protocol."""


def encode(message, configuration_index):
    """The frame for *message*; *configuration_index* is where the sender's configuration stands in the log."""
    if isinstance(message, AppendEntries):
        payload = _encode_append_entries(message)
    else:
        values = [getattr(message, name) for name in _NAMES[type(message)]]
        payload = _encode_fields(_FIELDS[type(message)], values)
    return _frame(_KINDS[type(message)], configuration_index, payload)


def encode_refusal(text):
    """The frame that tells a peer why it is refused."""
    return _frame(_REFUSAL, 0, text.encode())


def _frame(kind, configuration_index, payload):
    checksum = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, configuration_index)))
    return HEADER.pack(len(payload), kind, configuration_index, checksum) + payload


def payload_length(header):
    """How many bytes follow *header* (of ``HEADER.size`` bytes). Raises WireError when that is more than a frame may have."""
    length = HEADER.unpack(header)[0]
    if length > MAX_PAYLOAD:
        raise WireError(f"a frame of {length} bytes; at most {MAX_PAYLOAD} are allowed")
    return length


def decode(header, payload):
    """(message, configuration_index). Raises WireError for anything malformed, Refusal for a refusal."""
    length, kind, configuration_index, checksum = HEADER.unpack(header)
    if checksum != zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, configuration_index))):
        raise WireError("a frame does not match its checksum")
    try:
        if kind == _REFUSAL:
            raise Refusal(payload.decode())
        if kind == _KINDS[AppendEntries]:
            return _decode_append_entries(payload), configuration_index
        message_class = _CLASSES[kind]
        return message_class(*_decode_fields(_FIELDS[message_class], payload)), configuration_index
    except (struct.error, KeyError, IndexError, ValueError, TypeError, RecursionError) as error:
        raise WireError(f"a malformed frame of kind {kind}: {error!r}") from error


def _encode_append_entries(message):
    leader = message.leader_id.encode()
    parts = [_APPEND.pack(message.term, message.prev_log_index, message.prev_log_term, message.leader_commit, message.round,
                          message.confirmed_index, message.lease_ms, len(message.entries)), struct.pack(">I", len(leader)), leader]
    for entry in message.entries:
        parts += (_ENTRY.pack(entry.term, entry.kind, len(entry.command)), entry.command)
    return b"".join(parts)


def _decode_append_entries(payload):
    term, prev_log_index, prev_log_term, leader_commit, read_round, confirmed_index, lease_ms, count = _APPEND.unpack_from(payload)
    (leader_id,), position = _take_fields("s", payload, _APPEND.size)
    entries, last_term = [], prev_log_term
    for index in range(prev_log_index + 1, prev_log_index + 1 + count):
        entry_term, kind, length = _ENTRY.unpack_from(payload, position)
        position += _ENTRY.size
        command = payload[position:position + length]
        position += length
        if len(command) != length or not last_term <= entry_term <= term:
            raise WireError(f"entry {index} is cut short, or its term is out of order")
        if kind not in KINDS:
            raise WireError(f"entry {index} is of kind {kind}, which this raftd does not know; upgrade")
        if kind == CONFIGURATION:
            Configuration.decode(command)  # only to see that it can be read: once it is in the log it must be
        entries.append(Entry(index, entry_term, kind, command))
        last_term = entry_term
    if position != len(payload) or max(term, prev_log_index + count, leader_commit, confirmed_index) > MAX_NUMBER or prev_log_term > term:
        raise WireError("AppendEntries with numbers that cannot be")
    return AppendEntries(term, leader_id, prev_log_index, prev_log_term, tuple(entries), leader_commit, read_round, confirmed_index,
                         lease_ms)


def _encode_fields(kinds, values):
    if kinds in _NUMBERS:
        return _NUMBERS[kinds].pack(*values)
    parts = []
    for kind, value in zip(kinds, values, strict=True):
        if kind == "n":
            parts.append(struct.pack(">Q", value))
        elif kind == "f":
            parts.append(b"\1" if value else b"\0")
        else:
            data = value.encode() if kind == "s" else value
            parts += (struct.pack(">I", len(data)), data)
    return b"".join(parts)


def _decode_fields(kinds, payload):
    if kinds in _NUMBERS:
        return [_checked(kind, value) for kind, value in zip(kinds, _NUMBERS[kinds].unpack(payload), strict=True)]
    values, position = _take_fields(kinds, payload, 0)
    if position != len(payload):
        raise WireError(f"{len(payload) - position} bytes too many")
    return values


def _checked(kind, value):
    """A number or flag as it may be."""
    if value > (MAX_NUMBER if kind == "n" else 1):
        raise WireError(f"the number {value} is too large")
    return value if kind == "n" else value == 1


def _take_fields(kinds, payload, position):
    values = []
    for kind in kinds:
        if kind == "n":
            value = _checked(kind, *struct.unpack_from(">Q", payload, position))
            position += 8
        elif kind == "f":
            value = _checked(kind, payload[position])
            position += 1
        else:
            length, = struct.unpack_from(">I", payload, position)
            value = payload[position + 4:position + 4 + length]
            position += 4 + length
            if position > len(payload):
                raise WireError("a field is cut short")
            value = value.decode() if kind == "s" else value
        values.append(value)
    return values, position
