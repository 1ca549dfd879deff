"""Bugs in the algorithm: raftd/raft. Section numbers are those of the paper, "thesis" is Ongaro's dissertation."""

from mutants.mutant import Edit, Mutant

CORE = "raft/core.py"
LOG = "raft/log.py"
CONFIGURATION = "raft/configuration.py"

ELECTIONS = "tests/test_paper_elections.py::"
FAILOVER = "tests/test_paper_failover.py::"
COMMITS = "tests/test_paper_commitment.py::"
MEMBERS = "tests/test_paper_membership.py::"
READ = "tests/test_paper_reads.py::"
REPLICATES = "tests/test_paper_replication.py::"
COMPACTS = "tests/test_paper_snapshots.py::"
STATE = "tests/test_paper_state.py::"
OLDER = "tests/test_older_copy.py::"
MERGES = "tests/test_log.py::"
VOTERS = "tests/test_configuration.py::"
TOLD = "tests/test_transcripts.py::test_transcript[fast_failover]"
SIMULATION = "bin/simulate --seeds 50"  # only where a third of all seeds sees it

TERMS_AND_VOTES = (
    Mutant(
        "vote-not-saved",
        "A vote is answered, but not written: after a restart the server votes again in the same term.",
        "akka-raft 56; goraft, which writes neither term nor vote; Figure 2, State",
        [Edit(CORE, "self.voted_for, self._hard_state_saved = request.candidate_id, False", "self.voted_for = request.candidate_id")],
        [STATE + "test_a_vote_in_a_term_that_is_durable_waits_as_well", SIMULATION], quick=True),
    Mutant(
        "term-not-saved",
        "A larger term is taken over, but not written: after a restart the server is back in the old one.",
        "akka-raft 56; goraft; Figure 2, State",
        [Edit(CORE, "self.term, self.voted_for, self._hard_state_saved = term, None, False", "self.term, self.voted_for = term, None")],
        [STATE + "test_no_reply_leaves_before_the_term_is_durable", SIMULATION]),
    Mutant(
        "vote-sent-before-saved",
        "Answers leave at once: a vote may be with the candidate and not on the disk.",
        "Figure 2, State: updated on stable storage before responding",
        [Edit(CORE, "if self._hard_state_saved and durable and answer.make_reply:", "if durable and answer.make_reply:")],
        [STATE + "test_a_vote_leaves_only_when_durable", SIMULATION]),
    Mutant(
        "candidate-asks-before-saved",
        "A candidate asks for votes in a term that is not on its disk yet.",
        "Figure 2, State",
        [Edit(CORE, """
        if not self._hard_state_saved:
            return math.inf
""", "")],
        [STATE + "test_nobody_is_asked_for_a_vote_before_the_own_is_durable", SIMULATION]),
    Mutant(
        "vote-cleared-in-the-same-term",
        "Becoming a follower clears the vote, also when the term stays: a second vote is free.",
        "Microsoft CCF PR 8094; Zeebe 5356; nebula 2405",
        [Edit(CORE, """
        if term > self.term:
            self.term, self.voted_for""", """
        if term >= self.term:
            self.term, self.voted_for""")],
        [ELECTIONS + "test_within_a_term_the_vote_stays", SIMULATION]),
    Mutant(
        "vote-twice",
        "A server votes for every candidate that asks.",
        "section 5.2",
        [Edit(CORE, "and request.term == self.term and self.voted_for in (None, request.candidate_id)", "and request.term == self.term"),
         Edit(CORE, "if granted and self.voted_for is None:", "if granted and self.voted_for != request.candidate_id:")],
        [ELECTIONS + "test_votes_for_one_candidate_per_term", SIMULATION]),
    Mutant(
        "vote-in-an-older-term",
        "A request of an older term takes the vote of the present one.",
        "Figure 2, RequestVote, 1",
        [Edit(CORE,
              "granted = granted and request.term == self.term and self.voted_for in (None, request.candidate_id)",
              "granted = granted and self.voted_for in (None, request.candidate_id)")],
        [ELECTIONS + "test_a_vote_of_a_stale_term_is_refused_to_a_free_voter"]),
    Mutant(
        "late-save-of-a-vote-counts",
        "A write that was under way when the vote changed is taken for the new vote's.",
        'Figure 2, State; the late "written" event of rabbitmq/ra PR 516, for votes',
        [Edit(CORE, "if unsaved.hard_state == (self.term, self.voted_for):", "if unsaved.hard_state:")],
        [STATE + "test_a_write_of_an_older_vote_does_not_release_the_newer"]),
    Mutant(
        "vote-of-a-passed-term-sent",
        "A vote that waited for the disk is sent as granted in the newer term that began meanwhile.",
        "Figure 2, RequestVote; section 5.2",
        [Edit(CORE, "RequestVoteReply(self.term, granted and self.term == request.term)", "RequestVoteReply(self.term, granted)")],
        [STATE + "test_a_vote_of_a_term_that_has_passed_is_not_sent"]),
    Mutant(
        "vote-without-looking-at-the-log",
        "Votes are given to candidates whose log lacks what is committed.",
        "section 5.4.1",
        [Edit(CORE,
              "granted = self.log.is_up_to_date(request.last_log_index, request.last_log_term) and not self._refuses_votes(request)",
              "granted = not self._refuses_votes(request)")],
        [ELECTIONS + "test_vote_compares_term_then_index", SIMULATION]),
    Mutant(
        "log-compared-by-index-only",
        "The longer log counts as more up to date, whatever its terms.",
        "section 5.4.1; the original raftd",
        [Edit(LOG,
              "return (last_log_term, last_log_index) >= (self.last_term, self.last_index)",
              "return last_log_index >= self.last_index")],
        [MERGES + "test_up_to_date_compares_the_term_before_the_index", ELECTIONS + "test_vote_compares_term_then_index"]),
    Mutant(
        "log-compared-by-index-first",
        "Logs are compared by index, and by term only when they are of the same length.",
        "section 5.4.1",
        [Edit(LOG,
              "return (last_log_term, last_log_index) >= (self.last_term, self.last_index)",
              "return (last_log_index, last_log_term) >= (self.last_index, self.last_term)")],
        [MERGES + "test_up_to_date_compares_the_term_before_the_index", ELECTIONS + "test_vote_compares_term_then_index"]),
    Mutant(
        "log-compared-by-term-only",
        "Of two logs with the same last term the shorter one is good enough for a vote.",
        "section 5.4.1",
        [Edit(LOG,
              "return (last_log_term, last_log_index) >= (self.last_term, self.last_index)",
              "return last_log_term >= self.last_term")],
        [MERGES + "test_up_to_date_compares_the_term_before_the_index", ELECTIONS + "test_vote_compares_term_then_index"]),
    Mutant(
        "log-compared-by-term-and-index-apart",
        "Term and index must both be as large: servers refuse each other, and nobody is elected.",
        "the original raftd; section 5.4.1",
        [Edit(LOG,
              "(last_log_term, last_log_index) >= (self.last_term, self.last_index)",
              "last_log_term >= self.last_term and last_log_index >= self.last_index")],
        [ELECTIONS + "test_vote_compares_term_then_index"]),
    Mutant(
        "compacted-log-has-no-term",
        "A server that has compacted all of its log counts as behind in elections.",
        "sections 5.4.1 and 7",
        [Edit(LOG,
              "return self._entries[-1].term if self._entries else self.snapshot_term",
              "return self._entries[-1].term if self._entries else 0")],
        [ELECTIONS + "test_a_log_that_is_compacted_ends_with_its_snapshot"]),
    Mutant(
        "votes-of-another-election-count",
        "A late answer to an earlier election, or to a pre-vote, is a vote in this one.",
        "section 5.2",
        [Edit(CORE, "if (request.term, request.pre_vote) == election:", "if election:")],
        [ELECTIONS + "test_votes_of_another_election_do_not_count"]),
    Mutant(
        "pre-vote-counts-as-a-vote",
        "A pre-vote that comes late is a vote: two leaders in a term.",
        "thesis 9.6",
        [Edit(CORE, "if (request.term, request.pre_vote) == election:", "if request.term == election[0]:")],
        [ELECTIONS + "test_votes_of_another_election_do_not_count"]),
    Mutant(
        "pre-vote-raises-the-term",
        "Who is asked for a pre-vote takes over the candidate's term, and forgets its leader.",
        "thesis 9.6",
        [Edit(CORE, "not (request.pre_vote or self._refuses_votes(request))", "not self._refuses_votes(request)")],
        [ELECTIONS + "test_pre_vote_changes_nothing_where_it_is_granted", SIMULATION], quick=True),
    Mutant(
        "pre-vote-uses-the-vote-up",
        "Who grants a pre-vote has voted.",
        "thesis 9.6",
        [Edit(CORE, """
        if request.pre_vote:
            granted""", """
        if request.pre_vote:
            self.voted_for, self._hard_state_saved = request.candidate_id, False
            granted""")],
        [ELECTIONS + "test_pre_vote_changes_nothing_where_it_is_granted"]),
    Mutant(
        "pre-candidate-raises-its-term",
        "A server raises its own term before it knows that anybody would vote for it.",
        "thesis 9.6",
        [Edit(CORE, """
        if not pre_vote:
            self.term,""", """
        if True:
            self.term,""")],
        [ELECTIONS + "test_pre_vote_changes_nothing_where_it_is_asked"]),
    Mutant(
        "no-pre-vote",
        "A server that hears nobody begins one election after the other, and deposes the leader when it is back.",
        "thesis 9.6; the original raftd; hashicorp/raft's fuzzy RemovePartitionedNode; Cloudflare, 2 November 2020",
        [Edit(CORE,
              'self._stand_for_election(pre_vote=True, reason="no leader heard")',
              'self._stand_for_election(pre_vote=False, reason="no leader heard")')],
        [ELECTIONS + "test_a_server_alone_does_not_raise_its_term",
         "tests/test_simulation.py::test_a_server_cut_off_for_long_returns_without_an_election"]),
    Mutant(
        "pre-vote-for-the-term-that-is",
        "A pre-vote is granted for a term in which no vote could be given.",
        "thesis 9.6",
        [Edit(CORE, "granted = granted and request.term > self.term", "granted = granted and request.term >= self.term")],
        [ELECTIONS + "test_pre_vote_needs_a_larger_term"]),
    Mutant(
        "no-stickiness",
        "Who hears a leader votes all the same: a server that was left out deposes one leader after the other.",
        "thesis 4.2.3; hashicorp/raft's fuzzy RemovePartitionedNode",
        [Edit(CORE, """
        if request.leadership_transfer and not request.pre_vote:
            return False
""", """
        return False
""")],
        [ELECTIONS + "test_who_hears_a_leader_helps_nobody_to_depose_it",
         MEMBERS + "test_removed_server_that_does_not_know_it_is_not_heard"]),
    Mutant(
        "stickiness-takes-the-term",
        "Who hears a leader refuses the vote, but takes the term over: the leader is deposed all the same.",
        "thesis 4.2.3",
        [Edit(CORE, "not (request.pre_vote or self._refuses_votes(request))", "not request.pre_vote")],
        [ELECTIONS + "test_who_hears_a_leader_helps_nobody_to_depose_it"]),
    Mutant(
        "leader-votes-itself-away",
        "A leader gives way to any candidate with a larger term.",
        "thesis 4.2.3, 6.2",
        [Edit(CORE, """
            case Leader():
                return True
            case Follower(leader_id, last_heard):
""", """
            case Follower(leader_id, last_heard):
""")],
        [ELECTIONS + "test_leader_is_not_deposed_by_votes"]),
    Mutant(
        "timer-reset-by-refused-votes",
        "A request for a vote puts off the own election, also when the vote is refused.",
        "Figure 2, Rules for Servers, Followers",
        [Edit(CORE, """
        if granted:
            self._set_election_timer()
""", """
        self._set_election_timer()
""")],
        [ELECTIONS + "test_refused_vote_does_not_delay_the_election"]),
    Mutant(
        "timer-runs-on-after-a-vote",
        "Who has voted stands against its own candidate at once.",
        "Figure 2, Rules for Servers, Followers",
        [Edit(CORE, """
        if granted:
            self._set_election_timer()
""", "")],
        [ELECTIONS + "test_refused_vote_does_not_delay_the_election"]),
    Mutant(
        "election-timeouts-are-equal",
        "All servers wait for the same time, and split the vote again and again.",
        "section 5.2",
        [Edit(CORE, "timeout * (1 + self._random.random())", "timeout * 1.5")],
        [ELECTIONS + "test_election_timeouts_are_drawn_anew"]),
    Mutant(
        "deposed-leader-is-obeyed",
        "Entries of a leader of an older term are taken.",
        "section 5.1; Figure 2, AppendEntries, 1",
        [Edit(CORE, """
            return Answer(request, lambda: AppendEntriesReply(self.term, False))
        promised =""", """
            pass
        promised ="""),
         Edit(CORE, """
        if self.term != request.term:
            return AppendEntriesReply(self.term, False)
""", "")],
        [ELECTIONS + "test_stale_term_is_refused"]),
    Mutant(
        "deposed-leader-installs-its-state",
        "A snapshot of a leader of an older term is taken.",
        "Figure 13, 1",
        [Edit(CORE, """
        if request.term < self.term:
            return Answer(request, lambda: InstallSnapshotReply(self.term, 0, False))
""", "")],
        [ELECTIONS + "test_stale_term_is_refused"]),
    Mutant(
        "larger-term-in-a-reply-ignored",
        "A leader does not learn from the answers of others that it is deposed.",
        "section 5.1",
        [Edit(CORE, """
        if reply.term > self.term:
            self._become_follower(reply.term""", """
        if False:
            self._become_follower(reply.term""")],
        [ELECTIONS + "test_larger_term_in_a_reply_makes_a_follower"]),
    Mutant(
        "no-check-quorum",
        "A leader that nobody answers leads on, and refuses to vote for a better one.",
        "thesis 6.2; the original raftd; etcd without CheckQuorum in dangling partitions",
        [Edit(CORE, "elif not self.configuration.is_majority(heard | {self.name}):", "elif False:")],
        [ELECTIONS + "test_check_quorum", "tests/test_simulation.py::test_a_leader_cut_off_steps_down_and_another_leads",
         SIMULATION]),
    Mutant(
        "stalled-disk-is-no-failure",
        "A leader whose disk hangs goes on to send heartbeats: nothing commits, and nobody else may lead.",
        "thesis 6.2: who cannot commit must not keep others from it",
        [Edit(CORE, "self.disk_due = self.now + self._settings.election_timeout_seconds + size / self.SLOWEST_DISK_BYTES_PER_SECOND",
              "self.disk_due = math.inf")],
        [STATE + "test_a_stalled_disk_is_a_failure"]),
)

