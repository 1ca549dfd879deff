"""``/txn``: several keys in one entry of the log, all or nothing. Must not know how it is replicated."""

import base64
import binascii

from flask import Blueprint, request

from raftd.errors import BadRequest, TooLarge
from raftd.kv import Delete, Get, If, Set, Transaction
from raftd.web.current import current_node
from raftd.web.parameters import body, checked_key, json_object, no_conditions, shown, ttl
from raftd.web.writes import how_to_write, write

MAX_BODY_BYTES = 1 << 20
MAX_PARTS = 128  # of each of the three lists
LARGEST_INDEX = 2**63 - 1

blueprint = Blueprint("raftd_txn", __name__)


@blueprint.post("/txn")
def transact():
    """If all conditions hold do all of ``then``, else all of ``else``."""
    no_conditions(request.headers)
    how = how_to_write()
    asked, largest = transaction(body(MAX_BODY_BYTES, "a JSON body")), current_node().settings.max_value_bytes
    if any([type(part) is Set and len(part.value) > largest for part in asked.then + asked.otherwise]):
        raise TooLarge(f"a value is at most {largest} bytes long")
    return write(asked, how["timeout"])


def transaction(data):
    """The Transaction that *data* asks for. Its values may be too large, but no larger than *data*."""
    asked = json_object(data)
    for name in asked:
        if name not in ("if", "then", "else"):
            raise BadRequest(f"there is no member {shown(name)} here; known: if, then, else")
    found = Transaction(_parts(asked, "if", _condition), _parts(asked, "then", _operation), _parts(asked, "else", _operation))
    if not found.then and not found.otherwise:
        raise BadRequest('a transaction has operations in "then" or "else"')
    return found


def _parts(asked, name, part):
    found = asked.get(name, [])
    if not isinstance(found, list):
        raise BadRequest(f'"{name}" must be a list')
    if len(found) > MAX_PARTS:
        raise TooLarge(f'"{name}" has at most {MAX_PARTS} members')
    try:
        return tuple([part(members) for members in found])
    except BadRequest as error:
        raise BadRequest(f'in "{name}": {error}') from None


def _condition(members):
    if not isinstance(members, dict) or len(members) != 2 or "key" not in members:
        raise BadRequest('a condition is {"key": KEY, "index": N}, or "exists": true or false, or "value": TEXT, or "value_base64": TEXT')
    key = _take_key(members, "key")
    [(what, wanted)] = members.items()
    match what:
        case "index" if type(wanted) is int and 0 <= wanted <= LARGEST_INDEX:
            return If(key, what, wanted)
        case "exists" if type(wanted) is bool:
            return If(key, what, wanted)
        case "value" | "value_base64":
            return If(key, "value", _value(members))
    raise BadRequest(f"the member {shown(what)} of a condition cannot be {shown(str(wanted))}")


def _operation(members):
    if isinstance(members, dict):
        for name, operation in _OPERATIONS.items():
            if name in members:
                return operation(_take_key(members, name), members)
    raise BadRequest('an operation is {"set": KEY, "value": TEXT}, {"delete": KEY} or {"get": KEY}')


def _set(key, rest):
    milliseconds = 0
    if "ttl" in rest:
        if not isinstance(rest["ttl"], str):
            raise BadRequest('"ttl" must be a string such as "30s"')
        milliseconds = ttl(rest.pop("ttl"))
    return Set(key, _value(rest), ttl=milliseconds)


def _delete(key, rest):
    _nothing_else(rest)
    return Delete(key)


def _get(key, rest):
    _nothing_else(rest)
    return Get(key)


_OPERATIONS = {"set": _set, "delete": _delete, "get": _get}


def _nothing_else(rest):
    for name in rest:
        raise BadRequest(f"there is no member {shown(name)} here")


def _take_key(members, name):
    """The key in the member *name*, which is left out of *members* from now on."""
    key = members.pop(name)
    if not isinstance(key, str):
        raise BadRequest(f'"{name}" must be a key')
    return checked_key(key)


def _value(rest):
    """The value in the only member left, as text or in base64."""
    if len(rest) == 1:
        if isinstance(text := rest.get("value"), str):
            return _bytes_of(text)
        if isinstance(text := rest.get("value_base64"), str):
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise BadRequest('"value_base64" is not base64') from None
    raise BadRequest('a value is "value": TEXT or "value_base64": TEXT, and nothing else')


def _bytes_of(text):
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadRequest('"value" has half of a surrogate pair; send it as "value_base64"') from None
