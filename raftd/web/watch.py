"""``/watch``: what changes, as it changes, as server-sent events. Must not know sockets: a server may take the stream over (``Offer``).

A change is one event; its id is the index of its entry. Where an entry makes several changes, only the last has that id: those before
it have one between, such as ``41.999998``, so that who breaks off in the middle goes on there. An ``id`` without an event comes first,
since who has seen nothing yet must go on from somewhere, too.
"""

import json
import re

from flask import Blueprint, Response, request

from raftd.errors import BadRequest, HistoryGone, Overloaded
from raftd.kv import CHANGE_KINDS, MOST_CHANGES_OF_AN_ENTRY, Changes, change_id, index_of
from raftd.web.answers import value_members
from raftd.web.current import current_node
from raftd.web.db import OFFER
from raftd.web.parameters import query, shown

KEEP_ALIVE_SECONDS = 5.0
_LAST = change_id(10**12)  # after all changes that there will be
_POSITION = re.compile(r"([0-9]{1,18})(?:\.([0-9]{6}))?")

blueprint = Blueprint("raftd_watch", __name__)


class Offer:
    """What a server that can take streams over puts into the environment of a request. ``taken``: the Stream, if it is to do so."""

    def __init__(self, is_full):
        self.is_full, self.taken = is_full, None


@blueprint.get("/watch")
def watch():
    """Every change after ``since``, or after ``Last-Event-ID``, or from now on."""
    node, offer = current_node(), request.environ.get(OFFER)
    how = query(prefix="", since=None, keys_only=False, timeout=node.settings.write_timeout_seconds)
    position = _position("Last-Event-ID", request.headers["Last-Event-ID"]) if "Last-Event-ID" in request.headers else \
        _position("since", how["since"]) if how["since"] is not None else None
    if offer and offer.is_full:
        raise Overloaded("as many are watching as this node allows; watch on another")
    if position is None:
        position = change_id(node.read(Changes(_LAST, 0), timeout=how["timeout"]).applied_index)
    else:
        node.look_up(Changes(position, 0))
    stream = Stream(node, position, how["prefix"], how["keys_only"], offer)
    answer = Response(stream if request.method == "GET" else b"", direct_passthrough=request.method == "GET")
    answer.headers["Content-Type"] = "text/event-stream; charset=utf-8"
    answer.headers["X-Accel-Buffering"] = "no"  # else a proxy in front might keep events back
    return answer


def _position(name, text):
    match = _POSITION.fullmatch(text.strip())
    if not match:
        raise BadRequest(f"{name} is a log index, or the id of an event, not {shown(text)}")
    return min(change_id(int(match[1])) + int(match[2] or 0), _LAST)


class Stream:
    """What one client watches: the changes after *position* (``change_id``) of keys with that prefix.

    As an iterable it waits for them in the thread that asks, for servers that cannot take it over.
    """

    def __init__(self, node, position, prefix, keys_only, offer):
        self.position, self.prefix, self.keys_only = position, prefix, keys_only
        self._node, self._offer = node, offer

    def __iter__(self):
        if self._offer:
            self._offer.taken = self
            return iter(())
        return self._events()

    def _events(self):
        state = self._node.state_machine
        yield beginning(self.position)
        while True:
            try:
                changes = state.read(Changes(self.position)).changes
            except HistoryGone as error:
                yield farewell("gone", str(error), self.position)
                return
            if changes:
                self.position = changes[-1].id
                yield events(changes, self.prefix, self.keys_only)
            elif not state.wait_for_more(self.position, KEEP_ALIVE_SECONDS):
                yield keep_alive(self.position)


# The bytes of events


def beginning(position):
    return f": the changes after {_id(position)}\nid: {_id(position)}\n\n".encode()


def keep_alive(position):
    """No event, but where to go on: changes of other keys may be forgotten meanwhile."""
    return f": nothing new\nid: {_id(position)}\n\n".encode()


def farewell(event, reason, position):
    """The last event of a stream that ends before its client wants it to."""
    return f"event: {event}\ndata: {json.dumps({'reason': reason, 'id': _id(position)})}\n\n".encode()


def events(changes, prefix="", keys_only=False):
    """The events of those of *changes* that are of keys with that prefix."""
    return b"".join([_event(change, keys_only) for change in changes if change.key.startswith(prefix)])


def _event(change, keys_only):
    kind = CHANGE_KINDS[change.kind]
    value = value_members(change.value) if kind == "put" and not keys_only else {}
    data = {"key": change.key, "index": index_of(change.id), "previous_index": change.previous_index, **value}
    return f"id: {_id(change.id)}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def _id(position):
    index, more = divmod(position, MOST_CHANGES_OF_AN_ENTRY)
    return f"{index}.{more:06}" if more else str(index)
