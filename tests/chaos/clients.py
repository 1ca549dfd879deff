"""Clients that do all there is to do with keys, and record what they saw for the checker. They know who serves, and nothing of faults."""

import random
import threading
import time
from collections import Counter, defaultdict
from typing import NamedTuple

from chaos.checker import DELETE, GET, OK, PUT, UNKNOWN
from cluster import Client, operation_of

CONTENDED_KEYS, QUIET_KEYS = 3, 3  # the first are everybody's all the time, the others are seldom touched
LARGE_BYTES = (30_000, 200_000)
PAUSE_SECONDS = 0.012  # between two operations of a client, on average
CLIENT_TIMEOUTS = (0.7, 1.5, 4.0)  # how long a client waits for its answer: some give up before the server does
EXPECTED = {"not_found", "precondition_failed", "not_leader", "no_leader", "no_quorum", "commit_timeout", "leadership_lost", "discarded",
            "overloaded", "storage_failed", "stopping"}  # the codes of errors that a fault explains, or a client
MOST_HOPS = 2  # redirects that a client follows

# What a client does next, how often of 100.
OPERATIONS = {"put": 30, "get": 18, "leased get": 10, "stale get": 12, "get since": 6, "delete": 6, "put if match": 9, "put if absent": 4,
              "delete if match": 2, "put by redirect": 3}


class Node(NamedTuple):
    """One place to send requests to. ``incarnation`` is that of the process that serves there now."""

    address: str
    namespace: str | None
    name: str
    incarnation: int


class Clients:
    """*count* threads, until ``stop``. ``nodes()`` gives the Nodes there are; *seed* decides what they do, though not when.

    ``history`` and ``acknowledged``, the times at which a write was, are those since ``start``, whose time is the first.
    """

    def __init__(self, nodes, count, seed):
        self._nodes, self._count, self._seed = nodes, count, seed
        self._lock, self._stopping, self._threads = threading.Lock(), threading.Event(), []
        self._generation = 0
        self.counts, self.strange = Counter(), []

    def start(self):
        """Begin with keys that nobody has used before."""
        self._generation += 1
        self._stopping.clear()
        self.history, self.acknowledged = [], [time.monotonic()]
        self.seen = defaultdict(list)  # key -> ETags that were seen there lately
        self._leader = self._nodes()[0].address
        self._threads = [threading.Thread(target=self._run, args=(number,), name=f"client-{number}", daemon=True)
                         for number in range(self._count)]
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def keys(self):
        return [f"{kind}{number}-{self._generation}" for kind, count in (("hot", CONTENDED_KEYS), ("quiet", QUIET_KEYS))
                for number in range(count)]

    # One client

    def _run(self, number):
        rng, connections, count = random.Random(f"{self._seed} {self._generation} {number}"), {}, 0
        name, highest = f"c{number}", 0  # of the indexes that this client was told
        while not self._stopping.wait(rng.expovariate(1 / PAUSE_SECONDS)):
            key, count = self._key(rng, number), count + 1
            value = f"{self._generation}.{number}.{count}:".encode()
            if rng.random() < 0.03:
                value = value.ljust(rng.randrange(*LARGE_BYTES), b".")
            what, = rng.choices(list(OPERATIONS), OPERATIONS.values())
            operation = self._do(what, rng, connections, name, key, value, highest)
            if operation.outcome == OK and operation.index:
                highest = max(highest, operation.index)
        for connection in connections.values():
            connection.close()

    def _key(self, rng, number):
        keys = self.keys
        if rng.random() < 0.9:
            return keys[rng.randrange(CONTENDED_KEYS)]
        return keys[CONTENDED_KEYS + (number + rng.randrange(2)) % QUIET_KEYS]

    def _do(self, what, rng, connections, name, key, value, highest):
        kind = next(kind for kind in (PUT, GET, DELETE) if kind in what)
        match = rng.choice(self.seen[key]) if "match" in what and self.seen[key] else None
        query, headers, more = {}, {}, {}
        if what in ("stale get", "get since"):
            query["level"], more["stale"] = "stale", True
        if what == "leased get":
            query["level"] = "leader"
        if what == "get since":
            query["min_index"] = more["min_index"] = highest
        if what == "put by redirect":
            query["redirect"] = ""
        if match is not None:
            headers["If-Match"], more["if_match"] = f'"{match}"', match
        if what == "put if absent":
            headers["If-None-Match"], more["if_absent"] = "*", True
        if kind != GET and rng.random() < 0.3:
            query["timeout"] = rng.choice(("300ms", "1s", "2s"))
        node = self._choose(rng, kind, what)
        operation = self._send(kind, key, value if kind == PUT else None, node, query, headers, connections, rng.choice(CLIENT_TIMEOUTS),
                               {**more, "client": name})
        self._record(what, operation)
        return operation

    def _choose(self, rng, kind, what):
        """Writes go to whom this client takes for the leader, mostly; reads to anybody."""
        nodes = self._nodes()
        if kind != GET and what != "put by redirect" and rng.random() < 0.9:
            return next((node for node in nodes if node.address == self._leader), nodes[0])
        return rng.choice(nodes)

    def _send(self, kind, key, value, node, query, headers, connections, timeout, more):
        began, hops = time.monotonic(), 0
        path = f"/db/{key}" + ("?" + "&".join(f"{name}={value}" if value != "" else name for name, value in query.items()) if query else "")
        method = {PUT: "POST", GET: "GET", DELETE: "DELETE"}[kind]
        while True:
            connection = connections.setdefault(node.address, Client(node.address, node.namespace))
            answer = connection.call(method, path, value, headers, timeout)
            if answer.status != 307 or hops == MOST_HOPS:
                break
            hops += 1
            node = next((other for other in self._nodes() if other.address == answer.leader), node)
        self._learn(answer, node)
        if answer.status not in (200, 307, None) and answer.code not in EXPECTED:
            self.strange.append(f"{method} {path} {headers} at {node.name}: {answer}")
        served_by = f"{node.name}#{node.incarnation}"
        if node not in self._nodes():  # it was started again meanwhile: which of the two has answered?
            served_by = f"{served_by} or later, {began}"
        return operation_of(answer, kind, key, value, began, node=served_by, **more)

    def _learn(self, answer, node):
        if answer.leader:
            self._leader = answer.leader
        elif answer.status is None and node.address == self._leader:
            nodes = [other.address for other in self._nodes()]
            self._leader = nodes[(nodes.index(node.address) + 1) % len(nodes)] if node.address in nodes else nodes[0]

    def _record(self, what, operation):
        with self._lock:
            self.history.append(operation)
            outcome = "refused" if operation.refused else operation.outcome
            self.counts[what, outcome] += 1
            if operation.outcome == OK and operation.etag is not None:
                seen = self.seen[operation.key]
                seen.append(operation.etag)
                del seen[:-3]
            if operation.is_effective and operation.outcome == OK:
                self.acknowledged.append(operation.returned)

    def read_all(self, nodes, stale=False):
        """A get of every key at each of *nodes*, recorded like all others."""
        connections, operations = {}, []
        for node in nodes:
            for key in self.keys:
                query = {"level": "stale"} if stale else {"timeout": "4s"}
                operations.append(self._send(GET, key, None, node, query, {}, connections, 6, {"client": "last", "stale": stale}))
                self._record("last get", operations[-1])
        for connection in connections.values():
            connection.close()
        return operations


def unknown(history):
    """How many operations on each key have an unknown outcome, at most."""
    return max(Counter(operation.key for operation in history if operation.outcome == UNKNOWN).values(), default=0)
