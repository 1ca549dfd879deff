"""Shapes answers: values, JSON, errors, the headers on each. Must not know what a request asked for."""

import base64
import json
import logging
from http import HTTPStatus
from urllib.parse import quote

from flask import Response, request
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from raftd.errors import (
    BadRequest, HistoryGone, MethodNotAllowed, NotFound, NotLeader, Overloaded, PreconditionFailed, RaftdError, TooLarge,
)
from raftd.kv import Delete, Get, Set
from raftd.web.current import current_node
from raftd.web.parameters import wants_redirect

log = logging.getLogger(__name__)
_json = json.JSONEncoder().encode

TEXT = "text/plain; charset=utf-8"
RETRY_AFTER_SECONDS = 1
MAX_LIST_BYTES = 8 << 20  # of the JSON of a list; one item may be longer
NOT_CACHED = ("Cache-Control", "no-cache")  # a cache on the way would make a linearizable read stale


def add_raft_headers(response):
    """What every answer carries; what the view knows better, such as the index of a read, stays."""
    headers = response.headers
    present = {name for name, _ in headers}
    for name, value in current_node().headers().items():
        if name not in present:
            headers.add(name, value)
    headers.add(*NOT_CACHED)
    if request.method == "OPTIONS" and response.status_code == 200:
        headers["Content-Type"], headers["Allow"] = TEXT, ", ".join(sorted(response.allow))
    return response


def value_fields(found):
    """The header fields of a value. A browser must not take it for a page of ours."""
    fields = {
        "Content-Type": _content_type(found.value),
        "ETag": f'"{found.modified_index}"',
        "X-Raft-Index": str(found.applied_index),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
    }
    if found.expires_in is not None:
        fields["X-Raft-Expires-In"] = f"{found.expires_in:.3f}"
    return fields


def value_answer(found):
    """The value as it was sent."""
    return Response(found.value, headers=value_fields(found))


def _content_type(value):
    try:
        value.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return TEXT


def no_value_answer(index):
    """For a key that does not exist; without a body, so that a shell's ``$(curl -s ...)`` is empty."""
    return error_answer(NotFound("no such key"), index, body="")


def done_fields(index=None, etag=None):
    """The header fields of an answer without a body."""
    return _known({"Content-Type": TEXT, "X-Raft-Index": index, "ETag": etag})


def done_answer(index=None, etag=None):
    """200 without a body."""
    return Response(headers=done_fields(index, etag))


def text_answer(line):
    return Response(line + "\n", headers={"Content-Type": TEXT})


def json_answer(value, index=None):
    """*value* as JSON. *index*: the log index it reflects, if that is known."""
    return json_text_answer(_json(value) + "\n", index)


def json_text_answer(text, index=None):
    """The same, of what is JSON already."""
    return Response(text, headers=json_fields(index))


def json_fields(index=None):
    """The header fields of an answer in JSON."""
    return _known({"Content-Type": "application/json", "X-Raft-Index": index})


def value_members(value):
    """The member of a JSON object that holds *value*: as text, if it is UTF-8."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}


def version_members(found):
    """The members of a JSON object that say which version of a key it is, of a Found or Item."""
    return {"index": found.modified_index, "created_index": found.created_index, "version": found.version, "expires_in": found.expires_in}


def transacted_body(transaction, outcome):
    """What came of each operation of *transaction*, as JSON."""
    succeeded, results = outcome.detail
    operations = transaction.then if succeeded else transaction.otherwise
    parts = [_result(operation, result, outcome.index) for operation, result in zip(operations, results, strict=True)]
    return f'{{"succeeded": {_json(succeeded)}, "index": {outcome.index}, "results": [{", ".join(parts)}]}}\n'


def _result(operation, result, index):
    if type(operation) is Set:
        return f'{{"set": {_json(operation.key)}, "index": {index}}}'
    match operation:
        case Delete(key):
            return _json({"delete": key, "deleted": result})
        case Get(key) if result.value is None:
            return _json({"get": key, "exists": False})
        case Get(key):
            return _json({"get": key, "exists": True, **value_members(result.value), **version_members(result)})
    raise AssertionError(f"no operation: {operation!r}")


def items_answer(listed):
    """The Listed, as JSON of bounded length: what does not fit is for the next page."""
    parts, size, next_after = [], 0, listed.next
    for item in listed.items:
        value = {} if item.value is None else value_members(item.value)
        part = _json({"key": item.key, **value, **version_members(item)})
        if parts and size + len(part) > MAX_LIST_BYTES:
            next_after = listed.items[len(parts) - 1].key
            break
        parts.append(part)
        size += len(part)
    text = f'{{"items": [{", ".join(parts)}], "next": {_json(next_after)}, "index": {listed.applied_index}}}\n'
    return json_text_answer(text, listed.applied_index)


def error_answer(error, index=None, body=None):
    """The answer for a RaftdError. *index*: the log index it reflects, if that is known. *body* replaces the error's line."""
    if isinstance(error, NotLeader) and error.leader and wants_redirect():
        return _redirect_answer(error.leader)
    headers, detail = error_fields(error, index), error_line(error)
    if body is None:
        headers["Content-Type"], body = error_body(error, detail, request.headers.get("Accept", ""), current_node().headers())
    return Response(body, error.status, headers)


