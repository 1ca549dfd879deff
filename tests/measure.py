"""Figures, not tests: what raftd does on this machine. ``python tests/measure.py WHAT [...]``, or ``all``; each takes minutes.

    failover   kill -9 of the leader of three under 8 writers, 20 times: the gap until the next accepted write; nothing may be lost; and
               the same again while reads with level=leader are in use
    restart    SIGTERM of the leader of three under 8 writers, and its start, 12 times: the longest gap between two accepted writes
    bounded    200,000 writes over 1,000 keys: the size of the files, and the time from a restart to the first answer
    memory     1,000,000 keys of 100 bytes on one node: its memory, and the time from a restart to the first answer
    flat       1,000,000 keys of 100 bytes on three nodes, 64 writers: the latency of writes while the log is compacted, and while
               a new node is sent a copy of the state, beside that of the time before; RAFTD_PLOT names a file for the plot
    beside     64 writers of 100 bytes over 1,000 keys, over 1,000,000, and, with 16, beside a client that writes values of 1 MiB one after
               the other, in turn: by how much more and larger data changes the latency of small writes
    writes     64 clients on three nodes, plain writes beside those that say more: a condition, a fence, a time to live, an idempotency
               key; small transactions; and what does not take the express lane
    batches    transactions that set 100 new keys each, from 16 clients, on one node and on three: keys per second, in the order of the
               keys, the same with a time to live, and at random
    expiry     64 writers beside 100,000 keys that will expire in an hour, and without them, in turn; 100,000 keys that expire together
    prefix     1,000,000 keys are deleted as one prefix: how long that takes, and the slowest write meanwhile
    watch      three nodes, one write at a time: how long after its answer those who watch are told; 64 writers beside 1,000 who watch on
               the leader, other keys or those that are written, and beside nobody, in turn; who watches while data is loaded
    partition  the leader of three is cut off by a firewall that drops its packets, 10 times: the gap until the next accepted write
    load       64 writers for 10 minutes: no election may be held
    join       a node joins a cluster with 300 MB of state under load: how long, and the slowest write meanwhile
    idle       three idle nodes for 30 s: their CPU time together, and their calls of fsync

Needs Debian's wrk (and strace) and nothing else on the machine that takes the processor. How fast raftd is, beside others, is
measured by ``compare.py``.
"""

import argparse
import http.client
import os
import re
import resource
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median

from cluster import Client, Cluster, Network, Writers, the_fault_lasts, wait_until
from compare import RANDOM_KEYS, wrk

from raftd.bench import Load, Run, percentile
from raftd.plot import latency_svg

NEW_KEYS = """
local number, value = 0, string.rep("x", 100)
request = function() number = number + 1; return wrk.format("POST", "/db/key" .. number, nil, value) end
"""

BATCHES = """
math.randomseed(os.time())
local number, value = %s, string.rep("x", 20)
request = function()
   local sets = {}
   for i = 1, 100 do
      number = number + 1
      sets[i] = string.format('{"set": "%s%%09d", "value": "%%s"%s}', %s, value)
   end
   return wrk.format("POST", "/txn", nil, '{"then": [' .. table.concat(sets, ",") .. ']}')
end
"""


