"""Reads what a server said on a connection, and holds it against the contract: every answer whole, every error named."""

import json
import re
from typing import NamedTuple

from fuzzing import Finding
from raftd import errors
from raftd.errors import RaftdError

# {code: (status, ...)}; internal is not among them: a 500 of that name is a fault of ours
CODES = {error.code: {error.status} for error in vars(errors).values()
         if isinstance(error, type) and issubclass(error, RaftdError) and error is not RaftdError}
CODES["storage_failed"] = {500, 507}
RETRIES = {error.code: error.retry for error in vars(errors).values() if isinstance(error, type) and issubclass(error, RaftdError)}
RAFT_FIELDS = ("x-raft-index", "x-raft-term", "x-raft-node")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [\x20-\x7e]+")


class Said(NamedTuple):
    """One answer. ``fields`` have names in lower case."""

    status: int
    fields: dict
    body: bytes

    @property
    def code(self):
        return self.fields.get("x-raft-error")


def answers_in(heard, sent):
    """All answers in the bytes *heard*, each checked; *sent* is what they answer. Raises Finding."""
    answers = []
    while heard:
        answer, heard = _first(heard, sent)
        if answer.status == 100:
            _require(b"100-continue" in sent.lower(), "a 100 that nobody asked for")
            continue
        if answer.status == 101:
            return answers
        _check(answer)
        answers.append(answer)
        if "close" in answer.fields.get("connection", ""):
            _require(not heard, f"{heard[:100]} after an answer that ends the connection")
    return answers


def _first(heard, sent):
    """(the first answer in *heard*, the rest)."""
    head, end, rest = heard.partition(b"\r\n\r\n")
    _require(end, f"an answer is cut short: {heard[:200]}")
    first, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    _require(status, f"no status line: {first[:100]}")
    pairs = [line.decode("latin-1").partition(": ")[::2] for line in lines]
    fields = {name.lower(): text for name, text in pairs}
    _require(len(fields) == len(pairs), f"a field is there twice: {pairs}")
    status = int(status[1])
    if status < 200:
        return Said(status, fields, b""), rest
    if fields.get("content-type", "").startswith("text/event-stream") and "content-length" not in fields:  # up to its end
        return Said(status, fields, rest), b""
    length = fields.get("content-length", "")
    _require(length.isdecimal(), f"an answer without a length: {head[:500]}")
    # The answer to a HEAD has the length of a body that it has not.
    has_body = not (b"HEAD " in sent and (not rest or rest.startswith(b"HTTP/1.")))
    size = int(length) if has_body else 0
    _require(len(rest) >= size, f"{len(rest)} of {size} bytes of an answer are there: {head[:500]}")
    return Said(status, fields, rest[:size]), rest[size:]


def _check(answer):
    status, fields = answer.status, answer.fields
    if status == 403 and answer.code == "refused":  # what peers say to each other
        return
    for name in (*RAFT_FIELDS, "date", "server", "cache-control", "content-type"):
        _require(name in fields, f"an answer without {name}: {answer}")
    if status < 400:
        _require(answer.code is None, f"no error, but with a code: {answer}")
        return
    _require(status in CODES.get(answer.code, ()), f"a code or status that the contract does not have: {answer}")
    _require(fields.get("x-raft-retry") == RETRIES[answer.code], f"the wrong retry: {answer}")
    _require(fields.get("x-content-type-options") == "nosniff", f"without nosniff: {answer}")
    _require(status != 405 or "allow" in fields, f"405 without Allow: {answer}")
    if fields["content-type"] == "application/problem+json":
        problem = json.loads(answer.body) if answer.body else {"status": status, "code": answer.code}
        _require((problem["status"], problem["code"]) == (status, answer.code), f"a problem that contradicts its answer: {answer}")
        return
    _require(fields["content-type"] == "text/plain; charset=utf-8", f"an error of another type: {answer}")
    _require(not answer.body or (answer.body.endswith(b"\n") and answer.body.count(b"\n") == 1), f"not one line: {answer}")
    answer.body.decode()


def _require(truth, complaint):
    if not truth:
        raise Finding(complaint)
