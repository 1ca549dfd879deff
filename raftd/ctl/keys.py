"""The subcommands for keys: get set delete list watch txn lock. Each takes a Client and options, and returns the exit status."""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from raftd.config import Settings
from raftd.ctl.output import Progress, cell, print_json, print_table, value_members, write_bytes
from raftd.ctl.status import CANNOT_RUN, DONE, ENDED_BY_SIGNAL, NO, NO_COMMAND, PERHAPS
from raftd.ctl.words import at_least, seconds

LOST_SECONDS = 10.0  # for a command that is told to end, since its lock is lost
MOST_INPUT_BYTES = Settings.max_waiting_bytes  # more than any server takes
_ID = re.compile(r"[0-9]+(\.[0-9]+)?")


def add(add_command):
    """*add_command(name, run, help, examples)* makes the parser of one."""
    parser = add_command("get", get, "print a value", "raftctl get color\nraftctl get color -o json\nraftctl get job --wait 30s")
    parser.add_argument("key")
    _add_level(parser)
    parser.add_argument("--wait", type=seconds, metavar="TIME", help="until there is such a key, or it has changed after --after")
    parser.add_argument("--after", type=at_least(0), metavar="INDEX", help="see --wait")

    parser = add_command("set", set_, "write a value", "raftctl set color red\nraftctl set logo --file logo.png\ndate | raftctl set now -\n"
                         "raftctl set job me --if-absent --ttl 30s")
    parser.add_argument("key")
    parser.add_argument("value", nargs="?", help="- for standard input")
    parser.add_argument("--file", type=Path, metavar="FILE", help="the value is what this file holds")
    parser.add_argument("--ttl", type=seconds, metavar="TIME", help="the key expires after this time")
    condition = parser.add_mutually_exclusive_group()
    condition.add_argument("--if-absent", action="store_true", help="only if there is no such key")
    condition.add_argument("--if-index", type=at_least(1), metavar="INDEX", help="only if that entry wrote it last")
    _add_fence(parser)

    parser = add_command("delete", delete, "remove a key, or all with a prefix", "raftctl delete color\nraftctl delete --prefix tmp/")
    parser.add_argument("key", nargs="?")
    parser.add_argument("--prefix", metavar="PREFIX", help="all keys that begin with it")
    parser.add_argument("--all", action="store_true", help="every key, with --prefix ''")
    parser.add_argument("--if-index", type=at_least(1), metavar="INDEX", help="only if that entry wrote it last")
    _add_fence(parser)

    parser = add_command("list", list_, "print keys, and what they are", "raftctl list\nraftctl list config/ -o json\n"
                         "raftctl list config/ --keys-only -o plain | xargs -d '\\n' -n1 raftctl get")
    parser.add_argument("prefix", nargs="?", default="")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="at most so many (default: all)")
    parser.add_argument("--after", default="", metavar="KEY", help="those after this one")
    parser.add_argument("--keys-only", action="store_true", help="without values")
    _add_level(parser)

    parser = add_command("watch", watch, "print changes, as they happen", "raftctl watch\nraftctl watch config/ -o json\n"
                         "raftctl watch config/ --since 41 --count 1")
    parser.add_argument("prefix", nargs="?", default="")
    parser.add_argument("--since", type=_id, metavar="ID", help="after this index, or id of a change (default: from now on)")
    parser.add_argument("--keys-only", action="store_true", help="without values")
    parser.add_argument("--count", type=at_least(1), metavar="N", help="end after so many")

    parser = add_command("txn", txn, "several keys in one step", """raftctl txn '{"then": [{"set": "a", "value": "1"}, {"delete": "b"}]}'
raftctl txn - < changes.json""")
    parser.add_argument("transaction", help="JSON with if, then, else; - for standard input")
    _add_fence(parser)

    parser = add_command("lock", lock, "run a command while holding a lock", "raftctl lock backup -- sh backup.sh\n"
                         "raftctl lock backup --ttl 10s --wait 0s -- sh -c 'raftctl set state done --fence \"$RAFTD_FENCE\"'")
    parser.add_argument("name", help="the key that is the lock")
    parser.add_argument("--ttl", type=seconds, default=15.0, metavar="TIME",
                        help="so long after its holder is heard of no more it is free (default 15s)")
    parser.add_argument("--wait", type=seconds, metavar="TIME", help="so long for the lock (default: for ever); 0s: not at all")
    parser.epilog = ("the exit status is that of the command, or 3 if the lock was lost meanwhile: then the command is told to end\n"
                     f"(SIGTERM), and killed {LOST_SECONDS:g} s later\n\n{parser.epilog}")
    parser.usage = "raftctl lock NAME [--ttl TIME] [--wait TIME] [...] -- COMMAND [ARGUMENT ...]"


