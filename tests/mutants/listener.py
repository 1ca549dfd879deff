"""Bugs in how requests are read: raftd/listener.py. What two servers read differently hides one request in the body of another."""

from mutants.mutant import Edit, Mutant

LISTENER = "listener.py"

TESTS = "tests/test_hostile.py::"
LENGTHS = TESTS + "test_a_request_whose_length_is_not_clear_ends_its_connection"
FIELDS = TESTS + "test_waitress_sees_fields_as_it_reads_them_at_once_and_none_that_are_no_fields"

LISTEN = (
    Mutant(
        "length-and-chunked",
        "A request that says both how long its body is and that it is chunked is taken.",
        "request smuggling (CWE-444): CL.TE; RFC 9112, section 6.1",
        [Edit(LISTENER, ' or not self.chunked or "CONTENT_LENGTH" in self.headers):', " or not self.chunked):")],
        [f"{LENGTHS}[length and chunked]"], quick=True),
    Mutant(
        "codings-not-looked-at",
        "A transfer coding that is said twice, is empty or is said in a list is read as waitress reads it.",
        "request smuggling: TE.TE; CVE-2019-16786",
        [Edit(LISTENER, "self._check_length([value.lower() for name", "self._check_length([] and [value.lower() for name")],
        [f"{LENGTHS}[no coding]", f"{LENGTHS}[no coding in a list]"]),
    Mutant(
        "any-field-name",
        "A name with a blank before the colon, or none at all, is left to the expressions of waitress.",
        "request smuggling: CVE-2019-16869 (Netty); RFC 9112, section 5.1",
        [Edit(LISTENER, "if not colon or not _FIELD_NAME.fullmatch(name) or not", "if not colon or not")],
        [FIELDS]),
    Mutant(
        "any-field-value",
        "Line ends and control characters within a value are left to the expressions of waitress: another server may read two fields.",
        "request smuggling: CVE-2019-16785, CVE-2019-16789",
        [Edit(LISTENER, " or not _FIELD_VALUE.fullmatch(value):", ":")],
        [FIELDS]),
    Mutant(
        "fields-read-by-waitress",
        "The expressions of waitress see what they do not match: a head of 60 kB stops the thread that reads, and the interpreter.",
        "CVE-2020-5236; CWE-1333",
        [Edit(LISTENER, "if not _USUAL_FIELDS.fullmatch(rest) or", "if")],
        [FIELDS]),
    Mutant(
        "request-line-read-by-waitress",
        "The expression of waitress for a request line sees what is none: it takes time with the square of its length.",
        "CVE-2020-5236; CWE-1333",
        [Edit(LISTENER, "if not _REQUEST_LINE.fullmatch(line):", "if False:")],
        [TESTS + "test_what_is_no_request_line_is_not_looked_at_by_waitress"]),
    Mutant(
        "goes-on-after-a-refusal",
        "After a request that cannot be read the connection goes on: the rest of its body is the next request.",
        "CVE-2024-49768; CVE-2022-24761",
        [Edit(LISTENER, """
        _end_connection(self)
        data = body.encode()
""", """
        data = body.encode()
""")],
        [TESTS + "test_a_broken_chunk_ends_its_connection"]),
    Mutant(
        "served-behind-an-upgrade",
        "What was sent behind an upgrade is done, though the connection belongs to peers by then.",
        "request smuggling through h2c upgrades (Bishop Fox 2020)",
        [Edit(LISTENER, """
        if channel.close_when_flushed:  # the last answer is said, or the connection is a peer's now
            channel.forget_requests()
            return
""", "")],
        [TESTS + "test_nothing_is_done_behind_an_upgrade"]),
    Mutant(
        "line-between-chunks-without-end",
        "The size of a chunk, its extensions and the trailer may be as long as anybody likes.",
        "CVE-2023-39326 (Go: chunk extensions); memory without a bound",
        [Edit(LISTENER,
              "if self.chunked and max(len(self.body_rcv.control_line), len(self.body_rcv.trailer)) > MAX_CHUNK_LINE_BYTES:",
              "if False:")],
        [TESTS + "test_a_line_between_chunks_is_refused_before_it_has_an_end"]),
    Mutant(
        "expectation-without-a-body",
        "Who expects to go on, and has no body, is waited for; and the next request gets the fields of this one.",
        "waitress 3.0.2; RFC 9110, section 10.1.1",
        [Edit(LISTENER, """
        if self.completed:  # it has a body that needs no word to go on, or none: waitress would wait for one for ever
            self.expect_continue = False
""", "")],
        [TESTS + "test_who_expects_to_go_on_and_has_nothing_more_to_say_is_answered"]),
    Mutant(
        "refusal-of-head-has-a-body",
        "The refusal of a HEAD has a body, which the client takes for the next answer.",
        "response splitting by desynchronisation; RFC 9110, section 9.3.2",
        [Edit(LISTENER, 'self.write(b"" if self.request.command == "HEAD" else data)', "self.write(data)")],
        [TESTS + "test_the_refusal_of_a_head_request_has_no_body"]),
    Mutant(
        "unread-answers-pile-up",
        "What clients do not read waits in memory, however much it is.",
        "CWE-770; goraftd: 1.5 GB",
        [Edit(LISTENER, "if (excess := sum(held.values()) - self._most_bytes) > 0:", "if (excess := 0) > 0:")],
        [TESTS + "test_what_clients_do_not_read_is_bounded"]),
    Mutant(
        "unfinished-requests-pile-up",
        "Bodies that never come to their end wait in memory, however many there are.",
        "CWE-770; slow POST",
        [Edit(LISTENER, """
        if self.request is not None:
            self.server.backlog.add(self)
""", "")],
        [TESTS + "test_what_clients_do_not_complete_is_bounded"]),
    Mutant(
        "large-writes-queue-without-end",
        "Large writes wait for a thread, however many: each keeps its body in memory.",
        "CWE-770",
        [Edit(LISTENER, "if queued > MAX_QUEUED_BYTES:", "if False:")],
        [TESTS + "test_large_writes_that_wait_for_a_thread_are_bounded"]),
    Mutant(
        "no-descriptor-is-tried-again-at-once",
        "Without a descriptor for a new connection the reading thread tries again without a pause, with a line of log each time.",
        "waitress and asyncore: EMFILE in accept",
        [Edit(LISTENER, "self._server.accepting, self._accept_again_at = False, now + ACCEPT_PAUSE_SECONDS", "pass")],
        [TESTS + "test_without_a_descriptor_connections_wait_and_the_log_is_not_flooded"]),
    Mutant(
        "two-threads-send-the-same",
        "The thread of a request that has just ended and the thread that reads both send what there is for the client.",
        "waitress 3.0: HTTPChannel.handle_write takes no lock when no request is under way; found by bin/fuzz live",
        [Edit(LISTENER, """
        with self.outbuf_lock:
            return super()._flush_some(do_close)
""", """
        return super()._flush_some(do_close)
""")],
        ["tests/test_lane.py::test_the_word_to_go_on_is_said_once"]),
    Mutant(
        "stops-when-its-time-to-answer-is-over",
        "Of those who wait when it stops only so many are told as it has time for at once; the others hear nothing.",
        "cost: found by a busy machine",
        [Edit(LISTENER, "finish(math.inf if is_last else MOST_SECONDS_AT_ONCE)", "finish(MOST_SECONDS_AT_ONCE)")],
        ["tests/test_lane.py::test_who_waits_when_the_server_stops_is_told_so"]),
    Mutant(
        "asks-whether-to-stop-once-it-has-answered",
        "Whose write ends after it has answered and before it sees that it is to stop hears nothing.",
        "found by reading",
        [Edit(LISTENER, "        if is_last:\n", "        if self._stopping:\n")],
        ["tests/test_lane.py::test_who_is_done_just_before_the_server_stops_is_told_so"]),
)
