"""Both ends of the connections between peers: kept open, one call at a time on each, frames of ``raftd.wire``.

A connection begins as an HTTP request on the one port of a node, and is then switched to frames (HTTP Upgrade), so that a
call between peers costs neither HTTP nor a place in the queue of clients. Who connects says which cluster it belongs to, who
it is, and whom it wants to reach, by name and id; the other side refuses what does not fit before any message is read.
"""

import json
import logging
import socket
import threading
import time
from contextlib import closing, suppress

from raftd import wire
from raftd.config import TRACE
from raftd.errors import PeerUnreachable, Refusal

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128  # of peers to one server: two for each, and those of members that are not known here yet
MAX_POSTED_BYTES = 16 * 1024  # a larger frame is not sent without waiting: it may not fit in the buffer of a socket
_RECEIVE_BYTES, _MOST_BYTES = 1 << 16, 1 << 20  # one system call asks for at least, at most so much
_MAX_HEAD = 8192  # bytes of an HTTP head between peers
MAX_REASON = 500  # characters of why a peer refuses


class Connection:
    """The calling end of one connection; used by one thread at a time: that which calls, or that of *watch* (``Sockets.watch``)."""

    def __init__(self, settings, hello, lane, watch):
        self._settings, self._hello, self._lane, self._watch = settings, hello, lane, watch
        self._socket = self._frames = self._address = self._lookup = None
        self._interrupted = False
        self._posted = None  # what to do with the reply to what was posted, and of what kind it must be

    def call(self, member, request, configuration_index):
        """*member*'s reply to *request*. Raises PeerUnreachable."""
        frame = wire.encode(request, configuration_index)
        seconds = self._settings.rpc_timeout_seconds + len(frame) / self._settings.slowest_link_bytes_per_second
        deadline = time.monotonic() + seconds
        try:
            reply = self._exchange(member, frame, deadline)
        except (OSError, ValueError, wire.WireError, Refusal) as error:  # ValueError: an address that cannot be one
            self.close()
            text = "timed out" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
            text = "".join(filter(str.isprintable, " ".join(text.split())))[:MAX_REASON]  # perhaps of a stranger, and for the log
            raise PeerUnreachable(f"{member.name} at {member.address}: {text}") from error
        if not isinstance(reply, wire.REPLIES[type(request)]):
            self.close()
            raise PeerUnreachable(f"{member.name} at {member.address}: answered {type(reply).__name__}")
        return reply

    def post(self, member, request, configuration_index, done):
        """``call`` without waiting, for an AppendEntries: False if that cannot be, as when there is no connection, or it is large.

        ``done(reply)`` is called in the thread of the watch, with None if there will be no reply: ``call`` shows why.
        """
        if self._socket is None or self._address != member.address \
                or sum(len(entry.command) for entry in request.entries) > MAX_POSTED_BYTES:
            return False
        frame = wire.encode(request, configuration_index)
        if len(frame) > MAX_POSTED_BYTES:
            return False
        self._posted = done, wire.REPLIES[type(request)]
        try:
            self._socket.setblocking(False)
            if self._socket.send(frame) == len(frame):
                self._watch(self._socket, self._readable)
                return True
        except (OSError, ValueError) as error:  # ValueError: nobody watches any more
            log.debug("a request was not sent at once peer=%s error=%s", member.name, error)
        self.close()
        return False

    def _readable(self):
        """Something has come, or nothing will. In the thread of the watch."""
        (done, kind), answer = self._posted, None
        try:
            reply = self._frames.at_once()
            if reply is None:
                self._watch(self._socket, self._readable)
                return
            if not isinstance(reply, kind):
                raise wire.WireError(f"answered {type(reply).__name__}")
            answer = reply
        except (OSError, ValueError, wire.WireError, Refusal) as error:
            log.debug("no reply to what was sent at once error=%s", error)
        except Exception:  # it must not end the thread that serves everybody
            log.exception("a reply of a peer could not be read")
        if answer is None:
            self.close()
        self._posted = None
        done(answer)

    def abort(self):
        """What is posted has waited too long. In any thread."""
        if (open_socket := self._socket) is not None:
            _shut_down(open_socket)

    def _exchange(self, member, frame, deadline):
        if self._socket is not None and self._address == member.address:
            try:
                return self._send_and_receive(frame, deadline)
            except TimeoutError:
                raise
            except OSError:  # it was closed while it was idle; every RPC of Raft may be sent again
                self.close()
                if self._interrupted:
                    raise
        self._connect(member, deadline)
        return self._send_and_receive(frame, deadline)

    def _send_and_receive(self, frame, deadline):
        self._socket.settimeout(_remaining(deadline))
        self._socket.sendall(frame)
        return self._frames.receive(deadline)[0]

    def _connect(self, member, deadline):
        self.close()
        host, port = split_address(member.address)
        self._socket = _connected(self._look_up(host, port, deadline), deadline)
        self._frames = Frames(self._socket)
        if self._interrupted:
            raise ConnectionAbortedError("interrupted")
        self._address = member.address
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fields = {"Host": member.address, "Connection": "Upgrade", "Upgrade": wire.PROTOCOL, "Raft-Lane": self._lane,
                  **self._hello(member)}
        self._socket.sendall(b"GET /raft/ HTTP/1.1\r\n" + _head(fields))
        status, body = _read_answer(self._socket, deadline)
        if status != 101:
            raise Refusal(body.decode(errors="replace").strip() or f"HTTP status {status}")

    def _look_up(self, host, port, deadline):
        """An answer that comes too late for one call is there for the next."""
        if self._lookup is None or self._lookup.asked != (host, port):
            self._lookup = Lookup(host, port)
        try:
            return self._lookup.result(deadline)
        finally:
            if self._lookup.done:
                self._lookup = None

    def close(self):
        open_socket, self._socket = self._socket, None
        if open_socket is not None:
            open_socket.close()

    def interrupt(self):
        """End a call that another thread waits in, and those that follow."""
        self._interrupted = True
        self.abort()


