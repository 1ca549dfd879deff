"""A file system that holds back what is not synced, and what a power cut may leave of it.

What is assumed of a disk is little: what was synced is there. Of the rest each write may be there or not, whole, in some of its
sectors, or up to anywhere, in any order; a file may have its new size without the data, or the data without the size. Names made,
moved or removed are as they were synced with their directory, and of the later changes some are done: the first ones, as with most file
systems, or any. One thing a disk does not do: overwrite a part of a sector it had synced (512 bytes, the least that it writes).
"""

import os
from itertools import chain, combinations
from typing import NamedTuple

SECTOR_BYTES = 512
MOST_CHANGES = 5  # of names, of which each choice is tried


class Write(NamedTuple):
    offset: int
    data: bytes
    token: int = 0


class Truncate(NamedTuple):
    size: int
    token: int = 0


class File:
    """``durable`` survives for sure; ``pending`` came later; ``now`` is what the program sees."""

    def __init__(self, content=b""):
        self.durable, self.pending, self.now = bytes(content), [], bytearray(content)
        self._open_writes = set()  # tokens of those that have begun
        self._syncs = {}  # what a sync covers that has begun

    def write(self, offset, data, token):
        self.pending.append(Write(offset, data, token))
        self._open_writes.add(token)
        _apply(self.now, self.pending[-1])

    def written(self, token):
        self._open_writes.discard(token)

    def interrupted(self):
        """The writes and syncs under way have ended, the syncs without success."""
        self._open_writes.clear()
        self._syncs.clear()

    def truncate(self, size):
        self.pending.append(Truncate(size))
        _apply(self.now, self.pending[-1])

    def sync(self, token):
        self._syncs[token] = [change for change in self.pending if change.token not in self._open_writes]

    def synced(self, token):
        covered = self._syncs.pop(token)
        content = bytearray(self.durable)
        for change in covered:
            _apply(content, change)
        self.durable = bytes(content)
        self.pending = [change for change in self.pending if not any(change is other for other in covered)]

    def after_cut(self, how, rng):
        """What a power cut leaves: the content, in bytes."""
        content = bytearray(self.durable)
        for change in _HOW[how](self, rng):
            _apply(content, change)
        if how in ("some", "sectors") and len(content) > len(self.durable) and not rng.randrange(4):
            del content[len(self.durable):]  # the data, not the size
        return bytes(content)


def _apply(content, change):
    if isinstance(change, Truncate):
        content[change.size:] = bytes(max(0, change.size - len(content)))
    else:
        content[len(content):] = bytes(max(0, change.offset - len(content)))
        content[change.offset:change.offset + len(change.data)] = change.data


def _only_size(file, _):
    return [Truncate(max(len(file.durable), len(file.now)))]


def _some(file, rng):
    share = rng.random()
    return [change for change in file.pending if rng.random() < share]


def _first_and_a_torn_one(file, rng):
    if not file.pending:
        return []
    last = rng.randrange(len(file.pending))
    return [*file.pending[:last], *_torn(file, file.pending[last], rng)]


def _torn(file, change, rng):
    """The beginning of a write, or all but its beginning: up to a sector, or anywhere beyond what was synced."""
    if isinstance(change, Truncate) or len(change.data) < 2:
        return []
    cut = rng.randrange(1, len(change.data))
    if change.offset + cut < len(file.durable):
        cut = (change.offset + cut) // SECTOR_BYTES * SECTOR_BYTES - change.offset
    if cut <= 0:
        return []
    if rng.randrange(2):
        return [Write(change.offset, change.data[:cut])]
    return [Write(change.offset + cut, change.data[cut:])]


def _sectors(file, rng):
    """Each sector of each write for itself."""
    found = []
    for change in file.pending:
        if isinstance(change, Truncate):
            found += [change] * rng.randrange(2)
            continue
        start = 0
        while start < len(change.data):
            end = min(len(change.data), SECTOR_BYTES - (change.offset + start) % SECTOR_BYTES + start)
            if rng.randrange(2):
                found.append(Write(change.offset + start, change.data[start:end]))
            start = end
    return found


_HOW = {"dropped": lambda file, rng: [], "kept": lambda file, rng: file.pending, "size": _only_size, "some": _some,
        "torn": _first_and_a_torn_one, "sectors": _sectors}
RANDOM_WAYS = ("some", "torn", "torn", "sectors", "kept", "dropped", "size")


class Directory:
    """Names and what they stand for: ``durable``, the changes since then, ``now``. A change is (name, file or None)s, done at once."""

    def __init__(self):
        self.durable, self.pending, self.now = {}, [], {}
        self._syncs = {}

    def change(self, **names):
        self.pending.append(names)
        _rename(self.now, names)

    def sync(self, token):
        self._syncs[token] = len(self.pending)

    def synced(self, token):
        count = self._syncs.pop(token)
        for names in self.pending[:count]:
            _rename(self.durable, names)
        del self.pending[:count]
        self._syncs = {other: max(0, begun - count) for other, begun in self._syncs.items()}

    def interrupted(self):
        self._syncs.clear()

    def after_cut(self, how, rng):
        """What a power cut leaves: of the changes all are "kept" or "dropped", the "first" or "some", or those whose id is in *how*."""
        found = dict(self.durable)
        for names in _KEPT[how](self.pending, rng) if isinstance(how, str) else self.pending:
            if isinstance(how, str) or id(names) in how:
                _rename(found, names)
        return found


