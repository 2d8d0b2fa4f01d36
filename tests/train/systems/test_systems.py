"""Systems by name and as classes of one's own: options, checkpoints, and every reason to refuse."""

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig, denoise, save_checkpoint
from masked_swin.kernels import gaussian_noise
from masked_swin.train.config import TrainConfig
from masked_swin.train.systems import SYSTEMS, load_network, make_network, resolve_options, save_network
from masked_swin.train.weights import fingerprint, load_weights


class Mine(nn.Module):
    """A denoiser of somebody's own."""

    multiple = 4

    def __init__(self, features: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, features, 1), nn.Conv2d(features, channels, 1))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] % 4 == x.shape[3] % 4 == 0
        out: Tensor = self.body(x)
        return out * self.scale


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("own_networks")
    module.Mine, module.helper = Mine, len  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_networks", module)
    return "own_networks:Mine"


def tiny(name: str, **options: object) -> dict[str, object]:
    return resolve_options(name, "tiny", options)


def test_options_are_complete_and_the_preset_only_fills_them_in() -> None:
    config = TrainConfig(system="dncnn", preset="tiny", options={"depth": 5})
    assert config.options == {"channels": 3, "features": 32, "depth": 5}
    again = TrainConfig(system="dncnn", options=config.options)  # as config.yaml has them
    assert again.options == config.options
    assert TrainConfig(system="rnan").options == {"channels": 3, "features": 64, "blocks": 10}


def test_swinir_is_the_network_with_both_masks_off() -> None:
    config = TrainConfig(system="swinir")
    assert config.network.input_mask is None
    assert config.network.attention_mask is None
    assert config.network.embed_dim == ModelConfig().embed_dim


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"system": "dncn"}, "system 'dncn': expected one of masked_swinir, swinir, dncnn, .* as module:Class"),
        ({"system": "dncnn", "preset": "small"}, "preset 'small': system dncnn has published and tiny"),
        ({"system": "dncnn", "options": {"dept": 3}}, "unknown option 'dept' of system dncnn; did you mean depth"),
        (
            {"system": "dncnn", "options": {"depth": 2.5}},
            r"options\.depth: expected a whole number",
        ),
        ({"system": "dncnn", "options": {"depth": 1}}, "depth: expected at least 2"),
        ({"system": "restormer", "options": {"blocks": [1, 2]}}, "blocks: expected four numbers"),
        ({"system": "restormer", "options": {"blocks": 3}}, r"options\.blocks: expected a list of whole numbers"),
        ({"system": "restormer", "options": {"heads": [5, 1, 1, 1]}}, "heads: 5 do not divide the 48 channels"),
        ({"system": "restormer", "options": {"expansion": 0}}, r"options\.expansion: expected a number above 0, got 0"),
        ({"system": "rnan", "options": {"blocks": 1}}, "blocks: expected at least 2"),
        ({"system": "swinir", "options": {"depth": 3}}, "options: those of other systems"),
        ({"system": "dncnn", "network": ModelConfig(embed_dim=12)}, "network: the fields of masked_swinir and swinir"),
        ({"system": "dncnn", "backend": "cpu"}, "backend: one of the masked SwinIR's kernels"),
    ],
)
def test_what_a_system_does_not_take_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SYSTEMS)
def test_checkpoints_hold_all_that_makes_the_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_network(name, tiny(name, channels=1))
    for buffer in model.buffers():  # statistics of a batch norm
        buffer.add_(1)
    path = tmp_path / "weights.pth"
    save_network(model.eval(), path)
    loaded = load_network(path)
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.config.in_channels == 1
    assert fingerprint(loaded) == fingerprint(model)
    image = torch.rand(1, 17, 22)
    assert torch.equal(denoise(loaded, image), denoise(model, image))


def test_other_files_are_those_of_the_masked_swinir(tmp_path: Path) -> None:
    network = MaskedSwinIR(ModelConfig(embed_dim=12, depths=(1,), num_heads=(2,), window_size=4))
    for name in ("a.pth", "a.safetensors"):
        save_checkpoint(network, tmp_path / name)
        loaded = load_network(tmp_path / name)
        assert isinstance(loaded, MaskedSwinIR)
        assert fingerprint(loaded) == fingerprint(network)
    (tmp_path / "damaged.pth").write_bytes(b"PK\3\4 no")
    with pytest.raises(ValueError, match=r"damaged\.pth"):
        load_network(tmp_path / "damaged.pth")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_network(make_network("dncnn", tiny("dncnn")), path)
    content = torch.load(path)
    torch.save(content | {"options": tiny("dncnn", depth=6)}, tmp_path / "deeper.pth")
    with pytest.raises(ValueError, match=r"deeper\.pth: the weights do not fit system dncnn .*depth"):
        load_network(tmp_path / "deeper.pth")
    torch.save(content | {"version": 2}, tmp_path / "newer.pth")
    with pytest.raises(ValueError, match=r"newer\.pth: written by a newer masked_swin"):
        load_network(tmp_path / "newer.pth")


def test_a_class_of_ones_own(own: str, tmp_path: Path) -> None:
    model = make_network(own, {"features": 5})
    assert model.config.window_size == 4
    assert model(torch.rand(1, 3, 6, 9)).shape == (1, 3, 6, 9)
    path = tmp_path / "weights.pth"
    save_network(model, path)
    assert fingerprint(load_weights(f"{own}@{path}")) == fingerprint(model)
    with pytest.raises(ValueError, match="a class of somebody's own; name it: --model own_networks:Mine@"):
        load_weights(str(path))
    with pytest.raises(ValueError, match="holds weights of system own_networks:Mine, not of own_networks:Other"):
        load_weights(f"own_networks:Other@{path}")


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        ("nowhere_to_be_found:Net", {}, "no module nowhere_to_be_found; its folder belongs into PYTHONPATH"),
        ("own_networks:Yours", {}, "module own_networks has no Yours"),
        ("own_networks:helper", {}, "expected a class of torch.nn.Module, got <built-in function len>"),
        ("own_networks:Mine", {"width": 3}, r"the class does not take options \{'width': 3\}"),
    ],
)
def test_classes_that_are_no_network(own: str, system: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_network(system, options)


def test_a_network_that_changes_the_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_network("dncnn", tiny("dncnn"))
    model.network = nn.MaxPool2d(2)
    with pytest.raises(ValueError, match=r"system dncnn: expected the shape of its input, \(1, 3, 8, 8\), got"):
        model(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        model(torch.rand(1, 1, 8, 8))


def test_training_noise_is_that_of_the_masked_swinir(own: str) -> None:
    model = make_network(own, {})
    model.network = nn.Identity()
    image, key = torch.rand(2, 3, 8, 8), MaskKey.make(7, 3, 2)
    assert torch.equal(model(image, key=key, noise_sigma=0.2), gaussian_noise(image, 0.2, *key))
    with pytest.raises(ValueError, match="noise_sigma needs key="):
        model(image, noise_sigma=0.2)


def test_tiles_give_what_the_whole_image_gives() -> None:
    torch.manual_seed(0)
    model = make_network("dncnn", tiny("dncnn")).eval()
    image = torch.rand(3, 150, 130)
    torch.testing.assert_close(denoise(model, image, tile=96), denoise(model, image), rtol=1e-4, atol=1e-5)