REPLICATION = (
    Mutant(
        "truncates-always",
        "A follower cuts its log after the entry before a request, conflict or not: what it had acknowledged is gone.",
        "goraft, `truncate`; Redis-Raft library 49; section 5.3",
        [Edit(LOG,
              "if entry.index > self.snapshot_index and self.term_at(entry.index) != entry.term:",
              "if entry.index > self.snapshot_index:")],
        [MERGES + "test_merge_of_an_old_request_removes_nothing", REPLICATES + "test_old_append_removes_nothing", SIMULATION]),
    Mutant(
        "shorter-request-truncates",
        "A late or repeated request that ends earlier than the log cuts off the rest.",
        "goraft, `truncate`; section 5.3",
        [Edit(LOG, """
        first_new = self.first_new(entries)
        if first_new is not None:
""", """
        first_new = self.first_new(entries)
        if first_new is None and entries and entries[-1].index < self.last_index:
            self._truncate(entries[-1].index + 1)
        if first_new is not None:
"""),
         Edit(CORE, """
        if first_new is not None:
            assert first_new > self.commit_index""", """
        if first_new is None:
            self.log.merge(request.entries)
        else:
            assert first_new > self.commit_index""")],
        [REPLICATES + "test_old_append_removes_nothing"]),
    Mutant(
        "truncates-never",
        "An entry that conflicts with the leader's stays.",
        "Figure 2, AppendEntries, 3",
        [Edit(LOG, "self.term_at(entry.index) != entry.term:", "self.term_at(entry.index) is None:")],
        [MERGES + "test_merge_removes_from_a_conflict_on_and_no_earlier", REPLICATES + "test_conflict_removes_what_follows", SIMULATION]),
    Mutant(
        "previous-term-not-compared",
        "An append is taken when there is an entry before it, of whatever term: Log Matching is lost.",
        "section 5.3; Figure 2, AppendEntries, 2",
        [Edit(LOG,
              "return prev_log_index < self.snapshot_index or self.term_at(prev_log_index) == prev_log_term",
              "return prev_log_index <= self.last_index")],
        [REPLICATES + "test_append_needs_the_entry_before"]),
    Mutant(
        "acknowledged-before-saved",
        "A follower says that it has entries which are not on its disk yet.",
        "Figure 2, State; etcd 14370, for followers",
        [Edit(CORE,
              "return AppendEntriesReply(self.term, True, min(self.saved_index, matched), promised=promised)",
              "return AppendEntriesReply(self.term, True, matched, promised=promised)"),
         Edit(CORE, "needs_index=matched if request.entries else 0)", "needs_index=0)")],
        [STATE + "test_an_append_is_answered_when_saved",
         STATE + "test_an_answer_that_cannot_wait_promises_only_what_is_durable", SIMULATION], quick=True),
    Mutant(
        "acknowledges-its-whole-log",
        "A follower says that it has all that is on its disk, also what this leader never sent.",
        "Figure 2, AppendEntries; match_index",
        [Edit(CORE,
              "return AppendEntriesReply(self.term, True, min(self.saved_index, matched), promised=promised)",
              "return AppendEntriesReply(self.term, True, self.saved_index, promised=promised)")],
        [REPLICATES + "test_old_append_removes_nothing", REPLICATES + "test_what_agreed_with_one_leader_is_not_said_to_another",
         SIMULATION]),
    Mutant(
        "match-index-of-the-request",
        "The leader counts what it has sent, not what the follower says to have on disk.",
        "Figure 2, match_index; thesis 10.2.1",
        [Edit(CORE,
              "progress.match_index = max(progress.match_index, reply.match_index)",
              "progress.match_index = max(progress.match_index, last_new)")],
        [REPLICATES + "test_a_success_that_is_not_durable_moves_next_index_only", SIMULATION]),
    Mutant(
        "match-index-set-when-sent",
        "The leader counts entries for a follower as soon as it has sent them.",
        "Figure 2, match_index; thesis 10.2.1",
        [Edit(CORE, """
        progress.sent_round, progress.sent_commit = self.role.round, self.commit_index
""", """
        progress.sent_round, progress.sent_commit = self.role.round, self.commit_index
        progress.match_index = max(progress.match_index, prev_log_index + len(entries))
""")],
        [REPLICATES + "test_what_is_not_answered_is_sent_again", SIMULATION]),
    Mutant(
        "next-index-one-too-far",
        "After a success the leader goes on one entry too far.",
        "Figure 2, next_index",
        [Edit(CORE,
              "progress.next_index = max(progress.next_index, progress.match_index + 1, last_new + 1)",
              "progress.next_index = max(progress.next_index, progress.match_index + 1, last_new + 2)")],
        [REPLICATES + "test_success_moves_next_and_match_index"]),
    Mutant(
        "refusal-does-not-go-back",
        "After a refusal whose hint is beyond it the leader sends the same request for ever.",
        "section 5.3",
        [Edit(CORE,
              "next_index = min(self._next_index_after(reply), request.prev_log_index)",
              "next_index = self._next_index_after(reply)")],
        [REPLICATES + "test_leader_backs_off_by_whole_terms"]),
    Mutant(
        "request-without-a-bound",
        "A request may be so large that it takes longer than an election timeout: nobody ever gets it.",
        "the original raftd: values over 8 MB burned terms",
        [Edit(CORE,
              "self.log.entries_from(progress.next_index, self._settings.max_append_bytes)",
              "self.log.entries_from(progress.next_index, 1 << 60)")],
        [REPLICATES + "test_entries_of_one_request_are_limited"]),
    Mutant(
        "reply-of-an-old-term-counts",
        "A late answer to a request of an earlier term of this leader moves match_index.",
        "Figure 2, match_index; thesis 3.4",
        [Edit(CORE,
              "case (AppendEntries() | InstallSnapshot() | TimeoutNow()), Leader() if request.term == self.term:",
              "case (AppendEntries() | InstallSnapshot() | TimeoutNow()), Leader():")],
        [REPLICATES + "test_an_answer_to_an_earlier_term_counts_for_nothing"]),
    Mutant(
        "match-index-survives-the-term",
        "What a leader knew of its followers counts in its next leadership.",
        "Figure 2, State on leaders: reinitialized after election",
        [Edit(CORE,
              'self._change_role(Leader(first_index=self.log.last_index + 1), "elected")',
              'self._change_role(Leader(self.log.last_index + 1, vars(self).setdefault("kept", {})), "elected")')],
        [STATE + "test_what_a_leader_knows_dies_with_its_term"]),
    Mutant(
        "late-save-of-entries-counts",
        "A write that ends after a conflict has replaced its entries is taken for the new ones'.",
        "rabbitmq/ra PR 516",
        [Edit(CORE,
              "self.saved_index = max(self.saved_index, min(unsaved.last_index, self._unsaved_from - 1))",
              "self.saved_index = max(self.saved_index, unsaved.last_index)")],
        [STATE + "test_a_late_write_does_not_confirm_what_has_replaced_it"]),
    Mutant(
        "saved-index-survives-truncation",
        "Entries that replace saved ones count as saved before they are.",
        "rabbitmq/ra PR 516",
        [Edit(CORE, """
        self.saved_index = min(self.saved_index, index - 1)
""", "")],
        [STATE + "test_what_replaces_saved_entries_is_not_saved_yet", SIMULATION]),
    Mutant(
        "truncation-is-not-saved",
        "Entries that replace others are kept in memory only: after a restart the old ones are back.",
        "Figure 2, AppendEntries, 3",
        [Edit(CORE, "self._unsaved_from = min(self._unsaved_from, index)", "self._unsaved_from = max(self._unsaved_from, index)")],
        [STATE + "test_what_replaces_saved_entries_is_not_saved_yet", SIMULATION]),
    Mutant(
        "old-terms-committed-by-counting",
        "An entry of an earlier term is committed once a majority has it: it may still be overwritten.",
        "section 5.4.2, Figure 8; logcabin 44; goraft PR 27",
        [Edit(CORE, "if index <= self.commit_index or self.log.term_at(index) != self.term:", "if index <= self.commit_index:")],
        [COMMITS + "test_old_terms_are_not_committed_by_counting"]),
    Mutant(
        "committed-by-one",
        "What any one server has is committed.",
        "section 5.3",
        [Edit(CORE, "return reached[len(reached) // 2]", "return reached[0]")],
        [COMMITS + "test_less_than_a_majority_does_not_commit", SIMULATION]),
    Mutant(
        "committed-by-half",
        "With an even number of voters, half of them are enough to commit.",
        "section 5.3",
        [Edit(CORE, "return reached[len(reached) // 2]", "return reached[(len(reached) - 1) // 2]")],
        [COMMITS + "test_half_does_not_commit", SIMULATION]),
    Mutant(
        "leader-counts-before-its-disk",
        "A leader counts itself for entries that are not on its disk: alone, it acknowledges what it may lose.",
        "etcd 14370; thesis 10.2.1",
        [Edit(CORE,
              "for peer, progress in leader.progress.items()}, self.saved_index)",
              "for peer, progress in leader.progress.items()}, self.log.last_index)")],
        [COMMITS + "test_majority_on_disk_commits", STATE + "test_a_leader_counts_its_own_entries_when_they_are_durable", SIMULATION]),
    Mutant(
        "leader-commit-not-capped",
        "A follower commits what the leader has committed, also where its own log is another.",
        "Figure 2, AppendEntries, 5",
        [Edit(CORE,
              "self.commit_index = max(self.commit_index, min(request.leader_commit, last_new))",
              "self.commit_index = max(self.commit_index, min(request.leader_commit, self.log.last_index))")],
        [REPLICATES + "test_follower_caps_leader_commit"], quick=True),
    Mutant(
        "refused-append-commits",
        "A follower commits by a request that does not fit its log.",
        "Figure 2, AppendEntries, 2 and 5",
        [Edit(CORE, """
            index, term = self.log.conflict(request.prev_log_index)
""", """
            index, term = self.log.conflict(request.prev_log_index)
            self.commit_index = max(self.commit_index, min(request.leader_commit, self.log.last_index))
""")],
        [REPLICATES + "test_a_refused_append_commits_nothing"]),
    Mutant(
        "commit-index-falls",
        "A late heartbeat takes back what was committed.",
        "Figure 2, State: increases monotonically",
        [Edit(CORE,
              "self.commit_index = max(self.commit_index, min(request.leader_commit, last_new))",
              "self.commit_index = min(request.leader_commit, last_new)")],
        [STATE + "test_commit_index_never_falls", SIMULATION]),
    Mutant(
        "restart-commits-the-whole-log",
        "After a restart all of the log counts as committed.",
        "Figure 2, State: commitIndex is volatile",
        [Edit(CORE, "self.commit_index = self.last_applied = applied", "self.last_applied, self.commit_index = applied, log.last_index")],
        [COMMITS + "test_a_new_leader_commits_nothing_by_itself"]),
    Mutant(
        "no-noop",
        "A new leader appends nothing: what its predecessors left is not committed before somebody writes.",
        "section 8; thesis 6.4",
        [Edit(CORE, """
        self._append(NOOP, b"")
""", "")],
        [ELECTIONS + "test_leader_begins_with_a_noop"]),
    Mutant(
        "applied-before-durable",
        "Entries are applied that are not on the disk here: after a power cut the state is ahead of its log.",
        "a state must never be ahead of its log; etcd 13766 for the other direction",
        [Edit(CORE, "return min(self.commit_index, self.saved_index)", "return self.commit_index")],
        [STATE + "test_only_what_is_saved_is_applied", COMMITS + "test_two_followers_commit_before_the_leaders_disk", SIMULATION]),
    Mutant(
        "applied-before-committed",
        "Whatever is in the log is applied.",
        "Figure 2, Rules for Servers, All Servers",
        [Edit(CORE, "return entries[:self.applicable_index - self.last_applied]", "return entries")],
        [STATE + "test_only_what_is_saved_is_applied"]),
)

