"""Programs that rely on more than single writes: each request is sent, with its idempotency key, until it is answered; some watch.

So the outcome of every request is known in the end, and what there must be can be counted: a key has as many versions as it was written,
money that is moved is neither made nor lost, a key that expires has lived as long as it was told to, and all who watch have seen the same,
every change once and in order.
"""

import itertools
import json
import random
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException

from cluster import Client, inside, wait_until

CAREFUL_PREFIX = "careful-"  # of all their keys
COUNTERS, ACCOUNTS, MONEY = 3, 2, 1000
WRITERS, WATCHERS = 3, 2
PAUSE_SECONDS = 0.02
ANSWER_SECONDS = 1.5  # so long a request waits before it is sent again, elsewhere
STREAM_SECONDS = 4.0  # so long a stream is followed before another is begun at another server
TTL_SECONDS = 2.0
END_SECONDS = 60.0  # after peace, for what is under way
VERDICT_SECONDS = 20.0  # then, for each thing that is looked at


class Careful:
    """Threads, from ``start`` to ``stop``. ``nodes()`` gives the Nodes there are; what must not be is in ``violations``."""

    def __init__(self, nodes, seed):
        self._nodes, self._seed, self._generation = nodes, seed, 0
        self.counts = Counter()

    def start(self):
        """Begin with keys that nobody has used before."""
        self._generation += 1
        self.violations, self._lock = [], threading.Lock()
        self._stopping, self._end = threading.Event(), float("inf")
        self._done, self._etags = Counter(), []  # how often each counter was written; the indexes of all writes
        self._seen = [[] for _ in range(WATCHERS)]  # by each who watches: (id, kind, key)
        rng = random.Random(f"{self._seed} {self._generation}")
        self._ask(rng, {}, "POST", "/txn", json.dumps({"then": [
            {"set": self._account(number), "value": str(MONEY)} for number in range(ACCOUNTS)]}).encode(), "the beginning")
        self._since = self._index
        targets = [(self._write, number) for number in range(WRITERS)] + [(self._watch, number) for number in range(WATCHERS)] + [
            (self._let_expire, 0)]
        self._threads = [threading.Thread(target=target, args=(number,), daemon=True) for target, number in targets]
        for thread in self._threads:
            thread.start()

    def stop(self):
        """There is peace: what is under way will be answered."""
        self._end = time.monotonic() + END_SECONDS
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _key(self, name):
        return f"{CAREFUL_PREFIX}{self._generation}/{name}"

    def _account(self, number):
        return self._key(f"account{number}")

    def _violated(self, text):
        with self._lock:
            self.violations.append(text)

    # Requests

    def _ask(self, rng, connections, method, path, body, request, **headers):
        """The answer (200, 404 or 412) to a request that is sent until there is one; None when that takes too long after peace."""
        headers = {"Idempotency-Key": f"{self._generation} {request}", **headers}
        target = f"{path}{'&' if '?' in path else '?'}timeout={ANSWER_SECONDS * 1000:.0f}ms"
        address = None
        for attempt in itertools.count():
            nodes = self._nodes()
            node = next((node for node in nodes if node.address == address), None) or rng.choice(nodes)
            client = connections.setdefault(node.address, Client(node.address, node.namespace))
            answer = client.call(method, target, body, headers, ANSWER_SECONDS)
            if answer.status in (200, 404, 412, 422):
                break
            address = answer.leader if answer.status is not None and answer.leader != node.address else None
            if time.monotonic() > self._end:
                self._violated(f"{method} {path} was not answered after peace: {answer}")
                return None
            time.sleep(rng.uniform(0, min(0.2, 0.01 * 2 ** min(attempt, 6))))
        self.counts["requests"] += 1
        self.counts["attempts"] += attempt + 1
        self.counts["replayed"] += "idempotent-replay" in answer.headers
        if answer.status == 422:
            self._violated(f"{method} {path}, sent again, is taken for another request: {answer}")
        self._index = int(answer.headers["x-raft-index"])
        return answer

    def _write(self, number):
        rng, connections = random.Random(f"{self._seed} {self._generation} writer {number}"), {}
        for count in itertools.count():
            if self._stopping.wait(rng.expovariate(1 / PAUSE_SECONDS)):
                break
            if rng.random() < 0.6:
                self._count(rng, connections, f"{number} {count}")
            else:
                self._move(rng, connections, f"{number} {count}")
        for connection in connections.values():
            connection.close()

    def _count(self, rng, connections, request):
        key = self._key(f"counter{rng.randrange(COUNTERS)}")
        answer = self._ask(rng, connections, "POST", f"/db/{key}", request.encode(), request)
        if answer is not None:
            with self._lock:
                self._done[key] += 1
                self._etags.append(int(answer.headers["etag"].strip('"')))

    def _move(self, rng, connections, request):
        """From one account to the other, if both are as they were read."""
        read = self._ask(rng, connections, "POST", "/txn", json.dumps({"then": [
            {"get": self._account(number)} for number in range(ACCOUNTS)]}).encode(), f"{request} read")
        if read is None:
            return
        accounts = json.loads(read.body)["results"]
        amounts = [int(account["value"]) for account in accounts]
        if sum(amounts) != ACCOUNTS * MONEY:
            self._violated(f"a transaction has read {amounts}: money was made or lost")
        amount, (source, target) = rng.randrange(1, 10), rng.sample(range(ACCOUNTS), 2)
        amounts[source], amounts[target] = amounts[source] - amount, amounts[target] + amount
        self._ask(rng, connections, "POST", "/txn", json.dumps({
            "if": [{"key": account["get"], "index": account["index"]} for account in accounts],
            "then": [{"set": account["get"], "value": str(value)} for account, value in zip(accounts, amounts, strict=True)]}).encode(),
            f"{request} write")

    def _let_expire(self, number):
        """A key that expires is there until its time is over, whoever leads."""
        rng, connections = random.Random(f"{self._seed} {self._generation} expiry {number}"), {}
        for count in itertools.count():
            if self._stopping.is_set():
                break
            key, began = self._key(f"expires{count}"), time.monotonic()
            if self._ask(rng, connections, "POST", f"/db/{key}?ttl={TTL_SECONDS:g}s", b"1", f"expires {count}") is None:
                break
            while time.monotonic() < min(self._end, began + 10 * TTL_SECONDS):
                node = rng.choice(self._nodes())
                answer = connections.setdefault(node.address, Client(node.address, node.namespace)).call("GET", f"/db/{key}", timeout=1)
                if answer.status == 404:
                    lived = time.monotonic() - began
                    self.counts["expired"] += 1
                    if lived < TTL_SECONDS:
                        self._violated(f"{key} was to live {TTL_SECONDS:g} s and was gone after {lived:.3f} s, at {node.name}")
                    break
                time.sleep(0.05)
        for connection in connections.values():
            connection.close()

    # Watching

    def _watch(self, number):
        rng = random.Random(f"{self._seed} {self._generation} watch {number}")
        while not self._stopping.is_set():
            last = self._seen[number][-1][0] if self._seen[number] else str(self._since)
            self._follow(rng.choice(self._nodes()), last, self._seen[number], time.monotonic() + STREAM_SECONDS * rng.uniform(0.5, 2))
            self.counts["streams"] += 1
            time.sleep(0.05)

    def _follow(self, node, last, seen, until, enough=lambda: False):
        """Add to *seen* what *node* tells after *last*, until it is *enough*, or *until*, or the stream ends."""
        connection = HTTPConnection(node.address, timeout=1)
        try:
            with inside(node.namespace):
                connection.connect()
            connection.request("GET", f"/watch?prefix={self._key('')}&keys_only", headers={"Last-Event-ID": last})
            answer, fields = connection.getresponse(), {}
            while answer.status == 200 and time.monotonic() < until and not enough():
                line = answer.readline().decode()
                if not line:
                    break
                name, _, text = line.rstrip("\n").partition(": ")
                if name:
                    fields[name] = text
                elif "event" in fields:
                    seen.append((fields["id"], fields["event"], json.loads(fields["data"])["key"]))
                    fields = {}
                else:
                    fields = {}
        except (OSError, HTTPException):
            pass  # it has gone, or is silent: another may know more
        finally:
            connection.close()

    # The verdict

    def judge(self):
        """Once all servers have the same, and ``stop`` was called. Adds to ``violations``."""
        node, client = self._nodes()[0], None
        try:
            client = Client(node.address, node.namespace)
            path = f"/db/?prefix={self._key('')}"
            listed = wait_until(lambda: (answer := client.call("GET", path)).status == 200 and answer, "a list", VERDICT_SECONDS)
            items = json.loads(listed.body)["items"]
        finally:
            client.close()
        found = {item["key"]: item for item in items}
        for key, count in self._done.items():
            if found[key]["version"] != count:
                self._violated(f"{key} was written {count} times and has {found[key]['version']} versions")
        if len(set(self._etags)) != len(self._etags):
            self._violated("two writes have the same index")
        money = sum(int(found[self._account(number)]["value"]) for number in range(ACCOUNTS))
        if money != ACCOUNTS * MONEY:
            self._violated(f"{money} is left of {ACCOUNTS * MONEY}")
        self._judge_histories(max(self._etags, default=0))

    def _history_at(self, node, last):
        """All that *node* tells, up to the entry *last* at least. A busy server may be silent for a while, which ends a stream."""
        seen, deadline = [], time.monotonic() + VERDICT_SECONDS

        def is_all():
            return seen and float(seen[-1][0]) >= last
        while not is_all() and time.monotonic() < deadline:
            self._follow(node, seen[-1][0] if seen else str(self._since), seen, deadline, is_all)
            time.sleep(0.05)
        return seen

    def _judge_histories(self, last):
        whole = []
        for node in self._nodes():
            seen = self._history_at(node, last)
            upto = [event for event in seen if float(event[0]) <= last]
            if whole and upto != whole:
                self._violated(f"{node.name} tells another history than the server before it")
            whole = upto
        if missing := {str(etag) for etag in self._etags} - {id for id, _, _ in whole}:
            self._violated(f"the history lacks {sorted(missing)[:5]}, which were answered")
        self.counts["events"] += len(whole)
        for number, seen in enumerate(self._seen):
            ids = [float(id) for id, _, _ in seen]
            if ids != sorted(set(ids)):
                self._violated(f"who watches ({number}) was told something twice, or out of order")
            if ids and [event for event in seen if float(event[0]) <= last] != [event for event in whole if float(event[0]) <= ids[-1]]:
                self._violated(f"who watches ({number}) was told something else than there is")
