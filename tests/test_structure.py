"""Imports point down: train -> masked_swin -> masked_swin.kernels, and only public names cross."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {"kernels": 0, "masked_swin": 1, "train": 2}
ALLOWED = {  # besides the standard library and the layers below
    "kernels": {"torch", "triton"},
    "masked_swin": {"torch", "safetensors"},
    "train": {
        *("torch", "numpy", "einops", "PIL", "pyvips", "skimage", "tqdm", "jsonargparse", "jinja2", "yaml", "triton"),
        "lpips",
    },
}


def imports(path: Path) -> list[tuple[str, list[str]]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module or "", [alias.name for alias in node.names]))
    return found


def layer_of(module: str) -> str:
    part = module.split(".")[1] if "." in module else ""
    return part if part in ("kernels", "train") else "masked_swin"


@pytest.mark.parametrize(
    "path",
    sorted(p for layer in LAYERS for p in (ROOT / layer).rglob("*.py")),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_imports_point_down(path):
    import sys

    own = path.relative_to(ROOT).parts[0]
    for module, names in imports(path):
        top = module.split(".")[0]
        if top != "masked_swin":
            assert top in sys.stdlib_module_names or top in ALLOWED[own], f"{own} may not import {top}"
            continue
        target = layer_of(module)
        if target == "masked_swin" and any(name in ("kernels", "train") for name in names):
            target = next(name for name in names if name in ("kernels", "train"))
        assert LAYERS[target] <= LAYERS[own], f"{own} is below {target}"
        if target == "kernels" and own != "kernels":
            assert module in ("masked_swin.kernels", "masked_swin"), f"{module} is not public"
