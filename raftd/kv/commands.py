"""The commands of the key/value state machine, their bytes in the log, and what comes of them.

Must not know: SQLite, Raft, HTTP. The bytes are for good: every raftd must read what an older one has written to the log.

A command is: format version (1 byte), operation (1), conditions (1: two bits each), length of the key (2), the key in UTF-8, the
indexes of the conditions that list some, and, of a Set, the value up to the end.
"""

import struct
from typing import Literal, NamedTuple

from raftd.errors import StartupError

_VERSION = 1
_SET, _DELETE = 1, 2
_NONE, _ANY, _LISTED = 0, 1, 2  # what a condition asks for: nothing; that there be any version; one of the listed ones
_PREFIX = struct.Struct(">BBBH")
_COUNT = struct.Struct(">I")
_LARGEST_INDEX = 2**63 - 1  # of SQLite


class UnknownCommand(StartupError):
    """The log holds a command that this raftd does not know; to skip it would make this node differ from the others."""


class Conditions(NamedTuple):
    """What must hold for a write to happen; each is None (nothing asked), ``"*"`` (any version), or the indexes of versions.

    if_match       the key exists, in one of these versions
    if_none_match  the key does not exist in any of these versions
    """

    if_match: tuple[int, ...] | Literal["*"] | None = None
    if_none_match: tuple[int, ...] | Literal["*"] | None = None

    def hold(self, modified_index):
        """True if a key last written at *modified_index* (0: there is no such key) may be written."""
        return (self.if_match is None or _matches(self.if_match, modified_index)) and not (
            self.if_none_match is not None and _matches(self.if_none_match, modified_index)
        )


def _matches(versions, modified_index):
    return modified_index > 0 and (versions == "*" or modified_index in versions)


UNCONDITIONAL = Conditions()


class Set(NamedTuple):
    """Give *key* this value."""

    key: str
    value: bytes
    conditions: Conditions = UNCONDITIONAL


class Delete(NamedTuple):
    """Remove *key*."""

    key: str
    conditions: Conditions = UNCONDITIONAL


class Get(NamedTuple):
    """The query for the value of *key*; never in the log."""

    key: str


class Outcome(NamedTuple):
    """What came of a command.

    kind   ``written``, ``deleted``, ``missing`` (nothing to delete), or ``refused`` (a condition does not hold)
    index  of the command's entry; but of a refused command the index that last wrote the key, 0 if there is no such key
    """

    kind: Literal["written", "deleted", "missing", "refused"]
    index: int


class Found(NamedTuple):
    """The answer to Get.

    value           None if there is no such key
    modified_index  the index that last wrote the key, 0 if there is no such key
    applied_index   the index of the state this answer reflects
    """

    value: bytes | None
    modified_index: int
    applied_index: int


def encode(command):
    """The bytes of *command* for the log."""
    operation, value = (_SET, command.value) if isinstance(command, Set) else (_DELETE, b"")
    kinds, listed = 0, b""
    if command.conditions is not UNCONDITIONAL:
        kinds = _kind(command.conditions.if_match) | _kind(command.conditions.if_none_match) << 2
        listed = _encode_listed(command.conditions.if_match) + _encode_listed(command.conditions.if_none_match)
    key = command.key.encode()
    return b"".join((_PREFIX.pack(_VERSION, operation, kinds, len(key)), key, listed, value))


def decode(data):
    """The command in *data*; raises UnknownCommand if this raftd has no such command."""
    try:
        version, operation, kinds, key_length = _PREFIX.unpack_from(data)
        if version != _VERSION or operation not in (_SET, _DELETE):
            raise _unknown(f"operation {operation} of format {version}")
        end = _PREFIX.size + key_length
        key = str(data[_PREFIX.size : end], "utf-8")
        conditions = UNCONDITIONAL
        if kinds:
            if_match, end = _decode_listed(kinds & 3, data, end)
            if_none_match, end = _decode_listed(kinds >> 2, data, end)
            conditions = Conditions(if_match, if_none_match)
    except (struct.error, UnicodeDecodeError) as error:
        raise _unknown(f"{len(data)} bytes with a wrong length or key") from error
    if end > len(data) or (operation == _DELETE and end != len(data)):
        raise _unknown(f"{len(data)} bytes where {end} were expected")
    return Set(key, bytes(data[end:]), conditions) if operation == _SET else Delete(key, conditions)


def is_plain_set(command):
    """True if *command* writes whatever stands there."""
    return type(command) is Set and command.conditions is UNCONDITIONAL


def foresee(index, data):
    """The Outcome that the command in *data* will have as the entry at *index*, whatever the state is; None if it depends on that."""
    try:
        return Outcome("written", index) if is_plain_set(decode(data)) else None
    except UnknownCommand:
        return None


def _unknown(what):
    return UnknownCommand(f"this raftd does not know a command in the log ({what}); upgrade it")


def _kind(versions):
    if versions is None:
        return _NONE
    return _ANY if versions == "*" else _LISTED


def _encode_listed(versions):
    if _kind(versions) != _LISTED:
        return b""
    # A client may ask for any number; one that cannot be an index matches nothing, and so need not be kept.
    indexes = [index for index in versions if 0 < index <= _LARGEST_INDEX]
    return _COUNT.pack(len(indexes)) + struct.pack(f">{len(indexes)}Q", *indexes)


def _decode_listed(kind, data, start):
    """A condition of *kind* and where it ends in *data*."""
    if kind == _NONE:
        return None, start
    if kind == _ANY:
        return "*", start
    if kind != _LISTED:
        raise _unknown(f"conditions of kind {kind}")
    (count,) = _COUNT.unpack_from(data, start)
    start += _COUNT.size
    return struct.unpack_from(f">{count}Q", data, start), start + 8 * count