READS = (
    Mutant(
        "read-without-a-round",
        "A leader answers reads without asking anybody whether it still leads.",
        "etcd 0.4.1 and Consul (Jepsen 2014); d-engine 381; thesis 6.4",
        [Edit(CORE, """
        waiting = [read for read in leader.reads if read.round > answered]
""", """
        answered = leader.round
        waiting = [read for read in leader.reads if read.round > answered]
""")],
        [READ + "test_read_waits_for_a_majority"]),
    Mutant(
        "read-in-a-round-under-way",
        "A read is confirmed by answers to requests that were sent before it began.",
        "etcd 20418, PR 21399",
        [Edit(CORE, "if not leader.round_open:  # a", "if not leader.reads:  # a")],
        [READ + "test_request_under_way_does_not_confirm_a_later_read"]),
    Mutant(
        "any-answer-confirms-all-reads",
        "Any answer confirms all reads that wait, also one to a request from before them.",
        "etcd 20418; thesis 6.4",
        [Edit(CORE, "progress.acked_round = max(progress.acked_round, request.round)", "progress.acked_round = self.role.round")],
        [READ + "test_an_answer_counts_for_the_round_of_its_request"]),
    Mutant(
        "answer-confirms-the-last-round-sent",
        "The answer to an older request counts for the newest one that was sent.",
        "etcd 20418; thesis 6.4",
        [Edit(CORE, """
                progress.acked_round = max(progress.acked_round, request.round)
""", """
                progress.acked_round = max(progress.acked_round, progress.sent_round)
""")],
        [READ + "test_an_answer_counts_for_the_round_of_its_request"]),
    Mutant(
        "read-before-the-noop",
        "A new leader answers reads before an entry of its term is committed: it does not know what is.",
        "etcd 3879; goraftd; thesis 6.4",
        [Edit(CORE, """
        if self.commit_index >= leader.first_index:
            read.index = self.commit_index
""", """
        read.index = self.commit_index
"""),
         Edit(CORE, "if not leader.reads or self.commit_index < leader.first_index:", "if not leader.reads:")],
        [READ + "test_read_waits_for_the_noop"]),
    Mutant(
        "lease-read",
        "A leader that has heard a majority lately answers reads by itself, also after a pause or with a slow clock.",
        "tikv 964; etcd's ReadOnlyLeaseBased",
        [Edit(CORE, """
        leader.reads.append(read)
        self._confirm_reads()
""", """
        leader.reads.append(read)
        heard = {peer for peer, progress in leader.progress.items()
                 if self.now - progress.last_heard <= self._settings.election_timeout_seconds}
        if self.configuration.is_majority(heard | {self.name}) and read.index:
            leader.reads.remove(read)
            self._finish_read(read, read.index)
        self._confirm_reads()
""")],
        [READ + "test_read_waits_for_a_majority"]),
    Mutant(
        "read-at-last-applied",
        "A read is answered from what is applied here, not from what was committed when it began.",
        "thesis 6.4",
        [Edit(CORE, """
            read.index = self.commit_index
        leader.reads""", """
            read.index = self.last_applied
        leader.reads"""),
         Edit(CORE,
              "self._finish_read(read, read.index or self.commit_index)",
              "self._finish_read(read, read.index or self.last_applied or 1)")],
        [READ + "test_read_index_is_not_older_than_a_write_before_it"]),
    Mutant(
        "deposed-leader-answers-reads",
        "Reads that wait when a leader steps down are answered with what it has.",
        "thesis 6.4; sofa-jraft 25, PR 34",
        [Edit(CORE, """
            case Leader(reads=reads):
                self._fail_reads(reads)
""", """
            case Leader(reads=reads):
                for read in reads:
                    self._finish_read(read, self.commit_index)
""")],
        [READ + "test_reads_of_a_deposed_leader_fail"]),
    Mutant(
        "follower-reads-without-asking",
        "A follower answers linearizable reads from what it has committed.",
        "thesis 6.4; etcd 0.4.1 and Consul (Jepsen 2014)",
        [Edit(CORE, """
            case Follower(leader_id, reads=reads) if leader_id is not None:
                reads.append(read)
""", """
            case Follower(leader_id, reads=reads) if leader_id is not None:
                self._finish_read(read, self.commit_index)
""")],
        [READ + "test_follower_asks_the_leader", SIMULATION]),
    Mutant(
        "follower-confirms-reads",
        "A server that does not lead confirms what others ask it.",
        "thesis 6.4",
        [Edit(CORE,
              "answer.make_reply = lambda: ReadIndexReply(self.term, 0)",
              "answer.make_reply = lambda: ReadIndexReply(self.term, self.commit_index)")],
        [READ + "test_a_question_of_an_older_term_is_not_confirmed"]),
    Mutant(
        "late-read-index-counts",
        "The answer to a question that was given up counts for reads that were asked about later.",
        "etcd 20418",
        [Edit(CORE, """
        if request is not follower.asking:
            return
""", "")],
        [READ + "test_unanswered_question_fails_its_reads_and_no_others"]),
    Mutant(
        "learners-confirm",
        "Learners count for what is committed and for who leads.",
        "thesis 4.2.1",
        [Edit(CORE, "for name in self.configuration.voters), reverse=True)", "for name in self.configuration.members), reverse=True)")],
        [COMMITS + "test_learners_do_not_commit", READ + "test_learners_do_not_confirm_reads"]),
)