class Lookup:
    """The question which addresses a host has. The system's resolver may take long, and cannot be interrupted."""

    def __init__(self, host, port):
        self.asked, self._answered, self._answer = (host, port), threading.Event(), None
        try:  # another daemon: no end of the process should wait for it
            threading.Thread(target=self._ask, name=f"lookup-{host}", daemon=True).start()
        except RuntimeError as error:  # no thread to be had
            raise OSError(str(error)) from error

    @property
    def done(self):
        return self._answered.is_set()

    def _ask(self):
        try:
            self._answer = socket.getaddrinfo(*self.asked, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
            self._answer = error
        self._answered.set()

    def result(self, deadline):
        """What ``getaddrinfo`` says. Raises OSError or ValueError when there is none, or when they do not come in time."""
        if not self._answered.wait(_remaining(deadline)):
            raise TimeoutError("the name is not resolved in time")
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class Transport:
    """Makes the calling ends. ``hello`` gives the HTTP fields that introduce this server to a member.

    watch  ``Sockets.watch``, once somebody waits for sockets; until then nothing is sent without waiting
    """

    def __init__(self, settings, hello):
        self._settings, self._hello, self.watch = settings, hello, None

    def connection(self, lane):
        """The calling end of a connection; *lane* tells the connections of one server to the same peer apart."""
        return Connection(self._settings, self._hello, lane, self._watch)

    def _watch(self, open_socket, readable):
        if self.watch is None:
            raise ValueError("nobody waits for sockets yet")
        self.watch(open_socket, readable)

    def identify(self, address):
        """Who answers at ``HOST:PORT``: a dict with name, id and cluster. Raises PeerUnreachable."""
        deadline = time.monotonic() + self._settings.rpc_timeout_seconds * 5
        try:
            host, port = split_address(address)
            with closing(_connected(Lookup(host, port).result(deadline), deadline)) as asking:
                asking.sendall(b"GET /raft/identity HTTP/1.0\r\n" + _head({"Host": address}))
                _, body = _read_answer(asking, deadline, to_the_end=True)
            identity = json.loads(body)
            return {field: str(identity[field]) for field in ("name", "id", "cluster")}
        except OSError as error:
            raise PeerUnreachable(f"no raftd answers at {address}: {error.strerror or error}") from error
        except (wire.WireError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise PeerUnreachable(f"no raftd answers at {address}: something else does, or it is no address") from error

    def refuses(self, address):
        """True if the host says that nobody listens at ``HOST:PORT``. Any other answer, and none in time, says nothing."""
        deadline = time.monotonic() + self._settings.rpc_timeout_seconds
        try:
            host, port = split_address(address)
            return any([_refuses(*found, deadline) for found in Lookup(host, port).result(deadline)])
        except (OSError, ValueError) as error:
            log.debug("a connection is not refused address=%s error=%s", address, error)
            return False


class PeerServer:
    """The answering ends: a thread for each connection that a peer has opened.

    ``admit(fields)`` gives the sender's name for the HTTP fields of its request, or raises Refusal;
    ``handle(sender, configuration_index, request)`` gives the reply, or raises Refusal;
    ``on_lost(sender)`` is told, in the thread of a connection, that it has ended, and neither by ``stop`` nor for a newer one.
    """

    def __init__(self, admit, handle, on_lost=lambda sender: None):
        self._admit, self._handle, self._on_lost = admit, handle, on_lost
        self._lock = threading.Lock()
        self._open = {}  # (sender, lane) -> socket; a sender that connects again has given its old connection up
        self._threads = set()
        self._stopping = False

    def serve(self, peer_socket, fields):
        """Take over *peer_socket*, whose HTTP request had *fields* (names in lower case). Returns at once."""
        try:
            if fields.get("upgrade") != wire.PROTOCOL:
                raise Refusal(f"peers speak {wire.PROTOCOL} here, not {fields.get('upgrade')}")
            sender = self._admit(fields)
        except Refusal as refusal:
            _refuse(peer_socket, str(refusal))
            return
        key = (sender, fields.get("raft-lane", ""))
        thread = threading.Thread(target=self._serve, args=(key, peer_socket), name=f"from-{sender}-{key[1]}")
        with self._lock:
            old = self._open.get(key)
            if accepted := not self._stopping and (old or len(self._open) < MAX_CONNECTIONS) and _started(thread):
                self._open[key] = peer_socket
                self._threads.add(thread)
        if not accepted:
            _refuse(peer_socket, f"this server stops, has {MAX_CONNECTIONS} peers connected already, or no thread left")
        elif old:
            _shut_down(old)

    def _serve(self, key, peer_socket):
        try:
            self._answer(key[0], peer_socket)
            if self._was_lost(key, peer_socket):
                self._on_lost(key[0])
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _was_lost(self, key, peer_socket):
        with self._lock:
            if self._open.get(key) is not peer_socket:  # another has taken its place
                return False
            del self._open[key]
            return not self._stopping

    def _answer(self, sender, peer_socket):
        try:
            peer_socket.settimeout(None)
            peer_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            peer_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)  # a peer that vanished leaves no thread behind
            peer_socket.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + _head({"Connection": "Upgrade", "Upgrade": wire.PROTOCOL}))
            frames = Frames(peer_socket)
            while True:
                request, configuration_index = frames.receive()
                if type(request) not in wire.REPLIES:
                    raise wire.WireError(f"{type(request).__name__} is not a request")
                reply = self._handle(sender, configuration_index, request)
                log.log(TRACE, "rpc answered peer=%s request=%s reply=%s", sender, request, reply)
                peer_socket.sendall(wire.encode(reply, 0))
        except Refusal as refusal:
            _try_to_send(peer_socket, wire.encode_refusal(str(refusal)))
            log.debug("peer refused peer=%s reason=%s", sender, refusal)
        except wire.WireError as error:
            log.warning("peer sent nonsense, connection closed peer=%s error=%s", sender, error)
        except OSError as error:
            log.debug("connection of a peer ended peer=%s error=%s", sender, error)
        except Exception:
            log.exception("a request of a peer failed, connection closed peer=%s", sender)
        finally:
            peer_socket.close()

    def stop(self):
        """End every connection, and wait for the threads."""
        with self._lock:
            self._stopping = True
            sockets, threads = list(self._open.values()), list(self._threads)
        for peer_socket in sockets:
            _shut_down(peer_socket)
        for thread in threads:
            thread.join()


