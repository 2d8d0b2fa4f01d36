"""doctor: names what runs and why the rest does not, and finds a backend that computes something wrong."""

import json
import re
import sys

import pytest
import torch

from masked_swin.kernels import CPU_LIBRARY, backend_report, backends
from masked_swin.train import __main__ as entry
from masked_swin.train.cli import main
from masked_swin.train.commands import doctor
from masked_swin.train.commands.self_test import TOLERANCE


def test_names_versions_processor_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--seconds", "0"]) == 0
    out = capsys.readouterr().out
    for word in (
        "python",
        torch.__version__,
        "masked_swin",
        "threads",
        "cores",
        "instructions",
        "bf16 dot",
        "GiB free",
    ):
        assert word in out
    for operation, name, why_not in backend_report():
        line = next(line for line in out.splitlines() if line.split()[:2] == [operation, name])
        assert line.endswith("ready" if why_not is None else why_not)
    assert "self-test" not in out


def test_self_test_measures_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(["--seconds", "0.01"]) == 0
    out = capsys.readouterr().out.partition("self-test")[2]
    for operation, name, why_not in backend_report():
        lines = [line for line in out.splitlines() if line.split()[:2] == [operation, name]]
        assert bool(lines) == (why_not is None)
        for line in lines:
            if "not tested" in line:  # it can run, but takes other inputs
                assert f"not tested: {operation} cannot run: {name}: " in line
                continue
            device, error, milliseconds, ratio = line.split()[2:]
            assert device in ("cpu", "cuda")
            if operation in ("random_words", "token_mask", "visible_tokens"):  # whole numbers
                assert float(error) == 0
            else:
                assert 0 < float(error) < TOLERANCE
            assert float(milliseconds) > 0
            assert ratio.endswith("x")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(["--seconds", "0", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["versions"]["torch"] == torch.__version__
    assert [tuple(backend.values()) for backend in printed["backends"]] == backend_report()
    assert printed["self_test"] == []


def test_self_test_finds_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Right output, gradients that miss one part in a hundred."""
    registered = backends.REGISTRY["swin_block"]
    right = next(backend for backend in registered if backend.name == "composed")

    def run(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        out = right.run(inputs)
        return out.detach() + 0.99 * (out - out.detach())

    wrong = [right._replace(run=run) if backend is right else backend for backend in registered]
    monkeypatch.setitem(backends.REGISTRY, "swin_block", wrong)
    assert doctor.run(["--seconds", "0.01"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line]
    assert [line.split()[:2] for line in lines] == [["swin_block", "composed"]]


@pytest.mark.skipif(not CPU_LIBRARY.loaded, reason="the kernels were not built")
def test_a_backend_that_cannot_run_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registered = backends.REGISTRY["swin_block"]
    away = [registered[0]._replace(unavailable=lambda: "it is away"), *registered[1:]]
    monkeypatch.setitem(backends.REGISTRY, "swin_block", away)
    assert doctor.run(["--seconds", "0"]) == 0
    assert "cannot run: it is away" in capsys.readouterr().out


def test_without_the_packages_of_the_extra_doctor_runs_and_the_rest_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("jsonargparse", "PIL", "pyvips", "tqdm", "skimage", "yaml", "jinja2"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith("masked_swin.train.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", ["masked-swin", "doctor", "--seconds", "0"])
    assert entry.main() == 0
    assert "versions" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["masked-swin", "train"])
    assert entry.main() == 1
    assert re.search(r"the package \w+ is missing; install 'masked-swin\[train\]'", capsys.readouterr().err)
