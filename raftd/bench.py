"""A load generator for any raftd cluster: what ``raftctl bench`` runs.

It runs on the machine under test, so it is as cheap as Python lets it be: one thread, kept-open non-blocking connections,
requests made of prepared bytes, answers parsed no further than needed. Besides its requests it asks of a cluster
``GET /members`` once, and ``GET /leader`` whenever it does not know who leads; for the events of a plot ``GET /status`` now and then.
Must not know how a server works.
"""

import http.client
import json
import math
import random
import re
import selectors
import socket
import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import quote

TICK_SECONDS = 0.05  # how often the loop looks at its clocks; also how long a client rests after a failure
ASK_SECONDS = 1.0  # how long a server may take to say who leads, before the next one is asked
HOPELESS_SECONDS = 30.0  # a run that has a count, not a duration, ends when nothing has succeeded for so long
MAX_HEAD_BYTES = 64 * 1024
RECEIVE_BYTES = 256 * 1024
EVENT_SECONDS = 0.25  # how exactly the time of an event is known
WRITE, READ = "write", "read"  # kinds of request
LEADER, STATUS = "/leader", "/status"  # and these, which are not part of the load


class BenchFailed(Exception):
    """Nothing could be measured; the text is one line that says why."""


@dataclass(frozen=True)
class Load:
    """What to send.

    clients          requests under way at most; each client sends its next one when it has the answer
    value_bytes      size of a written value
    keys             they are PREFIX0, PREFIX1, ...; each request takes one at random
    read_share       0.0: only writes, 1.0: only reads
    level            of reads: "linearizable", "leader" or "stale"
    reads_from       "leader", or "any": client by client, the members in turn
    seconds, count   how long, or how many requests; the other one is None
    warm_up_seconds  load before that, which is not counted
    rate             requests per second to begin, whether or not earlier ones are answered; None: as fast as they are
    timeout_seconds  an answer that takes longer is a failure, and its connection is closed
    in_order         the keys one after another, not at random
    with_events      ask the leader every EVENT_SECONDS what has happened there
    """

    clients: int = 64
    value_bytes: int = 100
    keys: int = 1000
    read_share: float = 0.0
    level: str = "linearizable"
    reads_from: str = "leader"
    seconds: float | None = 10.0
    count: int | None = None
    warm_up_seconds: float = 0.0
    rate: float | None = None
    prefix: str = "bench/"
    timeout_seconds: float = 10.0
    in_order: bool = False
    with_events: bool = False


@dataclass
class Samples:
    """Requests of one kind that succeeded, each exactly, with 16 bytes of memory: when it was answered, and its latency, in seconds."""

    answered: array = field(default_factory=lambda: array("d"))
    latencies: array = field(default_factory=lambda: array("d"))


@dataclass
class Result:
    """What a run has seen. Times are of ``time.monotonic``.

    missing      reads of keys that are not there; they are among ``reads``
    failures     how many requests failed, by the name of the error; ``failed_at`` says when
    unsent       with a rate: requests whose time had come, but for which no client was free until the end
    events       (time, text): new terms, and compactions of the leader's log
    """

    load: Load
    began: float = 0.0
    ended: float = 0.0
    writes: Samples = field(default_factory=Samples)
    reads: Samples = field(default_factory=Samples)
    missing: int = 0
    failures: Counter = field(default_factory=Counter)
    failed_at: array = field(default_factory=lambda: array("d"))
    unsent: int = 0
    events: list = field(default_factory=list)
    interrupted: bool = False

    @property
    def seconds(self):
        return max(self.ended - self.began, 1e-9)

    @property
    def succeeded(self):
        return len(self.writes.answered) + len(self.reads.answered)

    def longest_gap_seconds(self):
        """The longest time without a success."""
        times = sorted([self.began, *self.writes.answered, *self.reads.answered, self.ended])
        return max(after - before for before, after in pairwise(times))

    def summary(self):
        """All of it as JSON knows it; the names are a promise. Latencies are in milliseconds, None without a sample."""
        load = self.load
        return {
            "clients": load.clients, "value_bytes": load.value_bytes, "keys": load.keys, "read_share": load.read_share,
            "level": load.level, "reads_from": load.reads_from, "rate": load.rate,
            "seconds": round(self.seconds, 3), "interrupted": self.interrupted,
            "writes": _figures(self.writes, self.seconds), "reads": {**_figures(self.reads, self.seconds), "missing": self.missing},
            "failed": sum(self.failures.values()), "errors": dict(sorted(self.failures.items())), "unsent": self.unsent,
            "longest_gap_seconds": round(self.longest_gap_seconds(), 3),
        }


