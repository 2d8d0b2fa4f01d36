"""Notes on what the processor lacks."""

import pytest
import torch

from masked_swin import kernels
from masked_swin.train.messages import note_kernels


@pytest.mark.parametrize(
    ("instruction_set", "precision", "noted"),
    [("avx2", "bfloat16", True), ("avx2", "float32", False), ("avx512_bf16", "bfloat16", False)],
)
def test_bfloat16_without_its_products_is_noted_once(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    instruction_set: str,
    precision: str,
    noted: bool,
) -> None:
    library = kernels.CPU_LIBRARY._replace(why_not=None, instruction_set=instruction_set)
    monkeypatch.setattr(kernels, "CPU_LIBRARY", library)
    note_kernels(torch.device("cpu"), precision)
    assert ("no bfloat16 products; the kernels compute in float32" in capsys.readouterr().err) == noted
