"""``/db``: keys and values. Must not know how a write is replicated or what makes a read safe."""

from flask import Blueprint, request
from werkzeug.routing import BaseConverter

from raftd.errors import BadRequest
from raftd.kv import Delete, DeletePrefix, Get, List, Set, Touch
from raftd.web.answers import items_answer, no_value_answer, value_answer
from raftd.web.current import current_node
from raftd.web.parameters import ITEMS, check_target, conditions, key_of, no_conditions, query, value_of_body
from raftd.web.writes import how_to_write, write

OFFER = "raftd.offer"  # in the WSGI environment of servers that take over who waits
WAITED = "raftd.waited"  # in the WSGI environment: the key of a read that waits has changed, or the wait is over
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
    if not key:
        return _list()
    node, key = current_node(), key_of(key)
    how = query(level="linearizable", min_index=0, timeout=node.settings.write_timeout_seconds, wait=0.0, index=0)
    seconds, index = how.pop("wait"), how.pop("index")
    if seconds and WAITED not in request.environ:
        if OFFER in request.environ:  # a server that lets no thread wait has not understood that it should
            raise BadRequest("a read that waits has the path /db/KEY, and wait only once, without an escape")
        node.state_machine.wait_for_change(key, index, seconds)
    found = node.read(Get(key), **how)
    return no_value_answer(found.applied_index) if found.value is None else value_answer(found)


def _list():
    """The keys that begin with a prefix, a page at a time."""
    check_target()
    node = current_node()
    how = query(prefix="", after="", limit=ITEMS, keys_only=False, level="linearizable", min_index=0,
                timeout=node.settings.write_timeout_seconds)
    wanted = List(how.pop("prefix"), how.pop("after"), how.pop("limit"), how.pop("keys_only"))
    return items_answer(node.read(wanted, **how))


@blueprint.route("/<raftd_key:key>", methods=["POST", "PUT"])
def put(key):
    """Set *key* to the body of the request, or let it, as it is, expire at another time."""
    how = how_to_write(ttl=0, touch=False)
    key, value = key_of(key), value_of_body()
    if not how["touch"]:
        return write(Set(key, value, conditions(request.headers), how["ttl"]), how["timeout"])
    if value or not how["ttl"]:
        raise BadRequest("touch takes no value, but a ttl")
    return write(Touch(key, how["ttl"], conditions(request.headers)), how["timeout"])


@blueprint.delete("/<raftd_key:key>")
def delete(key):
    if not key:
        return _delete_prefix()
    how = how_to_write()
    return write(Delete(key_of(key), conditions(request.headers)), how["timeout"])


def _delete_prefix():
    """Remove all keys that begin with a prefix, in one entry."""
    check_target()
    how = how_to_write(prefix=None, all=False)
    no_conditions(request.headers)
    if how["prefix"] is None:
        raise BadRequest("a key must not be empty; all keys that begin with P are deleted by ?prefix=P")
    if not how["prefix"] and not how["all"]:
        raise BadRequest("an empty prefix deletes every key; say all=true if that is meant")
    return write(DeletePrefix(how["prefix"]), how["timeout"])
