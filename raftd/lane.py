"""The express lane: plain requests of /db and /txn that no thread waits for. All others go the ordinary way, to the views of Flask.

A thread for each write that waits is what a busy Python server cannot afford: they all want the interpreter at once, and the
thread that syncs the log is one among many. So the thread that reads requests proposes the plain ones, all that it has read in
one turn together, and answers when the node tells that they are done. What a request means, and what its answer says, stands in
``web``; here is only which requests are plain.
"""

import logging
import re
import time
from collections import deque
from http import HTTPStatus

from waitress.channel import ClientDisconnected
from waitress.utilities import build_http_date

from raftd.config import MAX_KEY_BYTES
from raftd.errors import CommitTimeout, NoQuorum, NotFound, RaftdError, Stopping
from raftd.kv import UNCONDITIONAL, Delete, Get, Set, Transaction
from raftd.web.answers import NOT_CACHED, done_fields, error_fields, error_line, json_fields, transacted_body, value_fields
from raftd.web.parameters import conditions, no_conditions, ttl
from raftd.web.txn import transaction
from raftd.web.writes import encoded, outcome_of, replay_fields

log = logging.getLogger(__name__)

# A key without an escape, and nothing in the query but the level of a read or a time to live: what needs a closer look is not plain.
_TARGET = r"(?:/db/([A-Za-z0-9._~-][A-Za-z0-9._~/-]*)(?:\?(?:level=(stale|leader)|ttl=([0-9]{1,9}(?:ms|s|m|h))))?|/txn)"
_PLAIN = re.compile(_TARGET)
_PLAIN_LINE = re.compile(rf"(GET|POST|PUT|DELETE) {_TARGET} HTTP/1\.1")
# What comes with a write, and says something else each time; as it is sent by those who make it up, and by no others.
_NAMES = ("Idempotency-Key", "If-Match", "If-None-Match", "X-Raft-Fence")
_SAID = re.compile("([!-~]{1,255})")
_FIELDS = re.compile(rf"\r\n({'|'.join(_NAMES)}): {_SAID.pattern}(?=\r\n|\Z)".encode(), re.IGNORECASE)
_AS_SENT, _OF_A_WRITE = {name.lower().encode(): name for name in _NAMES}, {name.upper().replace("-", "_"): name for name in _NAMES}
_UNUSUAL = {"EXPECT", *_OF_A_WRITE}
MAX_PLAIN_BYTES = 64 * 1024  # with larger bodies the reading thread should not be busy
MOST_SECONDS_AT_ONCE = 0.02  # of answering, before those have their turn who ask
MOST_HEADS, MOST_HEAD_BYTES = 1024, 2048  # that are remembered, and in each
_FIRST_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_READS, _LAST, _ALL = ("GET",), ("POST", "PUT"), ("GET", "POST", "PUT", "DELETE")


class Plain:
    """A plain request that was taken as it came: *data*. What waitress's has that is looked at."""

    __slots__ = ("command", "path", "data")
    error = None

    def __init__(self, command, path, data):
        self.command, self.path, self.data = command, path, data

    def close(self):
        pass


class Pending:
    """A request that is under way, and the future of what the node says to it: only what a node does to one, and no lock.

    channel  None once it is answered
    command  what was asked for: a Get, or what is to be written
    """

    __slots__ = ("channel", "command", "deadline", "_lane", "_done", "_value", "error")

    def __init__(self, lane, channel, command, deadline):
        self.channel, self.command, self.deadline = channel, command, deadline
        self._lane, self._done, self._value, self.error = lane, False, None, None

    def done(self):
        return self._done

    def set_result(self, value):
        self._done, self._value = True, value
        self._lane.hand_over(self)

    def set_exception(self, error):
        self._done, self.error = True, error
        self._lane.hand_over(self)

    def result(self):
        return self._value


class Together:
    """The future of several reads that began as one."""

    __slots__ = ("_reads",)

    def __init__(self, reads):
        self._reads = reads

    def done(self):
        return self._reads is None

    def set_result(self, value):
        reads, self._reads = self._reads, None
        for read in reads:
            read.set_result(value)

    def set_exception(self, error):
        reads, self._reads = self._reads, None
        for read in reads:
            read.set_exception(error)