def error_fields(error, index=None):
    """The header fields of an error that is answered as a line of text."""
    return _known({
        "Content-Type": TEXT,
        "X-Raft-Error": error.code,
        "X-Raft-Retry": error.retry,
        "X-Raft-Index": index,
        "X-Raft-Leader": error.leader,
        "X-Content-Type-Options": "nosniff",
        "ETag": error.etag if isinstance(error, PreconditionFailed) else None,
        "X-Raft-Oldest-Index": error.oldest if isinstance(error, HistoryGone) else None,
        "Retry-After": RETRY_AFTER_SECONDS if isinstance(error, Overloaded) else None,
    })


def error_line(error):
    """What went wrong, on one line."""
    return " ".join(str(error).split())


def error_body(error, detail, accept, raft_headers):
    """(Content-Type, body) of an error for a client with that Accept header: a line of text, or RFC 9457."""
    if not _wants_json(accept):
        return TEXT, detail + "\n"
    return "application/problem+json", _json({
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": detail,
        "code": error.code,
        "retry": error.retry,
        "leader": error.leader or raft_headers.get("X-Raft-Leader"),
    }) + "\n"


def _wants_json(accept):
    """JSON is for who names it and does not like text better; ``*/*`` alone, as curl sends it, means text."""
    accept = parse_accept_header(accept.lower(), MIMEAccept)
    named = [quality for kind, quality in accept if kind in ("application/json", "application/problem+json")]
    return max(named, default=0) > 0 and max(named) >= accept.quality("text/plain")


def _redirect_answer(leader):
    """307 keeps method and body. The path goes out as it came in, or a client would tidy up an escaped ``..`` in a key."""
    environ = request.environ
    target = environ.get("REQUEST_URI", "")
    if not target.startswith("/"):  # not every server says it, and a proxy's client may send a whole URL
        target = quote(environ["SCRIPT_NAME"] + environ["PATH_INFO"], encoding="latin-1") + "?" + environ["QUERY_STRING"]
    return Response(status=307, headers={"Content-Type": TEXT, "Location": leader + target, "X-Raft-Leader": leader})


def http_error_answer(error):
    """The answer for what Flask refuses by itself: no such path, no such method, a body that cannot be read."""
    if error.code is None or error.code >= 500:
        return unexpected_error_answer(error)
    answer = error_answer(_HTTP_ERRORS.get(error.code, _bad_request)(error))
    answer.headers.extend(_known({"Allow": ", ".join(sorted(getattr(error, "valid_methods", None) or ())) or None}))
    return answer


def _bad_request(error):
    return BadRequest(error.description)


_HTTP_ERRORS = {
    404: lambda error: NotFound("no such path"),
    405: lambda error: MethodNotAllowed("this path does not have this method"),
    413: lambda error: TooLarge("the request is too large"),
}


def unexpected_error_answer(error):
    """A fault of ours: all of it in the log, one line to the client."""
    log.error("request failed method=%s path=%r", request.method, request.path, exc_info=error)
    return error_answer(RaftdError("internal error; the log of this node says more"))


def _known(headers):
    """*headers* without those that have no value."""
    return {name: str(value) for name, value in headers.items() if value is not None}
