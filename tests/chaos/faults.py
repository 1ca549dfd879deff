"""The faults, each a function that breaks something and lets it be for a while, and the nemesis that draws them from a seed.

A fault is a generator: it breaks, yields the seconds that this should last, and mends in a ``finally``. One that finds nobody to break
returns without a yield, and does not count. Which servers are claimed by another fault at that moment depends on time, so a seed gives the
same faults in the same order, but not the same run.
"""

import json
import logging
import random
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

from cluster import ControlGroup, Strace, in_threads
from raftd import wire
from raftd.raft.messages import AppendEntriesReply

log = logging.getLogger(__name__)

FAULTS = {}  # name -> generator function
REPLY_WORD = wire.encode(AppendEntriesReply(1, True), 0)[:4]  # how the frame of an AppendEntriesReply begins: with its length
MOST_AT_ONCE = 3


def fault(function):
    FAULTS[function.__name__.replace("_", " ")] = function
    return function


def moment(rng, least, most):
    return rng.uniform(least, most)


# Processes


def _killed(world, rng, count, leader):
    with world.claimed(count, rng, leader) as servers:
        if servers:
            world.kill(servers)
            try:
                yield moment(rng, 0.0, 2.0)
            finally:
                world.bring_up(servers)


@fault
def kill_leader(world, rng):
    return _killed(world, rng, 1, True)


@fault
def kill_follower(world, rng):
    return _killed(world, rng, 1, False)


