"""A backend as another package would add it: pytest's `-p tests.support.toy_backend` puts it into the registry."""

from masked_swin.kernels.backends import REGISTRY, Backend, collect
from masked_swin.kernels.window_attention import AttentionInputs

_reference = next(backend for backend in REGISTRY["window_attention"] if backend.name == "reference")


def _why_not(inputs: AttentionInputs) -> str | None:
    if inputs.visible is not None and inputs.visible.heads is not None:
        return "a toy has no per-head masks"
    return None


BACKENDS = [Backend("window_attention", "toy", lambda inputs: _reference.run(inputs), _why_not)]

collect(BACKENDS)