def memory_of(server):
    """Resident bytes of the process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1]) * 1024


def files_of(server):
    return sum(file.stat().st_size for file in server.path.iterdir())


def first_answer(server):
    """Seconds from the start of the process to its first answered linearizable read."""
    started = time.monotonic()
    server.start(wait=False)
    wait_until(lambda: server.call("GET", "/db/none", timeout=2).status == 404, "a read is answered")
    return time.monotonic() - started


def first_accepted(servers):
    """The moment at which one of *servers* had accepted a write: each is asked in turn, with no pause that anybody would notice."""
    clients = [Client(server.address, server.client_namespace) for server in servers]
    for client in cycle(clients):
        if client.call("POST", "/db/probe", b"x", timeout=2).status == 200:
            break
        the_fault_lasts.wait(0.001)
    for client in clients:
        client.close()
    return time.monotonic()


def check_nothing_is_lost(cluster, writers):
    lost = [w for w in writers.acknowledged if cluster.leader().get(w.key).body != w.value]
    assert not lost, f"lost: {lost}"


def failover(directory):
    for leases in (False, True):
        (directory / str(leases)).mkdir()
        _kill_leaders(directory / str(leases), leases)


def _kill_leaders(directory, leases):
    """With *leases* somebody reads with level=leader until the leader is killed."""
    gaps, acknowledged = [], 0
    with Cluster(directory) as cluster:
        for _ in range(20):
            leader = cluster.leader()
            followers = cluster.followers(leader)
            with Writers(cluster.servers, count=8) as writers:
                writers.wait_for_more(200)
                if leases:
                    assert leader.get("probe", "?level=leader").status in (200, 404)
                    writers.wait_for_more(100)  # whose entries ask for the promise
                killed = time.monotonic()
                leader.kill()
                gaps.append(first_accepted(followers) - killed)
                writers.wait_for_more(50)
            cluster.restart(leader)
            cluster.wait_converged()
            check_nothing_is_lost(cluster, writers)
            acknowledged += len(writers.acknowledged)
    print(f"20 kills{', reads with level=leader in use' if leases else ''}: next accepted write after {median(gaps):.3f} s (median), "
          f"{max(gaps):.3f} s (slowest); {acknowledged} acknowledged, 0 missing", flush=True)


def restart(directory):
    gaps = []
    with Cluster(directory) as cluster:
        for _ in range(12):
            leader = cluster.leader()
            with Writers(cluster.servers, count=8) as writers:
                writers.wait_for_more(200)
                ended = time.monotonic()
                assert leader.terminate() == 0
                seconds = time.monotonic() - ended
                cluster.restart(leader)
                writers.wait_for_more(200)
            answered = sorted(write.answered for write in writers.acknowledged)
            gaps.append(max(later - earlier for earlier, later in pairwise(answered) if later > ended))
            print(f"stopped in {seconds:.3f} s, longest gap {gaps[-1]:.3f} s, refused {dict(writers.refused)}", flush=True)
            cluster.wait_converged()
    print(f"12 restarts of the leader: longest gap {median(gaps):.3f} s (median), {max(gaps):.3f} s (most)")


def bounded(directory):
    with Cluster(directory, size=1) as cluster:
        server = cluster[1]
        while (done := server.status()["last_applied"]) < 200_000:
            wrk(server.address, 64, 10, RANDOM_KEYS)
            print(f"{server.status()['last_applied']:8} writes over 1,000 keys: files {files_of(server) / 1e6:.1f} MB, "
                  f"memory {memory_of(server) / 1e6:.0f} MB", flush=True)
        assert server.terminate() == 0
        print(f"{done} writes: restart to the first answered read in {first_answer(server):.2f} s")
        server.kill()
        print(f"after kill -9: {first_answer(server):.2f} s")


def memory(directory):
    with Cluster(directory, size=1) as cluster:
        server = cluster[1]
        _load(server, 1_000_000)
        print(f"1,000,000 keys of 100 bytes: memory {memory_of(server) / 1e6:.0f} MB, files {files_of(server) / 1e6:.0f} MB")
        server.kill()
        print(f"after kill -9: first answered read in {first_answer(server):.2f} s, memory {memory_of(server) / 1e6:.0f} MB")


def _load(server, count):
    """Write key1 to key*count*."""
    done = 0
    while done < count:
        start = f"local number, value = {done}, string.rep"
        wrk(server.address, 64, 20, NEW_KEYS.replace("local number, value = 0, string.rep", start))
        done = server.status()["last_applied"] - 100  # every write is an entry; a few more are not
        print(f"{done:8} keys, memory {memory_of(server) / 1e6:.0f} MB", flush=True)


CALM_SECONDS, COPYING_SECONDS = 20, 40
NEAR_SECONDS = 0.5  # of an event, which the bench knows by a quarter of a second


def flat(directory):
    with Cluster(directory) as cluster:
        leader = cluster.leader()
        _load(leader, 1_000_000)
        run = Run(Load(clients=64, keys=1_000_000, prefix="key", seconds=CALM_SECONDS + COPYING_SECONDS, warm_up_seconds=2.0,
                       with_events=True), [server.address for server in cluster.servers])
        results = []
        load = threading.Thread(target=lambda: results.append(run.run()))
        load.start()
        the_fault_lasts.wait(CALM_SECONDS + 2)
        began = time.monotonic()
        cluster.new().start(join=leader, wait=False).wait_listening(300)
        joined = time.monotonic()
        load.join()
        result, = results
        copy = [(began, "a node joins"), (joined, "it has joined")]
        writes = list(zip(result.writes.answered, result.writes.latencies, strict=True))
        compactions = [when for when, text in result.events if text.startswith("log")]
        _show_latency(writes, compactions, began, joined)
        print(f"{len(compactions)} compactions seen; the copy took {joined - began:.1f} s; failed: {sum(result.failures.values())}")
        if path := os.environ.get("RAFTD_PLOT"):
            samples, events = ([(when - result.began, what) for when, what in pairs] for pairs in (writes, result.events + copy))
            Path(path).write_text(latency_svg(samples, [when - result.began for when in result.failed_at], result.seconds,
                                              "Latency of writes: 64 clients, 1,000,000 keys, three nodes, 2 cores", events))


def _show_latency(writes, compactions, began, joined):
    """p50 and p99 of what was answered in each time, and p99 beside that of the calm time."""
    times = {"calm": [], "a compaction": [], "a copy of the state": []}
    for when, latency in writes:
        if began <= when <= joined:
            times["a copy of the state"].append(latency)
        elif when < began:
            near = any(abs(when - compaction) <= NEAR_SECONDS for compaction in compactions)
            times["a compaction" if near else "calm"].append(latency)
    calm = percentile(sorted(times["calm"]), 99)
    for name, latencies in times.items():
        half, most = (percentile(sorted(latencies), percent) for percent in (50, 99))
        print(f"{name:20} {len(latencies):7} writes, p50 {1000 * half:6.1f} ms, p99 {1000 * most:6.1f} ms, "
              f"{most / calm:.2f} times the calm one")


def beside(directory):
    """Each round has all of them, so that a machine that is slower for a while is so for each."""
    seen = {"1,000 keys": [], "1,000,000 keys": [], "small values only": [], "beside 1 MiB values": []}
    with Cluster(directory) as cluster:
        leader = cluster.leader()
        _load(leader, 1_000_000)
        for _ in range(ROUNDS):
            for name, clients, keys in (("1,000 keys", 64, 1000), ("1,000,000 keys", 64, 1_000_000), ("small values only", 16, 1000)):
                seen[name].append(_latencies(leader, clients, keys))
            stop, large = threading.Event(), []
            thread = threading.Thread(target=_write_until, args=(leader.address, stop, large, "large", b"x" * (1 << 20)))
            thread.start()
            seen["beside 1 MiB values"].append(_latencies(leader, 16, 1000))
            stop.set(), thread.join()
            print(f"{len(large)} values of 1 MiB, half of them in {1000 * median(large):.1f} ms", flush=True)
    for name, rounds in seen.items():
        print(f"{name:20} p50 {1000 * median(half for half, _ in rounds):6.1f} ms, p99 {1000 * median(most for _, most in rounds):6.1f} ms")
    for more, less in (("1,000,000 keys", "1,000 keys"), ("beside 1 MiB values", "small values only")):
        ratios = [[one / other for one, other in zip(*pair, strict=True)] for pair in zip(seen[more], seen[less], strict=True)]
        print(f"{more}: {median(half for half, _ in ratios):.2f} times the p50, {median(most for _, most in ratios):.2f} times the p99 of "
              f"{less} (medians of {ROUNDS} rounds)")


ROUNDS, SECONDS = 5, 5.0


def _latencies(leader, clients, keys):
    """(p50, p99) of small writes, in seconds."""
    run = Run(Load(clients=clients, keys=keys, prefix="key", seconds=SECONDS, warm_up_seconds=1.0), [leader.address])
    latencies = sorted(run.run().writes.latencies)
    return percentile(latencies, 50), percentile(latencies, 99)


WRITES = {
    "plain": '"PUT", path, nil, "x"',
    "?ttl=1h": '"PUT", path .. "?ttl=1h", nil, "x"',
    "If-Match": '"PUT", path, {["If-Match"] = "*"}, "x"',
    "If-None-Match, new keys": '"PUT", path .. "/" .. number, {["If-None-Match"] = "*"}, "x"',
    "X-Raft-Fence": '"PUT", path, {["X-Raft-Fence"] = "lock=" .. token}, "x"',
    "Idempotency-Key": '"PUT", path, {["Idempotency-Key"] = "request-" .. token .. "-" .. number}, "x"',
    "/txn, if, set and get": """"POST", "/txn", nil, '{"if": [{"key": "lock", "exists": true}], "then": [{"set": "a", "value": "x"}, """
                             """{"get": "lock"}]}'""",
    "an escape in the key": '"PUT", path .. "%20", nil, "x"',
}
A_WRITE = """
local number, token, path = %d, %d, nil
request = function() number = number + 1; path = "/db/key" .. (number %% 1000); return wrk.format(%s) end
"""


