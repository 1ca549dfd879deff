"""Many cases of one target, on all cores; what was exercised is counted, and a finding tells how to see it again."""

import logging
import os
import random
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

from fuzzing import Bytes, Finding, case
from fuzzing.files import Files
from fuzzing.flags import Flags
from fuzzing.frames import Frames
from fuzzing.live import Live
from fuzzing.replies import Replies
from fuzzing.snapshots import Snapshots
from fuzzing.surface import Surface

TARGETS = {target.name: target for target in (Surface, Live, Frames, Snapshots, Files, Flags, Replies)}
BEGINNINGS = 300
CASES_AT_ONCE = 1000  # of one process, one after the other on one server where there is one


def run(name, first, cases, enough=None):
    """(counts, the finding or None) of so many cases from number *first* on, or until *enough* of the target's unit are done."""
    logging.getLogger().addHandler(logging.NullHandler())  # or Python would print what raftd warns of
    number = first
    target = TARGETS[name]()
    try:
        with target:
            for number in range(first, first + cases):
                target.attack(case(name, number))
                if enough and target.counts[target.unit] >= enough:
                    break
    except Finding as finding:
        again = f"bin/fuzz {name} --from {number} --count 1"
        if number > first and target.name == "live":
            again += f", or with those before it on the same server: bin/fuzz {name} --from {first} --jobs 1"
        return target.counts, f"case {number} of {name}: {finding}\nagain: {again}"
    return target.counts, None


def run_input(name, path):
    """The case that the bytes in the file decide."""
    with TARGETS[name]() as target:
        target.attack(Bytes(Path(path).read_bytes()))
    return target.counts


def run_many(name, count, first, jobs):
    """(counts, findings) of cases from number *first* on, until *count* of the target's unit are done, or something is found."""
    counts, findings, unit = Counter(), [], TARGETS[name].unit
    at_once = min(CASES_AT_ONCE, -(-count // jobs))
    with ProcessPoolExecutor(jobs) as pool:
        running = set()
        while not findings and (counts[unit] < count or running):
            while len(running) < jobs and counts[unit] < count:
                running.add(pool.submit(run, name, first, at_once, count - counts[unit]))
                first += at_once
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for counted, finding in (future.result() for future in done):
                counts += counted
                findings += [finding] if finding else []
    return counts, findings


def run_guided(name, count, first, jobs, directory):
    """(lines that say how far it came, findings): atheris looks for input that reaches code which none has reached before."""
    script, begin = Path(__file__).with_name("guided.py"), Path(directory, "begin")
    begin.mkdir()
    for number in range(BEGINNINGS):  # what is drawn reaches much at once
        (begin / str(number)).write_bytes(random.Random(number).randbytes(2000))
    processes = [subprocess.Popen(
        [sys.executable, script, name, f"-runs={-(-count // jobs)}", f"-seed={first + job + 1}", "-max_len=8000", "-len_control=0",
         "-timeout=120",
         "-rss_limit_mb=0", f"-artifact_prefix={directory}/", begin], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for job in range(jobs)]
    said, findings = [], []
    for process in processes:
        text = process.communicate()[1]
        said += re.findall(r"^#\d+\s+DONE.*$", text, re.M)
        if process.returncode:
            kept = re.search(r"written to (\S+)", text)
            again = f"again: bin/fuzz {name} --input {kept[1]}" if kept else ""
            findings.append("\n".join(line for line in text.splitlines() if not line.startswith(("INFO", "#",
                                                                                                 "WARNING")))[-6000:] + f"\n{again}")
    return said, findings


def not_exercised(name, counts):
    return [what for what in TARGETS[name].exercised if not counts[what]]


CORES = os.cpu_count()
