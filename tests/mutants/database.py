"""Bugs in what is more than a value under a key: exactly once, fences, transactions, prefixes, expiry, history."""

from mutants.mutant import Edit, Mutant

EXECUTION, ENCODING, QUERIES, DATABASE, CLOCK = (
    "kv/execution.py", "kv/encoding.py", "kv/queries.py", "kv/database.py", "kv/clock.py")
EXPIRY, PARAMETERS, WRITES, TXN, DB, ANSWERS = (
    "expiry.py", "web/parameters.py", "web/writes.py", "web/txn.py", "web/db.py", "web/answers.py")

TESTS = "tests/test_kv_execution.py::"
COMMAND_TESTS = "tests/test_kv_commands.py::"
CLOCK_TESTS = "tests/test_kv_clock.py::"
EXPIRY_TESTS = "tests/test_expiry.py::"
WEB_TESTS = "tests/test_web_writes.py::"
SIMULATION = "bin/simulate --seeds 50"
ONCE, CONTRACT = "thesis 6.3; FoundationDB, commit_unknown_result", "the contract"

DATABASE_BUGS = (
    Mutant(
        "request-applied-twice",
        "A request with an idempotency key that is known happens again.", ONCE,
        [Edit(EXECUTION, "if known and self._is_remembered(known[0]):", "if False:")],
        [TESTS + "test_a_request_happens_once_and_is_answered_alike_each_time", SIMULATION], quick=True),
    Mutant(
        "request-not-remembered",
        "What came of a request is remembered in memory only, for one batch.", ONCE,
        [Edit(EXECUTION, "self._requests[key] = self._new_requests[key] = number", "self._requests[key] = number")],
        [TESTS + "test_a_request_is_remembered_after_a_restart_and_in_a_copy", SIMULATION]),
    Mutant(
        "refusal-not-remembered",
        "Only what was done is remembered: a retry of a condition that did not hold may find that it holds now.", ONCE,
        [Edit(EXECUTION, """
        self._remember(command.key, told, encode_outcome(outcome), is_new=not known)
""", """
        if outcome.kind != "refused":
            self._remember(command.key, told, encode_outcome(outcome), is_new=not known)
""")],
        [TESTS + "test_every_outcome_is_the_first_also_a_refusal", SIMULATION]),
    Mutant(
        "another-request-replayed",
        "An idempotency key that is used again for another request gets the outcome of the first, as if that had been done.", CONTRACT,
        [Edit(EXECUTION, 'if known[1] == told else Outcome("reused", index)', "")],
        [TESTS + "test_a_key_of_another_request_is_refused_and_nothing_is_done", SIMULATION]),
    Mutant(
        "retry-is-another-request",
        "When it was sent belongs to what tells a request from others: no retry of a write with a time to live is known.", ONCE,
        [Edit(ENCODING, "encode(request._replace(time=0))", "encode(request)")],
        [COMMAND_TESTS + "test_a_request_is_told_from_others_by_all_but_its_time_and_key", SIMULATION]),
    Mutant(
        "digest-of-the-key-only",
        "What tells a request from others is its key of the state, not its value.", CONTRACT,
        [Edit(ENCODING, "encode(request._replace(time=0))", "_text(request.command.key)")],
        [COMMAND_TESTS + "test_a_request_is_told_from_others_by_all_but_its_time_and_key"]),
    Mutant(
        "requests-forgotten-by-batch",
        "Requests are forgotten when they are removed from the table, which servers do at different times.",
        "section 7 of the paper: all apply the same",
        [Edit(EXECUTION, "return number > self.totals.requests - self._limits.requests", "return True")],
        [TESTS + "test_the_newest_requests_are_remembered_the_others_forgotten_in_the_order_of_the_log", SIMULATION]),
    Mutant(
        "requests-never-removed",
        "What came of requests is kept for ever: the state grows with every write.", "bounded state",
        [Edit(EXECUTION, "if self.totals.requests // at_once > (self.totals.requests - len(rows)) // at_once:", "if False:")],
        [TESTS + "test_requests_that_are_forgotten_are_removed_from_the_file"]),
    Mutant(
        "replay-of-fewer-bytes",
        "Of the results of a transaction that is replayed, those that found nothing are lost.", ONCE,
        [Edit(ENCODING, "return kind == _DONE", "return True")],
        [COMMAND_TESTS + "test_every_outcome_survives_its_bytes_as_one_that_is_replayed", SIMULATION]),
    Mutant(
        "older-holder-writes",
        "A fence holds if the key is there, whoever holds it now.", "Kleppmann, How to do distributed locking (2016)",
        [Edit(EXECUTION, "if created_index != request.fence.token:", "if not created_index:")],
        [TESTS + "test_a_fence_holds_as_long_as_the_key_that_the_token_has_made", SIMULATION]),
    Mutant(
        "holder-of-nothing-writes",
        "A fence holds as long as nobody else has the key: also when the holder has lost it.",
        "Kleppmann, How to do distributed locking (2016)",
        [Edit(EXECUTION, "if created_index != request.fence.token:", "if created_index not in (0, request.fence.token):")],
        [TESTS + "test_a_fence_holds_as_long_as_the_key_that_the_token_has_made", SIMULATION]),
    Mutant(
        "token-of-the-last-write",
        "The token of a fence is compared with the last write of the key: who renews a lock loses it.", CONTRACT,
        [Edit(EXECUTION, "created_index = head.created_index if head else 0", "created_index = head.modified_index if head else 0")],
        [TESTS + "test_a_fence_holds_as_long_as_the_key_that_the_token_has_made", SIMULATION]),
    Mutant(
        "half-a-transaction",
        "A transaction whose answer is too large is found to be so when half of it is done.", "all or nothing",
        [Edit(EXECUTION, "if self._size_of_results(operations) > most_result_bytes:", "if self._size_of_results(operations[1:]) < 0:")],
        [TESTS + "test_a_transaction_that_would_answer_too_much_does_nothing"]),
    Mutant(
        "one-condition-of-a-transaction-is-enough",
        "Of the conditions of a transaction one that holds is enough.", CONTRACT,
        [Edit(EXECUTION, "succeeded = all(self", "succeeded = not conditions or any(self")],
        [TESTS + "test_all_conditions_must_hold_and_none_is_what_holds_always", SIMULATION]),
    Mutant(
        "all-that-reads-together",
        "Transactions that read are done together, however many they are: a thousand of them answer a gigabyte.", "bounded memory",
        [Edit(ENCODING, "if reading > MAX_READING:", "if False:")],
        [COMMAND_TESTS + "test_of_commands_that_answer_values_a_few_are_done_together"]),
    Mutant(
        "all-that-reads-together-though-asked",
        "The state machine is not asked how many commands it wants together.", "bounded memory",
        [Edit("node.py", "entries[:self._state_machine.how_many(", "entries[:len(")],
        ["tests/test_node.py::test_what_the_state_machine_does_not_want_together_it_gets_one_after_the_other"]),
    Mutant(
        "transactions-do-not-see-themselves",
        "A Get in a transaction finds what was there before it.", CONTRACT,
        [Edit(EXECUTION, """
        left, results = self._count_changes(operations), []
""", """
        left, results, before = self._count_changes(operations), [], {part.key: self._found(index, part.key) for part in operations}
"""), Edit(EXECUTION, "results.append(self._found(index, key))", "results.append(before[key])")],
        [TESTS + "test_operations_of_a_transaction_see_those_before_them", SIMULATION]),
    Mutant(
        "conditions-on-what-is-written",
        "A transaction's condition on a value compares nothing when the key has just been written.", CONTRACT,
        [Edit(EXECUTION, "and self._size(head) == len(wanted) and self._value(condition.key, head) == wanted",
              "and (head.change_id in self._values or self._value(condition.key, head) == wanted)")],
        [SIMULATION]),
    Mutant(
        "values-looked-at-in-vain",
        "A transaction reads all values that it is asked for before it finds that they are too many.", "a gigabyte for a kilobyte",
        [Edit(EXECUTION, "size += written[key] if key in written else self._size(head) if head else 0",
              "size += written[key] if key in written else len(self._value(key, head)) if head else 0")],
        [TESTS + "test_a_transaction_looks_at_no_value_that_it_does_not_need"]),
    Mutant(
        "large-outcomes-kept",
        "What transactions have read is kept for their next time, however much it is.", "bounded state",
        [Edit(EXECUTION, "MAX_KEPT_RESULT_BYTES if request.key else MAX_RESULT_BYTES", "MAX_RESULT_BYTES")],
        [TESTS + "test_what_is_remembered_is_small_so_that_all_the_newest_are"]),
    Mutant(
        "page-after-page",
        "Each page of a list passes all keys of the pages before it.", "a walk of all keys takes time with their square",
        [Edit(QUERIES, 'first, beyond = (query.after, ">") if query.after >= query.prefix else (query.prefix, ">=")',
              'first, beyond = query.prefix, f">= {chr(39)}{chr(39)} AND +kv.key > {chr(39)}{query.after}{chr(39)} AND kv.key >="')],
        [TESTS + "test_a_page_is_found_without_a_look_at_those_before_it"]),
    Mutant(
        "prefix-too-wide",
        "A prefix is also of the keys that come right after it.", CONTRACT,
        [Edit(EXECUTION, '"DELETE FROM kv WHERE key >= ? AND key < ?"', '"DELETE FROM kv WHERE key >= ? AND key <= ?"')],
        [TESTS + "test_a_prefix_is_of_just_the_keys_that_begin_with_it"]),
    Mutant(
        "prefix-in-bytes",
        "The end of a prefix is the next character, even where there is none.", "UTF-8 has no surrogates",
        [Edit(DATABASE, "chr(0xE000 if last == 0xD800 else last)", "chr(last) if last != 0xD800 else '\\ud7ff'")],
        [TESTS + "test_the_end_of_a_prefix"]),
    Mutant(
        "deleted-prefix-remembered",
        "After a prefix was deleted, keys that were looked at before are still thought to be there.", "caches",
        [Edit(EXECUTION, """
        self._known_heads.clear()
""", "")],
        [TESTS + "test_a_prefix_is_deleted_in_one_entry_key_by_key", SIMULATION]),
    Mutant(
        "expires-by-the-time-of-the-server",
        "What a leader with an earlier time proposes sets the time of the state back: keys that it makes live shorter.",
        "etcd 9888: leases and leaders; section 7: all apply the same",
        [Edit(EXECUTION, "if command.time > self.totals.time:", "if command.time:")],
        [TESTS + "test_the_time_of_the_state_never_goes_back", SIMULATION]),
    Mutant(
        "expires-a-moment-early",
        "A key is removed before its time is over.", "a lock that two hold",
        [Edit(EXECUTION, "expires_at > 0 AND expires_at <= ? ORDER BY", "expires_at > 0 AND expires_at <= ? + 1 ORDER BY")],
        [TESTS + "test_a_key_expires_by_an_entry_and_by_the_time_in_it", SIMULATION]),
    Mutant(
        "write-keeps-the-deadline",
        "A key that is written again without a time to live expires when the old value would have.", CONTRACT,
        [Edit(EXECUTION, """
            heads[key] = dirty[key] = id, created_index, version, expires_at
""", """
            heads[key] = dirty[key] = id, created_index, version, expires_at or expired_at
""")],
        [TESTS + "test_writing_again_or_touching_gives_a_key_another_time", SIMULATION]),
    Mutant(
        "earlier-deadline-not-told",
        "A key that is written with an earlier deadline than all others expires when those do.", CONTRACT,
        [Edit(EXECUTION, """
            if expires_at != expired_at:
                self.deadlines_have_changed = True
""", "")],
        [TESTS + "test_a_key_expires_by_an_entry_and_by_the_time_in_it"]),
    Mutant(
        "deadline-of-what-is-gone",
        "The next deadline stays that of a key which is deleted: the leader proposes to let it expire, again and again.", "no polling",
        [Edit(EXECUTION, """
        self.heads[key] = self._dirty[key] = head
        self.deadlines_have_changed = True
""", """
        self.heads[key] = self._dirty[key] = head
""")],
        [TESTS + "test_the_next_deadline_follows_all_that_becomes_of_keys"]),
    Mutant(
        "deadline-of-a-prefix-that-is-gone",
        "The same, of a prefix.", "no polling",
        [Edit(EXECUTION, """
        self._more_keys -= count
        self.deadlines_have_changed = True
""", """
        self._more_keys -= count
""")],
        [TESTS + "test_the_next_deadline_follows_all_that_becomes_of_keys"]),
    Mutant(
        "batch-in-wrong-order",
        "Of a transaction that only writes the first change has the last id: who watches is told the older value of a key last.",
        "watch histories: in order",
        [Edit(EXECUTION, "range(last - count + 1, last + 1)", "range(last, last - count, -1)")],
        [TESTS + "test_a_batch_is_told_in_its_order", SIMULATION]),
    Mutant(
        "batch-without-its-conditions",
        "A transaction with conditions that only writes is taken for one without.", CONTRACT,
        [Edit(ENCODING, "case Transaction((), then, ()) if _are", "case Transaction(_, then, ()) if _are")],
        [COMMAND_TESTS + "test_every_command_survives_its_bytes"]),
    Mutant(
        "batch-without-its-other-half",
        "A transaction that does nothing is taken for one that only writes what it would do otherwise.", CONTRACT,
        [Edit(ENCODING, "case Transaction((), then, ()) if _are", "case Transaction((), then) if _are")],
        [COMMAND_TESTS + "test_every_command_survives_its_bytes"]),
    Mutant(
        "batch-without-times-to-live",
        "The keys of a transaction that only writes never expire.", CONTRACT,
        [Edit(ENCODING, "type(part) is Set and not part.ttl for part", "type(part) is Set for part")],
        [COMMAND_TESTS + "test_every_command_survives_its_bytes"]),
    Mutant(
        "leader-tells-the-time-too-early",
        "A new leader tells the time before it has applied what the old one has told: keys may expire early, or the time goes back.",
        "raft: what a new leader may be sure of (section 8)",
        [Edit("node.py", "if not self._in_charge(raft):  # without", "if not self._raft.is_leader:  # without")],
        ["tests/test_node.py::test_who_leads_is_in_charge_once_it_has_applied_what_was_written_before"]),
    Mutant(
        "leader-lets-keys-expire-too-early",
        "The same, of the thread that lets keys expire.", "raft: what a new leader may be sure of (section 8)",
        [Edit("node.py", "if self._raft.is_leader and self._in_charge(self._raft):", "if self._raft.is_leader:")],
        ["tests/test_node.py::test_who_leads_is_in_charge_once_it_has_applied_what_was_written_before"]),
    Mutant(
        "all-expire-at-once",
        "All that has expired is removed by one entry, however much it is: nothing else is applied meanwhile.", "bounded work",
        [Edit(EXECUTION, "(self.totals.time, self._limits.expired_at_once)", "(self.totals.time, 10**9)")],
        [TESTS + "test_many_keys_expire_little_by_little_the_earliest_first", SIMULATION]),
    Mutant(
        "touch-is-a-change",
        "A touch gives the key another version: whoever holds it by its version loses it.", CONTRACT,
        [Edit(EXECUTION, "head._replace(expires_at=self._deadline(command.ttl))",
              "head._replace(expires_at=self._deadline(command.ttl), version=head.version + 1)")],
        [TESTS + "test_writing_again_or_touching_gives_a_key_another_time", SIMULATION]),
    Mutant(
        "history-without-the-last",
        "The history forgets one change more than it says.", "watch histories: etcd, Jepsen 2020",
        [Edit(EXECUTION, "(start, changes - self._limits.changes)).fetchall()", "(start, changes - self._limits.changes + 1)).fetchall()")],
        [TESTS + "test_the_newest_changes_are_kept_and_every_key_its_value", SIMULATION]),
    Mutant(
        "gap-in-the-history",
        "Who asks for changes that are kept no longer is told those that are, as if none was missing.",
        "watch histories: etcd, Jepsen 2020",
        [Edit(QUERIES, "if query.after < start:", "if query.after < 0:")],
        [TESTS + "test_the_newest_changes_are_kept_and_every_key_its_value", SIMULATION], quick=True),
    Mutant(
        "history-takes-values-with-it",
        "The value of a key that was written long ago goes with the history.", "compaction of etcd: the latest version stays",
        [Edit(EXECUTION, """
            "DELETE FROM changes WHERE id > ? AND id <= ?"
            " AND NOT EXISTS (SELECT 1 FROM kv WHERE kv.key = changes.key AND change_id = changes.id)",
""", """
            "DELETE FROM changes WHERE id > ? AND id <= ?",
""")],
        [TESTS + "test_the_newest_changes_are_kept_and_every_key_its_value", SIMULATION]),
    Mutant(
        "old-values-never-removed",
        "A value before the history stays in the file when its key is written again.", "bounded state",
        [Edit(EXECUTION, """
        execute_in(self._cursor, "DELETE FROM changes WHERE id", self._superseded)
""", "")],
        [TESTS + "test_what_nobody_needs_is_removed_from_the_file"]),
    Mutant(
        "first-change-of-an-entry-twice",
        "Who goes on in the middle of a transaction is told its last change again.", "watch histories: none twice",
        [Edit(QUERIES, "WHERE id > ? AND id <= ? ORDER BY id", "WHERE id >= ? AND id <= ? ORDER BY id")],
        [TESTS + "test_a_history_is_read_piece_by_piece", SIMULATION]),
    Mutant(
        "damage-is-told",
        "Who watches is told what a flipped bit has made of a change.", "a disk that lies",
        [Edit(QUERIES, "    database.check_change(path, id, kind, previous_index, checksum, key, value)\n", "")],
        [TESTS + "test_a_history_with_damage_is_not_told"]),
    Mutant(
        "pieces-without-a-bound",
        "A piece of the history has a thousand values, however large they are.", "memory that grows with the data",
        [Edit(QUERIES, ") WHERE before <= ?", ") WHERE before >= 0 * ?")],
        [TESTS + "test_a_piece_of_a_history_is_not_much_larger_than_wanted"]),
    Mutant(
        "list-loses-a-key",
        "The next page of a list begins after its first key.", CONTRACT,
        [Edit(QUERIES, "next_after = items[-1].key", "next_after = row[0]")],
        [TESTS + "test_a_list_is_read_page_by_page"]),
    Mutant(
        "list-of-all-values",
        "A page of a list is as large as its values are.", "bounded memory",
        [Edit(QUERIES, "if len(items) == query.limit or size > MAX_BYTES:", "if len(items) == query.limit:")],
        [TESTS + "test_a_list_of_large_values_is_bounded"]),
    Mutant(
        "new-leader-resets-the-time",
        "A server goes on from what it has heard, without what has passed since: each new leader gives all keys more time.",
        "etcd: leases are extended when the leader changes",
        [Edit(CLOCK, "return told + int((self._monotonic() - at) * 1000)", "return told")],
        [CLOCK_TESTS + "test_time_goes_on_from_what_was_heard"]),
    Mutant(
        "leader-follows-itself",
        "A leader goes on from what it hears of itself, which is late: its clock goes ever slower.", "feedback",
        [Edit(CLOCK, "return max(now, self._after(self._began, self._began_at))", "return now")],
        [CLOCK_TESTS + "test_a_leader_does_not_go_by_what_it_said_itself"]),
    Mutant(
        "leader-of-long-ago",
        "A leader goes on with the clock of a term in which it led before, whatever others have said since.", "drift",
        [Edit(CLOCK, "if self._term != term:", "if self._term is None:")],
        [CLOCK_TESTS + "test_in_another_term_a_leader_goes_on_from_what_it_has_heard"]),
    Mutant(
        "expiry-polls",
        "An idle leader looks for expired keys all the time.", "no polling",
        [Edit(EXPIRY, "                self._wake.wait()\n", "                self._wake.wait(0.01)\n")],
        [EXPIRY_TESTS + "test_without_a_deadline_nothing_is_proposed_and_nothing_looked_at"]),
    Mutant(
        "time-never-told",
        "The state is not told the time until a key expires: after a restart of all servers the key lives as long again.",
        "etcd 9888: checkpoints of leases",
        [Edit(EXPIRY, "due = min(deadline, self._tell_at(deadline))", "due = deadline")],
        [EXPIRY_TESTS + "test_it_is_told_by_an_entry_that_removes_nothing"]),
    Mutant(
        "expiry-gives-up",
        "An entry that could not be proposed is not tried again.", "retries",
        [Edit(EXPIRY, """
            log.debug("expiry was put off reason=%s", error)
            pause = RETRY_SECONDS
""", """
            log.debug("expiry was put off reason=%s", error)
            pause = 1000
""")],
        [EXPIRY_TESTS + "test_what_could_not_be_proposed_is_tried_again"]),
    Mutant(
        "all-deleted-by-mistake",
        "An empty prefix deletes every key without being asked twice.", CONTRACT,
        [Edit(DB, 'if not how["prefix"] and not how["all"]:', "if False:")],
        [WEB_TESTS + "test_all_keys_are_deleted_only_when_that_is_said"]),
    Mutant(
        "replay-not-told",
        "A replay looks like the first answer.", CONTRACT,
        [Edit(WRITES, "if outcome.replayed else {}", "if False else {}")],
        [WEB_TESTS + "test_a_replay_is_the_first_answer_and_says_that_it_is_one"]),
    Mutant(
        "fence-not-looked-at",
        "X-Raft-Fence is taken without a word, and not kept.", CONTRACT,
        [Edit(WRITES, "idempotency_key(fields), fence(fields)", "idempotency_key(fields), None")],
        [WEB_TESTS + "test_a_fence_goes_with_the_command"]),
    Mutant(
        "ttl-without-the-time",
        "A time to live goes into the log without the time of the leader: it counts from when the state was told the time last.", CONTRACT,
        [Edit(WRITES, "time = node.state_machine.clock.lead(term)", "time = 0")],
        [WEB_TESTS + "test_a_time_to_live_goes_with_the_time_of_the_leader"]),
    Mutant(
        "ttl-in-a-transaction-without-the-time",
        "The same, in a transaction.", CONTRACT,
        [Edit(WRITES, "if type(command) is Transaction:", "if False:")],
        [WEB_TESTS + "test_a_transaction"]),
    Mutant(
        "value-of-any-length-in-a-transaction",
        "The largest value of a key is none for transactions.", "bounded memory",
        [Edit(TXN, "len(part.value) > largest for part", "False for part")],
        [WEB_TESTS + "test_a_value_in_a_transaction_is_as_large_as_any"]),
    Mutant(
        "transaction-half-understood",
        "A member of an operation that is not known is skipped: a misspelt one does something else.", CONTRACT,
        [Edit(TXN, """
    for name in rest:
        raise BadRequest(f"there is no member {shown(name)} here")
""", """
    return
""")],
        [WEB_TESTS + "test_a_transaction_that_is_not_understood_is_refused"]),
    Mutant(
        "page-of-any-length",
        "A page of a list is as long as its JSON happens to be.", "bounded memory",
        [Edit(ANSWERS, "if parts and size + len(part) > MAX_LIST_BYTES:", "if False:")],
        [WEB_TESTS + "test_a_list_that_is_too_long_as_json_goes_on_on_the_next_page"]),
)
