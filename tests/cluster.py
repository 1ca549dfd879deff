"""Real raftd processes, clients that load them, a network of namespaces to cut. For tests only.

A ``Cluster`` ends every process that it started, by its process id, however the test ends; a fault of raftd's own in a log fails the test.
Nothing here sleeps for a time in the hope that something has happened: ``wait_until`` asks again until a deadline.
"""

import ctypes
import http.client
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import pytest

from chaos.checker import FAIL, GET, OK, PUT, UNKNOWN, Operation, violations

RAFTD = [sys.executable, str(Path(__file__).resolve().parent.parent / "bin/raftd")]
PATIENCE_SECONDS = 30.0  # how long a condition may take to come true before a test fails; far more than it takes
ELECTION_SECONDS = 1.0  # the longest election timeout, with the default settings
UNHURRIED = ("-election-timeout", "3s")  # where a leader that the machine keeps waiting must stay the leader
SLOWER = ("-election-timeout", "1500ms")  # another leader is there soon, and stays though the machine keeps it waiting for a moment
POLL_SECONDS = 0.02
HELD_UP_SECONDS = 2.0  # no write waits so long, even for a server that stood still for a moment, unless something holds it up
NOISY_STEPS = 5  # of a write, each on another thread or disk
FAULTS_OF_OURS = ("Traceback", "thread failed", "request failed method", "a request of a peer failed")  # in a log
BIND_PORTS, PORTS_AT_ONCE = (20000, 30000), 250  # below the ports that the system gives to outgoing connections

the_fault_lasts = threading.Event()  # never set: ``the_fault_lasts.wait(10)`` is a fault of ten seconds

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_network = pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, ("ip", "iptables-restore"))),
                                   reason="needs root, iproute2 and iptables")
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")


def wait_until(truth, what, seconds=PATIENCE_SECONDS):
    """What ``truth()`` gives, as soon as it is true: asked at once, soon again, and then every so often."""
    deadline, pause = time.monotonic() + seconds, POLL_SECONDS / 16
    while not (answer := truth()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS)
    return answer


def wait_for_more(count, truth, what, seconds=PATIENCE_SECONDS):
    """Until the number that ``truth()`` gives is larger by *count* than it is now."""
    before = truth()
    wait_until(lambda: truth() >= before + count, what, seconds)


