"""The power is cut: real processes on a file system of their own that stops without writing what it holds back. Needs root.

Each cut stops the process first, or an fsync that the cut overtakes might still be acknowledged. Then the file system is shut down
without a flush, as if the machine had lost its power, and mounted again: what was not synced is gone.
"""

import array
import fcntl
import os
import random
import shutil
import subprocess

import pytest

from cluster import Cluster, Writers

_EXT4_IOC_SHUTDOWN, _WITHOUT_FLUSH = 0x8004587D, 2
CUTS = 6

pytestmark = [pytest.mark.cluster, pytest.mark.root, pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="needs root and mkfs.ext4")]


class Disk:
    """An ext4 file system in a file, mounted at ``path``."""

    def __init__(self, directory, mebibytes=64):
        self.image, self.path = directory / "image", directory / "disk"
        with open(self.image, "wb") as image:
            image.truncate(mebibytes << 20)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)
        self.path.mkdir()
        self.mount()

    def mount(self):
        subprocess.run(["mount", "-o", "loop", self.image, self.path], check=True)

    def cut(self):
        """From here on nothing reaches the disk, and what had not is lost."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, array.array("I", [_WITHOUT_FLUSH]))
        finally:
            os.close(descriptor)

    def unmount(self):
        subprocess.run(["umount", self.path], check=True)


@pytest.fixture
def disks(tmp_path):
    """Makes Disks; they are unmounted after the test."""
    made = []

    def make(name):
        (tmp_path / name).mkdir()
        made.append(Disk(tmp_path / name))
        return made[-1]
    yield make
    for disk in made:
        if os.path.ismount(disk.path):
            subprocess.run(["umount", "--lazy", disk.path], check=True)


def cut_power(servers, disks):
    """All of *servers* lose their power at the same moment."""
    for server in servers:
        server.pause()
    for disk in disks:
        disk.cut()
    for server in servers:
        server.kill()
    for disk in disks:
        disk.unmount()
        disk.mount()


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
