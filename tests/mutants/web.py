"""Bugs in what clients are told: raftd/web, lane.py, errors.py."""

from mutants.mutant import Edit, Mutant

DB = "web/db.py"
WRITES = "web/writes.py"
PARAMETERS = "web/parameters.py"
ANSWERS = "web/answers.py"
LANE = "lane.py"
ERRORS = "errors.py"

WRITES_TESTS = "tests/test_web_writes.py::"
TESTS = "tests/test_web.py::"
LANE_TESTS = "tests/test_lane.py::"

WEB = (
    Mutant(
        "lane-reads-stale",
        "A plain read is answered with what is here, without asking the leader.",
        "etcd 0.4.1 and Consul (Jepsen 2014)",
        [Edit(LANE, """
        if level == "stale":
            self._node""", """
        if type(command) is Get:
            self._node""")],
        [LANE_TESTS + "test_a_read_is_answered_as_flask_answers_it"], quick=True),
    Mutant(
        "lane-answers-a-failed-read",
        "A read whose leader was deposed is answered with what is here.",
        "thesis 6.4",
        [Edit(LANE, "elif pending.result() and not self._node.is_installing:", "elif not self._node.is_installing:")],
        [LANE_TESTS + "test_a_read_without_a_leader_goes_to_flask_which_waits_for_one"]),
    Mutant(
        "lane-ignores-conditions",
        "A write with If-Match takes the fast way, which does not look at it.",
        "compare-and-set",
        [Edit(LANE, "else Set(key, body, held, ", "else Set(key, body, UNCONDITIONAL, ")],
        [LANE_TESTS + "test_a_write_on_a_condition_is_answered_as_flask_answers_it"]),
    Mutant(
        "lane-deletes-without-conditions",
        "A DELETE with If-Match takes the fast way, which does not look at it.",
        "compare-and-set",
        [Edit(LANE, "return Delete(key, held)", "return Delete(key)")],
        [LANE_TESTS + "test_a_write_on_a_condition_is_answered_as_flask_answers_it"]),
    Mutant(
        "lane-takes-any-condition",
        "A transaction with If-Match is done in the lane, which has no place for it.", "never skipped",
        [Edit(LANE, """
            no_conditions(fields)
""", "")],
        [LANE_TESTS + "test_a_transaction_with_a_condition_of_a_key_is_refused"]),
    Mutant(
        "key-ends-within-a-letter",
        "The end of an idempotency key is cut off where a byte of a letter looks like a space: two keys become one.", "the contract",
        [Edit("web/parameters.py", 'key = key.strip(" \\t")', "key = key.strip()")],
        ["tests/test_web_writes.py::test_what_python_takes_for_a_space_is_a_part_of_an_idempotency_key"]),
    Mutant(
        "time-is-given-twice",
        "A write with a time to live may take twice its timeout.", "the contract",
        [Edit("web/writes.py", "term, timeout = node.term_in_charge", "term, _ = node.term_in_charge")],
        ["tests/test_web_writes.py::test_to_wait_for_the_time_of_the_leader_is_a_part_of_the_timeout"]),
    Mutant(
        "transaction-reads-an-old-time",
        "A transaction tells how long a key has left from when the state was told the time last.", "the contract",
        [Edit("web/writes.py", "return command.reads or any", "return any")],
        ["tests/test_web_writes.py::test_a_transaction_that_tells_when_a_key_expires_goes_with_the_time_of_the_leader"]),
    Mutant(
        "lane-looks-for-small-letters",
        "Who wants JSON, in capitals, gets text from the lane.", "RFC 9110, 8.3.1",
        [Edit(LANE, 'headers.get("ACCEPT", "").lower()', 'headers.get("ACCEPT", "")')],
        [LANE_TESTS + "test_a_request_with_an_unusual_header_goes_to_flask"]),
    Mutant(
        "the-last-member-counts",
        "Of two operations that were written into one object the first is skipped without a word.", "never skipped",
        [Edit("web/parameters.py", "if len(found) < len(members):", "if False:")],
        ["tests/test_web_writes.py::test_a_transaction_that_is_not_understood_is_refused"]),
    Mutant(
        "json-in-any-encoding",
        "JSON may come in UTF-16, in which a value is larger than the body says.", "RFC 8259, 8.1",
        [Edit("web/parameters.py", "_JSON.decode(data.decode())", "_JSON.decode(data.decode(json.detect_encoding(data)))")],
        ["tests/test_web_writes.py::test_a_transaction_that_is_not_understood_is_refused"]),
    Mutant(
        "lane-forgets-the-idempotency-key",
        "A write with Idempotency-Key takes the fast way, which would apply it twice.",
        "FoundationDB, commit_unknown_result",
        [Edit(LANE, "encoded(self._node, command, fields, timeout=0)", "encoded(self._node, command, {}, timeout=0)")],
        [LANE_TESTS + "test_a_write_with_an_idempotency_key_is_answered_as_flask_answers_it"]),
    Mutant(
        "lane-does-not-tell-the-time",
        "A write with a time to live takes the fast way, and expires by the time of the write before it.",
        "TTL by a clock that stands still",
        [Edit(WRITES, "if _needs_time(command):", "if False:")],
        [LANE_TESTS + "test_a_write_that_lasts_for_a_time_is_answered_as_flask_answers_it"]),
    Mutant(
        "lane-makes-up-the-time",
        "A new leader takes its own clock for that of the state before it has heard what those before it have said.",
        "a lease after a change of leaders",
        [Edit(WRITES, "        term, timeout = node.term_in_charge(timeout)\n", """
        try:
            term, timeout = node.term_in_charge(timeout)
        except Exception:
            term = 7
""")],
        [LANE_TESTS + "test_who_needs_a_time_that_is_not_known_yet_goes_to_flask_which_waits"]),
    Mutant(
        "lane-holds-any-number-of-outcomes",
        "As many transactions that read are under way as there are connections: what they answer is in memory together.", "bounded memory",
        [Edit(LANE, "if reads and len(self._reading) >= self._node.settings.client_threads:", "if False:")],
        [LANE_TESTS + "test_only_so_many_transactions_that_read_are_under_way_in_the_lane"]),
    Mutant(
        "lane-counts-for-ever",
        "A transaction that was answered counts as one under way: soon all go through Flask.", "a leak",
        [Edit(LANE, """
        self._reading.discard(pending)
""", "")],
        [LANE_TESTS + "test_only_so_many_transactions_that_read_are_under_way_in_the_lane"]),
    Mutant(
        "lane-says-of-what-is-done-that-it-is-not",
        "Who waits for his turn to be answered is told that his write was not committed in time.", "an untrue answer",
        [Edit(LANE, "if pending.channel is not None and not pending.done():", "if pending.channel is not None:")],
        [LANE_TESTS + "test_who_is_done_and_waits_only_for_his_turn_is_not_told_that_it_was_too_late"]),
    Mutant(
        "a-follower-tells-the-time",
        "Who does not lead makes up the time of a leader: what it has proposed in that moment, in which it was elected, expires too early.",
        "a lease after a change of leaders",
        [Edit("node.py", """
                if not self._raft.is_leader:
                    raise self._not_leading_locked()
""", """
                if not self._raft.is_leader:
                    return 0, timeout
""")],
        ["tests/test_node.py::test_who_leads_is_in_charge_once_it_has_applied_what_was_written_before"]),
    Mutant(
        "lane-lets-anything-last",
        "A DELETE with ttl in its query is taken, and answered as if that meant something.",
        "the contract: what is not understood is refused",
        [Edit(LANE, "_LAST if lasts else _ALL", "_ALL")],
        [LANE_TESTS + "test_a_time_to_live_that_is_not_plain_goes_to_flask"]),
    Mutant(
        "lane-says-what-a-transaction-would-have-done",
        "The answer names the operations of \"then\", also when those of \"else\" were done.", "the contract",
        [Edit(ANSWERS, "operations = transaction.then if succeeded else transaction.otherwise", "operations = transaction.then")],
        [LANE_TESTS + "test_a_real_server_answers_the_same_with_and_without_the_lane"]),
    Mutant(
        "lane-remembers-the-idempotency-key",
        "Of two requests with the same head but for the key the second gets the key of the first.",
        "a cache with too small a key",
        [Edit(LANE, "return self._length_in(channel, lines) if length == -1 else length, fields",
              "self._said = getattr(self, '_said', fields); return self._length_in(channel, lines), self._said")],
        [LANE_TESTS + "test_what_a_write_says_is_another_each_time_and_only_the_rest_of_the_head_is_remembered"]),
    Mutant(
        "lane-believes-the-first-idempotency-key",
        "Of a request with two keys the first counts, where a proxy may have taken the last.",
        "request smuggling (CWE-444)",
        [Edit(LANE, '_UNUSUAL = {"EXPECT", *_OF_A_WRITE}', '_UNUSUAL = {"EXPECT"}')],
        [LANE_TESTS + "test_a_request_with_an_unusual_header_goes_to_flask"]),
    Mutant(
        "lane-believes-the-last-condition",
        "Of a request with two conditions of a kind the last counts.", "request smuggling (CWE-444)",
        [Edit(LANE, """
            if (name := _AS_SENT[match[1].lower()]) in fields:
                return match[0]  # of two neither counts
""", """
            name = _AS_SENT[match[1].lower()]
""")],
        [LANE_TESTS + "test_a_request_with_an_unusual_header_goes_to_flask"]),
    Mutant(
        "lane-says-of-no-replay-that-it-is-one",
        "A retry that is answered in the lane does not say that it is one.", "the contract",
        [Edit(LANE, "if outcome.replayed:", "if False:")],
        [LANE_TESTS + "test_a_write_with_an_idempotency_key_is_answered_as_flask_answers_it"]),
    Mutant(
        "lane-writes-at-any-level",
        "A plain write with level=stale in its query is taken, and answered as if that meant something.",
        "the contract: what is not understood is refused",
        [Edit(LANE, "(_READS if level else _LAST if lasts else _ALL)", "(_LAST if lasts else _ALL)")],
        [LANE_TESTS + "test_a_write_has_no_level"]),
    Mutant(
        "lane-takes-what-has-not-come",
        "A head without its end is taken for a whole request: the rest of it is the next one.",
        "request smuggling (CWE-444)",
        [Edit(LANE, "if end and length is not None and", "if length is not None and")],
        [LANE_TESTS + "test_a_request_that_comes_in_two_pieces_is_one"]),
    Mutant(
        "lane-forgets-the-second-request",
        "What comes behind a plain request in one packet is taken for its body, or dropped.",
        "pipelining (RFC 9112, section 9.3.2)",
        [Edit(LANE, "and len(body) <= length else None", "else None")],
        [LANE_TESTS + "test_what_comes_in_one_piece_is_answered_one_by_one"]),
    Mutant(
        "lane-believes-any-head",
        "A head is taken for plain because another with the same beginning was.",
        "a cache with too small a key",
        [Edit(LANE, "self._lengths.get(lines, -1), {}", "self._lengths.get(lines[:20], -1), {}"),
         Edit(LANE, "self._lengths[lines] = length", "self._lengths[lines[:20]] = length")],
        [LANE_TESTS + "test_heads_that_are_nearly_the_same_are_told_apart"]),
    Mutant(
        "lane-stops-reading",
        "A connection whose client says something before it has its answer is never read from again.",
        "a lost wake-up",
        [Edit(LANE, """
        else:
            channel.goes_on()
""", "")],
        [LANE_TESTS + "test_who_speaks_before_the_answer_is_heard_after_it"]),
    Mutant(
        "lane-answers-without-end",
        "The thread that reads requests answers all that is done before it looks at a new one: health checks wait.",
        "etcd 22214: one loop for all; starvation under load",
        [Edit(LANE, "if time.monotonic() >= until:", "if False:")],
        [LANE_TESTS + "test_who_asks_has_a_turn_however_much_there_is_to_answer"]),
    Mutant(
        "lane-forgets-the-rest",
        "What is left to answer when others had their turn waits for the next write.",
        "a lost wake-up",
        [Edit(LANE, """
                self._wake_if_it_sleeps()
                break
""", """
                break
""")],
        [LANE_TESTS + "test_who_asks_has_a_turn_however_much_there_is_to_answer"]),
    Mutant(
        "lane-leaves-who-is-refused",
        "A write that the node refuses together with others is never answered.",
        "a lost answer",
        [Edit(LANE, "refused += [pending for _, pending in self._node.submit_all(_drained(self._writes))]",
              "self._node.submit_all(_drained(self._writes))")],
        [LANE_TESTS + "test_of_many_that_are_read_in_one_turn_only_the_refused_go_to_flask"]),
    Mutant(
        "lane-sleeps-on-what-is-taken",
        "Nobody wakes the reading thread for a request that another thread has taken.",
        "a lost wake-up",
        [Edit(LANE, """
            self._writes.append((data, pending))
        self._wake_if_it_sleeps()
""", """
            self._writes.append((data, pending))
""")],
        [LANE_TESTS + "test_who_has_something_for_a_thread_that_sleeps_wakes_it_once"]),
    Mutant(
        "condition-evaluated-at-proposal",
        "A condition is looked at when the write arrives, not when it is applied: two writers both win.",
        "compare-and-set; etcd 3-way races; Jepsen, passim",
        [Edit(WRITES, """
    data, left = encoded(node, command, request.headers, timeout)
""", """
    from raftd.kv import Get
    if not command.conditions.hold(current_node().read(Get(command.key)).modified_index):
        raise PreconditionFailed("a condition does not hold")
    command = command._replace(conditions=type(command.conditions)())
    data, left = encoded(node, command, request.headers, timeout)
""")],
        [TESTS + "test_conditions_reach_the_command"]),
    Mutant(
        "keys-that-are-no-text",
        "All bytes that are not UTF-8 are one character to Flask: %ff and %fe name one key.",
        "Flask and werkzeug: PATH_INFO is decoded with U+FFFD in place of what is wrong",
        [Edit(PARAMETERS, "        _require_utf8(path)  # Flask", "        pass  # Flask")],
        [TESTS + "test_a_key_that_is_empty_or_not_utf8_is_refused"]),
    Mutant(
        "target-cut-at-a-hash",
        "What follows a # in the path is dropped without a word: another key is written.",
        "waitress: a target is split like a URL",
        [Edit(PARAMETERS, "if \"#\" in target or \"\\t\" in target:", "if False:")],
        [TESTS + "test_a_target_that_the_server_has_guessed_at_names_no_key"]),
    Mutant(
        "brackets-without-end",
        "A body of brackets in brackets is a fault of ours, with a traceback, instead of one of the client.",
        "CWE-674; found by bin/fuzz",
        [Edit(PARAMETERS, "except (ValueError, RecursionError):", "except ValueError:")],
        [TESTS + "test_a_bad_join_is_refused_and_asks_nothing_of_the_node"]),
    Mutant(
        "put-ignores-conditions",
        "POST and PUT do not look at If-Match.",
        "compare-and-set",
        [Edit(DB, "return write(Set(key, value, conditions(request.headers), ", "return write(Set(key, value, conditions({}), ")],
        [TESTS + "test_conditions_reach_the_command"]),
    Mutant(
        "weak-tags-match",
        "A weak tag is good enough for If-Match.",
        "RFC 9110, section 13.1.1",
        [Edit(PARAMETERS, '_entity_tags(fields, "If-Match", weak_too=False)', '_entity_tags(fields, "If-Match", weak_too=True)')],
        [TESTS + "test_a_weak_tag_says_which_version_a_client_has_but_not_its_bytes"]),
    Mutant(
        "etag-of-the-state",
        "A value's ETag is the index of the state it was read from: it changes with every other write, and after a restart.",
        "RFC 9110, section 8.8.3",
        [Edit(ANSWERS, '"ETag": f\'"{found.modified_index}"\',', '"ETag": f\'"{found.applied_index}"\',')],
        [TESTS + "test_get_answers_the_value_with_its_headers"]),
    Mutant(
        "unknown-level-is-stale",
        "A misspelt level is a stale read.",
        "the contract: what is not understood is refused",
        [Edit(PARAMETERS, 'raise BadRequest(f"level is linearizable, leader or stale, not {shown(text)}")', 'return "stale"')],
        [TESTS + "test_a_bad_parameter_of_a_read_is_refused"]),
    Mutant(
        "idempotency-key-forgotten",
        "Idempotency-Key is taken without a word, and not kept: a retry is applied twice.",
        "FoundationDB, commit_unknown_result",
        [Edit(WRITES, "key, held, time = idempotency_key(fields), fence(fields), 0", 'key, held, time = "", fence(fields), 0')],
        [WRITES_TESTS + "test_an_idempotency_key_goes_with_the_command"]),
    Mutant(
        "delete-of-nothing-is-200",
        "Deleting a key that does not exist is answered with 200.",
        "the contract: 404",
        [Edit(WRITES, 'return NotFound("no such key"), None', "return None, None")],
        [TESTS + "test_delete", LANE_TESTS + "test_a_delete_is_answered_as_flask_answers_it"], quick=True),
    Mutant(
        "failed-condition-without-its-etag",
        "412 carries the ETag of the failed write instead of the current version.",
        "RFC 9110, section 15.5.13",
        [Edit(WRITES,
              'PreconditionFailed(f"the key was last written at {index}", f\'"{index}"\'), None',
              'PreconditionFailed(f"the key was last written at {index}", f\'"{applied.index}"\'), None')],
        [TESTS + "test_a_condition_that_does_not_hold_answers_412_with_the_current_etag"]),
    Mutant(
        "timeout-is-safe-to-retry",
        "A write that timed out is called certainly not applied.",
        "hashicorp/raft 561; Redis-Raft",
        [Edit(ERRORS, '"commit_timeout", 504, "maybe"', '"commit_timeout", 504, "safe"')],
        [TESTS + "test_an_error_of_the_node_is_one_line_with_its_code"]),
    Mutant(
        "lost-leadership-is-safe-to-retry",
        "A write whose leader stepped down is called certainly not applied.",
        "hashicorp/raft 561; Redis-Raft",
        [Edit(ERRORS, '"leadership_lost", 503, "maybe"', '"leadership_lost", 503, "safe"')],
        [TESTS + "test_an_error_of_the_node_is_one_line_with_its_code"]),
    Mutant(
        "failed-disk-is-safe-to-retry",
        "A write that the disk refused is called certainly not applied, though it may be there after a restart.",
        "a failed commit is not a commit that did not happen",
        [Edit(ERRORS, '"storage_failed", 500, "maybe"', '"storage_failed", 500, "safe"')],
        [TESTS + "test_an_error_of_the_node_is_one_line_with_its_code"]),
    Mutant(
        "cut-body-is-a-value",
        "A body that broke off on its way is stored as if it were whole.",
        "RFC 9112, section 8",
        [Edit(PARAMETERS, "if len(data) != (request.content_length or len(data)):", "if False:")],
        [TESTS + "test_a_body_that_broke_off_is_not_a_value"]),
)
