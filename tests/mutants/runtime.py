"""Bugs in what runs the algorithm: raftd/node.py, membership.py, server.py."""

from mutants.mutant import Edit, Mutant

NODE = "node.py"
MEMBERSHIP = "membership.py"
SERVER = "server.py"
TURNS = "turns.py"

TESTS = "tests/test_node.py::"
TURN_TESTS = "tests/test_turns.py::"
OLDER = "tests/test_older_copy.py::"
MEMBER_TESTS = "tests/test_membership.py::"
RECOVERY = "tests/test_recovery.py::"
JOINING = "tests/test_joining.py::"
CLUSTER = "tests/test_cluster_membership.py::"
SIMULATION = "bin/simulate --seeds 50"

RUNTIME = (
    Mutant(
        "a-copy-keeps-the-log-from-the-disk",
        "A leader that cannot write its log any more keeps a copy of its state for others, which fills the disk: it stays silent for ever.",
        "a disk of chaos that had room for one copy",
        [Edit(NODE, "            self._release_outgoing()  # who leads no more sends it to nobody, and", "            pass  #")],
        [TESTS + "test_a_copy_for_others_does_not_keep_the_disk_full"]),
    Mutant(
        "a-copy-keeps-the-state-from-the-disk",
        "The same, of a leader that cannot write its state.", "a disk of chaos that had room for one copy",
        [Edit(NODE, "        self._release_outgoing()  # as in ``_recover``\n", "")],
        [TESTS + "test_a_copy_for_others_does_not_keep_the_disk_full"]),
    Mutant(
        "large-commands-rush",
        "Whoever writes large values takes the log for himself: small writes wait most of the time.",
        "head-of-line blocking",
        [Edit(TURNS, "if self._must_give_way() and (rest :=", "if False and (rest :=")],
        [TURN_TESTS + "test_beside_small_ones_a_large_one_rests_as_long_as_others_took"]),
    Mutant(
        "no-command-is-large",
        "Large commands are proposed as they come.",
        "head-of-line blocking",
        [Edit(NODE, "if len(command) <= LARGE_BYTES:", "if True:")],
        [TESTS + "test_large_commands_give_way_to_small_ones"]),
    Mutant(
        "rest-without-a-bound",
        "After a large command that took long no other comes for twice that time.",
        "starvation",
        [Edit(TURNS, "min(RESTS * (now - started), MOST_REST_SECONDS)", "RESTS * (now - started)")],
        [TURN_TESTS + "test_a_slow_disk_makes_no_pause_without_end"]),
    Mutant(
        "failed-turn-never-ends",
        "A large command that fails keeps its turn: all others wait for ever.",
        "a lock that is not released",
        [Edit(TURNS, """
        finally:
            if is_its_turn:
                self._one.release()
""", """
            if is_its_turn:
                self._one.release()
        finally:
            pass
""")],
        [TURN_TESTS + "test_one_that_fails_ends_its_turn"]),
    Mutant(
        "all-wait-for-their-turn",
        "However many large commands there are, each waits for its turn, and takes a thread: nobody else is served.",
        "starvation of a pool of threads",
        [Edit(TURNS, "if not self._must_give_way() or not self._places.acquire(blocking=False):",
              "if not self._must_give_way() or not self._places.acquire():")],
        [TURN_TESTS + "test_of_many_only_a_few_wait"]),
    Mutant(
        "turn-ended-by-another",
        "A large command that came without a turn ends that of another.",
        "a lock that somebody else holds",
        [Edit(TURNS, """
        finally:
            if is_its_turn:
                self._one.release()
""", """
        finally:
            if self._one.locked():
                self._one.release()
""")],
        [TURN_TESTS + "test_they_come_one_at_a_time_but_nobody_waits_for_more_than_half_of_his_time"]),
    Mutant(
        "hanging-reader-deposes-its-leader",
        "When the thread hangs that reads the replies to rounds of reads, the peers count as silent until they are heard otherwise.",
        "one loop for all: etcd 22214",
        [Edit(NODE, """
            return self.settings.rpc_timeout_seconds / 2
        size = sum(len(entry.command) for entry in request.entries)
""", """
            return 4 * self.settings.election_timeout_seconds
        size = sum(len(entry.command) for entry in request.entries)
""")],
        [TESTS + "test_a_thread_that_hangs_with_the_rounds_of_reads_deposes_nobody"]),
    Mutant(
        "hanging-reply-waited-for",
        "A peer is sent nothing more while the thread hangs that is to read its reply.",
        "one loop for all: etcd 22214",
        [Edit(NODE, "if link.posted is not None and link.post_due <= now:", "if False:")],
        [TESTS + "test_a_thread_that_hangs_with_a_reply_keeps_nobody_from_sending"]),
    Mutant(
        "reply-given-up-taken",
        "A reply counts although it was given up, and the request was sent again.",
        "late events",
        [Edit(NODE, "if link.posted is not ready:", "if False:")],
        [TESTS + "test_a_thread_that_hangs_with_a_reply_keeps_nobody_from_sending"]),
    Mutant(
        "sent-twice-at-once",
        "What was sent and is not answered yet is sent again whenever something happens.",
        "flow control",
        [Edit(NODE, "if link.idle and link.posted is None and self._should_go_on_locked(link):",
              "if link.idle and self._should_go_on_locked(link):")],
        [TESTS + "test_nothing_more_is_sent_to_a_peer_until_its_reply_is_there"]),
    Mutant(
        "two-threads-at-one-connection",
        "The thread that sends to a peer does not look whether another one has sent something and waits for the reply.",
        "two readers of one stream",
        [Edit(NODE, "elif link.handed or (link.posted is None and self._has_work_locked(link)):",
              "elif link.handed or self._has_work_locked(link):")],
        [TESTS + "test_who_waits_for_what_another_thread_has_sent_sleeps"]),
    Mutant(
        "spins-while-another-waits",
        "The thread that sends to a peer turns without a pause while a heartbeat is due and another thread waits for a reply.",
        "busy loops: 100 % of a core",
        [Edit(NODE, "return math.inf if link.data or link.posted or self._silent", "return math.inf if link.data or self._silent")],
        [TESTS + "test_who_waits_for_what_another_thread_has_sent_sleeps"]),
    Mutant(
        "unsent-request-forgotten",
        "What could not be sent without waiting is left to nobody.",
        "a lost wake-up",
        [Edit(NODE, """
                self._hand_back_locked(link)
                return
""", """
                link.posted = None
                return
""")],
        [TESTS + "test_what_cannot_be_sent_without_waiting_is_sent_by_its_thread"]),
    Mutant(
        "peer-that-leaves-is-waited-for",
        "A peer leaves, and nobody ends the connection on which a reply of it is waited for.",
        "leaks of connections",
        [Edit(NODE, """
                if link.posted is not None:
                    self._change_connection_locked(link)
""", "")],
        [TESTS + "test_a_peer_leaves_while_a_reply_of_it_is_waited_for"]),
    Mutant(
        "state-ahead-of-its-log-accepted",
        "At the start the two files are not compared: one of them may have lost what the other relies on.",
        "SQLite drops a damaged tail of its WAL without a word; etcd 13766",
        [Edit(NODE, "if not agrees and not (was_installed and position.index > base.index):", "if False:")],
        [TESTS + "test_a_state_ahead_of_its_log_is_refused"], quick=True),
    Mutant(
        "state-of-another-cluster-accepted",
        "At the start only index and term of the state are compared with the log: that of another cluster fits by chance.",
        "the original raftd; a file that was exchanged",
        [Edit(NODE, """
    agrees = raft_log.term_at(position.index) == position.term and (
        position.index == 0 or configurations.at(position.index)[1].encode() == position.configuration)
""", """
    agrees = raft_log.term_at(position.index) == position.term
""")],
        [TESTS + "test_a_state_that_was_reached_with_other_members_is_refused"]),
    Mutant(
        "entries-skipped-after-a-restart",
        "After a restart all that is in the log counts as applied.",
        "etcd 13766",
        [Edit(NODE, "applied = position.index if agrees else base.index", "applied = raft_log.last_index")],
        [TESTS + "test_a_state_that_is_older_than_its_log_is_brought_up_by_the_log", SIMULATION]),
    Mutant(
        "answered-when-appended",
        "A write is answered when it is in the leader's log, not when it is committed.",
        "section 5.3; the original raftd",
        [Edit(NODE, """
        self._waiting_bytes += size
        if size <= LARGE_BYTES:
""", """
        self._waiting_bytes += size
        _resolve(future, Applied(entry.index, None))
        if size <= LARGE_BYTES:
""")],
        [TESTS + "test_a_write_is_applied_on_all_in_order_and_answers_what_the_machine_said",
         TESTS + "test_a_write_that_is_not_committed_in_time_says_perhaps"]),
    Mutant(
        "answered-by-another-entry",
        "A write is answered as done when any entry is committed at its index.",
        "section 8; Redis-Raft",
        [Edit(NODE, "if proposal.term == entry.term:", "if proposal:")],
        [TESTS + "test_an_entry_that_is_overwritten_is_certainly_not_applied"]),
    Mutant(
        "foreseen-for-another-entry",
        "A write whose outcome is foreseen is answered as done when any entry is committed at its index.",
        "section 8; Redis-Raft",
        [Edit(NODE, "if proposal and proposal.foreseen is not None and proposal.term == entry.term:",
              "if proposal and proposal.foreseen is not None:")],
        [TESTS + "test_a_foreseen_write_is_not_answered_by_what_another_leader_commits_in_its_place"], quick=True),
    Mutant(
        "foreseen-once-it-is-saved",
        "A write whose outcome is foreseen is answered when the leader has it on its disk.",
        "section 5.3; the original raftd",
        [Edit(NODE, "        entries = raft.log.entries(max(first, raft.log.first_index), raft.commit_index)\n",
              "        entries = raft.log.entries(max(first, raft.log.first_index), raft.saved_index)\n"),
         Edit(NODE, "        if raft.commit_index != self._seen_commit:\n", "        if True:\n")],
        [TESTS + "test_a_foreseen_write_is_answered_when_it_is_committed_and_not_before"]),
    Mutant(
        "stale-read-without-what-was-answered",
        "A stale read does not show a write that the same node has answered before.",
        "read your writes, on one server",
        [Edit(NODE, "return self._answered_index <= raft.last_applied or bool", "return True or bool")],
        [TESTS + "test_a_foreseen_write_is_answered_before_it_is_applied_and_a_read_waits_until_it_is[stale]"]),
    Mutant(
        "stale-read-waits-for-a-broken-state",
        "A stale read waits for writes that were answered although the state cannot be written.",
        "availability: stale reads are for when all else fails",
        [Edit(NODE, "bool(raft.withdrawn or self._silent or", "bool(self._silent or")],
        [TESTS + "test_a_stale_read_does_not_wait_for_a_state_that_cannot_be_written"]),
    Mutant(
        "stale-read-waits-for-a-disk-that-hangs",
        "A stale read waits for what peers have committed, although the disk here does not write it.",
        "availability: stale reads are for when all else fails",
        [Edit(NODE, "bool(raft.withdrawn or self._silent or raft.disk_stalled_seconds)", "bool(raft.withdrawn or self._silent)")],
        [TESTS + "test_a_stale_read_does_not_wait_for_a_disk_that_hangs"]),
    Mutant(
        "stale-read-waits-for-what-is-not-there",
        "After the log has failed a stale read waits for what only others have.",
        "availability: stale reads are for when all else fails",
        [Edit(NODE, "self._answered_index = min(self._answered_index, self._raft.commit_index)", "pass")],
        [TESTS + "test_a_stale_read_does_not_wait_for_what_a_log_that_failed_has_not"]),
    Mutant(
        "status-waits-for-ever",
        "Each status that has waited in vain is counted among the reads that wait.",
        "a leak",
        [Edit(NODE, "            self._give_up_locked(applied)\n", "")],
        [TESTS + "test_a_stale_read_does_not_wait_for_a_disk_that_hangs"]),
    Mutant(
        "full-disk-says-ask-another",
        "A write to a server alone whose disk is full is refused since it does not lead, as if another did.",
        "people at 3 a.m.",
        [Edit(NODE, "if self._raft.withdrawn and self._raft.leader_id is None:", "if False:")],
        [TESTS + "test_a_stale_read_does_not_wait_for_a_state_that_cannot_be_written"]),
    Mutant(
        "nobody-applies-for-a-read",
        "A read waits until the entries before it are applied for their age.",
        "a lost wake-up",
        [Edit(NODE, "return bool(self._applied_waiters) or raft.commit_index", "return raft.commit_index")],
        [TESTS + "test_foreseen_writes_that_nobody_reads_are_applied_together"]),
    Mutant(
        "lone-write-waits-for-others",
        "A write that comes after a long silence is applied, and told to who watches, only after a pause.",
        "etcd: who watches is told within milliseconds",
        [Edit(NODE, "            self._apply_at = due if has_work else math.inf\n", """
            self._apply_at = due if has_work else math.inf
            if not has_work:
                ended = math.inf
            elif ended == math.inf:
                ended = now
                continue
""".removeprefix("\n"))],
        [TESTS + "test_a_foreseen_write_that_comes_alone_is_applied_at_once"]),
    Mutant(
        "who-waits-for-changes-is-unknown",
        "What somebody watches is applied as seldom as what nobody does.",
        "etcd: who watches is told within milliseconds",
        [Edit(NODE, "(AWAITED_PAUSE_SECONDS if self._state_machine.is_awaited else APPLY_PAUSE_SECONDS)", "APPLY_PAUSE_SECONDS")],
        [TESTS + "test_foreseen_writes_are_applied_sooner_if_somebody_waits_for_changes"]),
    Mutant(
        "committed-entries-pile-up",
        "Entries that nobody reads are applied for their age only, however many they become.",
        "memory that grows with the load",
        [Edit(NODE, "raft.commit_index - raft.last_applied >= MAX_UNAPPLIED \\", "False \\")],
        [TESTS + "test_foreseen_writes_that_nobody_reads_are_applied_together"]),
    Mutant(
        "large-entries-pile-up",
        "Entries that nobody reads wait for others, however large they are.",
        "memory that grows with the load",
        [Edit(NODE, "            or self._unapplied_bytes >= MAX_UNAPPLIED_BYTES \\\n", "")],
        [TESTS + "test_large_writes_do_not_wait_for_others"]),
    Mutant(
        "no-bound-to-what-is-answered-ahead",
        "Writes are answered however far the state machine is behind.",
        "back pressure: a log that grows faster than it is applied",
        [Edit(NODE, "if not self._proposals or raft.commit_index - raft.last_applied > MAX_ANSWERED_AHEAD \\",
              "if not self._proposals \\")],
        [TESTS + "test_who_writes_waits_for_a_state_machine_that_is_far_behind"]),
    Mutant(
        "no-bound-to-the-bytes-answered-ahead",
        "Writes are answered however many bytes of them wait in memory to be applied.",
        "back pressure: memory that grows with the load",
        [Edit(NODE, "or self._unapplied_bytes > min(MAX_ANSWERED_AHEAD_BYTES, self.settings.max_waiting_bytes):", "or False:")],
        [TESTS + "test_who_writes_much_waits_for_a_state_machine_that_is_behind"]),
    Mutant(
        "answered-index-goes-back",
        "A stale read shows what was answered last, not what was answered before it and is not applied yet.",
        "found in review: answers do not come in the order of the log",
        [Edit(NODE, "self._answered_index = max(self._answered_index, index)", "self._answered_index = index")],
        [TESTS + "test_a_stale_read_waits_for_what_was_answered_before_that_which_comes_before_it"]),
    Mutant(
        "stopped-before-all-is-applied",
        "A planned stop leaves what was answered last out of state.db.",
        "the README: it opens in sqlite3 while the server is stopped",
        [Edit(NODE, "self._wake_when_applied_locked(0 if cannot else self._raft.applicable_index, applied)", "applied.set_result(0)")],
        [TESTS + "test_a_node_that_drains_applies_what_is_committed"]),
    Mutant(
        "drain-forgets-what-is-foreseen",
        "A node that stops waits for writes that are answered already.",
        "a lost wake-up",
        [Edit(NODE, """
                self._answer_locked(entry.index, self._proposals.pop(entry.index), proposal.foreseen)
        if self._draining:
            self._changed.notify_all()
""", """
                self._answer_locked(entry.index, self._proposals.pop(entry.index), proposal.foreseen)
""")],
        [TESTS + "test_a_node_that_drains_waits_no_longer_than_its_writes"]),
    Mutant(
        "discarded-though-it-may-commit",
        "A leader that steps down says of what waits that it certainly is not applied.",
        "hashicorp/raft 561; Redis-Raft: aborted reads",
        [Edit(NODE,
              'self._fail_proposals_locked(LeadershipLost(f"this node leads no longer: {self._raft.reason}"))',
              'self._fail_proposals_locked(Discarded(f"this node leads no longer: {self._raft.reason}"))')],
        [TESTS + "test_a_leader_that_is_cut_off_fails_what_waits"]),
    Mutant(
        "failed-save-retried",
        "After a save failed the node goes on as if it had been done.",
        "goraft, `w.Flush()`; Rebello et al., ATC 2020",
        [Edit(NODE, """
        self._storage.save(unsaved)
        with self._lock:
""", """
        try:
            self._storage.save(unsaved)
        except StorageFailed as error:
            log.error("the log cannot be written error=%s", error)
        with self._lock:
""")],
        [TESTS + "test_a_failed_save_fails_the_write_and_the_node_comes_back_by_itself"], quick=True),
    Mutant(
        "two-write-the-log",
        "While a thread that has received entries writes them, the log-writer writes what comes after.",
        "two transactions at a time in one connection",
        [Edit(NODE, "while self._saving_here or not (self._raft.has_unsaved", "while not (self._raft.has_unsaved"),
         Edit(NODE, "self._writer_idle, self._saving_here = False, True", "self._saving_here = True")],
        [TESTS + "test_the_log_is_written_by_one_at_a_time"]),
    Mutant(
        "failure-of-who-wrote-for-the-log-writer-is-lost",
        "When the thread that has received entries cannot write them, nobody opens the file again: the node waits for that write for ever.",
        "an error in a thread that nobody joins",
        [Edit(NODE, """
                self._save_failure = error
                self._saved_here_locked()
""", """
                log.error("the log cannot be written error=%s", error)
                self._saved_here_locked()
""")],
        [TESTS + "test_a_follower_whose_log_fails_comes_back_by_itself"]),
    Mutant(
        "written-here-on-a-slow-disk",
        "On a slow disk, too, the thread that has received entries writes them: the leader hears nothing until all is done.",
        "thesis 10.2.1: an answer in time is worth more than a full one",
        [Edit(NODE, "or self._save_seconds > self.settings.rpc_timeout_seconds / 8", "")],
        [TESTS + "test_on_a_slow_disk_the_log_writer_writes"]),
    Mutant(
        "nobody-writes-the-rest",
        "What has come while the thread that has received entries wrote them is written when there is more, perhaps never.",
        "a lost wake-up",
        [Edit(NODE, "self._saving_here, self._writer_idle = False, True", "self._saving_here = False")],
        [TESTS + "test_the_log_is_written_by_one_at_a_time"]),
    Mutant(
        "ready-though-the-disk-hangs",
        "/readyz does not look at the disk: a follower whose write hangs says ok.",
        "a health check that does not touch the disk; Rebello et al., ATC 2020",
        [Edit(NODE, "if raft.disk_stalled_seconds:", "if False:")],
        [TESTS + "test_a_disk_that_hangs_is_told_while_it_does"]),
    Mutant(
        "hanging-disk-told-afterwards",
        "That a disk hangs is logged when it answers again: perhaps never.",
        "the usual \"slow operation\" line, which is written when the operation is over",
        [Edit(NODE, "if not self._silent and self._raft.disk_stalled_seconds and not self._disk_has_stalled:", "if False:")],
        [TESTS + "test_a_disk_that_hangs_is_told_while_it_does"]),
    Mutant(
        "hanging-disk-told-again-and-again",
        "A disk that hangs is told at each look, and the timer looks all the time.",
        "etcd 22214: the log itself becomes the load",
        [Edit(NODE, "            self._disk_has_stalled = True\n", "")],
        [TESTS + "test_a_disk_that_hangs_is_told_while_it_does"]),
    Mutant(
        "hanging-disk-is-polled",
        "While a write hangs, the timer does not sleep.",
        "a due time in the past that nobody takes out",
        [Edit(NODE, "if not self._silent and not self._disk_has_stalled:", "if not self._silent:")],
        [TESTS + "test_nobody_wakes_for_a_disk_that_hangs_but_once"]),
    Mutant(
        "second-stall-not-told",
        "Only the first time that a disk hangs is logged.",
        "a flag that is never taken back",
        [Edit(NODE, "has_stalled, self._disk_has_stalled = self._disk_has_stalled, False", "has_stalled = self._disk_has_stalled")],
        [TESTS + "test_each_stall_of_a_disk_is_told"]),
    Mutant(
        "stall-outlives-its-failure",
        "A write that hung and then failed goes on to count as one that hangs.",
        "the state of an operation that its error path forgets",
        [Edit(NODE, "if not self._silent and self._raft.disk_stalled_seconds and", "if self._raft.disk_stalled_seconds and"),
         Edit(NODE, "if self._stopping.is_set() or self._silent:\n                return str(self._silent or Stopping())\n",
              "if self._stopping.is_set():\n                return str(Stopping())\n")],
        [TESTS + "test_a_disk_that_hangs_and_then_fails_is_silent_and_no_longer_hangs"]),
    Mutant(
        "ready-though-the-state-hangs",
        "/readyz of a follower does not say for how long its state machine has not answered.",
        "thesis 6.2, for the other file",
        [Edit(NODE, "if time.monotonic() >= self._state_due_locked():", "if False:")],
        [TESTS + "test_a_state_machine_that_hangs_is_told_while_it_does"]),
    Mutant(
        "older-copy-goes-on",
        "A server that finds out that it is an older copy of itself goes on as it is.",
        "faults of other stores after a backup of one server was put back; etcd's documentation of disaster recovery forbids it",
        [Edit(NODE, """
            if self._raft.lost:
                self._lost_locked()
                raise Refusal(f"{self.name}: {self._silent}")
""", "")],
        [OLDER + "test_a_node_that_is_an_older_copy_ends_and_its_files_are_refused_from_then_on"]),
    Mutant(
        "older-copy-goes-on-saving",
        "An older copy of a server finds out, and the write that is under way is still confirmed.",
        "raftd: a review",
        [Edit(NODE, """
            if self._raft.lost:
                return
            self._raft.tick(now)
""", """
            self._raft.tick(now)
""")],
        [OLDER + "test_what_waits_for_the_disk_is_not_confirmed_once_the_loss_is_known"]),
    Mutant(
        "older-copy-forgotten-in-a-recovery",
        "An older copy of a server finds out while its disk fails: it opens its files again, and knows nothing.",
        "raftd: a review",
        [Edit(NODE, """
            if self._raft.lost:
                return False
            self._silent""", """
            self._silent""")],
        [OLDER + "test_what_waits_for_the_disk_is_not_confirmed_once_the_loss_is_known"]),
    Mutant(
        "older-copy-answers-who-waits",
        "An older copy of a server finds out, and who waits for its disk is still given the best answer there is.",
        "raftd: a review",
        [Edit(NODE, """
            if self._silent:
                self._raft.drop(answer)
                raise Refusal(f"{self.name}: {self._silent}")
""", "")],
        [OLDER + "test_the_answer_that_cannot_wait_longer_is_none"]),
    Mutant(
        "log-begins-at-a-state-that-is-not-on-the-disk",
        "A snapshot was installed but for its last sync; the log fails and is opened again, and its entries are given up.",
        "raftd: a review; the like of canonical/raft 199",
        [Edit(NODE, """
                if self._raft.withdrawn:  # the log must not begin at a state that is not on the disk
                    continue
""", "")],
        [TESTS + "test_the_log_does_not_begin_at_a_state_that_is_not_on_the_disk"]),
    Mutant(
        "compaction-counts-from-the-batch-before",
        "A compaction after a slow batch is taken for a state machine that hangs.",
        "raftd: a review",
        [Edit(NODE, """
        with self._lock:
            self._applying_since = started  # another piece of work, with a time of its own
""", "")],
        [TESTS + "test_what_follows_a_batch_has_a_time_of_its_own"]),
    Mutant(
        "nearly-full-disk-floods-the-log",
        "A log that fails whenever it is open again is tried as often as ever.",
        "raftd: seen with a small disk",
        [Edit(NODE, "self._retry_pause = RETRY_SECONDS if is_another else min(2 * self._retry_pause, MOST_RETRY_SECONDS)",
              "self._retry_pause = RETRY_SECONDS")],
        [TESTS + "test_a_log_that_fails_whenever_it_is_open_again_is_tried_less_and_less_often"]),
    Mutant(
        "older-copy-may-be-started-again",
        "An older copy ends when the leader tells it so, and votes after the next start if the leader is gone by then.",
        "a supervisor that starts again what ends",
        [Edit(NODE, """
            self._storage.lost(*self._raft.lost)
""", """
            pass
""")],
        [OLDER + "test_a_node_that_is_an_older_copy_ends_and_its_files_are_refused_from_then_on"]),
    Mutant(
        "failed-save-not-reopened",
        "After a save failed the same file is read again through the same connection.",
        "fsyncgate (PostgreSQL 2018); Rebello et al., ATC 2020",
        [Edit(NODE, """
                self._storage.reopen()
                saved = self._storage.load()
""", """
                saved = self._storage.load()
""")],
        [TESTS + "test_a_failed_save_fails_the_write_and_the_node_comes_back_by_itself"]),
    Mutant(
        "answers-while-its-disk-fails",
        "A node whose log cannot be written goes on to answer its peers.",
        "Rebello et al., ATC 2020",
        [Edit(NODE, """
            if self._stopping.is_set() or self._silent:
                raise Refusal(""", """
            if self._stopping.is_set():
                raise Refusal(""")],
        [TESTS + "test_a_leader_whose_log_fails_is_silent_and_another_leads"]),
    Mutant(
        "state-told-newer-members",
        "The state is told the newest members, not those at its index: the next start takes that for damage.",
        "RedisLabs/raft 49: a snapshot with the wrong configuration",
        [Edit(NODE,
              "self._raft.configurations.at(entries[-1].index)[1].encode() if entries else None",
              "self._raft.configuration.encode() if entries else None")],
        [TESTS + "test_the_state_machine_is_told_the_members_at_its_index_and_no_newer_ones"]),
    Mutant(
        "read-before-applied",
        "A linearizable read is answered when the leader is confirmed, not when what it must see is applied.",
        "rqlite PR 1944; thesis 6.4",
        [Edit(NODE, "self._wake_when_applied_locked(read.index, read.context)", "_resolve(read.context, read.index)"),
         Edit(NODE, """
        if min_index:
            self._wait_until_applied(min_index, deadline)
""", "")],
        [TESTS + "test_a_linearizable_read_anywhere_sees_every_answered_write",
         TESTS + "test_min_index_waits_until_that_entry_is_applied_here"]),
    Mutant(
        "submitted-read-before-applied",
        "Who waits for a read by a future is told so before what it must see is applied.",
        "rqlite PR 1944; thesis 6.4",
        [Edit(NODE, "self._wake_when_applied_locked(read.index, read.context)", "_resolve(read.context, read.index)")],
        [TESTS + "test_a_read_that_nobody_waits_for_may_be_answered_once_what_it_must_see_is_applied"]),
    Mutant(
        "min-index-ignored",
        "A read with min_index does not wait for it.",
        "the contract: read your own writes on any node",
        [Edit(NODE, """
        if min_index:
            self._wait_until_applied(min_index, deadline)
""", "")],
        [TESTS + "test_min_index_waits_until_that_entry_is_applied_here"]),
    Mutant(
        "ready-while-it-replays",
        "A node that lacks what was committed when it came back says that it is ready.",
        "rqlite PR 1944; etcd 3879",
        [Edit(NODE, "if raft.last_applied < max(self._catch_up_to, known_commit - MAX_READY_LAG):", "if False:")],
        [TESTS + "test_a_node_is_ready_once_it_has_what_was_committed_when_it_came_back"]),
    Mutant(
        "compacted-up-to-what-is-applied",
        "The log forgets what is applied, whatever the state machine says is on its disk.",
        "section 7; canonical/raft 199",
        [Edit(NODE, "self._raft.compact(durable_index, self", "self._raft.compact(self._raft.last_applied, self")],
        [TESTS + "test_the_log_keeps_what_the_state_machine_does_not_have_on_its_disk"]),
    Mutant(
        "log-follows-a-state-that-may-go",
        "After a snapshot the log begins where the state stands before that is surely on the disk.",
        "etcd 6368; canonical/raft 199",
        [Edit(NODE, "if self._state_machine.checkpoint() < position.index:", "if False:")],
        [TESTS + "test_a_snapshot_is_installed_once_it_is_surely_on_disk"]),
    Mutant(
        "stranger-admitted",
        "Whoever connects is a peer: a removed server raises the term, or installs its state.",
        "thesis 4.2.3; the original raftd",
        [Edit(NODE, "if configuration_index <= known and not any(sender in them for them in members):", "if False:")],
        [TESTS + "test_strangers_and_impossible_terms_are_refused"]),
    Mutant(
        "terms-can-be-used-up",
        "One message with a huge term bricks the cluster.",
        "hostile peers: a term of 2^63",
        [Edit(NODE, "if request.term > self._raft.term + MAX_TERM_STEP:", "if False:")],
        [TESTS + "test_strangers_and_impossible_terms_are_refused"]),
    Mutant(
        "joins-as-a-voter",
        "A new server has a vote before it has anything of the log: one that is not there costs the majority.",
        "thesis 4.2.1",
        [Edit(MEMBERSHIP, """
        return None
    return configuration.with_member(replace(newcomer, voter=bool(known and known.voter)))
""", """
        return None
    return configuration.with_member(replace(newcomer, voter=True))
""")],
        [MEMBER_TESTS + "test_a_learner_that_stays_behind_is_reported_as_still_at_work"]),
    Mutant(
        "promoted-before-it-has-caught-up",
        "A learner becomes a voter at once.",
        "thesis 4.2.1",
        [Edit(MEMBERSHIP, """
            _wait_until_caught_up(node, newcomer, deadline)
""", "")],
        [MEMBER_TESTS + "test_a_learner_that_stays_behind_is_reported_as_still_at_work"]),
    Mutant(
        "promoted-after-a-long-round",
        "A learner that took long to catch up becomes a voter at once, far behind by then.",
        "thesis 4.2.1: the last round must be shorter than an election timeout",
        [Edit(MEMBERSHIP, "if time.monotonic() - began < node.settings.election_timeout_seconds:", "if began:")],
        [MEMBER_TESTS + "test_a_newcomer_that_has_all_but_took_long_for_it_waits_another_round",
         MEMBER_TESTS + "test_a_newcomer_has_caught_up_after_a_round_that_is_shorter_than_an_election_timeout"], quick=True),
    Mutant(
        "rounds-measured-together",
        "All rounds of a learner together must be short: who took long for the first is never promoted.",
        "thesis 4.2.1",
        [Edit(MEMBERSHIP, """
    name = newcomer.name
    while True:
        began, target = time.monotonic(), node.look(lambda raft: raft.log.last_index)
""", """
    name, began = newcomer.name, time.monotonic()
    while True:
        target = node.look(lambda raft: raft.log.last_index)
""")],
        [MEMBER_TESTS + "test_a_newcomer_has_caught_up_after_a_round_that_is_shorter_than_an_election_timeout"]),
    Mutant(
        "round-follows-the-log",
        "A round ends when the learner has all of the log: under writes it never does.",
        "thesis 4.2.1: a round sends what the log had at its start",
        [Edit(MEMBERSHIP, "partial(_has_or_nobody_asks, name, target), min",
              "lambda raft: _has_or_nobody_asks(name, raft.log.last_index, raft), min")],
        [MEMBER_TESTS + "test_a_newcomer_has_caught_up_after_a_round_that_is_shorter_than_an_election_timeout"]),
    Mutant(
        "late-answer-of-a-removed-server",
        "What a server confirmed before it was removed counts for another that has joined under its name without its files.",
        "a wiped server under an old name is another server; etcd's member ids",
        [Edit(NODE, "if self._silent or link.closed:  # closed: who", "if self._silent:  # who")],
        [MEMBER_TESTS + "test_a_late_answer_of_a_removed_server_is_not_that_of_its_namesake"]),
    Mutant(
        "no-thread-for-a-new-member",
        "There is no thread for the link to a new member: nobody sends it anything, ever, and nothing says so.",
        "a thread that cannot be started, and an error that is swallowed",
        [Edit(NODE, """
                self._run(f"to-{link.peer}-{link.name}", self._link_loop, link)
""", """
                try:
                    self._run(f"to-{link.peer}-{link.name}", self._link_loop, link)
                except RuntimeError as error:
                    log.debug("no thread error=%s", error)
""")],
        [TESTS + "test_no_thread_for_the_link_of_a_new_member_ends_the_node"]),
    Mutant(
        "liar-obeyed",
        "A peer that claims what contradicts the rules is obeyed in part, and an assertion ends the rest.",
        "found by bin/fuzz: two leaders of one term, other entries where some are committed",
        [Edit(NODE, "if contradiction := self._raft.contradiction(request):", "if contradiction := None:")],
        [TESTS + "test_what_no_honest_peer_says_is_refused_and_changes_nothing"]),
    Mutant(
        "speaks-for-another",
        "A peer may ask for votes, or lead, in the name of another.",
        "found by bin/fuzz; section 5.2: one vote for one candidate",
        [Edit(NODE, 'if getattr(request, SENDERS.get(type(request), "leader_id")) != sender or sender == self.name:', "if False:")],
        [TESTS + "test_what_no_honest_peer_says_is_refused_and_changes_nothing"]),
    Mutant(
        "failed-join-is-safe-to-retry",
        "A join whose leader is deposed in the middle is called certainly not done, though the server is a learner by then.",
        "hashicorp/raft 561; Redis-Raft",
        [Edit(MEMBERSHIP, 'if error.retry != "safe":', "if error:")],
        [MEMBER_TESTS + "test_a_join_whose_leader_is_deposed_when_it_has_begun_is_perhaps_done"]),
    Mutant(
        "namesake-promoted",
        "Another server under the name of a learner becomes a voter with the learner's progress.",
        "a wiped server under an old name is another server; etcd's member ids",
        [Edit(MEMBERSHIP, "if known is None or known.id != newcomer.id:", "if known is None:")],
        [MEMBER_TESTS + "test_only_the_server_that_asked_is_promoted"]),
    Mutant(
        "wiped-member-taken-back",
        "A server that has lost its files joins under its old name, and votes again in terms in which it has voted.",
        "etcd's member ids; section 5.2",
        [Edit(MEMBERSHIP, """
    if known and known.id != newcomer.id:
        raise BadRequest(""", """
    if False:
        raise BadRequest(""")],
        [MEMBER_TESTS + "test_of_two_servers_with_one_name_that_join_together_one_becomes_a_member"]),
    Mutant(
        "last-voter-removed",
        "The last voter can be removed: nobody can ever commit again.",
        "thesis 4.2.2",
        [Edit(MEMBERSHIP, "if configuration.voters == [name]:", "if False:")],
        [CLUSTER + "test_the_last_voter_cannot_be_removed"]),
    Mutant(
        "server-of-another-cluster-joins",
        "A server that belongs to another cluster is taken in.",
        "etcd's cluster id",
        [Edit(MEMBERSHIP, 'if identity["cluster"] != node.cluster:', "if False:")],
        [CLUSTER + "test_a_join_of_a_server_of_another_cluster_is_refused"]),
    Mutant(
        "change-decided-by-an-uncommitted-one",
        "A change is reported as needless because of one that may still be rolled back.",
        "thesis 4.1",
        [Edit(NODE,
              "return raft.configurations.latest_index <= raft.commit_index and raft.commit_index >= raft.role.first_index",
              "return True")],
        [MEMBER_TESTS + "test_what_is_not_committed_is_not_reported_as_done"]),
    Mutant(
        "other-cluster-connects",
        "A peer of another cluster is heard.",
        "etcd's cluster id; the original raftd",
        [Edit(SERVER, 'if fields.get("raft-cluster") != identity["cluster"]:', "if False:")],
        [CLUSTER + "test_a_stranger_is_refused_and_changes_nothing[another cluster]"]),
    Mutant(
        "meant-for-another-server",
        "A server answers what is meant for one with other files at the same address.",
        "a wiped server; etcd's member ids",
        [Edit(SERVER, 'if (fields.get("raft-to"), fields.get("raft-to-id")) != (identity["name"], identity["id"]):', "if False:")],
        [CLUSTER + "test_a_stranger_is_refused_and_changes_nothing[for other files]"]),
    Mutant(
        "orphans-taken-for-a-new-server",
        "A directory whose log is gone, but whose state is there, becomes a new server.",
        'lost files; SQLite, "how to corrupt", 1.4',
        [Edit(SERVER, """
                if self.is_new:
                    self._check_empty()
""", "")],
        [RECOVERY + "test_files_without_their_log_are_refused_in_one_line"]),
    Mutant(
        "files-of-another-server",
        "A server starts under another name on files that are not its own.",
        "data directory of another node",
        [Edit(SERVER, "if options.name not in (None, identity.name):", "if False:")],
        [RECOVERY + "test_the_files_of_another_server_are_refused"]),
    Mutant(
        "keys-never-verified",
        "Nobody reads the state as a whole: a key whose bytes have changed on the disk looks missing.",
        "SQLite: of 600 flipped bits 432 gave wrong rows",
        [Edit(SERVER, """
        self._run("state-check", self._verify_state, state)
""", "")],
        [RECOVERY + "test_each_start_reads_all_of_the_state"]),
    Mutant(
        "start-waits-for-the-resolver",
        "Who joins asks where a name is that nobody resolves, and can be neither stopped nor answered meanwhile.",
        "raftd: a review",
        [Edit("joining.py", "return outcome.result(seconds)", "return outcome.result()")],
        [JOINING + "test_it_ends_soon_after_it_is_told_to_stop_though_no_name_is_resolved"]),
    Mutant(
        "a-join-is-taken-back-by-name",
        "Who gives his join up has the cluster forget his name, which may be that of a member: he was refused for it.",
        "raftd: a review",
        [Edit("joining.py", "?id={self._id}&timeout", "?timeout")],
        [JOINING + "test_what_is_taken_back_is_the_join_of_these_files"]),
    Mutant(
        "any-files-are-removed",
        "A member is removed also when others than its files are meant.",
        "raftd: a review",
        [Edit("membership.py", "if id not in (None, configuration.members[name].id):", "if False:")],
        ["tests/test_membership.py::test_a_name_is_removed_only_with_the_files_that_are_meant"]),
    Mutant(
        "stopped-join-goes-on",
        "Who is told to stop while it asks one member goes on to the leader that this one names.",
        "raftd: a review",
        [Edit("joining.py", "for _ in _until(self._stopping, range(3)):", "for _ in range(3):")],
        [JOINING + "test_who_was_told_to_stop_does_not_go_on_to_the_leader"]),
    Mutant(
        "proxies-asked",
        "The members are asked through the proxy that is for the rest of the world.",
        "requests: trust_env",
        [Edit("joining.py", "session.trust_env = False", "session.trust_env = True")],
        [JOINING + "test_the_members_are_asked_directly_whatever_the_environment_says_of_proxies"]),
    Mutant(
        "connection-lost-and-leader-dead",
        "A connection that ends is enough to take the leader for dead: nobody asks whether it still listens.",
        "a leader closes a connection by itself after a call that took too long",
        [Edit(NODE, "if follows and self._transport.refuses(leader.address):", "if follows:")],
        ["tests/test_node.py::test_a_leader_that_still_listens_is_not_dead"]),
    Mutant(
        "dead-leader-of-the-term-of-now",
        "The term is looked up when the leader has been found dead, not when its connection ended.",
        "late events",
        [Edit(NODE, "self._raft.leader_is_gone(sender, term)", "self._raft.leader_is_gone(sender, self._raft.term)")],
        ["tests/test_node.py::test_a_leader_that_was_followed_by_another_while_it_was_asked_for"]),
    Mutant(
        "timer-sleeps-on",
        "The timer is not woken when the core wants it sooner and the role stays: a refused pre-vote is not repeated.",
        "a wake-up that is lost",
        [Edit(NODE, "if raft.next_tick < self._timer_due:", "if False:")],
        ["tests/test_node.py::test_followers_of_a_dead_leader_elect_another_long_before_an_election_timeout"]),
    Mutant(
        "dead-leader-told-to-nobody",
        "The server does not tell its node that the connections of a peer have ended.",
        "wiring",
        [Edit("server.py", "PeerServer(self._admit, self._node.handle, self._node.connection_lost)",
              "PeerServer(self._admit, self._node.handle)")],
        ["tests/test_cluster.py::test_a_dead_leader_is_replaced_before_an_election_timeout"]),
)
