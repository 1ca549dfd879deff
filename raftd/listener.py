"""The one port of a node: waitress, with a place in it for everybody.

waitress reads requests in one thread and hands each complete one to a dispatcher. Ours begins plain writes and reads right
there (``lane``), so that no thread waits for them. For the rest it has three pools of threads, so that neither those who
wait for a commit nor those who wait for a new member keep out who asks for the health of the node; and it takes the
connections of peers out of waitress altogether: they get a thread of their own in ``transport.PeerServer``. Slow and idle
connections cost waitress a place in its poll set and nothing else: no thread writes to a client that does not read, and what
waits in memory for all of them together is bounded (``Backlog``).
"""

import errno
import logging
import math
import os
import re
import resource
import socket
import threading
import time
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus

from waitress import create_server, wasyncore
from waitress.buffers import OverflowableBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.trigger import trigger
from waitress.utilities import BadRequest as MalformedRequest

from raftd.errors import BadRequest, Overloaded, RaftdError, StartupError, Stopping, TooLarge
from raftd.lane import MAX_PLAIN_BYTES, MOST_SECONDS_AT_ONCE, Lane, Plain, log_request
from raftd.sockets import Sockets
from raftd.watchers import Watchers
from raftd.web.answers import NOT_CACHED, error_body, error_fields, error_line
from raftd.web.db import OFFER, WAITED
from raftd.web.parameters import wait_of
from raftd.web.watch import Offer

log = logging.getLogger(__name__)

QUICK_THREADS, CHANGE_THREADS = 2, 4
STOP_SECONDS = 2.0  # requests under way may take so long when the node stops
_QUICK_PATHS = ("/livez", "/readyz", "/status", "/raft/identity")
_CHANGES = ("POST", "DELETE", "PUT")
MAX_HEAD_BYTES = 64 * 1024  # of a request; a key may take 12 kB of it
MAX_CHUNK_LINE_BYTES = 4096
MAX_KEPT_BYTES = 64 * 1024  # in the buffer of a connection when all is sent
MAX_BACKLOG_BYTES = 128 << 20  # what waits for clients, all together
MAX_QUEUED_BYTES = 64 << 20  # bodies of requests that wait for a thread, all together
SECONDS_BETWEEN_WARNINGS = 10.0
SECONDS_BETWEEN_LOOKS = 1.0  # at what the server does every now and then
ACCEPT_PAUSE_SECONDS = 0.1  # when there is no descriptor for another connection
_REQUEST_LINE = re.compile(rb"[^\x00-\x20\x7f]+ [^\x00-\x20\x7f]+ HTTP/1\.[01]")
_FIELD_NAME, _FIELD_VALUE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"), re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_USUAL_FIELDS = re.compile(rb"(?:[0-9A-Za-z-]+: [\x21-\x7e][\x20-\x7e]*\r\n)*(?:\r\n)?")  # what waitress reads as it is