def holds_for(seconds, truth, what):
    """*truth* must stay true for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert truth(), f"did not stay so for {seconds:g} s: {what}"
        time.sleep(POLL_SECONDS)


def in_threads(target, arguments):
    """Threads, started, that call ``target(argument)``, one for each. A test that fails need not end them."""
    threads = [threading.Thread(target=target, args=(argument,), daemon=True) for argument in arguments]
    for thread in threads:
        thread.start()
    return threads


def _ports_of_this_process():
    """Block by block: who holds the name of a block has its ports, and no other process of these tests, until it ends."""
    for first in range(*BIND_PORTS, PORTS_AT_ONCE):
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0raftd-tests-{first}")
        except OSError:
            name.close()
            continue
        _held.append(name)
        yield from range(first, first + PORTS_AT_ONCE)


_held, _ports = [], _ports_of_this_process()


def free_port():
    """A port that nobody listens on, and that was not given before, nor is it by another process of these tests."""
    for port in _ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no free port")


_bound = []  # as long as these are, nobody else gets their ports


def nobody():
    """An address on which nobody listens."""
    _bound.append(probe := socket.socket())
    probe.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{probe.getsockname()[1]}"


# HTTP


NOT_SENT = b"not sent: "


class Answer(NamedTuple):
    """``status`` is None when nothing answered; ``headers`` have names in lower case."""

    status: int | None
    body: bytes
    headers: dict

    @property
    def code(self):
        return self.headers.get("x-raft-error")

    @property
    def retry(self):
        return self.headers.get("x-raft-retry")

    @property
    def was_not_sent(self):
        """True if there was no connection on which the request could have been sent."""
        return self.status is None and self.body.startswith(NOT_SENT)

    @property
    def leader(self):
        """HOST:PORT of the leader as this answer knows it, or None."""
        return self.headers.get("x-raft-leader", "").removeprefix("http://") or None


_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


@contextmanager
def inside(namespace):
    """Sockets that this thread makes meanwhile belong to the network *namespace*; None is the usual one."""
    if namespace is None:
        yield
        return
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        assert _libc.setns(there.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert _libc.setns(home.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


class Client:
    """A kept-open connection to one address; used by one thread."""

    def __init__(self, address, namespace=None):
        self.address, self._namespace, self._connection = address, namespace, None

    def call(self, method, path, body=None, headers=None, timeout=10):
        """An Answer. With status None the request may have been executed, unless it ``was_not_sent``."""
        try:
            self._connect(timeout)
        except OSError as error:
            self.close()
            return Answer(None, NOT_SENT + repr(error).encode(), {})
        try:
            self._connection.sock.settimeout(timeout)
            self._connection.request(method, path, body, headers or {})
            response = self._connection.getresponse()
            return Answer(response.status, response.read(), {name.lower(): value for name, value in response.getheaders()})
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Answer(None, repr(error).encode(), {})

    def _connect(self, timeout):
        if self._connection is None:
            host, port = self.address.rsplit(":", 1)
            self._connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
        if self._connection.sock is None:
            self._connection.timeout = timeout
            with inside(self._namespace):
                self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self):
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def call(address, method, path, body=None, headers=None, timeout=10, namespace=None):
    """One request on a connection of its own."""
    client = Client(address, namespace)
    try:
        return client.call(method, path, body, headers, timeout)
    finally:
        client.close()


# Processes


class Used(NamedTuple):
    """``memory`` is resident, in bytes."""

    memory: int
    threads: int
    sockets: int


def _is_socket(descriptor):
    """False, too, for one that has been closed meanwhile."""
    with suppress(OSError):
        return os.readlink(descriptor).startswith("socket:")
    return False


class Server:
    """One raftd process, with its log; it can be started again."""

    def __init__(self, name, port, path, log_path, host="127.0.0.1", namespace=None, client_namespace=None, raftd=RAFTD,
                 flags=()):
        self._raftd, self.flags = raftd, flags
        self.name, self.port, self.path, self.log_path = name, port, Path(path), Path(log_path)
        self.address = f"{host}:{port}"
        self._host, self._namespace, self.client_namespace = host, namespace, client_namespace
        self.process = None

    def __repr__(self):
        return self.name

    # The process

    def start(self, join=None, flags=(), prefix=(), wait=True):
        """Start it, with ``-join`` if *join* (addresses or Servers) says so; *prefix* is a command that runs it. Returns self.

        *flags* are in place of those that it has from its cluster.
        """
        assert not self.running, f"{self} runs already"
        into = ["ip", "netns", "exec", self._namespace] if self._namespace else []
        members = [join] if isinstance(join, (str, Server)) else join or []
        joins = ["-join", ",".join(getattr(member, "address", member) for member in members)] if members else []
        command = [*into, *prefix, *self._raftd, "-h", self._host, "-p", str(self.port), "-name", self.name, *joins,
                   *(flags or self.flags), str(self.path)]
        self._log_start = len(self.log())
        with open(self.log_path, "ab") as log_file:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True)
        if wait:
            self.wait_listening()
        return self

    def wait_listening(self, seconds=PATIENCE_SECONDS):
        wait_until(lambda: "Listening at" in self.log_of_this_start() or not self.running, f"{self} listens", seconds)
        assert self.running, f"{self} ended with exit status {self.process.returncode}: {self.log_of_this_start()[-1000:]}"
        return self

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        """To the whole group, which is raftd and what runs it."""
        os.killpg(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)

    def pause(self):
        self.signal(signal.SIGSTOP)

    def resume(self):
        self.signal(signal.SIGCONT)

    def terminate(self, seconds=PATIENCE_SECONDS):
        """SIGTERM; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def exit_status(self, seconds=PATIENCE_SECONDS):
        """The exit status of a process that is expected to end."""
        return self.process.wait(seconds)

    def end(self):
        """However it stands, it is gone then."""
        if self.running:
            self.signal(signal.SIGKILL)
            self.signal(signal.SIGCONT)
            self.process.wait(PATIENCE_SECONDS)

    def used(self):
        """What it needs of the system now."""
        process = Path(f"/proc/{self.process.pid}")
        pages = int((process / "statm").read_text().split()[1])
        return Used(pages * os.sysconf("SC_PAGE_SIZE"), len(list((process / "task").iterdir())),
                    sum(_is_socket(descriptor) for descriptor in (process / "fd").iterdir()))

    # The log and the files

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_of_this_start(self):
        return self.log()[self._log_start:]

    def data(self):
        """{key: value} in the files; only while the process does not run."""
        assert not self.running, f"{self} runs"
        connection = sqlite3.connect(self.path / "state.db")
        try:
            return {key: bytes(value) for key, value in connection.execute("SELECT key, value FROM items")}
        finally:
            connection.close()

    # What it says

    def call(self, method, path, body=None, headers=None, timeout=10):
        return call(self.address, method, path, body, headers, timeout, self.client_namespace)

    def get(self, key, query="", timeout=10):
        return self.call("GET", f"/db/{key}{query}", timeout=timeout)

    def value_of(self, key):
        """The value of *key*, or None if it has none; asked again for as long as nobody leads."""
        answer = wait_until(lambda: (found := self.get(key)).status in (200, 404) and found, f"{self} tells {key}")
        return answer.body if answer.status == 200 else None

    def put(self, key, value, query="", timeout=10):
        return self.call("POST", f"/db/{key}{query}", value, timeout=timeout)

    def status(self, timeout=5):
        """What /status says, or None."""
        answer = self.call("GET", "/status", timeout=timeout)
        return json.loads(answer.body) if answer.status == 200 else None

    def members(self):
        """{name: member} as this server knows it."""
        return {member["name"]: member for member in json.loads(self.call("GET", "/members").body)["members"]}

    @property
    def leads(self):
        return (self.status() or {}).get("role") == "leader"

    @property
    def ready(self):
        return self.call("GET", "/readyz", timeout=5).status == 200


