"""``raftctl bench``: reads its flags, runs the load with a progress bar, and prints what came of it."""

import argparse
import json
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from raftd import bench, plot
from raftd.ctl.status import DONE, INTERRUPTED
from raftd.ctl.words import at_least, number, seconds

BAR_WIDTH = 30
DRAW_SECONDS = 0.2  # between two pictures of the progress bar


BENCH = """Load a cluster, and say how it did.

Each client sends a request when it has the answer to the one before: a closed loop. When the servers stop for a second, such a
client does not send what it would have sent in that second, so that high percentiles look better than users see who do not wait
for each other. --rate does not have this flaw: requests begin at fixed times, whether or not earlier ones are answered, and their
latency counts from the time at which they should have begun.

Latencies are exact, none is rounded into a bucket: 16 bytes of memory for each answer. They are what this one thread sees; it
takes the processor as well, a whole core if the servers are faster than it is.

A request that fails is counted by its error: X-Raft-Error, "connection" (broken or refused), "timeout", "bad_answer" or "http_STATUS".
Its client then rests for 50 ms, and goes on with whoever leads."""
BENCH_EXAMPLES = """examples:
  raftctl bench                                         writes to localhost:4001's cluster, 64 clients, 10 s
  raftctl bench --read-share 0.9 --level stale --reads-from any
  raftctl bench --count 100000 --keys 100000 --json     so many requests; the figures as JSON
  raftctl bench -o plain | grep writes.per_second       a figure a line
  raftctl bench --rate 2000 --duration 5m --plot latency.svg

the fields of --json: clients, value_bytes, keys, read_share, level, reads_from, rate (as asked); seconds, interrupted;
  writes and reads: count, per_second, p50_ms, p90_ms, p99_ms, p99_9_ms, max_ms (null without a sample); reads.missing: of keys
  that were not there; failed, errors: {name: count}; unsent (--rate: requests whose time had come, and no client was free);
  longest_gap_seconds: the longest time without a success"""


