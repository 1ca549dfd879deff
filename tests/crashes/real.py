"""Power cuts for real: a file system of its own, in a file, that stops without writing what it holds back. Needs root.

Each cut stops the process first, or a sync that the cut overtakes might still be reported as done.
"""

import array
import ctypes
import fcntl
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from crashes.driver import CLUSTER, Driver, Ended, Process
from crashes.enumeration import DATA_PATH, scratch_directory
from crashes.knowledge import Knowledge, PromiseBroken
from crashes.reopen import reopen

_EXT4_IOC_SHUTDOWN, _WITHOUT_FLUSH = 0x8004587D, 2
MOST_MESSAGES, MOST_SECONDS = 80, 0.004  # told in a life, between the last of them and the cut


_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x00020000


@contextmanager
def private_mounts():
    """What is mounted meanwhile, only this process and its children see.

    Else whoever makes a mount namespace at that time, such as ``ip netns exec``, keeps a copy of each mount, and with it the file
    system that was cut, which is alive then while it is mounted again.
    """
    with open("/proc/self/ns/mnt") as before:
        _checked(_libc.unshare(_CLONE_NEWNS))
        try:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            yield
        finally:
            _checked(_libc.setns(before.fileno(), _CLONE_NEWNS))


def _checked(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Disk:
    """An ext4 file system in a file, mounted at ``path``. For use in ``private_mounts``."""

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

    def mount_again(self):
        """After a cut."""
        subprocess.run(["umount", self.path], check=True)
        self.mount()

    def remove(self):
        """However it stands, it is mounted no longer then."""
        if os.path.ismount(self.path):
            subprocess.run(["umount", "--lazy", self.path], check=True)


def cut_power(servers, disks):
    """All of *servers* lose their power at the same moment."""
    for server in servers:
        server.pause()
    for disk in disks:
        disk.cut()
    for server in servers:
        server.kill()
    for disk in disks:
        disk.mount_again()


def run(seed, cuts, plant=None, keep=None):
    """So many cuts of one server, each the end of one life. Counts, as of ``enumeration.run``; raises PromiseBroken."""
    rng, counts = random.Random(seed), Counter()
    with private_mounts(), scratch_directory() as scratch:
        disk = Disk(Path(scratch))
        try:
            driver, knowledge = Driver(rng, None, CLUSTER if seed % 2 else ""), Knowledge({})
            for _ in range(cuts):
                driver.live = knowledge
                _live(disk, driver, rng, plant, counts)
                disk.mount_again()
                counts["cuts"] += 1
                counts.update(knowledge.at_work or ["idle"])
                _check(disk, knowledge, f"seed {seed}, real cut {counts['cuts']}", keep)
                knowledge.cut()
            return counts
        finally:
            disk.remove()


def _live(disk, driver, rng, plant, counts):
    """One life, which ends with a power cut at any moment."""
    def cut(process):
        time.sleep(MOST_SECONDS * rng.random() ** 4)
        process.stop()
        disk.cut()
        process.kill()

    def sync_and_go_on(process):
        """All that was written is on the disk then; what comes from here on is not, unless the server says so."""
        subprocess.run(["sync", "--file-system", disk.path], check=True)
        counts["cuts soon after all was synced"] += 1
        process.end_after(rng.randrange(MOST_MESSAGES // 3), cut)

    process = Process(disk.path / DATA_PATH, driver.live, driver.joins, plant)
    try:
        most = MOST_MESSAGES if driver.live.kept else MOST_MESSAGES // 6  # the first start is soon over
        process.end_after(rng.randrange(most), cut if rng.randrange(4) else sync_and_go_on)
        driver.run(process, 0)
        while True:
            driver.step(process)
    except Ended:
        pass
    finally:
        process.close()


def _check(disk, knowledge, moment, keep):
    """On a copy: the next life begins with what the cut has left."""
    with tempfile.TemporaryDirectory(dir=disk.path.parent) as directory:
        copy = Path(directory) / "left"
        shutil.copytree(disk.path, copy, ignore=shutil.ignore_patterns("lost+found"))
        problems = knowledge.problems(reopen(copy / DATA_PATH))
    if not problems:
        return
    text = f"{moment} ({', '.join(knowledge.at_work) or 'idle'}): {'; '.join(problems)}"
    if keep:
        shutil.rmtree(keep, ignore_errors=True)
        shutil.copytree(disk.path, keep, ignore=shutil.ignore_patterns("lost+found"))
        text += f"; the files are in {keep}"
    raise PromiseBroken(text)
