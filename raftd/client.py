"""A client in Python: it finds the leader, goes on elsewhere when a server fails, and sends a write again without doing it twice.

    >>> from raftd.client import Client
    >>> with Client("localhost:4001,localhost:4002,localhost:4003") as client:
    ...     written = client.set("greeting", "hello", ttl=60)
    ...     again = client.cas("greeting", "hello, world", written)
    ...     print(client["greeting"], [entry.key for entry in client.list("greet")])
    ...     with client.lock("door", ttl=15) as lock:  # held by one at a time, and renewed meanwhile
    ...         opened = client.set("opened-by", "me", fence=lock)  # refused if the lock was lost
    ...     print(client.delete("greeting"), client.get("greeting"))
    b'hello, world' ['greeting']
    True None

One server that is known is enough to find the leader, but not when that server fails: name all of them.

Must not know: how a server does what it is asked for; of raftd only its errors.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import random
import re
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, NamedTuple, TypeVar, overload
from urllib.parse import quote, urlencode, urlsplit
from uuid import uuid4

import requests
from urllib3.exceptions import NewConnectionError

from raftd.errors import BadRequest, HistoryGone, NoLeader, NotFound, NotLeader, PreconditionFailed, RaftdError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0  # for a connection: a machine without power should not use up the time of a call
FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.01, 0.5  # before another attempt; each time up to twice as long as before
FEWEST_SECONDS = 1.0  # of an attempt, when others could be asked as well
FIRST_SECONDS = 2.0  # of the first attempt at each of several servers: one that is silent may have been stopped, or cut off
ANSWER_SECONDS = 0.25  # more than a server was told to take: its answer says more than our own timeout
MOST_SERVER_SECONDS = 60.0  # that a server may be told to take
USUAL_SERVER_SECONDS = 4.8  # with ANSWER_SECONDS, what it takes when it is not told
SILENT_SECONDS = 10.0  # a server that has not answered is asked after the others, for so long
MOST_SECONDS = 10**6  # that a socket waits
WATCH_SECONDS = 12.0  # without a byte, of which there is one in 5 s, a watch goes on elsewhere
PAGE_ITEMS = 1000
LEVELS = "linearizable", "leader", "stale"
LEAST_LOCK_SECONDS = 0.1
LOCK_WAIT_SECONDS = 30.0  # of one long poll
TAKE_BACK_SECONDS = 2.0  # for each of two requests, when a signal ends who waits for a lock

_ERRORS: dict[str, type[RaftdError]] = {RaftdError.code: RaftdError, **{error.code: error for error in RaftdError.__subclasses__()}}
_Default = TypeVar("_Default")
_SAID = re.compile("[!-~](?:[ -~]*[!-~])?")


class Unreachable(RaftdError):
    """No server answered in time. ``retry`` is "safe" if the request was not sent, else "maybe"."""

    code, status, retry = "unreachable", 503, "maybe"


class LockHeld(RaftdError):
    """Another holds the lock, and kept it for as long as one was willing to wait."""

    code, status, retry = "lock_held", 409, "safe"


class Entry(NamedTuple):
    """A key as it stands. A single read tells neither *created_index* nor *version*.

    value          None where only keys were asked for
    index          of the log entry that last wrote it: what ``cas`` compares
    created_index  of the log entry that made it
    version        how often it was written since then, from 1
    expires_in     seconds; None: it does not expire
    """

    key: str
    value: bytes | None
    index: int  # type: ignore[assignment]  # not that of a tuple
    created_index: int | None = None
    version: int | None = None
    expires_in: float | None = None


class Transaction(NamedTuple):
    """What came of a transaction. *succeeded*: its conditions held; *results*: one dict for each operation that was done."""

    succeeded: bool
    index: int  # type: ignore[assignment]  # not that of a tuple
    results: list[dict[str, Any]]


class Event(NamedTuple):
    """A change.

    id              where a watch goes on after it: ``since=event.id``
    kind            "put", "delete" or "expire"
    index           of the log entry that made it
    previous_index  of the one that had last written the key; 0 if there was no such key
    value           None unless it is a "put", and where only keys were asked for
    """

    id: str
    kind: str
    key: str
    index: int  # type: ignore[assignment]  # not that of a tuple
    previous_index: int
    value: bytes | None


# What is said to a server, and what it says


@dataclass(frozen=True)
class _Ask:
    """A request, the same through all its attempts.

    to_leader     only a leader can do it
    timed_below   an attempt that has fewer seconds than that, and would have if it was not the first, says so in ``?timeout=``
    answer_after  the server is to answer then, in seconds of the monotonic clock, or sooner: ``?wait=``
    """

    method: str
    path: str
    query: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    to_leader: bool = False
    timed_below: float = 0.0
    answer_after: float | None = None

    def waiting(self) -> float:
        """Seconds until the server is to answer."""
        return 0.0 if self.answer_after is None else max(0.0, self.answer_after - time.monotonic())

    def target(self, seconds: float, most_seconds: float) -> str:
        """The path and query of an attempt that may take so long, not counting what it waits; *most_seconds* if it was not the first."""
        query = dict(self.query)
        if self.answer_after is not None:
            query["wait"] = _duration(self.waiting())
        if most_seconds < self.timed_below:
            query["timeout"] = _duration(min(max(seconds, 0.001), MOST_SERVER_SECONDS))
        return f"{self.path}?{urlencode(query, quote_via=quote)}" if query else self.path


def _path_of(key: str) -> str:
    """The path of *key*; raises BadRequest for an empty one, which would be the path of all keys."""
    if not key:
        raise BadRequest("a key must not be empty")
    return "/db/" + quote(key, safe="/")


def _bytes_of(value: bytes | str) -> bytes:
    """Raises TypeError for what is neither: ``bytes(5)`` would be five zeros."""
    try:
        return value.encode() if isinstance(value, str) else memoryview(value).tobytes()
    except TypeError:
        raise TypeError(f"a value is bytes or str, not {type(value).__name__}") from None


def _duration(time_span: float | str) -> str:
    """As the server reads it. *time_span*: seconds, or a text such as "30s"."""
    if not isinstance(time_span, str) and not math.isfinite(time_span):
        raise BadRequest(f"not a duration: {time_span}")
    return time_span if isinstance(time_span, str) else f"{round(time_span * 1000)}ms"


def _known(**query: Any) -> dict[str, Any]:
    """Without what is None or False or empty; True as the server reads it."""
    return {name: "true" if value is True else value for name, value in query.items() if value not in (None, False, "")}


def _conditions(if_index: int | None, if_absent: bool = False) -> dict[str, str]:
    """The headers for them; the index 0 is that of a key that is not there."""
    return {**({"If-None-Match": "*"} if if_absent or if_index == 0 else {}), **({"If-Match": f'"{if_index}"'} if if_index else {})}


def _value_in(members: dict[str, Any]) -> bytes | None:
    """The value in a JSON object of the server."""
    if "value_base64" in members:
        return base64.b64decode(members["value_base64"])
    return members["value"].encode() if "value" in members else None


def _entry_in(members: dict[str, Any]) -> Entry:
    names = ("index", "created_index", "version", "expires_in")
    return Entry(members["key"], _value_in(members), *(members[name] for name in names))


def _part(members: Any) -> Any:
    """A condition or an operation as the server reads it; what is neither the server will refuse. Raises TypeError as ``_bytes_of``."""
    if not isinstance(members, Mapping):
        return members
    told = dict(members)
    if not isinstance(told.get("value", ""), str):
        told["value_base64"] = base64.b64encode(_bytes_of(told.pop("value"))).decode()
    if isinstance(told.get("ttl"), (int, float)):
        told["ttl"] = _duration(told["ttl"])
    return told


def _result(members: dict[str, Any]) -> dict[str, Any]:
    """What came of an operation, with its value as bytes."""
    value = _value_in(members)
    told = {name: member for name, member in members.items() if name != "value_base64"}
    return told if value is None else {**told, "value": value}


def _index_in(answer: requests.Response) -> int:
    return int(answer.headers["ETag"].strip('"'))


def _error(code: str | None, detail: str = "", **attributes: Any) -> RaftdError:
    """The error of that name. Not by ``__init__``, which is for servers, and differs."""
    kind = _ERRORS.get(code or RaftdError.code, RaftdError)
    error = kind.__new__(kind)
    Exception.__init__(error, detail or (kind.__doc__ or "").split("\n")[0].rstrip("."))
    error.leader = None
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def _error_in(server: str, status: int, headers: Any, body: bytes) -> RaftdError | None:
    """What an answer says has failed, or None. *headers*: anything with a ``get`` that knows no case."""
    code, leader, oldest = headers.get("X-Raft-Error"), headers.get("X-Raft-Leader"), headers.get("X-Raft-Oldest-Index")
    if code is None and status < 300 and "X-Raft-Node" in headers:
        return None
    if code is None:
        return _error(None, f"{server} answers {status}, and does not seem to be raftd", status=status)
    more = {PreconditionFailed.code: {"etag": headers.get("ETag")}, HistoryGone.code: {"oldest": oldest and int(oldest)}}.get(code, {})
    text, index = " ".join(body.decode(errors="replace").split()), int(headers.get("X-Raft-Index", 0))
    return _error(code, text, status=status, retry=headers.get("X-Raft-Retry", "maybe"), leader=leader, index=index, **more)


def _unreachable(server: str, error: BaseException, was_sent: bool) -> Unreachable:
    text = "timed out" if isinstance(error, (TimeoutError, requests.Timeout)) else getattr(error, "strerror", None) or str(error)
    failure = Unreachable(f"{server}: {text or type(error).__name__}")
    failure.retry = "maybe" if was_sent else "safe"
    return failure


def _was_sent(error: requests.RequestException) -> bool:
    """False if there was no connection on which the request could have been sent."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return not isinstance(error, requests.ConnectTimeout) and not isinstance(reason, NewConnectionError)


