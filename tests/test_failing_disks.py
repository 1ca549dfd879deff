"""Disks that fail under running servers, and are well again: each cell of the matrix of faults, and what the user sees of it.

A server whose disk fails is silent: it says why in /readyz and in its log, acknowledges nothing and leads nobody; the others go on. When
the disk is well again it is back by itself, and nothing that was acknowledged is lost. (What is wrong with the files at a start is in
test_damaged_files.py and test_recovery.py, full and slow disks are in test_cluster_faults.py.)
"""

import os
import re
import resource
import shutil
import subprocess

import pytest

from chaos.world import Disk as MemoryDisk
from cluster import UNHURRIED, Cluster, Strace, Writers, holds_for, needs_root, needs_strace, wait_until
from crashes.real import Disk as RealDisk
from crashes.real import cut_power, private_mounts

FAILED = re.compile(r"/raft\.(?:db|promised): (disk I/O error|Input/output error|File too large|Operation not permitted)$", re.M)
VALUE = bytes(range(256)) * 400  # 100 KiB: large enough to need new room on a disk

needs_ext4 = pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, ("mkfs.ext4", "chattr"))),
                                reason="needs root and e2fsprogs")

pytestmark = pytest.mark.cluster


class Disks:
    """File systems to break, mounted where only this test and its processes see them."""

    def __init__(self, directory):
        self._directory, self._made = directory, []

    def in_memory(self, name, mebibytes=12):
        disk = MemoryDisk(self._directory / f"disk-{name}", mebibytes)
        self._made.append(disk.unmount)
        return disk

    def real(self, name):
        """An ext4."""
        (self._directory / name).mkdir()
        disk = RealDisk(self._directory / name)
        self._made.append(disk.remove)
        return disk

    def remove(self):
        for unmount in self._made:
            unmount()


@pytest.fixture
def disks(tmp_path):
    with private_mounts():
        made = Disks(tmp_path)
        yield made
        made.remove()


def cluster_on(tmp_path, disks, flags=()):
    """A cluster of as many servers as there are *disks*, each on its own; None is no disk of its own."""
    cluster = Cluster(tmp_path, start=False, flags=flags)
    try:
        for number, disk in enumerate(disks, 1):
            cluster.new(path=disk and disk.path / "data").start(join=cluster[1] if number > 1 else None)
        cluster.wait_voters(len(disks))
    except BaseException:
        cluster.close()
        raise
    return cluster


def why(server):
    """Why it is not ready, as /readyz says it; "" when it is."""
    answer = server.call("GET", "/readyz", timeout=5)
    return "" if answer.status == 200 else answer.body.decode() or str(answer)


def only_complaint(server):
    """The one line with which it ended."""
    complaint, = [line for line in server.log_of_this_start().splitlines() if line.startswith("raftd: ")]
    return complaint


def the_one(cluster, role):
    leader = cluster.leader()
    return leader if role == "leader" else cluster.followers(leader)[0]


def assert_nothing_is_lost(cluster, *all_writers):
    """All have the same, and all that was acknowledged is in it: in the files, after an end in order."""
    first, *others = cluster.data_of_each().values()
    assert [key for writers in all_writers for key in writers.missing_in(first)] == []
    assert all(other == first for other in others)


# Errors of the system calls of a live server


@needs_strace
@pytest.mark.parametrize("calls", ["fdatasync,fsync", "pwrite64"])
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_calls_that_fail_for_a_while(tmp_path, role, calls):
    with Cluster(tmp_path) as cluster:
        server = the_one(cluster, role)
        others = [other for other in cluster.servers if other is not server]
        with Writers(cluster.servers, 2) as writers:
            with Strace(server, calls, "error=EIO"):
                wait_until(lambda: FAILED.search(why(server)), "it says what is wrong")
                assert server.put("k", b"x").code == "storage_failed"
                assert server.get("k").code == "storage_failed"
                assert server.get("k", "?level=stale").status == 404
                writers.wait_for_more(50)  # of the others
                assert cluster.leader(others) is not server and why(server)
            wait_until(lambda: server.ready, "it is back by itself")
            writers.wait_for_more(50)
        assert "the log cannot be written" in server.log() and "the log is open again" in server.log()
        assert_nothing_is_lost(cluster, writers)


