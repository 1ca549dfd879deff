"""Bugs in what a server must not forget: raft.db, in raftd/storage.py and raftd/sqlitefile.py."""

from mutants.mutant import Edit, Mutant

STORE = "storage.py"
FILES = "sqlitefile.py"
PROMISED = "promised.py"

TESTS = "tests/test_storage.py::"
RECOVERY = "tests/test_recovery.py::"
PROMISES = "tests/test_promised.py::"
STATE_TESTS = "tests/test_kv_store.py::"

STORAGE = (
    Mutant(
        "promises-never-compared",
        "A write-ahead log that is gone after a crash takes a vote with it, and nobody misses it.",
        "SQLite's documentation of how to corrupt a database file: deleting a hot journal",
        [Edit(PROMISED, "if (term, voted_for is not None) < (said.term, said.voted):", "if False:"),
         Edit(PROMISED, "if said.last_index > saved.base.index and", "if False and")],
        [PROMISES + "test_a_write_ahead_log_that_has_lost_what_was_promised"], quick=True),
    Mutant(
        "promised-vote-not-compared",
        "Only the term is compared: a vote that is lost may be cast again.",
        "raftd: a simplification that looks harmless",
        [Edit(PROMISED, "if (term, voted_for is not None) < (said.term, said.voted):", "if term < said.term:")],
        [PROMISES + "test_a_write_ahead_log_that_has_lost_what_was_promised", PROMISES + "test_an_older_raft_db_alone_is_refused"]),
    Mutant(
        "promised-entry-of-any-term",
        "Entries that were overwritten are taken for those that came in their place.",
        "raftd: a simplification that looks harmless",
        [Edit(PROMISED, "saved.term_at(said.last_index) != said.last_term:", "saved.term_at(said.last_index) is None:")],
        [PROMISES + "test_entries_that_were_overwritten_by_others_are_not_taken_for_them"]),
    Mutant(
        "promise-of-other-files-overlooked",
        "A raft.db was exchanged for that of another server, whose log begins where the state is: it is taken for this one's.",
        "raftd: a simplification that looks harmless",
        [Edit(PROMISED, "if id != self._id:", "if False:")],
        [PROMISES + "test_the_line_of_other_files_is_refused"]),
    Mutant(
        "promise-not-taken-back",
        "Entries are overwritten, and a power cut brings back the line that says they are there: a whole server is refused.",
        "raftd: a simplification that looks harmless",
        [Edit(PROMISED, """
            os.fdatasync(self._file.fileno())
""", """
            pass
""")],
        [PROMISES + "test_files_that_are_whole_are_never_refused_and_older_ones_only_if_they_lack_nothing"]),
    Mutant(
        "promises-all-taken-back",
        "While the end of the log is overwritten nothing is said of the entries before it, which are promised as ever.",
        "raftd: a simplification that looks harmless",
        [Edit(STORE, "take_back(unsaved.log_from - 1, self._term_at(unsaved.log_from - 1))", "take_back(0, 0)")],
        [PROMISES + "test_what_stays_is_missed_while_what_comes_after_it_is_overwritten"]),
    Mutant(
        "length-of-the-log-not-read-again",
        "A save that failed may have happened; the log is opened again, and taken for as long as it was before.",
        "Rebello et al., ATC 2020: what a failed sync has left",
        [Edit(STORE, """
            self._connection, self._promised, self._last_index = again._connection, again._promised, again._last_index
""", """
            self._connection, self._promised = again._connection, again._promised
""")],
        [TESTS + "test_reopen_knows_where_the_log_ends"]),
    Mutant(
        "promised-before-it-is-saved",
        "A crash between the two leaves a server that is refused though it has lost nothing.",
        "raftd: a simplification that looks harmless",
        [Edit(STORE, """
            self._save(unsaved, overwrites)
            self._last_index = unsaved.last_index
            self._promised.write(_said_after(unsaved, self._promised.said))
""", """
            self._promised.write(_said_after(unsaved, self._promised.said))
            self._save(unsaved, overwrites)
            self._last_index = unsaved.last_index
""")],
        [PROMISES + "test_a_save_that_fails_promises_nothing"]),
    Mutant(
        "state-log-that-is-behind-believed",
        "The end of state.db-wal is lost after a checkpoint: SQLite mixes older pages with newer ones.",
        "SQLite's documentation of how to corrupt a database file",
        [Edit(FILES, "if together < alone:", "if False:")],
        [STATE_TESTS + "test_a_log_of_writes_that_has_lost_what_the_file_has_is_damage"]),
    Mutant(
        "log-synced-normally",
        "The log is not synced at each commit: a power cut takes back what was acknowledged.",
        "SQLite's documentation of WAL with synchronous=NORMAL; etcd 14370",
        [Edit(STORE, '"PRAGMA synchronous = FULL"', '"PRAGMA synchronous = NORMAL"'),
         Edit(STORE, '("wal", 2)', '("wal", 1)')],
        [TESTS + "test_the_log_is_written_ahead_and_synced_fully",
         TESTS + "test_every_save_reaches_the_disk_before_it_returns"]),
    Mutant(
        "log-never-synced",
        "SQLite is told not to sync the log at all.",
        "the original raftd, which answered before any sync",
        [Edit(STORE, '"PRAGMA synchronous = FULL"', '"PRAGMA synchronous = OFF"'),
         Edit(STORE, '("wal", 2)', '("wal", 0)')],
        [TESTS + "test_the_log_is_written_ahead_and_synced_fully", TESTS + "test_every_save_reaches_the_disk_before_it_returns"]),
    Mutant(
        "sync-mode-not-read-back",
        "SQLite is told to sync fully, and nobody looks whether it does.",
        "SQLite's documentation of pragmas: one that cannot be obeyed is no error",
        [Edit(STORE, 'if (mode, level) != ("wal", 2):', "if False:")],
        [TESTS + "test_a_file_that_sqlite_does_not_sync_fully_is_refused"]),
    Mutant(
        "new-log-renamed-before-synced",
        "A new raft.db gets its name before its bytes are on the disk.",
        "ALICE (Pillai et al., OSDI 2014); etcd 6368",
        [Edit(STORE, """
            sqlitefile.sync(draft)
""", "")],
        [TESTS + "test_a_new_file_is_on_the_disk_before_it_has_its_name_and_so_is_the_name_before_it_counts"]),
    Mutant(
        "new-log-without-its-name-on-disk",
        "The directory is not synced after the rename: after a power cut a server has no log.",
        "ALICE (Pillai et al., OSDI 2014); etcd 6368; goraftd's name file",
        [Edit(STORE, """
            os.replace(draft, path)
            sqlitefile.sync_directory(path)
""", """
            os.replace(draft, path)
""")],
        [TESTS + "test_a_new_file_is_on_the_disk_before_it_has_its_name_and_so_is_the_name_before_it_counts"]),
    Mutant(
        "new-log-made-in-place",
        "A new raft.db is made under its own name: a crash leaves half a server.",
        "goraftd's name file",
        [Edit(STORE, 'draft, encoded = f"{path}.new", configuration.encode()', "draft, encoded = path, configuration.encode()")],
        [TESTS + "test_an_interrupted_start_leaves_nothing_that_counts"]),
    Mutant(
        "save-swallows-errors",
        "A save that failed is taken for done: acknowledged, and not stored.",
        "goraft, `w.Flush()`",
        [Edit(STORE, """
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
""", """
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
""")],
        [TESTS + "test_a_save_is_all_or_nothing", RECOVERY + "test_the_same_log_is_opened_again_after_a_failed_save"]),
    Mutant(
        "vote-and-entries-in-two-transactions",
        "Term and vote are committed before the entries of the same save.",
        "one transaction per save",
        [Edit(STORE, """
                        (*unsaved.hard_state, _hard_state_checksum(*unsaved.hard_state)))
""", """
                        (*unsaved.hard_state, _hard_state_checksum(*unsaved.hard_state)))
                execute("COMMIT")
                execute("BEGIN IMMEDIATE")
""")],
        [TESTS + "test_a_save_is_all_or_nothing"]),
    Mutant(
        "conflict-leaves-old-rows",
        "Entries that a conflict removed stay on the disk, and are back after a restart.",
        "Figure 2, AppendEntries, 3",
        [Edit(STORE,
              'execute("DELETE FROM log WHERE log_index >= ?", (unsaved.log_from,))',
              'execute("DELETE FROM log WHERE log_index BETWEEN ? AND ?", (unsaved.log_from, unsaved.last_index))')],
        [TESTS + "test_a_conflict_replaces_rows"], quick=True),
    Mutant(
        "conflict-with-the-last-row-missed",
        "A conflict with the very last row does not remove it: the save fails, again and again.",
        "Figure 2, AppendEntries, 3",
        [Edit(STORE, "overwrites = unsaved.log_from <= self._last_index", "overwrites = unsaved.log_from < self._last_index")],
        [TESTS + "test_a_conflict_with_the_last_row_replaces_it"]),
    Mutant(
        "compaction-leaves-a-gap",
        "Compaction removes rows, and does not say that the log begins later.",
        "canonical/raft 199",
        [Edit(STORE, """
                execute("UPDATE base SET log_index = ?, term = ?, configuration = ?, checksum = ?",
                        (index, term, encoded, _checksum(index, term, data=encoded)))
""", "")],
        [TESTS + "test_compaction_moves_the_beginning"]),
    Mutant(
        "compaction-loses-the-members",
        "The log on disk begins with the members that it began with at first.",
        "RedisLabs/raft 49",
        [Edit(STORE, """
                execute("UPDATE base SET log_index = ?, term = ?, configuration = ?, checksum = ?",
                        (index, term, encoded, _checksum(index, term, data=encoded)))
""", """
                encoded = self._load_base().configuration.encode()
                execute("UPDATE base SET log_index = ?, term = ?, configuration = ?, checksum = ?",
                        (index, term, encoded, _checksum(index, term, data=encoded)))
""")],
        [TESTS + "test_compaction_moves_the_beginning"]),
    Mutant(
        "entry-checksum-not-checked",
        "An entry whose bytes have changed on the disk is applied as it is.",
        "Protocol-Aware Recovery (Alagappan et al., FAST 2018); SQLite does not notice flipped bits",
        [Edit(STORE, "if checksum != _checksum(index, term, kind, data=command):", "if checksum is None:")],
        [TESTS + "test_changed_rows_are_refused_by_name", TESTS + "test_flipped_bytes_never_become_entries"]),
    Mutant(
        "damaged-entry-ends-the-log",
        "At a damaged entry the log is taken to end: what was acknowledged after it is gone.",
        "goraft, `Log.open`; ROCm/spur PR 414; Protocol-Aware Recovery",
        [Edit(STORE, 'self._damaged(f"entry {index} of the log does not match its checksum")', "break")],
        [TESTS + "test_changed_rows_are_refused_by_name", TESTS + "test_flipped_bytes_never_become_entries"]),
    Mutant(
        "unknown-entry-read",
        "An entry in the log of a kind that a later raftd has is taken for one that says nothing.",
        "version skew; found by bin/fuzz",
        [Edit(STORE, "if kind not in KINDS:", "if kind is None:")],
        ["tests/test_version_skew.py::test_an_entry_of_an_unknown_kind_in_the_log_is_refused_by_name"]),
    Mutant(
        "gap-in-the-log-not-noticed",
        "A row that is missing shifts all that follow it.",
        "Log Matching: a log is contiguous",
        [Edit(STORE, "if index != base_index + len(entries) + 1:", "if index is None:")],
        [TESTS + "test_changed_rows_are_refused_by_name"]),
    Mutant(
        "vote-checksum-not-checked",
        "A bit that flips in term or vote lets a server vote twice.",
        "Protocol-Aware Recovery",
        [Edit(STORE, "if checksum != _hard_state_checksum(term, voted_for):", "if checksum is None:")],
        [TESTS + "test_changed_rows_are_refused_by_name"]),
    Mutant(
        "identity-not-checked",
        "A bit that flips in a server's name makes two servers of one name.",
        "Protocol-Aware Recovery",
        [Edit(STORE,
              "if len(rows) != 1 or _identity_checksum(identity := Identity(*map(str, rows[0][:3]))) != rows[0][3]:",
              "if len(rows) != 1 or not (identity := Identity(*map(str, rows[0][:3]))):")],
        [TESTS + "test_changed_rows_are_refused_by_name"]),
    Mutant(
        "lost-tail-of-the-wal-not-noticed",
        "SQLite forgets what comes after a damaged frame of its write-ahead log, and nobody looks.",
        "walformat of SQLite: of 600 flipped bits 596 dropped what was committed",
        [Edit(STORE, """
            sqlitefile.check_wal(path)
""", "")],
        [TESTS + "test_flipped_bits_in_the_write_ahead_log_take_nothing_back"], quick=True),
    Mutant(
        "complaint-that-cannot-be-read",
        "SQLite complains of damage and quotes it, Python cannot read that, and the server ends with a traceback.",
        "found by bin/fuzz files, case 15917",
        [Edit(FILES, "except (sqlite3.Error, UnicodeDecodeError) as error:", "except sqlite3.Error as error:")],
        [TESTS + "test_a_damage_that_sqlite_quotes_is_one_line_too"]),
    Mutant(
        "torn-header-refused",
        "A power cut in the first write of a write-ahead log leaves a header that is torn: a server that has lost nothing is refused.",
        "found by bin/crashes; canonical/raft 199",
        [Edit(FILES, "            if any(file.read()):\n                raise", "            if True:\n                raise")],
        [TESTS + "test_a_torn_header_of_the_write_ahead_log_has_lost_nothing"]),
    Mutant(
        "two-processes-on-one-path",
        "A second process opens the same directory.",
        "the original raftd",
        [Edit(STORE, "fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass")],
        [TESTS + "test_a_second_process_is_kept_out"]),
    Mutant(
        "writes-into-a-removed-file",
        "SQLite goes on to acknowledge writes into a file that has no name any more.",
        'SQLite, "how to corrupt", 4.2',
        [Edit(STORE, "return _file_ids(self.path) == self._file_ids", "return True")],
        [TESTS + "test_a_file_removed_while_it_is_open_is_noticed"]),
    Mutant(
        "older-copy-opened-again",
        "After a failed save another file is opened under the same name: it may have forgotten a vote.",
        "restored backups: etcd's documentation of disaster recovery",
        [Edit(STORE, "if present(self.path) and file_id(self.path) != self._file_ids[0]:", "if False:")],
        [RECOVERY + "test_a_log_that_was_exchanged_is_not_opened_again",
         RECOVERY + "test_the_end_of_a_log_that_was_moved_away_does_not_go_into_another_file"]),
    Mutant(
        "failed-save-believed-at-the-second-try",
        "After a failed sync the same connection goes on: what the kernel has dropped can still be read.",
        "fsyncgate (PostgreSQL 2018); Rebello et al., ATC 2020",
        [Edit(STORE, """
        self._connection.close()
        with storage_errors(self.path):
""", """
        with storage_errors(self.path):
"""),
         Edit(STORE, "again = self.open(os.path.dirname(self.path))", "again = self"),
         Edit(STORE, """
            self._promised.close()
            self._connection, self._promised, self._last_index = again._connection, again._promised, again._last_index
""", "")],
        [TESTS + "test_reopen_closes_the_connection_that_has_failed"]),
    Mutant(
        "what-is-found-is-not-synced",
        "At the start the log is read, but what the kernel alone may have is not brought to the disk.",
        "fsyncgate (PostgreSQL 2018); Rebello et al., ATC 2020",
        [Edit(STORE, """
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if busy:
                    raise StorageFailed(f"{path}: another program has it open")
""", "")],
        [TESTS + "test_what_is_found_at_the_start_is_brought_to_the_disk"]),
    Mutant(
        "error-taken-for-absence",
        "A disk that cannot say whether there is a log is taken for an empty one: a new server is made.",
        "os.path.exists answers False to any error",
        [Edit(FILES, """
    except FileNotFoundError:
        return False
    return True
""", """
    except OSError:
        return False
    return True
""")],
        [TESTS + "test_an_error_is_no_absence"]),
    Mutant(
        "foreign-file-taken",
        "A file of another program, or of a later format, is opened as a log.",
        "section 5.1 of the contract: formats carry a version",
        [Edit(STORE, """
            sqlitefile.check_header(path, APPLICATION_ID, FORMAT)
""", "")],
        [TESTS + "test_a_foreign_file_is_refused", TESTS + "test_an_unknown_format_is_refused_by_its_number"]),
    Mutant(
        "directory-sync-is-none",
        "Syncing a directory does nothing.",
        "ALICE (Pillai et al., OSDI 2014)",
        [Edit(FILES, "sync(os.path.dirname(path))", "os.path.dirname(path)")],
        [STATE_TESTS + "test_when_the_name_changes_the_old_wal_is_gone_for_good"]),
)
