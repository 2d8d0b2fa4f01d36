"""The GPU benchmarks, at tiny sizes and without a GPU: that what they compare is the same, and that they measure it."""

import importlib
import json

import pytest
import torch


def measured(module_name, path, **options):
    """All ways of a module's comparisons, uncompiled, in float32: checked, timed, written."""
    from benchmarks.gpu import measuring as gpu_measuring

    module = importlib.import_module(f"benchmarks.gpu.{module_name}")
    torch.manual_seed(0)
    rows = []
    for comparison in module.comparisons("cpu", batch=1, dtype=torch.float32, compiler=lambda f: f, **options):
        comparison, reasons = gpu_measuring.check(comparison)
        assert not reasons
        rows += gpu_measuring.measure(comparison, 2, warm_up=0)
    gpu_measuring.save(rows, path)
    return [gpu_measuring.line(row) for row in rows]


@pytest.mark.parametrize(
    ("module", "options", "ways"),
    [
        ("mlp", {"channels": (12,), "side": 8}, 3),
        ("swin_block", {"channels": (12,), "side": 16, "masked": (0.0, 0.75)}, 8),
        ("window_attention", {"masked": (0.5,), "side": 8}, 5),
    ],
)
def test_every_way_computes_the_same_and_is_timed(interpreted, tmp_path, module, options, ways):
    lines = interpreted(measured, module, tmp_path / "gpu.json", **options)
    assert len(lines) == 2 * ways
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["what"] for row in rows} == {"forward", "forward + backward"}
    assert all(row["us"] > 0 for row in rows)
    assert all(row["ratio"] == 1.0 for row in rows if row["way"] == "eager")


def test_a_way_that_computes_something_else_is_refused():
    from benchmarks.gpu.measuring import Comparison, Way, check

    x = torch.randn(4, requires_grad=True)
    ways = {"eager": Way(lambda: x.exp(), [x]), "other": Way(lambda: x.exp() + 0.1 * x.detach(), [x])}
    with pytest.raises(RuntimeError, match="the output of 'other' differs"):
        check(Comparison("exp", ways))
    ways["other"] = Way(lambda: x.exp() + x - x.detach(), [x])
    with pytest.raises(RuntimeError, match="gradient 0 of 'other' differs"):
        check(Comparison("exp", ways))
    check(Comparison("exp", ways, frozenset({"other"})))


def test_ways_of_others_may_be_missing_but_not_ours():
    from benchmarks.gpu.measuring import Comparison, Way, check

    def missing():
        raise NotImplementedError("not for head_dim 10")

    x = torch.randn(4, requires_grad=True)
    runs = Way(lambda: x.exp(), [x])
    comparison, reasons = check(Comparison("exp", {"eager": runs, "other": Way(missing, [x]), "masked_swin": runs}))
    assert list(comparison.ways) == ["eager", "masked_swin"]
    assert reasons == {"other": "not for head_dim 10"}
    with pytest.raises(NotImplementedError):
        check(Comparison("exp", {"eager": runs, "masked_swin": Way(missing, [x])}))
