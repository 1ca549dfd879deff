"""The express lane: plain requests of /db that no thread waits for. All others go the ordinary way, to the views of Flask.

A thread for each write that waits is what a busy Python server cannot afford: they all want the interpreter at once, and the
thread that syncs the log is one among many. So the thread that reads requests proposes a plain one right away, and answers
when the node tells that it is done. What a request means, and what its answer says, stands in ``db`` and ``answers``; here
is only which requests are plain.
"""

import logging
import re
import time
from collections import deque
from concurrent.futures import Future
from http import HTTPStatus

from waitress.channel import ClientDisconnected
from waitress.utilities import build_http_date

from raftd.config import MAX_KEY_BYTES
from raftd.errors import CommitTimeout, NoQuorum, NotFound, RaftdError, Stopping
from raftd.kv import Delete, Get, Set, encode
from raftd.web.answers import NOT_CACHED, done_fields, error_fields, error_line, value_fields
from raftd.web.db import outcome_of

log = logging.getLogger(__name__)

# A key without an escape, and nothing in the query but the one common level: what needs a closer look is not plain.
_PLAIN = re.compile(r"/db/([A-Za-z0-9._~-][A-Za-z0-9._~/-]*)(\?level=stale)?")
_UNUSUAL = {"CONNECTION", "EXPECT", "IF_MATCH", "IF_NONE_MATCH", "IDEMPOTENCY_KEY", "X_RAFT_FENCE"}
MAX_PLAIN_BYTES = 64 * 1024  # with larger bodies the reading thread should not be busy
MOST_SECONDS_AT_ONCE = 0.02  # of answering, before those have their turn who ask
_READS, _WRITES = ("GET",), ("POST", "PUT", "DELETE")


_NOTHING = Future()  # to wait for: any state will do
_NOTHING.set_result(True)


class Pending:
    """A request that is under way. ``channel`` is None once it is answered."""

    __slots__ = ("channel", "deadline", "future", "key")

    def __init__(self, channel, key, future, deadline):
        self.channel, self.key, self.future, self.deadline = channel, key, future, deadline


