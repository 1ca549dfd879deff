"""Bugs between servers: raftd/wire.py, transport.py."""

from mutants.mutant import Edit, Mutant

WIRE = "wire.py"
TRANSPORT = "transport.py"

WIRE_TESTS = "tests/test_wire.py::"
TRANSPORT_TESTS = "tests/test_transport.py::"

PEERS = (
    Mutant(
        "posted-reply-of-any-kind",
        "To what was sent without waiting, any message is taken for the reply.",
        "hostile input",
        [Edit(TRANSPORT, "if not isinstance(reply, kind):", "if False:")],
        [TRANSPORT_TESTS + "test_no_reply_to_what_is_posted_is_told_and_the_next_call_connects_again"]),
    Mutant(
        "half-a-reply-is-the-end",
        "A reply to what was sent without waiting must come in one piece.",
        "TCP is a stream",
        [Edit(TRANSPORT, """
            if reply is None:
                self._watch(self._socket, self._readable)
                return
""", "")],
        [TRANSPORT_TESTS + "test_a_reply_to_what_is_posted_may_come_in_pieces"]),
    Mutant(
        "anything-sent-without-waiting",
        "However large a request is, it is sent without waiting, and cut off where the buffer ends.",
        "short writes",
        [Edit(TRANSPORT, "if len(frame) > MAX_POSTED_BYTES:", "if False:")],
        [TRANSPORT_TESTS + "test_what_cannot_be_posted_is_to_be_called"]),
    Mutant(
        "watch-forgets-at-its-end",
        "Who waits for a reply learns nothing when the thread ends that would have brought it.",
        "a lost wake-up",
        [Edit("sockets.py", """
            while self._watched:
                self._watched.popitem()[1]()
""", "")],
        [TRANSPORT_TESTS + "test_no_reply_to_what_is_posted_is_told_and_the_next_call_connects_again"]),
    Mutant(
        "frame-checksum-not-checked",
        "Bits that flip on the wire and pass TCP's checksum become entries.",
        "Stone and Partridge, SIGCOMM 2000",
        [Edit(WIRE, "if checksum != zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, configuration_index))):", "if checksum is None:")],
        [WIRE_TESTS + "test_any_flipped_bit_is_noticed"], quick=True),
    Mutant(
        "frame-without-a-limit",
        "A frame may say any length, and so much is read into memory.",
        "CWE-770; Redis-Raft, goraftd: 1.5 GB",
        [Edit(WIRE, "if length > MAX_PAYLOAD:", "if False:")],
        [WIRE_TESTS + "test_a_frame_that_is_too_long_is_refused_before_it_is_read"]),
    Mutant(
        "late-reply-taken-for-the-next",
        "After a timeout the connection is used again, and the late reply is taken for that of another request.",
        "faults of pipelined connections; section 5.3",
        [Edit(TRANSPORT, """
        except (OSError, ValueError, wire.WireError, Refusal) as error:  # ValueError: an address that cannot be one
            self.close()
""", """
        except (OSError, ValueError, wire.WireError, Refusal) as error:  # ValueError: an address that cannot be one
""")],
        [TRANSPORT_TESTS + "test_after_a_timeout_a_late_reply_is_not_taken_for_the_next"]),
    Mutant(
        "reply-of-any-kind",
        "A reply of another kind than the request asks for is taken.",
        "a stale reply matched with another request",
        [Edit(TRANSPORT, "if not isinstance(reply, wire.REPLIES[type(request)]):", "if False:")],
        [TRANSPORT_TESTS + "test_a_reply_of_another_kind_is_no_reply"]),
    Mutant(
        "reason-of-a-peer-logged-as-it-comes",
        "What a stranger gives as its reason goes to the log with its line breaks and its control characters: a forged line.",
        "CWE-117; found by bin/fuzz",
        [Edit(TRANSPORT, 'text = "".join(filter(str.isprintable, " ".join(text.split())))[:MAX_REASON]', "text = str(text)")],
        [TRANSPORT_TESTS + "test_what_a_peer_gives_as_its_reason_is_one_short_line"]),
    Mutant(
        "deeply-nested-identity",
        "Who is asked who it is answers with brackets without end: the error is none that a join expects.",
        "CWE-674; found by bin/fuzz",
        [Edit(TRANSPORT, "KeyError, TypeError, RecursionError) as error", "KeyError, TypeError) as error")],
        [TRANSPORT_TESTS + "test_who_answers_something_else_is_no_raftd"]),
    Mutant(
        "no-thread-for-a-peer",
        "A connection that no thread can serve keeps its place, and the server cannot stop in order.",
        "thread exhaustion; found while threads were bounded by a control group",
        [Edit(TRANSPORT, """
    try:
        thread.start()
    except RuntimeError as error:
        log.warning("a peer cannot be served thread=%s error=%s", thread.name, error)
        return False
    return True
""", """
    try:
        thread.start()
    except RuntimeError as error:
        log.warning("a peer cannot be served thread=%s error=%s", thread.name, error)
    return True
""")],
        [TRANSPORT_TESTS + "test_no_thread_for_a_peer_is_told_to_it_and_the_next_one_is_served"]),
    Mutant(
        "any-protocol",
        "A peer that speaks another version of the protocol is heard.",
        "version skew",
        [Edit(TRANSPORT, 'if fields.get("upgrade") != wire.PROTOCOL:', "if False:")],
        [TRANSPORT_TESTS + "test_another_protocol_is_refused_by_name"]),
    Mutant(
        "old-connection-stays",
        "A peer that connects again is served on both connections, and what is left in the first still counts.",
        "reordered requests: section 5.3 expects them, memory does not",
        [Edit(TRANSPORT, """
        elif old:
            _shut_down(old)
""", "")],
        [TRANSPORT_TESTS + "test_a_second_connection_of_a_lane_ends_the_first_at_once"]),
    Mutant(
        "terms-out-of-order-accepted",
        "Entries whose terms fall are taken into the log.",
        "Log Matching; terms in a log never decrease",
        [Edit(WIRE, "if len(command) != length or not last_term <= entry_term <= term:", "if len(command) != length:")],
        [WIRE_TESTS + "test_terms_out_of_order_are_refused"]),
    Mutant(
        "unknown-entry-taken",
        "An entry of a kind that a later raftd has is taken into the log, and skipped.",
        "version skew",
        [Edit(WIRE, "if kind not in KINDS:", "if kind is None:")],
        [WIRE_TESTS + "test_an_entry_of_a_kind_that_is_not_known_is_refused"]),
    Mutant(
        "unreadable-members-taken",
        "A configuration that cannot be read is taken into the log, and fails when it must count.",
        "hostile or damaged input",
        [Edit(WIRE, """
        if kind == CONFIGURATION:
            Configuration.decode(command)""", """
        if False:
            Configuration.decode(command)""")],
        [WIRE_TESTS + "test_a_membership_that_cannot_be_read_is_refused"]),
    Mutant(
        "huge-numbers-accepted",
        "Terms and indexes that the log file cannot hold are taken.",
        "hostile input: a term of 2^63",
        [Edit(WIRE, 'if value > (MAX_NUMBER if kind == "n" else 1):', "if False:")],
        [WIRE_TESTS + "test_huge_numbers_are_refused"]),
    Mutant(
        "cut-entry-taken",
        "An entry that is cut short is taken with what is there of its command.",
        "hostile or damaged input",
        [Edit(WIRE, "if len(command) != length or not last_term <= entry_term <= term:", "if not last_term <= entry_term <= term:"),
         Edit(WIRE, "if position != len(payload) or max(", "if max(")],
        [WIRE_TESTS + "test_a_truncated_payload_is_refused_even_with_a_good_checksum"]),
    Mutant(
        "silence-taken-for-death",
        "A host that does not answer counts as one that refuses: a partition, or a full queue, becomes a dead leader.",
        "fast failover rests on a refusal alone",
        [Edit(TRANSPORT, """
            log.debug("a connection is not refused address=%s error=%s", address, error)
            return False
""", """
            log.debug("a connection is not refused address=%s error=%s", address, error)
            return True
""")],
        [TRANSPORT_TESTS + "test_whoever_does_not_answer_at_all_is_not_dead"]),
    Mutant(
        "dying-process-taken-for-alive",
        "A process that has closed its connections, and its port not yet, counts as alive; nobody looks again.",
        "seen with kill -9: one follower of two waited for an election timeout, every tenth time",
        [Edit(TRANSPORT, "for _ in range(2):", "for _ in range(1):")],
        [TRANSPORT_TESTS + "test_a_process_that_dies_may_close_its_port_last"]),
    Mutant(
        "newer-connection-counts-as-lost",
        "A connection that has made way for a newer one counts as lost.",
        "late events",
        [Edit(TRANSPORT, """
                return False
            del self._open[key]
""", """
                return True
            del self._open[key]
""")],
        [TRANSPORT_TESTS + "test_a_connection_that_makes_way_for_a_newer_one_is_not_lost"]),
    Mutant(
        "own-stop-counts-as-lost",
        "A server that stops takes its peers for lost, whose connections it ends.",
        "late events",
        [Edit(TRANSPORT, "return not self._stopping", "return True")],
        [TRANSPORT_TESTS + "test_connections_that_the_server_ends_when_it_stops_are_not_lost"]),
)
