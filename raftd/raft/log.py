"""The part of the log that is not compacted, in memory. Knows the order of entries and nothing of roles, disks or peers."""

ENTRY_BYTES = 160  # of memory, for an entry, without its command


class Log:
    """Entries after ``snapshot_index``, which the state machine already stands for, up to ``last_index``.

    Invariant: indexes are contiguous, and terms never decrease.
    """

    def __init__(self, snapshot_index=0, snapshot_term=0, entries=()):
        self.snapshot_index = snapshot_index
        self.snapshot_term = snapshot_term
        self._entries = list(entries)
        self.last_index = snapshot_index + len(self._entries)
        self.size = sum(len(entry.command) for entry in self._entries)  # bytes of all commands
        assert not self._entries or self._entries[0].index == snapshot_index + 1, "a gap after the snapshot"

    @property
    def first_index(self):
        return self.snapshot_index + 1

    @property
    def last_term(self):
        return self._entries[-1].term if self._entries else self.snapshot_term

    def term_at(self, index):
        """The term of the entry at *index*; None if it is compacted or not there yet."""
        if index == self.snapshot_index:
            return self.snapshot_term
        if self.snapshot_index < index <= self.last_index:
            return self._entries[index - self.snapshot_index - 1].term
        return None

    def entries(self, first, last):
        """The entries from *first* to *last*, both included."""
        assert first > self.snapshot_index, (first, self.snapshot_index)
        return tuple(self._entries[first - self.snapshot_index - 1:last - self.snapshot_index])

    def entries_from(self, first, max_bytes):
        """The entries from *first* on whose commands fit in *max_bytes*, at least one if there is one."""
        position, size = first - self.snapshot_index - 1, 0
        assert position >= 0, (first, self.snapshot_index)
        end = position
        while end < len(self._entries):
            size += len(self._entries[end].command)
            if size > max_bytes and end > position:
                break
            end += 1
        return tuple(self._entries[position:end])

    def size_after(self, index):
        """Bytes of the commands after *index*."""
        return sum(len(entry.command) for entry in self._entries[max(0, index - self.snapshot_index):])

    def is_up_to_date(self, last_log_index, last_log_term):
        """True if a log that ends so is at least as up-to-date as this one: by term, then by index (section 5.4.1)."""
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def matches(self, prev_log_index, prev_log_term):
        """True if the entry at *prev_log_index* has that term. What is compacted was committed, so every leader has it."""
        return prev_log_index < self.snapshot_index or self.term_at(prev_log_index) == prev_log_term

    def conflict(self, prev_log_index):
        """Why ``matches`` failed: (index the leader may try next, term of the conflicting entry or 0) (section 5.3)."""
        if prev_log_index > self.last_index:
            return self.last_index + 1, 0
        term, index = self.term_at(prev_log_index), prev_log_index
        while index > self.first_index and self.term_at(index - 1) == term:
            index -= 1
        return index, term

    def last_index_of_term(self, term):
        """The last index whose term is *term* or older; may be ``snapshot_index``."""
        low, high = self.snapshot_index, self.last_index
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.term_at(middle) <= term else (low, middle - 1)
        return low

    def append(self, entry):
        assert entry.index == self.last_index + 1 and entry.term >= self.last_term, entry
        self._entries.append(entry)
        self.last_index = entry.index
        self.size += len(entry.command)

    def first_new(self, entries):
        """The index of the first of *entries* that is not here, or has another term here (a conflict); None if all are here."""
        for entry in entries:
            if entry.index > self.snapshot_index and self.term_at(entry.index) != entry.term:
                return entry.index
        return None

    def merge(self, entries):
        """Append what is new of *entries*; return the first index that was, or None.

        An entry that is already here stays, and so does all that follows it: only a *conflict*, another term at the same
        index, removes entries. A shorter or older request must not (Figure 2, AppendEntries, steps 3 and 4).
        """
        first_new = self.first_new(entries)
        if first_new is not None:
            if first_new <= self.last_index:
                self._truncate(first_new)
            for entry in entries[first_new - entries[0].index:]:
                self.append(entry)
        return first_new

    def _truncate(self, first_removed):
        position = first_removed - self.snapshot_index - 1
        self.size -= sum(len(entry.command) for entry in self._entries[position:])
        del self._entries[position:]
        self.last_index = first_removed - 1

    def compact(self, index):
        """Forget the entries up to *index*, for which the state machine stands from now on."""
        assert self.snapshot_index <= index <= self.last_index, (self.snapshot_index, index, self.last_index)
        term, count = self.term_at(index), index - self.snapshot_index
        self.size -= sum(len(entry.command) for entry in self._entries[:count])
        del self._entries[:count]
        self.snapshot_index, self.snapshot_term = index, term

    def reset(self, index, term):
        """Start again after a snapshot that this log does not lead up to."""
        self.__init__(index, term)

    def first_within(self, first, max_bytes):
        """The smallest index, from *first* on, such that what comes from there on takes not more than so many bytes of memory.

        It takes the longer, the more comes before it, which is to be forgotten.
        """
        first = max(first, self.first_index)
        before = self._entries[:first - self.first_index]
        size = self.size - sum(len(entry.command) for entry in before) + ENTRY_BYTES * (len(self._entries) - len(before))
        while size > max_bytes:
            size -= len(self._entries[first - self.first_index].command) + ENTRY_BYTES
            first += 1
        return first

    def tail_start(self, last, max_entries, max_bytes):
        """The smallest index such that the entries from there to *last* are within both limits."""
        index, size = last, 0
        while index > self.snapshot_index and last - index < max_entries:
            size += len(self._entries[index - self.snapshot_index - 1].command)
            if size > max_bytes:
                break
            index -= 1
        return index + 1
