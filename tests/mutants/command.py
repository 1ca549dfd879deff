"""``bin/mutants``: the command line."""

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path
from textwrap import indent

from mutants import CATALOGUE
from mutants.runner import KILLED, Runner

TOP = Path(__file__).resolve().parent.parent.parent
DETAIL_CHARACTERS = 200

ABOUT = """\
Plants known bugs in raftd, one at a time, and sees to it that a check notices.

Each bug is an edit of a few lines, which is applied to a copy of this tree; then the checks that are there for it run on the copy, up
to the first that fails. This tree itself is never touched. A line for each bug says what became of it:

  killed     a test failed, or the simulator found a violation: which one, and how it said so
  survived   every check was green: a test is missing
  timed out  the check did not end, or pytest-timeout ended it: a hang is no proof
  broken     the check could not run on the copy, for example because raftd does not even start
  no rule    the edit does not fit the source any more
  no check   a check is not found, or is red without the bug, or all are skipped on this machine

Exit status 0 when all were killed, 1 when one was not, 2 for a wrong command line.
"""


def parse(argv):
    parser = argparse.ArgumentParser(prog="bin/mutants", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the bugs to plant (default: all)")
    parser.add_argument("--quick", action="store_true", help="only the subset for every day")
    parser.add_argument("--every", action="store_true", help="run all checks of each bug: it is killed when each of them sees it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="bugs at a time (%(default)s)")
    parser.add_argument("--list", action="store_true", help="say what the bugs are, where they come from and what checks for them")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error("N must be at least 1")
    known = {mutant.name for mutant in CATALOGUE}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no bug is called {', '.join(unknown)}; --list shows them all")
    return options


def main(argv=None):
    options = parse(argv)
    chosen = [mutant for mutant in CATALOGUE
              if (not options.names or mutant.name in options.names) and (mutant.quick or not options.quick)]
    if options.list:
        print("\n".join(map(described, chosen)))
        return 0
    began, kinds = time.monotonic(), Counter()
    width = max((len(mutant.name) for mutant in chosen), default=0)
    for verdict in Runner(TOP, options.jobs, options.every).run(chosen):
        kinds[verdict.kind] += 1
        detail = verdict.detail if len(verdict.detail) <= DETAIL_CHARACTERS else verdict.detail[:DETAIL_CHARACTERS] + "..."
        print(f"{verdict.kind:9} {verdict.mutant.name:{width}} {verdict.seconds:6.1f} s  {detail}", flush=True)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"{len(chosen)} planted bugs: {counts or 'none'}, {time.monotonic() - began:.0f} s")
    return 0 if kinds[KILLED] == len(chosen) else 1


def described(mutant):
    lines = [mutant.wrong, f"from: {mutant.source}", f"in: {', '.join(dict.fromkeys(f'raftd/{edit.path}' for edit in mutant.edits))}",
             *(f"seen by: {check}" for check in mutant.checks)]
    return f"{mutant.name}{' (quick)' if mutant.quick else ''}\n{indent(chr(10).join(lines), '    ')}"


if __name__ == "__main__":
    sys.exit(main())
