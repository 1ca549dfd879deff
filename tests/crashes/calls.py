"""What a program asks of the file system: its calls, recorded with strace, with all the data they write.

A call that takes effect is an event, in the order in which things happened. Threads overlap: a sync covers only the writes that had
ended when it began, and holds once it has ended.
"""

import itertools
import re
from typing import Any, NamedTuple

_tokens = itertools.count(1)

_TRACED = ("openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,"
           "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,copy_file_range,sendfile,"
           "splice,mmap")
_LINE = re.compile(r"(\d+) +(?:([\w?]+)\((.*)|<\.\.\. ([\w?]+) resumed>(.*)|([+-]{3}) .*)", re.DOTALL)
_UNFINISHED = re.compile(r"(.*) <(?:unfinished|detached) \.\.\.>", re.DOTALL)
_RESULT = re.compile(r"(.*)\) += (-?\d+|\?|0x[0-9a-f]+)(.*)", re.DOTALL)
_FILE = r"\d+<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?"
_TEXT = r'"((?:\\x[0-9a-f]{2})*)"'
_WRITE = re.compile(rf"{_FILE}, {_TEXT}, (\d+)(?:, (\d+))?")
_OPEN = re.compile(rf"(?:[^,]*), {_TEXT}, ([A-Z_|0-9]+)")
_NUMBERS = re.compile(rf"{_FILE}(?:, ([A-Z_|0-9]+))?(?:, (\d+))?(?:, (\d+))?")
_TEXTS = re.compile(_TEXT)


class UnknownCall(Exception):
    """The program has done something to its files that the model does not know: what it says would not hold."""


class Event(NamedTuple):
    """kind: create, truncate, write, written, sync, synced, rename, unlink, mkdir, rmdir, told

    token  joins the beginning of a write or sync and its end: ``written``, ``synced``
    """

    kind: str
    path: str = ""
    offset: int = 0
    data: Any = b""
    token: int = 0


def recorder(trace_path):
    """The beginning of a command that runs another one and records it."""
    return ["strace", "-f", "-y", "--seccomp-bpf", "-xx", "-s", "100000000", "-e", "signal=none", "-e", f"trace={_TRACED}",
            "-o", str(trace_path)]


def events(trace_path, root):
    """The Events of the recording, below the directory *root*; what was written to the standard output is ``told``."""
    return list(_Reader(str(root)).read(trace_path))


def _decoded(text):
    return bytes.fromhex(text.replace("\\x", ""))


def _path(text):
    return _decoded(text).decode("utf-8", "surrogateescape")


def _matched(pattern, arguments):
    match = pattern.match(arguments)
    if not match:
        raise UnknownCall(f"arguments {arguments[:200]}")
    return match.groups()


class _Reader:
    def __init__(self, root):
        self._root = root
        self._begun = {}  # the call under way in each thread: its arguments so far, and the token of what has begun

    def read(self, trace_path):
        with open(trace_path, encoding="ascii") as file:
            for token, line in zip(_tokens, file, strict=False):
                match = _LINE.fullmatch(line.rstrip("\n"))
                if not match:
                    raise UnknownCall(f"{trace_path} has a line {line[:200]!r}")
                thread, name, rest, resumed, more, mark = match.groups()
                if mark or "???" in (name, resumed):  # it was about to call something, and was killed
                    continue
                if name and (unfinished := _UNFINISHED.fullmatch(rest)):
                    arguments = unfinished[1]
                    self._begun[thread] = (arguments, token)
                    yield from self._begin(name, arguments, token)
                elif name:
                    yield from self._begin(name, rest, token)
                    yield from self._end(name, rest, token)
                else:
                    arguments, begun = self._begun.pop(thread)
                    yield from self._end(resumed, arguments + more, begun)

    def _is_ours(self, path):
        return path == self._root or path.startswith(f"{self._root}/")

    def _begin(self, name, arguments, token):
        """A write may reach the disk from its beginning on; what is told, too, may have been heard."""
        if name in ("write", "pwrite64"):
            path, deleted, data, _, offset = _matched(_WRITE, arguments)
            if name == "write" and arguments.startswith("1<"):
                yield Event("told", data=_decoded(data))
            elif self._is_ours(_path(path)) and not deleted:
                if name == "write":
                    raise UnknownCall(f"write at the current position of {_path(path)}")
                yield Event("write", _path(path), int(offset), _decoded(data), token)
        elif name in ("fsync", "fdatasync"):
            path, deleted, *_ = _matched(_NUMBERS, arguments)
            if self._is_ours(_path(path)) and not deleted:
                yield Event("sync", _path(path), token=token)

    def _end(self, name, call, token):
        match = _RESULT.fullmatch(call)
        if not match:
            raise UnknownCall(f"{name}({call[:100]} ... {call[-100:]}")
        arguments, result, _ = match.groups()
        if result == "?" or (result.startswith("-") and name != "pwrite64"):
            return  # it ended with the process, or has failed and done nothing
        match name:
            case "openat":
                yield from self._opened(arguments)
            case "write" | "pwrite64":
                yield from self._wrote(arguments, result, token)
            case "fsync" | "fdatasync":
                path, deleted, *_ = _matched(_NUMBERS, arguments)
                if self._is_ours(_path(path)) and not deleted:
                    yield Event("synced", _path(path), token=token)
            case "ftruncate":
                path, deleted, size, *_ = _matched(_NUMBERS, arguments)
                if self._is_ours(_path(path)) and not deleted:
                    yield Event("truncate", _path(path), int(size))
            case "rename" | "unlink" | "mkdir" | "rmdir":
                paths = [_path(text) for text in _TEXTS.findall(arguments)]
                if any(map(self._is_ours, paths)):
                    yield Event(name, paths[0], data=paths[-1])
            case "mmap":
                self._check_mapping(arguments)
            case _:
                if any(self._is_ours(_path(text)) for text in re.findall(r'[<"]((?:\\x[0-9a-f]{2})+)[>"]', arguments)):
                    raise UnknownCall(f"{name}({arguments[:200]})")

    def _opened(self, arguments):
        path, flags = _matched(_OPEN, arguments)
        path, flags = _path(path), flags.split("|")
        if not self._is_ours(path):
            return
        if "O_CREAT" in flags:
            yield Event("create", path)
        if "O_TRUNC" in flags:
            yield Event("truncate", path, 0)

    def _wrote(self, arguments, result, token):
        path, deleted, _, count, _ = _matched(_WRITE, arguments)
        if self._is_ours(_path(path)) and not deleted:
            if result not in (count, "-1"):  # of one that failed, or was interrupted by the end of the process, some may be there
                raise UnknownCall(f"a write to {_path(path)} of {count} bytes gave {result}")
            yield Event("written", _path(path), token=token)

    def _check_mapping(self, arguments):
        """What is written through a mapping is not seen. SQLite does so to its -shm file only, which it makes anew after a crash."""
        for text in re.findall(r"<((?:\\x[0-9a-f]{2})+)>", arguments):
            path = _path(text)
            if self._is_ours(path) and "MAP_SHARED" in arguments and "PROT_WRITE" in arguments and not path.endswith("-shm"):
                raise UnknownCall(f"{path} is mapped for writing")