def add(commands, parents):
    """Add ``bench`` to *commands*."""
    parser = commands.add_parser("bench", parents=parents, help="load a cluster, and say how it did", description=BENCH,
                                 epilog=BENCH_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.set_defaults(run=run_bench, parser=parser, only_reads=False)
    add = parser.add_argument
    add("--clients", type=at_least(1), default=64, metavar="N", help="requests under way at most (default 64)")
    add("--value-size", type=at_least(0), default=100, metavar="BYTES", help="of a written value (default 100)")
    add("--keys", type=at_least(1), default=1000, metavar="N", help="a request takes one of so many, at random (default 1000)")
    add("--prefix", default="bench/", help="of the keys: they are PREFIX0, PREFIX1, ... and stay (default bench/)")
    add("--read-share", type=_share, default=0.0, metavar="0.0..1.0", help="of the requests (default 0.0: only writes)")
    add("--level", choices=["linearizable", "leader", "stale"], default="linearizable", help="of reads (default linearizable)")
    add("--reads-from", choices=["leader", "any"], default="leader", help="any: the clients spread over the members (default leader)")
    add("--no-fill", action="store_true", help="do not write every key once before a load that reads")
    add("--duration", type=seconds, metavar="TIME", help="such as 10s, 500ms, 5m (default 10s)")
    add("--count", type=at_least(1), metavar="N", help="requests, instead of --duration")
    add("--warm-up", type=seconds, metavar="TIME", help="load before the duration, which is not counted (default 1s)")
    add("--rate", type=_rate, metavar="N", help="begin so many requests a second (an open loop), each by a client that is free")
    add("--json", action="store_const", const="json", dest="output", default=argparse.SUPPRESS, help="the same as --output json")
    add("--plot", type=Path, metavar="FILE.svg",
        help="draw latency over time, new terms, and compactions of the log (asks the leader for /status meanwhile)")


def _share(text):
    return number(text, 0.0, 1.0, "between 0.0 and 1.0")


def _rate(text):
    return number(text, 0.001, 1e6, "a rate, in requests per second")


def load_of(options):
    """The Load that *options* ask for; what contradicts itself ends the process as argparse does."""
    if options.count and (options.duration is not None or options.warm_up is not None):
        options.parser.error("--count goes with neither --duration nor --warm-up")
    if options.duration == 0 or options.timeout == 0:
        options.parser.error("--duration and --timeout must be positive")
    lasts = None if options.count else options.duration or 10.0
    warm_up = 0.0 if options.count else 1.0 if options.warm_up is None else options.warm_up
    return bench.Load(
        clients=options.clients, value_bytes=options.value_size, keys=options.keys, read_share=options.read_share, level=options.level,
        reads_from=options.reads_from, seconds=lasts, count=options.count, warm_up_seconds=warm_up, rate=options.rate,
        prefix=options.prefix, timeout_seconds=options.timeout, with_events=options.plot is not None)


def run_bench(options):
    load = load_of(options)
    addresses = bench.members(options.endpoints)
    if options.plot:
        options.plot.touch()  # better now than after the run, if it cannot be written
    if load.read_share and not options.no_fill:
        filled = _run(bench.fill(load, addresses), "fill")
        if filled.interrupted:
            return INTERRUPTED
        _must_have_succeeded(filled)
    result = _run(bench.Run(load, addresses), "load")
    _must_have_succeeded(result)
    print(FORMS[options.output](result.summary()))
    if options.plot:
        options.plot.write_text(svg_of(result))
    return DONE


def _must_have_succeeded(result):
    if not result.succeeded and not result.interrupted:
        errors = ", ".join(f"{name} {count}" for name, count in result.failures.most_common()) or "nobody leads"
        raise bench.BenchFailed(f"no request succeeded: {errors}")


def _run(run, name):
    """Run it with a progress bar if stderr is a terminal. Ctrl-C ends it early; a second one at once."""
    bar = Bar(run.load, name) if sys.stderr.isatty() else None
    if bar:
        run.watch = bar.draw
    with _on_ctrl_c(run.stop):
        result = run.run()
    if bar:
        bar.clear()
    return result


@contextmanager
def _on_ctrl_c(stop):
    def first(*_):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()
    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Bar:
    """How far a run is, on one line of a terminal."""

    def __init__(self, load, name):
        self._load, self._name, self._began, self._next = load, name, time.monotonic(), 0.0

    def draw(self, result):
        now = time.monotonic()
        if now >= self._next:
            self._next = now + DRAW_SECONDS
            print(f"\r\x1b[K{self.text(result, now - self._began)}", end="", file=sys.stderr, flush=True)

    def text(self, result, seconds):
        load, done = self._load, result.succeeded + sum(result.failures.values())
        share = done / load.count if load.count else seconds / (load.warm_up_seconds + load.seconds)
        filled = int(min(share, 1.0) * BAR_WIDTH)
        return (f"{self._name} [{'#' * filled}{' ' * (BAR_WIDTH - filled)}] {min(share, 1.0):4.0%}  "
                f"{result.succeeded:,} answered, {sum(result.failures.values()):,} failed")

    def clear(self):
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def as_json(summary):
    return json.dumps(summary, indent=2)


def plain(summary):
    """A line for each figure: its name as in JSON (``writes.p50_ms``), and what it is."""
    figures = {}
    for name, value in summary.items():
        figures.update({f"{name}.{inner}": figure for inner, figure in value.items()} if isinstance(value, dict) else {name: value})
    return "\n".join(f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in figures.items())


def table(summary):
    """*summary* for a person; latencies in milliseconds."""
    lines = [_title(summary), "",
             f"{'':8}{'answered':>10}{'per second':>12}{'p50':>9}{'p90':>9}{'p99':>9}{'p99.9':>9}{'max':>9}  ms"]
    lines += [_row(kind, summary[kind]) for kind in ("writes", "reads") if summary[kind]["count"]]
    errors = ", ".join(f"{name} {count}" for name, count in summary["errors"].items())
    lines += ["", f"failed: {summary['failed']}{f' ({errors})' if errors else ''}; "
                  f"the longest time without a success: {summary['longest_gap_seconds']:g} s"]
    if summary["reads"]["missing"]:
        lines.append(f"{summary['reads']['missing']} reads found no key")
    if summary["unsent"]:
        lines.append(f"{summary['unsent']} requests were not sent, since no client was free")
    return "\n".join(lines)


FORMS = {"table": table, "json": as_json, "plain": plain}


def _title(summary):
    reads = f", {summary['read_share']:.0%} reads ({summary['level']}, from {summary['reads_from']})" if summary["read_share"] else ""
    loop = f"{summary['rate']:g} requests per second" if summary["rate"] else "closed loop"
    return (f"{summary['clients']} clients, {loop}, values of {summary['value_bytes']} bytes, {summary['keys']} keys{reads}: "
            f"{summary['seconds']:g} s{' until Ctrl-C' if summary['interrupted'] else ''}")


def _row(kind, figures):
    cells = "".join(f"{figures[name]:9.2f}" for name in bench.PERCENTILES)
    return f"{kind:8}{figures['count']:10,}{figures['per_second']:12,.1f}{cells}"


def svg_of(result):
    """The plot of *result*: reads and writes together."""
    samples = [(answered - result.began, latency) for kind in (result.writes, result.reads)
               for answered, latency in zip(kind.answered, kind.latencies, strict=True)]
    failed_at = [when - result.began for when in result.failed_at]
    events = [(when - result.began, text) for when, text in result.events]
    return plot.latency_svg(samples, failed_at, result.seconds, f"Latency of requests, {result.load.clients} clients", events)