class Frames:
    """Reads frames from a socket, most of them with one system call."""

    def __init__(self, peer_socket):
        self._socket, self._buffer = peer_socket, b""

    def receive(self, deadline=None):
        """The next (message, configuration_index). Raises OSError, WireError, Refusal. The socket's timeout must be set for *deadline*."""
        header = self._take(wire.HEADER.size, deadline)
        return wire.decode(header, self._take(wire.payload_length(header), deadline))

    def at_once(self):
        """The next message, if it is there, else None. For a socket that does not block; called when there is something to be read."""
        with suppress(BlockingIOError):
            if not (data := self._socket.recv(_RECEIVE_BYTES)):
                raise ConnectionResetError("the connection was closed")
            self._buffer += data
        have = len(self._buffer) - wire.HEADER.size
        if have < 0 or have < wire.payload_length(self._buffer[:wire.HEADER.size]):
            return None
        return self.receive()[0]

    def _take(self, count, deadline):
        if len(self._buffer) < count:
            self._fill(count, deadline)
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _fill(self, count, deadline):
        parts, have = [self._buffer], len(self._buffer)
        while have < count:
            if deadline is not None and len(parts) > 1:
                self._socket.settimeout(_remaining(deadline))
            data = self._socket.recv(min(max(_RECEIVE_BYTES, count - have), _MOST_BYTES))
            if not data:
                raise ConnectionResetError("the connection was closed")
            parts.append(data)
            have += len(data)
        self._buffer = b"".join(parts)


