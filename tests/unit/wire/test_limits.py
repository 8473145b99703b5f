"""The caps agree with one another: what one of them allows, no other forbids."""

import dataclasses

import pytest

from peer.core.limits import PeerLimits
from scheduler.core.limits import SchedulerLimits
from shoal.wire import bitfield, frames, limits

LARGEST = limits.PIECES_PER_TASK_MAX - 1
NUMBER_MAX = (1 << 63) - 1


def test_the_longest_frame_of_each_kind_fits_the_cap() -> None:
    stretches = ((LARGEST, 1),) * limits.RANGES_PER_FRAME_MAX
    requests = ((NUMBER_MAX, LARGEST),) * limits.REQUESTS_PER_FRAME_MAX
    longest: list[frames.Frame] = [
        frames.Hello(65535, 65535, "é" * limits.HOST_ID_CHARACTERS_MAX, b"\xff" * 64),
        frames.Open(NUMBER_MAX, "f" * 64, b"\xff" * 64),
        frames.Opened(NUMBER_MAX, NUMBER_MAX, bitfield.to_bytes((1 << (LARGEST + 1)) - 1)),
        frames.Have(NUMBER_MAX, stretches),
        frames.Withdraw(NUMBER_MAX, stretches),
        frames.Request(NUMBER_MAX, requests),
        frames.Cancel(tuple(number for number, _ in requests)),
        frames.Piece(NUMBER_MAX, limits.PIECE_LENGTH_BYTES_MAX, b"\xff" * 64, NUMBER_MAX, 1),
    ]
    for frame in longest:
        decoder = frames.FrameDecoder()
        decoder.feed(frames.encode(frame))
        assert decoder.next_frame() == frame


def test_the_largest_digest_message_fits_a_control_message() -> None:
    # Tags, lengths and numbers of an entry take under 32 bytes beside its digest of up to 32.
    assert limits.STATEMENTS_PER_MESSAGE_MAX * 64 < limits.CONTROL_MESSAGE_BYTES_MAX


@pytest.mark.parametrize("kind", [PeerLimits, SchedulerLimits])
def test_every_default_is_a_positive_bound(kind: type[PeerLimits] | type[SchedulerLimits]) -> None:
    for name, value in dataclasses.asdict(kind()).items():
        assert value > 0, name


def test_lower_bounds_lie_below_upper_bounds() -> None:
    assert limits.PIECE_LENGTH_BYTES_MIN < limits.PIECE_LENGTH_BYTES_MAX <= limits.RUN_BYTES_MAX
    peer, scheduler = PeerLimits(), SchedulerLimits()
    assert peer.pipeline_pieces_min <= peer.pipeline_pieces_max
    assert peer.request_timeout_min_ns <= peer.request_timeout_max_ns
    assert peer.origin_retry_base_ns <= peer.origin_retry_max_ns
    assert peer.quarantine_fault_ns <= peer.quarantine_corrupt_ns <= peer.quarantine_max_ns
    assert scheduler.report_interval_min_ns <= scheduler.report_interval_max_ns
    # A scheduler must not hand a lease on while its holder may still wait for a retry.
    assert peer.origin_retry_max_ns <= scheduler.lease_ttl_ns
    # A full pipeline of one parent can be asked for at once and be queued there.
    assert peer.pipeline_pieces_max <= limits.REQUESTS_PER_FRAME_MAX
    assert peer.pipeline_pieces_max <= peer.upload_queue_pieces_max
