"""Real clusters on bad disks and among bad clients: full, failing, slow disks; idle, slow, hostile connections; no handles left."""

import shutil
import socket
import subprocess
import threading
import time

import pytest

from cluster import (ELECTION_SECONDS, SLOWER, UNHURRIED, Client, Cluster, ControlGroup, RegisterClients, Writers, call, holds_for,
                     in_threads, needs_cgroups, needs_root, needs_strace, the_fault_lasts, wait_until)

KIB = 1 << 10
VALUE = bytes(range(256)) * 400  # 100 KiB: large enough to need new room on a disk

pytestmark = pytest.mark.cluster


# Full disks


@pytest.fixture
def small_disk(tmp_path):
    """Makes file systems of a size, mounted under *tmp_path*; they are gone after the test."""
    mounted = []

    def make(name, mebibytes=12):
        path = tmp_path / f"disk-{name}"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "raftd-test", path], check=True)
        mounted.append(path)
        return path
    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(disk, leave=64 * KIB):
    """Take all the room of *disk* but a little."""
    free = shutil.disk_usage(disk).free
    with open(disk / "filler", "wb") as filler:
        filler.write(bytes(max(0, free - leave)))


def make_room(disk):
    (disk / "filler").unlink()


def cluster_with_small_disks(tmp_path, small_disk, *numbers, flags=()):
    """A cluster of three, of which those of *numbers* have a small disk; and the disks."""
    cluster, disks = Cluster(tmp_path, start=False, flags=flags), {number: small_disk(f"n{number}") for number in numbers}
    for number in (1, 2, 3):
        server = cluster.new(path=disks[number] / "data" if number in disks else None)
        server.start(join=cluster[1] if number > 1 else None)
    cluster.wait_voters(3)
    return cluster, disks


@pytest.mark.root
@needs_root
def test_full_disk_of_a_follower_is_its_own_trouble(tmp_path, small_disk):
    cluster, disks = cluster_with_small_disks(tmp_path, small_disk, 2, flags=UNHURRIED)
    with cluster:
        leader = cluster[1]
        cluster.hand_over(leader)
        fill(disks[2])
        accepted = [key for key in (f"large{number}" for number in range(10)) if leader.put(key, VALUE).status == 200]
        assert len(accepted) == 10
        wait_until(lambda: "cannot be written" in cluster[2].log(), "it has noticed")
        with Writers([leader], 2) as writers:
            the_fault_lasts.wait(2)
            writers.wait_for_more(20)
        assert leader.leads and writers.nothing_held_up
        make_room(disks[2])
        cluster.wait_converged()
        data = cluster.data_of_each()
        assert data["n2"] == data["n1"] and not writers.missing_in(data["n2"])


@pytest.mark.root
@needs_root
def test_full_disk_of_the_leader_moves_leadership(tmp_path, small_disk):
    cluster, disks = cluster_with_small_disks(tmp_path, small_disk, 1)
    with cluster:
        leader, answers = cluster[1], {}

        def meet_the_full_disk():
            """True if a write was refused for it: the others may have it on their disks, and it be answered, before this one fails."""
            fill(disks[1])
            for number in range(len(answers), len(answers) + 100):
                if not leader.leads:
                    break
                answers[f"large{number}"] = leader.put(f"large{number}", VALUE)
            if 507 in {answer.status for answer in answers.values()}:
                return True
            make_room(disks[1])
            wait_until(lambda: leader.ready, "it is back")
            cluster.hand_over(leader)
            return False
        wait_until(meet_the_full_disk, "a write is refused")
        assert {answer.status for answer in answers.values()} <= {200, 507, 400, 503}, answers
        failed = next(answer for answer in answers.values() if answer.status == 507)
        assert (failed.code, failed.retry) == ("storage_failed", "maybe")
        cluster.write("elsewhere", b"x", among=[cluster[2], cluster[3]])
        assert leader.get("large0", "?level=stale").status in (200, 404)
        # If what is committed still finds room, opening the log again has brought it back by itself: then it must say so truly.
        assert not leader.ready or leader.get("elsewhere").body == b"x"
        make_room(disks[1])
        wait_until(lambda: leader.get("elsewhere").body == b"x", "it recovers by itself")
        data = cluster.data_of_each()
        assert data["n1"] == data["n2"] == data["n3"]
        assert all(data["n1"].get(key) == VALUE for key, answer in answers.items() if answer.status == 200)