def _connected(addresses, deadline):
    """A socket connected to the first of *addresses* (of ``getaddrinfo``) that takes the connection. Raises OSError."""
    failure = OSError("the host has no address")
    for family, kind, protocol, _, address in addresses:
        candidate = socket.socket(family, kind, protocol)
        try:
            candidate.settimeout(_remaining(deadline))
            candidate.connect(address)
            return candidate
        except OSError as error:
            candidate.close()
            failure = error
    raise failure


def _refuses(family, kind, protocol, _, address, deadline):
    """True if a connection is refused, False if there is no way to *address*. Raises OSError if somebody listens, or nobody answers.

    A process that dies may close its connections before the port, which then still seems to listen: the connection is reset, and the
    next one is refused. While a process lives, a connection on which nothing is said stays open.
    """
    for _ in range(2):
        with socket.socket(family, kind, protocol) as probe:
            probe.settimeout(_remaining(deadline))
            try:
                probe.connect(address)
                if probe.recv(1):
                    break
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:
                continue
            except TimeoutError:
                raise
            except OSError as error:  # as with IPv6 on many hosts
                log.debug("there is no way to an address address=%s error=%s", address, error)
                return False
    raise OSError("somebody listens")


def _read_answer(peer_socket, deadline, to_the_end=False):
    """(status, body) of an answer of HTTP; of the body only what came with the head, unless all is wanted *to_the_end*."""
    data, more = b"", True
    while more and (to_the_end or b"\r\n\r\n" not in data):
        if len(data) > _MAX_HEAD:
            raise wire.WireError("no answer that HTTP knows")
        peer_socket.settimeout(_remaining(deadline))
        more = peer_socket.recv(_MAX_HEAD)
        data += more
    head, end, body = data.partition(b"\r\n\r\n")
    fields = head.split(None, 2)
    if not end or len(fields) < 2 or not fields[1].isdigit():
        raise wire.WireError("no answer that HTTP knows")
    return int(fields[1]), body


def split_address(address):
    """(host, port) of ``HOST:PORT``; an IPv6 host stands in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _remaining(deadline):
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


def _head(fields):
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("latin-1") + b"\r\n"


def _started(thread):
    """False if the system has no thread to give."""
    try:
        thread.start()
    except RuntimeError as error:
        log.warning("a peer cannot be served thread=%s error=%s", thread.name, error)
        return False
    return True


def _refuse(peer_socket, text):
    body = text.encode() + b"\n"
    head = _head({"Content-Type": "text/plain", "Content-Length": len(body), "Connection": "close", "X-Raft-Error": "refused"})
    _try_to_send(peer_socket, b"HTTP/1.1 403 Forbidden\r\n" + head + body)
    peer_socket.close()


def _try_to_send(peer_socket, data):
    """The last words on a connection; that they do not arrive changes nothing."""
    try:
        peer_socket.settimeout(1)
        peer_socket.sendall(data)
    except OSError as error:
        log.debug("the refusal did not reach the peer error=%s", error)


def _shut_down(open_socket):
    try:
        open_socket.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        log.debug("already closed error=%s", error)
