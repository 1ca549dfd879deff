"""How a starting node asks to be taken in, when those whom it asks refuse, are silent, or may have begun it: members of straw."""

import json
import logging
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import cluster
from cluster import holds_for, wait_until
from raftd import cli, joining, server
from raftd.errors import StartupError
from raftd.joining import Joiner
from test_node import clients

CLUSTER, ID = "c1", "f00"
SILENT = object()  # what a Straw answers when it does not


class Straw:
    """A member that answers as it is told: ``join``, ``leader``, ``delete`` are (status, code, retry) or SILENT; notes what is asked."""

    def __init__(self):
        self.voters, self.cluster, self.asked, self.queries = ["n1"], CLUSTER, [], []
        self.join = self.leader = self.delete = (200, None, None)
        self.leader_address, self.ending = None, threading.Event()
        straw = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self, what):
                straw.asked.append((self.command, self.path.partition("?")[0]))
                straw.queries.append(self.path.partition("?")[2])
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if what is SILENT:
                    straw.ending.wait()
                    self.close_connection = True
                    return
                (status, code, retry), body = what if isinstance(what[0], tuple) else (what, b"")
                self.send_response(status)
                for name, value in (("X-Raft-Error", code), ("X-Raft-Retry", retry), ("X-Raft-Leader", straw.leader_address)):
                    if value:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                members = [{"name": name, "voter": True} for name in straw.voters]
                status = {"cluster": straw.cluster, "members": members, "role": "leader",
                          "leader": {"name": "n1", "address": straw.address}}
                if self.path == "/status":
                    self._answer(((200, None, None), json.dumps(status).encode()))
                elif straw.leader is SILENT or straw.leader[0] != 200:
                    self._answer(straw.leader)
                else:
                    self._answer((straw.leader, json.dumps({"name": "n1", "address": straw.address}).encode()))

            def do_POST(self):
                self._answer(straw.join)

            def do_DELETE(self):
                self._answer(straw.delete)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def count(self, method, path):
        return self.asked.count((method, path))

    def close(self):
        self.ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def straw():
    member = Straw()
    yield member
    member.close()


