"""The power is cut: real processes on a file system of their own that stops without writing what it holds back. Needs root.

Whole servers, and the production server without its network, which is quicker: ``bin/crashes --real 1000`` cuts it a thousand times.

Each cut stops the process first, or an fsync that the cut overtakes might still be acknowledged. Then the file system is shut down
without a flush, as if the machine had lost its power, and mounted again: what was not synced is gone.
"""

import os
import random
import shutil
import subprocess
import sys

import pytest

from cluster import Cluster, Writers
from crashes.driver import TOP
from crashes.real import Disk, cut_power, private_mounts

CUTS = 6
CUTS_OF_ENGINES = 20

pytestmark = [pytest.mark.root, pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="needs root and mkfs.ext4")]


@pytest.fixture
def disks(tmp_path):
    """Makes Disks; they are unmounted after the test."""
    made = []

    def make(name):
        (tmp_path / name).mkdir()
        made.append(Disk(tmp_path / name))
        return made[-1]
    with private_mounts():
        yield make
        for disk in made:
            disk.remove()


@pytest.mark.cluster
def test_a_server_alone_loses_nothing_it_acknowledged(tmp_path, disks):
    disk, rng = disks("n1"), random.Random(1)
    with Cluster(tmp_path, start=False) as cluster:
        server = cluster.new(path=disk.path / "data").start()
        acknowledged = []
        for number in range(CUTS):
            with Writers([server], 4, prefix=f"cut{number}-") as writers:
                writers.wait_for_more(rng.randrange(1, 400))
                cut_power([server], [disk])
            acknowledged.append(writers)
            server.start()
            cluster.leader()
        data = cluster.data_of_each()["n1"]
        assert [missing for writers in acknowledged for missing in writers.missing_in(data)] == []
        assert sum(len(writers.acknowledged) for writers in acknowledged) > 10 * CUTS


@pytest.mark.cluster
def test_a_cluster_that_loses_its_power_as_a_whole_loses_nothing(tmp_path, disks):
    """Large values too, so that state and log are checkpointed and compacted meanwhile."""
    mounted, rng = [disks(f"n{number}") for number in (1, 2, 3)], random.Random(2)
    with Cluster(tmp_path, start=False) as cluster:
        for number, disk in enumerate(mounted, 1):
            cluster.new(path=disk.path / "data").start(join=cluster[1] if number > 1 else None)
        cluster.wait_voters(3)
        everything = []
        for number in range(CUTS):
            with Writers(cluster.servers, 4, size=rng.choice((20, 2000)), prefix=f"cut{number}-") as writers:
                writers.wait_for_more(rng.randrange(1, 300))
                cut_power(cluster.servers, mounted)
            everything.append(writers)
            cluster.restart()
            cluster.wait_converged()
        for data in cluster.data_of_each().values():
            assert [missing for writers in everything for missing in writers.missing_in(data)] == []


def real_cuts(*flags):
    """bin/crashes, in a process of its own."""
    return subprocess.run([sys.executable, TOP / "bin/crashes", "--real", str(CUTS_OF_ENGINES), *flags], capture_output=True, text=True,
                          timeout=300)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_was_promised_is_there_after_each_cut(tmp_path):
    """Entries, terms, votes; and a state whose index and data agree (faults 43, 45, 46)."""
    done = real_cuts("--keep", tmp_path / "state")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{CUTS_OF_ENGINES} cuts, 0 broken promises" in done.stdout


@pytest.mark.timeout(400)
def test_a_log_that_is_not_synced_is_found_out(tmp_path):
    """The cuts are real: what makes a promise before the disk can keep it breaks it."""
    done = real_cuts("--keep", tmp_path / "state", "--plant", "log_not_synced")
    assert done.returncode == 1 and "PromiseBroken" in done.stderr, (done.stdout, done.stderr[-2000:])
    assert (tmp_path / "state/deep/data/raft.db").exists()
