"""Checkpoints: exact round trips, the public layout both ways, and a clear refusal of everything else."""

import os
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from masked_swin import PRESETS, MaskedSwinIR, ModelConfig, load_checkpoint, load_model, save_checkpoint
from masked_swin.checkpoint import infer_config, public_state
from tests.support.faults import file_size_limit
from tests.support.public_network import PublicNetwork

TINY = ModelConfig(embed_dim=24, depths=(2, 1), num_heads=(6, 6), window_size=8, mlp_ratio=1.5)
# Everything that a state dict tells, and nothing that it does not.
INFERRED = [
    TINY,
    PRESETS["published"],
    replace(TINY, attention_mask_per_head=True),
    replace(TINY, attention_mask_mode="token"),
    replace(TINY, resi_connection="1conv", num_heads=(4, 2), window_size=5),
    replace(TINY, conv_first_kernel=3, input_mask=None, attention_mask=None),
    replace(TINY, in_channels=1, image_mean=(0.0,), mlp_ratio=61 / 24),
]


def random_model(config: ModelConfig = TINY) -> MaskedSwinIR:
    model = MaskedSwinIR(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def assert_same(got: MaskedSwinIR, expected: MaskedSwinIR) -> None:
    assert got.config == expected.config
    assert not got.training
    for (name, a), (other, b) in zip(got.named_parameters(), expected.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b), name


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
@pytest.mark.parametrize("config", [*INFERRED, replace(TINY, attention_mask=(0.1, 0.2), image_range=255.0)])
def test_round_trip(config: ModelConfig, suffix: str, tmp_path: Path) -> None:
    model = random_model(config)
    path = tmp_path / f"model.{suffix}"
    save_checkpoint(model, path)
    assert_same(load_checkpoint(path), model)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("config", INFERRED)
def test_infers_the_configuration(config: ModelConfig) -> None:
    assert infer_config(public_state(MaskedSwinIR(config))) == config


@pytest.mark.parametrize("config", [PRESETS["published"], INFERRED[2], INFERRED[5]])
def test_public_code_loads_ours_strictly(config: ModelConfig, tmp_path: Path) -> None:
    save_checkpoint(random_model(config), tmp_path / "model.pth")
    public = PublicNetwork(
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        conv_first_kernel=config.conv_first_kernel,
        mask_is_diff=config.attention_mask_per_head,
    )
    buffers = {name: value.clone() for name, value in public.named_buffers()}
    assert buffers
    public.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True)["params"], strict=True)
    for name, value in public.named_buffers():
        assert value.dtype == buffers[name].dtype, name
        assert torch.equal(value, buffers[name]), name


