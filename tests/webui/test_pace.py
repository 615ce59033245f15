"""The measured speed of a WebUI, by which a generation that ended too early is told."""

import pytest

from app.webui.pace import Pace


def pace(*seconds, kind="kind"):
    made = Pace()
    for one in seconds:
        made.add(kind, one)
    return made


def test_four_generations_make_no_measure():
    made = pace(10, 10, 10, 10)
    assert made.fastest("kind") is None
    assert not made.is_too_fast("kind", 0.0)
    made.add("kind", 12)
    assert made.fastest("kind") == 10


def test_each_kind_has_a_measure_of_its_own():
    made = pace(*[10] * 5)
    assert made.fastest("another") is None
    assert not made.is_too_fast("another", 0.1)
    assert made.is_too_fast("kind", 0.1)


@pytest.mark.parametrize(
    ("fastest", "seconds", "too_fast"),
    [
        (10, 7.99, True),
        (10, 8.0, False),
        (10, 9.9, False),
        (10, 30, False),
        # Short ones differ by the noise of the machine: 0.05 seconds say nothing.
        (0.1, 0.079, False),
        (0.1, 0.051, False),
        (0.1, 0.049, True),
        (0.05, 0.0, False),
        (0.01, 0.0, False),
    ],
)
def test_what_is_too_fast(fastest, seconds, too_fast):
    # Waiting behind others makes a time longer, and changes no measure.
    made = pace(fastest, fastest + 1, fastest + 100, fastest, fastest)
    assert made.is_too_fast("kind", seconds) is too_fast


def test_the_last_twenty_generations_count():
    made = pace(1, *[10] * 19)
    assert made.fastest("kind") == 1
    made.add("kind", 10)
    assert made.fastest("kind") == 10


def test_the_kinds_that_were_not_made_for_long_are_forgotten():
    made = pace(*[10] * 5, kind=0)
    for kind in range(1, 256):
        made.add(kind, 1)
    made.add(0, 10)
    for kind in range(256, 256 + 255):
        made.add(kind, 1)
    assert made.fastest(0) == 10
    made.add("one more", 1)
    assert made.fastest(0) is None
