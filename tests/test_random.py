"""Draws are pure functions of their key, and numbers of the distribution that they are asked for."""

import math
from collections import Counter

import pytest
import torch

from omnitune.random import Draw, generator, permuted, seed_of, uniform_of

SHAPE = (2, 3)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_row_is_the_same_in_whatever_batch_it_is_drawn(kind: str) -> None:
    keys = [5, 11, 7, 2]
    together = getattr(Draw(0, keys), kind)("noise", SHAPE)
    for i, key in enumerate(keys):
        alone = getattr(Draw(0, [key]), kind)("noise", SHAPE)
        assert torch.equal(alone[0], together[i])
    backwards = getattr(Draw(0, keys[::-1]), kind)("noise", SHAPE)
    assert torch.equal(backwards.flip(0), together)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_draw_differs_by_purpose_position_and_seed(kind: str) -> None:
    draws = [
        getattr(Draw(seed, [position]), kind)(purpose, SHAPE)
        for seed in (0, 1)
        for position in (0, 1, "0")
        for purpose in ("noise", "posterior")
    ]
    values = torch.stack(draws).flatten()
    assert len(values.unique()) == len(values)


def test_drawing_twice_or_between_other_draws_changes_nothing() -> None:
    draw = Draw(3, [0, 1])
    first = draw.normal("noise", SHAPE)
    draw.uniform("timestep")
    torch.rand(7)
    assert torch.equal(draw.normal("noise", SHAPE), first)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    first = Draw(0, [0]).normal("noise", SHAPE)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(Draw(0, [0]).normal("noise", SHAPE), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_row_number_is_the_same_for_every_batch_and_needs_no_tensor() -> None:
    assert Draw(0, ["a", "b"]).row("crop", 1) == Draw(0, ["b"]).row("crop") == uniform_of(0, "b", "crop")


def test_numbers_and_words_of_equal_spelling_are_different_keys() -> None:
    assert seed_of(1, 2) != seed_of("1", 2) != seed_of(12)
    assert seed_of("a", "b") != seed_of("ab")


def test_seeds_are_stable_between_processes() -> None:
    # printf 'int:0\0str:noise' | b2sum -l 64
    assert seed_of(0, "noise").to_bytes(8, "little").hex() == "044db74f1152dc6f"


def chi_square(counts: "Counter[int]", cells: int, total: int) -> float:
    return sum((counts[cell] - total / cells) ** 2 for cell in range(cells)) / (total / cells)


CRITICAL_19 = 43.8
"""Of chi-square with 19 degrees of freedom: one in a thousand fair generators exceeds it."""


def test_row_numbers_are_uniform_over_positions() -> None:
    counts = Counter(int(20 * Draw(0, [position]).row("caption_dropout")) for position in range(10_000))
    assert chi_square(counts, 20, 10_000) < CRITICAL_19


def test_row_numbers_are_uniform_over_seeds_and_purposes() -> None:
    by_seed = Counter(int(20 * uniform_of(seed, 0, "x")) for seed in range(10_000))
    by_purpose = Counter(int(20 * uniform_of(0, 0, f"purpose {i}")) for i in range(10_000))
    assert chi_square(by_seed, 20, 10_000) < CRITICAL_19
    assert chi_square(by_purpose, 20, 10_000) < CRITICAL_19


def test_first_numbers_of_neighbouring_positions_are_uniform_and_uncorrelated() -> None:
    u = Draw(0, range(10_000)).uniform("timestep").double()
    counts = Counter((20 * u).long().tolist())
    assert chi_square(counts, 20, 10_000) < CRITICAL_19
    correlation = torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(10_000)


def test_normal_numbers_have_mean_0_and_variance_1() -> None:
    x = Draw(0, range(100)).normal("noise", (10, 10)).double()
    n = x.numel()
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)


def test_hashes_of_rows_are_recorded_when_asked_for() -> None:
    draw = Draw(0, [4, 5])
    draw.hashes = {}
    draw.normal("noise", SHAPE)
    alone = Draw(0, [5])
    alone.hashes = {}
    alone.normal("noise", SHAPE)
    assert draw.hashes["noise"][1] == alone.hashes["noise"][0] != draw.hashes["noise"][0]


def test_a_generator_is_keyed_by_all_its_parts() -> None:
    numbers = {torch.rand((), generator=generator(*key)).item() for key in ((0,), (0, 0), (0, "0"), (1,))}
    assert len(numbers) == 4


def test_permuted_is_a_bijection_for_every_size_up_to_200() -> None:
    for size in range(1, 201):
        assert sorted(permuted(i, size, "key") for i in range(size)) == list(range(size)), size


def test_permuted_depends_on_every_part_of_its_key() -> None:
    orders = {
        tuple(permuted(i, 50, seed, bucket, epoch) for i in range(50))
        for seed in (0, 1)
        for bucket in ("1x16x16", "5x16x16")
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_permuted_sends_an_item_everywhere_equally_often() -> None:
    counts = Counter(permuted(3, 20, epoch) for epoch in range(4000))
    assert chi_square(counts, 20, 4000) < CRITICAL_19


def test_permuted_follows_an_item_by_any_other_equally_often() -> None:
    distance = Counter((permuted(4, 21, epoch) - permuted(3, 21, epoch)) % 21 - 1 for epoch in range(4000))
    assert chi_square(distance, 20, 4000) < CRITICAL_19


def test_permuted_takes_ranges_that_no_list_could_hold() -> None:
    images = {permuted(i, 10**15, "key") for i in range(100)}
    assert len(images) == 100
    assert max(images) < 10**15
