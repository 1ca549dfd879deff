"""Bugs in what programs and people use: ``raftd.client``, and the command line ``raftctl``."""

from mutants.mutant import Edit, Mutant

CLIENT, KEYS, CTL, SERVERS, OUTPUT, COMPLETION = "client.py", "ctl/keys.py", "ctl/__init__.py", "ctl/servers.py", "ctl/output.py", \
    "ctl/completion.py"

TESTS = "tests/test_client.py::"
CTL_TESTS = "tests/test_ctl.py::"
RETRIES, LOCKS, SCRIPTS = "retries that are safe by default", "locks with a fence, done right", "exit codes that are documented"

CLIENTS = (
    Mutant(
        "each-attempt-is-a-request-of-its-own",
        "A write that is sent again has another idempotency key: it may be done twice.", RETRIES,
        [Edit(CLIENT, "ask.headers, data=ask.body)", "{**ask.headers, 'Idempotency-Key': uuid4().hex}, data=ask.body)")],
        [TESTS + "test_a_write_is_sent_again_as_the_same_request"], quick=True),
    Mutant(
        "a-quiet-watch-ends",
        "A watch that has heard nothing for longer than a call may take ends with the server that told it.", "it goes on elsewhere",
        [Edit(CLIENT, "attempts.deadline += lasted", "attempts.deadline += 0")],
        [TESTS + "test_a_watch_that_was_quiet_for_longer_than_a_call_may_take_goes_on_elsewhere"]),
    Mutant(
        "a-watch-looks-for-ever",
        "A watch whose servers all begin well, and end, looks for another for ever.", "a deadline for each call",
        [Edit(CLIENT, "attempts.deadline += lasted", "attempts.deadline = time.monotonic() + self._client._timeout + lasted")],
        [TESTS + "test_a_watch_looks_for_a_server_for_so_long_and_may_be_asked_again"]),
    Mutant(
        "a-silent-server-takes-half-of-the-time",
        "A server that was stopped takes half of the time of each call that begins with it.", "a deadline for each call",
        [Edit(CLIENT, "(min(most, FIRST_SECONDS) if is_first else most), most", "most, most")],
        [TESTS + "test_a_server_that_was_not_asked_before_has_not_half_of_the_time"]),
    Mutant(
        "the-silent-are-asked-first-again",
        "A server that was stopped keeps each call waiting that happens to begin with it.", "a deadline for each call",
        [Edit(CLIENT, "others, key=self._shared.is_silent)", "others, key=lambda server: False)")],
        [TESTS + "test_who_was_silent_is_asked_after_the_others"]),
    Mutant(
        "a-time-of-its-own-is-that-of-all",
        "A call that has a time of its own leaves it to all that come after it.", "a deadline for each call",
        [Edit(CLIENT, "other = copy(self)", "other = self")],
        [TESTS + "test_a_call_may_have_a_time_of_its_own"]),
    Mutant(
        "within-knows-no-leader",
        "A call that has a time of its own looks for the leader anew, on connections of its own.", "it follows the leader hint",
        [Edit(CLIENT, "        other._timeout = seconds\n", "        other._timeout, other._shared = seconds, _Shared()\n")],
        [TESTS + "test_a_call_may_have_a_time_of_its_own"]),
    Mutant(
        "the-last-attempt-decides-whether-it-is-certain",
        "A write of which an earlier attempt may have been done is called certainly not done.", RETRIES,
        [Edit(CLIENT, 'self.uncertain = self.uncertain or error.retry == "maybe"', 'self.uncertain = error.retry == "maybe"')],
        [TESTS + "test_it_is_not_certain_that_nothing_was_done_if_one_attempt_may_have"], quick=True),
    Mutant(
        "what-was-sent-is-called-safe",
        "A request whose connection broke after it was sent is called certainly not done.", RETRIES,
        [Edit(CLIENT, 'failure.retry = "maybe" if was_sent else "safe"', 'failure.retry = "safe"')],
        [TESTS + "test_unreachable_says_whether_anything_was_sent"]),
    Mutant(
        "the-hint-is-not-followed",
        "Who leads is told, and not asked: each write goes round.", "it follows the leader hint",
        [Edit(CLIENT, "server = leader if leader is not None and self._is_fresh(leader) else self._next_in_turn()",
              "server = self._next_in_turn()")],
        [TESTS + "test_a_write_goes_to_the_leader_at_once_also_to_one_that_is_no_endpoint"]),
    Mutant(
        "no-rest-between-attempts",
        "Servers that cannot answer are asked as fast as it goes.", "backoff with jitter",
        [Edit(CLIENT, "seconds = 0.0 if is_told else random.uniform(0, self._most_seconds)", "seconds = 0.0")],
        [TESTS + "test_rests_double_up_to_half_a_second"]),
    Mutant(
        "nobody-leads-and-it-says-you-are-wrong",
        "When there is no leader the error is that this server does not lead, as if another were to be asked.", "people at 3 a.m.",
        [Edit(CLIENT, "if isinstance(failure, NotLeader) and failure.leader is None:", "if False:")],
        [TESTS + "test_when_nobody_leads_it_says_so"]),
    Mutant(
        "pages-of-other-moments",
        "The next page of a list may be older than the one before.", "a list from followers",
        [Edit(CLIENT, "keys_only=keys_only, min_index=index)", "keys_only=keys_only, min_index=None)")],
        [TESTS + "test_a_list_is_read_page_by_page_and_no_page_is_older"]),
    Mutant(
        "watch-tells-again-what-it-has-told",
        "A watch that breaks goes on from where it began.", "watch histories: none twice",
        [Edit(CLIENT, """
        self._position = fields.get("id", self._position)
        if fields.get("event") not in""", """
        if fields.get("event") not in""")],
        [TESTS + "test_a_watch_that_breaks_goes_on_elsewhere_after_what_it_has_told"]),
    Mutant(
        "watch-skips-what-it-was-not-told",
        "Who is dropped goes on from now on elsewhere.", "watch histories: none lost",
        [Edit(CLIENT, 'self._position = told["id"]', "self._position = None")],
        [TESTS + "test_who_is_dropped_goes_on_elsewhere_from_where_that_server_was"]),
    Mutant(
        "lock-comes-back",
        "A renewal that is answered when the time was over makes its holder believe that the lock is held again.", LOCKS,
        [Edit(CLIENT, "            if hold.lasts:  # else it is too late", "            if True:  # else it is too late")],
        [TESTS + "test_a_renewal_that_is_answered_too_late_does_not_bring_a_lock_back"]),
    Mutant(
        "lock-left-by-a-signal",
        "Who is ended just when he acquires a lock leaves it held until its time is over.", LOCKS,
        [Edit(CLIENT, "                self._take_back(request_id)\n", "")],
        [TESTS + "test_who_is_ended_by_a_signal_while_he_acquires_a_lock_does_not_leave_it_held[when it was acquired-SystemExit]"]),
    Mutant(
        "lock-taken-back-by-another-request",
        "What takes a lock back asks for it with a key of its own, and is told that another holds it.", LOCKS,
        [Edit(CLIENT, "self._ask_for_it(client, request_id)", "self._ask_for_it(client, uuid4().hex)")],
        [TESTS + "test_who_is_ended_by_a_signal_while_he_acquires_a_lock_does_not_leave_it_held[when it was acquired-SystemExit]"]),
    Mutant(
        "lock-held-by-two",
        "A lock whose time was over when the answer came is taken for held.", LOCKS,
        [Edit(CLIENT, "        while not self.is_held:\n", "        while self._hold.token is None:\n"),
         Edit(CLIENT, "        if hold.lasts:\n            self._hold", "        if True:\n            self._hold")],
        [TESTS + "test_a_lock_whose_answer_comes_too_late_is_given_back_and_made_again"]),
    Mutant(
        "lock-of-another-released",
        "Who has lost a lock, and releases it, deletes that of the next holder.", LOCKS,
        [Edit(CLIENT, "client.delete(self.name, fence=self._fence_of(hold))", "client.delete(self.name)")],
        [TESTS + "test_a_lock_is_a_key_with_a_token"]),
    Mutant(
        "lock-shorter-than-an-answer",
        "A lock may be so short that it is over before it is known: it is asked for again without end.", "a typo, 1ms for 1m",
        [Edit(CLIENT, "if ttl < LEAST_LOCK_SECONDS:", "if ttl < 0:")],
        [TESTS + "test_a_lock_is_not_too_short"]),
    Mutant(
        "keys-are-numbers",
        "Who goes through a client asks for the keys 0, 1, 2, ...", "mapping-like sugar where natural",
        [Edit(CLIENT, "    __iter__ = None", "    pass")],
        [TESTS + "test_a_client_is_no_iterable"]),
    Mutant(
        "perhaps-is-certainly-not",
        "A script takes what may have been done for not done.", SCRIPTS,
        [Edit(CTL, 'PERHAPS if error.retry == "maybe" and not only_reads else NOT_DONE', "NOT_DONE")],
        [CTL_TESTS + "test_nobody_there_is_2_and_perhaps_done_is_3"]),
    Mutant(
        "what-only-reads-is-perhaps-done",
        "A read that fails is called perhaps done.", SCRIPTS,
        [Edit(CTL, 'error.retry == "maybe" and not only_reads else', 'error.retry == "maybe" else')],
        [CTL_TESTS + "test_perhaps_done_says_so_and_what_only_reads_is_certainly_not_done"]),
    Mutant(
        "status-one-after-the-other",
        "Each server that was stopped keeps who asks how all are waiting for its time.", "a status that is of use when one needs it",
        [Edit(SERVERS, "client.within(min(options.timeout, STATUS_SECONDS))", "client.within(options.timeout)")],
        [CTL_TESTS + "test_a_server_that_says_nothing_keeps_nobody_waiting"]),
    Mutant(
        "keys-of-any-bytes",
        "A key that is not UTF-8 gives a traceback.", "no traceback ever reaches a user",
        [Edit(CTL, 'if name != "value" and isinstance(text, str) and not text.isascii():', "if False:")],
        [CTL_TESTS + "test_what_cannot_be_is_said_in_one_line"]),
    Mutant(
        "command-runs-on-without-its-lock",
        "When the lock is lost its command goes on.", LOCKS,
        [Edit(KEYS, "            process.send_signal(signal.SIGTERM)\n", "            return\n")],
        [CTL_TESTS + "test_a_command_whose_lock_is_lost_is_ended"]),
    Mutant(
        "command-outlives-raftctl",
        "Who ends raftctl leaves its command running, and the lock to its time.", "systemd, cron, a terminal that is closed",
        [Edit(KEYS, "for number in (signal.SIGTERM, signal.SIGHUP)}", "for number in ()}")],
        [CTL_TESTS + "test_a_command_may_take_its_time_to_end"]),
    Mutant(
        "status-of-the-command-is-lost",
        "A command that fails under a lock has succeeded, for scripts.", SCRIPTS,
        [Edit(KEYS, "return status if status >= 0 else ENDED_BY_SIGNAL - status", "return DONE")],
        [CTL_TESTS + "test_the_status_is_that_of_the_command"]),
    Mutant(
        "terminal-obeys-a-key",
        "Control characters in a key reach the terminal, and a line feed makes two keys of it.", "output that is stable for scripts",
        [Edit(OUTPUT, "char if char.isprintable() else", "char if True else")],
        [CTL_TESTS + "test_a_key_is_on_one_line_and_no_terminal_obeys_it"]),
    Mutant(
        "everything-deleted-by-an-empty-word",
        "A variable that is empty in a script deletes every key.", "delete --prefix \"$PREFIX\"",
        [Edit(KEYS, 'if options.all != (options.prefix == ""):', "if False:"),
         Edit(KEYS, "client.delete_prefix(options.prefix, all=options.all,", "client.delete_prefix(options.prefix, all=True,")],
        [CTL_TESTS + "test_many_are_deleted_by_their_prefix"]),
    Mutant(
        "members-of-whoever-answers",
        "How far each member is depends on which server was asked first.", "output that is stable for scripts",
        [Edit(SERVERS, 'if any(member.get("match_index") is None for member in found):', "if False:")],
        [CTL_TESTS + "test_members_are_as_the_leader_knows_them"]),
    Mutant(
        "completion-knows-no-values",
        "After --level other options are offered.", "shell completion",
        [Edit(COMPLETION, "{some}\n", "")],
        [CTL_TESTS + "test_the_completion_of_bash_completes"]),
)