@pytest.mark.root
@needs_root
def test_full_disk_of_a_server_alone(tmp_path, small_disk):
    """Refused with 507, reads go on, and when there is room again so do writes; nothing is lost at kill -9."""
    disk = small_disk("n1")
    with Cluster(tmp_path, start=False) as cluster:
        server = cluster.new(path=disk / "data").start()
        cluster.write("first", b"x")
        server.status()  # what was answered is applied
        fill(disk)
        answers = {}
        for number in range(40):
            answers[f"large{number}"] = server.put(f"large{number}", VALUE)
        failed = [answer for answer in answers.values() if answer.status != 200]
        assert failed and all(answer.status in (507, 400, 503) for answer in failed), failed
        assert any(answer.code == "storage_failed" for answer in failed)
        assert server.get("first", "?level=stale").body == b"x"
        make_room(disk)
        cluster.write("after", b"x")
        accepted = [key for key, answer in answers.items() if answer.status == 200]
        assert all(server.get(key).body == VALUE for key in accepted)
        server.kill()
        server.start()
        cluster.leader()
        assert all(server.get(key).body == VALUE for key in accepted)


@pytest.mark.root
@needs_root
def test_full_disks_of_all_followers_and_then_the_leader_dies(tmp_path, small_disk):
    """The original loses here what it has acknowledged."""
    cluster, disks = cluster_with_small_disks(tmp_path, small_disk, 2, 3)
    with cluster:
        leader, accepted = cluster[1], []
        cluster.hand_over(leader)
        for disk in disks.values():
            fill(disk)
        for number in range(100):
            answer = leader.put(f"large{number}", VALUE, "?timeout=2s")
            if answer.status != 200:
                break
            accepted.append(f"large{number}")
        assert answer.status in (503, 504, 400), answer
        leader.kill()
        for disk in disks.values():
            make_room(disk)
        successor = cluster.leader()
        assert [key for key in accepted if successor.value_of(key) != VALUE] == []
        cluster.restart(leader)
        data = cluster.data_of_each()
        assert data["n1"] == data["n2"] == data["n3"]


@pytest.mark.root
@needs_root
def test_a_full_disk_at_the_start_is_one_clear_line(tmp_path, small_disk):
    disk = small_disk("n1", 1)
    with Cluster(tmp_path, start=False) as cluster:
        server = cluster.new(path=disk / "data")
        fill(disk, leave=0)
        server.start(wait=False)
        assert server.exit_status() == 1
        lines = [line for line in server.log().splitlines() if line.startswith("raftd: ")]
        assert len(lines) == 1 and "Traceback" not in server.log(), server.log()
        make_room(disk)
        server.start()
        cluster.write("a", b"x")


@pytest.mark.root
@needs_root
def test_a_disk_that_may_not_be_written_at_the_start_is_one_clear_line(tmp_path, small_disk):
    """A file system that was mounted again for reading only, as the kernel does after errors. Nothing is lost by it."""
    disk = small_disk("n1")
    with Cluster(tmp_path, start=False) as cluster:
        server = cluster.new(path=disk / "data").start()
        cluster.write("a", b"x")
        assert server.terminate() == 0
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        server.start(wait=False)
        assert server.exit_status() == 1
        lines = [line for line in server.log_of_this_start().splitlines() if line.startswith("raftd: ")]
        assert len(lines) == 1 and "read-only" in lines[0], server.log_of_this_start()
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        server.start()
        cluster.leader()
        assert server.get("a").body == b"x"


@pytest.mark.root
@needs_root
def test_no_room_for_another_file_is_one_clear_line(tmp_path, small_disk):
    """All inodes are taken."""
    disk = small_disk("n1")
    subprocess.run(["mount", "-o", "remount,nr_inodes=2", disk], check=True)
    with Cluster(tmp_path, start=False) as cluster:
        server = cluster.new(path=disk / "data")
        server.start(wait=False)
        assert server.exit_status() == 1
        lines = [line for line in server.log().splitlines() if line.startswith("raftd: ")]
        assert len(lines) == 1 and "no inode is free" in lines[0], server.log()
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", disk], check=True)
        server.start()
        cluster.write("a", b"x")


