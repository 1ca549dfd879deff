"""What every write has in common: the headers that may come with it, and what is answered. Must not know what paths there are."""

from raftd.errors import IdempotencyMismatch, NotFound, PreconditionFailed, TooLarge
from raftd.kv import Get, Request, Set, Touch, Transaction, encode
from raftd.web.answers import done_answer, error_answer, json_answer, json_text_answer, transacted_body
from raftd.web.current import current_node
from raftd.web.parameters import fence, idempotency_key, query


def how_to_write(**more):
    """The parameters of the URL that any write may have, and *more*."""
    return query(**more, timeout=current_node().settings.write_timeout_seconds, redirect=False)


def write(command, timeout):
    """Replicate *command* with what the headers of the request say of it; the answer."""
    asked, timeout = _as_asked(command, timeout)
    applied = current_node().propose(encode(asked), timeout)
    answer = _outcome_answer(command, applied)
    answer.headers.update(replay_fields(applied.result))
    return answer


def replay_fields(outcome):
    """The header field that says, if it is so, that *outcome* is that of an earlier request with the same idempotency key."""
    return {"Idempotent-Replay": "true"} if outcome.replayed else {}


def _as_asked(command, timeout):
    """*command*, and what came with it, if anything did, and what is left of *timeout*. What sets, or tells, a time to live needs the time
    of the leader, who must have heard what those before it have said."""
    node, key, held, time = current_node(), idempotency_key(), fence(), 0
    parts = command.then + command.otherwise if isinstance(command, Transaction) else (command,)
    if any(isinstance(part, Get) or isinstance(part, (Set, Touch)) and part.ttl for part in parts):
        term, timeout = node.term_in_charge(timeout)
        time = node.state_machine.clock.lead(term)
    return Request(command, time, key, held) if time or key or held else command, timeout


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
