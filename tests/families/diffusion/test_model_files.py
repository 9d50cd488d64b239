import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnitune.commands.check import check
from omnitune.errors import UserError
from omnitune.families.diffusion.files import ModelFiles
from omnitune.families.wan import Wan
from omnitune.testing.tiny import build_tiny

pytest_plugins = ["core_fixtures"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("model") / "wan")


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    """A hub cache without a network, laid out as huggingface_hub keeps it, that holds org/tiny."""
    from huggingface_hub import constants

    repo = tmp_path / "models--org--tiny"
    shutil.copytree(model, repo / "snapshots" / "abc123")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repo


def test_a_hub_id_that_is_on_this_machine_loads_without_a_network(hub):
    family = Wan.load("org/tiny", "cpu", torch.float32, only=["transformer"])
    assert list(family.components) == ["transformer"]
    assert family.files.source == str(hub / "snapshots" / "abc123")


def test_a_hub_id_that_is_nowhere_is_named_with_the_way_out(hub):
    with pytest.raises(
        UserError, match=r"'org/other' is no folder here and cannot be fetched.*fetch it first"
    ):
        Wan.load("org/other", "meta", torch.float32)


def test_a_published_hub_id_that_is_not_at_hand_is_known_by_its_shipped_configuration(hub):
    family = Wan.load("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "meta", torch.bfloat16)
    assert "shipped configuration" in family.files.source
    assert family.limits.spatial == 16
    with pytest.raises(UserError, match="cannot be fetched"):
        Wan.load("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "cpu", torch.bfloat16)


def test_a_path_that_is_no_folder_and_no_hub_id_is_refused():
    for path in ("/nowhere/model", "./model", "model", "gone/", "my models/wan", "a/b/c"):
        with pytest.raises(UserError, match="is no folder"):
            _ = ModelFiles(path).folder


def test_a_missing_shard_is_named(model, tmp_path):
    broken = shutil.copytree(model, tmp_path / "broken")
    file = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    index = '{"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}'
    (broken / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"00001-of-00002.safetensors is missing, which .*index.json lists"):
        Wan.load(str(broken), "cpu", torch.float32, only=["transformer"])
    file.unlink()
    (broken / "transformer" / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"transformer/diffusion_pytorch_model.safetensors is missing"):
        Wan.load(str(broken), "cpu", torch.float32, only=["transformer"])


def test_fp32_parts_of_a_bf16_model_have_the_same_dtypes_on_the_meta_device_as_when_loaded(model):
    real = Wan.load(str(model), "cpu", torch.bfloat16)
    meta = Wan.load(str(model), "meta", torch.bfloat16)
    dtypes = {name: p.dtype for name, p in meta.components.named_parameters()}
    assert dtypes == {name: p.dtype for name, p in real.components.named_parameters()}
    assert {torch.float32, torch.bfloat16} == set(dtypes.values())


def changed(model, folder, component, **values):
    copy = shutil.copytree(model, folder)
    file = copy / component / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return copy


def test_a_weight_file_that_lacks_a_tensor_is_refused_by_its_name(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["blocks.0.attn1.to_k.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks blocks\.0\.attn1\.to_k\.weight"):
        Wan.load(str(copy), "cpu", torch.float32, only=["transformer"])


def renamed(model, folder, component, name, to):
    """A copy of the model in which a tensor has another name, or two."""
    copy = shutil.copytree(model, folder)
    (file,) = (copy / component).glob("*.safetensors")
    tensors = load_file(file)
    tensors |= {key: tensors[name].clone() for key in to}
    if name not in to:
        del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    return str(copy)


def test_what_does_not_fit_its_configuration_is_refused_when_it_is_loaded(model, tmp_path):
    few = changed(model, tmp_path / "few", "transformer", num_layers=1)
    with pytest.raises(UserError, match=r"few/transformer has blocks\.1\..* its configuration knows nothing"):
        Wan.load(str(few), "cpu", torch.float32, only=["transformer"])
    wide = changed(model, tmp_path / "wide", "text_encoder", d_ff=40)
    with pytest.raises(
        UserError, match=r"lacks encoder\.block\.0.*DenseReluDense\.wi_0\.weight of \(40, 32\)"
    ):
        Wan.load(str(wide), "cpu", torch.float32, only=["text_encoder"])


@pytest.mark.parametrize(
    ("component", "name", "to"),
    [
        ("text_encoder", "shared.weight", ["encoder.embed_tokens.weight"]),
        ("text_encoder", "shared.weight", ["shared.weight", "encoder.embed_tokens.weight"]),
        (
            "transformer",
            "blocks.0.attn1.norm_q.weight",
            ["blocks.0.attn1.norm_q.weight", "blocks.0.attn1.norm_added_q.weight"],
        ),
    ],
)
def test_a_tied_tensor_may_have_either_name_and_what_the_class_ignores_may_be_there(
    model, tmp_path, component, name, to
):
    copy = renamed(model, tmp_path / "copy", component, name, to)
    meta = Wan.load(copy, "meta", torch.float32)
    assert meta.check_weights([component]) == []
    Wan.load(copy, "cpu", torch.float32, only=[component])


def test_weights_are_checked_by_their_headers_alone(model, monkeypatch):
    meta = Wan.load(str(model), "meta", torch.float32)

    def read(*args, **kwargs):
        raise AssertionError(args)

    monkeypatch.setattr(ModelFiles, "load", read)
    monkeypatch.setattr("safetensors.torch.load_file", read)
    assert meta.check_weights(meta.parts) == []
    assert all(p.is_meta for p in meta.components.parameters())


@pytest.fixture
def partly(hub):
    """The hub's cache when only configurations were fetched."""
    for file in hub.rglob("*.safetensors"):
        file.unlink()
    return hub


def test_weights_that_are_not_fetched_yet_are_listed_and_not_fetched(partly, monkeypatch):
    family = Wan.load("org/tiny", "meta", torch.float32)

    def fetch(*args):
        raise AssertionError(args)

    monkeypatch.setattr(ModelFiles, "fetch", fetch)
    assert family.check_weights(["transformer", "vae"]) == ["transformer", "vae"]


def test_check_says_which_weights_it_did_not_see(partly, workplace):
    line = "transformer, vae, text_encoder: not on this machine; `train` fetches them from the hub"
    assert line in check(workplace.run("model.path=org/tiny")).lines


def test_weights_that_cannot_be_fetched_are_named(partly):
    with pytest.raises(UserError, match=r"model.path: .*transformer/diffusion_pytorch_model.* is missing"):
        Wan.load("org/tiny", "cpu", torch.float32, only=["transformer"])


def test_configurations_that_are_partly_fetched_are_fetched_or_named(hub):
    (hub / "snapshots" / "abc123" / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=r"vae/config.json is missing; the model is incomplete"):
        Wan.load("org/tiny", "meta", torch.float32)


def test_a_published_model_that_is_partly_fetched_is_known_by_its_shipped_configuration(hub):
    name = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    hub.rename(hub.with_name(f"models--{name.replace('/', '--')}"))
    shutil.rmtree(hub.with_name(f"models--{name.replace('/', '--')}") / "snapshots" / "abc123" / "vae")
    assert "shipped configuration" in Wan.load(name, "meta", torch.bfloat16).files.source


# Single files


def original(tensors):
    """Tensors of a tiny Wan transformer under the names of the original checkpoints."""
    pairs = [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"), ("attn1", "self_attn"), ("attn2", "cross_attn"),
        (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."), (".to_out.0.", ".o."),
        ("norm2", "norm3"), ("proj_out", "head.head"),
    ]  # fmt: skip
    named = {}
    for name, tensor in tensors.items():
        new = (
            "head.modulation"
            if name == "scale_shift_table"
            else name.replace("scale_shift_table", "modulation")
        )
        for ours, theirs in pairs:
            new = new.replace(ours, theirs)
        named[f"model.diffusion_model.{new}"] = tensor
    return named


@pytest.fixture(params=["of diffusers", "original"])
def single(request, model, tmp_path):
    """A file of another transformer than the model's, and the folder that has the rest."""
    other = build_tiny(tmp_path / "other", seed=1)
    tensors = load_file(other / "transformer" / "diffusion_pytorch_model.safetensors")
    file = tmp_path / "some.safetensors"
    save_file(tensors if request.param == "of diffusers" else original(tensors), file)
    rest = shutil.copytree(model, tmp_path / "rest")
    (rest / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    return file, rest, other


def test_the_core_is_read_from_a_single_file_and_the_rest_from_its_config(single):
    file, rest, other = single
    family = Wan.load(str(file), "cpu", torch.bfloat16, config=str(rest))
    whole = Wan.load(str(other), "cpu", torch.bfloat16)
    own, wanted = (dict(f.components["transformer"].named_parameters()) for f in (family, whole))
    assert own.keys() == wanted.keys()
    for name, param in wanted.items():
        assert own[name].dtype == param.dtype, name
        assert torch.equal(own[name], param), name
    assert set(family.weight_files("transformer")) == {file, rest / "transformer" / "config.json"}
    meta = Wan.load(str(file), "meta", torch.bfloat16, config=str(rest))
    assert meta.check_weights(meta.parts) == []


def test_a_single_file_that_is_not_of_the_configuration_is_refused(single, tmp_path):
    file, rest, _ = single
    tensors = load_file(file)
    name = next(name for name in tensors if "ffn" in name)
    few = tmp_path / "few.safetensors"
    save_file({key: value for key, value in tensors.items() if key != name}, few)
    for load in (
        lambda: Wan.load(str(few), "cpu", torch.float32, config=str(rest), only=["transformer"]),
        lambda: Wan.load(str(few), "meta", torch.float32, config=str(rest)).check_weights(["transformer"]),
    ):
        with pytest.raises(UserError, match=r"model.path: .*few.safetensors lacks blocks\."):
            load()
    with pytest.raises(UserError, match=r"model.path: .*gone.safetensors is not there"):
        Wan.load(str(tmp_path / "gone.safetensors"), "meta", torch.float32, config=str(rest))
    (rest / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=r"model.config: .*vae/config.json is missing"):
        Wan.load(str(file), "meta", torch.float32, config=str(rest))


def test_a_run_on_a_single_file_says_where_the_rest_is(workplace, single):
    file, rest, _ = single
    check(workplace.run(f"model.path={file}", f"model.config={rest}"))
    with pytest.raises(UserError, match=r"model: .*some.safetensors is a single file; add config"):
        workplace.run(f"model.path={file}")
    with pytest.raises(UserError, match=r"model: config has no effect beside .*rest"):
        workplace.run(f"model.path={rest}", f"model.config={rest}")