MEMBERSHIP = (
    Mutant(
        "half-is-a-majority",
        "Half of the voters are a majority: two halves elect a leader each.",
        "section 5.2",
        [Edit(CONFIGURATION,
              "return 2 * sum(name in names for name in voters) > len(voters)",
              "return 2 * sum(name in names for name in voters) >= len(voters)")],
        [VOTERS + "test_a_majority_is_more_than_half", ELECTIONS + "test_half_of_the_votes_do_not_win"], quick=True),
    Mutant(
        "learners-are-voters",
        "A server that is only catching up has a vote.",
        "thesis 4.2.1",
        [Edit(CONFIGURATION, "for name, member in self.members.items() if member.voter]", "for name, member in self.members.items()]")],
        [VOTERS + "test_learners_and_strangers_do_not_count", MEMBERS + "test_learners_are_not_asked_and_do_not_count"]),
    Mutant(
        "strangers-are-counted",
        "Whoever grants a vote is counted, voter or not.",
        "thesis 4.2.2: a server that is left out does not count itself",
        [Edit(CONFIGURATION, "return 2 * sum(name in names for name in voters) > len(voters)", "return 2 * len(names) > len(voters)")],
        [VOTERS + "test_learners_and_strangers_do_not_count", MEMBERS + "test_learners_are_not_asked_and_do_not_count"]),
    Mutant(
        "learner-stands",
        "A learner stands for election.",
        "thesis 4.2.1",
        [Edit(CORE,
              "return self.configuration.is_voter(self.name) or self.configurations.at(self.commit_index)[1].is_voter(self.name)",
              "return self.name in self.configuration.members")],
        [MEMBERS + "test_learners_do_not_stand"]),
    Mutant(
        "leader-counts-itself-when-left-out",
        "A leader that its newest configuration leaves out still counts itself for what it commits.",
        "thesis 4.2.2",
        [Edit(CORE, """
        reached = sorted((own if name == self.name else values[name] for name in self.configuration.voters), reverse=True)
""", """
        reached = sorted((values[name] for name in self.configuration.voters if name != self.name), reverse=True)
        reached = sorted([own, *reached], reverse=True)
""")],
        [MEMBERS + "test_removed_leader_leads_until_it_is_committed"]),
    Mutant(
        "configuration-used-when-committed",
        "A configuration counts only once it is committed: by then, two majorities may have decided.",
        "thesis 4.1",
        [Edit(CORE, """
        return self.configurations.latest
""", """
        return self.configurations.at(self.commit_index)[1]
""")],
        [MEMBERS + "test_configuration_counts_when_appended"]),
    Mutant(
        "configuration-not-taken-from-entries",
        "A follower does not use a configuration that it is sent.",
        "thesis 4.1",
        [Edit(CORE, """
            if entry.kind == CONFIGURATION:
                self.configurations.append(entry.index, Configuration.decode(entry.command))

    def _read_index""", """
            pass

    def _read_index""")],
        [MEMBERS + "test_configuration_counts_when_appended"]),
    Mutant(
        "configuration-stays-when-removed",
        "The configuration of an entry that a conflict removed goes on to count.",
        "thesis 4.1; RedisLabs/raft 49",
        [Edit(CORE, """
        self.configurations.truncate(index)
""", "")],
        [MEMBERS + "test_configuration_goes_back_with_its_entry"]),
    Mutant(
        "configuration-truncation-off-by-one",
        "The configuration of the very first entry that is removed stays.",
        "thesis 4.1",
        [Edit(CONFIGURATION, "while self._history[-1][0] >= first_removed:", "while self._history[-1][0] > first_removed:")],
        [VOTERS + "test_a_configuration_goes_back_with_its_entry", MEMBERS + "test_configuration_goes_back_with_its_entry"]),
    Mutant(
        "two-changes-at-once",
        "A change of membership does not wait for the one before it.",
        "thesis 4.1",
        [Edit(CORE, "if self.configurations.latest_index > self.commit_index:", "if False:")],
        [MEMBERS + "test_one_change_at_a_time", SIMULATION]),
    Mutant(
        "change-before-the-term-has-committed",
        "A new leader changes the membership before it has committed an entry of its term.",
        'Ongaro, "bug in single-server membership changes", raft-dev 2015',
        [Edit(CORE, """
        if self.commit_index < self.role.first_index:
            raise NoQuorum(""", """
        if False:
            raise NoQuorum(""")],
        [MEMBERS + "test_no_change_before_the_term_has_committed"]),
    Mutant(
        "two-votes-in-one-change",
        "One change replaces a voter by another: old and new majority need not share a server.",
        "thesis 4.1",
        [Edit(CONFIGURATION,
              "return len(set(self.voters) ^ set(other.voters)) <= 1",
              "return len(set(self.voters) ^ set(other.voters)) <= 2")],
        [VOTERS + "test_one_vote_at_a_time", MEMBERS + "test_two_votes_at_once_are_refused"]),
    Mutant(
        "removed-leader-goes-on",
        "A leader that the committed configuration leaves out leads on.",
        "thesis 4.2.2",
        [Edit(CORE,
              "return self.configurations.latest_index <= self.commit_index and not self.configuration.is_voter(self.name)",
              "return False")],
        [MEMBERS + "test_removed_leader_leads_until_it_is_committed"]),
    Mutant(
        "removed-leader-leaves-too-early",
        "A leader steps down when its removal is appended, not when it is committed: nobody may be able to commit it.",
        "thesis 4.2.2",
        [Edit(CORE,
              "return self.configurations.latest_index <= self.commit_index and not self.configuration.is_voter(self.name)",
              "return not self.configuration.is_voter(self.name)")],
        [MEMBERS + "test_removed_leader_does_not_leave_before_that_is_committed"]),
    Mutant(
        "left-out-server-does-not-stand",
        "A server that an uncommitted configuration leaves out does not stand, though only it may win.",
        "thesis 4.2.2",
        [Edit(CORE,
              "return self.configuration.is_voter(self.name) or self.configurations.at(self.commit_index)[1].is_voter(self.name)",
              "return self.configuration.is_voter(self.name)")],
        [MEMBERS + "test_left_out_server_stands_until_that_is_committed"]),
    Mutant(
        "unknown-leader-not-heard",
        "A leader that the own configuration does not have is refused: who has missed a change never catches up.",
        "thesis 4.1",
        [Edit(CORE, """
        self._hear_leader(request)
        self.role.leader_commit""", """
        if request.leader_id not in self.configuration.members:
            return Answer(request, lambda: AppendEntriesReply(self.term, False))
        self._hear_leader(request)
        self.role.leader_commit""")],
        [MEMBERS + "test_who_is_not_in_the_configuration_is_heard"]),
    Mutant(
        "unknown-candidate-gets-no-vote",
        "A candidate that the own configuration does not have gets no vote: there may be no other that can win.",
        "thesis 4.1",
        [Edit(CORE,
              "granted = granted and request.term == self.term and",
              "granted = granted and self.configuration.is_voter(request.candidate_id) and request.term == self.term and")],
        [MEMBERS + "test_who_is_not_in_the_configuration_gets_votes"]),
    Mutant(
        "handed-over-before-the-log-is-there",
        "The successor is asked to stand before it has all of the log.",
        "thesis 3.10",
        [Edit(CORE, "and self.role.progress[peer].match_index == self.log.last_index", "and True")],
        [MEMBERS + "test_transfer_waits_for_all_of_the_log"]),
    Mutant(
        "commands-taken-while-handing-over",
        "Commands are taken while leadership is handed over: the successor never has all of the log.",
        "thesis 3.10",
        [Edit(CORE, """
        if self.role.transfer:
            raise NoLeader""", """
        if False:
            raise NoLeader""")],
        [MEMBERS + "test_transfer"]),
    Mutant(
        "handing-over-never-ends",
        "A successor that does not answer stops all writes.",
        "thesis 3.10",
        [Edit(CORE, """
        if leader.transfer and self.now >= leader.transfer.deadline:
            leader.transfer = None
""", "")],
        [MEMBERS + "test_transfer_is_given_up_after_an_election_timeout"]),
    Mutant(
        "late-call-to-stand",
        "A call to stand that is late, of an older term, begins an election.",
        "thesis 3.10",
        [Edit(CORE,
              "if request.term == self.term and not self.is_leader and self.configuration.is_voter(self.name) and not self.withdrawn:",
              "if not self.is_leader and self.configuration.is_voter(self.name) and not self.withdrawn:")],
        [MEMBERS + "test_a_call_to_stand_is_not_for_everybody"]),
)