class Lane:
    """Takes plain requests off waitress's channels and answers them.

    The reading thread calls ``awake`` when it has waited, and ``finish`` before it waits again, which proposes what has been taken
    and alone writes answers. *wake* ends its wait; *next_request* is called with a channel whose request is answered while another
    one waits in it; *otherwise*, with a channel whose request is not for this lane after all.
    """

    def __init__(self, node, wake, next_request, otherwise):
        self._node, self._wake, self._next_request, self._otherwise = node, wake, next_request, otherwise
        self._most_bytes = min(MAX_PLAIN_BYTES, node.settings.max_value_bytes)
        self._reads, self._leased_reads, self._writes = deque(), deque(), deque()  # to begin with: Pending, Pending, (command, Pending)
        self._finished = deque()
        self._awake = False  # the reading thread is, and will call ``finish``
        self._pending = deque()  # in the order of their deadlines, since all have the same time
        self._reading = set()  # transactions under way whose outcome may be large: not more than threads of Flask could wait for
        self._last_lines_of = 0, ""
        self._lengths = {}  # the fields of a head -> the length of the body, or None if it is not plain

    # In the reading thread

    def take(self, channel):
        """Take the request of *channel* if it is a plain one; False if it is not."""
        request = channel.requests[0]
        match = _PLAIN.fullmatch(request.request_uri)
        if not match or request.version != "1.1" or not self._may_be(request.command, *match.groups()):
            return False
        headers = dict(request.headers)
        fields = {name: headers.pop(read) for read, name in _OF_A_WRITE.items() if read in headers}
        if not self._is_plain(headers, request.body_bytes_received) or not all(map(_SAID.fullmatch, fields.values())):
            return False
        body = request.get_body_stream()
        value = body.read()
        body.seek(0)  # for Flask, if the node refuses
        return self._begin(channel, request.command, *match.groups(), value, fields)

    def take_bytes(self, channel, data):
        """``take``, if *data* is one whole plain request, without a look at what is the same in all requests of a client.

        None if it is the beginning of one.
        """
        head, end, body = data.partition(b"\r\n\r\n")
        line, _, lines = head.partition(b"\r\n")
        length, fields = self._lengths.get(lines, -1), {}
        if length == -1:
            length, fields = self._look_at(channel, lines)
        match = _PLAIN_LINE.fullmatch(line.decode("latin-1")) if end and length is not None and len(body) <= length else None
        if not match:
            return False
        if len(body) < length:
            return None
        asked = method, key, _, _ = match.groups()
        if not self._may_be(*asked):
            return False
        channel.requests = [Plain(method, f"/db/{key}" if key else "/txn", data)]
        if self._begin(channel, *asked, body, fields):
            return True
        channel.requests = []
        return False

    def _look_at(self, channel, lines):
        """(``_length_in`` a head with these *lines*, the fields of a write among them). What those say is another each time: what is
        remembered is the rest."""
        fields = {}

        def left(match):
            if (name := _AS_SENT[match[1].lower()]) in fields:
                return match[0]  # of two neither counts
            fields[name] = match[2].decode()
            return b""
        lines = _FIELDS.sub(left, b"\r\n" + lines)[2:]
        length = self._lengths.get(lines, -1)
        return self._length_in(channel, lines) if length == -1 else length, fields

    def _length_in(self, channel, lines):
        """The length of the body after a head with these *lines*, each of which is for itself; None if they are not plain."""
        request = channel.parsed(b"POST / HTTP/1.1\r\n" + lines + b"\r\n\r\n")
        length = request.content_length
        if request.error or request.chunked or not request.headers_finished or not self._is_plain(request.headers, length):
            length = None
        if len(self._lengths) >= MOST_HEADS:
            self._lengths.clear()
        if len(lines) <= MOST_HEAD_BYTES:
            self._lengths[lines] = length
        return length

    @staticmethod
    def _may_be(command, key, level, lasts):
        if key is None:
            return command == "POST"  # /txn
        return command in (_READS if level else _LAST if lasts else _ALL) and len(key) <= MAX_KEY_BYTES

    def _is_plain(self, headers, length):
        return length <= self._most_bytes and _UNUSUAL.isdisjoint(headers) and "json" not in headers.get("ACCEPT", "").lower() \
            and headers.get("CONNECTION", "keep-alive").lower() == "keep-alive"

    def _begin(self, channel, method, key, level, lasts, body, fields):
        """Perhaps in the thread of the request before it on this connection, one of Flask's. False if it is for Flask after all: to be
        refused, or to wait until the leader knows what time it is."""
        try:
            command = self._command(method, key, lasts, body, fields)
            data = None if type(command) is Get else encoded(self._node, command, fields, timeout=0)[0]
        except RaftdError:
            return False
        reads = type(command) is Transaction and command.reads
        if reads and len(self._reading) >= self._node.settings.client_threads:
            return False
        channel.began = time.monotonic()
        pending = Pending(self, channel, command, channel.began + self._node.settings.write_timeout_seconds)
        self._pending.append(pending)
        if reads:
            self._reading.add(pending)
        if level == "stale":
            self._node.submit_stale_read(pending)
            return True
        if type(command) is Get:
            (self._leased_reads if level else self._reads).append(pending)
        else:
            self._writes.append((data, pending))
        self._wake_if_it_sleeps()
        return True

    @staticmethod
    def _command(method, key, lasts, body, fields):
        if method == "GET":
            return Get(key)
        if key is None:
            no_conditions(fields)
            return transaction(body)
        held = conditions(fields) if fields else UNCONDITIONAL
        return Delete(key, held) if method == "DELETE" else Set(key, body, held, ttl(lasts) if lasts else 0)

    def hand_over(self, pending):
        """*pending* is done. In any thread, perhaps while the node is locked."""
        self._finished.append(pending)
        self._wake_if_it_sleeps()

    def _wake_if_it_sleeps(self):
        if not self._awake:
            self._awake = True
            self._wake()

    def awake(self):
        """Nobody need wake the reading thread from now on, until it calls ``finish``."""
        self._awake = True

    def finish(self, seconds=MOST_SECONDS_AT_ONCE):
        """Begin what is taken, and answer what is done: for so many *seconds*, what is left the next time."""
        try:
            self._submit()
        finally:
            self._awake = False
        if self._reads or self._leased_reads or self._writes:  # taken since by another thread, which saw this one awake
            self._wake_if_it_sleeps()
        if self._finished:
            self._answer_finished(until=time.monotonic() + seconds)

    def _answer_finished(self, until):
        while self._finished:
            pending = self._finished.popleft()
            if pending.channel is not None:
                self._answer(self._released(pending), pending)
            if time.monotonic() >= until:
                self._wake_if_it_sleeps()
                break

    def _submit(self):
        """Whom the node refuses, with nothing proposed, goes to Flask, which comes to the same end and says so in the client's way."""
        refused = []
        if self._writes:
            refused += [pending for _, pending in self._node.submit_all(_drained(self._writes))]
        for queue, leased in ((self._reads, False), (self._leased_reads, True)):
            if queue:
                reads = _drained(queue)
                try:
                    self._node.submit_read(Together(reads), leased)
                except RaftdError:
                    refused += reads
        for pending in refused:
            if pending.channel is not None:
                self._otherwise(self._released(pending))

    def expire(self):
        """Answer what has waited too long, and forget what is answered. Who waits only for his turn is not told that nothing was done."""
        now = time.monotonic()
        while self._pending and (self._pending[0].channel is None or self._pending[0].deadline <= now):
            pending = self._pending.popleft()
            if pending.channel is not None and not pending.done():
                self._answer_error(self._released(pending), self._late(pending))

    def _late(self, pending):
        if type(pending.command) is Get:
            return NoQuorum(f"no majority confirmed the leader in time{self._node.out_of_reach()}")
        return CommitTimeout(f"not committed within {self._node.settings.write_timeout_seconds:g} s{self._node.out_of_reach()}")

    def _released(self, pending):
        channel, pending.channel = pending.channel, None
        self._reading.discard(pending)
        return channel

    def _answer(self, channel, pending):
        try:
            self._answer_with(channel, pending)
        except Exception:  # a fault of ours must not end the thread that serves everybody
            log.exception("request failed path=%s", channel.requests[0].path if channel.requests else "")
            channel.end()

    def _answer_with(self, channel, pending):
        if pending.error is not None:
            self._answer_error(channel, pending.error)
        elif type(pending.command) is not Get:
            self._answer_done(channel, pending.command, pending.result())
        elif pending.result() and not self._node.is_installing:
            try:
                self._answer_value(channel, self._node.look_up(pending.command))  # the state is new enough by now
            except RaftdError as failure:
                self._answer_error(channel, failure)
        else:
            self._otherwise(channel)

    def _answer_done(self, channel, command, applied):
        outcome, status, body = applied.result, 200, b""
        if outcome.kind == "transacted":
            fields, body = json_fields(applied.index), transacted_body(command, outcome).encode()
        else:
            error, etag = outcome_of(applied)
            if error:
                fields, status, body = error_fields(error, applied.index), error.status, _line(error)
            else:
                fields = done_fields(applied.index, etag)
        if outcome.replayed:
            fields.update(replay_fields(outcome))
        self._write(channel, status, fields, body)

    def _answer_value(self, channel, found):
        if found.value is None:
            self._write(channel, 404, error_fields(NotFound("no such key"), found.applied_index))
        else:
            self._write(channel, 200, value_fields(found), found.value)

    def _answer_error(self, channel, error):
        fields = error_fields(error)
        if isinstance(error, Stopping):  # nothing else will be answered on this connection
            fields["Connection"] = "close"
        self._write(channel, error.status, fields, _line(error))

    def _write(self, channel, status, fields, body=b""):
        lines = [f"{name}: {value}\r\n" for name, value in {**self._node.headers(), **fields}.items()]
        head = f"{_FIRST_LINES[status]}{''.join(lines)}Content-Length: {len(body)}\r\n{self._last_lines(channel)}"
        data = head.encode("latin-1") + body
        try:
            channel.answer(data)
        except ClientDisconnected:
            channel.end()
        log_request(channel, channel.requests[0], status, time.monotonic() - channel.began)
        self._release(channel, last="Connection" in fields)

    def _last_lines(self, channel):
        """What is the same in all heads of a second."""
        now = int(time.time())
        if self._last_lines_of[0] != now:
            self._last_lines_of = now, (f"{NOT_CACHED[0]}: {NOT_CACHED[1]}\r\nDate: {build_http_date(now)}\r\n"
                                        f"Server: {channel.server.adj.ident}\r\n\r\n")
        return self._last_lines_of[1]

    def _release(self, channel, last):
        """What ``HTTPChannel.service`` does after a request: the next one may begin, unless it was the *last*."""
        channel.requests[0].close()
        if last:
            channel.requests = []
            channel.end(when_flushed=True)
            return
        if channel.current_outbuf_count > 0:  # the next answer begins a new buffer, or this one would keep what it has sent
            channel.current_outbuf_count = channel.adj.outbuf_high_watermark
        with channel.requests_lock:
            channel.requests.pop(0)
            more, partial = channel.connected and bool(channel.requests), channel.request
            if channel.connected and not more and partial is not None and partial.expect_continue and partial.headers_finished \
                    and not channel.sent_continue:
                channel.send_continue()
        channel.last_activity = time.time()
        if more:
            self._next_request(channel)
        else:
            channel.goes_on()


def _line(error):
    return (error_line(error) + "\n").encode()


def _drained(queue):
    """What is in the deque, to which other threads may append meanwhile."""
    return [queue.popleft() for _ in range(len(queue))]


def log_request(channel, request, status, seconds):
    """One line for a request that is answered, with ``-v``."""
    if log.isEnabledFor(logging.DEBUG):
        log.debug("request from=%s method=%s path=%r status=%s seconds=%.4f", channel.addr[0], request.command,
                  request.path, str(status).split()[0], seconds)
