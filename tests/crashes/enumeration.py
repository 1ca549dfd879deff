"""One run: some lives of a server, recorded, and the states that a power cut may leave at each point of them."""

import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from crashes.calls import events
from crashes.driver import CLUSTER, Driver, Ended, Process
from crashes.filesystem import FileSystem, contents_of, write_out
from crashes.knowledge import Knowledge, PromiseBroken
from crashes.reopen import reopen
from crashes.subject import decoded

LIVES = [("stop", "goes on"), ("kill", "power cut"), ("kill", "goes on"), ("stop", "goes on")]  # how each ends, and what follows
STEPS = 7  # in each life
DATA = ("dropped", "kept", "size")  # tried with whatever may become of the names
DATA_PATH = "deep/data"  # both directories are made by the server
_CALLS = {"write", "synced", "create", "truncate", "unlink", "rename", "mkdir", "rmdir"}  # each is one call that changes the disk


def scratch_directory():
    return tempfile.TemporaryDirectory(prefix="raftd-crashes-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def run(seed, states=3, plant=None, keep=None):
    """Counts of what was exercised: ``cuts``, ``states``, ``distinct states``, and a cut for each of EVENTS that was under way.

    For each cut all of the data may be there or not, whatever becomes of the names; and so many *states* more at random. Raises
    PromiseBroken; its files are kept in *keep*, if that is given.
    """
    with scratch_directory() as scratch:
        return _Run(seed, states, plant, Path(scratch), keep).run()


class _Run:
    def __init__(self, seed, states, plant, scratch, keep):
        self._seed, self._states, self._plant, self._scratch, self._keep = seed, states, plant, scratch, keep
        self._rng = random.Random(seed)
        self._root = scratch / "root"
        self._root.mkdir()
        self._disk = FileSystem(self._root)
        self._snapshots = {}
        self._knowledge = Knowledge(self._snapshots)
        self._driver = Driver(self._rng, None, CLUSTER if seed % 2 else "")
        self._opened = {}  # what was found in a state, by its hash
        self._next = None  # where the next life may begin: (contents, Knowledge)
        self.counts = Counter()

    def run(self):
        for ending, then in LIVES:
            trace = self._live(ending)
            self._enumerate(trace, complete=ending == "stop")
            os.remove(trace)
            if then == "power cut":
                self._begin_anew(*self._next)
        return self.counts

    def _live(self, ending):
        """One life; returns the path of its recording."""
        trace = self._scratch / "trace"
        live = self._driver.live = self._knowledge.copy()
        process = Process(self._root / DATA_PATH, live, self._driver.joins, self._plant, trace)
        try:
            self._driver.run(process, STEPS)
            if ending == "stop":
                process.call("stop")
            else:
                process.end_after(self._rng.randrange(30), Process.kill)
                while True:
                    self._driver.step(process)
        except Ended:
            pass
        finally:
            process.close()
        return trace

    def _enumerate(self, trace, complete):
        """Cuts between any two calls: after what was told since the one, before the other."""
        count = 0
        for event in events(trace, self._root):
            if event.kind == "told":
                self._take(decoded(event.data))
                continue
            if event.kind in _CALLS:
                self._cut()
                count += 1
                if not self._rng.randrange(count):
                    self._next = self._disk.cut("random", "random", self._rng), self._knowledge.copy()
            self._disk.apply(event)
        self._cut()
        self._knowledge.cut()
        assert not complete or self._disk.contents() == contents_of(self._root), "the recording is not complete"
        self._disk.adopt(contents_of(self._root))

    def _take(self, message):
        if message[0] not in ("pid", "done", "failed"):
            self._knowledge.take(message)

    def _cut(self):
        self.counts["cuts"] += 1
        self.counts.update(self._knowledge.at_work)
        ways = [(names, data) for names in self._disk.ways_of_names() for data in DATA] + [("random", "random")] * self._states
        checked = set()
        for names, data in ways:
            contents = self._disk.cut(names, data, self._rng)
            key = hash(tuple((path, hash(content)) for path, content in sorted(contents.items()) if not path.endswith("-shm")))
            self.counts["states"] += 1
            if key in checked:
                continue
            checked.add(key)
            if key not in self._opened:
                self.counts["distinct states"] += 1
                self._opened[key] = self._open(contents)
            if problems := self._knowledge.problems(self._opened[key]):
                self._report(contents, problems)

    def _open(self, contents):
        with tempfile.TemporaryDirectory(dir=self._scratch) as directory:
            write_out(contents, directory)
            return reopen(os.path.join(directory, DATA_PATH))

    def _report(self, contents, problems):
        moment = f"cut {self.counts['cuts']} ({', '.join(self._knowledge.at_work) or 'idle'})"
        text = f"seed {self._seed}, {moment}: {'; '.join(problems)}"
        if self._keep:
            shutil.rmtree(self._keep, ignore_errors=True)
            os.makedirs(self._keep)
            write_out(contents, self._keep)
            text += f"; the files are in {self._keep}"
        raise PromiseBroken(text)

    def _begin_anew(self, contents, knowledge):
        """The power was cut there: the next life begins with what was left."""
        shutil.rmtree(self._root)
        self._root.mkdir()
        write_out(contents, self._root)
        self._disk = FileSystem(self._root, contents)
        self._knowledge = knowledge
        knowledge.cut()
        self.counts["lives after a power cut"] += 1
