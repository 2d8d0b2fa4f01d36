"""The registry: the choice of a backend, and every backend against the reference."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from masked_swin.kernels.backends import REGISTRY, Backend, backend_report, choose
from tests.support.attention_cases import relative_error
from tests.support.examples import all_examples, examples


def results(backend: Backend, inputs) -> list[Tensor]:
    """The result and, where there are any, the gradients of all tensors for a fixed cotangent."""
    out = [leaf for leaf in tree_leaves(backend.run(inputs)) if isinstance(leaf, Tensor)]
    leaves = [leaf for leaf in tree_leaves(tuple(inputs)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not any(tensor.requires_grad for tensor in out):
        return out
    cotangent = torch.linspace(-1, 1, out[0].numel()).view_as(out[0])
    grads = torch.autograd.grad((out[0] * cotangent).sum(), leaves, materialize_grads=True)
    return [*(tensor.detach() for tensor in out), *grads]


def backend_of(operation: str, name: str) -> Backend:
    return next(backend for backend in REGISTRY[operation] if backend.name == name)


@pytest.mark.parametrize(("operation", "name", "example"), all_examples())
def test_every_backend_computes_what_the_reference_does(operation, name, example):
    inputs = examples(operation)[example]
    found, expected = (results(backend_of(operation, n), inputs) for n in (name, "reference"))
    for value, exact in zip(found, expected, strict=True):
        assert (value.dtype, value.shape) == (exact.dtype, exact.shape)
        if value.is_floating_point():
            assert relative_error(value, exact) < 5e-5  # both round; a wrong kernel is off by far more
        else:
            assert torch.equal(value, exact)


def test_inputs_are_flat_for_operators():
    for operation in REGISTRY:
        for inputs in examples(operation).values():
            leaves, _ = tree_flatten(inputs.arguments()) if hasattr(inputs, "arguments") else ([], None)
            assert all(isinstance(leaf, (Tensor, int, float, bool, torch.dtype, type(None))) for leaf in leaves)


def test_the_first_that_can_run_is_taken_and_a_named_one_insisted_on(monkeypatch):
    inputs = examples("convolution")["3x3"]
    taken = []

    def backend(name, why_not=None, unavailable=None):
        run = lambda inputs: taken.append(name)  # noqa: E731
        return Backend("convolution", name, run, lambda inputs: why_not, lambda: unavailable)

    backends = [backend("far", unavailable="no such device"), backend("small", why_not="too large"), backend("slow")]
    monkeypatch.setitem(REGISTRY, "convolution", backends)
    choose("convolution", inputs, None).run(inputs)
    assert taken == ["slow"]
    with pytest.raises(ValueError, match="convolution cannot run: small: too large"):
        choose("convolution", inputs, "small")
    with pytest.raises(ValueError, match="has no backend 'fast'; it has far, small, slow"):
        choose("convolution", inputs, "fast")
    backends.pop()
    with pytest.raises(ValueError, match="cannot run: far: no such device; small: too large"):
        choose("convolution", inputs, None)
    assert ("convolution", "far", "no such device") in backend_report()