class Cluster:
    """Servers n1, n2, ... with their data in *directory*. Use it in a ``with``."""

    def __init__(self, directory, size=3, network=None, flags=(), start=True, raftd=RAFTD):
        self.directory, self.network, self.flags, self.servers, self._raftd = Path(directory), network, flags, [], raftd
        try:
            if start:
                self._start(size)
        except BaseException:
            self.close()
            raise

    def _start(self, size):
        first = self.new().start()
        others = [self.new().start(join=first, wait=False) for _ in range(size - 1)]
        for server in others:
            server.wait_listening()
        self.wait_voters(size)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close()
        for server in self.servers if kind is None else ():
            assert not any(text in server.log() for text in FAULTS_OF_OURS), f"{server} has failed:\n{server.log()[-3000:]}"

    def close(self):
        for server in self.servers:
            server.end()

    def __getitem__(self, number):
        """n1 is number 1."""
        return self.servers[number - 1]

    def new(self, path=None, port=None, name=None):
        """Another Server, not started."""
        name = name or f"n{len(self.servers) + 1}"
        path = path or self.directory / f"node.{len(self.servers) + 1}"
        server = self.make(name, path, self.network.add_host()) if self.network else Server(
            name, port or free_port(), path, self.directory / f"n{len(self.servers) + 1}.log", raftd=self._raftd,
            flags=self.flags)
        self.servers.append(server)
        return server

    def make(self, name, path, host, raftd=None):
        """A Server on *host*, which the cluster does not know."""
        return Server(name, int(self.network.PORT), path, self.directory / f"{name}.log", host.address, host.namespace, self.network.hub,
                      raftd or self._raftd, self.flags)

    @property
    def running(self):
        return [server for server in self.servers if server.running]

    def restart(self, *servers):
        """Start *servers* (all that do not run) without -join."""
        servers = servers or [server for server in self.servers if not server.running]
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait_listening()

    # Conditions

    def leader(self, among=None, seconds=PATIENCE_SECONDS):
        """The Server that leads and has a majority behind it; waits for one."""
        def find():
            return next((server for server in among or self.running if server.leads and server.ready), None)
        return wait_until(find, "somebody leads", seconds)

    def followers(self, leader=None):
        leader = leader or self.leader()
        return [server for server in self.running if server is not leader]

    def terms(self):
        return [status["term"] for server in self.running if (status := server.status())]

    def wait_voters(self, size, among=None):
        """Until the leader has so many voters."""
        wait_until(lambda: sum(member["voter"] for member in self.leader(among).members().values()) == size, f"{size} voters")

    def write(self, key, value, among=None, seconds=PATIENCE_SECONDS):
        """Write until somebody accepts it; the Server that did."""
        def attempt():
            return next((server for server in among or self.running if server.put(key, value, "?timeout=2s", 5).status == 200), None)
        return wait_until(attempt, f"the write of {key} is accepted", seconds)

    def hand_over(self, server):
        """Until *server* leads: who leads may have just begun to, or lose it meanwhile."""
        body = json.dumps({"name": server.name})
        wait_until(lambda: server.leads or self.leader().call("POST", "/leader", body) and server.leads, f"{server} leads")

    def wait_converged(self, seconds=PATIENCE_SECONDS):
        """Until all that run have the same log, all applied, and the same leader."""
        def view(server):
            status = server.status()
            return status and (status["last_applied"], status["last_log_index"], status["leader"] and status["leader"]["name"])

        def converged():
            views = {view(server) for server in self.running}
            (first, *others) = views
            return not others and first and first[0] == first[1] and first[2]
        wait_until(converged, "all have the same log and the same leader", seconds)

    def data_of_each(self):
        """Stop all, in order, and read their files: {name: {key: value}}."""
        self.wait_converged()
        for server in self.running:
            assert server.terminate() == 0
        return {server.name: server.data() for server in self.servers}