@needs_strace
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_reads_that_fail_are_no_missing_keys(tmp_path, role):
    """More is asked for than SQLite keeps in its caches, while nothing can be read from the disk."""
    with Cluster(tmp_path) as cluster:
        values = {f"k{number}": b"%d" % number + VALUE for number in range(100)}
        for key, value in values.items():
            cluster.write(key, value)
        cluster.wait_converged()
        server = the_one(cluster, role)
        with Strace(server, "pread64", "error=EIO"):
            answers = {key: server.get(key, "?level=stale") for key in values}
        assert all(answer.body == values[key] for key, answer in answers.items() if answer.status == 200)
        refused = [answer for answer in answers.values() if answer.status != 200]
        assert len(refused) > 50 and {(answer.status, answer.code) for answer in refused} == {(500, "storage_failed")}
        assert all(b"state.db: " in answer.body for answer in refused)
        wait_until(lambda: server.ready, "it is ready")
        assert all(server.get(key).body == value for key, value in values.items())


@needs_strace
def test_a_disk_on_which_nothing_works(tmp_path):
    """It may take what cannot be read for damaged, and end with one line that says so: the next start shows that nothing is."""
    with Cluster(tmp_path) as cluster:
        server = cluster.leader()
        with Writers(cluster.servers, 2) as writers:
            with Strace(server, "pread64,pwrite64,fdatasync,fsync", "error=EIO"):
                wait_until(lambda: not server.running or re.search(r"/raft\.(db|promised): ", why(server)), "it says what is wrong")
                writers.wait_for_more(50)
            wait_until(lambda: not server.running or server.ready, "it is back by itself, or has ended")
            if not server.running:
                assert server.exit_status() == 1 and only_complaint(server)
                server.start()
            writers.wait_for_more(50)
        assert_nothing_is_lost(cluster, writers)


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_limit_on_the_size_of_files(tmp_path, role):
    """No multiple of the size of a page: the last write that fits is a short one."""
    with Cluster(tmp_path) as cluster:
        server = the_one(cluster, role)
        pid, (soft, hard) = server.process.pid, resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        with Writers(cluster.servers, 2, size=50_000, pause=0.05) as writers:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (600_001, hard))
            wait_until(lambda: FAILED.search(why(server)), "it says what is wrong")
            writers.wait_for_more(20)  # of the others
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
            wait_until(lambda: server.ready, "it is back by itself")
            writers.wait_for_more(20)
        assert "the log cannot be written" in server.log()
        assert_nothing_is_lost(cluster, writers)


@needs_strace
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_writes_that_take_nothing(tmp_path, role):
    """The shortest of short writes."""
    with Cluster(tmp_path) as cluster:
        server = the_one(cluster, role)
        with Writers(cluster.servers, 2) as writers:
            with Strace(server, "pwrite64", "retval=0"):
                wait_until(lambda: "raft.db: database or disk is full" in why(server), "it says what is wrong")
                wait_until(lambda: (refused := server.put("k", b"x")).code == "storage_failed" and refused.status == 507, "it says so")
                writers.wait_for_more(50)
            wait_until(lambda: server.ready, "it is back by itself")
            writers.wait_for_more(50)
        assert_nothing_is_lost(cluster, writers)


@needs_strace
def test_writes_that_do_not_happen_and_say_that_they_did(tmp_path):
    """Nobody can notice that of a server that runs. But its next start does, and refuses, and the cluster loses nothing."""
    with Cluster(tmp_path) as cluster:
        server = the_one(cluster, "follower")
        with Writers(cluster.servers, 2) as writers:
            with Strace(server, "pwrite64", "retval=100:when=10..13", [server.path / "raft.db-wal"]) as strace:
                wait_until(lambda: strace.faults >= 4, "writes of one thread, of which strace counts each by itself, have not happened")
            writers.wait_for_more(20)
            server.end()
            server.start(wait=False)
            assert server.exit_status() == 1
            assert "damaged" in only_complaint(server)
            shutil.rmtree(server.path)
            assert cluster.leader().call("DELETE", f"/members/{server.name}").status == 200
            server.start(join=cluster.leader())
        assert_nothing_is_lost(cluster, writers)


# Files and directories that may not be changed, or are gone


def chattr(change, *paths):
    subprocess.run(["chattr", change, *paths], check=True)