class Lane:
    """Takes plain requests off waitress's channels and answers them.

    *wake* makes the reading thread call ``finish`` soon, which alone writes answers; *next_request* is called with a channel whose
    request is answered while another one waits in it; *otherwise*, with a channel whose request is not for this lane after all.
    """

    def __init__(self, node, wake, next_request, otherwise):
        self._node, self._wake, self._next_request, self._otherwise = node, wake, next_request, otherwise
        self._most_bytes = min(MAX_PLAIN_BYTES, node.settings.max_value_bytes)
        self._finished, self._awake = deque(), False
        self._pending = deque()  # in the order of their deadlines, since all have the same time

    def take(self, channel):
        """Begin with the request of *channel* if it is a plain one; False if it is not, or if the node refuses it at once."""
        request = channel.requests[0]
        match = _PLAIN.fullmatch(request.request_uri)
        if not match or len(match[1]) > MAX_KEY_BYTES or not self._is_plain(request):
            return False
        key, level = match.groups()
        try:
            if request.command in _READS:
                return self._take_read(channel, key, level)
            if level is None and request.command in _WRITES:
                return self._take_write(channel, key, request)
        except RaftdError:  # nothing was proposed: Flask comes to the same end, and says so in the client's way
            return False
        return False

    def _is_plain(self, request):
        headers = request.headers
        return request.version == "1.1" and _UNUSUAL.isdisjoint(headers) and request.body_bytes_received <= self._most_bytes \
            and "json" not in headers.get("ACCEPT", "")

    def _take_read(self, channel, key, level):
        self._wait_for(_NOTHING if level else self._node.submit_read(), channel, key)
        return True

    def _take_write(self, channel, key, request):
        if request.command == "DELETE":
            command = Delete(key)
        else:
            body = request.get_body_stream()
            command = Set(key, body.read())
            body.seek(0)  # for Flask, if the node refuses
        self._wait_for(self._node.submit(encode(command)), channel, None)
        return True

    def _wait_for(self, future, channel, key):
        channel.began = time.monotonic()
        pending = Pending(channel, key, future, channel.began + self._node.settings.write_timeout_seconds)
        self._pending.append(pending)
        future.add_done_callback(lambda _: self._hand_over(pending))

    def _hand_over(self, pending):
        """In any thread, perhaps while the node is locked."""
        self._finished.append(pending)
        if not self._awake:
            self._awake = True
            self._wake()

    # In the reading thread

    def finish(self):
        """Answer what is done."""
        self._awake, until = False, time.monotonic() + MOST_SECONDS_AT_ONCE
        while self._finished and time.monotonic() < until:
            pending = self._finished.popleft()
            if pending.channel is not None:
                self._answer(self._released(pending), pending)
        if self._finished:
            self._awake = True
            self._wake()

    def expire(self):
        """Answer what has waited too long, and forget what is answered."""
        now = time.monotonic()
        while self._pending and (self._pending[0].channel is None or self._pending[0].deadline <= now):
            pending = self._pending.popleft()
            if pending.channel is not None:
                self._answer_error(self._released(pending), self._late(pending))

    def _late(self, pending):
        if pending.key is not None:
            return NoQuorum(f"no majority confirmed the leader in time{self._node.out_of_reach()}")
        return CommitTimeout(f"not committed within {self._node.settings.write_timeout_seconds:g} s{self._node.out_of_reach()}")

    @staticmethod
    def _released(pending):
        channel, pending.channel = pending.channel, None
        return channel

    def _answer(self, channel, pending):
        try:
            self._answer_with(channel, pending.key, pending.future)
        except Exception:  # a fault of ours must not end the thread that serves everybody
            log.exception("request failed path=%s", channel.requests[0].path if channel.requests else "")
            channel.will_close = True

    def _answer_with(self, channel, key, future):
        error = future.exception()
        if error is not None:
            self._answer_error(channel, error)
        elif key is None:
            applied = future.result()
            error, etag = outcome_of(applied)
            if error:
                self._answer_error(channel, error, applied.index)
            else:
                self._write(channel, 200, done_fields(applied.index, etag))
        elif future.result() and not self._node.is_installing:
            try:
                self._answer_value(channel, self._node.read(Get(key), "stale"))  # the state is new enough by now
            except RaftdError as failure:
                self._answer_error(channel, failure)
        else:
            self._otherwise(channel)

    def _answer_value(self, channel, found):
        if found.value is None:
            self._write(channel, 404, error_fields(NotFound("no such key"), found.applied_index))
        else:
            self._write(channel, 200, value_fields(found), found.value)

    def _answer_error(self, channel, error, index=None):
        fields = error_fields(error, index)
        if isinstance(error, Stopping):  # nothing else will be answered on this connection
            fields["Connection"] = "close"
        self._write(channel, error.status, fields, (error_line(error) + "\n").encode())

    def _write(self, channel, status, fields, body=b""):
        fields = {**self._node.headers(), **fields, NOT_CACHED[0]: NOT_CACHED[1], "Content-Length": len(body),
                  "Date": build_http_date(time.time()), "Server": channel.server.adj.ident}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        data = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}\r\n".encode("latin-1") + body
        try:
            channel.write_soon(data)
        except ClientDisconnected:
            channel.will_close = True
        log_request(channel, channel.requests[0], status, time.monotonic() - channel.began)
        self._release(channel, last="Connection" in fields)

    def _release(self, channel, last):
        """What ``HTTPChannel.service`` does after a request: the next one may begin, unless it was the *last*."""
        channel.requests[0].close()
        if last:
            channel.close_when_flushed, channel.requests = True, []
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


def log_request(channel, request, status, seconds):
    """One line for a request that is answered, with ``-v``."""
    if log.isEnabledFor(logging.DEBUG):
        log.debug("request from=%s method=%s path=%r status=%s seconds=%.4f", channel.addr[0], request.command,
                  request.path, str(status).split()[0], seconds)