def _root(error: BaseException) -> BaseException:
    """What has happened: requests wraps the errors of urllib3, which wrap those of the system, as arguments or as causes."""
    while inner := error.__cause__ or next((part for part in reversed(error.args) if isinstance(part, Exception)), None):
        error = inner
    return error


def _address(url: str) -> str:
    return url.strip().removeprefix("http://").removesuffix("/")


def _addresses(endpoints: str | Iterable[str]) -> list[str]:
    """HOST:PORT of each; raises ValueError."""
    texts = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    found = list(dict.fromkeys(_address(text) for text in texts if text.strip()))
    for address in found:
        parts = urlsplit(f"//{address}")
        if not parts.hostname or not parts.port or parts.netloc != address or "@" in address:
            raise ValueError(f"not HOST:PORT: {address!r}")
    if not found:
        raise ValueError("no HOST:PORT in the endpoints")
    return found


class _Attempts:
    """The attempts of one call: whom to ask next, how long to rest before, what to raise in the end.

    uncertain  one of them may have done what was asked for
    """

    def __init__(self, servers: list[str], deadline: float, pause: Callable[[float], object] = time.sleep):
        self.deadline, self.uncertain = deadline, False
        self._turn, self._pause = deque(servers), pause
        self._last: str | None = None  # who has failed
        self._asked: set[str] = set()  # since the last rest
        self._silent: set[str] = set()  # no answer: others may say that it leads, but it has to wait for its turn
        self._known: set[str] = set()  # those asked at all
        self._most_seconds = FIRST_PAUSE_SECONDS
        self._failure: RaftdError | None = None

    def next_server(self, leader: str | None) -> str:
        """*leader* if there is one and it makes sense to ask it now, else the next in turn, and not who has failed just now."""
        if leader is not None and leader not in self._turn:
            self._turn.append(leader)
        server = leader if leader is not None and self._is_fresh(leader) else self._next_in_turn()
        self._asked.add(server)
        return server

    def _next_in_turn(self) -> str:
        if self._turn[0] == self._last:
            self._turn.rotate(-1)
        server = self._turn[0]
        self._turn.rotate(-1)
        return server

    def _is_fresh(self, server: str) -> bool:
        return server not in self._asked and server not in self._silent

    def seconds(self, server: str, waiting: float = 0.0) -> tuple[float, float]:
        """How long the next attempt, at *server*, may take, beside what it waits; and how long if it was not the first there.

        All that is left; half of it, if there are others to ask.
        """
        left = min(max(0.001, self.deadline - time.monotonic() - waiting), MOST_SECONDS)
        most = max(left / 2, min(left, FEWEST_SECONDS)) if len(self._turn) > 1 else left
        is_first = server not in self._known and len(self._turn) > 1
        self._known.add(server)
        return (min(most, FIRST_SECONDS) if is_first else most), most

    def failed(self, server: str, error: RaftdError) -> None:
        """Rest, if another attempt makes sense, else raise what is best told to the caller."""
        if error.retry == "no":
            raise error
        self.uncertain = self.uncertain or error.retry == "maybe"
        failure = self._note(server, error)
        is_told = isinstance(error, NotLeader) and error.leader is not None and self._is_fresh(_address(error.leader))
        seconds = 0.0 if is_told else random.uniform(0, self._most_seconds)
        if time.monotonic() + seconds >= self.deadline:
            if isinstance(failure, NotLeader) and failure.leader is None:
                failure = NoLeader("no server that answers knows a leader")
            if self.uncertain:
                failure.retry = "maybe"
            raise failure
        if not is_told:
            self._most_seconds = min(2 * self._most_seconds, MOST_PAUSE_SECONDS)
            self._asked.clear()
            self._pause(seconds)

    def _note(self, server: str, error: RaftdError) -> RaftdError:
        """The failure that tells most, so far."""
        self._last = server
        is_silent = isinstance(error, Unreachable)
        (self._silent.add if is_silent else self._silent.discard)(server)
        if self._failure is None or isinstance(self._failure, Unreachable) or not is_silent:
            self._failure = error
        return self._failure


