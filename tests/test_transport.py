"""Connections between peers over real loopback sockets: kept open, opened again, refused in words, and ended."""

import logging
import select
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from waitress import wasyncore

from raftd import wire
from raftd.config import Settings
from raftd.errors import PeerUnreachable, Refusal
from raftd.listener import Wake
from raftd.raft.configuration import Member
from raftd.raft.messages import AppendEntries, AppendEntriesReply, Entry, RequestVote, RequestVoteReply
from raftd.sockets import Sockets
from raftd.transport import MAX_POSTED_BYTES, Frames, PeerServer, Transport, split_address

SETTINGS = Settings(rpc_timeout_seconds=20)
IMPATIENT = replace(SETTINGS, rpc_timeout_seconds=0.4)  # where there is no answer
VOTE, GRANTED = RequestVote(3, "n1", 9, 2), RequestVoteReply(3, True)


def wait_until(truth, what, seconds=10):
    """Wait for a condition, with a deadline."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not truth():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        pause.wait(0.002)


class Peer:
    """n2: a listener that reads the HTTP head and hands the socket to a PeerServer, as the web server of a node does."""

    def __init__(self, handle=lambda sender, index, request: GRANTED, admit=lambda fields: fields["raft-name"]):
        self.lost, self.accepted = [], []
        self.server = PeerServer(admit, handle, self.lost.append)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.member = Member("n2", f"127.0.0.1:{self._listener.getsockname()[1]}")
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                peer_socket, _ = self._listener.accept()
            except OSError:
                return
            self.accepted.append(peer_socket)
            head = b""
            while b"\r\n\r\n" not in head and (data := peer_socket.recv(1)):
                head += data
            fields = (line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:])
            self.server.serve(peer_socket, {name.lower(): value for name, _, value in fields})

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        self.server.stop()
        assert not self._thread.is_alive()


@pytest.fixture
def peer():
    peers = []

    def make(*args, **more):
        peers.append(Peer(*args, **more))
        return peers[-1]
    yield make
    for one in peers:
        one.close()


@pytest.fixture
def connection():
    made = []

    def make(name="n1", lane="small", watch=None, settings=SETTINGS):
        transport = Transport(settings, lambda member: {"Raft-Name": name, "Raft-To": member.name})
        transport.watch = watch
        made.append(transport.connection(lane))
        return made[-1]
    yield make
    for one in made:
        one.close()


def serving():
    """The threads that answer peers."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("from-")]


def test_a_call_brings_the_reply_of_its_request(peer, connection):
    seen = []

    def handle(*call):
        seen.append(call)
        return RequestVoteReply(call[2].term, True)
    n2, n1 = peer(handle), connection()
    for term in range(1, 6):
        request = RequestVote(term, "n1", 9, 2)
        assert n1.call(n2.member, request, 7) == RequestVoteReply(term, True)
        assert seen[-1] == ("n1", 7, request)
    assert len(n2.accepted) == 1, "the connection is kept open"


def test_who_connects_says_who_it_is_and_whom_it_wants(peer, connection):
    fields = {}

    def admit(found):
        fields.update(found)
        return "n1"
    n2 = peer(admit=admit)
    connection(lane="data").call(n2.member, VOTE, 0)
    assert {"upgrade": wire.PROTOCOL, "raft-name": "n1", "raft-to": "n2", "raft-lane": "data"}.items() <= fields.items()


def test_large_requests_arrive_whole(peer, connection):
    n2 = peer(lambda sender, index, request: AppendEntriesReply(3, True, len(request.entries[0].command)))
    request = AppendEntries(3, "n1", 0, 0, (Entry(1, 3, 1, bytes(range(256)) * 40_000),))
    assert connection().call(n2.member, request, 0).match_index == 10_240_000


def test_a_connection_that_was_closed_while_idle_is_opened_again(peer, connection):
    n2, n1 = peer(), connection()
    n1.call(n2.member, VOTE, 0)
    n2.accepted[0].shutdown(socket.SHUT_RDWR)
    wait_until(lambda: not serving(), "the answering thread ends")
    assert n1.call(n2.member, VOTE, 0) == GRANTED
    assert len(n2.accepted) == 2