def _id(text):
    if not _ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"not an index, or the id of a change: {text!r}")
    return text


def _add_level(parser):
    parser.add_argument("--level", choices=["linearizable", "leader", "stale"], help="how new it must be (default linearizable)")


def _add_fence(parser):
    parser.add_argument("--fence", metavar="KEY=TOKEN", help="only while KEY exists and was created by entry TOKEN")


def get(client, options):
    if options.after is not None and options.wait is None:
        options.parser.error("--after goes with --wait")
    if options.wait is not None:
        entry = client.wait(options.key, options.after or 0, options.wait)
    else:
        entry = client.entry(options.key, level=options.level)
    if entry is None:
        return NO
    if options.output == "json":
        print_json({"key": entry.key, **value_members(entry.value), "index": entry.index, "expires_in": entry.expires_in})
    else:
        write_bytes(entry.value)
    return DONE


def set_(client, options):
    if (options.value is None) == (options.file is None):
        options.parser.error("one of VALUE and --file")
    if options.file:
        with options.file.open("rb") as file:
            value = _all_of(file)
    else:
        value = _standard_input() if options.value == "-" else os.fsencode(options.value)
    index = client.set(options.key, value, ttl=options.ttl, if_index=options.if_index, if_absent=options.if_absent, fence=options.fence)
    if options.output == "json":
        print_json({"key": options.key, "index": index})
    return DONE


def delete(client, options):
    if (options.key is None) == (options.prefix is None):
        options.parser.error("one of KEY and --prefix")
    if options.all != (options.prefix == ""):
        options.parser.error("--prefix '' is every key, which needs --all; nothing else does")
    if options.prefix is not None:
        count = client.delete_prefix(options.prefix, all=options.all, fence=options.fence)
        print_json({"deleted": count}) if options.output == "json" else print(count)
        return DONE
    deleted = client.delete(options.key, if_index=options.if_index, fence=options.fence)
    if options.output == "json":
        print_json({"key": options.key, "deleted": deleted})
    return DONE if deleted else NO


def list_(client, options):
    entries, progress = [], Progress("keys")
    for entry in client.list(options.prefix, after=options.after, limit=options.limit, keys_only=options.keys_only, level=options.level):
        if options.output == "plain":
            print(cell(entry.key))
        elif options.output == "json":
            print_json({"key": entry.key, **value_members(entry.value), "index": entry.index, "created_index": entry.created_index,
                        "version": entry.version, "expires_in": entry.expires_in})
        else:
            entries.append(entry)
        progress.show(len(entries))
    progress.clear()
    if options.output == "table":
        values = [] if options.keys_only else ["VALUE"]
        print_table(["KEY", *_NUMBERS, *values], [_row(entry, bool(values)) for entry in entries], rights=_NUMBERS)
    return DONE


_NUMBERS = ("INDEX", "VERSION", "EXPIRES IN")


def _row(entry, with_value):
    expires_in = "" if entry.expires_in is None else f"{entry.expires_in:.0f}s"
    return [entry.key, entry.index, entry.version, expires_in, *([entry.value] if with_value else [])]


def watch(client, options):
    with client.watch(options.prefix, since=options.since, keys_only=options.keys_only) as changes:
        for number, change in enumerate(changes, 1):
            if options.output == "json":
                print_json({"id": change.id, "event": change.kind, "key": change.key, "index": change.index,
                            "previous_index": change.previous_index, **value_members(change.value)})
            else:
                value = "" if change.value is None or options.output == "plain" else f" {cell(change.value)}"
                print(f"{change.id} {change.kind} {cell(change.key)}{value}")
            sys.stdout.flush()
            if number == options.count:
                break
    return DONE