def writes(directory):
    rates = {}
    for turn in range(3):
        (directory / str(turn)).mkdir()
        with Cluster(directory / str(turn)) as cluster:
            leader = cluster.leader()
            token = int(leader.put("lock", b"x").headers["etag"].strip('"'))
            wrk(leader.address, 64, 1, A_WRITE % (0, token, WRITES["plain"]))
            for what, format in WRITES.items():
                figures = wrk(leader.address, 64, 4, A_WRITE % (0, token, format))
                assert figures.failed == 0, (what, figures)
                rates.setdefault(what, []).append(figures.rate)
    for what, found in rates.items():
        print(f"{what}: {median(found):,.0f} writes/s; ratio {median(found) / median(rates['plain']):.2f}", flush=True)


def batches(directory):
    for size in (1, 3):
        for order, key, more in (("in order", "number", ""), ("in order, to expire", "number", ', "ttl": "1h"'),
                                 ("at random", "math.random(999999999)", "")):
            here = directory / f"{size} {order}"
            here.mkdir()
            with Cluster(here, size) as cluster:
                rates = [100 * wrk(cluster.leader().address, 16, 6, BATCHES % (start * 10**8, "load/", more, key)).rate
                         for start in range(3)]
            print(f"{size} nodes, keys {order}: {median(rates):,.0f} keys/s (median; {min(rates):,.0f} to {max(rates):,.0f})", flush=True)


