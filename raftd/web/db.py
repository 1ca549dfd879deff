"""``/db``: keys and values. Must not know how a write is replicated or what makes a read safe."""

from flask import Blueprint
from werkzeug.routing import BaseConverter

from raftd.errors import NotFound, PreconditionFailed
from raftd.kv import Delete, Get, Set, encode
from raftd.web.answers import done_answer, error_answer, no_value_answer, value_answer
from raftd.web.current import current_node
from raftd.web.parameters import conditions, key_of, query, refuse_idempotency_key, value_of_body

blueprint = Blueprint("raftd_db", __name__, url_prefix="/db")


class KeyConverter(BaseConverter):
    """All the rest of the path, also nothing, newlines, and slashes at either end."""

    regex = r"[\s\S]*"
    part_isolating = False


@blueprint.record_once
def _add_converter(state):
    state.app.url_map.converters["raftd_key"] = KeyConverter


@blueprint.get("/<raftd_key:key>")
def get(key):
    """The value of *key*, never older than the request unless ``level=stale``; for how sure that is with ``leader`` see ``Node.read``."""
    node = current_node()
    how = query(level="linearizable", min_index=0, timeout=node.settings.write_timeout_seconds)
    found = node.read(Get(key_of(key)), **how)
    return no_value_answer(found.applied_index) if found.value is None else value_answer(found)


@blueprint.route("/<raftd_key:key>", methods=["POST", "PUT"])
def put(key):
    """Set *key* to the body of the request."""
    return _write(Set(key_of(key), value_of_body(), conditions()))


@blueprint.delete("/<raftd_key:key>")
def delete(key):
    return _write(Delete(key_of(key), conditions()))


def _write(command):
    refuse_idempotency_key()
    node = current_node()
    how = query(timeout=node.settings.write_timeout_seconds, redirect=False)
    return _outcome_answer(node.propose(encode(command), how["timeout"]))


def _outcome_answer(applied):
    error, etag = outcome_of(applied)
    return error_answer(error, applied.index) if error else done_answer(applied.index, etag)


def outcome_of(applied):
    """(the error that a write has ended with, or None; the ETag to answer, or None)."""
    kind, index = applied.result
    match kind:
        case "written":
            return None, f'"{index}"'
        case "deleted":
            return None, None
        case "missing":
            return NotFound("no such key"), None
        case "refused" if index:
            return PreconditionFailed(f"the key was last written at {index}", f'"{index}"'), None
        case "refused":
            return PreconditionFailed("there is no such key"), None
    raise AssertionError(f"unknown outcome: {applied!r}")
