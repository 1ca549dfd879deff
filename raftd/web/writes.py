"""What every write has in common: the headers that may come with it, and what is answered. Must not know what paths there are."""

from flask import request

from raftd.errors import IdempotencyMismatch, NotFound, PreconditionFailed, TooLarge
from raftd.kv import Request, Set, Touch, Transaction, encode
from raftd.web.answers import done_answer, error_answer, json_answer, json_text_answer, transacted_body
from raftd.web.current import current_node
from raftd.web.parameters import fence, idempotency_key, query


def how_to_write(**more):
    """The parameters of the URL that any write may have, and *more*."""
    return query(**more, timeout=current_node().settings.write_timeout_seconds, redirect=False)


def write(command, timeout):
    """Replicate *command* with what the headers of the request say of it; the answer."""
    node, asked = current_node(), as_asked(command, request.headers)
    if needs_time(command):
        term, timeout = node.term_in_charge(timeout)
        asked = at_time(asked, node.state_machine.clock.lead(term))
    applied = node.propose(encode(asked), timeout)
    answer = _outcome_answer(command, applied)
    answer.headers.update(replay_fields(applied.result))
    return answer


def as_asked(command, fields):
    """*command*, and what the header *fields* say of it, if anything."""
    key, held = idempotency_key(fields), fence(fields)
    return Request(command, 0, key, held) if key or held else command


def needs_time(command):
    """Whether it sets, or tells, a time to live: then it goes with the time of the leader, who must have heard what those before it have
    said."""
    if type(command) is Transaction:
        return command.reads or any([type(part) is Set and part.ttl for part in command.then + command.otherwise])
    return isinstance(command, (Set, Touch)) and command.ttl > 0


def at_time(asked, time):
    """What ``as_asked`` gave, at that *time*."""
    return asked._replace(time=time) if type(asked) is Request else Request(asked, time)


def replay_fields(outcome):
    """The header field that says, if it is so, that *outcome* is that of an earlier request with the same idempotency key."""
    return {"Idempotent-Replay": "true"} if outcome.replayed else {}


def _outcome_answer(command, applied):
    outcome = applied.result
    if outcome.kind == "deleted-prefix":
        return json_answer({"deleted": outcome.detail, "index": outcome.index}, applied.index)
    if outcome.kind == "transacted":
        return json_text_answer(transacted_body(command, outcome), applied.index)
    error, etag = outcome_of(applied)
    return error_answer(error, applied.index) if error else done_answer(applied.index, etag)


def outcome_of(applied):
    """(the error that a write has ended with, or None; the ETag to answer, or None)."""
    kind, index = applied.result[:2]
    match kind:
        case "written" | "touched":
            return None, f'"{index}"'
        case "deleted":
            return None, None
        case "missing":
            return NotFound("no such key"), None
        case "refused" if index:
            return PreconditionFailed(f"the key was last written at {index}", f'"{index}"'), None
        case "refused":
            return PreconditionFailed("there is no such key"), None
        case "fenced" if index:
            return PreconditionFailed(f"the key of X-Raft-Fence was created at {index}: another holds it now"), None
        case "fenced":
            return PreconditionFailed("the key of X-Raft-Fence is not there: nobody holds it now"), None
        case "reused":
            return IdempotencyMismatch("this Idempotency-Key came with another request before; nothing was done"), None
        case "too-large":
            return TooLarge(f"such a transaction answers values of at most {index} bytes; nothing was done"), None
    raise AssertionError(f"unknown outcome: {applied!r}")
