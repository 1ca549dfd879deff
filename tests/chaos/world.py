"""A cluster whose hosts, disks and clocks can be broken, and who holds what at the moment. Knows how to break a thing, not when."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from chaos.clients import Node
from cluster import PATIENCE_SECONDS, POLL_SECONDS, Cluster, Network, wait_until

DISK_MEBIBYTES = 768  # for the state with 100,000 changes of history, and a copy on its way out and in
START_SECONDS = 60  # until a process listens; far more than it takes
SERVER = [sys.executable, str(Path(__file__).with_name("server.py"))]


class Violated(AssertionError):
    """Something happened that must not."""


class Disk:
    """A small file system in memory, so that it can be filled."""

    def __init__(self, path, mebibytes=DISK_MEBIBYTES):
        self.path = path
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "raftd-chaos", path], check=True)

    def fill(self, leave):
        """Take all the room but so many bytes."""
        with open(self.path / "filler", "wb") as filler:
            for _ in range(5):  # others take and give room meanwhile
                try:
                    os.posix_fallocate(filler.fileno(), 0, max(1, shutil.disk_usage(self.path).free - leave))
                    break
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def make_room(self):
        (self.path / "filler").unlink(missing_ok=True)

    def take_inodes(self):
        """From now on there is none for another file."""
        status = os.statvfs(self.path)
        self._limit_inodes(status.f_files - status.f_ffree)

    def give_inodes(self):
        self._limit_inodes(1000)

    def _limit_inodes(self, count):
        subprocess.run(["mount", "-o", f"remount,nr_inodes={count}", self.path], check=True)

    def unmount(self):
        subprocess.run(["umount", "--lazy", self.path], check=False)


class World:
    """``servers`` are the members that there should be. Use it in a ``with``."""

    def __init__(self, directory, size):
        self.directory, self.size = Path(directory), size
        self._lock, self._claims, self._numbers = threading.Lock(), set(), size
        self.problems, self.notes = [], []  # what must not happen; what may
        self.ended = []  # servers that were replaced
        self.incarnations, self._expected_down, self._started = {}, set(), {}
        self._bad_disks, self._bad_until = Counter(), {}
        self.network = self.cluster = None
        self.disks = {}

    def __enter__(self):
        self.network = Network()
        try:
            self.cluster = Cluster(self.directory, network=self.network, start=False)
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.cluster:
            self.cluster.close()
            for server in self.ended:
                server.end()
        for disk in self.disks.values():
            disk.unmount()
        self.network.__exit__()

    def _start(self):
        for number in range(1, self.size + 1):
            (self.directory / f"clock.{number}").write_text("0 1")
            host = self.network.add_host()
            self.disks[host.address] = Disk(self.directory / f"disk.{number}")
            server = self._new(host, f"n{number}")
            self.cluster.servers.append(server)
            self.bring_up([server], join=self.servers[:1] if number > 1 else None)
        self.cluster.wait_voters(self.size)

    def _new(self, host, name):
        disk = self.disks[host.address]
        return self.cluster.make(name, disk.path / name, host, [*SERVER, str(self.clock_of(disk))])

    def clock_of(self, disk):
        return disk.path.with_name(disk.path.name.replace("disk", "clock"))

    @property
    def servers(self):
        return self.cluster.servers

    def disk_of(self, server):
        return self.disks[server.address.split(":")[0]]

    def nodes(self):
        """Where clients can send requests to."""
        return [Node(server.address, self.network.hub, server.name, self.incarnations.get(server.name, 0)) for server in list(self.servers)]

    # Who holds what: a server is killed, paused or exchanged by one at a time

    @contextmanager
    def claimed(self, count, rng, leader=None, but=()):
        """So many servers that nobody else has, drawn by *rng*: the leader among them if *leader* is true, not if it is False.

        Gives [] when there are not enough.
        """
        leads = self.find_leader() if leader is not None else None
        with self._lock:
            free = [server for server in self.servers if server.name not in self._claims and server.running and server not in but]
            rng.shuffle(free)
            if leader is not None:
                free.sort(key=lambda server: server is not leads)
                free = free[1:] if not leader and leads in free else free
            chosen = free[:count] if len(free) >= count and (not leader or leads in free) else []
            self._claims.update(server.name for server in chosen)
        try:
            yield chosen
        finally:
            with self._lock:
                self._claims.difference_update(server.name for server in chosen)

    def find_leader(self, seconds=1.0):
        """The server that says it leads, of the highest term, or None."""
        deadline, found = time.monotonic() + seconds, []
        while not found and time.monotonic() < deadline:
            for server in list(self.servers):
                if server.running and server.name not in self._claims:
                    status = self.status_of(server)
                    if status and status["role"] == "leader":
                        found.append((status["term"], server.name, server))
        return max(found)[2] if found else None

    @staticmethod
    def status_of(server, timeout=0.5):
        answer = server.call("GET", "/status", timeout=timeout)
        return json.loads(answer.body) if answer.status == 200 else None

    # Processes

    def launch(self, server, join=None):
        """Start it, and do not wait."""
        self.incarnations[server.name] = self.incarnations.get(server.name, 0) + 1
        self._started[server.name] = time.monotonic()
        self._expected_down.add(server.name)  # until it listens, who starts it looks after it
        server.start(join=join, wait=False)

    def kill(self, servers):
        for server in servers:
            self._expected_down.add(server.name)
            server.signal(9)
        for server in servers:
            server.process.wait(PATIENCE_SECONDS)

    def terminate(self, server):
        """SIGTERM; it must end with status 0."""
        self._expected_down.add(server.name)
        status = server.terminate(START_SECONDS)
        if status != 0:
            self.problems.append(f"{server} ended with status {status} after SIGTERM:\n{server.log_of_this_start()[-1000:]}")

    def bring_up(self, servers, join=None):
        """Start *servers*, until each listens. A start that fails is right only when a disk is full or fails, or the join finds nobody."""
        for server in servers:
            self.launch(server, join)
        for server in servers:
            while not self._listens(server):
                status, last = server.process.returncode, server.log_of_this_start()[-600:]
                why = "join" if join else "disk" if self._has_bad_disk(server) else None
                if status != 1 or why is None or "raftd: " not in last:
                    raise Violated(f"{server} ended with status {status} while it started:\n{last}")
                self.notes.append(f"{server}: a start failed ({why}): {last.splitlines()[-1]}")
                time.sleep(0.2)
                self.launch(server, join)
            self._expected_down.discard(server.name)

    @staticmethod
    def _listens(server):
        wait_until(lambda: "Listening at" in server.log_of_this_start() or not server.running, f"{server} listens", START_SECONDS)
        return server.running

    def _has_bad_disk(self, server):
        """Whether its disk was full, or failed, at any time since it was started."""
        return self._bad_disks[server.address] > 0 or self._bad_until.get(server.address, 0) >= self._started[server.name]

    @contextmanager
    def bad_disk(self, servers):
        """While it lasts *servers* may refuse to start."""
        with self._lock:
            self._bad_disks.update(server.address for server in servers)
        try:
            yield
        finally:
            with self._lock:
                self._bad_disks.subtract(server.address for server in servers)
                self._bad_until |= {server.address: time.monotonic() for server in servers}

    def check_processes(self):
        """Those that run no more although nobody ended them."""
        for server in list(self.servers):
            if server.process is not None and not server.running and server.name not in self._expected_down:
                self._expected_down.add(server.name)
                self.problems.append(f"{server} has ended by itself, with status {server.process.returncode}:\n"
                                     f"{server.log_of_this_start()[-1500:]}")

    # Members

    def ask_leader(self, method, path, body=None, timeout=3):
        """What the leader says, or None when there is none to be found."""
        leader = self.find_leader()
        return leader and leader.call(method, path, body, timeout=timeout)

    def remove(self, name, seconds):
        """True once the leader says that *name* is no member."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = self.ask_leader("DELETE", f"/members/{name}?timeout=2s")
            if answer and (answer.status == 200 or answer.code == "not_found"):
                return True
            time.sleep(POLL_SECONDS)
        return False

    def replace(self, server):
        """Where *server* was, which is no member any more, a new one joins, with empty files and another name."""
        self.terminate(server)
        shutil.rmtree(server.path, ignore_errors=True)
        with self._lock:
            self._numbers += 1
            new = self._new(self.network.host_of(server), f"n{self._numbers}")
            self._claims.add(new.name)
            self.servers[self.servers.index(server)] = new
            self.ended.append(server)
        try:
            self.bring_up([new], join=[other for other in self.servers if other is not new])
        finally:
            with self._lock:
                self._claims.discard(new.name)

    def restore_members(self, seconds):
        """All servers are voters, and nobody else is a member."""
        def restored():
            answer = self.ask_leader("GET", "/members")
            if not answer or answer.status != 200:
                return False
            members = {member["name"]: member for member in json.loads(answer.body)["members"]}
            for name in members.keys() - {server.name for server in self.servers}:
                self.ask_leader("DELETE", f"/members/{name}?timeout=2s")
            lacking = [server for server in self.servers if not members.get(server.name, {}).get("voter")]
            for server in lacking:
                self.make_member(server)
            return not lacking and len(members) == len(self.servers)
        wait_until(restored, "all are voters again", seconds)

    def make_member(self, server, voter=True):
        more = {} if voter else {"voter": False}
        body = json.dumps({"name": server.name, "connectionString": f"http://{server.address}", **more})
        return self.ask_leader("POST", "/join?timeout=2s", body, timeout=5)

    # Clocks

    def set_clock(self, server, added, speed):
        path = self.clock_of(self.disk_of(server))
        path.with_suffix(".new").write_text(f"{added:.3f} {speed:g}")
        path.with_suffix(".new").rename(path)