def test_a_member_that_has_moved_is_reached_at_its_new_address(peer, connection):
    here, there, n1 = peer(), peer(), connection()
    n1.call(here.member, VOTE, 0)
    n1.call(there.member, VOTE, 0)
    assert len(here.accepted) == len(there.accepted) == 1


def test_nobody_listens(connection):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(PeerUnreachable, match=f"^n2 at {address}: .*refused"):
        connection().call(Member("n2", address), VOTE, 0)


@pytest.mark.parametrize("address", ["nowhere.invalid:4001", "127.0.0.1:99999", "127.0.0.1:port", "no port",
                                     "x" * 70 + ".y:1", "a..b:1"])
def test_an_address_that_cannot_be_is_unreachable_and_nothing_worse(connection, address):
    """The thread of a peer must not end because of what a configuration says."""
    with pytest.raises(PeerUnreachable, match="^n2 at "):
        connection(settings=IMPATIENT).call(Member("n2", address), VOTE, 0)


def elapsed(call, text="timed out$"):
    began = time.monotonic()
    with pytest.raises(PeerUnreachable, match=text):
        call()
    return time.monotonic() - began


def test_the_timeout_is_for_the_whole_call(peer, connection):
    """Also when connecting takes some of it, or the reply comes a byte at a time. The original had no connect timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        n1, address = connection(settings=IMPATIENT), f"127.0.0.1:{silent.getsockname()[1]}"
        assert elapsed(lambda: n1.call(Member("n2", address), VOTE, 0)) > 0.3
    released = threading.Event()
    n2 = peer(lambda *call: (released.wait(20), GRANTED)[1])
    assert elapsed(lambda: connection(settings=IMPATIENT).call(n2.member, VOTE, 0)) > 0.3
    released.set()


def test_a_name_that_is_resolved_slowly_is_reached_by_a_later_call(peer, connection, monkeypatch):
    """The answer comes between two calls: it is kept for the second. And no call waits longer than its time."""
    n2, n1, asked, answered = peer(lambda *call: GRANTED), connection(settings=IMPATIENT), [], threading.Event()
    resolve = socket.getaddrinfo

    def slowly(*args, **more):
        if args == split_address(n2.member.address):  # others may ask meanwhile, for others
            asked.append(args)
            answered.wait(20)
        return resolve(*args, **more)
    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    with pytest.raises(PeerUnreachable, match="not resolved in time|timed out"):
        n1.call(n2.member, VOTE, 0)
    answered.set()
    n1._settings = SETTINGS
    wait_until(lambda: n1._lookup.done, "the name is resolved")
    assert n1.call(n2.member, VOTE, 0) == GRANTED
    assert len(asked) == 1


def test_no_thread_to_ask_for_an_address_is_unreachable_and_nothing_worse(peer, connection, monkeypatch):
    n2, n1 = peer(lambda *call: GRANTED), connection()

    def refuse(thread):
        raise RuntimeError("can't start new thread")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(PeerUnreachable, match="thread"):
            n1.call(n2.member, VOTE, 0)
    assert n1.call(n2.member, VOTE, 0) == GRANTED


def test_a_reply_that_trickles_in_does_not_prolong_the_call(connection):
    done = threading.Event()

    def trickle():
        peer_socket, _ = listener.accept()
        with peer_socket:
            peer_socket.recv(4096)
            try:
                for byte in b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n" * 6:  # 14 s; such an end is no timeout
                    peer_socket.sendall(bytes([byte]))
                    if done.wait(0.05):
                        return
            except OSError:
                return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle)
        thread.start()
        member = Member("n2", f"127.0.0.1:{listener.getsockname()[1]}")
        assert elapsed(lambda: connection(settings=IMPATIENT).call(member, VOTE, 0)) > 0.3
        done.set()
        thread.join(5)


def test_after_a_timeout_a_late_reply_is_not_taken_for_the_next(peer, connection):
    """The reply to the first request must not answer the second one."""
    released = threading.Event()

    def handle(sender, index, request):
        if request.term == 1:
            released.wait(20)
        return RequestVoteReply(request.term, True)
    n2, n1 = peer(handle), connection(settings=IMPATIENT)
    with pytest.raises(PeerUnreachable):
        n1.call(n2.member, RequestVote(1, "n1", 0, 0), 0)
    released.set()
    n1._settings = SETTINGS
    assert n1.call(n2.member, RequestVote(2, "n1", 0, 0), 0).term == 2


def refuse(text):
    def refusing(*args):
        raise Refusal(text)
    return refusing


def test_a_refusal_at_the_door_says_why(peer, connection):
    n2 = peer(admit=refuse("this is cluster a, not b"))
    with pytest.raises(PeerUnreachable, match="this is cluster a, not b$"):
        connection().call(n2.member, VOTE, 0)
    assert not serving()


def test_no_thread_to_serve_a_peer_is_a_refusal_and_nothing_worse(peer, connection, monkeypatch, caplog):
    """It was a traceback of waitress, and a thread that never began kept the server from stopping in order."""
    n2, n1, start = peer(lambda *call: GRANTED), connection(), threading.Thread.start

    def refuse_some(thread):
        if thread.name.startswith("from-"):
            raise RuntimeError("can't start new thread")
        start(thread)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_some)
        with pytest.raises(PeerUnreachable, match="no thread"):
            n1.call(n2.member, VOTE, 0)
    assert "a peer cannot be served" in caplog.text
    assert n1.call(n2.member, VOTE, 0) == GRANTED
    n2.server.stop()


def test_a_refused_request_says_why_and_the_next_may_be_taken(peer, connection):
    answers = [refuse("n1 is not a member of this cluster"), lambda *call: GRANTED]
    n2, n1 = peer(lambda *call: answers.pop(0)(*call)), connection()
    with pytest.raises(PeerUnreachable, match="n1 is not a member of this cluster$"):
        n1.call(n2.member, VOTE, 0)
    assert n1.call(n2.member, VOTE, 0) == GRANTED


def test_another_protocol_is_refused_by_name(peer, connection, monkeypatch):
    n2 = peer()
    monkeypatch.setattr(wire, "PROTOCOL", "raftd/7")
    with socket.create_connection(split_address(n2.member.address), timeout=5) as raw:
        raw.sendall(b"GET /raft/ HTTP/1.1\r\nUpgrade: raftd/9\r\nRaft-Name: n1\r\n\r\n")
        answer = raw.recv(4096)
        assert answer.startswith(b"HTTP/1.1 403 ")  # before the end is waited for: who is taken in is not told to go
        answer += b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 403 ") and b"peers speak raftd/7 here, not raftd/9" in answer


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"", b"HTTP/1.1 404 Not Found\r\n\r\nno such path", b"\xff" * 20_000,
                                    b"HTTP/1.1 101 Switching\r\n\r\n" + b"\xff" * 100])
def test_what_is_not_raftd_is_unreachable(connection, answer):
    def strange():
        peer_socket, _ = listener.accept()
        with peer_socket:
            peer_socket.recv(4096)
            peer_socket.sendall(answer)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=strange)
        thread.start()
        with pytest.raises(PeerUnreachable, match="^n2 at "):
            connection().call(Member("n2", f"127.0.0.1:{listener.getsockname()[1]}"), VOTE, 0)
        thread.join(5)


def test_a_reply_of_another_kind_is_no_reply(peer, connection):
    n2 = peer(lambda *call: AppendEntriesReply(1, True))
    with pytest.raises(PeerUnreachable, match="answered AppendEntriesReply"):
        connection().call(n2.member, VOTE, 0)


def upgraded(member, name="n1"):
    """A raw socket that has become a connection of *name*."""
    raw = socket.create_connection(split_address(member.address), timeout=5)
    raw.sendall(f"GET /raft/ HTTP/1.1\r\nUpgrade: {wire.PROTOCOL}\r\nRaft-Name: {name}\r\nRaft-Lane: small\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += raw.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return raw


def ended(raw):
    """True if the other side closes, perhaps without having read all."""
    try:
        return raw.recv(1000) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("garbage", [b"\xff" * 100, b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n" * 9, wire.encode(GRANTED, 0),
                                     wire.encode(VOTE, 0)[:-1] + b"\x55"], ids=range(5))
def test_garbage_ends_its_connection_with_a_warning_and_harms_nobody(peer, connection, caplog, garbage):
    n2, n3 = peer(), connection("n3")
    n3.call(n2.member, VOTE, 0)
    with caplog.at_level(logging.DEBUG), upgraded(n2.member) as raw:
        raw.sendall(garbage)
        assert ended(raw)
    wait_until(lambda: len(serving()) == 1, "only the thread of n3 is left")
    warning, = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "peer=n1" in warning.getMessage() and warning.exc_info is None
    assert n3.call(n2.member, VOTE, 0) == GRANTED and len(n2.accepted) == 2


def test_a_frame_cut_off_in_the_middle_ends_quietly(peer, caplog):
    n2 = peer()
    with caplog.at_level(logging.INFO), upgraded(n2.member) as raw:
        raw.sendall(wire.encode(VOTE, 0)[:-3])
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(1000) == b""
    wait_until(lambda: not serving(), "the answering thread ends")
    assert not caplog.records


def test_a_second_connection_of_a_lane_replaces_the_first(peer, connection):
    n2 = peer()
    with upgraded(n2.member) as first:
        second = connection()
        assert second.call(n2.member, VOTE, 0) == GRANTED
        assert first.recv(10) == b"", "its sender has given it up"
        wait_until(lambda: len(serving()) == 1, "its thread ends")
    assert second.call(n2.member, VOTE, 0) == GRANTED


def test_a_second_connection_of_a_lane_ends_the_first_at_once():
    """What is left in the first does not count beside what is said in the second."""
    handled = []
    server = PeerServer(lambda fields: "n1", lambda sender, index, request: handled.append(request) or GRANTED)
    fields = {"upgrade": wire.PROTOCOL, "raft-lane": "small"}
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as first, \
            socket.create_connection(door.getsockname()) as second:
        server.serve(door.accept()[0], fields)
        first.settimeout(5)
        assert first.recv(4096).startswith(b"HTTP/1.1 101 ")
        server.serve(door.accept()[0], fields)
        assert select.select([first], [], [], 5)[0], "the first goes on"
        assert first.recv(4096) == b""
        second.sendall(wire.encode(VOTE, 0))
        wait_until(lambda: handled, "the second is served")
        server.stop()
    assert handled == [VOTE] and not serving()


# Peers that are gone


def test_the_end_of_a_connection_is_told(peer, connection):
    """The kernel closes what a process leaves behind: each of its connections, once."""
    n2, lanes = peer(), [connection(lane="small"), connection(lane="data")]
    for lane in lanes:
        lane.call(n2.member, VOTE, 0)
    assert n2.lost == []
    for lane in lanes:
        lane.close()
    wait_until(lambda: not serving(), "the answering threads end")
    assert n2.lost == ["n1", "n1"]


def test_a_connection_that_makes_way_for_a_newer_one_is_not_lost(peer, connection):
    n2, first, second = peer(), connection(), connection()
    first.call(n2.member, VOTE, 0)
    second.call(n2.member, VOTE, 0)
    wait_until(lambda: len(serving()) == 1, "the thread of the first ends")
    assert n2.lost == []


def test_connections_that_the_server_ends_when_it_stops_are_not_lost(peer, connection):
    n2, n1 = peer(), connection()
    n1.call(n2.member, VOTE, 0)
    n2.server.stop()
    assert n2.lost == [] and not serving()


def refuses(address, settings=SETTINGS):
    return Transport(settings, lambda member: {}).refuses(address)


def address_of(listener):
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_port_at_which_nobody_listens_refuses():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = address_of(listener)
        assert not refuses(address, IMPATIENT), "it takes the connection, and says nothing"
    assert refuses(address)


def test_a_process_that_dies_may_close_its_port_last():
    """It still seems to listen, and resets the connection; the next one is refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address, answers = address_of(listener), []
        thread = threading.Thread(target=lambda: answers.append(refuses(address)))
        thread.start()
        assert select.select([listener], [], [], 5)[0], "it has connected"
    thread.join(5)
    assert answers == [True]