SNAPSHOTS = (
    Mutant(
        "snapshot-keeps-a-conflicting-tail",
        "After a snapshot that the log does not lead up to, the rest of that log stays.",
        "scylla 9551; RedisLabs/raft 49; camunda 3573; section 7",
        [Edit(CORE, """
        if self.log.term_at(index) == term:
            self.log.compact(index)
""", """
        if index <= self.log.last_index:
            self.log.compact(index)
""")],
        [COMPACTS + "test_snapshot_replaces_a_log_that_does_not_contain_it"], quick=True),
    Mutant(
        "snapshot-drops-the-tail",
        "Entries after a snapshot are dropped, though the log led up to it: acknowledged ones with them.",
        "section 7",
        [Edit(CORE, """
        if self.log.term_at(index) == term:
            self.log.compact(index)
""", """
        if False:
            self.log.compact(index)
""")],
        [COMPACTS + "test_snapshot_keeps_the_entries_after_it"]),
    Mutant(
        "snapshots-members-ignored",
        "A server that takes a snapshot keeps the members it had.",
        "RedisLabs/raft 49; camunda 3573; Figure 13, 8",
        [Edit(CORE, "self.configurations.reset(index, configuration)", "self.configurations.reset(index, self.configuration)")],
        [COMPACTS + "test_the_configuration_is_that_of_the_snapshot"]),
    Mutant(
        "snapshot-leaves-saved-index",
        "Entries that a snapshot has replaced still count as saved.",
        "rabbitmq/ra PR 516; section 7",
        [Edit(CORE,
              "self.saved_index = max(min(self.saved_index, self.log.last_index), index)",
              "self.saved_index = max(self.saved_index, index)")],
        [COMPACTS + "test_snapshot_replaces_a_log_that_does_not_contain_it"]),
    Mutant(
        "what-follows-a-snapshot-not-saved",
        "Entries after a snapshot are not written, since others of their index once were.",
        "rabbitmq/ra PR 516; section 7",
        [Edit(CORE,
              "self._unsaved_from = max(min(self._unsaved_from, self.log.last_index + 1), index + 1)",
              "self._unsaved_from = max(self._unsaved_from, index + 1)")],
        [COMPACTS + "test_snapshot_replaces_a_log_that_does_not_contain_it"]),
    Mutant(
        "snapshot-acknowledged-before-saved",
        "A follower says that a snapshot is installed while its log on disk does not begin there yet.",
        "Figure 2, State; section 7",
        [Edit(CORE,
              "self.term, next_offset, installed and request.last_included_index <= self.saved_index)",
              "self.term, next_offset, installed)"),
         Edit(CORE, "answer.needs_index = request.last_included_index", "answer.needs_index = 0")],
        [STATE + "test_an_installed_snapshot_is_confirmed_when_the_log_follows_on_disk"]),
    Mutant(
        "answer-to-another-snapshot-counts",
        "What a follower says of one snapshot counts for the next.",
        "etcd 18055",
        [Edit(CORE, "if snapshot is None or snapshot.checksum != request.checksum:", "if snapshot is None:")],
        [COMPACTS + "test_answers_to_another_snapshot_do_not_count"]),
    Mutant(
        "snapshot-is-no-sign-of-life",
        "Who is sent a long snapshot hears no leader, and stands for election.",
        "section 5.2",
        [Edit(CORE, """
        self._hear_leader(request)
        answer = Answer(request)
        if request.last""", """
        answer = Answer(request)
        if request.last""")],
        [ELECTIONS + "test_any_request_of_the_leader_is_a_sign_of_life"]),
    Mutant(
        "snapshot-index-off-by-one",
        "After a snapshot the leader takes it that the follower has one entry more.",
        "section 7",
        [Edit(CORE,
              "progress.match_index = max(progress.match_index, request.last_included_index)",
              "progress.match_index = max(progress.match_index, request.last_included_index + 1)")],
        [COMPACTS + "test_snapshot_is_sent_when_entries_are_compacted", SIMULATION]),
    Mutant(
        "beginning-of-the-log-not-saved",
        "After a snapshot was installed, the log on disk still begins where it did.",
        "canonical/raft 199",
        [Edit(CORE, """
        self.last_applied = index
        self._base_saved = False
""", """
        self.last_applied = index
""")],
        [COMPACTS + "test_snapshot_replaces_a_log_that_does_not_contain_it", SIMULATION]),
    Mutant(
        "compacted-beyond-what-is-durable",
        "The log forgets entries that the state machine has applied, but not on its disk.",
        "section 7; canonical/raft 199",
        [Edit(CORE,
              "index = min(durable_index, self.last_applied, self.saved_index)",
              "index = min(self.last_applied, self.saved_index)")],
        [COMPACTS + "test_compaction_keeps_what_is_not_surely_on_disk"]),
    Mutant(
        "compaction-forgets-the-term",
        "What compaction notes as the term of its last entry is that of the log's last.",
        "section 7",
        [Edit(LOG,
              "term, count = self.term_at(index), index - self.snapshot_index",
              "term, count = self.last_term, index - self.snapshot_index")],
        [MERGES + "test_compact_forgets_up_to_the_index_and_keeps_its_term", SIMULATION]),
    Mutant(
        "compaction-off-by-one",
        "Compaction forgets one entry more than it says.",
        "section 7",
        [Edit(LOG, "del self._entries[:count]", "del self._entries[:count + 1]")],
        [MERGES + "test_compact_forgets_up_to_the_index_and_keeps_its_term", SIMULATION]),
    Mutant(
        "compaction-forgets-the-members",
        "Compaction keeps the first configuration instead of the one in force.",
        "section 7; RedisLabs/raft 49: the snapshot has the wrong configuration",
        [Edit(CONFIGURATION, "keep = self.at(index)", "keep = self._history[0]")],
        [VOTERS + "test_compact_keeps_the_one_in_force", COMPACTS + "test_compaction_keeps_the_configuration"]),
    Mutant(
        "what-a-receiver-needs-kept-by-entries",
        "What is written while a snapshot is on its way is kept up to a number of entries: a large one is followed by the next, for ever.",
        "found by bin/chaos, 28 minutes with seed 2101; etcd: --snapshot-catchup-entries",
        [Edit(CORE, "first_kept = min(first_kept, self.log.first_within(reserved_from + 1, 16 * keep_bytes))",
              "first_kept = max(reserved_from + 1, self.log.tail_start(index, 16 * keep_entries, 16 * keep_bytes))")],
        [COMPACTS + "test_compaction_keeps_it_by_bytes_not_by_entries"]),
    Mutant(
        "who-has-installed-is-left-alone",
        "Once a snapshot is installed, what its receiver lacks is kept for it no longer.",
        "found by reading",
        [Edit(CORE, """
            self._reserve_what_is_missing(progress)
        else:
""", """
            progress.reserved_from = None
        else:
""")],
        [COMPACTS + "test_compaction_keeps_what_is_missing_until_it_has_arrived"]),
    Mutant(
        "what-has-arrived-is-kept",
        "What comes after a snapshot is kept for its receiver also when it has arrived.",
        "cost",
        [Edit(CORE, "None if has_caught_up else max(progress.reserved_from, progress.match_index)",
              "None if has_caught_up else progress.reserved_from")],
        [COMPACTS + "test_compaction_keeps_what_is_missing_until_it_has_arrived"]),
    Mutant(
        "what-is-being-made-is-not-waited-for",
        "An answer to a heartbeat, while a snapshot is made, has all of the log kept, also what is in the snapshot.",
        "cost",
        [Edit(CORE, "max(progress.reserved_from, progress.match_index)", "progress.match_index")],
        [COMPACTS + "test_compaction_keeps_what_a_snapshot_that_is_being_made_needs"]),
    Mutant(
        "entries-weigh-nothing",
        "Only commands count of what is kept for a receiver: of small ones there may be millions in memory.",
        "cost",
        [Edit(LOG, "ENTRY_BYTES * (len(self._entries) - len(before))", "0")],
        [MERGES + "test_what_is_kept_for_a_receiver_is_bounded_by_its_memory"]),
    Mutant(
        "newest-members-at-the-beginning",
        "The log on disk begins with the newest configuration, which may be rolled back, not with the one in force there.",
        "thesis 4.1, 5.1; RedisLabs/raft 49",
        [Edit(CORE, "self.configurations.at(self.log.snapshot_index)[1])", "self.configuration)")],
        [COMPACTS + "test_compaction_keeps_the_configuration"]),
)

