"""Bugs in the state machine: raftd/kv."""

from mutants.mutant import Edit, Mutant

STORE = "kv/store.py"
READERS = "kv/readers.py"
DATABASE = "kv/database.py"
SNAPSHOT = "kv/snapshot.py"
EXECUTION = "kv/execution.py"
COMMANDS = "kv/commands.py"
ENCODING = "kv/encoding.py"
QUERIES = "kv/queries.py"

TESTS = "tests/test_kv_store.py::"
COMMAND_TESTS = "tests/test_kv_commands.py::"
SIMULATION = "bin/simulate --seeds 50"

STATE = (
    Mutant(
        "index-after-the-data",
        "The index is committed after the data, in a transaction of its own: a crash between them applies entries twice.",
        "etcd 13766 (postmortem of 3.5), 14685",
        [Edit(EXECUTION, """
    database.write_position(cursor, position)
    next_deadline""", """
    cursor.execute("COMMIT")
    cursor.execute("BEGIN IMMEDIATE")
    database.write_position(cursor, position)
    next_deadline""")],
        [TESTS + "test_a_batch_that_is_interrupted_anywhere_leaves_nothing_and_can_be_applied_again"], quick=True),
    Mutant(
        "index-before-the-data",
        "The index is committed before the data: a crash between them skips entries.",
        "etcd 13766 (postmortem of 3.5), 14685",
        [Edit(EXECUTION, """
    outcomes = batch.perform_all(commands)
""", """
    database.write_position(cursor, position)
    cursor.execute("COMMIT")
    cursor.execute("BEGIN IMMEDIATE")
    outcomes = batch.perform_all(commands)
""")],
        [TESTS + "test_a_batch_that_is_interrupted_anywhere_leaves_nothing_and_can_be_applied_again"]),
    Mutant(
        "half-a-batch-stays",
        "A batch that fails in the middle is committed as far as it came.",
        "etcd 13766",
        [Edit(STORE, """
            with suppress(Exception):  # what matters is the first error; SQLite may have rolled back already
                cursor.execute("ROLLBACK")
""", """
            cursor.execute("COMMIT")
""")],
        [TESTS + "test_a_batch_that_is_interrupted_anywhere_leaves_nothing_and_can_be_applied_again"]),
    Mutant(
        "new-state-renamed-before-synced",
        "A new state.db gets its name before its bytes are on the disk.",
        "ALICE (Pillai et al., OSDI 2014); etcd 6368",
        [Edit(DATABASE, """
    sqlitefile.sync(draft)
""", "")],
        [TESTS + "test_a_new_file_is_on_the_disk_before_it_has_its_name_and_so_is_the_name_before_it_counts"]),
    Mutant(
        "new-state-without-its-name-on-disk",
        "The directory is not synced after a new state.db got its name.",
        "ALICE (Pillai et al., OSDI 2014); etcd 6368",
        [Edit(DATABASE, """
    os.replace(draft, path)
    sqlitefile.sync_directory(path)
""", """
    os.replace(draft, path)
""")],
        [TESTS + "test_a_new_file_is_on_the_disk_before_it_has_its_name_and_so_is_the_name_before_it_counts"]),
    Mutant(
        "condition-ignored",
        "A write whose condition does not hold happens all the same.",
        "compare-and-set; Jepsen, passim",
        [Edit(EXECUTION, "and not command.conditions.hold(modified_index):", "and command.conditions.hold(modified_index) is None:")],
        [TESTS + "test_conditional_writes", SIMULATION]),
    Mutant(
        "conditional-writes-foreseen",
        "A write with a condition is answered as done when it is committed, whatever comes of it.",
        "compare-and-set; Jepsen, passim",
        [Edit(ENCODING, """
        if data[:3] == _PLAIN_SET:
            return decode(data) and Outcome""", """
        if data[:2] == _PLAIN_SET[:2]:
            return decode(data) and Outcome""")],
        [COMMAND_TESTS + "test_what_depends_on_the_state_or_is_no_command_is_not_foreseen", SIMULATION]),
    Mutant(
        "conditional-ttl-foreseen",
        "A write with a condition and a time to live is answered as done when it is committed, whatever comes of it: two have the lock.",
        "compare-and-set; Jepsen, passim",
        [Edit(ENCODING, "case Set(conditions=conditions) if conditions is UNCONDITIONAL:", "case Set():")],
        [COMMAND_TESTS + "test_what_depends_on_the_state_or_is_no_command_is_not_foreseen"]),
    Mutant(
        "conditional-batch-foreseen",
        "A transaction with conditions in which keys expire is answered as done when it is committed, whatever comes of it.",
        "compare-and-set; Jepsen, passim",
        [Edit(ENCODING, "case Transaction((), then, ()) if all", "case Transaction(_, then, ()) if all")],
        [COMMAND_TESTS + "test_what_depends_on_the_state_or_is_no_command_is_not_foreseen"]),
    Mutant(
        "fenced-writes-foreseen",
        "A write with a fence and a time to live is answered as done when it is committed, though its writer has lost the lock.",
        "Kleppmann 2016, fencing",
        [Edit(ENCODING, "_SAID_AT + len(_NOTHING_SAID)] == _NOTHING_SAID", "_SAID_AT + 4] == _NOTHING_SAID[:4]")],
        [COMMAND_TESTS + "test_what_depends_on_the_state_or_is_no_command_is_not_foreseen"]),
    Mutant(
        "unknown-commands-foreseen",
        "Bytes that no raftd can apply are answered as done, and then stop every server.",
        "section 7 of the paper: all apply the same",
        [Edit(ENCODING, """
    except (struct.error, UnknownCommand):
        pass
""", """
    except (struct.error, UnknownCommand):
        return Outcome("written", index)
""")],
        [COMMAND_TESTS + "test_what_depends_on_the_state_or_is_no_command_is_not_foreseen"]),
    Mutant(
        "one-condition-is-enough",
        "Of two conditions, one that holds is enough.",
        "RFC 9110, section 13.2.2",
        [Edit(COMMANDS, "_matches(self.if_match, modified_index)) and not (", "_matches(self.if_match, modified_index)) or not (")],
        [COMMAND_TESTS + "test_conditions", SIMULATION]),
    Mutant(
        "any-version-matches",
        "If-Match asks only whether the key exists, not in which version.",
        "RFC 9110, section 13.1.1",
        [Edit(COMMANDS, '(versions == "*" or modified_index in versions)', "True")],
        [COMMAND_TESTS + "test_conditions", SIMULATION]),
    Mutant(
        "delete-always-deletes",
        "Deleting a key that does not exist is answered as if it had.",
        "the contract: 404",
        [Edit(EXECUTION, 'return Outcome("missing", index)', 'return Outcome("deleted", index)')],
        [TESTS + "test_outcomes_come_in_order_and_each_sees_the_ones_before", SIMULATION]),
    Mutant(
        "etag-of-the-batch",
        "All keys of a batch get the index of its last entry: the same entry has another ETag on another server.",
        "state machine safety: servers batch differently",
        [Edit(EXECUTION, """
    outcomes = batch.perform_all(commands)
""", """
    commands = [(position.index, command) for _, command in commands]
    outcomes = batch.perform_all(commands)
""")],
        [TESTS + "test_outcomes_come_in_order_and_each_sees_the_ones_before", SIMULATION]),
    Mutant(
        "update-keeps-the-etag",
        "Writing a key again keeps the index of its first writing: a condition on the old version still holds.",
        "RFC 9110, section 8.8.3",
        [Edit(QUERIES, "return Found(value, index_of(id), applied_index,", "return Found(value, created_index, applied_index,")],
        [TESTS + "test_outcomes_come_in_order_and_each_sees_the_ones_before", SIMULATION]),
    Mutant(
        "unknown-command-skipped",
        "A command of a later raftd is skipped: the state differs from that of servers which know it.",
        "section 7 of the paper: all apply the same",
        [Edit(STORE, """
        commands = [(entry_index, decode(data)) for entry_index, data in batch]
""", """
        commands = []
        for entry_index, data in batch:
            with suppress(StartupError):
                commands.append((entry_index, decode(data)))
""")],
        [TESTS + "test_an_unknown_command_changes_nothing"]),
    Mutant(
        "unknown-condition-skipped",
        "A condition of a kind that a later raftd has is taken for one of those that are known.",
        "all servers must apply the same; version skew",
        [Edit(ENCODING, "if kind != _LISTED:", "if kind is None:")],
        [COMMAND_TESTS + "test_unknown_bytes_stop_the_server"]),
    Mutant(
        "row-checksum-not-checked",
        "A value whose bytes have changed on the disk is served as it is.",
        "SQLite: of 600 flipped bits 432 gave wrong rows; Protocol-Aware Recovery (FAST 2018)",
        [Edit(QUERIES, "or change_checksum(id, kind, previous_index, key, value) != change_sum:", "or False:")],
        [TESTS + "test_a_row_that_changed_is_never_served"], quick=True),
    Mutant(
        "head-checksum-not-checked",
        "A key that a flipped bit has given another version, or another value that it had once, is served so.",
        "SQLite: of 600 flipped bits 432 gave wrong rows; Protocol-Aware Recovery (FAST 2018)",
        [Edit(QUERIES, "if head_checksum(key, id, created_index, version, expires_at) != head_sum", "if False")],
        [TESTS + "test_a_row_that_changed_is_never_served"]),
    Mutant(
        "writes-rest-on-damaged-rows",
        "A write decides by a row that is not as it was written: this server goes another way than the others.",
        "Protocol-Aware Recovery (FAST 2018)",
        [Edit(EXECUTION, "if checksum_of(key, id, created_index, version, expires_at) != checksum:", "if False:")],
        [TESTS + "test_a_row_that_changed_is_never_served"]),
    Mutant(
        "missing-rows-not-counted",
        "A page of the keys that a disk has overwritten with one of another table is taken for what is left of them.",
        "misdirected writes: Bairavasundaram et al., FAST 2008",
        [Edit(DATABASE, "if len(rows) != 1 or rows[0][:len(_COUNTS)] != rows[0][len(_COUNTS):]:", "if False:")],
        [TESTS + "test_a_page_in_the_place_of_another_is_damage"]),
    Mutant(
        "page-in-the-place-of-another",
        "A page that a disk has written in the place of another is taken for what belongs there: keys are twice there, or missing.",
        "misdirected writes: Bairavasundaram et al., FAST 2008; found by bin/fuzz",
        [Edit(DATABASE, "if last is not None and not (row[0] > last if upwards else row[0] < last):", "if False:")],
        [TESTS + "test_a_page_in_the_place_of_another_is_damage"]),
    Mutant(
        "key-of-any-type",
        "A bit that makes a blob of a key, with the same bytes, goes unnoticed: the key is not found by its name any more.",
        "SQLite's types are those of each value; found by bin/fuzz",
        [Edit(DATABASE, "return crc32(_HEAD.pack(change_id, created_index, version, expires_at) + key.encode())",
              "return crc32(_HEAD.pack(change_id, created_index, version, expires_at) + (key if type(key) is bytes else key.encode()))"),
         Edit(DATABASE, "if changed_key != key or not expires:", "if not expires:")],
        [TESTS + "test_a_bit_that_makes_another_type_of_a_key_is_damage_too"]),
    Mutant(
        "tables-not-looked-at",
        "A state that has other tables, or triggers that run with our writes, is taken.",
        "SQLite's advice on files from elsewhere: what is in a schema is executed",
        [Edit(DATABASE, 'if dict(connection.execute("SELECT name, sql FROM sqlite_schema")) != _SCHEMA:', "if False:")],
        [TESTS + "test_a_bad_copy_leaves_the_old_state[another table]"]),
    Mutant(
        "position-checksum-not-checked",
        "A bit that flips in the applied index makes a server skip entries or apply them twice.",
        "Protocol-Aware Recovery (FAST 2018)",
        [Edit(DATABASE, "[int, int, bytes, int] and _position_checksum(position) == checksum:", "[int, int, bytes, int]:")],
        [TESTS + "test_a_damaged_file_is_refused_in_one_line_and_left_alone"]),
    Mutant(
        "state-never-synced",
        "SQLite is told not to sync the state, not even when its WAL is moved into the file.",
        "SQLite's documentation of synchronous",
        [Edit(DATABASE, '_pragma(connection, "synchronous", "NORMAL")]', '_pragma(connection, "synchronous", "OFF")]'),
         Edit(DATABASE, 'modes != ["wal", 1]', 'modes != ["wal", 0]')],
        [TESTS + "test_pragmas_that_durability_rests_on"]),
    Mutant(
        "checkpoints-of-sqlites-own",
        "SQLite moves the WAL when it likes, and drops the errors of that.",
        "fsyncgate, for SQLite",
        [Edit(DATABASE, """
        connection.execute("PRAGMA wal_autocheckpoint = 0")
""", "")],
        [TESTS + "test_pragmas_that_durability_rests_on"]),
    Mutant(
        "applied-counts-as-durable",
        "What is applied counts as on the disk at once: the log forgets what a power cut takes back.",
        "section 7; canonical/raft 199",
        [Edit(STORE, """
        self._position = position
        self._follow(""", """
        self._position = position
        self._durable_index = position.index
        self._follow(""")],
        [TESTS + "test_durable_index_moves_with_checkpoints_only"]),
    Mutant(
        "half-a-checkpoint-counts",
        "A checkpoint that a reader has held up counts for all that was applied.",
        "SQLite's documentation of wal_checkpoint",
        [Edit(STORE, "            if all_moved:\n                self", "            if True:\n                self")],
        [TESTS + "test_what_a_long_reader_holds_back_is_not_durable"]),
    Mutant(
        "time-goes-back",
        "A server that opens its state again takes the time that it was told last for that of now: keys live longer.",
        "leases: etcd, issue 9888",
        [Edit(STORE, "self.clock.hear(max(known.totals.time, self.clock.now()))", "self.clock.hear(known.totals.time)")],
        [TESTS + "test_the_time_goes_on_while_the_file_is_written_anew"]),
    Mutant(
        "wal-grows-with-transactions",
        "The WAL is moved into the file after so many commands, whatever those have changed.",
        "a disk that fills up",
        [Edit(STORE, "or self._wal_bytes() > self._held_wal_bytes + WAL_BYTES:", "or False:")],
        [TESTS + "test_a_few_commands_that_change_many_pages_do_not_let_the_wal_grow"]),
    Mutant(
        "held-wal-tried-each-time",
        "While a long reader holds a large WAL, each batch waits for it in vain.",
        "SQLite's documentation of wal_checkpoint",
        [Edit(STORE, "0 if reset else self._wal_bytes()", "0")],
        [TESTS + "test_a_few_commands_that_change_many_pages_do_not_let_the_wal_grow"]),
    Mutant(
        "patience-never-ends",
        "Once a long reader has held the WAL it may stay as large as it was.",
        "a disk that fills up",
        [Edit(STORE, "0 if reset else self._wal_bytes()", "self._wal_bytes()")],
        [TESTS + "test_a_few_commands_that_change_many_pages_do_not_let_the_wal_grow"]),
    Mutant(
        "failed-sync-believed-at-the-second-try",
        "After a sync of the state failed, the next one is believed.",
        "fsyncgate (PostgreSQL 2018); Rebello et al., ATC 2020",
        [Edit(STORE, """
            self._sync_failed = self._sync_failed or failed_to_sync or error.status != 507
            raise
""", """
            raise
""")],
        [TESTS + "test_after_a_failed_sync_the_file_is_written_anew_before_anything_counts"]),
    Mutant(
        "rename-counts-before-it-is-on-disk",
        "A snapshot counts as durable although the directory could not be synced.",
        "etcd 6368; ALICE (OSDI 2014)",
        [Edit(STORE, """
                self._sync_failed = True  # until the new name, too, is on disk
""", "")],
        [TESTS + "test_after_a_rename_that_may_not_be_on_disk_nothing_new_counts_as_durable"]),
    Mutant(
        "snapshot-renamed-before-synced",
        "A received snapshot takes the place of the state before its bytes are on the disk.",
        "ALICE (Pillai et al., OSDI 2014)",
        [Edit(SNAPSHOT, """
            sqlitefile.sync(self.path)
""", "")],
        [TESTS + "test_when_the_name_changes_the_old_wal_is_gone_for_good"]),
    Mutant(
        "snapshot-renamed-over-an-old-wal",
        "The write-ahead log of the old state stays, and SQLite applies it to the new one.",
        'SQLite, "how to corrupt", 1.4',
        [Edit(STORE, """
                for leftover in (f"{self._path}-wal", f"{self._path}-shm"):
                    with suppress(FileNotFoundError):
                        os.remove(leftover)
                sqlitefile.sync_directory(self._path)
""", "")],
        [TESTS + "test_when_the_name_changes_the_old_wal_is_gone_for_good"]),
    Mutant(
        "snapshot-checksum-not-checked",
        "A snapshot that was damaged on its way is installed.",
        "section 7; a checksum that is sent and not compared",
        [Edit(SNAPSHOT, "if measure(self.path) != (self.size, self.sha256):", "if False:")],
        [TESTS + "test_a_bad_copy_leaves_the_old_state"]),
    Mutant(
        "snapshot-rows-not-checked",
        "A snapshot whose rows do not match their checksums, as its sender had them on a bad disk, is installed.",
        "Protocol-Aware Recovery (FAST 2018): what is sent to others spreads",
        [Edit(SNAPSHOT, "            database.check_all(connection, self.path)\n", "")],
        [TESTS + "test_a_bad_copy_leaves_the_old_state"]),
    Mutant(
        "snapshot-of-another-program",
        "A copy that is no state of raftd, or of a later format, is installed: the next start refuses it.",
        "version skew",
        [Edit(SNAPSHOT, "        database.check_header(self.path)\n", "")],
        [TESTS + "test_a_bad_copy_leaves_the_old_state"]),
    Mutant(
        "more-than-announced-taken",
        "Chunks are written however many come: a snapshot fills the disk.",
        "section 7, Figure 13; hostile peers",
        [Edit(SNAPSHOT, "if offset + len(data) > self.size:", "if False:")],
        [TESTS + "test_more_than_announced_is_refused"]),
    Mutant(
        "given-up-snapshot-installed",
        "A transfer that was given up for a newer one is finished all the same, on a file that is gone.",
        "etcd 18055: two snapshots in a short time",
        [Edit(SNAPSHOT, """
            if self._file.closed:
                raise BadSnapshot("a received snapshot was given up for another")
""", "")],
        [TESTS + "test_a_transfer_that_was_given_up_for_another_cannot_be_installed"]),
    Mutant(
        "copy-needs-a-wal",
        "A copy says that it has a write-ahead log, which is not sent.",
        "SQLite: a backup copies the mode of its source",
        [Edit(SNAPSHOT,
              '            target.execute("PRAGMA journal_mode = DELETE")  # the backup has copied that the source has a WAL\n', "")],
        [TESTS + "test_a_copy_is_complete_without_a_wal"]),
    Mutant(
        "half-a-copy-stays",
        "A copy that was given up, or for which there was no room, stays on the disk.",
        "a full disk that nobody can empty; canonical/raft 199",
        [Edit(SNAPSHOT, """
    except BaseException:
        _remove(path)
        raise
""", """
    except BaseException:
        raise
""")],
        [TESTS + "test_a_snapshot_gives_way_to_close"]),
    Mutant(
        "snapshot-of-another-index",
        "A snapshot is installed at the index that was announced, wherever it really stands.",
        "scylla 9551",
        [Edit(SNAPSHOT, "if (position.index, position.term) != (self.index, self.term):", "if False:")],
        [TESTS + "test_a_bad_copy_leaves_the_old_state"]),
    Mutant(
        "older-state-installed",
        "A snapshot that stands for less than the state replaces it.",
        "etcd 18055; section 7",
        [Edit(STORE, "if incoming.index < self._position.index:", "if False:"),
         Edit("node.py", "if request.last_included_index > self._state_machine.position.index:", "if True:")],
        [TESTS + "test_an_older_snapshot_is_refused"]),
    Mutant(
        "chunks-in-any-order",
        "A chunk that was repeated or came late is written wherever the file ends.",
        "section 7, Figure 13",
        [Edit(SNAPSHOT, "if offset != self.next_offset or self._file.closed:", "if self._file.closed:")],
        [TESTS + "test_chunks_are_taken_in_order_only"]),
    Mutant(
        "chunks-of-two-snapshots-mixed",
        "Chunks of a newer snapshot go on where those of another stopped.",
        "etcd 18055",
        [Edit(SNAPSHOT,
              "return (self.index, self.term, self.size, self.sha256) == (index, term, size, sha256)",
              "return not self.complete")],
        [TESTS + "test_a_transfer_goes_on_where_it_stopped"]),
    Mutant(
        "snapshot-index-of-a-later-moment",
        "A copy is said to stand where the state stands when the copy is done, not where it began.",
        "section 7: state and index are of one moment",
        [Edit(STORE, """
        self._readers.read(copy, path, lambda: (go_on(), self._go_on_copying()))
        return Snapshot(path)
""", """
        self._readers.read(copy, path, lambda: (go_on(), self._go_on_copying()))
        snapshot = Snapshot(path)
        snapshot.index = self._position.index
        return snapshot
""")],
        [TESTS + "test_a_snapshot_is_of_one_moment_while_apply_goes_on"]),
    Mutant(
        "installed-state-not-marked",
        "A state that was installed does not say so: after a crash before the log follows, the server does not start.",
        "canonical/raft 199",
        [Edit(SNAPSHOT, """
            database.write_position(connection, position._replace(installed_index=position.index))
""", "")],
        [TESTS + "test_install_replaces_the_state"]),
    Mutant(
        "lost-state-made-anew",
        "A state file that is gone is replaced by an empty one, though the log cannot fill it.",
        "PAR; faults of lost files",
        [Edit(STORE, "if not may_create:", "if False:")],
        [TESTS + "test_a_missing_file_is_not_made_when_the_log_cannot_fill_it"]),
    Mutant(
        "write-into-a-removed-state",
        "SQLite goes on to write into a state file that has no name any more.",
        'SQLite, "how to corrupt", 4.2',
        [Edit(STORE, "check_is_still(self._readers.file_id, self._path)  # SQLite", "pass  # SQLite")],
        [TESTS + "test_a_file_that_lost_its_name_is_noticed"]),
    Mutant(
        "reads-of-whatever-has-the-name",
        "A connection for reads that is made anew takes the file that has the name of the state now, whosever it is.",
        'SQLite, "how to corrupt", 4.2',
        [Edit(READERS, "check_is_still(self.file_id, self._path)", "pass")],
        [TESTS + "test_nothing_is_read_from_a_file_that_has_taken_its_place"]),
)