@pytest.fixture
def black_hole():
    """Addresses at which connections are taken by the kernel, and nobody answers: processes that are stopped."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    yield [f"127.0.0.1:{one.getsockname()[1]}" for one in listening]
    for one in listening:
        one.close()


@pytest.fixture
def nobody():
    return cluster.nobody()


@pytest.fixture
def impatient(monkeypatch):
    """It gives up soon, but who answers may take his time."""
    monkeypatch.setattr(joining, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(joining, "ANSWER_SECONDS", 10.0)
    monkeypatch.setattr(joining, "WITHDRAW_SECONDS", 20.0)
    monkeypatch.setattr(joining, "PAUSE_SECONDS", 0.1)


@pytest.fixture
def silent(impatient, monkeypatch):
    """A list for the beginnings of requests ("GET http://..."), or parts of them, that nobody will answer: they are given up soon."""
    parts, request = [], joining._request

    def request_or_give_up(method, url, seconds, *more):
        return request(method, url, 0.4 if any(part in f"{method} {url}" for part in parts) else seconds, *more)
    monkeypatch.setattr(joining, "_request", request_or_give_up)
    return parts


def joiner(*addresses, name="n9"):
    return Joiner(name, ID, "127.0.0.1:9", addresses, threading.Event())


def fails_to_join(asker):
    with pytest.raises(StartupError) as failure:
        asker.join()
    assert "\n" not in str(failure.value)
    return asker


NOT_LEADER, BAD_REQUEST = (400, "not_leader", "safe"), (400, "bad_request", "no")
COMMIT_TIMEOUT, LOST, NO_QUORUM = (504, "commit_timeout", "maybe"), (503, "leadership_lost", "maybe"), (503, "no_quorum", "safe")


# May it be in?


def test_a_join_that_nobody_read_was_certainly_not_begun(nobody, impatient):
    assert not fails_to_join(joiner(nobody)).may_be_in


@pytest.mark.parametrize("answer", [BAD_REQUEST, NOT_LEADER, NO_QUORUM], ids=str)
def test_a_join_that_was_refused_was_certainly_not_begun(straw, impatient, answer):
    straw.join = answer
    assert not fails_to_join(joiner(straw.address)).may_be_in


@pytest.mark.parametrize("answer", [LOST, SILENT], ids=["leadership lost", "silent"])
def test_a_join_whose_outcome_is_not_known_may_have_been_begun(straw, nobody, silent, answer):
    straw.join = answer
    if answer is SILENT:
        silent.append(f"POST http://{straw.address}/join")
    asker = fails_to_join(joiner(straw.address, nobody))
    assert asker.may_be_in


def test_a_join_that_may_have_been_begun_stays_so_when_it_is_refused_later(straw, impatient):
    asker = joiner(straw.address)
    straw.join = LOST
    fails_to_join(asker)
    straw.join = BAD_REQUEST
    assert fails_to_join(asker).may_be_in


def test_a_connection_that_breaks_may_have_brought_the_request(impatient):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def hang_up():
            try:
                while True:
                    listening.accept()[0].close()
            except OSError:
                pass
        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        assert fails_to_join(joiner(f"127.0.0.1:{listening.getsockname()[1]}")).may_be_in
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_a_learner_that_catches_up_is_waited_for(straw, impatient):
    straw.join = COMMIT_TIMEOUT
    asker = joiner(straw.address)
    result = []
    thread = threading.Thread(target=lambda: result.append(asker.join()))
    thread.start()
    wait_until(lambda: straw.count("POST", "/join") >= 5, "it asks on, longer than its patience with silence")
    straw.join = (200, None, None)
    thread.join(5)
    assert result == [None] and asker.may_be_in


# The end of it


def test_it_ends_soon_after_it_is_told_to_stop_though_nobody_answers(black_hole):
    """raftd must be gone five seconds after SIGTERM, however many of the members it knows are silent: one answer is waited for, which
    takes three, and four would take twelve."""
    stopping, ended = threading.Event(), {}

    def run(how, count):
        asker = Joiner("n9", ID, "127.0.0.1:9", black_hole[:count], stopping)
        try:
            asker.join() if how == "join" else asker.announce(CLUSTER)
        except StartupError:
            pass
        ended[how, count] = time.monotonic()
    cases = [(how, count) for how in ("join", "announce") for count in (1, 4)]
    threads = [threading.Thread(target=run, args=case, daemon=True) for case in cases]
    for thread in threads:
        thread.start()
    holds_for(0.5, lambda: not ended, "they try")
    began = time.monotonic()
    stopping.set()
    for thread in threads:
        thread.join(max(0, began + 7 - time.monotonic()))
    assert [case for case in cases if case not in ended] == []


@pytest.fixture
def resolver_that_hangs(monkeypatch):
    """The names of .test are asked for, and no server of names answers. Gives the list of those that were asked for in vain."""
    hanging, resolve, in_vain = threading.Event(), socket.getaddrinfo, []

    def getaddrinfo(host, *more, **options):
        if str(host).endswith(".test"):
            if not hanging.wait(15):
                in_vain.append(host)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve(host, *more, **options)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield in_vain
    hanging.set()


def test_a_name_that_is_not_resolved_is_not_waited_for(resolver_that_hangs, straw, silent):
    silent.append(".test:1/")
    joiner("a.test:1", "b.test:1", straw.address).join()
    assert joining.find_cluster(["a.test:1", straw.address], threading.Event()) == (CLUSTER, straw.address)
    assert not joiner("a.test:1").withdraw()
    fails_to_join(joiner("a.test:1", "b.test:1"))
    assert resolver_that_hangs == []


@pytest.mark.parametrize("how", ["join", "announce"])
def test_it_ends_soon_after_it_is_told_to_stop_though_no_name_is_resolved(resolver_that_hangs, how):
    stopping = threading.Event()
    asker = Joiner("n9", ID, "127.0.0.1:9", ["a.test:1", "b.test:1", "c.test:1"], stopping)
    with clients(1) as pool:
        asked = pool.submit(asker.join) if how == "join" else pool.submit(asker.announce, CLUSTER)
        holds_for(0.5, lambda: not asked.done(), "it tries")
        began = time.monotonic()
        stopping.set()
        wait_until(asked.done, "it ends")
        assert time.monotonic() - began < 7


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for(silent, straw):
    def say(listening, ending):
        with listening.accept()[0] as answering:
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000:
                if ending.wait(0.1):
                    return
                answering.sendall(bytes([byte]))
    ending = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening, clients(1) as pool:
        said = pool.submit(say, listening, ending)
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        silent.append(address)
        assert joining.find_cluster([address, straw.address], threading.Event()) == (CLUSTER, straw.address)
        assert not said.done() or said.exception(), "all of it was waited for"
        ending.set()


def test_who_was_told_to_stop_does_not_go_on_to_the_leader(straw, nobody, monkeypatch):
    straw.join, straw.leader_address = NOT_LEADER, f"http://{nobody}"
    asker, asked, request = joiner(straw.address), [], joining._request

    def request_and_stop(method, url, *more):
        asked.append(url)
        asker._stopping.set()
        return request(method, url, *more)
    monkeypatch.setattr(joining, "_request", request_and_stop)
    fails_to_join(asker)
    assert len(asked) == 1


def test_a_leader_that_cannot_be_one_is_a_problem_in_one_line(straw, impatient):
    straw.join, straw.leader_address = NOT_LEADER, "http://a..b:1"
    fails_to_join(joiner(straw.address))


def test_the_members_are_asked_directly_whatever_the_environment_says_of_proxies(straw, nobody, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{nobody}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    joiner(straw.address).join()


@contextmanager
def announcing(asker):
    thread = threading.Thread(target=asker.announce, args=(CLUSTER,), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        asker._stopping.set()
        thread.join(10)
        assert not thread.is_alive()


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING and record.name == "raftd.joining"]


def test_a_new_address_that_is_refused_is_told_again_with_growing_pauses_and_one_warning(straw, impatient, caplog, monkeypatch):
    straw.voters, straw.join = ["n1", "n9"], BAD_REQUEST
    asker, pauses = joiner(straw.address), []
    wait = asker._stopping.wait
    monkeypatch.setattr(asker._stopping, "wait", lambda seconds: pauses.append(seconds) or wait(seconds))
    with announcing(asker) as thread:
        wait_until(lambda: straw.count("POST", "/join") >= 3, "it asks again")
        holds_for(0.3, thread.is_alive, "it goes on")
        assert pauses[:3] == [joining.PAUSE_SECONDS, 2 * joining.PAUSE_SECONDS, 4 * joining.PAUSE_SECONDS]
        assert len(warnings_in(caplog)) == 1 and "address" in warnings_in(caplog)[0]
        straw.join = (200, None, None)
        wait_until(lambda: not thread.is_alive(), "it is told at last")
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("voters", [["n1"], []])
def test_a_member_that_was_removed_meanwhile_does_not_come_back_by_itself(straw, impatient, caplog, voters):
    straw.voters = voters
    with announcing(joiner(straw.address)) as thread:
        wait_until(lambda: not thread.is_alive(), "it gives up")
    assert straw.count("POST", "/join") == 0
    assert len(warnings_in(caplog)) == 1


def test_an_address_is_not_told_to_another_cluster(straw, impatient, caplog):
    straw.cluster, straw.voters = "other", ["n9"]
    with announcing(joiner(straw.address)):
        wait_until(lambda: straw.count("GET", "/status") >= 4, "it asks again: who leads, and him")
    assert straw.count("POST", "/join") == 0 and len(warnings_in(caplog)) == 1


# To take it back


@pytest.mark.parametrize(("delete", "forgotten"), [
    ((200, None, None), True), ((404, "not_found", "no"), True), (NOT_LEADER, False), (BAD_REQUEST, False), (NO_QUORUM, False),
    (COMMIT_TIMEOUT, False), ((404, None, None), False), (SILENT, False)], ids=lambda value: "silent" if value is SILENT else str(value))
def test_a_join_is_taken_back_only_when_the_cluster_says_so(straw, nobody, silent, delete, forgotten):
    if delete is SILENT:
        silent.append("DELETE ")
    straw.delete = delete
    assert joiner(nobody, straw.address).withdraw() is forgotten
    assert straw.count("DELETE", "/members/n9") == 1


def test_what_is_taken_back_is_the_join_of_these_files(straw, impatient):
    """There may be a member of that name with others: who was refused for that must not remove it."""
    assert joiner(straw.address).withdraw()
    assert f"id={ID}&" in straw.queries[straw.asked.index(("DELETE", "/members/n9"))]


def test_to_take_a_join_back_is_given_up_soon_though_nobody_answers(black_hole, monkeypatch):
    """However many members are silent: raftd must be gone five seconds after SIGTERM."""
    given, request = [], joining._request
    monkeypatch.setattr(joining, "_request", lambda method, url, seconds: given.append(seconds) or request(method, url, seconds))
    assert not Joiner("n9", ID, "127.0.0.1:9", black_hole, threading.Event()).withdraw()
    assert 0 < round(sum(given), 2) <= joining.WITHDRAW_SECONDS


def test_a_join_is_not_taken_back_while_no_leader_is_known(straw, impatient):
    straw.leader = (503, "no_leader", "safe")
    assert joiner(straw.address).withdraw() is False


MINE = {"raft.db.bak": b"my backup", "state.db.bak": b"my other backup", "notes": b"x", "state.db.incoming": b"y", "raft.db-copy": b"z"}
CASES = {  # what /join and DELETE /members/n9 answer, and whether the files go
    "refused": (BAD_REQUEST, (200, None, None), True),
    "nobody leads": (NO_QUORUM, (200, None, None), True),
    "perhaps, and forgotten": (LOST, (200, None, None), True),
    "perhaps, and not known": (LOST, (404, "not_found", "no"), True),
    "perhaps, and not forgotten": (LOST, NO_QUORUM, False),
    "silent, and not forgotten": (SILENT, COMMIT_TIMEOUT, False),
}


@pytest.mark.parametrize("made", [True, False], ids=["new directory", "directory with files of the user's"])
@pytest.mark.parametrize("case", CASES)
def test_the_files_of_a_first_join_that_failed_go_only_when_the_cluster_does_not_count_them(straw, silent, tmp_path, case, made):
    """A server that a cluster counts must not come back without its vote and its log."""
    straw.join, straw.delete, removed = CASES[case]
    if straw.join is SILENT:
        silent.append(f"POST http://{straw.address}/join")
    path = tmp_path / "path"
    if not made:
        path.mkdir()
        for name, data in MINE.items():
            (path / name).write_bytes(data)
    stopping, failures = threading.Event(), []
    starting = server.Server(cli.parse(["-p", "0", "-name", "n9", "-join", straw.address, str(path)]), stopping, failures.append)
    try:
        with pytest.raises(StartupError) as failure:
            starting.start()
    finally:
        starting.stop()
    assert ("files are kept" in str(failure.value)) is not removed
    assert failures == []
    withdrawn = straw.count("DELETE", "/members/n9")
    assert (withdrawn > 0) is (case not in ("refused", "nobody leads"))
    if made and removed:
        assert not path.exists()
        return
    assert (path / "raft.db").exists() is not removed
    assert (path / "state.db").exists() is not removed
    if not made:
        assert {name: (path / name).read_bytes() for name in MINE} == MINE


def test_the_same_command_goes_on_with_the_files_that_were_kept(straw, impatient, tmp_path):
    straw.join, straw.delete = LOST, NO_QUORUM
    options = cli.parse(["-p", "0", "-join", straw.address, str(tmp_path)])
    names = []
    for _ in range(2):
        starting = server.Server(options, threading.Event(), pytest.fail)
        try:
            with pytest.raises(StartupError):
                starting.start()
            names.append(starting._node.name)
        finally:
            starting.stop()
    assert names[0] == names[1]
    straw.join = (200, None, None)
    starting = server.Server(options, threading.Event(), pytest.fail)
    try:
        starting.start()
    finally:
        starting.stop()