PERCENTILES = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "p99_9_ms": 99.9, "max_ms": 100}


def _figures(samples, seconds):
    ordered = sorted(samples.latencies)
    latencies = {name: round(percentile(ordered, percent) * 1000, 3) if ordered else None for name, percent in PERCENTILES.items()}
    return {"count": len(ordered), "per_second": round(len(ordered) / seconds, 1), **latencies}


def percentile(ordered, percent):
    """The smallest of *ordered* (not empty) that at least *percent* of them do not exceed: one that was seen, not between two."""
    # Whole numbers: 99.9 / 100 * 1000 is a little more than 999.
    return ordered[max(math.ceil(round(percent * 10) * len(ordered) / 1000), 1) - 1]


# HTTP, as much of it as answers of raftd need


class BadAnswer(Exception):
    """What came is not an HTTP answer with a length."""


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes

    def header(self, name):
        """The value of the header, or None."""
        at = self.head.lower().find(b"\r\n%s:" % name.lower().encode())
        return self.head[at + len(name) + 3:].partition(b"\r\n")[0].strip().decode("latin-1") if at >= 0 else None

    @property
    def is_last(self):
        """The server closes the connection after this."""
        return b"onnection: close" in self.head


def parse(data):
    """The Answer in *data*, or None while it is not complete. What is no answer, or more than one, raises BadAnswer."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_HEAD_BYTES or not b"HTTP/1.".startswith(data[:7]):
            raise BadAnswer(data[:80])
        return None
    head = data[:end]
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    try:
        status, length = int(head[9:12]), int(lower[at + 17:].partition(b"\r\n")[0])
    except ValueError:
        raise BadAnswer(data[:80]) from None
    missing = end + 4 + length - len(data)
    if at < 0 or missing < 0 or not head.startswith(b"HTTP/1."):
        raise BadAnswer(data[:80])
    return Answer(status, head, data[end + 4:]) if missing == 0 else None


class Requests:
    """Makes the bytes of requests; only the key is not prepared."""

    def __init__(self, load):
        path, query = f"/db/{quote(load.prefix)}".encode(), b"" if load.level == "linearizable" else f"?level={load.level}".encode()
        self._write_head, self._read_head = b"POST " + path, b"GET " + path
        self._write_tail = b" HTTP/1.1\r\nHost: raftd\r\nContent-Length: %d\r\n\r\n" % load.value_bytes + b"x" * load.value_bytes
        self._read_tail = query + b" HTTP/1.1\r\nHost: raftd\r\n\r\n"

    def make(self, kind, key):
        if kind == WRITE:
            return b"%s%d%s" % (self._write_head, key, self._write_tail)
        return b"%s%d%s" % (self._read_head, key, self._read_tail)


# Where the servers are


def members(endpoints):
    """HOST:PORT of every member, as the first of *endpoints* that answers knows them; the endpoints themselves come last."""
    complaints = []
    for endpoint in endpoints:
        try:
            found = _get_json(endpoint, "/members")["members"]
            addresses = [member["address"].removeprefix("http://") for member in found if member["address"]]
            return list(dict.fromkeys([*addresses, *endpoints]))
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            complaints.append(f"{endpoint}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}")
    raise BenchFailed("no raftd answers: " + ", ".join(complaints))


def _get_json(endpoint, path):
    connection = http.client.HTTPConnection(*host_and_port(endpoint), timeout=5)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[^][:/@?#\s]+")


def host_and_port(address):
    """("::1", 4001) for "[::1]:4001"; raises ValueError if there is no port."""
    host, _, port = address.rpartition(":")
    if not _HOST.fullmatch(host) or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"not HOST:PORT: {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Directory:
    """The addresses of the servers, and which one leads as far as is known."""

    def __init__(self, addresses):
        self._addresses, self._resolved, self._asked = addresses, {}, -1
        self.leader = None

    def member(self, number):
        """Client *number* reads from this one."""
        return self._addresses[number % len(self._addresses)]

    def next_to_ask(self):
        self._asked += 1
        return self.member(self._asked)

    def resolve(self, address):
        """(family, socket address); raises OSError. Of several the IPv4 one: on loopback, raftd listens there."""
        if address not in self._resolved:
            found = socket.getaddrinfo(*host_and_port(address), type=socket.SOCK_STREAM)
            self._resolved[address] = min(((family, where) for family, *_, where in found), key=lambda one: one[0] != socket.AF_INET)
        return self._resolved[address]


# Clients


class Link:
    """A kept-open connection of one client to one server; at most one request is under way on it."""

    __slots__ = ("address", "client", "is_full", "received", "socket", "unsent")

    def __init__(self, client, address, sock):
        self.client, self.address, self.socket = client, address, sock
        self.received, self.unsent, self.is_full = b"", b"", False


class Client:
    """One request at a time. ``link`` is where it is under way, None when there is none.

    since     the time from which its latency counts; None until it is sent, unless there is a rate
    deadline  without an answer until then it has failed
    """

    __slots__ = ("deadline", "kind", "link", "links", "reads_at", "request", "since")

    def __init__(self, reads_at):
        self.reads_at, self.links, self.link = reads_at, {}, None
        self.kind = self.request = self.since = None
        self.deadline = 0.0


class Run:
    """One load on one cluster. ``run()`` returns the Result; ``stop()``, from a signal handler, makes that soon.

    A client is always in one place: a request of it is under way, or it is resting after a failure, or waiting for a leader, or
    (with a rate) idle until a request is due, or it has retired because there is nothing more to begin. *watch* is called now and
    then with the Result so far.
    """

    def __init__(self, load, addresses, watch=lambda result: None):
        self.load, self.watch, self._requests = load, watch, Requests(load)
        self._directory, self._selector = Directory(addresses), selectors.DefaultSelector()
        self._random = random.Random()
        self._clients = [Client(self._directory.member(n) if load.reads_from == "any" else None) for n in range(load.clients)]
        self._resting, self._waiting, self._idle = [], deque(), deque()
        self._scout, self._working = Client(None), load.clients
        self._issued, self._limit = 0, load.count if load.count is not None else math.inf
        self._first_sent = self._counted_from = None  # counted_from: when the warm-up was over
        self._is_stopped = False
        self._next_tick = self._next_status = self._last_success = 0.0
        self._status = {}  # what the leader said last
        self._result = Result(load)
        self._samples = {WRITE: self._result.writes, READ: self._result.reads}

    def stop(self):
        self._is_stopped = self._result.interrupted = True

    def run(self):
        self._started = self._last_success = time.monotonic()
        try:
            for client in self._clients:
                self._begin_next(client)
            while self._working:
                self._turn()
        finally:
            self._close()
        return self._finished()

    def _turn(self):
        for ready, events in self._selector.select(self._pause()):
            link = ready.data
            if events & selectors.EVENT_WRITE and link.socket is not None:  # it may be closed since
                self._send(link)
            if events & selectors.EVENT_READ and link.socket is not None:
                self._receive(link)
        now = time.monotonic()
        if self._idle:
            self._begin_due(now)
        if now >= self._next_tick:
            self._next_tick = now + TICK_SECONDS
            self._tick(now)

    def _close(self):
        for client in [*self._clients, self._scout]:
            for link in list(client.links.values()):
                self._drop(link)
        self._selector.close()

    def _finished(self):
        """Requests that were under way when the time was up were waited for, and count: so does their time."""
        result = self._result
        result.began = self._counted_from or self._first_sent or self._started
        last = max((times[-1] for times in (result.writes.answered, result.reads.answered) if times), default=0.0)
        result.ended = max(last, min(self._ends(), time.monotonic()), result.began)
        if self.load.rate and self.load.seconds:
            due = int((min(self._ends(), result.ended) - result.began) * self.load.rate)
            result.unsent = max(0, due - result.succeeded - sum(result.failures.values()))
        return result

    # Time

    def _ends(self):
        """No request begins after that. A cluster without a leader does not make a run last longer."""
        if self.load.seconds is None:
            return self._last_success + HOPELESS_SECONDS
        return (self._first_sent or self._started) + self.load.warm_up_seconds + self.load.seconds

    def _pause(self):
        if self._idle:
            return min(TICK_SECONDS, max(0.0, self._due(self._issued) - time.monotonic()))
        return TICK_SECONDS

    def _tick(self, now):
        """What need not happen at once."""
        if now >= self._ends():
            self._is_stopped = True
        if not self._counted_from and self._first_sent and now >= self._first_sent + self.load.warm_up_seconds > self._first_sent:
            self._forget_warm_up(now)
        for client in [*self._clients, self._scout]:
            if client.link is not None and now >= client.deadline:
                self._fail(client, "timeout", client.link.address)
        resting, self._resting = self._resting, []
        for client in resting:
            self._begin_next(client)
        if self._is_stopped:
            self._retire_who_waits()
        self._send_scout(now)
        self.watch(self._result)

    def _forget_warm_up(self, now):
        self._counted_from, self._result = now, Result(self.load, interrupted=self._result.interrupted)
        self._samples = {WRITE: self._result.writes, READ: self._result.reads}

    def _retire_who_waits(self):
        self._working -= len(self._waiting) + len(self._idle)
        self._waiting.clear(), self._idle.clear()

    # What to send next

    def _begin_next(self, client):
        if self._is_stopped or self._issued >= self._limit:
            self._working -= 1
        elif self.load.rate and self._due(self._issued) > time.monotonic():
            self._idle.append(client)
        else:
            self._issue(client)

    def _issue(self, client):
        load = self.load
        key = self._issued % load.keys if load.in_order else int(self._random.random() * load.keys)
        client.kind = READ if load.read_share and self._random.random() < load.read_share else WRITE
        client.request = self._requests.make(client.kind, key)
        client.since = self._due(self._issued) if load.rate else None
        self._issued += 1
        self._dispatch(client)

    def _dispatch(self, client):
        """Send the request of *client*, or have it wait for a leader."""
        address = client.reads_at if client.kind == READ and client.reads_at else self._directory.leader
        if address is None:
            self._waiting.append(client)
        else:
            self._send_to(client, address, self.load.timeout_seconds)

    def _due(self, number):
        """When request *number*, from 0, should begin at the asked rate."""
        return self._started + number / self.load.rate

    def _begin_due(self, now):
        while self._idle and (self._issued >= self._limit or self._due(self._issued) <= now):
            self._begin_next(self._idle.popleft())

    # Bytes

    def _send_to(self, client, address, patience_seconds):
        now = time.monotonic()
        client.deadline = now + patience_seconds
        if client is not self._scout:
            client.since = client.since or now
            self._first_sent = self._first_sent or now
        try:
            link = client.link = client.links.get(address) or self._connect(client, address)
        except OSError:
            self._fail(client, "connection", address)
            return
        link.unsent = client.request
        self._send(link)

    def _connect(self, client, address):
        family, where = self._directory.resolve(address)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(where)  # whether it succeeds, the first send tells
        link = client.links[address] = Link(client, address, sock)
        self._selector.register(sock, selectors.EVENT_READ, link)
        return link

    def _send(self, link):
        try:
            sent = link.socket.send(link.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._broken(link)
            return
        link.unsent = link.unsent[sent:]
        if link.is_full != bool(link.unsent):  # it is not, or no longer, connected and empty
            link.is_full = not link.is_full
            self._selector.modify(link.socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if link.is_full else 0), link)

    def _receive(self, link):
        try:
            data = link.socket.recv(RECEIVE_BYTES)
            link.received = link.received + data if link.received else data
            answer = parse(link.received) if data else None
        except BlockingIOError:
            return
        except OSError:
            data = answer = None
        except BadAnswer:
            self._broken(link, "bad_answer")
            return
        if not data:
            self._broken(link)
        elif answer is not None:
            self._answered(link, answer)

    def _answered(self, link, answer):
        client, link.received = link.client, b""
        if answer.is_last or client.link is not link:
            self._drop(link)
        if client.link is not link:
            return  # nobody had asked
        client.link = None
        if client is self._scout:
            self._heard(link.address, answer)
        elif answer.status == 200 or (answer.status == 404 and client.kind == READ):
            self._succeed(client, answer)
        else:
            self._fail(client, answer.header("X-Raft-Error") or f"http_{answer.status}", link.address)

    def _broken(self, link, error="connection"):
        if link.client.link is link:
            self._fail(link.client, error, link.address)
        else:
            self._drop(link)  # the server has closed one that was not in use

    def _drop(self, link):
        if link.socket is not None:
            self._selector.unregister(link.socket)
            link.socket.close()
            link.socket = None
            del link.client.links[link.address]

    # How it went

    def _succeed(self, client, answer):
        self._last_success = now = time.monotonic()
        samples = self._samples[client.kind]
        samples.answered.append(now)
        samples.latencies.append(now - client.since)
        if answer.status == 404:
            self._result.missing += 1
        self._begin_next(client)

    def _fail(self, client, error, address):
        """The request to *address* has failed, and with it the connection, unless the server has answered."""
        link, client.link = client.link, None
        if link is not None:
            self._drop(link)
        if client is self._scout:
            return  # a later tick asks again
        self._result.failures[error] += 1
        self._result.failed_at.append(time.monotonic())
        if address == self._directory.leader:
            self._directory.leader = None
        self._resting.append(client)

    # The scout: who leads, and what happens there

    def _send_scout(self, now):
        """It has one question at a time, to one server after another while a client waits for a leader."""
        leader = self._directory.leader
        if self._scout.link is not None:
            return
        if self._waiting and leader is None:
            self._ask(LEADER, self._directory.next_to_ask())
        elif self.load.with_events and leader is not None and now >= self._next_status:
            self._next_status = now + EVENT_SECONDS
            self._ask(STATUS, leader)

    def _ask(self, path, address):
        self._scout.kind, self._scout.request = path, b"GET %s HTTP/1.1\r\nHost: raftd\r\n\r\n" % path.encode()
        self._send_to(self._scout, address, ASK_SECONDS)

    def _heard(self, address, answer):
        try:
            said = json.loads(answer.body) if answer.status == 200 else {}
        except ValueError:
            said = {}
        if self._scout.kind == STATUS:
            self._note_events(said)
        elif said.get("name") and answer.header("X-Raft-Node") == said["name"]:
            self._found_leader(address)

    def _found_leader(self, address):
        """Found is only who says so of itself: the others may not know yet that the one they name is gone."""
        self._directory.leader = address
        waiting, self._waiting = self._waiting, deque()
        for client in waiting:
            self._dispatch(client)

    def _note_events(self, status):
        for name, text in (("term", "term {}"), ("first_log_index", "log from {}")):
            before, now = self._status.get(name), status.get(name)
            if before is not None and now is not None and before != now:
                self._result.events.append((time.monotonic(), text.format(now)))
        self._status = {**self._status, **status}


def fill(load, addresses, watch=lambda result: None):
    """Write every key once, so that reads find a value. Returns the Run, which is still to be run."""
    clients = min(load.clients, load.keys)
    return Run(replace(load, clients=clients, read_share=0.0, seconds=None, count=load.keys, warm_up_seconds=0.0, rate=None,
                       in_order=True, with_events=False), addresses, watch)