# Failing and slow disks


def inject(what):
    """A command that runs another one with a fault in its fdatasync."""
    return ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", f"inject=fdatasync:{what}"]


@needs_strace
@pytest.mark.parametrize("when", ["8..9", "20..20", "21..24", "30..33"])
def test_failed_fsync_never_acknowledges_what_is_lost(tmp_path, when):
    """A server alone whose fsync fails, and succeeds the next time without having written: never believe that."""
    with Cluster(tmp_path, 1) as cluster:
        server = cluster[1]
        assert server.terminate() == 0
        server.start(prefix=inject(f"error=EIO:when={when}"), wait=False)
        wait_until(lambda: not server.running or server.put("probe", b"x", timeout=2).status == 200, "it takes writes, or stops")
        if server.running:
            with Writers([server], 4, prefix=f"eio{when[:2]}-") as writers:
                wait_until(lambda: "cannot be written" in server.log() or len(writers.acknowledged) > 2000, "the fault has happened")
                writers.wait_for_more(20)
            server.kill()
            server.start()
            cluster.leader()
            assert not writers.missing_in(cluster.data_of_each()["n1"])
            assert "cannot be written" in server.log(), "the fault was not noticed"


@needs_strace
def test_failed_fsync_of_a_leader_of_three(tmp_path):
    """It falls silent and another leads; it comes back by itself."""
    with Cluster(tmp_path) as cluster:
        failing = cluster[1]
        assert failing.terminate() == 0
        cluster.leader()
        failing.start(prefix=inject("error=EIO:when=200..203"))
        wait_until(lambda: failing.ready, "it is back")
        cluster.hand_over(failing)
        with Writers(cluster.servers, 4) as writers:
            wait_until(lambda: "cannot be written" in failing.log(), "the fault has happened")
            writers.gap_after(time.monotonic())
            wait_until(lambda: "is open again" in failing.log() or "can be written again" in failing.log(), "it has recovered")
            writers.wait_for_more(50)
        data = cluster.data_of_each()
        assert all(not writers.missing_in(found) for found in data.values())
        assert data["n1"] == data["n2"] == data["n3"]


def wait_until_it_tells_of_its_disk(server):
    """/readyz and the log say that the disk hangs, while it does."""
    def says():
        answer = server.call("GET", "/readyz")
        return answer.status == 503 and answer.body.startswith(b"the disk has not answered for ")
    wait_until(says, "/readyz says that the disk hangs")
    wait_until(lambda: "the disk does not answer" in server.log_of_this_start(), "the log says it, too")
    assert "the disk answers again" not in server.log_of_this_start(), "it was told too late"


@needs_strace
def test_stalled_disk_of_the_leader_moves_leadership(tmp_path):
    """A leader whose write takes longer than an election timeout stops heartbeating; it must not hold up the others."""
    with Cluster(tmp_path, flags=SLOWER) as cluster:
        stalling = cluster[1]
        assert stalling.terminate() == 0
        cluster.leader()
        stalling.start(prefix=inject("delay_enter=8000000:when=200..200"))
        wait_until(lambda: stalling.ready, "it is back")
        cluster.hand_over(stalling)
        with Writers([cluster[2], cluster[3], stalling], 4) as writers:
            wait_until(lambda: "disk has not answered" in stalling.log(), "the disk stalls")
            stalled = time.monotonic()
            wait_until_it_tells_of_its_disk(stalling)
            gap = writers.gap_after(stalled)
            wait_until(lambda: stalling.ready, "it is back")
        assert gap < 6 + writers.noise_seconds
        wait_until(lambda: "the disk answers again" in stalling.log_of_this_start(), "the log says that it is over, too")
        data = cluster.data_of_each()
        assert all(not writers.missing_in(found) for found in data.values())


@needs_strace
def test_stalled_disk_of_a_follower_is_told_and_costs_no_election(tmp_path):
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        leader = cluster.leader()
        stalling = cluster.followers(leader)[0]
        assert stalling.terminate() == 0
        stalling.flags = ()  # after an election timeout it tells of its disk
        stalling.start(prefix=inject("delay_enter=6000000:when=200..200"))
        wait_until(lambda: stalling.ready, "it is back")
        term = leader.status()["term"]
        with Writers([leader], 4) as writers:
            wait_until_it_tells_of_its_disk(stalling)
            writers.wait_for_more(100)
            wait_until(lambda: stalling.ready, "it is back")
        wait_until(lambda: "the disk answers again" in stalling.log_of_this_start(), "the log says that it is over, too")
        assert leader.status()["term"] == term
        data = cluster.data_of_each()
        assert all(not writers.missing_in(found) for found in data.values())