# Clients that load a cluster


class Acknowledged(NamedTuple):
    """A write that was accepted. *first_sent*: of the first attempt; *sent*: of the one that was accepted; *answered*: then."""

    key: str
    value: bytes
    first_sent: float
    sent: float
    answered: float


class Writers:
    """*count* threads, each writing one unique key after another to whoever leads, until the ``with`` ends.

    A write that fails is sent again until it is accepted: the key is its own, so twice does no harm. ``machine_late_seconds``: how late
    the machine itself was, at most.
    """

    def __init__(self, servers, count=8, size=20, pause=0.0, prefix="w"):
        self.servers, self._size, self._pause, self._prefix = list(servers), size, pause, prefix
        self._stopping, self.acknowledged, self.refused = threading.Event(), [], defaultdict(int)
        self._threads = [threading.Thread(target=self._write, args=(number,), daemon=True) for number in range(count)]
        self.machine_late_seconds, self._watch = 0.0, threading.Thread(target=self._watch_the_machine, daemon=True)

    def __enter__(self):
        for thread in [*self._threads, self._watch]:
            thread.start()
        try:
            wait_until(lambda: len(self.acknowledged) >= len(self._threads), "the writers are at work")
        except BaseException:
            self._stopping.set()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._stopping.set()
        for thread in [*self._threads, self._watch]:
            thread.join()

    def _watch_the_machine(self):
        """How late a thread gets the processor and its bytes onto the disk, whatever raftd does: the noise in what is measured."""
        with tempfile.TemporaryFile() as file:
            while not self._stopping.is_set():
                due = time.monotonic() + POLL_SECONDS
                self._stopping.wait(POLL_SECONDS)
                os.pwrite(file.fileno(), b"x", 0)
                os.fdatasync(file.fileno())
                self.machine_late_seconds = max(self.machine_late_seconds, time.monotonic() - due)

    def _write(self, number):
        clients = {server.address: Client(server.address, server.client_namespace) for server in self.servers}
        target, count = self.servers[0].address, 0
        while not self._stopping.wait(self._pause):
            key, value = f"{self._prefix}{number}-{count}", f"{number}:{count}:".encode().ljust(self._size, b".")
            first_sent, count = time.monotonic(), count + 1
            while not self._stopping.is_set():
                sent = time.monotonic()
                answer = clients[target].call("POST", f"/db/{key}?timeout=2s", value, timeout=3)
                if answer.status == 200:
                    self.acknowledged.append(Acknowledged(key, value, first_sent, sent, time.monotonic()))
                    break
                self.refused[answer.code or answer.status] += 1
                target = self._next_target(clients, target, answer)
        for client in clients.values():
            client.close()

    def _next_target(self, clients, target, answer):
        """Whom the answer names, else the next one, after a little pause."""
        for server in self.servers:
            if server.address not in clients:  # it came later
                clients[server.address] = Client(server.address, server.client_namespace)
        if answer.leader in clients and answer.leader != target:
            return answer.leader
        self._stopping.wait(POLL_SECONDS)
        addresses = list(clients)
        return addresses[(addresses.index(target) + 1) % len(addresses)]

    def wait_for_more(self, count=50, seconds=PATIENCE_SECONDS):
        """Until so many more writes are accepted."""
        wait_for_more(count, lambda: len(self.acknowledged), f"{count} more writes are accepted", seconds)

    def gap_after(self, moment, seconds=PATIENCE_SECONDS):
        """Seconds from *moment* to the answer of the first accepted write that was sent after it."""
        def answered():
            return min((write.answered for write in self.acknowledged[-2000:] if write.sent >= moment), default=None)
        return wait_until(answered, "a write is accepted", seconds) - moment

    @property
    def longest_wait(self):
        """Seconds from the first attempt at a write until it was accepted, at most."""
        return max(write.answered - write.first_sent for write in self.acknowledged)

    @property
    def noise_seconds(self):
        """How much longer a write may take than it should, because of the machine.

        On its way it waits for several processes and disks, each of which may have been as late as the machine was.
        """
        return NOISY_STEPS * self.machine_late_seconds

    @property
    def nothing_held_up(self):
        """False if a write has waited for so long that something held it up: two seconds, or more where the machine itself was late."""
        allowed = HELD_UP_SECONDS + self.noise_seconds
        print(f"longest wait of {len(self.acknowledged)} writes: {self.longest_wait:.3f} s of {allowed:.3f} s")
        return self.longest_wait < allowed

    def missing_in(self, data):
        """Acknowledged writes that *data* ({key: value}) does not have."""
        return [write.key for write in self.acknowledged if data.get(write.key) != write.value]