def test_whoever_takes_connections_and_closes_them_is_not_dead():
    """As a proxy does that has nobody behind it. It is not asked without end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = []

        def take():
            with suppress(OSError):  # nothing more is listened to
                while True:
                    taken.append(listener.accept()[0].close())
        thread = threading.Thread(target=take)
        thread.start()
        assert not refuses(address_of(listener))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert len(taken) == 2


def test_whoever_does_not_answer_at_all_is_not_dead():
    """A queue that is full looks like a partition: nothing comes back."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        assert not refuses(address_of(listener), IMPATIENT)
        for one in waiting:
            one.close()


@pytest.mark.parametrize("address", ["nowhere.invalid:1", "no address", "127.0.0.1:none"])
def test_what_cannot_be_asked_is_not_dead(address):
    assert not refuses(address, IMPATIENT)


# What is not waited for

BEAT, HEARD = AppendEntries(3, "n1", 9, 2), AppendEntriesReply(3, True, 9)


@pytest.fixture
def sockets():
    """Those that a thread watches."""
    watched, stopping = Sockets(), threading.Event()
    wake = Wake(watched)
    watched.before_wait = lambda: wasyncore.close_all(watched) if stopping.is_set() else None
    thread = threading.Thread(target=watched.loop, args=(1.0,), name="watch")
    thread.start()
    watched.end = lambda: (stopping.set(), wake.pull_trigger(), thread.join(5))
    yield watched
    watched.end()