@needs_strace
def test_slow_disk_of_a_follower_slows_nobody(tmp_path):
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        leader = cluster.leader()
        slow = cluster.followers(leader)[0]
        slow.terminate()
        slow.start(prefix=inject("delay_enter=300000"), wait=False)
        slow.wait_listening(60)
        term = leader.status()["term"]
        with Writers([leader], 4) as writers:
            writers.wait_for_more(200)
            the_fault_lasts.wait(2)
            writers.wait_for_more(100)
        assert writers.nothing_held_up
        assert leader.status()["term"] == term
        cluster.wait_converged()


def test_files_removed_under_a_running_server(tmp_path):
    """SQLite goes on writing into a file that has no name any more: nothing may be acknowledged there."""
    with Cluster(tmp_path, 1) as cluster:
        server = cluster[1]
        assert server.put("before", b"x").status == 200
        for file in server.path.iterdir():
            file.unlink()
        assert server.put("after", b"x").status != 200


def test_a_damaged_log_is_refused_and_the_cluster_goes_on(tmp_path):
    """A flipped byte in the middle of the log: said at the start, in one line; the others lose nothing; a new server takes its place."""
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        leader = cluster.leader()
        damaged = cluster.followers(leader)[0]
        for number in range(50):
            assert leader.put(f"k{number}", f"value-of-{number}".encode() * 20).status == 200
        cluster.wait_converged()
        assert damaged.terminate() == 0
        data = bytearray((damaged.path / "raft.db").read_bytes())
        at = data.index(b"value-of-25")
        data[at] ^= 1
        (damaged.path / "raft.db").write_bytes(data)
        damaged.start(wait=False)
        assert damaged.exit_status() == 1
        last = damaged.log_of_this_start().splitlines()[-1]
        assert last.startswith("raftd: ") and "damaged" in last and "raft.db" in last
        assert leader.put("still", b"works").status == 200
        for file in damaged.path.iterdir():
            file.unlink()
        assert leader.call("DELETE", f"/members/{damaged.name}").status == 200
        damaged.start(join=leader)
        data = cluster.data_of_each()
        assert data["n1"] == data["n2"] == data["n3"] and len(data["n1"]) == 51


def test_the_same_damage_on_a_majority_elects_nobody(tmp_path):
    """Two logs have the same flipped byte: those two refuse to start, and the third neither leads alone nor answers from what is left."""
    with Cluster(tmp_path) as cluster:
        leader = cluster.leader()
        assert leader.put("k", b"value-that-is-damaged" * 20).status == 200
        cluster.wait_converged()
        whole, *damaged = cluster.servers
        for server in cluster.servers:
            assert server.terminate() == 0
        for server in damaged:
            data = bytearray((server.path / "raft.db").read_bytes())
            data[data.index(b"value-that-is-damaged")] ^= 1
            (server.path / "raft.db").write_bytes(data)
        whole.start()
        for server in damaged:
            server.start(wait=False)
            assert server.exit_status() == 1
            assert "damaged" in server.log_of_this_start().splitlines()[-1]
        holds_for(3 * ELECTION_SECONDS, lambda: whole.status()["role"] != "leader", "nobody leads")
        assert whole.get("k", "?timeout=1s").status == 503 and whole.put("k", b"other", "?timeout=1s").status != 200
        assert whole.get("k", "?level=stale").body == b"value-that-is-damaged" * 20


# Clients that are many, slow or hostile


def open_sockets(server, count, greeting=b""):
    """So many connections that say *greeting* and no more."""
    host, port = server.address.split(":")
    sockets = []
    for _ in range(count):
        idle = socket.create_connection((host, int(port)), 5)
        idle.sendall(greeting)
        sockets.append(idle)
    return sockets


