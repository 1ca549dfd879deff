"""The bytes of commands in the log, and of outcomes in state.db. They are for good: every raftd must read what an older one has written.

A command is: format version (1 byte), operation (1), conditions (1: two bits each), length of the key (2), the key in UTF-8, the
indexes of the conditions that list some, and the rest, up to the end: see ``_DECODERS``. Numbers are big-endian; a text or a value
in the rest follows its length (4 bytes).
"""

import struct
from functools import cache
from hashlib import blake2b
from itertools import accumulate, pairwise

from raftd.kv.commands import (
    UNCONDITIONAL,
    Conditions,
    Delete,
    DeletePrefix,
    Expire,
    Fence,
    Found,
    Get,
    If,
    Outcome,
    Request,
    Set,
    Touch,
    Transaction,
    UnknownCommand,
)

_VERSION = 1
_SET, _DELETE, _SET_FOR_A_TIME, _TOUCH, _DELETE_PREFIX, _TRANSACTION, _EXPIRE, _REQUEST, _READING, _SET_MANY = range(1, 11)
_NONE, _ANY, _LISTED = 0, 1, 2  # what a condition asks for: nothing; that there be any version; one of the listed ones
_PREFIX = struct.Struct(">BBBH")
_KEY_AT = _PREFIX.size
_PLAIN_SET, _MANY_SETS = bytes((_VERSION, _SET, 0)), bytes((_VERSION, _SET_MANY))  # how that begins which is written most
_A_REQUEST = bytes((_VERSION, _REQUEST))
_IS_READING = bytes((_READING,))
_MAY_READ = {_IS_READING, bytes((_REQUEST,))}
MAX_READING = 16  # commands, among those that are done together, whose outcome may be much larger than they are
_COUNT = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")
_SAID_AT, _NOTHING_SAID = _PREFIX.size + _NUMBER.size, bytes(16)  # in a Request: that it has neither idempotency key nor fence
_PART = struct.Struct(">BI")  # of a transaction: what it is, the length of its key
_LARGEST_INDEX = 2**63 - 1  # of SQLite
_IF_INDEX, _IF_EXISTS, _IF_VALUE, _PART_SET, _PART_DELETE, _PART_GET = range(1, 7)
_DONE, _NOT_DONE, _FOUND, _NOT_FOUND = range(4)  # the results of the operations of a transaction
_KINDS = ("written", "deleted", "touched", "missing", "refused", "transacted", "deleted-prefix", "expired", "too-large", "fenced")


# Commands


def encode(command):
    """The bytes of *command* for the log."""
    if type(command) is Set:
        if not command.ttl:
            return _packed(_SET, command.key, command.value, command.conditions)
        return _packed(_SET_FOR_A_TIME, command.key, _NUMBER.pack(command.ttl) + command.value, command.conditions)
    match command:
        case Delete(key, conditions):
            return _packed(_DELETE, key, b"", conditions)
        case Touch(key, ttl, conditions):
            return _packed(_TOUCH, key, _NUMBER.pack(ttl), conditions)
        case DeletePrefix(prefix):
            return _packed(_DELETE_PREFIX, prefix, b"")
        case Transaction((), then, ()) if _are_plain_sets(then):
            return _packed(_SET_MANY, "", _encode_sets(then))
        case Transaction(conditions, then, otherwise):
            return _packed(_READING if command.reads else _TRANSACTION, "", b"".join(
                [_encode_all(conditions, _encode_if), _encode_all(then, _encode_part), _encode_all(otherwise, _encode_part)]))
        case Expire():
            return _packed(_EXPIRE, "", b"")
        case Request(inner, time, key, fence):
            fence = fence or Fence("", 0)
            return _packed(_REQUEST, "", b"".join(
                [_NUMBER.pack(time), _text(key), _text(fence.key), _NUMBER.pack(fence.token), encode(inner)]))
    raise AssertionError(f"no command: {command!r}")


def decode(data):
    """The command in *data*; raises UnknownCommand if this raftd has no such command."""
    try:
        if data[:3] == _PLAIN_SET:
            end = _KEY_AT + (data[3] << 8 | data[4])
            if end <= len(data):
                return Set(str(data[_KEY_AT:end], "utf-8"), bytes(data[end:]))
        version, operation, kinds, key_length = _PREFIX.unpack_from(data)
        if version != _VERSION:
            raise _unknown(f"operation {operation} of format {version}")
        end = _PREFIX.size + key_length
        key = str(data[_PREFIX.size : end], "utf-8")
        conditions = UNCONDITIONAL
        if kinds:
            if_match, end = _decode_listed(kinds & 3, data, end)
            if_none_match, end = _decode_listed(kinds >> 2, data, end)
            conditions = Conditions(if_match, if_none_match)
        if end > len(data):
            raise _unknown(f"{len(data)} bytes where {end} were expected")
        if operation == _SET:
            return Set(key, bytes(data[end:]), conditions)
        if operation not in _DECODERS:
            raise _unknown(f"operation {operation}")
        rest = _Rest(data, end)
        command = _DECODERS[operation](key, conditions, rest)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise _unknown(f"{len(data)} bytes with a wrong length or key") from error
    if rest.at != len(data):
        raise _unknown(f"{len(data)} bytes where {rest.at} were expected")
    return command