def expiry(directory):
    clusters, rates = {}, {"none": [], "100,000": []}
    with ExitStack() as running:
        for name in rates:
            (directory / name).mkdir()
            clusters[name] = running.enter_context(Cluster(directory / name))
        leader = clusters["100,000"].leader()
        _load_expiring(leader, "hour/", "1h")
        print("memory of the leaders:", *(f"{memory_of(cluster.leader()) / 1e6:.0f} MB" for cluster in clusters.values()), flush=True)
        for _ in range(6):
            for name, cluster in clusters.items():
                rates[name].append(wrk(cluster.leader().address, 64, 3, RANDOM_KEYS).rate)
        ratio = median(some / none for none, some in zip(*rates.values(), strict=True))
        print(f"64 writers: {median(rates['none']):,.0f} writes/s; {median(rates['100,000']):,.0f} beside 100,000 keys that will expire; "
              f"ratio {ratio:.2f}", flush=True)
        began = time.monotonic()
        _load_expiring(leader, "soon/", "20s")
        last = time.monotonic() + 20
        the_fault_lasts.wait(began + 20 - time.monotonic())
        while_they_expire = wrk(leader.address, 64, 4, RANDOM_KEYS).rate
        wait_until(lambda: b'"items": []' in leader.call("GET", "/db/?prefix=soon/&limit=1").body, "all are gone", 60)
        print(f"100,000 keys written in {last - 20 - began:.1f} s: all are gone {time.monotonic() - last:.1f} s after the last should be; "
              f"{while_they_expire:,.0f} writes/s meanwhile")


def _load_expiring(leader, prefix, ttl):
    key = BATCHES % (0, prefix, f', "ttl": "{ttl}"', "number")
    before = entries = leader.status()["last_applied"]
    while entries < before + 1000:
        wrk(leader.address, 8, 1, key.replace("value = 0,", f"value = {(entries - before) * 100},"))
        entries = leader.status()["last_applied"]


