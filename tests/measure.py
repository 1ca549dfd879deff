"""Figures, not tests: what raftd does on this machine. ``python tests/measure.py WHAT [...]``, or ``all``; each takes minutes.

    failover   kill -9 of the leader of three under 8 writers, 20 times: the gap until the next accepted write; nothing may be lost
    bounded    200,000 writes over 1,000 keys: the size of the files, and the time from a restart to the first answer
    memory     1,000,000 keys of 100 bytes on one node: its memory, and the time from a restart to the first answer
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
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from cluster import Cluster, Writers, the_fault_lasts, wait_until
from compare import RANDOM_KEYS, wrk

NEW_KEYS = """
local number, value = 0, string.rep("x", 100)
request = function() number = number + 1; return wrk.format("POST", "/db/key" .. number, nil, value) end
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


def failover(directory):
    gaps, acknowledged = [], 0
    with Cluster(directory) as cluster:
        for _ in range(20):
            leader = cluster.leader()
            with Writers(cluster.servers, count=8) as writers:
                wait_until(lambda writers=writers: len(writers.acknowledged) > 200, "the load runs")
                killed = time.monotonic()
                leader.kill()
                wait_until(lambda writers=writers, killed=killed: any(w.sent > killed for w in writers.acknowledged[-50:]), "writes go on")
                gaps.append(min(w.answered for w in writers.acknowledged if w.sent > killed) - killed)
            cluster.restart(leader)
            cluster.wait_converged()
            lost = [w for w in writers.acknowledged if cluster.leader().get(w.key).body != w.value]
            assert not lost, f"lost: {lost}"
            acknowledged += len(writers.acknowledged)
    print(f"20 kills: next accepted write after {median(gaps):.3f} s (median), {max(gaps):.3f} s (slowest); "
          f"{acknowledged} acknowledged, 0 missing")


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
        load = threading.Thread(target=wrk, args=(leader.address, 16, 60, RANDOM_KEYS))
        thread.start(), load.start()
        started = time.monotonic()
        cluster.new().start(join=leader, wait=False).wait_listening(300)
        seconds = time.monotonic() - started
        stop.set(), thread.join(), load.join()
        print(f"joined a cluster with {files_of(leader) / 1e6:.0f} MB of files in {seconds:.1f} s; {len(slowest)} writes of another "
              f"client meanwhile, the slowest took {max(slowest):.3f} s; memory of the leader {memory_of(leader) / 1e6:.0f} MB, "
              f"of the new node {memory_of(cluster.servers[-1]) / 1e6:.0f} MB")


def _write_until(address, stop, seconds):
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    while not stop.is_set():
        started = time.monotonic()
        connection.request("POST", "/db/probe", b"x" * 100)
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


MEASURES = {measure.__name__: measure for measure in (failover, bounded, memory, join, idle)}


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