def outcome_of(answer):
    """What a client may conclude for ``checker.Operation``: OK, FAIL or UNKNOWN."""
    if answer.status in (200, 412) or answer.code == "not_found":
        return OK
    return FAIL if answer.was_not_sent or answer.status == 307 or answer.retry in ("safe", "no") else UNKNOWN


def operation_of(answer, kind, key, value, began, **more):
    """The Operation that a request which *began* then, and was answered now, is in a history."""
    outcome = outcome_of(answer)
    found = answer.status != 404
    if kind == GET:
        value = answer.body if answer.status == 200 else None
    index, etag = answer.headers.get("x-raft-index"), answer.headers.get("etag")
    return Operation(kind, key, value, began, math.inf if outcome == UNKNOWN else time.monotonic(), outcome, found=found,
                     refused=answer.status == 412, index=int(index) if index and outcome == OK else None,
                     etag=int(etag.strip('"')) if etag else None, **more)


class RegisterClients:
    """Threads that write unique values to one key, and threads that read it from every server, linearizable and with
    level=leader in turn, until the ``with`` ends."""

    def __init__(self, servers, writers=2, timeout=4, key="register"):
        self.history, self._stopping, self._timeout, self._key = [], threading.Event(), timeout, key
        self.reads_by = defaultdict(int)
        self._threads = [threading.Thread(target=self._read, args=(server,), daemon=True) for server in servers]
        self._threads += [threading.Thread(target=self._write, args=(number, list(servers)), daemon=True) for number in range(writers)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        try:
            wait_until(lambda: len(self.history) > 20, "the clients are at work")
        except BaseException:
            self._stopping.set()
            raise
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def violations(self):
        """What is wrong with the history, a line each."""
        return [str(violation) for violation in violations(self.history)]

    def wait_for_reads(self, server, count=20):
        """Until *server* has answered so many more reads."""
        wait_for_more(count, lambda: self.reads_by[server.name], f"{server} answers reads")

    def wait_for_more(self, count=30):
        wait_for_more(count, lambda: len(self.history), "the clients go on")

    def _read(self, server):
        client, queries = Client(server.address, server.client_namespace), cycle(("", "?level=leader"))
        while not self._stopping.wait(0.002):
            began = time.monotonic()
            answer = client.call("GET", f"/db/{self._key}{next(queries)}", timeout=self._timeout)
            if answer.status in (200, 404):
                self.history.append(operation_of(answer, GET, self._key, None, began))
                self.reads_by[server.name] += 1
        client.close()

    def _write(self, number, servers):
        clients, count = [Client(server.address, server.client_namespace) for server in servers], 0
        while not self._stopping.wait(0.005):
            client = clients[count % len(clients)] if count % 7 == 0 else clients[0]
            value, began, count = f"{number}:{count}".encode(), time.monotonic(), count + 1
            answer = client.call("POST", f"/db/{self._key}?timeout=2s", value, timeout=self._timeout)
            self.history.append(operation_of(answer, PUT, self._key, value, began))
            if answer.status != 200:
                clients.sort(key=lambda other: other.address != answer.leader if answer.leader else other is client)
        for client in clients:
            client.close()


# Machines that are short of something, or whose system calls fail


class Strace:
    """Faults in the system calls of a running process, from now on until ``end``.

    *calls* are one or more, with commas between; *fault* is what strace injects. Of calls on certain *files* only, if there are any.
    """

    def __init__(self, server, calls, fault, files=()):
        of_files = [word for file in files for word in ("-P", file)]
        self._output = tempfile.NamedTemporaryFile("r", prefix="raftd-strace-")
        self._server, self._process = server, subprocess.Popen(
            ["strace", "-f", "-o", self._output.name, *of_files, "-e", f"trace={calls}", "-e", f"inject={calls}:{fault}",
             "-p", str(server.process.pid)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self._is_attached() or not server.running or self._process.poll() is not None, f"{server} is traced")

    @property
    def faults(self):
        """How many calls it has spoilt."""
        return Path(self._output.name).read_text(errors="replace").count("(INJECTED)")

    def _is_attached(self):
        """To every thread there is."""
        try:
            tasks = [(task / "status").read_text() for task in Path(f"/proc/{self._server.process.pid}/task").iterdir()]
        except (FileNotFoundError, ProcessLookupError):  # a thread has ended
            return False
        return all(f"TracerPid:\t{self._process.pid}\n" in status for status in tasks)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        self._process.terminate()
        self._process.wait(PATIENCE_SECONDS)
        self._output.close()


class ControlGroup:
    """One process gets no more than so much, until ``end``: by the cgroups of the kernel, version 1 or 2.

    *what* is "cpu" (percent of one core), "memory" (bytes, of those that are asked for from now on) or "pids" (threads).
    """

    _FIRST = {"cpu": "cpu.cfs_quota_us", "memory": "memory.limit_in_bytes", "pids": "pids.max"}
    _SECOND = {"cpu": "cpu.max", "memory": "memory.max", "pids": "pids.max"}

    def __init__(self, server, what, limit):
        files, self._parent = self._SECOND, _second_hierarchy(what)
        self._mounted = None
        if self._parent is None:
            files, self._parent = self._FIRST, _first_hierarchy(what)
        if self._parent is None:
            self._parent = self._mounted = Path(tempfile.mkdtemp(prefix="raftd-cgroup-"))
            _run("mount", "-t", "cgroup", "-o", what, "raftd-test", str(self._mounted))
        self._path = self._parent / f"raftd-{os.getpid()}-{time.monotonic_ns()}"
        self._path.mkdir()
        amount = limit * 1000 if what == "cpu" else limit  # microseconds in each 100,000
        try:
            (self._path / files[what]).write_text(f"{amount}")
            (self._path / "cgroup.procs").write_text(f"{server.process.pid}")
        except OSError:
            self.end()
            raise

    @staticmethod
    def is_possible(what):
        """Whether this kernel, and whoever runs this, can do so."""
        known = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()] if os.path.exists("/proc/cgroups") else []
        mountable = any(fields[0] == what and fields[1] != "0" for fields in known)
        return os.geteuid() == 0 and (mountable or _second_hierarchy(what) is not None)

    def end(self):
        for task in (self._path / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):  # it has ended
                (self._parent / "cgroup.procs").write_text(task)
        wait_until(self._removed, f"{self._path} can be removed")
        if self._mounted:
            _run("umount", str(self._mounted))
            self._mounted.rmdir()

    def _removed(self):
        try:
            self._path.rmdir()
        except OSError:
            return not self._path.exists()
        return True


def _mounts(kind):
    """(path, options) of what is mounted of that kind."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [(Path(fields[1]), fields[3].split(",")) for fields in mounts if fields[2] == kind]


def _first_hierarchy(what):
    return next((path for path, options in _mounts("cgroup") if what in options), None)


def _second_hierarchy(what):
    return next((path for path, _ in _mounts("cgroup2") if what in (path / "cgroup.subtree_control").read_text().split()), None)


needs_cgroups = pytest.mark.skipif(not all(map(ControlGroup.is_possible, ("cpu", "memory", "pids"))), reason="needs cgroups")


# A network to cut


class Host(NamedTuple):
    namespace: str
    address: str


def _run(*command, text=None):
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def _both_ways(peer):
    return f"INPUT -s {peer.address} -j DROP", f"OUTPUT -d {peer.address} -j DROP"


class Cut:
    """Rules that drop packets, until it is healed."""

    def __init__(self, network, rules):
        self._network, self.rules = network, rules

    def heal(self):
        self._network.remove(self)


class Network:
    """Hosts in network namespaces, joined by a bridge in one more, the ``hub``, in which clients are. Nothing of it is outside of those.

    What drops packets returns a Cut. Several may overlap, from several threads.
    """

    PORT, SUBNET, HUB_ADDRESS = "4001", "10.77.1.0/24", "10.77.1.254"

    def __init__(self):
        self._tag, self.hosts, self._cuts = f"raftd-{os.getpid()}-{time.monotonic_ns() % 10**6}", [], []
        self._lock, self._slow = threading.Lock(), defaultdict(int)
        self.hub = f"{self._tag}-hub"
        _run("ip", "netns", "add", self.hub)
        self._make_hub()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for namespace in [host.namespace for host in self.hosts] + [self.hub]:
            _run("ip", "netns", "delete", namespace)

    def _in(self, namespace, *command, text=None):
        _run("ip", "netns", "exec", namespace, *command, text=text)

    def _make_hub(self):
        self._in(self.hub, "ip", "link", "add", "bridge", "type", "bridge")
        self._in(self.hub, "ip", "address", "add", f"{self.HUB_ADDRESS}/24", "dev", "bridge")
        self._in(self.hub, "ip", "link", "set", "bridge", "up")

    def add_host(self):
        """A new Host. Numbers start at 1, like those of servers."""
        number = len(self.hosts) + 1
        host = Host(f"{self._tag}-{number}", f"10.77.1.{number}")
        _run("ip", "netns", "add", host.namespace)
        self.hosts.append(host)
        self._connect(host, number)
        return host

    def _connect(self, host, number):
        self._in(self.hub, "ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        self._in(self.hub, "ip", "link", "set", f"port{number}", "master", "bridge", "up")
        self._in(host.namespace, "ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            self._in(host.namespace, "ip", "link", "set", interface, "up")

    def host_of(self, server):
        return next(host for host in self.hosts if server.address.split(":")[0] == host.address)

    def _peers_of(self, host):
        return [peer for peer in self.hosts if peer is not host]

    # Rules

    def cut(self, rules):
        """*rules* are (Host, what iptables takes) pairs. Those of one host come into force at once."""
        cut = Cut(self, list(rules))
        with self._lock:
            self._cuts.append(cut)
            self._enforce(cut)
        return cut

    def remove(self, cut):
        with self._lock:
            if cut in self._cuts:
                self._cuts.remove(cut)
                self._enforce(cut)

    def heal(self):
        """Of every Cut."""
        for cut in list(self._cuts):
            cut.heal()

    def _enforce(self, changed):
        for host in {host for host, _ in changed.rules}:
            rules = [f"-A {rule}" for cut in self._cuts for ruled, rule in cut.rules if ruled is host]
            lines = ["*filter", ":INPUT ACCEPT", ":FORWARD ACCEPT", ":OUTPUT ACCEPT", *rules, "COMMIT", ""]
            self._in(host.namespace, "iptables-restore", text="\n".join(lines))

    def isolate(self, server, *others):
        """No packet between *server* and *others* (all other hosts); clients still reach everybody."""
        host = self.host_of(server)
        peers = [self.host_of(other) for other in others] or self._peers_of(host)
        return self.cut((host, rule) for peer in peers for rule in _both_ways(peer))

    def sever(self, pairs):
        """No packet between the two servers of each of *pairs*."""
        return self.cut((self.host_of(one), rule) for one, other in pairs for rule in _both_ways(self.host_of(other)))

    def vanish(self, server):
        """The host drops every packet, those of clients too."""
        host = self.host_of(server)
        return self.cut([(host, f"INPUT -s {self.SUBNET} -j DROP"), (host, f"OUTPUT -d {self.SUBNET} -j DROP")])

    def deafen(self, server):
        """*server* sends, and hears nothing of its peers."""
        host = self.host_of(server)
        return self.cut((host, f"INPUT -s {peer.address} -j DROP") for peer in self._peers_of(host))

    def shut_off(self, server):
        """The requests of its peers to *server* are lost; they hear its own, and their answers arrive."""
        host = self.host_of(server)
        return self.cut((host, f"INPUT -p tcp --dport {self.PORT} -s {peer.address} -j DROP") for peer in self._peers_of(host))

    def silence(self, server):
        """The requests of *server* to its peers are lost; it hears theirs, and its answers arrive."""
        host = self.host_of(server)
        return self.cut((host, f"OUTPUT -p tcp --dport {self.PORT} -d {peer.address} -j DROP") for peer in self._peers_of(host))

    def lose(self, server, probability):
        """So many of the packets that arrive at *server*, whoever sent them, are lost."""
        return self.cut([(self.host_of(server), f"INPUT -m statistic --mode random --probability {probability:.2f} -j DROP")])

    def lose_answers(self, server, first_word, to=None):
        """*server* hears requests and executes them; its answers that begin with *first_word* (4 bytes) are lost. *to*: an address."""
        begins = f'-m u32 --u32 "0>>22&0x3C@12>>26&0x3C@0=0x{int.from_bytes(first_word):08x}"'
        return self.cut([(self.host_of(server), f"OUTPUT -p tcp --sport {self.PORT} -d {to or self.SUBNET} {begins} -j DROP")])

    def reset(self, server):
        """Each connection of *server* to a peer, or from one, is reset as soon as it is used."""
        host = self.host_of(server)
        return self.cut((host, f"INPUT -p tcp -s {peer.address} -j REJECT --reject-with tcp-reset") for peer in self._peers_of(host))

    def slow_down(self, server, rate="8mbit", queue="400ms", arriving=False):
        """What *server* sends, or what arrives there, passes a link of that rate; returns what to call to end that.

        Of several at once the last counts.
        """
        host = self.host_of(server)
        place = (self.hub, f"port{self.hosts.index(host) + 1}") if arriving else (host.namespace, "eth0")
        with self._lock:
            self._slow[place] += 1
            self._queue(place, "replace", "tbf", "rate", rate, "burst", "32k", "latency", queue)
        return lambda: self._speed_up(place)

    def _speed_up(self, place):
        with self._lock:
            self._slow[place] -= 1
            if not self._slow[place]:
                self._queue(place, "delete")

    def _queue(self, place, what, *how):
        namespace, device = place
        self._in(namespace, "tc", "qdisc", what, "dev", device, "root", *how)