_KEPT = {"dropped": lambda changes, rng: [], "kept": lambda changes, rng: changes,
         "first": lambda changes, rng: changes[:rng.randint(0, len(changes))],
         "some": lambda changes, rng: [change for change in changes if rng.randrange(2)]}


def _rename(names, change):
    for name, file in change.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


class FileSystem:
    """What is below the directory *root*, which itself is durable, and empty but for *contents* ({path relative to it: bytes})."""

    def __init__(self, root, contents=()):
        self._root, self._top = str(root), Directory()
        self._directories = [self._top]
        self._begun = {}  # what a write or sync that has begun is of, by its token: the name may change meanwhile
        for path, content in sorted(dict(contents).items()):
            directory, name = self._find(os.path.join(self._root, path), make=True)
            directory.durable[name] = directory.now[name] = self._new_directory() if content is None else File(content)

    def _new_directory(self):
        self._directories.append(Directory())
        return self._directories[-1]

    def _find(self, path, make=False):
        """(the Directory that has it, its name there)"""
        *above, name = os.path.relpath(path, self._root).split(os.sep)
        directory = self._top
        for part in above:
            if make and part not in directory.now:
                directory.durable[part] = directory.now[part] = self._new_directory()
            directory = directory.now[part]
        return directory, name

    def _named(self, path):
        if path == self._root:
            return self._top
        directory, name = self._find(path)
        return directory.now[name]

    def apply(self, event):
        """Do what a ``calls.Event`` says."""
        path = event.path
        match event.kind:
            case "create":
                directory, name = self._find(path)
                if name not in directory.now:
                    directory.change(**{name: File()})
            case "write":
                self._begun[event.token] = file = self._named(path)
                file.write(event.offset, event.data, event.token)
            case "truncate":
                self._named(path).truncate(event.offset)
            case "sync":
                self._begun[event.token] = file = self._named(path)
                file.sync(event.token)
            case "written" | "synced":
                getattr(self._begun.pop(event.token), event.kind)(event.token)
            case "mkdir":
                directory, name = self._find(path)
                directory.change(**{name: self._new_directory()})
            case "unlink" | "rmdir":
                directory, name = self._find(path)
                directory.change(**{name: None})
            case "rename":
                (directory, name), (other, new_name) = self._find(path), self._find(event.data)
                assert directory is other, "a move between directories is not modelled"
                directory.change(**{new_name: directory.now[name], name: None})

    def ways_of_names(self):
        """What ``cut`` should try for *names*: every choice among few changes, else some."""
        changes = [id(change) for directory in self._directories for change in directory.pending]
        if len(changes) > MOST_CHANGES:
            return list(_KEPT)
        return list(map(frozenset, chain.from_iterable(combinations(changes, count) for count in range(len(changes) + 1))))

    def cut(self, names, data, rng):
        """What a power cut leaves, {path: bytes, None for a directory}.

        *names* is a way of ``Directory.after_cut``, *data* one of ``File.after_cut``; or "random", drawn for each.
        """
        left = {}
        self._cut(self._top, "", names, data, rng, left)
        return left

    def _cut(self, directory, above, names, data, rng, left):
        way = rng.choice(list(_KEPT)) if names == "random" else names
        for name, file in sorted(directory.after_cut(way, rng).items()):
            path = os.path.join(above, name)
            if isinstance(file, Directory):
                left[path] = None
                self._cut(file, path, names, data, rng, left)
            elif name.endswith("-shm"):
                left[path] = rng.randbytes(len(file.now))  # written through a mapping: it may hold anything
            else:
                left[path] = file.after_cut(rng.choice(RANDOM_WAYS) if data == "random" else data, rng)

    def contents(self):
        """What the program sees now, {path: bytes, None for a directory}; of files written through mappings the name only."""
        found, waiting = {}, [("", self._top)]
        while waiting:
            above, directory = waiting.pop()
            for name, file in directory.now.items():
                path = os.path.join(above, name)
                if isinstance(file, Directory):
                    found[path] = None
                    waiting.append((path, file))
                else:
                    found[path] = b"" if name.endswith("-shm") else bytes(file.now)
        return found

    def adopt(self, contents):
        """The process was killed in the middle of calls: what is there, and was not recorded, has been done and not synced."""
        for file in self._begun.values():
            file.interrupted()
        self._begun.clear()
        before = self.contents()
        for path in before.keys() - contents.keys():
            directory, name = self._find(os.path.join(self._root, path))
            directory.change(**{name: None})
        for path, content in sorted(contents.items()):
            directory, name = self._find(os.path.join(self._root, path))
            if path not in before:
                directory.change(**{name: self._new_directory() if content is None else File()})
            if content is not None and not name.endswith("-shm") and directory.now[name].now != content:
                directory.now[name].truncate(len(content))
                directory.now[name].write(0, content, 0)
                directory.now[name].written(0)


def contents_of(root):
    """What is below the real directory *root*, as ``FileSystem.contents`` shows it."""
    found = {}
    for above, directories, files in os.walk(root):
        for name in directories:
            found[os.path.relpath(os.path.join(above, name), root)] = None
        for name in files:
            path = os.path.join(above, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = b"" if name.endswith("-shm") else file.read()
    return found


def write_out(contents, root):
    """Make the files of *contents* in the empty directory *root*."""
    for path, content in sorted(contents.items()):
        if content is None:
            os.mkdir(os.path.join(root, path))
        else:
            with open(os.path.join(root, path), "wb") as file:
                file.write(content)