@needs_ext4
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_files_that_become_immutable(tmp_path, disks, role):
    with cluster_on(tmp_path, [disks.real("n1"), disks.real("n2"), None]) as cluster:
        server = the_one(cluster, role)
        with Writers(cluster.servers, 2) as writers:
            files = [file for file in server.path.iterdir() if not file.name.endswith("-shm")]
            chattr("+i", *files)
            wait_until(lambda: FAILED.search(why(server)), "it says what is wrong")
            assert server.put("k", b"x").code == "storage_failed"
            assert server.get("k", "?level=stale").status == 404
            writers.wait_for_more(50)
            assert why(server) and not server.leads
            chattr("-i", *files)
            wait_until(lambda: server.ready, "it is back by itself")
            writers.wait_for_more(50)
        assert_nothing_is_lost(cluster, writers)


@needs_ext4
def test_a_directory_that_becomes_immutable(tmp_path, disks):
    """Nothing needs another file as long as nobody joins: it goes on, ends in order, and starts again."""
    with cluster_on(tmp_path, [disks.real("n1"), None, None], UNHURRIED) as cluster:
        server = cluster[1]
        cluster.hand_over(server)
        with Writers(cluster.servers, 2) as writers:
            chattr("+i", server.path)
            writers.wait_for_more(100)
            assert server.leads and server.ready
            assert server.terminate() == 0
            server.start()
            wait_until(lambda: server.ready, "it is back")
            chattr("-i", server.path)
            writers.wait_for_more(50)
        assert_nothing_is_lost(cluster, writers)


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_directory_that_is_deleted(tmp_path, role):
    """SQLite would go on in files that have no name. It ends, and what comes in its place with empty files has to be taken in anew."""
    with Cluster(tmp_path) as cluster:
        server = the_one(cluster, role)
        with Writers(cluster.servers, 2) as writers:
            writers.wait_for_more(20)
            shutil.rmtree(server.path)
            assert server.exit_status() == 1
            assert "raft.db is missing; remove this node" in only_complaint(server)
            writers.wait_for_more(50)
            server.start(join=cluster.running, wait=False)
            assert server.exit_status() == 1
            assert "is a member with other files" in only_complaint(server) and not server.path.exists()
            assert cluster.leader().call("DELETE", f"/members/{server.name}").status == 200
            server.start(join=cluster.running)
        assert_nothing_is_lost(cluster, writers)


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_an_end_in_order_without_a_directory(tmp_path, role):
    """Before any write has noticed. A leader that hands over has something to write, and may notice then."""
    with Cluster(tmp_path) as cluster:
        server = the_one(cluster, role)
        cluster.write("k", b"x")
        cluster.wait_converged()
        shutil.rmtree(server.path)
        if server.terminate() != 0:
            assert role == "leader" and "raft.db is missing" in only_complaint(server)
        assert not server.path.exists()
        assert cluster.leader().get("k").body == b"x"


def take_away(file, another=None):
    """*file* gets another name, and a copy of *another* its own. Returns how to put it back."""
    moved, copied = file.with_suffix(".moved"), file.with_suffix(".copy")
    if another:
        shutil.copy(another, copied)
    file.rename(moved)
    if another:
        copied.rename(file)
    return lambda: moved.replace(file)


@pytest.mark.parametrize("role, exchanged", [("leader", True), ("follower", False)], ids=["exchanged", "gone"])
def test_a_log_that_is_taken_away(tmp_path, role, exchanged):
    """It ends. Nothing of the log has gone into the other file: the right one, put back, has everything."""
    with Cluster(tmp_path) as cluster:
        server = the_one(cluster, role)
        other = next(other for other in cluster.servers if other is not server)
        with Writers(cluster.servers, 2) as writers:
            writers.wait_for_more(20)
            put_back = take_away(server.path / "raft.db", other.path / "raft.db" if exchanged else None)
            assert server.exit_status() == 1
            assert ("was exchanged" if exchanged else "is missing") in only_complaint(server)
            writers.wait_for_more(20)
            put_back()
            server.start()
            writers.wait_for_more(20)
        assert_nothing_is_lost(cluster, writers)


@pytest.mark.parametrize("role, exchanged", [("leader", True), ("follower", False)], ids=["exchanged", "gone"])
def test_a_state_that_is_taken_away(tmp_path, role, exchanged):
    """It is silent until the right file has its name again."""
    with Cluster(tmp_path) as cluster:
        server = the_one(cluster, role)
        other = next(other for other in cluster.servers if other is not server)
        cluster.write("k", b"before")
        cluster.wait_converged()
        with Writers(cluster.servers, 2) as writers:
            put_back = take_away(server.path / "state.db", other.path / "state.db" if exchanged else None)
            complaint = "another file has taken its place" if exchanged else "No such file or directory"
            wait_until(lambda: complaint in why(server), "it says what is wrong")
            assert server.get("k").code == "storage_failed"
            writers.wait_for_more(50)
            assert not server.leads and complaint in why(server)
            cluster.write("k", b"after")
            stale = server.get("k", "?level=stale")
            assert stale.body == b"before" or stale.code == "storage_failed"
            put_back()
            wait_until(lambda: server.ready, "it is back by itself")
            assert server.get("k").body == b"after"
            writers.wait_for_more(20)
        assert_nothing_is_lost(cluster, writers)