@needs_strace
@pytest.mark.slow
def test_blocked_clients_do_not_keep_peers_out(tmp_path):
    """300 idle connections at every server, and 64 clients whose writes wait for slow disks: no election, and who is honest is served."""
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        for server in cluster.servers:
            server.terminate()
        for server in cluster.servers:
            server.start(prefix=inject("delay_enter=150000:when=12+"), wait=False)
        for server in cluster.servers:
            server.wait_listening(60)
        leader = cluster.leader()
        cluster.wait_voters(3)
        terms = cluster.terms()
        sockets = [idle for server in cluster.servers for idle in open_sockets(server, 300)]
        blocked = [Client(server.address) for server in cluster.servers for _ in range(64)]
        stopping, seconds = threading.Event(), []

        def wait_for_writes(client):
            count = 0
            while not stopping.is_set():
                path = f"/db/{id(client)}-{count}?timeout=10s" if client.address == leader.address else "/db/x"
                client.call("POST" if client.address == leader.address else "GET", path, b"x", timeout=15)
                count += 1
        threads = in_threads(wait_for_writes, blocked)
        for number in range(5):
            began = time.monotonic()
            assert leader.put(f"honest{number}", b"x").status == 200
            assert leader.call("GET", "/livez").status == 200
            seconds.append(time.monotonic() - began)
        stopping.set()
        for thread in threads:
            thread.join()
        for idle in sockets:
            idle.close()
        assert cluster.terms() == terms, "an election was held"
        assert max(seconds) < 5, seconds


@pytest.mark.root
@needs_cgroups
def test_no_threads_left(tmp_path):
    """Connections of peers, and all else that needs a thread, fail for a while; then all is as before, and nothing was lost."""
    with Cluster(tmp_path) as cluster:
        leader = cluster.leader()
        with Writers(cluster.servers, 2) as writers:
            group = ControlGroup(leader, "pids", 8)
            for follower in cluster.followers(leader):
                follower.kill()  # the connections that they make anew want threads
                follower.start()
            call(leader.address, "GET", "/livez", timeout=2)
            writers.gap_after(time.monotonic())
            assert leader.running
            group.end()
            wait_until(lambda: leader.ready, "it has recovered")
            writers.wait_for_more(50)
        data = cluster.data_of_each()
        assert data["n1"] == data["n2"] == data["n3"] and not writers.missing_in(data["n1"])


# Machines that are short of something


@pytest.mark.root
@needs_cgroups
def test_killed_for_want_of_memory(tmp_path):
    """By the kernel, in the middle of writes: like any kill -9."""
    with Cluster(tmp_path) as cluster:
        leader = cluster.leader()
        with Writers(cluster.servers, 4) as writers:
            writers.wait_for_more(50)
            group = ControlGroup(leader, "memory", 6 << 20)
            stopping = threading.Event()

            def swell(_):
                while not stopping.is_set() and leader.running:
                    leader.put("large", bytes(1 << 20), timeout=2)
            threads = in_threads(swell, range(16))
            assert leader.exit_status() == -9
            stopping.set()
            for thread in threads:
                thread.join()
            writers.gap_after(time.monotonic())
            group.end()
            leader.start()
            wait_until(lambda: leader.ready, "it is back")
        data = cluster.data_of_each()
        assert data["n1"] == data["n2"] == data["n3"] and not writers.missing_in(data["n1"])


@pytest.mark.root
@needs_cgroups
def test_a_leader_short_of_cpu_causes_no_storm_of_elections(tmp_path):
    """A twentieth of a core: it may lose its leadership, once or twice, but the others go on, and nothing is wrong."""
    with Cluster(tmp_path) as cluster:
        leader, term = cluster.leader(), max(cluster.terms())
        with RegisterClients(cluster.servers) as clients, Writers(cluster.servers, 2, pause=0.01) as writers:
            group = ControlGroup(leader, "cpu", 5)
            the_fault_lasts.wait(6)
            writers.gap_after(time.monotonic())
            group.end()
            writers.wait_for_more(50)
        assert max(cluster.terms()) <= term + 3, "elections again and again"
        assert clients.violations() == []
        cluster.wait_converged()


def test_an_idle_cluster_holds_no_election(tmp_path):
    with Cluster(tmp_path, flags=UNHURRIED) as cluster:
        leader, terms = cluster.leader(), cluster.terms()
        holds_for(7, lambda: leader.leads, "it leads")
        assert cluster.terms() == terms
