"""Turns: round robin where jobs are alike, by cost where they are not."""

from __future__ import annotations

from hummingbird.serving.queue import FairQueue


def drain(queue: FairQueue) -> list[str]:
    taken = []
    while (job_id := queue.pop()) is not None:
        taken.append(job_id)
    return taken


def filled(*jobs: tuple[str, str, float]) -> FairQueue:
    queue = FairQueue()
    for job_id, client, cost in jobs:
        queue.push(job_id, client, cost)
    return queue


def test_clients_take_turns_whatever_they_have_sent() -> None:
    queue = filled(*[(f"a{i}", "a", 1) for i in range(4)], ("b0", "b", 1), ("c0", "c", 1), ("b1", "b", 1))
    assert (len(queue), queue.num_clients, queue.count("a")) == (7, 3, 4)
    assert drain(queue) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_who_sends_costly_jobs_gets_fewer_turns() -> None:
    queue = filled(*[(f"a{i}", "a", 10) for i in range(3)], *[(f"b{i}", "b", 1) for i in range(20)])
    first = drain(queue)[:12]
    assert first.count("a0") == 1
    assert sum(job_id.startswith("b") for job_id in first) >= 10


def test_a_newcomer_neither_waits_for_the_past_nor_gets_it_paid_back() -> None:
    queue = filled(*[(f"a{i}", "a", 1) for i in range(40)])
    for _ in range(20):
        queue.pop()
    for i in range(10):
        queue.push(f"b{i}", "b", 1)
    following = [queue.pop() for _ in range(8)]
    assert sum(str(job_id).startswith("b") for job_id in following) == 4


def test_who_comes_back_at_once_is_not_new() -> None:
    """A client that sends one job at a time does not jump the others."""
    queue = filled(*[(f"a{i}", "a", 1) for i in range(10)], ("b0", "b", 1))
    taken = []
    for turn in range(8):
        taken.append(str(queue.pop()))
        if taken[-1].startswith("b"):
            queue.push(f"b{turn + 1}", "b", 1)
    assert sum(job_id.startswith("b") for job_id in taken) == 4


def test_positions_are_the_order_of_what_follows() -> None:
    queue = filled(("a0", "a", 1), ("a1", "a", 1), ("b0", "b", 3), ("b1", "b", 1), ("c0", "c", 1))
    places = queue.positions()
    assert [places[job_id] for job_id in drain(queue)] == [0, 1, 2, 3, 4]
    assert queue.positions() == {}


def test_removed_jobs_are_gone_and_clients_forgotten() -> None:
    queue = filled(("a0", "a", 1), ("b0", "b", 1))
    assert queue.remove("a0")
    assert not queue.remove("a0")
    assert queue.num_clients == 1
    assert drain(queue) == ["b0"]
    for i in range(1000):
        queue.push("x", f"client {i}", 1)
        queue.pop()
    assert len(queue._finish) < 10, "clients that have left must not be remembered for ever"


def test_a_key_takes_only_heads_that_have_it() -> None:
    queue = FairQueue()
    for job_id, client, key in (("a0", "a", "x"), ("b0", "b", "y"), ("b1", "b", "x"), ("c0", "c", "x")):
        queue.push(job_id, client, 1, key)
    assert [queue.pop("x"), queue.peek("x"), queue.pop("x"), queue.pop("x")] == ["a0", "c0", "c0", None]
    assert drain(queue) == ["b0", "b1"]
