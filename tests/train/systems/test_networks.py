"""The networks of other systems: their size, their parts, and that they are what the papers and libraries have."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from masked_swin import PRESETS, MaskedSwinIR
from masked_swin.train.systems import SYSTEMS, make_network, resolve_options
from masked_swin.train.systems.dncnn import DnCNN, DnCNNOptions
from masked_swin.train.systems.restormer import Restormer, RestormerOptions
from masked_swin.train.systems.ridnet import _FeatureAttention
from masked_swin.train.systems.rnan import _NonLocal

# RIDNet's paper and its code: 1,499K. Restormer's paper: 26.1M; its code: 26,126,644 with the biases of the norms.
# RNAN: the count of its public code. DnCNN's paper gives none; 17 layers of 64: the sum in the test below.
PUBLISHED = {"dncnn": 558_403, "ridnet": 1_499_347, "rnan": 8_959_555, "restormer": 26_111_668}
TINY = {"dncnn": 48_163, "ridnet": 106_781, "rnan": 172_019, "restormer": 799_737}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def network(name: str, preset: str = "tiny", **options: object) -> nn.Module:
    return make_network(name, resolve_options(name, preset, options)).network


def test_every_system_is_counted() -> None:
    assert set(PUBLISHED) == set(TINY) == set(SYSTEMS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        assert count(network(name, "published")) == PUBLISHED[name]
        assert count(network(name, "tiny")) == TINY[name]


def test_parameters_of_the_swin_systems() -> None:
    assert count(MaskedSwinIR(PRESETS["published"])) == count(MaskedSwinIR(PRESETS["swinir"])) == 824_118
    assert count(MaskedSwinIR(PRESETS["tiny"])) == 45_492


def test_the_sum_of_dncnn() -> None:
    ends = 3 * 64 * 9 + 64 + 64 * 3 * 9 + 3
    assert PUBLISHED["dncnn"] == ends + 15 * (64 * 64 * 9 + 2 * 64)


def test_the_biases_of_restormers_norms_are_all_that_its_denoiser_lacks() -> None:
    channels = [48] * 4 + [96] * 6 + [192] * 6 + [384] * 8 + [192] * 6 + [96] * 6 + [96] * 4 + [96] * 4
    assert PUBLISHED["restormer"] + 2 * sum(channels) == 26_126_644


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_size_of_image_grey_and_colour(name: str) -> None:
    for channels, (height, width) in ((3, (16, 24)), (1, (17, 13)), (3, (3, 5))):
        model = make_network(name, resolve_options(name, "tiny", {"channels": channels})).eval()
        out = model(torch.rand(2, channels, height, width))
        assert out.shape == (2, channels, height, width)
        assert out.isfinite().all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_parameter_has_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = network(name, "tiny")
    for parameter in model.parameters():  # some layers begin with zeros
        nn.init.normal_(parameter, std=0.1)
    model(torch.rand(2, 3, 16, 16)).square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", ["ridnet", "rnan", "restormer"])
def test_networks_predict_a_difference(name: str) -> None:
    model = network(name)
    nn.init.zeros_(model.last.weight)
    if model.last.bias is not None:
        nn.init.zeros_(model.last.bias)
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(model(image), image)


def test_a_pixel_that_is_non_local_sees_all_pixels() -> None:
    torch.manual_seed(0)
    layer = _NonLocal(6)
    image = torch.randn(2, 6, 4, 5, requires_grad=True)
    assert torch.equal(layer(image), image)  # as it begins
    nn.init.normal_(layer.out.weight)
    theta, phi, g = (part(image).flatten(2) for part in (layer.theta, layer.phi, layer.g))
    weights = (theta.transpose(1, 2) @ phi).softmax(dim=-1)  # (B, N, N)
    expected = image + layer.out((g @ weights.transpose(1, 2)).view(2, 3, 4, 5))
    torch.testing.assert_close(layer(image), expected, rtol=1e-5, atol=1e-5)
    layer(image)[0, :, 0, 0].sum().backward()
    assert (image.grad[0].abs().sum(0) > 0).all()


def test_feature_attention_weights_channels_by_their_means() -> None:
    torch.manual_seed(0)
    layer = _FeatureAttention(8, 4)
    image = torch.randn(2, 8, 3, 5)
    hidden = F.linear(image.mean((2, 3)), layer.squeeze.weight.flatten(1), layer.squeeze.bias).relu()
    weights = F.linear(hidden, layer.excite.weight.flatten(1), layer.excite.bias).sigmoid()
    torch.testing.assert_close(layer(image), image * weights[:, :, None, None])


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give ours the random weights of theirs, matched in the order of the layers."""
    for parameter in theirs.parameters():
        if parameter.dim() == 1:  # norms and biases begin with ones and zeros
            nn.init.uniform_(parameter, 0.5, 1.5)
    mine, other = list(ours.parameters()), list(theirs.parameters())
    assert [tuple(parameter.shape) for parameter in mine] == [tuple(parameter.shape) for parameter in other]
    with torch.no_grad():
        for a, b in zip(mine, other, strict=True):
            a.copy_(b)


@pytest.mark.slow
def test_restormer_computes_what_deepinv_does() -> None:
    """deepinv is not in the environment of `make setup`: `pip install deepinv` runs this."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("deepinv.models.restormer", reason="deepinv is not installed")
    torch.manual_seed(0)
    sizes = {"blocks": (1, 2, 1, 2), "heads": (1, 2, 2, 4), "refinement": 1}
    ours = Restormer(RestormerOptions(features=8, **sizes)).eval()
    theirs = library.Restormer(
        dim=8, num_blocks=(1, 2, 1, 2), heads=(1, 2, 2, 4), num_refinement_blocks=1, pretrained=None
    ).eval()
    by_stage = {
        "first": "patch_embed",
        **{f"encoders.{level}": name for level, name in enumerate(("encoder_level1", "encoder_level2"))},
        **{"encoders.2": "encoder_level3", "encoders.3": "latent"},
        **{f"downs.{level}": name for level, name in enumerate(("down1_2", "down2_3", "down3_4"))},
        **{f"ups.{level}": name for level, name in enumerate(("up4_3", "up3_2", "up2_1"))},
        **{"reductions.0": "reduce_chan_level3", "reductions.1": "reduce_chan_level2"},
        **{f"decoders.{level}": f"decoder_level{3 - level}" for level in range(3)},
        **{"refinement": "refinement", "last": "output"},
    }
    for mine, other in by_stage.items():
        same_weights(ours.get_submodule(mine), theirs.get_submodule(other))
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_dncnn_computes_what_spandrel_does() -> None:
    """spandrel is not in the environment of `make setup`: `pip install spandrel` runs this."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("spandrel.architectures.DnCNN", reason="spandrel is not installed")
    torch.manual_seed(0)
    theirs = library.DnCNN(in_nc=3, out_nc=3, nc=8, nb=5).eval()
    ours = DnCNN(DnCNNOptions(features=8, depth=5)).eval()
    for layer in theirs.model:  # it has biases before its norms too, without effect
        if isinstance(layer, nn.Conv2d) and layer is not theirs.model[0] and layer is not theirs.model[-1]:
            layer.bias = None
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-5  # PyTorch's, instead of 1e-4
    same_weights(ours, theirs)
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-5, atol=1e-5)
