"""`masked-swin export`: the ONNX file computes what the network does, in onnxruntime, or is not written."""

from pathlib import Path

import pytest
import torch

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig, save_checkpoint
from masked_swin.train.cli import main
from masked_swin.train.commands import export as command

onnxruntime = pytest.importorskip("onnxruntime")

CONFIG = ModelConfig(embed_dim=12, depths=(2,), num_heads=(2,), window_size=4)


@pytest.fixture
def model(tmp_path: Path) -> MaskedSwinIR:
    model = MaskedSwinIR(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # far from a network that does nothing
    save_checkpoint(model, tmp_path / "model.pth")
    return model


def ran(path: Path, **inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(out)


def test_any_size_and_the_masks_of_a_key(model: MaskedSwinIR, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    arguments = ["export", str(path), "--model", str(tmp_path / "model.pth"), "--attention-mask", "random"]
    assert main(arguments) == 0
    for size, seed in (((9, 14), 1), ((20, 7), 2)):
        image, key = torch.rand(1, 3, *size), MaskKey.make(seed, 4, torch.tensor([11]))
        out = ran(path, image=image, seed=key.seed, draw=key.draw, sample=key.sample)
        torch.testing.assert_close(out, model(image, key=key), rtol=1e-5, atol=1e-4)
        assert not torch.allclose(out, model(image, attention_mask=False), atol=1e-4)


def test_one_size_without_masks(model: MaskedSwinIR, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    assert main(["export", str(path), "--model", str(tmp_path / "model.pth"), "--size", "9x14"]) == 0
    assert "differs from PyTorch by" in capsys.readouterr().out
    image = torch.rand(1, 3, 9, 14)
    torch.testing.assert_close(ran(path, image=image), model(image, attention_mask=False), rtol=1e-5, atol=1e-4)


def test_what_differs_is_not_written(
    model: MaskedSwinIR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.torch.onnx, "export", lambda *args, **options: args[2].write_bytes(b"graph"))
    monkeypatch.setattr(command, "_difference", lambda *args: float("nan"))
    arguments = ["export", str(tmp_path / "model.onnx"), "--model", str(tmp_path / "model.pth")]
    assert main(arguments) == 1
    assert "differs from PyTorch by nan; nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "model.pt"}, "must end in .onnx"),
        ({"--size": "9"}, "expected HxW, as 256x384, got '9'"),
        ({"--size": "0x9"}, "expected HxW"),
        ({"--model": "tiny"}, "a preset, an architecture without weights"),
    ],
)
def test_wrong_arguments_are_named(
    model: MaskedSwinIR, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    options = {"--model": str(tmp_path / "model.pth")} | changes
    output = tmp_path / options.pop("output", "model.onnx")
    assert main(["export", str(output), *(part for pair in options.items() for part in pair)]) != 0
    assert message in capsys.readouterr().err


def test_missing_packages_are_named(
    model: MaskedSwinIR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["export", str(tmp_path / "model.onnx"), "--model", str(tmp_path / "model.pth")]) == 1
    assert "install 'masked-swin[onnx]'" in capsys.readouterr().err
