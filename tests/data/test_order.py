"""The sample order is a pure function of (seed, step), whoever cuts it into micro-batches."""

import math
from collections import Counter, defaultdict

import pytest

from omnitune.data.order import Order, Row, Turns, slices
from omnitune.data.sizes import Bucket

SMALL, LARGE, CLIP = Bucket(1, 16, 16), Bucket(1, 32, 32), Bucket(5, 16, 16)


def order(batch_size: int = 8, seed: int = 0) -> Order:
    """37 items in buckets of 20, 12 and 5."""
    return Order({CLIP: range(32, 37), SMALL: range(20), LARGE: range(20, 32)}, batch_size, seed)


def counted(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.weight]


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 4096])
def test_ranks_and_micro_batches_together_hold_the_global_batch(
    ranks: int, micro_batch_size: int | None
) -> None:
    for step in range(3):
        batch = order().batch(step)
        cut = [slices(batch, rank, ranks, micro_batch_size) for rank in range(ranks)]
        assert counted([row for mine in cut for micro in mine for row in micro]) == batch


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 4096])
def test_all_ranks_have_equally_many_micro_batches_of_one_size(
    ranks: int, micro_batch_size: int | None
) -> None:
    batch = order().batch(0)
    cut = [slices(batch, rank, ranks, micro_batch_size) for rank in range(ranks)]
    assert len({len(mine) for mine in cut}) == 1
    sizes = {len(micro) for mine in cut for micro in mine}
    assert len(sizes) == 1
    assert sizes.pop() <= (micro_batch_size or len(batch))


def test_rows_that_fill_up_weigh_nothing_and_are_real_samples() -> None:
    batch = order().batch(0)
    cut = [slices(batch, rank, 3, 2) for rank in range(3)]
    fillers = [row for mine in cut for micro in mine for row in micro if row.weight != 1]
    assert len(fillers) == 3 * 2 * 2 - 8
    assert {(row.position, row.index, row.weight) for row in fillers} == {
        (batch[-1].position, batch[-1].index, 0.0)
    }


def test_a_global_batch_has_one_bucket() -> None:
    mine = order()
    for step in range(200):
        members = mine.items[mine.turns.turn(step)[0]]
        assert {row.index for row in mine.batch(step)} <= set(members)


def streams(mine: Order, steps: int) -> dict[Bucket, list[Row]]:
    found: dict[Bucket, list[Row]] = defaultdict(list)
    for step in range(steps):
        found[mine.buckets[mine.turns.turn(step)[0]]] += mine.batch(step)
    return found


def test_each_epoch_of_a_bucket_has_all_its_items_once() -> None:
    mine = order(batch_size=3)  # divides neither 20 nor 5
    for bucket, rows in streams(mine, 200).items():
        items = sorted(mine.items[mine.buckets.index(bucket)])
        for epoch in range(len(rows) // len(items)):
            part = rows[epoch * len(items) : (epoch + 1) * len(items)]
            assert sorted(row.index for row in part) == items
            assert {row.epoch for row in part} == {epoch}


def test_epochs_buckets_and_seeds_have_orders_of_their_own() -> None:
    def epochs(seed: int) -> list[tuple[int, ...]]:
        rows = streams(order(batch_size=4, seed=seed), 100)[SMALL]
        return [tuple(row.index for row in rows[i : i + 20]) for i in range(0, 80, 20)]

    found = epochs(0) + epochs(1)
    assert len(set(found)) == len(found) == 8


def test_positions_count_all_samples_of_the_run() -> None:
    positions = [row.position for step in range(50) for row in order(batch_size=3).batch(step)]
    assert positions == list(range(150))


def test_a_step_is_the_same_whatever_was_asked_before() -> None:
    walked, jumped = order(), order()
    for step in range(40):
        last = walked.batch(step)
    assert jumped.batch(39) == last


def test_any_step_takes_constant_time() -> None:
    step = 10**9
    rows = order().batch(step)
    assert rows[0].position == 8 * step
    assert len({row.index for row in rows}) >= 5  # of the smallest bucket


def test_a_batch_larger_than_its_bucket_runs_through_epochs() -> None:
    mine = Order({SMALL: range(3)}, 7, 0)
    rows = mine.batch(0)
    assert Counter(row.epoch for row in rows) == {0: 3, 1: 3, 2: 1}
    assert {row.index for row in rows[:3]} == {row.index for row in rows[3:6]} == {0, 1, 2}


SIZES = [(1,), (1, 1), (20, 12, 5), (1, 1000), (7, 7, 7, 7), (1, 2, 3, 4, 5, 6, 7, 8, 9), (999, 1, 1, 1, 998)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", [0, 1])
def test_turns_are_dealt_in_proportion_to_sizes(sizes: tuple[int, ...], seed: int) -> None:
    turns = Turns(sizes, seed)
    levels = math.ceil(math.log2(len(sizes)))
    counts = [0] * len(sizes)
    for step in range(10_000):
        bucket, before = turns.turn(step)
        assert before == counts[bucket]
        counts[bucket] += 1
        if step % 97 == 0 or step == 9_999:
            for count, size in zip(counts, sizes, strict=True):
                assert abs(count - (step + 1) * size / sum(sizes)) <= levels


def test_buckets_do_not_take_turns_in_the_same_order_under_every_seed() -> None:
    assert len({tuple(Turns((5, 4, 3), seed).turn(step)[0] for step in range(24)) for seed in range(8)}) > 1


def test_units_are_summed_over_the_global_batch() -> None:
    mine = order(batch_size=5)
    units = mine.units(3, lambda i: {"samples": 1, "tokens": i})
    assert units == {"samples": 5, "tokens": sum(row.index for row in mine.batch(3))}


def test_an_epoch_has_as_many_items_as_the_data() -> None:
    assert len(order()) == 37