def prefix(directory):
    with Cluster(directory) as cluster:
        leader, seconds, stop, start = cluster.leader(), [], threading.Event(), 0
        while start < 1_000_000:
            wrk(leader.address, 16, 5, BATCHES % (start, "many/", "", "number"))
            start = (leader.status()["last_applied"] - 10) * 100
        writer = threading.Thread(target=_write_until, args=(leader.address, stop, seconds))
        writer.start()
        wait_until(lambda: seconds, "it writes")
        began = time.monotonic()
        answer = leader.call("DELETE", "/db/?prefix=many/&timeout=60s", timeout=70)
        took = time.monotonic() - began
        index = int(answer.headers["x-raft-index"])
        wait_until(lambda: all(server.status()["last_applied"] >= index for server in cluster.servers), "it is done everywhere", 120)
        everywhere = time.monotonic() - began
        stop.set()
        writer.join()
        print(f"{answer.body.decode().strip()}: answered after {took:.1f} s, done on all nodes after {everywhere:.1f} s; the slowest of "
              f"{len(seconds)} writes meanwhile took {max(seconds):.2f} s; term {leader.status()['term']}")


def watch(directory):
    with Cluster(directory) as cluster:
        leader = cluster.leader()
        watched = {"the leader": leader, "a follower": cluster.followers(leader)[0]}
        for where, server in watched.items():
            late = []
            with _watching(server, "lone/") as stream:
                for number in range(100):
                    the_fault_lasts.wait(0.2)  # long after all else
                    assert leader.call("PUT", f"/db/lone/{number}", b"x").status == 200
                    answered = time.monotonic()
                    while f'"lone/{number}"'.encode() not in stream.recv(4096):
                        pass
                    late.append((time.monotonic() - answered) * 1e3)
            print(f"who watches on {where} is told {median(late):.1f} ms after the answer (median; {max(late):.1f} ms at most)", flush=True)
        rates = {"nobody": [], "1,000 who watch other keys": [], "1,000 who watch the keys that are written": []}
        for _ in range(6):
            for rate, prefix in zip(rates.values(), (None, "other/", "k"), strict=True):
                with ExitStack() as crowd:
                    streams = [crowd.enter_context(_watching(leader, prefix)) for _ in range(1000 if prefix else 0)]
                    crowd.enter_context(_taken(streams))
                    rate.append(wrk(leader.address, 64, 3, RANDOM_KEYS).rate)
        for beside, rate in rates.items():
            ratio = median(some / none for none, some in zip(rates["nobody"], rate, strict=True))
            print(f"64 writers beside {beside}: {median(rate):,.0f} writes/s; ratio {ratio:.2f}", flush=True)
        with _watching(leader, "other/") as quiet, _watching(leader, "load/") as stream:
            told = []
            counter = threading.Thread(target=_hear, args=(stream, "load/last", told))
            counter.start()
            rate = 100 * wrk(leader.address, 16, 10, BATCHES % (0, "load/", "", "number")).rate
            the_fault_lasts.wait(2)
            for key in ("other/last", "load/last"):
                assert leader.call("PUT", f"/db/{key}", b"x").status == 200
            counter.join()
            _hear(quiet, "other/last", others := [])
            assert len(others) == 1 and b"load/last" in told[-1], (others, told[-1], "one of them was dropped")
        print(f"while {rate:,.0f} keys/s are loaded, who watches them is told of all {len(told) - 1:,}, who watches others stays; "
              f"term {leader.status()['term']}")


def _hear(stream, last, told):
    """The data of each event into *told*, up to that of the key *last*, or that which says that there will be no more."""
    with stream.makefile("rb") as lines:
        for line in lines:
            if line.startswith(b"data: "):
                told.append(line)
                if last.encode() in line:
                    return


def _watching(server, prefix):
    """A connection on which those changes are told from now on."""
    host, port = server.address.split(":")
    connection = socket.create_connection((host, int(port)), 30)
    connection.sendall(f"GET /watch?prefix={prefix} HTTP/1.1\r\nHost: {server.address}\r\n\r\n".encode())
    while not connection.recv(4096).endswith(b"\n\n"):
        pass
    return connection


@contextmanager
def _taken(streams):
    """Whatever they are told is taken, and forgotten, as soon as it comes."""
    stop, poll = threading.Event(), select.epoll()
    for stream in streams:
        poll.register(stream, select.EPOLLIN)
    by_descriptor = {stream.fileno(): stream for stream in streams}

    def take():
        while not stop.is_set():
            for descriptor, _ in poll.poll(0.1):
                by_descriptor[descriptor].recv(1 << 20)
    taker = threading.Thread(target=take)
    taker.start()
    yield
    stop.set()
    taker.join()
    poll.close()