class _Shared:
    """What a Client has in common with those that ``within`` makes of it: a connection to each server for each thread, who leads, and who
    is silent."""

    def __init__(self) -> None:
        self.leader: str | None = None  # as the last answer that knew one has told
        self._silent: dict[str, float] = {}  # who has not answered last -> until when that counts
        self.sessions: weakref.WeakSet[requests.Session] = weakref.WeakSet()  # of threads that have not ended
        self._of_this_thread = threading.local()
        self._lock = threading.Lock()  # guards ``sessions``

    def session(self) -> requests.Session:
        """That of the thread that asks."""
        session: requests.Session | None = getattr(self._of_this_thread, "session", None)
        if session is None:
            session = self._of_this_thread.session = requests.Session()
            session.trust_env = False  # a proxy is no member of the cluster
            with self._lock:
                self.sessions.add(session)
        return session

    def close(self) -> None:
        with self._lock:
            sessions = list(self.sessions)
        for session in sessions:
            session.close()

    def learn(self, server: str, headers: Any) -> None:
        """Who leads, as *server* knows it, which has answered."""
        self._silent.pop(server, None)
        leader = headers.get("X-Raft-Leader")
        if leader:
            self.leader = _address(leader)
        else:
            self.forget(server)

    def is_silent(self, server: str) -> bool:
        return self._silent.get(server, 0.0) > time.monotonic()

    def has_not_answered(self, server: str) -> None:
        self._silent[server] = time.monotonic() + SILENT_SECONDS
        self.forget(server)

    def forget(self, server: str) -> None:
        """It leads no longer, as far as one knows."""
        if self.leader == server:
            self.leader = None


