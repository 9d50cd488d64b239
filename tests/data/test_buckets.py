import pytest

from omnitune.data.buckets import Buckets, nearest_bucket, resolve, shapes
from omnitune.data.sizes import Bucket, Limits
from omnitune.errors import UserError

WAN = Limits(spatial=16, temporal=4)


def mistakes(buckets, limits=WAN):
    with pytest.raises(UserError) as caught:
        resolve(buckets, limits)
    return str(caught.value).split("\n")


def test_explicit_sizes_are_taken_with_every_frame_count():
    found = resolve(Buckets(frames=[49, 1], sizes=["480x832", "832x480"]), WAN)
    assert [str(bucket) for bucket in found] == ["1x480x832", "1x832x480", "49x480x832", "49x832x480"]


@pytest.mark.parametrize("spatial", [8, 16, 32])
@pytest.mark.parametrize("area", [(480, 832), (500, 701), (256, 256), (720, 1280)])
def test_shapes_fill_the_budget_and_cannot_grow(area, spatial):
    found = shapes(area, spatial)
    budget = area[0] * area[1]
    assert found
    for height, width in found:
        assert height % spatial == width % spatial == 0
        assert height * width <= budget < (height + spatial) * width
        assert budget < height * (width + spatial)
        assert 0.5 <= height / width <= 2


@pytest.mark.parametrize("spatial", [8, 16, 32])
def test_no_shape_that_fills_the_budget_is_left_out(spatial):
    budget = 256 * 320
    sides = range(spatial, 640, spatial)
    full = [
        (h, w)
        for h in sides
        for w in sides
        if h * w <= budget < min((h + spatial) * w, h * (w + spatial)) and max(h, w) <= 2 * min(h, w)
    ]
    assert shapes((256, 320), spatial) == full


def test_shapes_lie_in_both_directions():
    found = shapes((480, 832), 16)
    assert (480, 832) in found
    assert {(width, height) for height, width in found} == set(found)


def test_a_stated_size_outside_the_shapes_is_among_them_if_it_divides():
    assert (128, 512) in shapes((128, 512), 16)
    assert (120, 512) not in shapes((120, 512), 16)


def test_an_area_need_not_divide():
    assert {bucket.frames for bucket in resolve(Buckets(frames=[1, 5], area="100x101"), WAN)} == {1, 5}


def test_every_illegal_value_is_told_with_the_nearest_legal_one():
    buckets = Buckets(frames=[1, 48], sizes=["480x832", "481x830", "5x8", "480*832"])
    assert mistakes(buckets, Limits(spatial=16, temporal=4)) == [
        "data.buckets.frames: 48 is not 4 * k + 1; the nearest is 49",
        "data.buckets.sizes: '480*832' is not HEIGHTxWIDTH, as 480x832",
        "data.buckets.sizes: 481x830 is not in multiples of 16; the nearest is 480x832",
        "data.buckets.sizes: 5x8 is not in multiples of 16; the nearest is 16x16",
    ]


@pytest.mark.parametrize("count", [0, -3, 2])
def test_counts_below_two_steps_become_one(count):
    message = f"data.buckets.frames: {count} is not 4 * k + 1; the nearest is 1"
    assert mistakes(Buckets(frames=[count], sizes=["16x16"])) == [message]


def test_area_and_sizes_exclude_each_other():
    rule = "data.buckets: exactly one of area and sizes is needed,"
    assert mistakes(Buckets()) == [f"{rule} neither is given; keep area: 480x832, say"]
    both = Buckets(area="480x832", sizes=["480x832"])
    assert mistakes(both) == [f"{rule} both are given; keep area: 480x832, say"]


def test_areas_that_are_no_size_are_named():
    assert mistakes(Buckets(area="480")) == ["data.buckets.area: '480' is not HEIGHTxWIDTH, as 480x832"]
    small = "data.buckets.area: 8x8 is less than the smallest legal size; use 16x16"
    assert mistakes(Buckets(area="8x8")) == [small]


def test_no_frames_is_named():
    message = "data.buckets.frames: is empty; use [1] for pictures"
    assert mistakes(Buckets(frames=[], sizes=["16x16"])) == [message]


def test_frames_are_decided_before_shape():
    wide, tall = Bucket(9, 32, 64), Bucket(5, 64, 32)
    assert nearest_bucket((64, 32), 9, [wide, tall]) == wide
    assert nearest_bucket((64, 32), 8, [wide, tall]) == tall
    assert nearest_bucket((64, 32), 4, [wide, tall]) is None


def test_the_nearest_shape_is_near_by_its_logarithm():
    # Halfway between 2 and 4 is 2.83 by logarithms, 3 by differences.
    square, double, fourfold = Bucket(1, 64, 64), Bucket(1, 32, 64), Bucket(1, 32, 128)
    assert nearest_bucket((100, 290), 1, [square, double, fourfold]) == fourfold
    assert nearest_bucket((100, 280), 1, [square, double, fourfold]) == double
    assert nearest_bucket((100, 100), 1, [square, double, fourfold]) == square


def test_of_equal_shapes_the_one_with_most_pixels_is_taken():
    small, large = Bucket(1, 32, 32), Bucket(1, 64, 64)
    assert (
        nearest_bucket((500, 500), 1, [small, large])
        == nearest_bucket((500, 500), 1, [large, small])
        == large
    )


def test_a_tie_between_wide_and_tall_does_not_depend_on_order():
    wide, tall = Bucket(1, 24, 40), Bucket(1, 40, 24)
    assert nearest_bucket((7, 7), 1, [wide, tall]) == nearest_bucket((7, 7), 1, [tall, wide]) == wide
