"""The one port of a node: waitress, with a place in it for everybody.

waitress reads requests in one thread and hands each complete one to a dispatcher. Ours proposes plain writes and reads right
there (``lane``), so that no thread waits for them. For the rest it has three pools of threads, so that neither those who
wait for a commit nor those who wait for a new member keep out who asks for the health of the node; and it takes the
connections of peers out of waitress altogether: they get a thread of their own in ``transport.PeerServer``. Slow and idle
connections cost waitress a place in its poll set and nothing else.
"""

import logging
import os
import re
import resource
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus

from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.trigger import trigger
from waitress.utilities import BadRequest as MalformedRequest

from raftd.errors import BadRequest, RaftdError, StartupError, Stopping, TooLarge
from raftd.lane import Lane, log_request
from raftd.web.answers import NOT_CACHED, error_body, error_fields, error_line

log = logging.getLogger(__name__)

QUICK_THREADS, CHANGE_THREADS = 2, 4
STOP_SECONDS = 2.0  # requests under way may take so long when the node stops
_QUICK_PATHS = ("/livez", "/readyz", "/status", "/raft/identity")
_CHANGES = ("POST", "DELETE", "PUT")
MAX_HEAD_BYTES = 64 * 1024  # of a request; a key may take 12 kB of it
MAX_CHUNK_LINE_BYTES = 4096
_REQUEST_LINE = re.compile(rb"[^\x00-\x20\x7f]+ [^\x00-\x20\x7f]+ HTTP/1\.[01]")
_FIELD_NAME, _FIELD_VALUE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"), re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


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

    def received(self, data):
        consumed = super().received(data)
        if self.chunked and max(len(self.body_rcv.control_line), len(self.body_rcv.trailer)) > MAX_CHUNK_LINE_BYTES:
            self.error, self.completed = MalformedRequest("a line between chunks is too long"), True
        if self.completed:  # it has a body that needs no word to go on, or none: waitress would wait for one for ever
            self.expect_continue = False
        return consumed

    def parse_header(self, header_plus):
        line, separator, rest = header_plus.partition(b"\r\n")
        # Bytes beyond ASCII are taken as if they were percent-encoded.
        line = re.sub(rb"[\x80-\xff]", lambda found: b"%%%02X" % found[0][0], line.rstrip())
        if not _REQUEST_LINE.fullmatch(line):
            raise ParsingError("the request line is not METHOD TARGET HTTP/1.1")
        fields = [_field(text) for text in rest.split(b"\r\n") if text]
        try:
            super().parse_header(line + separator + b"\r\n".join(b": ".join(field) for field in fields))
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
        self.write(b"" if getattr(self.request, "command", "") == "HEAD" else data)
        log_request(self.channel, self.request, self.status, 0.0)

    def _error(self):
        refusal = self.request.error
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
    """A connection of waitress. ``began`` is when the lane has taken its request."""

    task_class = Request
    error_task_class = Refused
    parser_class = Parser
    began = 0.0

    def forget_requests(self):
        """None of those that wait will be answered."""
        for request in self.requests:
            request.close()
        self.requests = []


class Wake(trigger):
    """Lets other threads interrupt waitress's wait for requests: ``pull_trigger`` makes its thread call *finish*.

    *expire* is called before each wait. Others may pull although it is closed, when the number of its descriptor may already be that of
    another file, into which waitress's own trigger would write.
    """

    def __init__(self, sockets, finish, expire):
        self._finish, self._expire = finish, expire
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

    def readable(self):
        self._run(self._expire)
        return True

    def handle_read(self):
        try:
            self.recv(8192)
        except OSError:
            return
        self._run(self._finish)

    @staticmethod
    def _run(function):
        try:
            function()
        except Exception:  # waitress would end the loop that serves everybody, or this trigger
            log.exception("waiting requests could not be answered")


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
        request = channel.requests[0]
        path, headers = getattr(request, "path", ""), request.headers
        if path.startswith("/raft/") and "UPGRADE" in headers and not request.error:
            self._hand_to_peers(channel, headers)
        elif path.startswith(_QUICK_PATHS) or request.error:
            self._quick.add_task(channel)
        elif path.startswith(("/join", "/members", "/leader")) and request.command in _CHANGES:
            self._changes.add_task(channel)
        elif not self.lane.take(channel):
            self.add_client_task(channel)

    def add_client_task(self, channel):
        self._clients.add_task(channel)

    def _hand_to_peers(self, channel, headers):
        """The connection lives on in a second descriptor; waitress closes its own."""
        peer_socket = channel.socket.dup()
        channel.forget_requests()
        channel.close_when_flushed = True
        self._peers.serve(peer_socket, {name.lower().replace("_", "-"): value for name, value in headers.items()})

    def shutdown(self, cancel_pending=True, timeout=STOP_SECONDS):
        for pool in (self._clients, self._quick, self._changes):
            pool.shutdown(cancel_pending, timeout)


def _pool(count):
    pool = ThreadedTaskDispatcher()
    pool.set_thread_count(count)
    return pool


class Listener:
    """Serves *app*, *peers* and *node*, plain requests of /db without *app*, on the socket *listening*, from ``start`` to ``stop``."""

    def __init__(self, listening, app, peers, node):
        self._peers, settings = peers, node.settings
        self._dispatcher = Dispatcher(peers, settings.client_threads)
        self._server = create_server(
            app, sockets=[listening], _dispatcher=self._dispatcher, ident="raftd", clear_untrusted_proxy_headers=False,
            connection_limit=_allowed_connections(settings.max_connections), asyncore_use_poll=True,
            max_request_header_size=MAX_HEAD_BYTES, max_request_body_size=settings.max_value_bytes + (1 << 20))
        self._server.channel_class = Channel
        self._server.raft_headers, self._server.max_value_bytes = node.headers, settings.max_value_bytes
        self._dispatcher.lane = Lane(node, lambda: self._wake.pull_trigger(), self._dispatcher.add_task, self._dispatcher.add_client_task)
        self._wake, self._stopping = Wake(self._server._map, self._finish, self._dispatcher.lane.expire), False
        self._server.trigger.close()
        self._server.trigger = self._wake
        self._thread = threading.Thread(target=self._server.run, name="http")

    def start(self):
        """Begin to answer. Returns self."""
        self._thread.start()
        return self

    def stop(self):
        """Answer what is under way, then close every connection."""
        self._dispatcher.shutdown()
        self._stopping = True
        self._wake.pull_trigger()
        self._thread.join()
        self._peers.stop()

    def _finish(self):
        """In waitress's thread, whenever somebody has pulled."""
        self._dispatcher.lane.finish()
        if self._stopping:
            wasyncore.close_all(self._server._map)


def _allowed_connections(wanted):
    """As many connections as wanted, if the limit of open files can be raised far enough."""
    spare = 256  # descriptors for files, peers and threads
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + spare:
        soft = wanted + spare if hard == resource.RLIM_INFINITY else min(hard, wanted + spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted + spare:
            log.warning("few open files are allowed, so few connections limit=%s wanted=%s", soft, wanted + spare)
            return max(64, soft - spare)
    return wanted
