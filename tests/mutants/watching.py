"""Bugs in how changes are told: streams of events, and reads that wait for a key."""

from mutants.mutant import Edit, Mutant

WATCHERS, WATCH, LISTENER, QUERIES, DB, PARAMETERS = (
    "watchers.py", "web/watch.py", "listener.py", "kv/queries.py", "web/db.py", "web/parameters.py")
STORE, RECENT, EXECUTION = "kv/store.py", "kv/recent.py", "kv/execution.py"

TESTS = "tests/test_watchers.py::"
RECENT_TESTS = "tests/test_kv_recent.py::"
WEB_TESTS = "tests/test_web_watch.py::"
CLUSTER_TESTS = "tests/test_cluster_database.py::"
HISTORIES = "watch histories: etcd, Jepsen 2020"

WATCHING = (
    Mutant(
        "rests-while-the-history-goes",
        "Who has kept up is told more slowly than data is loaded, until the history is gone.", HISTORIES,
        [Edit(WATCHERS, "ended + (0 if self._is_late() else min(REST", "ended + (0 if False else min(REST")],
        [TESTS + "test_it_does_not_rest_while_who_has_kept_up_might_lose_the_history"]),
    Mutant(
        "no-rest-for-who-asks-for-the-past",
        "Who asks for all that was written gets all of a processor for that.", "writes and peers are left undisturbed",
        [Edit(WATCHERS, "for watcher in self._behind if watcher.has_kept_up]", "for watcher in self._behind]")],
        [TESTS + "test_it_does_not_rest_while_who_has_kept_up_might_lose_the_history"]),
    Mutant(
        "all-is-told-in-one-go",
        "What each of many watches is made for all of them at once.", "memory that grows with the clients",
        [Edit(WATCHERS, "if texts and time.monotonic() >= until:", "if False:")],
        [TESTS + "test_many_who_watch_different_keys_are_not_all_told_in_one_go"]),
    Mutant(
        "watchers-wait-unseen",
        "The state does not know that somebody watches, and lets them wait.", "etcd: who watches is told within milliseconds",
        [Edit(WATCHERS, "state.subscribe(self._applied, lambda: bool(self._watching or self._waiting))", "state.subscribe(self._applied)")],
        [TESTS + "test_the_state_knows_whether_somebody_waits_for_changes"]),
    Mutant(
        "watcher-loses-what-is-pending",
        "Who has not taken all yet is told the next changes in place of the rest.", HISTORIES,
        [Edit(WATCHERS, "return not self.pending and self.last_words is None", "return self.last_words is None")],
        [TESTS + "test_who_takes_nothing_is_dropped_with_an_event_that_says_so"]),
    Mutant(
        "watcher-is-told-twice",
        "Who is behind is told what comes next, and again what all are told.", HISTORIES,
        [Edit(WATCHERS, """
            self._behind[watcher] = None
            return
        watcher.has_kept_up = True
        if watcher.position == self._told:
""", """
            self._behind[watcher] = None
        watcher.has_kept_up = True
        if watcher.position <= self._told:
""")],
        [TESTS + "test_many_changes_are_told_in_pieces_while_more_come", TESTS + "test_who_goes_on_is_told_what_comes_after",
         TESTS + "test_who_is_ahead_waits_until_it_comes"]),
    Mutant(
        "catching-up-skips",
        "Who catches up is thought to be up to date after one piece.", HISTORIES,
        [Edit(WATCHERS, "return changes[-1].id if changes else self._told, events", "return self._told, events")],
        [TESTS + "test_many_changes_are_told_in_pieces_while_more_come"]),
    Mutant(
        "nobody-catches-up",
        "Who is behind is told nothing until the next change comes.", HISTORIES,
        [Edit(WATCHERS, "(self._told < change_id(self._state.position.index) or bool(self._behind))",
              "self._told < change_id(self._state.position.index)")],
        [TESTS + "test_who_goes_on_where_the_history_is_gone_is_told_so", TESTS + "test_large_values"]),
    Mutant(
        "slow-watcher-polled",
        "Who takes nothing is looked at again and again, as fast as it goes.", "no polling",
        [Edit(WATCHERS, "or bool(self._behind))", "or any(one.position < self._told for one in self._watching.values()))")],
        [TESTS + "test_who_is_slow_makes_no_work"]),
    Mutant(
        "history-jumps-unseen",
        "When the history begins later than what was told last, those who were up to date are told nothing of it.", HISTORIES,
        [Edit(WATCHERS, """
                self._release(parked)
            return
        self._told""", """
                self._release(parked)
            changes = []
        self._told""")],
        [TESTS + "test_when_the_history_jumps_nobody_is_told_that_nothing_has_happened"], quick=True),
    Mutant(
        "one-request-ends-all",
        "A number that no log comes near is handed to SQLite, which refuses it: nobody is told anything any more.", "hostile requests",
        [Edit("kv/database.py", "return min(index * MOST_CHANGES_OF_AN_ENTRY - more, LARGEST_ID)",
              "return index * MOST_CHANGES_OF_AN_ENTRY - more")],
        [TESTS + "test_a_number_that_is_no_index_ends_nothing"]),
    Mutant(
        "fault-ends-the-thread",
        "After a fault of ours nobody is told anything any more, and no read that waits is answered.", "a thread that dies unseen",
        [Edit(WATCHERS, """
                    self._let_go()
        finally:""", """
                    return
        finally:""")],
        [TESTS + "test_a_fault_of_ours_sends_all_away_and_is_over_then"]),
    Mutant(
        "unreadable-state-ends-the-wait",
        "A read that waits is lost when the state cannot be read for a moment.", "descriptors",
        [Edit(WATCHERS, "            changed = True\n        if changed", "            changed = False\n        if changed")],
        [TESTS + "test_a_state_that_cannot_be_read_for_a_while_ends_nothing"]),
    Mutant(
        "late-comers-wait-for-ever",
        "Who comes when it has stopped is neither told nor let go.", "shutdown",
        [Edit(WATCHERS, "        if self._ended:\n            self._let_go()\n", "")],
        [TESTS + "test_who_comes_when_it_has_stopped_is_let_go"]),
    Mutant(
        "gone-clients-wait",
        "A read whose client has gone holds its connection until its time is over.", "descriptors; connection_limit",
        [Edit(WATCHERS, "elif parked := self._waiting.get(descriptor):", "elif parked := None:")],
        [TESTS + "test_who_has_gone_does_not_wait"]),
    Mutant(
        "answered-waits-kept",
        "A read that was answered is kept until the time is over that it would have waited.", "bounded memory",
        [Edit(WATCHERS, "if len(self._deadlines) > 2 * len(self._waiting) + 100:", "if False:")],
        [TESTS + "test_who_has_been_answered_is_forgotten"]),
    Mutant(
        "those-behind-not-in-turn",
        "Who is behind waits until all before him are told everything.", "fairness",
        [Edit(WATCHERS, "for watcher in list(self._behind):", "for watcher in sorted(self._behind, key=id):")],
        [TESTS + "test_those_behind_are_told_in_turn_and_others_meanwhile"]),
    Mutant(
        "slow-watcher-kept",
        "Who takes nothing is kept for ever, with what it was to take.", "bounded memory",
        [Edit(WATCHERS, "now - watcher.moved > STALL_SECONDS or size > MAX_PENDING_BYTES",
              "size > MAX_PENDING_BYTES")],
        [TESTS + "test_who_takes_nothing_is_dropped_with_an_event_that_says_so"]),
    Mutant(
        "pending-without-bound",
        "Thousands who are a little slow hold as much memory as they like.", "bounded memory",
        [Edit(WATCHERS, "now - watcher.moved > STALL_SECONDS or size > MAX_PENDING_BYTES",
              "now - watcher.moved > STALL_SECONDS")],
        [TESTS + "test_what_is_pending_for_all_is_bounded"]),
    Mutant(
        "dropped-in-the-middle-of-an-event",
        "Who is dropped is told so in place of the rest of the event that it was being told.", HISTORIES,
        [Edit(WATCHERS, "        watcher.last_words, watcher.moved = farewell", "        watcher.pending = memoryview(b'')\n"
              "        watcher.last_words, watcher.moved = farewell")],
        [TESTS + "test_who_takes_nothing_is_dropped_with_an_event_that_says_so"]),
    Mutant(
        "gone-watchers-kept",
        "The descriptors of those who have gone are kept until something is to be told.", "descriptors",
        [Edit(WATCHERS, "if not watcher.connection.recv(4096):", "if watcher.connection.recv(4096) is None:")],
        [TESTS + "test_who_has_gone_is_forgotten"]),
    Mutant(
        "each-watcher-reads-for-itself",
        "What has changed is read once for each who watches.", "cost per batch",
        [Edit(WATCHERS, "for prefix, concerned, some in self._up_to_date.of(changes):", """
for watcher in self._up_to_date.all():
            self._fall_behind(watcher, before)
        for prefix, concerned, some in []:"""),
         Edit(WATCHERS, "if wanted not in known:", "if True:")],
        [TESTS + "test_what_has_changed_is_read_once_for_all_who_are_up_to_date"]),
    Mutant(
        "all-who-watch-are-work",
        "Whatever changes, all who watch are looked at, whose keys it is none of.", "etcd: watchers are found by their keys",
        [Edit(WATCHERS, "        found = {}\n        for change in changes:\n            key",
              "        found = {prefix: [] for prefix in self._watching}\n        for change in changes:\n            key")],
        [TESTS + "test_who_watches_other_keys_makes_no_work"]),
    Mutant(
        "short-keys-told-twice",
        "A key that is shorter than some that are watched is told once for each length of those.", HISTORIES,
        [Edit(WATCHERS, "                if length > len(key):\n                    break\n", "")],
        [TESTS + "test_who_watches_other_keys_makes_no_work", TESTS + "test_many_who_watch_different_keys_are_not_all_told_in_one_go"]),
    Mutant(
        "prefix-of-who-has-gone",
        "The lengths of prefixes that nobody watches any more are tried for ever.", "bounded work",
        [Edit(WATCHERS, "            self._count(len(prefix), -1)\n", "            pass\n")],
        [TESTS + "test_who_watches_other_keys_makes_no_work"]),
    Mutant(
        "falls-behind-and-skips",
        "For whom there was no time is thought to have been told.", HISTORIES,
        [Edit(WATCHERS, "self._fall_behind(watcher, before)\n                        continue",
              "self._fall_behind(watcher, self._told)\n                        continue")],
        [TESTS + "test_many_who_watch_different_keys_are_not_all_told_in_one_go"]),
    Mutant(
        "leaves-with-an-old-place",
        "Who was up to date and takes his time is told again what has passed since he came.", HISTORIES,
        [Edit(WATCHERS, "            self._fall_behind(watcher, self._told)\n        self._behind",
              "            self._fall_behind(watcher, watcher.position)\n        self._behind")],
        [TESTS + "test_who_was_up_to_date_is_told_the_rest_and_nothing_twice", TESTS + "test_large_values"]),
    Mutant(
        "keeps-alive-with-an-old-place",
        "Who hears nothing for long is told to go on from where he began, of which the history may be gone.", HISTORIES,
        [Edit(WATCHERS, "keep_alive(self._told if watcher in self._up_to_date else watcher.position)", "keep_alive(watcher.position)")],
        [TESTS + "test_who_hears_nothing_for_long_is_told_that_it_is_still_there"]),
    Mutant(
        "ahead-for-ever",
        "Who comes from a server that is further is never told anything.", HISTORIES,
        [Edit(WATCHERS, "for watcher in list(self._ahead):", "for watcher in []:")],
        [TESTS + "test_who_is_ahead_waits_until_it_comes"]),
    Mutant(
        "ahead-of-a-copy",
        "Who comes from a server that is further is told nothing of what a copy has brought, until something else happens.", HISTORIES,
        [Edit(WATCHERS, "                self._fall_behind(watcher, before)\n            self._place_those_ahead()\n",
              "                self._fall_behind(watcher, before)\n")],
        [TESTS + "test_who_is_ahead_when_a_copy_comes_is_told_what_it_has"]),
    Mutant(
        "told-and-kept",
        "Whoever was told something large keeps it in memory until there is more.", "bounded memory",
        [Edit(WATCHERS, "            watcher.pending = _NOTHING  # an empty part of what was told would hold all of it\n", "")],
        [TESTS + "test_what_was_told_is_not_kept"]),
    Mutant(
        "deaf-after-a-fault",
        "After a fault of ours nothing wakes the thread any more.", "a thread that dies unseen",
        [Edit(WATCHERS, "self._awake = self._is_resting = False  # before", "self._is_resting = False  # before"),
         Edit(WATCHERS, """
        while self._incoming:
            self._begin""", """
        self._awake = False
        while self._incoming:
            self._begin""")],
        [TESTS + "test_after_a_fault_it_still_hears_who_comes"]),
    Mutant(
        "rests-and-forgets",
        "What happens while it rests is not told until something else happens.", "lost wake-up",
        [Edit(WATCHERS, "if self._is_resting or self._has_more():", "if self._has_more():")],
        [TESTS + "test_what_happens_while_it_rests_is_told_afterwards"]),
    Mutant(
        "woken-from-its-rest",
        "Each batch that is applied wakes it from its rest, for nothing.", "no polling",
        [Edit(WATCHERS, "if (self._watching or self._waiting) and not self._is_resting:", "if self._watching or self._waiting:")],
        [TESTS + "test_what_happens_while_it_rests_is_told_afterwards"]),
    Mutant(
        "changes-in-memory-with-a-gap",
        "What was applied while nobody waited is missing from the changes in memory, which say that they are all.", HISTORIES,
        [Edit(STORE, "self._recent.followed_by(written, index) if is_told else Recent.none(index)",
              "self._recent.followed_by(written if is_told else [], index)")],
        [RECENT_TESTS + "test_memory_and_table_say_the_same"], quick=True),
    Mutant(
        "changes-in-memory-go-back-further",
        "The changes in memory answer for those that have been left out of it.", HISTORIES,
        [Edit(RECENT, "after = batches.pop(0).last", "batches.pop(0)")],
        [RECENT_TESTS + "test_memory_and_table_say_the_same"]),
    Mutant(
        "changes-in-memory-twice",
        "Who goes on in the middle of a batch is told all of it.", HISTORIES,
        [Edit(RECENT, "if id > query.after:", "if batch.last > query.after:")],
        [RECENT_TESTS + "test_memory_and_table_say_the_same"]),
    Mutant(
        "changes-in-memory-without-bound",
        "As many changes are in memory as there are batches to hold them, however large.", "bounded memory",
        [Edit(RECENT, "or sum([batch.size for batch in batches]) > MOST_BYTES", "")],
        [RECENT_TESTS + "test_there_are_never_many"]),
    Mutant(
        "changes-of-a-prefix-in-memory",
        "A prefix that is deleted is in memory, key by key.", "bounded memory",
        [Edit(EXECUTION, "        self._write_keys()\n        self.written = None\n", "        self._write_keys()\n")],
        [RECENT_TESTS + "test_there_are_never_many"]),
    Mutant(
        "changes-in-memory-of-before-the-copy",
        "After a copy was installed the changes in memory are those of before, and the next are put behind them.", HISTORIES,
        [Edit(STORE, "self._recent, self._position = Recent.none(position.index), position",
              "self._recent, self._position = getattr(self, '_recent', Recent.none(position.index)), position")],
        [RECENT_TESTS + "test_a_copy_takes_the_place_of_what_was_applied"]),
    Mutant(
        "closed-store-answers",
        "A stream in a thread asks a store that is closed again and again, and is told each time that nothing is new.", "shutdown",
        [Edit(STORE, "recent = None if self._closed else self._recent.history(query)", "recent = self._recent.history(query)")],
        [RECENT_TESTS + "test_a_store_that_is_closed_says_so"]),
    Mutant(
        "watchers-do-not-rest",
        "Thousands who watch have the processor before writes and peers.", "etcd: watch storms",
        [Edit(WATCHERS, "ended + (0 if self._is_late() else", "ended + (0 if self._is_late() or True else")],
        [TESTS + "test_it_rests_four_times_as_long_as_it_works"]),
    Mutant(
        "never-heard-again",
        "Who hears nothing for long cannot tell that from a server that is gone.", "proxies, half-open connections",
        [Edit(WATCHERS, "elif not watcher.pending and now - watcher.moved > KEEP_ALIVE_SECONDS:", "elif False:")],
        [TESTS + "test_who_hears_nothing_for_long_is_told_that_it_is_still_there"]),
    Mutant(
        "waits-for-what-has-happened",
        "A read that waits is not compared with what has happened before it: it waits for the change after.", "lost wake-up",
        [Edit(WATCHERS, "changed = self._state.read(HasChanged(parked.key, parked.index))", "changed = False")],
        [TESTS + "test_a_read_waits_for_its_key"]),
    Mutant(
        "waits-too-short",
        "A read that waits is answered by a change that its client knows already, which comes late to this server.", "the contract",
        [Edit(WATCHERS, "if last[key] > change_id(parked.index):", "if last[key]:")],
        [TESTS + "test_who_knows_more_than_this_server_waits_for_what_comes_after"]),
    Mutant(
        "waits-past-its-time",
        "A read that waits is answered only when its key changes.", "the contract",
        [Edit(WATCHERS, "while self._deadlines and self._deadlines[0][0] <= now:", "while False:")],
        [TESTS + "test_a_read_waits_no_longer_than_it_wants_to"]),
    Mutant(
        "deletes-are-no-change",
        "Who asks whether a key has changed that is not there any more is told that it has not.", "the contract",
        [Edit(QUERIES, "return len(keys) == MAX_LOOKED_AT or (query.key,) in keys", "return False")],
        [TESTS + "test_a_read_waits_for_its_key"]),
    Mutant(
        "waits-in-a-thread",
        "Each read that waits holds one of the threads for requests.", "waitress: a request that waits holds a thread",
        [Edit(LISTENER, "elif not self.lane.take(channel) and not self._park(channel, request):", "elif not self.lane.take(channel):")],
        [CLUSTER_TESTS + "test_two_hundred_reads_that_wait_hold_no_thread"]),
    Mutant(
        "last-event-id-ignored",
        "A browser that goes on is told everything since the beginning again.", "the standard of server-sent events",
        [Edit(WATCH, 'if "Last-Event-ID" in request.headers else', 'if "Last-Event-Id" in request.args else')],
        [WEB_TESTS + "test_where_a_stream_goes_on"]),
    Mutant(
        "watch-from-what-is-applied",
        "A stream from now on begins where this node is, which may be behind: it tells what was answered before.", "the contract",
        [Edit(WATCH, "position = change_id(node.read(Changes(_LAST, 0), timeout=how[\"timeout\"]).applied_index)",
              "position = change_id(node.look_up(Changes(_LAST, 0)).applied_index)")],
        [WEB_TESTS + "test_a_stream_begins_where_the_state_is_now"]),
    Mutant(
        "gone-history-streamed",
        "Who asks for changes that are kept no longer gets a stream, and no 410.", "the contract",
        [Edit(WATCH, "        node.look_up(Changes(position, 0))\n", "        pass\n")],
        [WEB_TESTS + "test_a_history_that_is_gone_is_410_with_the_oldest_index"]),
    Mutant(
        "ids-of-an-entry-alike",
        "All changes of a transaction have the same id: who breaks off in the middle loses the rest.", HISTORIES,
        [Edit(WATCH, 'return f"{index}.{more:06}" if more else str(index)', "return str(index + bool(more))")],
        [TESTS + "test_each_change_is_told_once_in_order"]),
    Mutant(
        "watched-value-of-a-delete",
        "keys_only does not keep values back.", "the contract",
        [Edit(WATCH, 'if kind == "put" and not keys_only else {}', 'if kind == "put" else {}')],
        [TESTS + "test_a_prefix_and_keys_only"]),
)
