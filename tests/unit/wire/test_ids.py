"""Names: equal wishes get equal names on every host, different ones never do."""

import hashlib
import random

from hypothesis import given
from hypothesis import strategies as st

from shoal.wire import ids
from shoal.wire.ids import Dice, SourceId

PARTS = st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=12)), max_size=5)


@given(PARTS, PARTS)
def test_fingerprints_differ_unless_the_parts_are_equal(
    left: list[str | int | None], right: list[str | int | None]
) -> None:
    same_parts = [(type(part), part) for part in left] == [(type(part), part) for part in right]
    assert (ids.fingerprint("k", *left) == ids.fingerprint("k", *right)) == same_parts


def test_parts_cannot_flow_into_each_other() -> None:
    made = [
        ids.fingerprint("k", "ab", "c"),
        ids.fingerprint("k", "a", "bc"),
        ids.fingerprint("k", "abc"),
        ids.fingerprint("k", "1"),
        ids.fingerprint("k", 1),
        ids.fingerprint("k", None),
        ids.fingerprint("k", ""),
        ids.fingerprint("k", "n;"),
        ids.fingerprint("k"),
        ids.fingerprint("kk"),
    ]
    assert len(set(made)) == len(made)


def test_the_input_of_a_fingerprint_is_that_of_the_protocol_page() -> None:
    # Every host must compute the same names: a change here splits swarms.
    expected = hashlib.sha256(b"s4:kind;s2:\xc3\xa9;i2:12;n;").hexdigest()
    assert ids.fingerprint("kind", "é", 12, None) == expected


def test_names_of_one_thing_are_stable_and_of_two_things_differ() -> None:
    source = ids.source_of_url("https://o.example/f", "", "", None)
    assert source == ids.source_of_url("https://o.example/f", "", "", None)
    digest = "sha256:" + "0" * 64
    names = [
        source,
        ids.source_of_url("https://o.example/f", "v1", "", None),
        ids.source_of_url("https://o.example/f", "", "v1", None),
        ids.source_of_url("https://o.example/f", "", "", 1 << 20),
        ids.source_of_digest(digest, None),
        ids.source_of_digest(digest, 1 << 20),
        ids.task_of_digest(digest, None),
        ids.task_of_digest(digest, 1 << 20),
        ids.task_of_source(source, None, None),
        ids.task_of_source(source, None, 7),
        ids.task_of_source(source, '"e"', 7),
        ids.task_of_source(source, '"f"', 7),
        ids.collection_of((source,)),
        ids.collection_of((source, source)),
    ]
    assert len(set(names)) == len(names)
    assert all(len(name) == 64 for name in names)


def test_the_order_of_a_collection_counts() -> None:
    one, two = SourceId("1" * 64), SourceId("2" * 64)
    assert ids.collection_of((one, two)) != ids.collection_of((two, one))


def test_the_standard_generator_is_a_dice() -> None:
    dice: Dice = random.Random(1)
    assert 0 <= dice.random() < 1
    assert 0 <= dice.getrandbits(3) < 8
