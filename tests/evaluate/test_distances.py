import math

import numpy as np
import pytest
import torch
from PIL import Image

from omnitune.errors import UserError
from omnitune.evaluate import kid, kid_of_features, kid_of_pairs, load_lpips, motion, psnr


def blurred(picture):
    small = Image.fromarray(picture).resize((8, 8), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(picture.shape[:2], Image.Resampling.BILINEAR))


def test_kid_of_two_halves_is_near_zero_and_of_blurred_pictures_above(network, emoji):
    half, other = emoji.pictures[::2], emoji.pictures[1::2]
    same = kid(half, other, network)
    assert abs(same.value) < 0.01
    assert (same.num_real, same.count, same.spread_of) == (16, 16, "deviation over subsets of 8")
    found = kid(half, [blurred(p) for p in other], network)
    assert found.value > same.value + 0.1
    assert found.value > 3 * found.spread


def test_kid_is_repeatable_and_leaves_the_random_state():
    real, fake = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    first = kid_of_features(real, fake)
    torch.rand(1)
    torch.random.set_rng_state(before)
    assert kid_of_features(real, fake) == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert kid_of_features(real, fake, seed=1) != first


def test_kid_is_the_mean_of_the_unbiased_estimate():
    chance = torch.Generator().manual_seed(0)
    real, fake = torch.randn(40, 4, generator=chance), torch.randn(40, 4, generator=chance) + 0.5

    def kernel(a, b):
        return (a.double() @ b.double().T / 4 + 1) ** 3

    def off_diagonal(k):
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    whole = (
        off_diagonal(kernel(real, real)) + off_diagonal(kernel(fake, fake)) - 2 * kernel(real, fake).mean()
    )
    found = kid_of_features(real, fake)
    assert abs(found.value - whole) < 4 * found.spread / 10  # of 100 subsets


def test_kid_of_pairs_is_not_biased_by_what_pairs_share():
    """Features and near copies of them: the same distribution, of which KID should see nothing."""
    chance = torch.Generator().manual_seed(0)
    found, naive = [], []
    for seed in range(10):
        real = torch.randn(40, 8, generator=chance)
        made = real + 1e-3 * torch.randn(40, 8, generator=chance)
        found.append(kid_of_pairs(real, made, seed).value)
        naive.append(kid_of_features(real, made, seed).value)
    error = np.std(found) / 10**0.5
    assert abs(np.mean(found)) < 3 * error
    assert np.mean(naive) < -3 * error
    moved = kid_of_pairs(real, made + 1)
    assert moved.value > 2 * moved.spread
    assert (moved.num_real, moved.count) == (40, 40)
    assert moved.spread_of == "deviation over subsets of 10"


def test_kid_of_too_few_pictures_is_an_error():
    with pytest.raises(UserError, match="3 real and 9 generated pictures; 4 of each are needed"):
        kid_of_features(torch.zeros(3, 2), torch.zeros(9, 2))


def test_psnr_is_of_8_bit_levels_and_capped_for_equal_pictures(noise):
    assert psnr(noise, noise) == pytest.approx(10 * math.log10(255**2 / 1e-3))
    flat = np.full((1, 8, 8, 3), 100, np.uint8)
    assert psnr(flat, flat + 5) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(flat + 5, flat) == psnr(flat, flat + 5)


def test_motion_is_the_mean_change_of_frames_in_levels():
    steady = np.stack([np.full((4, 4, 3), 10 * t, np.uint8) for t in range(5)])
    jumpy = np.stack([np.full((4, 4, 3), v, np.uint8) for v in (0, 20, 20, 0, 0)])
    still = np.full((5, 4, 4, 3), 7, np.uint8)
    found = motion([steady, still])
    assert (found.mean, found.std, found.flicker, found.static, found.num_clips) == (5, 5, 0, 0.5, 2)
    assert motion([jumpy]).mean == 10
    assert motion([jumpy]).flicker == 10
    with pytest.raises(UserError, match="a clip has one frame"):
        motion([steady[:1]])


@pytest.mark.parametrize(
    ("net", "name"), [("alexnet", "alex"), ("squeezenet1_1", "squeeze"), ("vgg16", "vgg")]
)
def test_lpips_reads_torchvision_s_weights_from_a_file(net, name, tmp_path, noise, network):
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision import models

    trunk = getattr(models, net)(weights=None).features
    file = tmp_path / f"{net}.pth"
    torch.save({f"features.{n}": v for n, v in trunk.state_dict().items()}, file)
    lpips = load_lpips(file)
    assert lpips(noise, noise) == 0
    reference = _LPIPS(net=name, pnet_rand=True)
    for own, theirs in zip(reference.net.parameters(), trunk.parameters(), strict=False):
        own.data.copy_(theirs)
    a, b = (torch.from_numpy(v).permute(0, 3, 1, 2) / 127.5 - 1 for v in (noise, noise[::-1].copy()))
    expected = reference(a, b).mean().item()
    assert lpips(noise, noise[::-1]) == pytest.approx(expected, rel=1e-4)


def test_lpips_refuses_other_weights(tmp_path, network):
    file = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(8, 3, 5, 5)}, file)
    with pytest.raises(UserError, match=r"--lpips: .*other\.pth is not torchvision's alexnet, vgg16"):
        load_lpips(file)
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, file)
    with pytest.raises(UserError, match=r"other\.pth lacks features\.0\.bias"):
        load_lpips(file)