def txn(client, options):
    text = _standard_input() if options.transaction == "-" else options.transaction
    try:
        asked = json.loads(text)
    except (ValueError, RecursionError) as error:
        options.parser.error(f"not JSON: {error}")
    if not isinstance(asked, dict):
        options.parser.error("not a JSON object")
    parts = {name: asked.get(name, []) for name in ("if", "then", "else")}
    if unknown := asked.keys() - parts.keys():
        options.parser.error(f"there is no member {min(unknown)!r}; known: if, then, else")
    for name, part in parts.items():
        if not isinstance(part, list):
            options.parser.error(f"{name!r} is a list")
    try:
        done = client.txn(parts["then"], if_=parts["if"], else_=parts["else"], fence=options.fence)
    except TypeError as error:
        options.parser.error(str(error))
    results = [{**{name: value for name, value in result.items() if name != "value"}, **value_members(result.get("value"))}
               for result in done.results]
    print_json({"succeeded": done.succeeded, "index": done.index, "results": results})
    return DONE if done.succeeded else NO


def _standard_input():
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return _all_of(sys.stdin.buffer)


def _all_of(file):
    data = file.read(MOST_INPUT_BYTES + 1)
    if len(data) > MOST_INPUT_BYTES:
        raise OSError(f"larger than {MOST_INPUT_BYTES >> 20} MiB, which no server takes")
    return data


def lock(client, options):
    """The exit status is that of the command, which has RAFTD_FENCE in its environment; PERHAPS when the lock was lost meanwhile.

    A signal to end is for the command, and the lock is given back when that has ended.
    """
    if not options.command:
        options.parser.error("no command: raftctl lock NAME -- COMMAND")
    starting = threading.Event()  # from then on there may be a command
    wanted = client.lock(options.name, options.ttl, wait=options.wait, value=f"{os.uname().nodename} {os.getpid()}")
    with _signals(starting) as wait_for, wanted as held:
        starting.set()
        try:
            process = subprocess.Popen(options.command, env={**os.environ, "RAFTD_FENCE": held.fence})
        except OSError as error:
            print(f"raftctl: {options.command[0]}: {error.strerror}", file=sys.stderr)
            return NO_COMMAND if isinstance(error, FileNotFoundError) else CANNOT_RUN
        ended = threading.Event()
        threading.Thread(target=_end_when_lost, args=[options.name, held, process, ended], daemon=True).start()
        try:
            status = wait_for(process)
        except KeyboardInterrupt:  # the terminal has told the command, too
            status = wait_for(process)
        ended.set()
        if held.lost.is_set():
            print(f"raftctl: the lock {options.name} was lost while the command ran", file=sys.stderr)
            return PERHAPS
    return status if status >= 0 else ENDED_BY_SIGNAL - status


READING = (get, list_, watch)  # and change nothing
LASTING = (watch, lock)  # as long as somebody wants; others are at work, or speak, meanwhile


@contextmanager
def _signals(starting):
    """What tells this process to end is for its command from *starting* on; before, it ends. Gives what waits for a process, passes that on
    to it, and returns its exit status."""
    kept, (woken, wake) = [], socket.socketpair()

    def end(number, _):
        if not starting.is_set():
            raise SystemExit(ENDED_BY_SIGNAL + number)
        kept.append(number)

    def wait_for(process):
        threading.Thread(target=lambda: (process.wait(), wake.send(b"\0")), daemon=True).start()
        while process.returncode is None:
            while kept:
                process.send_signal(kept.pop(0))
            woken.recv(1)
        return process.returncode
    wake.setblocking(False)
    # A signal that comes just before a wait would be handled after it: its byte ends the wait.
    fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield wait_for
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd)


def _end_when_lost(name, held, process, ended):
    while not ended.is_set():
        if held.lost.wait(0.5) and not ended.is_set():
            print(f"raftctl: the lock {name} is lost; its command is told to end", file=sys.stderr)
            process.send_signal(signal.SIGTERM)
            if not ended.wait(LOST_SECONDS):
                process.kill()
            return
