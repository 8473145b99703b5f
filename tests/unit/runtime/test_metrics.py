"""Metrics of one daemon."""

from shoal.runtime.metrics import Metrics


def test_two_daemons_in_one_process_share_nothing() -> None:
    first, second = Metrics("peer", process=False), Metrics("peer", process=False)
    first.counter("pieces", "Pieces.").inc(3)
    second.counter("pieces", "Pieces.").inc(4)
    assert b"shoal_peer_pieces_total 3.0" in first.render()
    assert b"shoal_peer_pieces_total 4.0" in second.render()


def test_all_kinds_of_numbers() -> None:
    metrics = Metrics("peer", process=False)
    metrics.gauge("connections", "Connections.", ["side"]).labels("child").set(2)
    metrics.histogram("wait_seconds", "Waits.", [0.1, 1.0]).observe(0.5)
    text = metrics.render().decode()
    assert 'shoal_peer_connections{side="child"} 2.0' in text
    assert 'shoal_peer_wait_seconds_bucket{le="1.0"} 1.0' in text


def test_numbers_kept_elsewhere_are_read_at_each_scrape() -> None:
    metrics = Metrics("scheduler", process=False)
    numbers = {"hosts": 1, "leases_granted_total": 5}
    metrics.mirror("Core", lambda: numbers)
    text = metrics.render().decode()
    assert "# TYPE shoal_scheduler_hosts gauge" in text
    assert "# TYPE shoal_scheduler_leases_granted_total counter" in text
    numbers["hosts"] = 7
    assert "shoal_scheduler_hosts 7.0" in metrics.render().decode()


def test_the_process_itself() -> None:
    assert b"process_resident_memory_bytes" in Metrics("peer").render()