def test_safetensors_hold_parameters_only(tmp_path: Path) -> None:
    model = random_model()
    save_checkpoint(model, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(value.numel() for value in stored.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("layout", ["bare", "params", "params_ema", "both", "state_dict", "module"])
def test_loads_public_layouts(layout: str, tmp_path: Path) -> None:
    model, other = random_model(), random_model()
    state = OrderedDict(public_state(model))
    content = {
        "bare": state,
        "params": {"params": state},
        "params_ema": {"params_ema": state},
        "both": {"params": public_state(other), "params_ema": state},
        "state_dict": {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
        "module": {f"module.{name}": value for name, value in state.items()},
    }
    torch.save(content[layout], tmp_path / "public.pth")
    assert_same(load_checkpoint(tmp_path / "public.pth"), model)


@pytest.mark.parametrize("wrapper", ["params-ema", "ema", "model_state_dict", "model", "net", "generator"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "netG."])
def test_loads_files_of_other_tools(wrapper: str, prefix: str, tmp_path: Path) -> None:
    model = random_model()
    state = {prefix + name: value for name, value in public_state(model).items()}
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "other.pth")
    assert_same(load_checkpoint(tmp_path / "other.pth"), model)


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.model."])
def test_loads_bare_states_of_modules_that_hold_the_network(prefix: str, tmp_path: Path) -> None:
    model = random_model()
    state = {prefix + name: value.half() for name, value in public_state(model.half(), buffers=False).items()}
    torch.save({"n_averaged": torch.tensor(5), **state}, tmp_path / "bare.pth")
    save_file(state, tmp_path / "bare.safetensors")
    for name in ("bare.pth", "bare.safetensors"):
        assert_same(load_checkpoint(tmp_path / name), model.float())


def test_averaged_weights_win(tmp_path: Path) -> None:
    model, average = random_model(), random_model()
    for wrapper, other in (("params-ema", "params"), ("ema", "model"), ("params_ema", "state_dict")):
        torch.save({other: public_state(model), wrapper: public_state(average)}, tmp_path / "both.pth")
        assert_same(load_checkpoint(tmp_path / "both.pth"), average)


def test_loads_safetensors_without_configuration(tmp_path: Path) -> None:
    model = random_model()
    save_file(public_state(model), tmp_path / "public.safetensors")
    assert_same(load_checkpoint(tmp_path / "public.safetensors"), model)


def test_loads_old_torch_files_and_other_dtypes(tmp_path: Path) -> None:
    model = random_model()
    torch.save(public_state(model), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(load_checkpoint(tmp_path / "old.pth"), model)
    torch.save(public_state(model.half(), buffers=False), tmp_path / "half.pth")
    assert_same(load_checkpoint(tmp_path / "half.pth"), model.float())


def test_a_given_configuration_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(random_model(), path)
    assert load_checkpoint(path, config=replace(TINY, attention_mask=0.5)).config.attention_mask == 0.5
    with pytest.raises(ValueError, match=r"model\.pth.*blocks\.1.*unknown.*configuration"):
        load_checkpoint(path, config=replace(TINY, depths=(1, 1)))
    with pytest.raises(ValueError, match=r"model\.pth.*blocks\.1.*missing.*configuration"):
        load_checkpoint(path, config=replace(TINY, depths=(2, 2)))
    with pytest.raises(ValueError, match=r"fc1\.weight is \(36, 24\) instead of \(48, 24\)"):
        load_checkpoint(path, config=replace(TINY, mlp_ratio=2.0))


def test_load_model(tmp_path: Path) -> None:
    assert load_model("tiny").config == PRESETS["tiny"]
    model = random_model()
    save_checkpoint(model, tmp_path / "model.pth")
    assert_same(load_model(str(tmp_path / "model.pth")), model)
    with pytest.raises(FileNotFoundError, match=r"publishd: neither a checkpoint file nor a preset.*'published'"):
        load_model("publishd")


def renamed(**names: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {**state, **{new: state["conv_first.weight"] for new in names.values()}}


UNUSABLE: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no mapping": (lambda state: list(state.values()), "holds a list"),
    "empty": (lambda state: {}, "found nothing"),
    "empty params": (lambda state: {"params": {}}, "'params'"),
    "training state": (lambda state: {"average": state, "optimizer": {}}, "state of a training run.*weights.pth"),
    "foreign training state": (lambda state: {"weights": state, "step": 5}, "'weights', 'step'"),
    "numpy scalar": (
        lambda state: {"params": state, "psnr": np.float64(31.2)},
        r"a numpy\._?core\.multiarray\.scalar is inside.*save only the state dict",
    ),
    "newer": (lambda state: {"params": state, "version": 99}, "newer masked_swin .*99.*upgrade"),
    "python objects": (lambda state: {"params": state, "path": Path("x")}, "more than tensors"),
    "Restormer": (
        lambda state: {"patch_embed.proj.weight": torch.zeros(48, 3, 3, 3)},
        "not the weights of a SwinIR-type",
    ),
    "another conv_first": (
        lambda state: {**state, "conv_first.weight": torch.zeros(3)},
        "not the weights of a SwinIR-type",
    ),
    "super-resolution": (renamed(a="upsample.0.weight"), "enlarges images"),
    "talking heads": (
        renamed(a="layers.0.residual_group.blocks.0.attn.pre_softmax_talking_heads.weight"),
        "talking heads",
    ),
    "head scale": (renamed(a="layers.0.residual_group.blocks.0.attn.head_scale_params"), "head scale"),
    "attention on attention": (renamed(a="layers.0.residual_group.blocks.0.attn.proj.0.weight"), "on_attn"),
    "type sum": (
        lambda state: {**state, "layers.0.residual_group.blocks.0.attn.proj.weight": torch.zeros(24, 4)},
        "type 'sum'",
    ),
    "6conv": (renamed(a="layers.0.conv.10.weight"), "6conv"),
    "position embedding": (renamed(a="absolute_pos_embed"), "position embedding"),
    "missing key": (lambda state: {k: v for k, v in state.items() if k != "norm.bias"}, "norm.bias is missing"),
    "missing group": (
        lambda state: {k: v for k, v in state.items() if not k.startswith("layers.1.residual_group.blocks.0.attn.rel")},
        "not the weights of a SwinIR-type",
    ),
    "unknown key": (renamed(a="extra.weight"), "extra.weight is unknown"),
    "wrong shape": (lambda state: {**state, "norm.bias": torch.zeros(3)}, r"norm.bias is \(3,\) instead of \(24,\)"),
    "unknown option": (
        lambda state: {"params": state, "config": {**TINY.to_dict(), "depth": 3}},
        "unknown model option 'depth'; did you mean 'depths'",
    ),
    "impossible option": (lambda state: {"params": state, "config": {"attention_mask": 75}}, "attention_mask must lie"),
    "another configuration": (
        lambda state: {"params": state, "config": PRESETS["published"].to_dict()},
        "do not fit the configuration",
    ),
}


@pytest.mark.parametrize(("make", "words"), UNUSABLE.values(), ids=list(UNUSABLE))
def test_refuses_what_is_no_checkpoint_of_ours(make: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    torch.save(make(public_state(random_model())), path)
    with pytest.raises(ValueError, match=rf"(?s)odd\.pth: .*{words}"):
        load_checkpoint(path)


def test_refuses_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such checkpoint file"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="a folder, expected a checkpoint"):
        load_checkpoint(tmp_path)
    (tmp_path / "zero.pth").touch()
    with pytest.raises(ValueError, match=r"zero\.pth: an empty file"):
        load_checkpoint(tmp_path / "zero.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_refuses_truncated_and_foreign_bytes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"torn.{suffix}"
    save_checkpoint(random_model(), path)
    whole = path.read_bytes()
    pieces = [whole[: len(whole) * i // 8] for i in range(1, 8)] + [whole[:-1], whole[:1], whole[100:], whole[::-1]]
    for content in [*pieces, b"\x89PNG\r\n\x1a\n" + bytes(50), b"not a checkpoint", bytes(1000)]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"torn\.{suffix}: "):
            load_checkpoint(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_flipped_bit_is_found_wherever_it_matters(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"flipped.{suffix}"
    model = random_model()
    save_checkpoint(model, path)
    whole = path.read_bytes()
    inside = whole.index(model.conv_last.weight.detach().numpy().tobytes()) + 5
    places = [inside, *random.Random(0).sample(range(len(whole)), 25), *range(0, 300, 7), *range(-300, 0, 7)]
    refused = []
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert_same(load_checkpoint(path), model)  # padding, or the archive's dates
        except ValueError as error:
            refused.append((place, str(error)))
    assert len(refused) > len(places) / 4
    assert all(f"flipped.{suffix}: " in message for _, message in refused)
    assert "wrong checksum" in dict(refused)[inside]


def test_safetensors_of_a_newer_version_are_named(tmp_path: Path) -> None:
    save_file(public_state(random_model(), buffers=False), tmp_path / "new.safetensors", {"version": "99"})
    with pytest.raises(ValueError, match=r"new\.safetensors: written by a newer masked_swin .*upgrade"):
        load_checkpoint(tmp_path / "new.safetensors")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_failed_save_leaves_what_was_there(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"model.{suffix}"
    model = random_model()
    save_checkpoint(model, path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full_disk)
            with pytest.raises(OSError, match="No space left"):
                save_checkpoint(random_model(), path)
        assert os.listdir(tmp_path) == [path.name]
        assert_same(load_checkpoint(path), model)
    with pytest.raises(FileNotFoundError, match=r"no such folder: '.*no folder'"):
        save_checkpoint(model, tmp_path / "no folder" / path.name)
    with pytest.raises(NotADirectoryError, match=rf"not a folder: '.*{path.name}'"):
        save_checkpoint(model, path / path.name)
    with pytest.raises(ValueError, match="model must be a MaskedSwinIR, got str"):
        save_checkpoint("model", path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must end in \.pth, \.pt or \.safetensors"):
        save_checkpoint(model, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_full_disk_is_an_oserror_that_names_the_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    model = random_model()
    save_checkpoint(model, path)
    with file_size_limit(path.stat().st_size // 2), pytest.raises(OSError, match=rf"too large.*model\.{suffix}"):
        save_checkpoint(random_model(), path)
    assert os.listdir(tmp_path) == [path.name]
    assert_same(load_checkpoint(path), model)