OLDER_COPIES = (
    Mutant(
        "a-copy-that-knows-of-no-members",
        "A leader whose state stands before it joined sends a copy of it, and who installs that knows of no members.",
        "seed 1700249 of bin/simulate; scylla 9551",
        [Edit(CORE, """ \\
                    and bool(self.configurations.at(self.last_applied)[1].members)""", "")],
        ["tests/test_paper_snapshots.py::test_who_stands_where_it_knew_of_no_members_sends_no_snapshot",
         "bin/simulate --seeds 1 --from 1700249"]),
    Mutant(
        "older-copy-not-noticed",
        "A follower that has lost what it confirmed is sent it anew, and nobody knows what else it has forgotten.",
        "etcd's documentation of disaster recovery: a member that restarts with older data must be removed",
        [Edit(CORE, """
        self._check_nothing_is_lost(request)
""", "")],
        [OLDER + "test_a_follower_without_an_entry_that_it_has_confirmed_is_lost"]),
    Mutant(
        "all-that-is-sent-counts-as-confirmed",
        "A leader takes what it has sent for what the follower has: whole servers are called lost.",
        "raftd: a simplification that looks harmless",
        [Edit(CORE, """
                             progress.match_index, lease_ms)
""", """
                             prev_log_index, lease_ms)
""")],
        [OLDER + "test_what_a_follower_refuses_is_not_confirmed", SIMULATION]),
)