# No room


@needs_root
def test_no_inodes_for_a_snapshot(tmp_path, disks):
    """Neither at the leader that has to make a copy of its state, nor at the one that joins: it waits, and is in when there are some."""
    sending, receiving = disks.in_memory("n1", 300), disks.in_memory("n2", 200)
    with Cluster(tmp_path, start=False) as cluster:
        leader, joiner = cluster.new(path=sending.path / "data").start(), cluster.new(path=receiving.path / "data")
        values = {f"k{number}": b"%d" % number + 10 * VALUE for number in range(40)}  # more than the log keeps
        for key, value in values.items():
            cluster.write(key, value)
        wait_until(lambda: leader.status()["snapshot_index"], "the log was compacted")
        sending.take_inodes()
        joiner.start(join=leader, wait=False)
        wait_until(lambda: "no snapshot for a follower" in leader.log(), "the leader has tried")
        assert leader.ready and leader.put("meanwhile", b"x").status == 200
        receiving.take_inodes()
        sending.give_inodes()
        wait_until(lambda: "a chunk of a snapshot cannot be stored" in joiner.log(), "the joiner has tried")
        assert "Listening at" not in joiner.log() and leader.ready
        receiving.give_inodes()
        joiner.wait_listening()
        data = cluster.data_of_each()
        assert data["n1"] == data["n2"] == values | {"meanwhile": b"x"}


@needs_root
def test_full_disks_of_all(tmp_path, disks):
    """At the same time: each says so, writes are refused, and when there is room again they go on as if nothing had been."""
    small = [disks.in_memory(name) for name in ("n1", "n2", "n3")]
    with cluster_on(tmp_path, small) as cluster:
        with Writers(cluster.servers, 2, size=20_000, pause=0.02) as writers:
            writers.wait_for_more(20)
            for disk in small:
                disk.fill(0)

            def all_say_so():
                """One that has had nothing to write since then says that the others do not answer."""
                reasons = [why(server) for server in cluster.servers]
                full = ["is full" in reason for reason in reasons]
                return sum(full) >= 2 and all(is_full or "out of reach" in reason for is_full, reason in zip(full, reasons, strict=True))
            wait_until(all_say_so, "each says why it is not ready")
            holds_for(2, lambda: all(server.get("k", "?level=stale").status == 404 for server in cluster.servers), "all can be read")
            assert writers.refused["storage_failed"]
            for disk in small:
                disk.make_room()
            writers.wait_for_more(50)
            for server in cluster.servers:
                wait_until(lambda server=server: server.ready, f"{server} is back by itself")
        assert [server.log().count("Listening at") for server in cluster.servers] == [1, 1, 1]
        assert_nothing_is_lost(cluster, writers)


# No power


@needs_ext4
def test_the_leader_comes_back_last_after_a_power_cut_of_all(tmp_path, disks):
    """What it has acknowledged is on the disks of the others, too (fault 45)."""
    real = [disks.real(name) for name in ("n1", "n2", "n3")]
    with cluster_on(tmp_path, real) as cluster:
        before = [cut_and_start_the_leader_last(cluster, real, f"cut{number}-") for number in range(2)]
        assert_nothing_is_lost(cluster, *before)


def cut_and_start_the_leader_last(cluster, disks, prefix):
    """Returns the Writers that were at work."""
    leader = cluster.leader()
    followers = cluster.followers(leader)
    with Writers(cluster.servers, 4, prefix=prefix) as writers:
        writers.wait_for_more(200)
        cut_power(cluster.servers, disks)
    cluster.restart(*followers)
    successor = cluster.leader()
    assert [write.key for write in writers.acknowledged if successor.value_of(write.key) != write.value] == []
    cluster.write(f"{prefix}after", b"x")
    cluster.restart(leader)
    wait_until(lambda: leader.ready, "the one that led is back")
    return writers
