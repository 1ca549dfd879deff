"""``/openapi.json``: what ``REFERENCE.rst`` says, for machines (OpenAPI 3.1). A test holds it against the routes and the errors."""

from flask import Blueprint

from raftd.config import MAX_KEY_BYTES
from raftd.errors import RaftdError
from raftd.web.answers import json_answer
from raftd.web.current import current_version
from raftd.web.parameters import ITEMS, LEVELS, MAX_IDEMPOTENCY_KEY, MAX_ITEMS, query
from raftd.web.txn import MAX_PARTS

blueprint = Blueprint("raftd_openapi", __name__)


@blueprint.get("/openapi.json")
def openapi():
    query()
    return json_answer(document(current_version()))


def document(version):
    """The whole document, for this *version* of the program."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "raftd", "version": version, "license": {"name": "MIT", "identifier": "MIT"},
                 "description": "A replicated key/value server on the Raft consensus algorithm."},
        "paths": {**_KEYS, **_CLUSTER, **_NODE},
        "components": {"schemas": _SCHEMAS, "parameters": _PARAMETERS, "headers": _HEADERS, "responses": _ERRORS},
    }


def _object(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _ref(kind, name):
    return {"$ref": f"#/components/{kind}/{name}"}


_TEXT, _INDEX, _FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
_DURATION = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$"}
_KEY = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_BYTES}
_EVENT_ID = {"type": "string", "pattern": r"^[0-9]{1,18}(\.[0-9]{6})?$"}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_VERSION = {"index": _INDEX, "created_index": _INDEX, "version": _INDEX, "expires_in": {"type": ["number", "null"]}}
_SCHEMAS = {
    "Item": {**_object(["key", *_VERSION], key=_KEY, value=_TEXT, value_base64=_BASE64, **_VERSION),
             "description": "A key as it is. The value is in value, if it is UTF-8, else in value_base64; in neither with keys_only."},
    "List": _object(["items", "next", "index"], items={"type": "array", "items": _ref("schemas", "Item")},
                    next={"type": ["string", "null"], "description": "The after of the next page."}, index=_INDEX),
    "Deleted": _object(["deleted", "index"], deleted=_INDEX, index=_INDEX),
    "Condition": {"oneOf": [_object(["key", what], key=_KEY, **{what: schema}) for what, schema in (
        ("index", _INDEX), ("exists", _FLAG), ("value", _TEXT), ("value_base64", _BASE64))]},
    "Operation": {"oneOf": [
        _object(["set", "value"], set=_KEY, value=_TEXT, ttl=_DURATION),
        _object(["set", "value_base64"], set=_KEY, value_base64=_BASE64, ttl=_DURATION),
        _object(["delete"], delete=_KEY), _object(["get"], get=_KEY)]},
    "Transaction": _object(**{"if": {"type": "array", "maxItems": MAX_PARTS, "items": _ref("schemas", "Condition")},
                              **{name: {"type": "array", "maxItems": MAX_PARTS, "items": _ref("schemas", "Operation")}
                                 for name in ("then", "else")}}),
    "Transacted": _object(["succeeded", "index", "results"], succeeded=_FLAG, index=_INDEX, results={"type": "array", "items": {"oneOf": [
        _object(["set", "index"], set=_KEY, index=_INDEX), _object(["delete", "deleted"], delete=_KEY, deleted=_FLAG),
        _object(["get", "exists"], get=_KEY, exists=_FLAG, value=_TEXT, value_base64=_BASE64, **_VERSION)]}}),
    "Problem": _object(["title", "status", "detail", "code", "retry", "leader"], title=_TEXT, status={"type": "integer"}, detail=_TEXT,
                       code=_TEXT, retry={"enum": ["safe", "maybe", "no"]}, leader={"type": ["string", "null"]}),
    "Server": _object(["name", "address"], name=_TEXT, address=_TEXT),
    "Named": _object(["name"], name=_TEXT),
    "Newcomer": _object(["name", "connectionString"], name=_TEXT, connectionString=_TEXT, voter=_FLAG),
    "Members": _object(["members"], members={"type": "array", "items": {
        "type": "object", "required": ["name", "address", "voter", "role"]}}),
    "Status": {"type": "object", "required": [
        "name", "address", "cluster", "role", "term", "leader", "commit_index", "last_applied", "version"]},
    "Identity": _object(["name", "id", "cluster"], name=_TEXT, id=_TEXT, cluster=_TEXT),
}


def _parameter(where, name, schema, description, **more):
    return {"name": name, "in": where, "schema": schema, "description": description, **more}


_PARAMETERS = {
    "key": _parameter("path", "key", _KEY, "UTF-8, percent-encoded; a / may stand as it is.", required=True),
    "level": _parameter("query", "level", {"enum": list(LEVELS)}, "How new a read is; linearizable if it does not say."),
    "min_index": _parameter("query", "min_index", _INDEX, "Read once this entry is applied here."),
    "timeout": _parameter("query", "timeout", _DURATION, "How long the request may take, at most 60s."),
    "redirect": _parameter("query", "redirect", _FLAG, "Be sent on to the leader, by 307."),
    "wait": _parameter("query", "wait", _DURATION, "Read once the key has changed after entry index, or after this time; at most 600s."),
    "index": _parameter("query", "index", _INDEX, "See wait."),
    "ttl": _parameter("query", "ttl", _DURATION, "The key expires after this time."),
    "touch": _parameter("query", "touch", _FLAG, "Leave the value as it is, and give the key another ttl."),
    "id": _parameter("query", "id", {"type": "string", "pattern": "^[0-9a-f]{32}$"}, "Only the member that has the files with this id."),
    "prefix": _parameter("query", "prefix", _TEXT, "Of the keys."),
    "after": _parameter("query", "after", _TEXT, "The key after which the page begins."),
    "limit": _parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": MAX_ITEMS, "default": ITEMS}, "Keys on a page."),
    "keys_only": _parameter("query", "keys_only", _FLAG, "Leave the values out."),
    "all": _parameter("query", "all", _FLAG, "An empty prefix is meant."),
    "since": _parameter("query", "since", _EVENT_ID, "The index of the entry, or the id of the event, after which to begin."),
    "last_event_id": _parameter("header", "Last-Event-ID", _EVENT_ID, "The same."),
    "if_match": _parameter("header", "If-Match", _TEXT, 'The key is in this version, "N", or there in any, *.'),
    "if_none_match": _parameter("header", "If-None-Match", _TEXT, "The key is not there, *, or not in this version."),
    "idempotency_key": _parameter("header", "Idempotency-Key", {"type": "string", "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY},
                                  "However often it is sent, it happens once, and all answers are that of the first time."),
    "fence": _parameter("header", "X-Raft-Fence", _TEXT, "KEY=TOKEN: only while KEY exists and was created by entry TOKEN."),
    "name": _parameter("path", "name", _TEXT, "Of a server.", required=True),
}


def _header(description, schema=_TEXT):
    return {"description": description, "schema": schema}


_HEADERS = {
    "X-Raft-Index": _header("The last applied index that this answer reflects.", _INDEX),
    "X-Raft-Term": _header("The term of this node.", _INDEX),
    "X-Raft-Node": _header("The name of this node."),
    "X-Raft-Leader": _header("http://HOST:PORT of the leader, if it is known."),
    "X-Raft-Error": _header("The code of the error."),
    "X-Raft-Retry": _header("Whether to send it again.", {"enum": ["safe", "maybe", "no"]}),
    "ETag": _header("The index of the entry that wrote the key, in quotes."),
}
_ALWAYS = {name: _ref("headers", name) for name in ("X-Raft-Index", "X-Raft-Term", "X-Raft-Node", "X-Raft-Leader")}


def _content(**types):
    return {"content": {name: {"schema": schema} for name, schema in types.items()}, "headers": _ALWAYS}


def _json(name, description):
    return {"description": description, **_content(**{"application/json": _ref("schemas", name)})}


def _bytes(description):
    return {"description": description, **_content(**{"text/plain; charset=utf-8": {}, "application/octet-stream": {}})}


def _errors():
    """One response for each status that an error may have."""
    codes = {}
    for error in (RaftdError, *RaftdError.__subclasses__()):
        if error.__module__ == RaftdError.__module__:  # others are of rooms that answer no request
            codes.setdefault(error.status, []).append(error.code)
    codes[507] = ["storage_failed"]
    headers = {**_ALWAYS, "X-Raft-Error": _ref("headers", "X-Raft-Error"), "X-Raft-Retry": _ref("headers", "X-Raft-Retry")}
    return {f"Error{status}": {"description": ", ".join(sorted(names)), "headers": headers,
                               "content": {"text/plain; charset=utf-8": {"schema": _TEXT},
                                           "application/problem+json": {"schema": _ref("schemas", "Problem")}}}
            for status, names in sorted(codes.items())}


_ERRORS = _errors()
_DONE = {"description": "Done.", "headers": _ALWAYS, "content": {"text/plain; charset=utf-8": {"schema": _TEXT}}}
_REDIRECT = {"description": "To the leader, with redirect.", "headers": _ALWAYS}
_READ, _WRITE = (400, 413, 500, 503, 504), (307, 400, 404, 412, 413, 422, 500, 503, 504, 507)


def _operation(name, summary, parameters, done, errors, body=None):
    responses = {"200": done, **{str(status): _REDIRECT if status == 307 else _ref("responses", f"Error{status}") for status in errors}}
    found = {"operationId": name, "summary": summary, "parameters": [_ref("parameters", parameter) for parameter in parameters],
             "responses": responses}
    return {**found, "requestBody": body} if body else found


def _body(name, required=True):
    """JSON, whatever the Content-Type says."""
    return {"required": required, "content": {"application/json": {"schema": _ref("schemas", name)}}}


_ON_WRITES = ["timeout", "redirect", "idempotency_key", "fence"]
_VALUE = {"required": True, "content": {"application/octet-stream": {"schema": {}}}}
_PUT = [*("key", "ttl", "touch", "if_match", "if_none_match"), *_ON_WRITES]
_KEYS = {
    "/db/": {
        "get": _operation("list", "Keys that begin with a prefix",
                          ["prefix", "after", "limit", "keys_only", "level", "min_index", "timeout"],
                          _json("List", "A page of them."), _READ),
        "delete": _operation("delete_prefix", "Remove the keys that begin with a prefix", ["prefix", "all", *_ON_WRITES],
                             _json("Deleted", "How many there were."), _WRITE),
    },
    "/db/{key}": {
        "get": _operation("get", "The value of a key", ["key", "level", "min_index", "timeout", "wait", "index"], _bytes("The value."),
                          (*_READ, 404)),
        "put": _operation("put", "Set a key", _PUT, _DONE, _WRITE, _VALUE),
        "post": _operation("post", "Set a key, or touch it", _PUT, _DONE, _WRITE, {**_VALUE, "required": False}),
        "delete": _operation("delete", "Remove a key", ["key", "if_match", "if_none_match", *_ON_WRITES], _DONE, _WRITE),
    },
    "/txn": {"post": _operation("txn", "Several keys in one step", _ON_WRITES, _json("Transacted", "What came of it."), _WRITE,
                                _body("Transaction"))},
    "/watch": {"get": _operation("watch", "What changes, as it changes", ["prefix", "since", "keys_only", "timeout", "last_event_id"],
                                 {"description": "Server-sent events: put, delete, expire; dropped and gone before an early end.",
                                  **_content(**{"text/event-stream; charset=utf-8": {}})}, (*_READ, 410))},
}
_CHANGE = (307, 400, 404, 413, 500, 503, 504, 507)
_CLUSTER = {
    "/join": {"post": _operation("join", "Make a server a member", ["timeout", "redirect"], _DONE, _CHANGE, _body("Newcomer"))},
    "/members": {"get": _operation("members", "Who belongs to the cluster", [], _json("Members", "All of them."), (400, 500, 503))},
    "/members/{name}": {"delete": _operation("remove", "Remove a member", ["name", "id", "timeout", "redirect"], _DONE, _CHANGE)},
    "/leader": {
        "get": _operation("leader", "Who leads", [], _json("Server", "The leader."), (400, 500, 503)),
        "post": _operation("transfer", "Hand leadership to another voter", ["timeout", "redirect"], _json("Server", "Who leads now."),
                           _CHANGE, _body("Named", required=False)),
    },
}
_NODE = {
    "/status": {"get": _operation("status", "This node", [], _json("Status", "How far it is."), (400, 500, 503))},
    "/livez": {"get": _operation("livez", "The process answers", [], _DONE, (500,))},
    "/readyz": {"get": _operation("readyz", "This node can serve a linearizable read", [], _DONE, (500, 503))},
    "/raft/identity": {"get": _operation("identity", "Who this server is", [], _json("Identity", "Its name and files."), (500, 503))},
    "/openapi.json": {"get": _operation("openapi", "This document", [], {"description": "OpenAPI 3.1.", "headers": _ALWAYS, "content": {
        "application/json": {"schema": {"type": "object"}}}}, (400, 500))},
}