def partition(directory):
    gaps = []
    with Network() as network, Cluster(directory, 3, network) as cluster:
        for _ in range(10):
            leader = cluster.leader()
            with Writers(cluster.servers, count=8) as writers:
                writers.wait_for_more(200)
                cut = time.monotonic()
                network.isolate(leader)
                gaps.append(first_accepted(cluster.followers(leader)) - cut)
                network.heal()
                writers.wait_for_more(50)
            cluster.wait_converged()
            check_nothing_is_lost(cluster, writers)
    print(f"10 partitions: next accepted write after {median(gaps):.3f} s (median), {max(gaps):.3f} s (slowest), nothing lost")


def load(directory):
    with Cluster(directory) as cluster:
        before = cluster.terms()
        run = Run(Load(clients=64, seconds=600.0, warm_up_seconds=2.0, with_events=True), [server.address for server in cluster.servers])
        result = run.run()
        latencies = sorted(result.writes.latencies)
        half, most, slowest = (1000 * percentile(latencies, percent) for percent in (50, 99, 100))
        print(f"{len(latencies)} writes in {result.seconds:.0f} s, p50 {half:.1f} ms, p99 {most:.1f} ms, at most {slowest:.0f} ms; "
              f"failed: {sum(result.failures.values())}; terms {before} before, {cluster.terms()} after; "
              f"memory {', '.join(f'{memory_of(server) / 1e6:.0f} MB' for server in cluster.servers)}")


def join(directory):
    with Cluster(directory) as cluster:
        leader = cluster.leader()
        for number in range(300):
            answer = leader.put(f"large{number}", os.urandom(1 << 20))
            assert answer.status == 200, answer
        for _ in range(2):  # more entries than the log keeps, so that a new node needs a snapshot
            wrk(leader.address, 64, 5, RANDOM_KEYS)
        slowest, stop = [], threading.Event()
        thread = threading.Thread(target=_write_until, args=(leader.address, stop, slowest))
        load = threading.Thread(target=wrk, args=(leader.address, 64, 60, RANDOM_KEYS))
        thread.start(), load.start()
        started = time.monotonic()
        cluster.new().start(join=leader, wait=False).wait_listening(300)
        seconds = time.monotonic() - started
        stop.set(), thread.join(), load.join()
        print(f"joined a cluster with {files_of(leader) / 1e6:.0f} MB of files in {seconds:.1f} s; {len(slowest)} writes of another "
              f"client meanwhile, the slowest took {max(slowest):.3f} s; memory of the leader {memory_of(leader) / 1e6:.0f} MB, "
              f"of the new node {memory_of(cluster.servers[-1]) / 1e6:.0f} MB")


def _write_until(address, stop, seconds, key="probe", value=b"x" * 100):
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    while not stop.is_set():
        started = time.monotonic()
        connection.request("POST", f"/db/{key}", value)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        seconds.append(time.monotonic() - started)


def idle(directory):
    with Cluster(directory) as cluster:
        cluster.wait_converged()
        the_fault_lasts.wait(2)
        before = [_cpu_seconds(server) for server in cluster.servers]
        the_fault_lasts.wait(30)
        used = sum(_cpu_seconds(server) for server in cluster.servers) - sum(before)
        print(f"three idle nodes: {used / 30:.1%} of a core")
        if shutil.which("strace"):
            calls = subprocess.run(["timeout", "-s", "INT", "10", "strace", "-f", "-c", "-e", "trace=fsync,fdatasync",
                                    *(word for server in cluster.servers for word in ("-p", str(server.process.pid)))],
                                   capture_output=True, text=True).stderr
            print(f"calls of fsync in 10 s: {len(re.findall(r' f(?:data)?sync$', calls, re.M))} kinds\n")


def _cpu_seconds(server):
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


MEASURES = {measure.__name__: measure for measure in (failover, partition, restart, bounded, memory, flat, beside, writes, batches, expiry,
                                                 prefix, watch, load, join, idle)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=[*MEASURES, "all"])
    what = parser.parse_args().what
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for name in MEASURES if "all" in what else what:
        print(f"-- {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"raftd-{name}-") as directory:
            MEASURES[name](Path(directory))


if __name__ == "__main__":
    sys.exit(main())
