"""Clocks that are wrong. Only intervals of the monotonic clock count, each on its own machine: no wall clock changes anything."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest

import raftd
from chaos.world import SERVER
from cluster import ELECTION_SECONDS, Cluster, RegisterClients, Writers, needs_root, the_fault_lasts, wait_until
from raftd.config import Settings

pytestmark = pytest.mark.cluster

DAY_SECONDS = 86400


def cluster_with_clock(directory, wrong="0 1"):
    """Three servers, all by one wall clock: what the file ``clock`` says is added to it, and how fast it goes."""
    (directory / "clock").write_text(wrong)
    return Cluster(directory, raftd=[*SERVER, str(directory / "clock")])


def no_election(cluster, leader, terms, writers):
    """True if *leader* leads as before; also if the machine itself was so late that its followers may have missed it."""
    return writers.machine_late_seconds >= Settings().election_timeout_seconds / 2 or (leader.leads and cluster.terms() == terms)


def test_only_the_monotonic_clock_is_asked():
    """The wall clock dates answers and tells waitress how long a connection was idle, in one file; logging asks it by itself."""
    asks = re.compile(r"\btime\.time\b|\btime\.time_ns\b|\bdatetime\b|\blocaltime\b|\bgmtime\b|CLOCK_REALTIME|from time import")
    package = Path(raftd.__file__).parent
    found = [(file.name, line.strip()) for file in package.rglob("*.py") for line in file.read_text().splitlines() if asks.search(line)]
    assert {name for name, _ in found} == {"lane.py"} and len(found) == 2, found


@pytest.mark.parametrize("wrong", [f"{DAY_SECONDS} 1", f"{-20 * 365 * DAY_SECONDS} 1", "0 3", "0 0.3"],
                         ids=["tomorrow", "twenty years ago", "three times as fast", "a third as fast"])
def test_a_wall_clock_that_is_wrong_from_the_start(tmp_path, wrong):
    with cluster_with_clock(tmp_path, wrong) as cluster:
        leader, terms = cluster.leader(), cluster.terms()
        with Writers([leader, *cluster.followers(leader)], 2) as writers:
            the_fault_lasts.wait(2 * ELECTION_SECONDS)
            writers.wait_for_more(20)
        assert no_election(cluster, leader, terms, writers)
        assert writers.nothing_held_up
        if "1" == wrong.split()[1]:
            assert str(time.gmtime(time.time() + float(wrong.split()[0])).tm_year) in leader.call("GET", "/livez").headers["date"]


def test_a_wall_clock_that_jumps(tmp_path):
    """Back and forth, by hours and years, at another speed: no election, and no write that waits."""
    with cluster_with_clock(tmp_path) as cluster:
        leader, terms = cluster.leader(), cluster.terms()
        with RegisterClients(cluster.servers) as clients, Writers([leader, *cluster.followers(leader)], 2) as writers:
            for added, speed in ((-3600, 1), (7200, 1), (-7200, 3), (365 * DAY_SECONDS, 1), (0, 0.2), (0, 1)):
                (tmp_path / "clock").write_text(f"{added} {speed}")
                the_fault_lasts.wait(0.4)
            writers.wait_for_more(20)
        assert no_election(cluster, leader, terms, writers)
        assert writers.nothing_held_up
        assert clients.violations() == []


@pytest.mark.root
@needs_root
@pytest.mark.skipif(not shutil.which("unshare") or not os.path.exists("/proc/self/ns/time"), reason="needs time namespaces")
def test_monotonic_clocks_that_do_not_agree(tmp_path):
    """Machines have been up for different times. A restart under another offset is a machine that was started anew."""
    def ahead(seconds):
        return ["unshare", "--time", "--fork", "--monotonic", str(seconds)]
    with Cluster(tmp_path, start=False) as cluster:
        first = cluster.new().start(prefix=ahead(1000))
        for offset in (5_000_000, 0):
            cluster.new().start(join=first, prefix=ahead(offset))
        cluster.wait_voters(3)
        leader, terms = cluster.leader(), cluster.terms()
        with Writers([leader, *cluster.followers(leader)], 2) as writers:
            the_fault_lasts.wait(2 * ELECTION_SECONDS)
            writers.wait_for_more(20)
            assert no_election(cluster, leader, terms, writers) and writers.nothing_held_up
            leader.kill()
            assert writers.gap_after(time.monotonic()) < 20
        leader.start(prefix=ahead(0 if leader is first else 77_777))
        data = cluster.data_of_each()
        assert data["n1"] == data["n2"] == data["n3"] and not writers.missing_in(data["n1"])


def has_no_election_for_2_seconds(cluster):
    term = max(cluster.terms())
    the_fault_lasts.wait(2)
    return max(cluster.terms()) == term


def test_timers_that_drift(tmp_path):
    """One server counts half as fast as another, one half as fast again: never wrong, and there is a leader when one dies."""
    flags = {"n1": ("-heartbeat", "50ms", "-election-timeout", "250ms"), "n2": (),
             "n3": ("-heartbeat", "150ms", "-election-timeout", "750ms")}
    with Cluster(tmp_path, start=False) as cluster:
        for name in flags:
            cluster.new().start(join=cluster[1] if name != "n1" else None, flags=flags[name])
        cluster.wait_voters(3)
        with RegisterClients(cluster.servers) as clients, Writers(cluster.servers, 2) as writers:
            for _ in range(3):
                leader = cluster.leader()
                leader.kill()
                assert writers.gap_after(time.monotonic()) < 20
                leader.start(flags=flags[leader.name])
                wait_until(lambda back=leader: back.ready, "it is back")
                writers.wait_for_more(20)
            wait_until(lambda: has_no_election_for_2_seconds(cluster), "the quick one does not stand for election again and again")
        assert clients.violations() == []
        cluster.wait_converged()