GONE = "case Follower(leader) if (leader, self.term) == (leader_id, term):"
DEAD_LEADERS = (
    Mutant(
        "dead-leader-whoever-it-was",
        "What is found of one leader counts for whoever leads by then.",
        "late events; section 5.1",
        [Edit(CORE, GONE, "case Follower(leader) if leader is not None and self.term == term:")],
        [FAILOVER + "test_what_is_said_of_another_leader_or_term_changes_nothing"]),
    Mutant(
        "dead-leader-in-whichever-term",
        "What was found of a leader before it was elected anew counts in its new term, too.",
        "late events; section 5.1",
        [Edit(CORE, GONE, "case Follower(leader) if leader == leader_id:")],
        [FAILOVER + "test_what_is_said_of_another_leader_or_term_changes_nothing", SIMULATION]),
    Mutant(
        "dead-leader-deposed-without-a-pre-vote",
        "Who takes its leader for dead begins an election in a new term: one broken connection deposes a leader that all others hear.",
        "thesis 9.6",
        [Edit(CORE, """
                self._stand_in_turn(0)
""", """
                self._stand_for_election(pre_vote=False, reason="the leader is gone")
""")],
        [FAILOVER + "test_who_has_lost_its_leader_raises_no_term_by_itself", TOLD, SIMULATION], quick=True),
    Mutant(
        "dead-leader-still-a-reason-to-refuse",
        "Who finds the leader dead hurries, and still refuses votes to others because of it.",
        "thesis 4.2.3",
        [Edit(CORE, """
                self._become_follower(term, None, f"{leader_id} is gone")
""", """
                self.role.last_heard = self.now
""")],
        [FAILOVER + "test_who_has_lost_its_leader_votes", TOLD]),
    Mutant(
        "refused-in-haste-and-patient-again",
        "A pre-vote that is refused since the others have not noticed yet is asked for again only after an election timeout.",
        "raftd: what makes failover slow every other time",
        [Edit(CORE, "if self.now < self._hasty_until and self._cannot_win(candidate):", "if False:")],
        [FAILOVER + "test_who_is_refused_since_others_have_not_noticed_asks_again_soon",
         FAILOVER + "test_an_election_whose_votes_are_split_is_soon_followed_by_another", TOLD]),
    Mutant(
        "hasty-for-ever",
        "Who has once lost a leader asks for votes many times in each election timeout, as long as nobody leads.",
        "section 5.6",
        [Edit(CORE, "self._gone, self._hasty_until = leader_id, self._timer", "self._gone, self._hasty_until = leader_id, math.inf")],
        [FAILOVER + "test_who_is_refused_for_an_election_timeout_becomes_patient_again"]),
    Mutant(
        "hasty-under-another-leader",
        "The haste goes on in another term, and under another leader.",
        "state of a role that outlives it",
        [Edit(CORE, """
        self._hasty_until = -math.inf
        self._change_role(Follower(leader_id), reason)
""", """
        self._change_role(Follower(leader_id), reason)
""")],
        [FAILOVER + "test_another_leader_or_term_ends_the_haste"]),
    Mutant(
        "election-given-up-that-may-be-won",
        "One refusal ends an election in haste, though the votes of others may still come.",
        "section 5.2",
        [Edit(CORE, "if self.now < self._hasty_until and self._cannot_win(candidate):", "if self.now < self._hasty_until:")],
        [FAILOVER + "test_an_election_that_may_be_won_is_not_given_up"]),
    Mutant(
        "all-stand-at-once",
        "All who have lost their leader stand at the same time, and share the votes.",
        "section 5.2: randomized timeouts",
        [Edit(CORE, "(pause_turns + turn + self._random.random() / 2)", "(pause_turns + self._random.random() / 2)")],
        [FAILOVER + "test_those_who_have_lost_their_leader_stand_in_turn"]),
    Mutant(
        "learner-stands-when-the-leader-is-dead",
        "A learner, or a server that was removed, asks for votes at once when it finds the leader dead.",
        "thesis 4.2.1, 4.2.3",
        [Edit(CORE, """
                self._stand_in_turn(0)
""", """
                self._stand_for_election(pre_vote=True, reason="the leader is gone")
""")],
        [FAILOVER + "test_a_learner_does_not_stand_however_dead_the_leader_is", FAILOVER + "test_nor_does_a_server_that_was_removed",
         FAILOVER + "test_nor_does_one_whose_state_cannot_be_written", FAILOVER + "test_nor_does_one_whose_disk_hangs"]),
)

RAFT = (*OLDER_COPIES, *DEAD_LEADERS, *TERMS_AND_VOTES, *REPLICATION, *READS, *MEMBERSHIP, *SNAPSHOTS)