class Client:
    """A client of the cluster that *endpoints* belong to: "HOST:PORT[,HOST:PORT...]", or several such. Any thread may use it.

    timeout  seconds that a call may take, all its attempts together; ``within`` is for calls that may take more, or less
    level    of reads that do not say another: "linearizable", "leader" or "stale"

    A call is tried again, elsewhere if there is an elsewhere, until it succeeds, is refused for good, or its time is over: then it
    raises what the last server that answered had said, or Unreachable. A RaftdError says in ``retry`` whether it is certain that
    nothing was done ("safe"), or is not ("maybe"), or would be refused again ("no"). Raises ValueError for malformed endpoints, or an
    unknown level.
    """

    def __init__(self, endpoints: str | Iterable[str] = "localhost:4001", *, timeout: float = 10.0, level: str = "linearizable"):
        if level not in LEVELS:
            raise ValueError(f"level is one of {', '.join(LEVELS)}, not {level!r}")
        self._endpoints, self._timeout, self._level, self._shared = _addresses(endpoints), timeout, level, _Shared()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of all threads. Release locks and close watches before."""
        self._shared.close()

    def within(self, seconds: float) -> Client:
        """This client, each of whose calls may take so many *seconds*: ``client.within(0.5).get("key")``. Its connections are the same."""
        other = copy(self)
        other._timeout = seconds
        return other

    # Reads

    @overload
    def get(self, key: str, default: None = None, *, level: str | None = None, min_index: int | None = None) -> bytes | None: ...

    @overload
    def get(self, key: str, default: _Default, *, level: str | None = None, min_index: int | None = None) -> bytes | _Default: ...

    def get(self, key: str, default: Any = None, *, level: str | None = None, min_index: int | None = None) -> Any:
        """The value of *key*, bytes; *default* if there is no such key. *min_index*: as of this entry of the log, or later."""
        entry = self.entry(key, level=level, min_index=min_index)
        return default if entry is None else entry.value

    def entry(self, key: str, *, level: str | None = None, min_index: int | None = None) -> Entry | None:
        """The value of *key*, its index, and when it expires; None if there is no such key."""
        try:
            return self._entry_of(key, self._read(_path_of(key), _known(min_index=min_index), level))
        except NotFound:
            return None

    def __getitem__(self, key: str) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    __iter__ = None  # else Python would ask for the keys 0, 1, 2, ...

    def __contains__(self, key: str) -> bool:
        return self.entry(key) is not None

    def wait(self, key: str, index: int = 0, seconds: float = 30.0) -> Entry | None:
        """Wait until *key* is not any more as entry *index* of the log left it; the key as it is then, None if it is not there.

        With 0, what is waited for is that there is such a key. When *seconds* (600 at most) are over, the key as it is, too. Raises
        after *seconds* and the timeout of the client together.
        """
        end, after = time.monotonic() + seconds, index
        while True:
            query = {**self._level_query(None), "index": after}
            ask = _Ask("GET", _path_of(key), query, timed_below=USUAL_SERVER_SECONDS, answer_after=end)
            try:
                return self._entry_of(key, self._call(ask, self._attempts(end + self._timeout)))
            except NotFound as error:
                if index or time.monotonic() >= end:
                    return None
                after = max(after, error.index)  # it had been deleted before, which is not what was waited for

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None, keys_only: bool = False,
             level: str | None = None) -> Iterator[Entry]:
        """The keys that begin with *prefix* and come after *after*, in order of their UTF-8, *limit* of them or all, page by page.

        A page is of one moment, and no page is of an earlier one than the page before; all of them together are not of one moment.
        """
        index = None
        while after is not None and limit != 0:
            query = _known(prefix=prefix, after=after, keys_only=keys_only, min_index=index)
            page = self._read("/db/", {**query, "limit": min(limit or PAGE_ITEMS, PAGE_ITEMS)}, level).json()
            for members in page["items"]:
                yield _entry_in(members)
            limit = limit and limit - len(page["items"])
            after, index = page["next"], page["index"]

    def watch(self, prefix: str = "", *, since: int | str | None = None, keys_only: bool = False) -> Watch:
        """The changes of keys that begin with *prefix*: all after the entry *since* of the log, or after the event with that id.

        Without *since*: all that happens after this has returned. Raises HistoryGone when changes after *since* are kept no longer.
        """
        return Watch(self, prefix, since, keys_only)

    # Writes. *fence*: a Lock, or "NAME=TOKEN", that must be held when the write is done, else PreconditionFailed. *request_id*: 1 to 255
    # characters; of all writes with the same one only the first is done, and all have its answer. Without one each call has its own.

    def set(self, key: str, value: bytes | str, *, ttl: float | str | None = None, if_index: int | None = None, if_absent: bool = False,
            fence: Lock | str | None = None, request_id: str | None = None) -> int:
        """Set *key*; the index of the entry that did. *ttl*: seconds, or a text such as "30s", after which the key is removed.

        Raises PreconditionFailed if the key was not last written by the entry *if_index*, or if there is one although *if_absent*.
        """
        headers = _conditions(if_index, if_absent)
        return _index_in(self._write("POST", _path_of(key), {} if ttl is None else {"ttl": _duration(ttl)}, _bytes_of(value), headers,
                                     fence, request_id))

    def cas(self, key: str, value: bytes | str, index: int, *, ttl: float | str | None = None, fence: Lock | str | None = None,
            request_id: str | None = None) -> int:
        """``set`` if entry *index* last wrote the key, 0 if there is none. PreconditionFailed has the current one in ``etag``: '"42"'."""
        return self.set(key, value, ttl=ttl, if_index=index, fence=fence, request_id=request_id)

    def touch(self, key: str, ttl: float | str, *, fence: Lock | str | None = None, request_id: str | None = None) -> int:
        """Let *key*, as it is, live for *ttl* from now on; the index of the entry that last wrote it. Raises NotFound."""
        return self._touch(key, ttl, fence, request_id, None)

    def _touch(self, key: str, ttl: float | str, fence: Lock | str | None, request_id: str | None, timeout: float | None) -> int:
        query = {"touch": "true", "ttl": _duration(ttl)}
        return _index_in(self._write("POST", _path_of(key), query, fence=fence, request_id=request_id, timeout=timeout))

    def delete(self, key: str, *, if_index: int | None = None, fence: Lock | str | None = None, request_id: str | None = None) -> bool:
        """Remove *key*; False if there was none. Raises PreconditionFailed if it was not last written by the entry *if_index*."""
        try:
            self._write("DELETE", _path_of(key), headers=_conditions(if_index), fence=fence, request_id=request_id)
        except NotFound:
            return False
        return True

    def delete_prefix(self, prefix: str, *, all: bool = False, fence: Lock | str | None = None, request_id: str | None = None) -> int:
        """Remove all keys that begin with *prefix*, at once; how many there were. An empty one needs *all*, else it is a BadRequest."""
        query = {"prefix": prefix, **_known(all=all)}
        return self._write("DELETE", "/db/", query, fence=fence, request_id=request_id).json()["deleted"]

    def txn(self, then: Iterable[Mapping[str, Any]], *, if_: Iterable[Mapping[str, Any]] = (), else_: Iterable[Mapping[str, Any]] = (),
            fence: Lock | str | None = None, request_id: str | None = None) -> Transaction:
        """If all conditions *if_* hold do all of *then*, else all of *else_*, with nothing in between; at most 128 of each.

        A condition is {"key": KEY} with "index": N (0: there is none), "exists": True or False, or "value"; an operation {"set": KEY,
        "value": VALUE}, with or without "ttl", {"delete": KEY} or {"get": KEY}. A value is bytes or str; those in the results are bytes.
        """
        body = {"if": [_part(part) for part in if_], "then": [_part(part) for part in then], "else": [_part(part) for part in else_]}
        answer = self._write("POST", "/txn", body=json.dumps(body).encode(), fence=fence, request_id=request_id).json()
        return Transaction(answer["succeeded"], answer["index"], [_result(members) for members in answer["results"]])

    def __setitem__(self, key: str, value: bytes | str) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def lock(self, name: str, ttl: float = 15.0, *, wait: float | None = None, value: bytes | str | None = None) -> Lock:
        """A lock that is the key *name*, with *value*; not acquired yet.

        ttl   seconds after which it is free when its holder is heard of no more; fewer than 0.1 are a BadRequest
        wait  seconds to wait for it: None for ever, 0 not at all
        """
        if ttl < LEAST_LOCK_SECONDS:
            raise BadRequest(f"a lock is held for {LEAST_LOCK_SECONDS:g} s at the least: in less nobody would know that it is")
        return Lock(self, name, ttl, wait, b"" if value is None else value)

    # The cluster

    def status(self, endpoint: str | None = None) -> dict[str, Any]:
        """What ``GET /status`` says: of *endpoint*, which is asked once, or of any server."""
        ask = _Ask("GET", "/status")
        return (self._call(ask) if endpoint is None else self._once(ask, endpoint)).json()

    def members(self) -> Sequence[dict[str, Any]]:
        """The members of the cluster, as the leader knows them if it is known who leads, else as some server does."""
        return self._call(_Ask("GET", "/members", to_leader=True)).json()["members"]

    def leader(self) -> dict[str, str]:
        """{"name", "address"} of the leader. Raises NoLeader when there is none in time."""
        return self._call(_Ask("GET", "/leader")).json()

    def transfer(self, name: str | None = None) -> dict[str, str]:
        """Hand leadership to that voter, or to the one that is most up to date; {"name", "address"} of the new leader."""
        return self._change("POST", "/leader", {} if name is None else {"name": name}).json()

    def join(self, name: str, address: str, voter: bool = True) -> None:
        """Make the server *name* at HOST:PORT a member, or give a member its new address. CommitTimeout: it is still catching up."""
        self._change("POST", "/join", {"name": name, "connectionString": f"http://{_address(address)}", "voter": voter})

    def remove(self, name: str) -> None:
        """Remove a member. Raises NotFound if there is none of that name."""
        attempts = self._attempts()
        try:
            self._change("DELETE", f"/members/{quote(name, safe='')}", attempts=attempts)
        except NotFound:
            if not attempts.uncertain:  # else it was this call that has removed it
                raise

    def health(self, endpoint: str) -> tuple[bool, str]:
        """Whether that server can serve a linearizable read now, and what it says, or why it says nothing."""
        try:
            return True, self._once(_Ask("GET", "/readyz"), endpoint).text.strip()
        except RaftdError as error:
            return False, str(error)

    # Calls

    def _read(self, path: str, query: dict[str, Any], level: str | None) -> requests.Response:
        # A server reads for a request without parameters in its fast lane, so that it is told a time only where its own is too long.
        return self._call(_Ask("GET", path, {**query, **self._level_query(level)}, timed_below=USUAL_SERVER_SECONDS))

    def _level_query(self, level: str | None) -> dict[str, str]:
        level = level or self._level
        return {} if level == "linearizable" else {"level": level}

    @staticmethod
    def _entry_of(key: str, answer: requests.Response) -> Entry:
        expires_in = answer.headers.get("X-Raft-Expires-In")
        return Entry(key, answer.content, _index_in(answer), expires_in=None if expires_in is None else float(expires_in))

    def _write(self, method: str, path: str, query: dict[str, Any] | None = None, body: bytes = b"",
               headers: dict[str, str] | None = None, fence: Lock | str | None = None, request_id: str | None = None,
               timeout: float | None = None) -> requests.Response:
        """*timeout*: instead of the client's."""
        headers = {**(headers or {}), "Idempotency-Key": uuid4().hex if request_id is None else request_id}
        if fence is not None:
            headers["X-Raft-Fence"] = fence.fence if isinstance(fence, Lock) else fence
        for name in ("Idempotency-Key", "X-Raft-Fence"):
            if not _SAID.fullmatch(headers.get(name, "-")):
                raise BadRequest(f"{name} is of printable ASCII characters, not {headers[name]!r}")
        ask = _Ask(method, path, query or {}, headers, body, to_leader=True, timed_below=float("inf"))
        return self._call(ask, self._attempts(None if timeout is None else time.monotonic() + timeout))

    def _change(self, method: str, path: str, members: dict[str, Any] | None = None,
                attempts: _Attempts | None = None) -> requests.Response:
        """Of the cluster: what may be done twice without harm."""
        body = json.dumps(members).encode() if members else b""
        return self._call(_Ask(method, path, body=body, to_leader=True, timed_below=float("inf")), attempts)

    def _attempts(self, deadline: float | None = None, pause: Callable[[float], object] = time.sleep) -> _Attempts:
        """At all servers that are known, beginning with any that is not silent. *deadline*: of the monotonic clock, in seconds."""
        servers, leader = self._endpoints, self._shared.leader
        start = random.randrange(len(servers))
        others = [leader] if leader and leader not in servers else []
        turn = sorted(servers[start:] + servers[:start] + others, key=self._shared.is_silent)
        return _Attempts(turn, time.monotonic() + self._timeout if deadline is None else deadline, pause)

    def _call(self, ask: _Ask, attempts: _Attempts | None = None) -> requests.Response:
        """The answer of whoever does it."""
        attempts = attempts or self._attempts()
        while True:
            server = attempts.next_server(self._shared.leader if ask.to_leader else None)
            try:
                return self._attempt(ask, server, *attempts.seconds(server, ask.waiting()))
            except RaftdError as error:
                attempts.failed(server, error)

    def _once(self, ask: _Ask, endpoint: str) -> requests.Response:
        (server,) = _addresses(endpoint)
        return self._attempt(ask, server, self._timeout, self._timeout)

    def _attempt(self, ask: _Ask, server: str, seconds: float, most_seconds: float) -> requests.Response:
        """The answer of *server*; raises the RaftdError that it is."""
        request = requests.Request(ask.method, f"http://{server}/", ask.headers, data=ask.body).prepare()
        request.url = f"http://{server}{ask.target(seconds, most_seconds)}"  # requests would tidy up a key such as ".."
        timeouts = min(seconds, CONNECT_SECONDS), ask.waiting() + seconds + ANSWER_SECONDS
        try:
            answer = self._shared.session().send(request, timeout=timeouts, allow_redirects=False)
        except requests.RequestException as error:
            self._shared.has_not_answered(server)
            raise _unreachable(server, _root(error), _was_sent(error)) from error
        self._shared.learn(server, answer.headers)
        failure = _error_in(server, answer.status_code, answer.headers, answer.content)
        if failure:
            raise failure
        return answer


