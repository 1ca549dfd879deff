"""One node of PySyncObj with a replicated dict, for ``compare.py``: python pysyncobj_node.py BATCHES JOURNAL ADDRESS PARTNER...

PySyncObj is a library: its clients are threads of the process of a node, so the load runs here as well. A line on stdin is a question,
the answer is one line of JSON: ``leader`` says whether this node leads, ``load CLIENTS SECONDS`` has so many threads write for so long,
each one write of 100 bytes after another, and gives their latencies and how long it was, in seconds. The end of stdin ends it.
"""

import json
import os
import random
import sys
import threading
import time

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.batteries import ReplDict

TIMEOUT_SECONDS = 10.0


def main():
    batches, journal, address, *partners = sys.argv[1:]
    values = ReplDict()
    node = SyncObj(address, partners, consumers=[values], conf=SyncObjConf(
        journalFile=journal, fullDumpFile=f"{journal}.dump", appendEntriesUseBatch=batches == "batches"))
    for line in sys.stdin:
        match line.split():
            case ["leader"]:
                answer = bool(node.isReady() and node.getStatus()["leader"] == node.getStatus()["self"])
            case ["load", clients, seconds]:
                answer = load(values, int(clients), float(seconds))
        print(json.dumps(answer), flush=True)
    os._exit(0)  # its threads have no other end


def load(values, clients, seconds):
    latencies, failed, started = [], [], time.monotonic()
    until = started + seconds

    def write():
        while (began := time.monotonic()) < until:
            try:
                values.set(f"k{random.randrange(1000)}", "x" * 100, sync=True, timeout=TIMEOUT_SECONDS)
            except Exception as error:  # what it raises is not documented; each is a write that failed
                failed.append(repr(error))
            else:
                latencies.append(time.monotonic() - began)

    threads = [threading.Thread(target=write) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"latencies": latencies, "seconds": time.monotonic() - started, "failed": len(failed), "error": failed[0] if failed else None}


if __name__ == "__main__":
    main()