def bind(address, port):
    """A socket bound to *address* and *port*. Raises StartupError when that cannot be."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise StartupError(f"cannot listen on {address} port {port}: {error.strerror or error}; choose another with -p or -bind") from error
    return listening


class Parser(HTTPRequestParser):
    """waitress's, for a request that has one meaning only and costs no more than it is long; reports whatever it cannot read.

    The regular expressions of waitress take time with the square of what does not match them, and of blanks that lead a field: a
    head of 256 kB would stop the thread that reads for everybody, and, since an expression gives the interpreter to nobody, the
    heartbeats too, for minutes. So they see only what they match at once. A length that is said twice, or in a way that another
    server on the way might read otherwise, would let a client hide one request in the body of another.
    """

    command = path = request_uri = "?"  # as long as nothing else can be read

    def received(self, data):
        consumed = super().received(data)
        if self.chunked and max(len(self.body_rcv.control_line), len(self.body_rcv.trailer)) > MAX_CHUNK_LINE_BYTES:
            self.error, self.completed = MalformedRequest("a line between chunks is too long"), True
        if self.completed:  # it has a body that needs no word to go on, or none: waitress would wait for one for ever
            self.expect_continue = False
        return consumed

    def parse_header(self, header_plus):
        line, _, rest = header_plus.partition(b"\r\n")
        line, fields = line.rstrip(), []
        if not line.isascii():  # such bytes are taken as if they were percent-encoded
            line = re.sub(rb"[\x80-\xff]", lambda found: b"%%%02X" % found[0][0], line)
        if not _REQUEST_LINE.fullmatch(line):
            raise ParsingError("the request line is not METHOD TARGET HTTP/1.1")
        if not _USUAL_FIELDS.fullmatch(rest) or b"transfer-encoding" in rest.lower():
            fields = [_field(text) for text in rest.split(b"\r\n") if text]
            rest = b"\r\n".join(b": ".join(field) for field in fields)
        try:
            super().parse_header(line + b"\r\n" + rest)
        except ValueError as error:
            raise ParsingError(f"malformed request: {error}") from error
        self._check_length([value.lower() for name, value in fields if name.lower() == b"transfer-encoding"])

    def _check_length(self, codings):
        """RFC 9112, section 6.1: what says both how long a body is and that it is chunked, or only half of it, is faulty."""
        if codings and (codings != [b"chunked"] or not self.chunked or "CONTENT_LENGTH" in self.headers):
            raise ParsingError("the length of the body is not clear: one Content-Length, or chunked as the only Transfer-Encoding")


def _field(text):
    """(name, value) of a line of the head, the value without blanks around it. Raises ParsingError."""
    name, colon, value = text.partition(b":")
    value = value.strip(b" \t")
    if not colon or not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
        raise ParsingError("a line of the head is not NAME: VALUE")
    return name, value


class Request(WSGITask):
    """A request that Flask answers. Its head is as the lane would write it."""

    def start(self):
        super().start()
        self._began = time.monotonic()

    def get_environment(self):
        environment, watchers = super().get_environment(), self.channel.server.watchers
        self._offer = environment[OFFER] = Offer(watchers.are_full)
        if self.request in self.channel.has_waited:
            environment[WAITED] = True
        return environment

    def execute(self):
        super().execute()
        if self._offer.taken:
            self._hand_over(self._offer.taken)

    def _hand_over(self, stream):
        """The connection lives on in a second descriptor; waitress closes its own."""
        _end_connection(self)
        lines = [f"{name}: {value}\r\n" for name, value in self.response_headers]
        head = f"HTTP/1.1 {self.status}\r\n{''.join(lines)}Date: {formatdate(usegmt=True)}\r\nServer: raftd\r\n\r\n"
        connection = self.channel.socket.dup()
        self.wrote_header = True
        self.channel.server.watchers.take(connection, head.encode("latin-1"), stream)

    def build_response_header(self):
        code = int(self.status.split()[0])
        self.status = f"{code} {HTTPStatus(code).phrase}"
        if ("X-Raft-Error", Stopping.code) in self.response_headers:  # nothing else will be answered on this connection
            _end_connection(self)
        return super().build_response_header().replace(b"\r\nEtag: ", b"\r\nETag: ", 1)

    def finish(self):
        super().finish()
        log_request(self.channel, self.request, self.status, time.monotonic() - self._began)


class Refused(ErrorTask):
    """What waitress itself refuses, answered like any other error of ours."""

    def execute(self):
        error, headers = self._error(), self.channel.server.raft_headers()
        content_type, body = error_body(error, error_line(error), self.request.headers.get("ACCEPT", ""), headers)
        self.status = f"{error.status} {HTTPStatus(error.status).phrase}"
        self.response_headers += {**headers, **error_fields(error), "Content-Type": content_type, NOT_CACHED[0]: NOT_CACHED[1]}.items()
        _end_connection(self)
        data = body.encode()
        self.content_length = len(data)
        self.write(b"" if self.request.command == "HEAD" else data)
        log_request(self.channel, self.request, self.status, 0.0)

    def _error(self):
        refusal = self.request.error
        if isinstance(refusal, RaftdError):
            return refusal
        if refusal.code in (413, 431):
            return TooLarge(f"the body is larger than {self.channel.server.max_value_bytes} bytes" if refusal.code == 413 else
                            "the head of the request is too large")
        if refusal.code in (400, 501):  # 501: a Transfer-Encoding that is not known
            return BadRequest(refusal.body or refusal.reason)
        return RaftdError(refusal.body or refusal.reason)


def _end_connection(task):
    """Close it after the answer of *task*, and say so once: a "keep-alive" of HTTP/1.0 waitress would answer as well."""
    task.request.headers.pop("CONNECTION", None)
    task.set_close_on_finish()


class Channel(HTTPChannel):
    """A connection of waitress.

    began  when the lane has taken its request
    waits  its next request is begun when the client has taken the answers before: no thread must write what nobody reads
    """

    task_class = Request
    error_task_class = Refused
    parser_class = Parser
    began, waits = 0.0, False
    has_waited = ()  # the request for whose key to change has been waited, if that is so
    _head = b""  # of a plain request whose body is still to come
    _kept_bytes = 0  # of answers, sent or not, that are still in a buffer

    @property
    def held_bytes(self):
        """What waits in memory for the client: to be read by it, or for the rest of what it says."""
        partial = self.request
        return len(self._head) + (self._kept_bytes if self.total_outbufs_len else 0) + (
            partial.header_bytes_received + partial.body_bytes_received if partial else 0)

    def handle_read(self):
        if self.readable():
            super().handle_read()
        else:  # it has a request that is not answered yet
            self._changed()

    def received(self, data):
        if self.request is None and (data := self._left_by_lane(data)) is None:
            return True
        taken = super().received(data)
        if self.request is not None:
            self.server.backlog.add(self)
        self._changed()
        return taken

    def _left_by_lane(self, data):
        """What is to be read in the ordinary way, of *data* and what came before; None if the lane has it, or will have."""
        if is_rest := bool(self._head):
            data, self._head = self._head + data, b""
        taken = self.server.lane.take_bytes(self, data)
        if taken is None and not is_rest:  # many clients send the body by itself; who sends it in more pieces takes the ordinary way
            self._head = data
            self.server.backlog.add(self)
            return None
        return None if taken else data

    def parsed(self, data):
        """The request that *data* is, or begins, as waitress reads it."""
        request = self.parser_class(self.adj)
        while data and not request.completed:
            data = data[request.received(data):]
        return request

    def service(self):
        super().service()
        self._changed(wake=True)

    def _changed(self, wake=False):
        """Whether this waits to read or to write may be another matter now. *wake*: it is not the reading thread that says so."""
        self._map.changed(self)
        if wake:
            self.server.pull_trigger()

    def write_soon(self, data):
        count = super().write_soon(data)
        self._kept_bytes += count
        if self.total_outbufs_len:
            self.server.backlog.add(self)
            self._changed(wake=True)
        elif self._kept_bytes > MAX_KEPT_BYTES:
            self._let_go()
        return count

    def answer(self, data):
        """Send *data*, the only answer that there is. In the reading thread. Raises ClientDisconnected."""
        sent = self.send(data) if self.connected else 0
        if sent < len(data):
            self.write_soon(data[sent:])

    def goes_on(self):
        """It may be read from again. In the reading thread."""
        self._map.goes_on(self)

    def end(self, when_flushed=False):
        """No other request is answered. In the reading thread."""
        if when_flushed:
            self.close_when_flushed = True
        else:
            self.will_close = True
        self._changed()

    def _let_go(self):
        """waitress keeps a buffer, and the memory of what was in it, until there is another answer."""
        with self.outbuf_lock:
            if not self.total_outbufs_len:
                for buffer in self.outbufs:
                    buffer.close()
                self.outbufs, self.current_outbuf_count, self._kept_bytes = [OverflowableBuffer(self.adj.outbuf_overflow)], 0, 0

    def _flush_some(self, do_close=True):
        """waitress takes no lock when no request is under way; but the thread of one that has just ended may still say that another
        may go on, and both would send that."""
        with self.outbuf_lock:
            return super()._flush_some(do_close)

    def send_continue(self):
        if not self.close_when_flushed:  # else the last answer is said
            super().send_continue()

    def writable(self):
        return super().writable() or self.waits

    def handle_write(self):
        super().handle_write()
        if self.connected and self._kept_bytes > MAX_KEPT_BYTES:
            self._let_go()
        if self.waits and self.connected and not self.total_outbufs_len:
            self.waits = False
            self.server.add_task(self)

    def drop(self):
        """End the connection, whether the client takes what there is for it or not: waitress waits until it does."""
        self.end()
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def forget_requests(self):
        """None of those that wait will be answered."""
        for request in self.requests:
            request.close()
        self.requests = []


class Wake(trigger):
    """Lets other threads end waitress's wait for requests: ``pull_trigger``.

    They may pull although it is closed, when the number of its descriptor may already be that of another file, into which waitress's
    own trigger would write.
    """

    def __init__(self, sockets):
        self._open = threading.Lock()  # held while it is pulled or closed
        super().__init__(sockets)
        os.set_blocking(self.trigger, False)

    def pull_trigger(self, thunk=None):
        assert thunk is None, thunk
        with self._open, suppress(BlockingIOError):  # full: it will be read
            if not self._closed:
                self._physical_pull()

    def close(self):
        with self._open:
            super().close()

    def handle_read(self):
        with suppress(OSError):
            self.recv(8192)


class Backlog:
    """The connections for which something waits in memory. When that is too much, those go on which nothing has moved for longest."""

    def __init__(self, most_bytes):
        self._most_bytes, self._channels = most_bytes, {}
        self._dropped, self._told_at = 0, -math.inf

    def add(self, channel):
        """In any thread."""
        self._channels[channel] = None

    def shed(self):
        """In the reading thread, before each wait."""
        if not self._channels:
            return
        held = {channel: channel.held_bytes if channel.connected else 0 for channel in list(self._channels)}
        for channel in [channel for channel, size in held.items() if not size]:
            self._channels.pop(channel)
        if (excess := sum(held.values()) - self._most_bytes) > 0:
            self._drop(sorted(self._channels, key=lambda channel: channel.last_activity), held, excess)

    def _drop(self, channels, held, excess):
        for channel in channels:
            if excess <= 0:
                break
            excess -= held.get(channel, 0)
            self._channels.pop(channel)
            channel.drop()
            self._dropped += 1
        if time.monotonic() > self._told_at + SECONDS_BETWEEN_WARNINGS:
            log.warning("too much waits for clients that do not read, or do not go on: connections ended count=%s", self._dropped)
            self._dropped, self._told_at = 0, time.monotonic()


class Dispatcher:
    """Gives each request to the lane or to the threads that are for its kind, and connections of peers to *peers*."""

    lane = None  # set once there is a server to answer through

    def __init__(self, peers, client_threads):
        self._peers = peers
        self._clients, self._quick, self._changes = (_pool(count) for count in (client_threads, QUICK_THREADS, CHANGE_THREADS))

    def add_task(self, channel):
        if channel.close_when_flushed:  # the last answer is said, or the connection is a peer's now
            channel.forget_requests()
            return
        if channel.total_outbufs_len:
            channel.waits = True  # whoever adds it says that something has changed
            return
        request = channel.requests[0]
        path, headers = request.path, request.headers
        if path.startswith("/raft/") and "UPGRADE" in headers and not request.error:
            self._hand_to_peers(channel, headers)
        elif path.startswith(_QUICK_PATHS) or request.error:
            self._quick.add_task(channel)
        elif path.startswith(("/join", "/members", "/leader")) and request.command in _CHANGES:
            self._changes.add_task(channel)
        elif not self.lane.take(channel) and not self._park(channel, request):
            self.add_client_task(channel)

    def _park(self, channel, request):
        """True if *request* is a read that waits for its key to change, and does not begin before that; who waits has no thread."""
        found = "wait=" in request.query and request.command in ("GET", "HEAD") and wait_of(request.path, request.query)
        if not found:
            return False
        if self.watchers.are_full:
            request.error = Overloaded("as many are watching, or waiting, as this node allows; ask another")
            self._quick.add_task(channel)
            return True
        channel.has_waited = (request,)
        self.watchers.park(*found, channel.socket, lambda: self.add_client_task(channel))
        return True

    def add_client_task(self, channel):
        request = channel.requests[0]
        if isinstance(request, Plain):
            request = channel.requests[0] = channel.parsed(request.data)
        if request.body_bytes_received > MAX_PLAIN_BYTES:
            queued = sum(waiting.requests[0].body_bytes_received for waiting in list(self._clients.queue) if waiting.requests)
            if queued > MAX_QUEUED_BYTES:
                request.error = Overloaded(f"{queued} bytes of requests are waiting; try again in a second")
                self._quick.add_task(channel)
                return
        self._clients.add_task(channel)

    def _hand_to_peers(self, channel, headers):
        """The connection lives on in a second descriptor; waitress closes its own."""
        try:
            peer_socket = channel.socket.dup()
        except OSError as error:
            log.warning("a connection of a peer is not taken error=%s", error)
            channel.end()
            return
        channel.forget_requests()
        channel.end(when_flushed=True)
        self._peers.serve(peer_socket, {name.lower().replace("_", "-"): value for name, value in headers.items()})

    def shutdown(self, cancel_pending=True, timeout=STOP_SECONDS):
        for pool in (self._clients, self._quick, self._changes):
            pool.shutdown(cancel_pending, timeout)


def _pool(count):
    pool = ThreadedTaskDispatcher()
    pool.set_thread_count(count)
    return pool


class Listener:
    """Serves *app*, *peers* and *node*, plain requests without *app*, on the socket *listening*, from ``start`` to ``stop``."""

    def __init__(self, listening, app, peers, node):
        self._peers, settings = peers, node.settings
        self._dispatcher = Dispatcher(peers, settings.client_threads)
        largest = settings.max_value_bytes + (1 << 20)  # of a body or an answer; neither goes to a file outside of the data path
        connections, watchers = _allowed_connections(settings.max_connections, settings.max_watchers)
        self._sockets = Sockets()
        self._server = create_server(
            app, self._sockets, sockets=[listening], _dispatcher=self._dispatcher, ident="raftd", clear_untrusted_proxy_headers=False,
            connection_limit=connections,
            max_request_header_size=MAX_HEAD_BYTES, max_request_body_size=largest, inbuf_overflow=2 * largest,
            outbuf_overflow=2 * largest, outbuf_high_watermark=2 * largest)
        self._server.channel_class = Channel
        self._server.backlog = Backlog(max(MAX_BACKLOG_BYTES, 8 * largest))
        self._server.maintenance, self._server.accept = self._maintain, self._accept
        self._accept_again_at, self._told_at = 0.0, -math.inf
        self._look_at, self._connections = 0.0, 0  # when the server is looked at again, unless these become more or less
        self._server.raft_headers, self._server.max_value_bytes = node.headers, settings.max_value_bytes
        self._dispatcher.lane = self._server.lane = Lane(
            node, lambda: self._wake.pull_trigger(), self._dispatcher.add_task, self._dispatcher.add_client_task)
        self._dispatcher.watchers = self._server.watchers = self._watchers = Watchers(node.state_machine, watchers)
        self._wake, self._stopping = Wake(self._sockets), False
        self._sockets.before_wait, self._sockets.after_wait = self._before_wait, self._server.lane.awake
        self._server.trigger.close()
        self._server.trigger = self._wake
        self._server.asyncore = self._sockets  # whose loop it runs
        self._thread = threading.Thread(target=self._server.run, name="http")

    @property
    def watch(self):
        """``Sockets.watch`` of the thread that reads requests."""
        return self._sockets.watch

    def start(self):
        """Begin to answer. Returns self."""
        self._watchers.start()
        self._thread.start()
        return self

    def stop(self):
        """Answer what is under way, then close every connection."""
        self._watchers.stop()
        self._dispatcher.shutdown()
        self._stopping = True
        self._wake.pull_trigger()
        self._thread.join()
        self._peers.stop()

    # In waitress's thread

    def _before_wait(self):
        is_last = self._stopping  # asked first: all that was done when it was told to stop is answered
        try:
            self._dispatcher.lane.finish(math.inf if is_last else MOST_SECONDS_AT_ONCE)
            self._dispatcher.lane.expire()
            self._server.backlog.shed()
        except Exception:  # it must not end the loop that serves everybody
            log.exception("waiting requests could not be answered")
        if time.monotonic() >= self._look_at or len(self._sockets) != self._connections or not self._server.accepting:
            self._look_at_server()
        if is_last:
            wasyncore.close_all(self._sockets)

    def _look_at_server(self):
        """It does what is due when it is asked what it waits for, which may change with the number of connections."""
        now = time.monotonic()
        if not self._server.accepting and not self._stopping and now >= self._accept_again_at:
            self._server.accepting = True
        self._sockets.changed(self._server)
        self._look_at, self._connections = now + SECONDS_BETWEEN_LOOKS, len(self._sockets)

    def _accept(self):
        """A new connection, or None. Without a descriptor for it waitress would try again at once, and again, with a line of log each."""
        try:
            return wasyncore.dispatcher.accept(self._server)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            now = time.monotonic()
            if now > self._told_at + SECONDS_BETWEEN_WARNINGS:
                log.warning("new connections have to wait error=%s", error)
                self._told_at = now
            self._server.accepting, self._accept_again_at = False, now + ACCEPT_PAUSE_SECONDS
            return None

    def _maintain(self, now):
        """End connections on which nothing has moved for long, be it that the client says nothing or that it takes nothing."""
        for channel in list(self._server.active_channels.values()):
            if channel.last_activity < now - self._server.adj.channel_timeout and (channel.total_outbufs_len or not channel.requests):
                channel.drop()


def _allowed_connections(wanted, watchers):
    """As many connections, and of those who watch, as wanted, or their share, if the limit of open files cannot be raised far enough."""
    spare = 256  # descriptors for files, peers and threads
    needed = wanted + watchers + spare
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            log.warning("few open files are allowed, so few connections limit=%s wanted=%s", soft, needed)
            share = max(96, soft - spare)
            return share * wanted // (wanted + watchers), share * watchers // (wanted + watchers)
    return wanted, watchers
