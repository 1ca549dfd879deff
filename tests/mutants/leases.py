"""Bugs in what a lease rests on: promises, clocks, and who may be elected (thesis 6.4.1)."""

from mutants.mutant import Edit, Mutant

CORE = "raft/core.py"
NODE = "node.py"

LEASE = "tests/test_paper_leases.py::"
TESTS = "tests/test_node.py::"
SIMULATION = "bin/simulate --seeds 200 --from 1000"

LEASES = (
    Mutant(
        "lease-longer-than-the-promise",
        "The leader counts on more than was promised: its clock runs slower than that of a follower.",
        "thesis 6.4.1: bounded drift; tikv 964",
        [Edit(CORE, "LEASE_TRUST = 0.8", "LEASE_TRUST = 1.5")],
        [LEASE + "test_a_lease_ends_before_the_promise_does_on_a_clock_that_runs_faster_by_a_quarter", SIMULATION]),
    Mutant(
        "lease-trusts-all-of-the-promise",
        "No drift of clocks is allowed for.",
        "thesis 6.4.1: bounded drift",
        [Edit(CORE, "LEASE_TRUST = 0.8", "LEASE_TRUST = 0.9")],
        [LEASE + "test_a_lease_ends_before_the_promise_does_on_a_clock_that_runs_faster_by_a_quarter"]),
    Mutant(
        "lease-from-the-answer-on",
        "A lease begins when the answers come, not when the requests were sent.",
        "thesis 6.4.1; the classic mistake with leases",
        [Edit(CORE, "leader.lease_until = began + self._lease_seconds", "leader.lease_until = self.now + self._lease_seconds")],
        [LEASE + "test_a_lease_begins_when_the_request_was_sent"], quick=True),
    Mutant(
        "lease-of-a-minority",
        "One follower's promise is enough.",
        "thesis 6.4.1",
        [Edit(CORE,
              "promised = self._reached_by_majority({peer: progress.promised_round for peer, progress in leader.progress.items()}, "
              "leader.round)",
              "promised = max((progress.promised_round for progress in leader.progress.values()), default=0)")],
        [LEASE + "test_a_lease_begins_with_the_promise_of_a_majority"]),
    Mutant(
        "lease-by-answers-that-promise-nothing",
        "Whoever answers is taken to have promised.",
        "thesis 6.4.1",
        [Edit(CORE, "if reply.promised:", "if True:")],
        [LEASE + "test_an_answer_without_a_promise_counts_for_reads_only"]),
    Mutant(
        "lease-before-the-noop",
        "A new leader reads by its lease before it knows what is committed.",
        "etcd 3879; thesis 6.4.1",
        [Edit(CORE, "if self.now < lease_until and self.commit_index >= first_index:", "if self.now < lease_until:")],
        [LEASE + "test_a_new_leader_has_no_lease_before_its_noop_is_committed"]),
    Mutant(
        "lease-beside-a-successor",
        "The leader has asked another to stand, whom voters help at once, and still counts on their promise.",
        "thesis 3.10 with 6.4.1",
        [Edit(CORE, "transfer.sent = self.role.successor_called = True", "transfer.sent = True")],
        [LEASE + "test_a_successor_that_was_called_ends_the_lease_for_good"]),
    Mutant(
        "lease-over-a-change-of-members",
        "What a majority of former members has promised still counts when the members are others.",
        "thesis 4.1 with 6.4.1",
        [Edit(CORE, """
        self.role.lease_until = -math.inf  # the majority that has promised it is perhaps none any more
""", "")],
        [LEASE + "test_a_lease_ends_with_a_change_of_members"]),
    Mutant(
        "lease-of-an-unused-kind",
        "Followers are asked for a promise whether anybody reads by it or not, and no leader is replaced at once any more.",
        "raftd: what a lease costs",
        [Edit(CORE, "lease_ms = self._lease_ms if self.now < self.role.lease_wanted_until else 0", "lease_ms = self._lease_ms")],
        [LEASE + "test_a_lease_that_is_not_used_is_not_renewed"]),
    Mutant(
        "renewals-are-asked-for-without-end",
        "Each request of a round that renews a lease begins another, which the other followers must hear of.",
        "raftd: leases and read rounds share their numbers",
        [Edit(CORE, "progress.sent_round < self.role.reads[-1].round", "progress.sent_round < self.role.round")],
        [LEASE + "test_renewal_is_no_reason_for_more_requests"]),
    Mutant(
        "promise-forgotten-with-the-leader",
        "A follower that finds its leader gone votes for another at once, though it has promised not to.",
        "raftd: fast failover against leases",
        [Edit(CORE, """
        if self.now < self._promised_until or self._must_wait_to_vote(request):
            return True
""", """
        if self._must_wait_to_vote(request):
            return True
""")],
        [LEASE + "test_a_promise_is_kept_though_the_leader_is_gone"]),
    Mutant(
        "promise-not-kept-by-a-candidate",
        "It votes for nobody else, but stands for election itself.",
        "raftd: fast failover against leases",
        [Edit(CORE, "first = max(self.now, self._promised_until, self._perhaps_promised_until)", "first = self.now")],
        [LEASE + "test_who_has_promised_does_not_stand_before_that_is_over"]),
    Mutant(
        "promise-forgotten-by-a-restart",
        "A server that has just started votes at once, whatever it has promised before.",
        "thesis 3.8 with 6.4.1",
        [Edit(CORE, "self._perhaps_promised_until = now + self._lease_ms / 1000", "self._perhaps_promised_until = now")],
        [LEASE + "test_a_promise_outlives_a_restart"]),
    Mutant(
        "who-has-just-started-refuses",
        "Its refusal is remembered for all of an election timeout: whenever a server starts, elections take longer.",
        "raftd: a simplification that looks harmless",
        [Edit(CORE, "and not (request.pre_vote or request.leadership_transfer)", "and not request.leadership_transfer"),
         Edit(CORE, """
        if self._must_wait_to_vote(request):
            return Answer(request)
""", "")],
        [LEASE + "test_who_has_just_started_would_vote", LEASE + "test_a_promise_outlives_a_restart"]),
    Mutant(
        "who-has-just-started-keeps-others-waiting",
        "A candidate waits for the vote of a server that has just started until its request has taken too long.",
        "raftd: a simplification that looks harmless",
        [Edit(NODE, "if isinstance(request, RequestVote) and answer.make_reply is None:", "if False:")],
        [TESTS + "test_who_has_just_started_is_asked_again_for_its_vote"]),
    Mutant(
        "stands-soon-after-a-restart",
        "A server that has just started waits before it votes for another, but not before it stands.",
        "thesis 3.8 with 6.4.1",
        [Edit(CORE,
              "first = max(self.now, self._promised_until, self._perhaps_promised_until)",
              "first = max(self.now, self._promised_until)")],
        [LEASE + "test_who_has_just_started_and_lost_its_leader_stands_later"]),
    Mutant(
        "lease-of-who-leaves",
        "A leader that has removed itself counts on promises of a majority that needs it no more.",
        "thesis 4.2.2 with 6.4.1",
        [Edit(CORE, "if self.configuration.is_voter(self.name):  # else the others", "if True:  # else the others")],
        [LEASE + "test_who_leaves_the_cluster_has_no_lease"]),
    Mutant(
        "rounds-without-a-promise-kept",
        "Where followers answer and promise nothing, the leader remembers every read.",
        "raftd: found by a review",
        [Edit(CORE, """
        while leader.lease_rounds and leader.lease_rounds[0][1] + self._lease_seconds <= self.now:  # nobody has promised in time
            leader.lease_rounds.popleft()
""", "")],
        [LEASE + "test_promises_that_nobody_makes_are_not_waited_for_in_memory"]),
    Mutant(
        "promise-of-any-length",
        "A server with a short election timeout promises more than it waits for after a restart.",
        "raftd: settings may differ",
        [Edit(CORE, "promised = 0 < lease_ms <= self._lease_ms", "promised = 0 < lease_ms")],
        [LEASE + "test_nobody_promises_more_than_it_would_remember"]),
    Mutant(
        "promise-only-said",
        "A follower says that it promises, and does not remember it.",
        "thesis 6.4.1",
        [Edit(CORE, "self._promised_until = max(self._promised_until, self.now + lease_ms / 1000)", "pass")],
        [LEASE + "test_a_promise_is_kept_though_the_leader_is_gone", SIMULATION]),
    Mutant(
        "every-read-by-the-lease",
        "Reads that did not ask for it rest on clocks as well.",
        "etcd's ReadOnlyLeaseBased, as a default",
        [Edit(NODE, "if leased and (index := self._raft.leased_index()):", "if index := self._raft.leased_index():")],
        [TESTS + "test_a_read_that_may_rest_on_a_lease_asks_nobody"]),
    Mutant(
        "lease-looked-at-before-the-time",
        "A leader that was paused answers by a lease that is over before it notices.",
        "tikv 964",
        [Edit(NODE, """
        self._raft.tick(time.monotonic())
        if leased and (index := self._raft.leased_index()):
""", """
        if leased and (index := self._raft.leased_index()):
""")],
        [TESTS + "test_a_lease_is_looked_at_when_the_time_has_been_told"]),
    Mutant(
        "leased-read-of-what-is-not-applied",
        "A read by the lease does not wait until what is committed is applied.",
        "thesis 6.4, step 4",
        [Edit(NODE, """
            self._wake_when_applied_locked(index, future)
        else:
            self._raft.read_index(future)
""", """
            future.set_result(index)
        else:
            self._raft.read_index(future)
""")],
        [TESTS + "test_a_read_waits_for_what_the_lease_needs_to_be_applied"]),
)