@fault
def kill_minority(world, rng):
    return _killed(world, rng, (world.size - 1) // 2, None)


@contextmanager
def _all(world, rng):
    """All that are free, if that is all but one at least."""
    with world.claimed(world.size - 1, rng) as servers, world.claimed(1, rng) as last:
        yield servers and servers + last


@fault
def kill_all(world, rng):
    """At once; one of them comes back last."""
    with _all(world, rng) as servers:
        if servers:
            world.kill(servers)
            try:
                yield moment(rng, 0.0, 0.5)
            finally:
                world.bring_up(servers[:-1])
                world.bring_up(servers[-1:])


@fault
def kill_while_it_starts(world, rng):
    with world.claimed(1, rng) as servers:
        for server in servers:
            yield 0.0
            for _ in range(4):
                world.kill(servers)
                world.launch(server)
                time.sleep(rng.uniform(0.05, 0.6))
            world.kill(servers)
            world.bring_up(servers)


@fault
def stop_one(world, rng):
    """SIGTERM, and started again."""
    with world.claimed(1, rng) as servers:
        for server in servers:
            world.terminate(server)
            try:
                yield moment(rng, 0.0, 1.5)
            finally:
                world.bring_up(servers)


@fault
def restart_all(world, rng):
    """SIGTERM to one after the other, without waiting for the cluster."""
    with _all(world, rng) as servers:
        for server in servers:
            world.terminate(server)
        if servers:
            try:
                yield 0.0
            finally:
                world.bring_up(servers)


def _paused(rng, claimed, least, most):
    with claimed as servers:
        if servers:
            for server in servers:
                server.pause()
            try:
                yield moment(rng, least, most)
            finally:
                rng.shuffle(servers)
                for server in servers:
                    server.resume()


@fault
def pause_leader(world, rng):
    return _paused(rng, world.claimed(1, rng, True), 0.3, 2.5)


@fault
def pause_follower(world, rng):
    return _paused(rng, world.claimed(1, rng, False), 0.5, 3.0)


@fault
def pause_all(world, rng):
    return _paused(rng, _all(world, rng), 0.3, 2.0)


@fault
def starve_of_cpu(world, rng):
    with world.claimed(1, rng, rng.choice((True, False))) as servers:
        if servers:
            group = ControlGroup(servers[0], "cpu", rng.choice((5, 10, 20)))
            try:
                yield moment(rng, 1.0, 3.0)
            finally:
                group.end()


# Partitions. Servers are named by their place, as in the literature: 0 is the leader, if there is one.


def _in_order(world, rng):
    leader = world.find_leader(0.5)
    others = [server for server in list(world.servers) if server is not leader]
    rng.shuffle(others)
    return [leader, *others] if leader else others


def _cut(cuts, seconds):
    try:
        yield seconds
    finally:
        for cut in cuts:
            cut.heal()


def _between(one, other):
    return [(left, right) for left in one for right in other]


@fault
def halves(world, rng):
    """The smaller half has the leader, or not."""
    servers, few = _in_order(world, rng), (world.size - 1) // 2
    if rng.random() < 0.4:
        servers.reverse()
    return _cut([world.network.sever(_between(servers[:few], servers[few:]))], moment(rng, 0.5, 3.0))


@fault
def leader_alone(world, rng):
    servers = _in_order(world, rng)
    return _cut([world.network.sever(_between(servers[:1], servers[1:]))], moment(rng, 0.3, 3.0))


@fault
def bridge(world, rng):
    """Two halves that hear each other only through one server."""
    servers = _in_order(world, rng)
    middle = servers.pop(rng.randrange(len(servers)))
    half = len(servers) // 2
    assert middle not in servers
    return _cut([world.network.sever(_between(servers[:half], servers[half:]))], moment(rng, 0.5, 3.0))


@fault
def ring(world, rng):
    """Each hears a majority, and no two the same one: its neighbours in a ring."""
    servers = _in_order(world, rng)
    rng.shuffle(servers)
    size = len(servers)
    far = [(one, other) for place, one in enumerate(servers) for away, other in enumerate(servers)
           if place < away and min(away - place, size - away + place) > 1]
    return _cut([world.network.sever(far or [servers[:2]])], moment(rng, 0.5, 3.0))  # of three, a ring that is cut is a line


@fault
def dangling(world, rng):
    """The leader hears one server only, which hears all; so its majority is gone although a server that hears one exists."""
    servers = _in_order(world, rng)
    return _cut([world.network.sever(_between(servers[:1], servers[2:]))], moment(rng, 0.5, 3.0))


@fault
def leader_hears_nobody(world, rng):
    return _cut([world.network.deafen(_in_order(world, rng)[0])], moment(rng, 0.5, 3.0))


@fault
def leader_is_not_heard(world, rng):
    return _cut([world.network.silence(_in_order(world, rng)[0])], moment(rng, 0.5, 3.0))


@fault
def follower_hears_nobody(world, rng):
    return _cut([world.network.deafen(_in_order(world, rng)[-1])], moment(rng, 0.5, 3.0))


@fault
def one_link(world, rng):
    one, other, *_ = _in_order(world, rng) if rng.random() < 0.6 else rng.sample(list(world.servers), 2)
    return _cut([world.network.sever([(one, other)])], moment(rng, 0.5, 3.0))


@fault
def host_vanishes(world, rng):
    """For clients too."""
    return _cut([world.network.vanish(rng.choice(_in_order(world, rng)[:2]))], moment(rng, 0.5, 2.5))


@fault
def flapping(world, rng):
    """Every 0.1 to 0.5 s another server is cut off, or none."""
    ends = time.monotonic() + moment(rng, 1.0, 3.0)
    yield 0.0
    while time.monotonic() < ends:
        cut = world.network.isolate(rng.choice(list(world.servers)))
        time.sleep(rng.uniform(0.1, 0.5))
        cut.heal()
        time.sleep(rng.choice((0.0, rng.uniform(0.1, 0.5))))


# Links


@fault
def packet_loss(world, rng):
    return _cut([world.network.lose(server, rng.uniform(0.05, 0.3)) for server in list(world.servers)], moment(rng, 1.0, 3.0))


@fault
def connections_reset(world, rng):
    def resets():
        for _ in range(rng.randrange(2, 6)):
            cut = world.network.reset(rng.choice(list(world.servers)))
            try:
                yield 0.0
                time.sleep(rng.uniform(0.05, 0.3))
            finally:
                cut.heal()
    return resets()


@fault
def answers_to_clients_lost(world, rng):
    """The requests are executed."""
    server = _in_order(world, rng)[0]
    return _cut([world.network.lose_answers(server, b"HTTP", world.network.HUB_ADDRESS)], moment(rng, 0.5, 2.0))


@fault
def answers_to_leader_lost(world, rng):
    """The followers, or some of them, have the entries on disk, and cannot say so."""
    followers = _in_order(world, rng)[1:]
    chosen = followers[:rng.randrange(1, len(followers) + 1)]
    return _cut([world.network.lose_answers(server, REPLY_WORD) for server in chosen], moment(rng, 0.5, 2.0))


@fault
def slow_link(world, rng):
    ends = [world.network.slow_down(server, rng.choice(("1mbit", "4mbit", "8mbit")))
            for server in rng.sample(list(world.servers), rng.randrange(1, 3))]
    try:
        yield moment(rng, 1.0, 3.0)
    finally:
        for end in ends:
            end()


@fault
def slow_snapshot(world, rng):
    """A follower misses more than the log keeps, and what it is sent then comes slowly; perhaps the sender dies on the way."""
    with world.claimed(1, rng, False) as servers:
        if servers:
            world.kill(servers)
            try:
                yield moment(rng, 1.5, 3.0)
                leader = world.find_leader()
                end = world.network.slow_down(leader, rng.choice(("1mbit", "2mbit"))) if leader else None
            finally:
                world.bring_up(servers)
            if end:
                try:
                    time.sleep(rng.uniform(0.2, 2.0))
                    with world.claimed(1, rng, True, but=servers) as sender:
                        if sender and rng.random() < 0.3:
                            world.kill(sender)
                            world.bring_up(sender)
                finally:
                    end()


# Disks


def _full(world, rng, servers):
    with world.bad_disk(servers):
        try:
            for server in servers:
                world.disk_of(server).fill(rng.choice((0, 16_384, 300_000)))
            yield moment(rng, 1.0, 3.0)
        finally:
            for server in servers:
                world.disk_of(server).make_room()


@fault
def disk_full(world, rng):
    return _full(world, rng, _in_order(world, rng)[:1] if rng.random() < 0.5 else [rng.choice(list(world.servers))])


@fault
def disks_of_all_full(world, rng):
    return _full(world, rng, list(world.servers))


def _stracing(world, rng, fault, least, most):
    with world.claimed(1, rng, rng.choice((True, False))) as servers:
        if servers:
            with world.bad_disk(servers):
                strace = Strace(servers[0], "fdatasync", fault)
                try:
                    yield moment(rng, least, most)
                finally:
                    strace.end()


@fault
def slow_disk(world, rng):
    return _stracing(world, rng, f"delay_enter={rng.choice((20_000, 100_000, 300_000))}", 1.0, 3.0)


@fault
def stalled_disk(world, rng):
    return _stracing(world, rng, "delay_enter=1500000", 1.0, 2.0)


@fault
def failing_disk(world, rng):
    first = rng.randrange(1, 30)
    return _stracing(world, rng, f"error=EIO:when={first}..{first + rng.randrange(3)}", 1.0, 2.5)


# Clocks


@fault
def clock_steps(world, rng):
    """The wall clock of one or all jumps, and perhaps goes on at another speed."""
    for server in list(world.servers) if rng.random() < 0.3 else [rng.choice(list(world.servers))]:
        world.set_clock(server, rng.choice((-3600, 7200, 86400, -86400 * 365, 1.5)), rng.choice((1, 1, 3, 0.3)))
    yield moment(rng, 0.5, 1.0)


# Members


@fault
def replace_a_member(world, rng):
    """Removed; another one joins in its place, with empty files."""
    with world.claimed(1, rng) as servers:
        for server in servers:
            if world.remove(server.name, 4):
                yield 0.0
                world.replace(server)


@fault
def learner_for_a_while(world, rng):
    """Removed, and taken back without a vote; then it gets it."""
    with world.claimed(1, rng, False) as servers:
        for server in servers:
            if world.remove(server.name, 4):
                try:
                    world.make_member(server, voter=False)
                    yield moment(rng, 0.2, 1.0)
                finally:
                    world.make_member(server)


@fault
def transfer_of_leadership(world, rng):
    for _ in range(rng.randrange(1, 4)):
        target = rng.choice(list(world.servers)).name
        world.ask_leader("POST", "/leader", json.dumps({"name": target}) if rng.random() < 0.8 else b"")
        yield moment(rng, 0.0, 0.3)


@fault
def transfer_by_a_deaf_leader(world, rng):
    """It hands over, and does not hear who leads now: first no request of a peer reaches it, then nothing at all.

    Nobody had to wait for an election timeout, so for half a second there are two that take themselves for leaders, one with cause.
    """
    for _ in range(3):
        leader = world.find_leader()
        if leader:
            cuts = [world.network.shut_off(leader)]
            transfer, = in_threads(lambda path, leader=leader: leader.call("POST", path, b"", timeout=2), ["/leader?timeout=1s"])
            time.sleep(rng.uniform(0.0, 0.02))
            cuts.append(world.network.deafen(leader))
            yield from _cut(cuts, moment(rng, 0.5, 0.8))
            transfer.join()


class Happened(NamedTuple):
    """One fault, and when."""

    name: str
    began: float
    ended: float


class Nemesis:
    """Draws faults of *names* from *seed*, until ``stop``. No fault comes again before all have come."""

    def __init__(self, world, seed, names):
        self._world, self._rng, self._names = world, random.Random(seed), list(names)
        self._lock, self._stopping, self._bag = threading.Lock(), threading.Event(), []
        self.happened, self.current = [], {}
        self.tried = Counter()

    def start(self, at_once):
        """So many at the same time, at most: what needs a sound cluster to go wrong hides behind other faults."""
        self._stopping.clear()
        self._threads = [threading.Thread(target=self._run, name=f"nemesis-{number}", daemon=True) for number in range(at_once)]
        for thread in self._threads:
            thread.start()

    def stop(self):
        """Mend all that is broken."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def lacks(self):
        """The names of the faults that have not happened yet."""
        return set(self._names) - {fault.name for fault in self.happened}

    def _draw(self):
        with self._lock:
            if not self._bag:
                self._bag = list(self._names)
                self._rng.shuffle(self._bag)
            return self._bag.pop(), random.Random(self._rng.getrandbits(64))

    def _put_back(self, name):
        """It found nobody to break: it should be tried again soon."""
        with self._lock:
            self._bag.insert(max(0, len(self._bag) - 3), name)

    def _run(self):
        while not self._stopping.wait(random.uniform(0.0, 0.8)):
            name, rng = self._draw()
            began = time.monotonic()
            self.tried[name] += 1
            try:
                happened = self._let_happen(FAULTS[name](self._world, rng))
            except Exception as error:  # whatever it is, it must not go unseen
                self._world.problems.append(f"during the fault '{name}': {error!r}")
                log.exception("fault %s", name)
                return
            if happened:
                self.happened.append(Happened(name, began, time.monotonic()))
            else:
                self._put_back(name)
                self._stopping.wait(0.2)

    def _let_happen(self, steps):
        happened = False
        for seconds in steps:
            happened = True
            if seconds and self._stopping.wait(seconds):
                steps.close()  # which mends
                return True
        return happened