class _Rest:
    """Takes what follows, piece by piece. Raises struct.error when it is not there."""

    def __init__(self, data, at):
        self.data, self.at = data, at

    def unpack(self, form):
        found = form.unpack_from(self.data, self.at)
        self.at += form.size
        return found

    def number(self):
        return self.unpack(_NUMBER)[0]

    def bytes(self, length):
        found, self.at = bytes(self.data[self.at:self.at + length]), self.at + length
        if len(found) != length:
            raise struct.error("it ends too early")
        return found

    def value(self):
        return self.bytes(self.unpack(_COUNT)[0])

    def text(self):
        return self.value().decode()

    def remaining(self):
        return self.bytes(len(self.data) - self.at)

    def pieces(self, lengths):
        """Pieces of these lengths."""
        whole = self.bytes(sum(lengths))
        return [whole[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]

    def all(self, decode_one):
        return tuple([decode_one(self) for _ in range(self.unpack(_COUNT)[0])])


_DECODERS = {
    _DELETE: lambda key, conditions, rest: Delete(key, conditions),
    _SET_FOR_A_TIME: lambda key, conditions, rest: Set(key, ttl=rest.number(), conditions=conditions, value=rest.remaining()),
    _TOUCH: lambda key, conditions, rest: Touch(key, rest.number(), conditions),
    _DELETE_PREFIX: lambda key, conditions, rest: DeletePrefix(key),
    _TRANSACTION: lambda key, conditions, rest: _decode_transaction(rest),
    _READING: lambda key, conditions, rest: _decode_transaction(rest),
    _SET_MANY: lambda key, conditions, rest: Transaction((), _decode_sets(rest)),
    _EXPIRE: lambda key, conditions, rest: Expire(),
    _REQUEST: lambda key, conditions, rest: _decode_request(rest),
}


def _decode_transaction(rest):
    return Transaction(rest.all(_decode_if), rest.all(_decode_part), rest.all(_decode_part))


def how_many(commands):
    """Of how many of the first of *commands*, as ``encode`` has made them, the outcomes may be in memory together.

    Those of transactions that read may be much larger than they are.
    """
    reading = 0
    for count, data in enumerate(commands):
        if data[1:2] in _MAY_READ:
            reading += _reads(data)
            if reading > MAX_READING:
                return count
    return len(commands)


def _reads(data):
    if data[1:2] == _IS_READING:
        return True
    try:
        rest = _Rest(data, _PREFIX.size)
        rest.number(), rest.value(), rest.value(), rest.number()
        return data[rest.at + 1:rest.at + 2] == _IS_READING
    except struct.error:
        return False


def _decode_request(rest):
    time, key, fence, token = rest.number(), rest.text(), rest.text(), rest.number()
    return Request(decode(rest.remaining()), time, key, Fence(fence, token) if token else None)


def digest(request):
    """What tells *request* from others with its idempotency key: all of it, but not when it was sent."""
    return blake2b(encode(request._replace(time=0)), digest_size=16).digest()


def foresee(index, data):
    """The Outcome that the command in *data* will have as the entry at *index*, whatever the state is; None if it depends on that."""
    try:
        if data[:2] == _MANY_SETS:
            (count,) = _COUNT.unpack_from(data, _PREFIX.size)
            return Outcome("transacted", index, (True, (True,) * count))
        if data[:3] == _PLAIN_SET:
            return decode(data) and Outcome("written", index)
        if data[:2] == _A_REQUEST and data[_SAID_AT:_SAID_AT + len(_NOTHING_SAID)] == _NOTHING_SAID:
            return _foresee(index, decode(data).command)
    except (struct.error, UnknownCommand):
        pass
    return None


def _foresee(index, command):
    match command:
        case Set(conditions=conditions) if conditions is UNCONDITIONAL:
            return Outcome("written", index)
        case Transaction((), then, ()) if all([type(part) is Set for part in then]):
            return Outcome("transacted", index, (True, (True,) * len(then)))
    return None


def _unknown(what):
    return UnknownCommand(f"this raftd does not know a command in the log ({what}); upgrade it")


def _packed(operation, key, rest, conditions=UNCONDITIONAL):
    kinds, listed = 0, b""
    if conditions is not UNCONDITIONAL:
        kinds = _kind(conditions.if_match) | _kind(conditions.if_none_match) << 2
        listed = _encode_listed(conditions.if_match) + _encode_listed(conditions.if_none_match)
    key = key.encode()
    return b"".join((_PREFIX.pack(_VERSION, operation, kinds, len(key)), key, listed, rest))


def _value(value):
    return _COUNT.pack(len(value)) + value


def _text(text):
    return _value(text.encode())


def _encode_all(items, encode_one):
    return b"".join([_COUNT.pack(len(items)), *map(encode_one, items)])


# A transaction that is nothing but plain Sets, the fast way to load data: first all lengths, then all keys, then all values


def _are_plain_sets(operations):
    return all([type(part) is Set and not part.ttl for part in operations])


@cache
def _lengths(count):
    return struct.Struct(f">{count}H{count}I")


def _encode_sets(sets):
    keys, values = [key.encode() for key, _, _, _ in sets], [value for _, value, _, _ in sets]
    return b"".join([_COUNT.pack(len(sets)), _lengths(len(sets)).pack(*map(len, keys), *map(len, values)), *keys, *values])


def _decode_sets(rest):
    (count,) = rest.unpack(_COUNT)
    if count > len(rest.data):
        raise struct.error("it ends too early")
    lengths = rest.unpack(_lengths(count))
    keys, values = rest.pieces(lengths[:count]), rest.pieces(lengths[count:])
    return tuple([Set(key.decode(), value) for key, value in zip(keys, values, strict=True)])


# The parts of a transaction


def _part(kind, key, rest=b""):
    key = key.encode()
    return b"".join((_PART.pack(kind, len(key)), key, rest))


def _encode_if(condition):
    key, what, wanted = condition
    match what:
        case "index":
            return _part(_IF_INDEX, key, _NUMBER.pack(wanted))
        case "exists":
            return _part(_IF_EXISTS, key, _NUMBER.pack(wanted))
        case "value":
            return _part(_IF_VALUE, key, _value(wanted))
    raise AssertionError(f"no condition: {condition!r}")


def _decode_if(rest):
    kind, length = rest.unpack(_PART)
    key = rest.bytes(length).decode()
    if kind == _IF_INDEX:
        return If(key, "index", rest.number())
    if kind == _IF_EXISTS:
        return If(key, "exists", bool(rest.number()))
    if kind == _IF_VALUE:
        return If(key, "value", rest.value())
    raise _unknown(f"a condition of kind {kind} of a transaction")


def _encode_part(operation):
    match operation:
        case Set(key, value, _, ttl):
            return _part(_PART_SET, key, _NUMBER.pack(ttl) + _value(value))
        case Delete(key):
            return _part(_PART_DELETE, key)
        case Get(key):
            return _part(_PART_GET, key)
    raise AssertionError(f"no operation: {operation!r}")


def _decode_part(rest):
    kind, length = rest.unpack(_PART)
    key = rest.bytes(length).decode()
    if kind == _PART_SET:
        ttl = rest.number()
        return Set(key, rest.value(), UNCONDITIONAL, ttl)
    if kind in (_PART_DELETE, _PART_GET):
        return Delete(key) if kind == _PART_DELETE else Get(key)
    raise _unknown(f"an operation of kind {kind} in a transaction")


# Conditions


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


# Outcomes


def encode_outcome(outcome):
    """The bytes of *outcome*, of a request that may come again."""
    kind, index, detail, _ = outcome
    head = bytes((_KINDS.index(kind),)) + _NUMBER.pack(index)
    if kind == "transacted":
        succeeded, results = detail
        return head + bytes((succeeded,)) + _encode_all(results, _encode_result)
    return head + _NUMBER.pack(detail or 0)


def decode_outcome(data):
    """The Outcome in *data*, as one that is replayed. Raises struct.error or IndexError for other bytes."""
    rest = _Rest(data, 1)
    kind, index = _KINDS[data[0]], rest.number()
    if kind == "transacted":
        detail = bool(rest.bytes(1)[0]), rest.all(_decode_result)
    else:
        detail = rest.number() if kind in ("deleted-prefix", "expired") else None
    return Outcome(kind, index, detail, replayed=True)


def _encode_result(result):
    if result is True or result is False:
        return bytes((_DONE if result else _NOT_DONE,))
    if result.value is None:
        return bytes((_NOT_FOUND,)) + _NUMBER.pack(result.applied_index)
    ttl = 0 if result.expires_in is None else round(result.expires_in * 1000) + 1
    numbers = (result.modified_index, result.applied_index, result.created_index, result.version, ttl)
    return b"".join((bytes((_FOUND,)), *map(_NUMBER.pack, numbers), _value(result.value)))


def _decode_result(rest):
    kind = rest.bytes(1)[0]
    if kind in (_DONE, _NOT_DONE):
        return kind == _DONE
    if kind == _NOT_FOUND:
        return Found(None, 0, rest.number())
    modified_index, applied_index, created_index, version, ttl = [rest.number() for _ in range(5)]
    return Found(rest.value(), modified_index, applied_index, created_index, version, (ttl - 1) / 1000 if ttl else None)