class Watch:
    """An iterator of Events: all, each once, in their order, whichever servers fail meanwhile. For one thread; any may ``close`` it.

    Raises HistoryGone when it was away for so long that changes are kept no longer: read the keys again, and watch from there on. When
    no server can be found for as long as the timeout of the client, raises what was last heard; another ``next`` tries again.
    """

    def __init__(self, client: Client, prefix: str, since: int | str | None, keys_only: bool):
        self._client, self._query = client, _known(prefix=prefix, keys_only=keys_only)
        self._position = None if since is None else str(since)
        self._stream: _Stream | None = None
        self._server = ""  # who tells, or has told
        self._attempts: _Attempts | None = None  # since something was last heard
        self._closed = threading.Event()
        self._lock = threading.Lock()  # guards _stream, which another thread may close
        try:
            while self._stream is None and not self._closed.is_set():
                self._going_on(self._open)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Event:
        while not self._closed.is_set():
            fields = self._going_on(self._hear)
            event = fields and self._event(fields)
            if event:
                return event
        raise StopIteration

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, also while another thread waits for an event."""
        self._closed.set()
        self._leave()

    def _going_on(self, step: Callable[[], dict[str, str] | None]) -> dict[str, str] | None:
        """What *step* gives; None if it has failed, and may succeed elsewhere."""
        try:
            return step()
        except RaftdError as error:
            lasted = self._leave()
            attempts, self._attempts = self._attempts or self._new_attempts(), None
            attempts.deadline += lasted  # it is the time of looking for a server that counts
            if not self._closed.is_set():
                attempts.failed(self._server, error)
                self._attempts = attempts
            return None

    def _new_attempts(self) -> _Attempts:
        return self._client._attempts(pause=self._closed.wait)

    def _open(self) -> None:
        self._attempts = self._attempts or self._new_attempts()
        self._server = self._attempts.next_server(None)
        seconds, _ = self._attempts.seconds(self._server)
        query = {**self._query, "timeout": _duration(min(seconds, MOST_SERVER_SECONDS))}
        since = {} if self._position is None else {"Last-Event-ID": self._position}
        stream = _Stream(self._server, f"/watch?{urlencode(query, quote_via=quote)}", since, seconds)
        with self._lock:
            self._stream = stream
        if self._closed.is_set():  # perhaps before there was a stream to close
            self._leave()
            return
        headers, fields = stream.begin()
        self._client._shared.learn(self._server, headers)
        self._position = fields.get("id", self._position)

    def _hear(self) -> dict[str, str] | None:
        """The next fields that a server tells, opening a stream if there is none."""
        stream = self._stream  # another thread may close it
        if stream is None:
            self._open()
            return None
        fields = stream.read()
        if fields.get("event") in ("dropped", "gone"):
            # Another server may be able to go on from here. If none is, its answer says from where on one could.
            told = json.loads(fields["data"])
            self._position = told["id"]
            raise Unreachable(f"{self._server}: {told['reason']}")
        self._attempts = None
        return fields

    def _event(self, fields: dict[str, str]) -> Event | None:
        """The Event of *fields*, None if they are none; they have been told now."""
        self._position = fields.get("id", self._position)
        if fields.get("event") not in ("put", "delete", "expire"):
            return None
        data = json.loads(fields["data"])
        return Event(fields["id"], fields["event"], data["key"], data["index"], data["previous_index"], _value_in(data))

    def _leave(self) -> float:
        """For how many seconds a server has been telling."""
        with self._lock:
            stream, self._stream = self._stream, None
        if stream:
            stream.close()
        return 0.0 if stream is None or stream.began is None else time.monotonic() - stream.began


class _Stream:
    """Server-sent events of one connection. Not by requests, which another thread cannot end while it waits.

    Raises Unreachable when the connection breaks or ends, or is silent for too long.
    """

    def __init__(self, server: str, target: str, headers: dict[str, str], seconds: float):
        self._server, self._target, self._headers, self._seconds = server, target, headers, seconds
        self._answer: HTTPResponse  # from ``begin`` on
        self.began: float | None = None
        self._connection = HTTPConnection(server, timeout=min(seconds, CONNECT_SECONDS))
        self._connection.auto_open = 0  # when another thread has closed it
        try:
            self._connection.connect()
        except OSError as error:
            raise _unreachable(server, error, was_sent=False) from error
        self._socket = self._connection.sock

    def begin(self) -> tuple[Any, dict[str, str]]:
        """The headers of the answer, and the first fields; raises what an answer says that does not go on."""
        try:
            self._socket.settimeout(self._seconds + ANSWER_SECONDS)
            self._connection.request("GET", self._target, headers=self._headers)
            answer = self._answer = self._connection.getresponse()
            failure = _error_in(self._server, answer.status, answer.headers, b"" if answer.status == 200 else answer.read())
        except (OSError, HTTPException) as error:
            raise _unreachable(self._server, error, was_sent=True) from error
        if failure:
            raise failure
        fields = self.read()
        self._socket.settimeout(WATCH_SECONDS)
        self.began = time.monotonic()
        return answer.headers, fields

    def read(self) -> dict[str, str]:
        """The fields up to the next empty line; there may be none."""
        fields = {}
        while line := self._line():
            name, _, text = line.partition(":")
            if name:  # else it is a comment: the server lives
                fields[name] = text.removeprefix(" ")
        return fields

    def _line(self) -> str:
        try:
            line = self._answer.readline()
        except (OSError, HTTPException) as error:
            raise _unreachable(self._server, error, was_sent=True) from error
        if not line.endswith(b"\n"):
            raise Unreachable(f"{self._server}: the stream has ended")
        return line.decode().rstrip("\r\n")

    def close(self) -> None:
        """Also while another thread reads: it hears the end, and its answer is closed when it is done with it."""
        with suppress(OSError):  # the other end has closed it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class _Hold:
    """One time that a lock is held. *until*: in seconds of the monotonic clock; after it another may hold the lock."""

    def __init__(self, token: int | None, until: float):
        self.token, self.until = token, until
        self.released, self.lost = threading.Event(), threading.Event()

    @property
    def lasts(self) -> bool:
        return not self.released.is_set() and not self.lost.is_set() and time.monotonic() < self.until


class Lock:
    """A lock that one holds at a time, whoever and wherever: a key with a time to live, which its holder renews in a thread.

    A holder that is cut off, or stands still for *ttl*, loses it without being asked, and may find that out late. So ``is_held`` is a
    good guess, and only a *fence* makes it certain: a write with it is refused when the lock has been lost. For one thread; others
    may look at it.
    """

    def __init__(self, client: Client, name: str, ttl: float, wait: float | None, value: bytes | str):
        self.name, self.ttl = name, ttl
        self._client, self._wait, self._value = client, wait, value
        self._hold = _Hold(None, -math.inf)

    def __enter__(self) -> Lock:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def token(self) -> int | None:
        """The index of the entry that made the key, larger each time the lock is acquired; None before the first time."""
        return self._hold.token

    @property
    def fence(self) -> str:
        """What a write says that needs the lock, also when it is lost by now. Raises RuntimeError if it was never acquired."""
        return self._fence_of(self._hold)

    @property
    def is_held(self) -> bool:
        """False once a renewal was refused, or *ttl* has passed since the last one that succeeded was sent."""
        return self._hold.lasts

    @property
    def lost(self) -> threading.Event:
        """It is set soon after the lock was lost, in any other way than by ``release``. Each ``acquire`` makes another one."""
        return self._hold.lost

    def acquire(self) -> Lock:
        """Wait for it, and hold it. Raises LockHeld when *wait* is over, and what ``Client.set`` raises: then it is free after *ttl*."""
        if self.is_held:
            raise RuntimeError(f"the lock {self.name!r} is held already")
        end = math.inf if self._wait is None else time.monotonic() + self._wait
        while not self.is_held:
            request_id = uuid4().hex
            try:
                self._acquire_or_wait(request_id, end)
            except (KeyboardInterrupt, SystemExit):  # of a signal, perhaps just when the lock was given to this one
                self._take_back(request_id)
                raise
        return self

    def release(self) -> None:
        """Let others have it. Nothing happens when it is not held, or was lost. Raises what ``Client.delete`` raises."""
        hold = self._hold
        lasts = hold.lasts
        hold.released.set()
        if lasts:
            self._give_back(self._client, hold)

    def _acquire_or_wait(self, request_id: str, end: float) -> None:
        sent = time.monotonic()
        try:
            token = self._ask_for_it(self._client, request_id)
        except PreconditionFailed as error:
            self._wait_for(int(str(error.etag).strip('"')), end)
            return
        hold = _Hold(token, sent + self.ttl)
        if hold.lasts:
            self._hold = hold
            threading.Thread(target=self._renew, args=[hold], name=f"lock-{self.name}", daemon=True).start()
        else:
            self._give_back(self._client, hold)  # the answer came so late that it may be another's by now
            time.sleep(self.ttl)  # the servers are slow enough

    def _ask_for_it(self, client: Client, request_id: str) -> int:
        return client.set(self.name, self._value, ttl=self.ttl, if_absent=True, request_id=request_id)

    def _take_back(self, request_id: str) -> None:
        """Whether it was acquired by that request, the same request says."""
        self._hold.released.set()
        client = self._client.within(TAKE_BACK_SECONDS)
        with suppress(RaftdError):
            self._give_back(client, _Hold(self._ask_for_it(client, request_id), -math.inf))

    def _wait_for(self, index: int, end: float) -> None:
        """Until the key changes that entry *index* wrote, or for a while; raises LockHeld after *end*."""
        left = end - time.monotonic()
        if left <= 0:
            raise LockHeld(f"another holds the lock {self.name!r}") from None
        self._client.wait(self.name, index, min(left, LOCK_WAIT_SECONDS))

    def _fence_of(self, hold: _Hold) -> str:
        if hold.token is None:
            raise RuntimeError(f"the lock {self.name!r} was never acquired")
        return f"{quote(self.name, safe='')}={hold.token}"

    def _give_back(self, client: Client, hold: _Hold) -> None:
        with suppress(PreconditionFailed):  # it was lost
            client.delete(self.name, fence=self._fence_of(hold))

    def _renew(self, hold: _Hold) -> None:
        """Until it is released, or lost: refused, or not answered in time."""
        try:
            while not hold.released.wait(min(self.ttl / 3, max(0.0, hold.until - time.monotonic()))) and hold.lasts:
                self._renew_once(hold)
        finally:
            if not hold.released.is_set():
                hold.lost.set()

    def _renew_once(self, hold: _Hold) -> None:
        sent = time.monotonic()
        try:
            self._client._touch(self.name, self.ttl, self._fence_of(hold), None, timeout=hold.until - sent)
        except RaftdError as error:
            log.info("lock not renewed name=%r token=%s error=%s", self.name, hold.token, error)
            if error.retry == "no":
                hold.until = sent
        else:
            if hold.lasts:  # else it is too late: once it is not held it must not be held again
                hold.until = sent + self.ttl