class Replies(list):
    """Those that came, and in which threads."""

    def __init__(self):
        self.threads = set()

    def take(self, reply):
        self.threads.add(threading.current_thread().name)
        self.append(reply)


def heard(sender, index, request):
    return HEARD if isinstance(request, AppendEntries) else GRANTED


def test_the_reply_to_what_is_posted_is_brought_by_the_thread_that_watches(peer, connection, sockets):
    n2, n1, replies = peer(heard), connection(watch=sockets.watch), Replies()
    n1.call(n2.member, VOTE, 0)
    for count in range(1, 4):
        assert n1.post(n2.member, BEAT, 7, replies.take)
        wait_until(lambda count=count: len(replies) == count, "the reply is there")
        assert n1.call(n2.member, VOTE, 0) == GRANTED, "the connection serves for both"
    assert replies == [HEARD] * 3 and replies.threads == {"watch"} and len(n2.accepted) == 1


@pytest.mark.parametrize("why", ["no connection", "the member has moved", "large", "many", "nobody watches", "nobody watches any more",
                                 "closed"])
def test_what_cannot_be_posted_is_to_be_called(peer, connection, sockets, why):
    n2, n1, replies, request = peer(heard), connection(watch=None if why == "nobody watches" else sockets.watch), Replies(), BEAT
    member = n2.member
    if why != "no connection":
        n1.call(member, VOTE, 0)
    if why == "the member has moved":
        member = peer(heard).member
    elif why == "large":
        request = AppendEntries(3, "n1", 9, 2, (Entry(10, 3, 1, bytes(MAX_POSTED_BYTES + 1)),))
    elif why == "many":
        request = AppendEntries(3, "n1", 9, 2, tuple(Entry(10 + number, 3, 1, b"x") for number in range(MAX_POSTED_BYTES // 10)))
    elif why == "nobody watches any more":
        sockets.end()
    elif why == "closed":
        n1.close()
    assert not n1.post(member, request, 0, replies.take)
    assert n1.call(member, request, 0) == HEARD and replies == []


@pytest.mark.parametrize("end", ["closed", "refused", "of another kind", "given up", "nobody watches any more"])
def test_no_reply_to_what_is_posted_is_told_and_the_next_call_connects_again(peer, connection, sockets, end):
    def handle(sender, index, request):
        if request != BEAT:
            return GRANTED
        if end == "refused":
            raise Refusal("not now")
        if end == "closed":
            raise OSError("gone")
        if end == "of another kind":
            return GRANTED
        go_on.wait(20)
        return HEARD
    go_on = threading.Event()
    n2, n1, replies = peer(handle), connection(watch=sockets.watch), Replies()
    n1.call(n2.member, VOTE, 0)
    assert n1.post(n2.member, BEAT, 0, replies.take)
    if end == "given up":
        n1.abort()
    elif end == "nobody watches any more":
        sockets.end()
    wait_until(lambda: replies == [None], "that is told")
    go_on.set()
    assert n1.call(n2.member, VOTE, 0) == GRANTED and len(n2.accepted) == 2


def test_a_reply_to_what_is_posted_may_come_in_pieces(connection, sockets):
    ours, theirs = socket.socketpair()
    n1, replies, frame = connection(watch=sockets.watch), Replies(), wire.encode(HEARD, 0)
    n1._socket, n1._frames, n1._address = ours, Frames(ours), "host:1"
    with theirs:
        assert n1.post(Member("n2", "host:1"), BEAT, 0, replies.take)
        for end in range(1, len(frame)):
            theirs.sendall(frame[end - 1:end])
            wait_until(lambda end=end: n1._frames._buffer == frame[:end], "it is read")
            assert replies == []
        theirs.sendall(frame[-1:])
        wait_until(lambda: replies, "the reply is whole")
    assert replies == [HEARD]


def test_lanes_and_peers_do_not_wait_for_each_other(peer, connection):
    """A heartbeat is answered while data, or another peer, is waited for."""
    began, released, replies = threading.Event(), threading.Event(), []

    def handle(sender, index, request):
        if request.term == 1:
            began.set()
            released.wait(30)
        return GRANTED
    n2, slow = peer(handle), connection(lane="data")
    thread = threading.Thread(target=lambda: replies.append(slow.call(n2.member, RequestVote(1, "n1", 0, 0), 0)))
    thread.start()
    assert began.wait(20), "the slow request is under way"
    assert connection(lane="small").call(n2.member, VOTE, 0) == GRANTED
    assert connection("n3").call(n2.member, VOTE, 0) == GRANTED
    assert replies == []
    released.set()
    thread.join(20)
    assert replies == [GRANTED]


def test_interrupt_ends_a_call_that_waits(peer, connection):
    began, released, errors = threading.Event(), threading.Event(), []

    def handle(*call):
        began.set()
        released.wait(20)
        return AppendEntriesReply(1, True)
    n2, n1 = peer(handle), connection()

    def call():
        try:
            n1.call(n2.member, AppendEntries(3, "n1", 0, 0, (Entry(1, 1, 1, b"x" * 1_000_000),)), 0)
        except PeerUnreachable as error:
            errors.append(error)
    thread = threading.Thread(target=call)
    thread.start()
    assert began.wait(20)
    n1.interrupt()
    thread.join(10)
    ended_at_once = not thread.is_alive()
    released.set()
    thread.join(20)
    assert errors and ended_at_once


def test_stop_ends_all_connections_and_threads(peer, connection):
    n2 = peer()
    for name in ("n1", "n3", "n4"):
        connection(name).call(n2.member, VOTE, 0)
    assert len(serving()) == 3
    n2.server.stop()
    assert not serving()
    with pytest.raises(PeerUnreachable):
        connection("n5").call(n2.member, VOTE, 0)
    assert not serving()


def test_stop_waits_also_for_a_connection_that_was_replaced(peer, connection):
    """Its thread may still be in the middle of a request: nothing may be touched by it after stop."""
    began, released = threading.Event(), threading.Event()

    def handle(sender, index, request):
        if request.term == 1:
            began.set()
            released.wait(5)
        return GRANTED
    n2 = peer(handle)
    with upgraded(n2.member) as first:
        first.sendall(wire.encode(RequestVote(1, "n1", 0, 0), 0))
        assert began.wait(5)
        connection().call(n2.member, VOTE, 0)
        stopping = threading.Thread(target=n2.server.stop)
        stopping.start()
        stopping.join(0.2)
        still_waiting = stopping.is_alive()
        released.set()
        stopping.join(5)
    assert still_waiting and not serving()


def test_stop_during_serve_is_no_error(monkeypatch):
    """A connection that arrives in the very moment of stop is ended like the others."""
    server, errors = PeerServer(lambda fields: "n1", lambda *call: GRANTED), []
    start = threading.Thread.start

    def stop():
        try:
            server.stop()
        except RuntimeError as error:
            errors.append(error)
    stopping = threading.Thread(target=stop)

    def start_late(thread):
        if thread.name.startswith("from-"):
            start(stopping)
            stopping.join(0.3)
        start(thread)
    monkeypatch.setattr(threading.Thread, "start", start_late)
    ours, theirs = socket.socketpair()
    with theirs:
        server.serve(ours, {"upgrade": wire.PROTOCOL})
        stopping.join(5)
    wait_until(lambda: not serving(), "the thread ends")
    assert not errors


def test_no_thread_for_a_peer_is_told_to_it_and_the_next_one_is_served(monkeypatch):
    """The place of a connection that nobody serves was taken for good, and stop waited for a thread that never began."""
    server = PeerServer(lambda fields: "n1", lambda *call: GRANTED)

    def fail(thread):
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, "start", fail)
    ours, theirs = socket.socketpair()
    with theirs:
        server.serve(ours, {"upgrade": wire.PROTOCOL})
        assert select.select([theirs], [], [], 0)[0], "it is told nothing"
        assert theirs.recv(1000).startswith(b"HTTP/1.1 403 ") and ended(theirs)
    monkeypatch.undo()
    assert not server._open and not server._threads
    server.stop()


# Who answers at an address


@contextmanager
def answering(*pieces, pause=0.0):
    """The address of somebody who says *pieces* to whoever asks, with a pause before each."""
    stopping = threading.Event()

    def answer():
        asking, _ = listener.accept()
        with asking:
            asking.recv(4096)
            for piece in pieces:
                if stopping.wait(pause):
                    return
                try:
                    asking.sendall(piece)
                except OSError:
                    return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        stopping.set()
        thread.join(5)


OK = b"HTTP/1.1 200 OK\r\n\r\n"
IDENTITY = b'{"name": "n2", "id": "f00", "cluster": "c1"}'


def test_who_answers_says_who_it_is():
    with answering(OK[:7], OK[7:], IDENTITY[:5], IDENTITY[5:], pause=0.05) as address:
        assert Transport(SETTINGS, None).identify(address) == {"name": "n2", "id": "f00", "cluster": "c1"}


@pytest.mark.parametrize("answer", [b"", b"x", OK, OK + b"[]", OK + b"null", OK + b"[" * 8000, OK + IDENTITY[:-1], OK + b"\xff",
                                    OK + b'{"name": "n2"}', OK + b" " * 100_000, b"x" * 100_000, b"HTTP/1.1 nine\r\n\r\n" + IDENTITY])
def test_who_answers_something_else_is_no_raftd(answer):
    with answering(answer) as address, pytest.raises(PeerUnreachable, match=f"no raftd answers at {address}"):
        Transport(SETTINGS, None).identify(address)


def test_who_answers_a_byte_at_a_time_is_not_waited_for():
    """A join names the address; there are four threads for those who join, and each byte gave it as much time again."""
    impatient = replace(SETTINGS, rpc_timeout_seconds=0.15)
    with answering(*(OK[at:at + 1] for at in range(len(OK))), *[b" "] * 100, pause=0.1) as address:
        with pytest.raises(PeerUnreachable, match="timed out$"):  # not told when all is said, which takes ten seconds
            Transport(impatient, None).identify(address)


def test_what_a_peer_gives_as_its_reason_is_one_short_line(connection):
    """It goes to the log."""
    with answering(b"HTTP/1.1 403 Forbidden\r\n\r\none\r\n2026 WARNING another\x1b[2J" + b"x" * 5000) as address:
        with pytest.raises(PeerUnreachable) as caught:
            connection().call(Member("n2", address), VOTE, 0)
    assert str(caught.value).isprintable() and "one 2026 WARNING another[2Jx" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(("address", "parts"), [("localhost:4001", ("localhost", 4001)), ("[::1]:4001", ("::1", 4001))])
def test_split_address(address, parts):
    assert split_address(address) == parts
