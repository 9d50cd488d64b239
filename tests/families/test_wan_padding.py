import pytest
import torch

from omnitune.data.sizes import Bucket
from omnitune.families.base import Noisy
from omnitune.families.diffusion.padding import Padding
from omnitune.families.wan import Wan, WanOptions
from omnitune.sampling import Sampling


@pytest.fixture(scope="module")
def families(tiny_wan):
    """The same network, padding in full and folded."""
    made = []
    for fold in (False, True):
        options = WanOptions(text_length=64, fold_padding=fold)
        made.append(Wan.load(str(tiny_wan), "cpu", torch.float32, only=["transformer"], options=options))
    return made


def predict(family, lengths):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(lengths), 16, 3, 4, 4, generator=generator)
    embeds = [torch.randn(n, 32, generator=generator) for n in lengths]
    u = torch.full((len(x),), 0.5)
    noisy = Noisy({"x": x}, {"x": x}, u, x={"x": x}, fed=1000 * u)
    family.components.requires_grad_(True).zero_grad()
    out = family.denoise(noisy, {"prompt_embeds": embeds})["x"]
    (out**2).mean().backward()
    return out.detach(), {n: p.grad for n, p in family.components.named_parameters()}


@pytest.mark.parametrize("lengths", [(3, 17), (1, 1), (63, 5), (64, 2), (64, 64)])
def test_folded_padding_predicts_and_learns_what_full_padding_does(families, lengths):
    (full, full_grads), (folded, grads) = (predict(f, lengths) for f in families)
    torch.testing.assert_close(folded, full, rtol=1e-5, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, full_grads[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_folded_zeros_weigh_as_much_as_all_in_any_dtype(dtype):
    for length in range(5, 513):
        padding = Padding(length, fold=True)
        text = padding.pad([torch.ones(n, 1, dtype=dtype) for n in (1, length - 4)])
        assert text.shape[1] == length - 1
        assert padding.bias.dtype == dtype  # another one is refused by kernels, or misread
        weights = padding.bias[:, 0, 0].double().exp()
        for row, n in zip(weights, (1, length - 4), strict=True):
            assert row[:n].tolist() == [1] * n
            assert row[n:].sum().item() == pytest.approx(length - n, rel=2e-5)
            assert (row[n + 3 :] == 0).all()


def test_samples_are_made_of_folded_padding_too(tiny_wan):
    shapes, made = [], []
    for fold in (False, True):
        family = Wan.load(
            str(tiny_wan), "cpu", torch.float32, options=WanOptions(text_length=64, fold_padding=fold)
        )
        family.components["transformer"].blocks[0].attn2.to_k.register_forward_hook(
            lambda module, args, output: shapes.append(args[0].shape[1])
        )
        made += family.sample([Sampling("rocket", "", Bucket(5, 32, 32), 2, 3.0, 0)])
    assert max(shapes[:4]) == 64
    assert max(shapes[4:]) < 20
    assert (made[0].int() - made[1].int()).abs().max() <= 1
    assert made[0].float().std() > 1
