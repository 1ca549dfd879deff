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
    node = current_node()
    data, left = encoded(node, command, request.headers, timeout)
    applied = node.propose(data, left)
    answer = _outcome_answer(command, applied)
    answer.headers.update(replay_fields(applied.result))
    return answer


def encoded(node, command, fields, timeout):
    """(*command* for the log, with what the header *fields* say of it; what is left of *timeout* seconds). What sets, or tells, a time to
    live goes with the time of the leader, who must have heard what those before it have said.

    Raises BadRequest or TooLarge for the fields, and what ``Node.term_in_charge`` raises.
    """
    key, held, time = idempotency_key(fields), fence(fields), 0
    if _needs_time(command):
        term, timeout = node.term_in_charge(timeout)
        time = node.state_machine.clock.lead(term)
    return encode(Request(command, time, key, held) if time or key or held else command), timeout


def _needs_time(command):
    if type(command) is Transaction:
        return command.reads or any([type(part) is Set and part.ttl for part in command.then + command.otherwise])
    return isinstance(command, (Set, Touch)) and command.ttl > 0


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
