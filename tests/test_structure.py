"""The house: imports point down, backends are sealed, no circle, and the tests stand on their own."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {"kernels": 0, "masked_swin": 1, "train": 2}
ALLOWED = {  # besides the standard library and the layers below
    "kernels": {"torch", "triton"},
    "masked_swin": {"torch", "safetensors"},
    "train": {
        *(
            "torch",
            "numpy",
            "scipy",
            "einops",
            "PIL",
            "pyvips",
            "skimage",
            "tqdm",
            "jsonargparse",
            "jinja2",
            "yaml",
            "triton",
        ),
        *("lpips", "onnxruntime"),
    },
}
BACKENDS = [folder.name for folder in (ROOT / "kernels").iterdir() if (folder / "__init__.py").exists()]
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
TESTS = sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name under which a file is imported: masked_swin.kernels.cpu for kernels/cpu/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "masked_swin" else ("masked_swin", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


def at_import(tree: ast.Module) -> list[ast.stmt]:
    """The statements that run when a module is imported: no functions, no `if TYPE_CHECKING`."""
    found, waiting = [], list(tree.body)
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(statement)
            waiting += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
    return found


def imported(path: Path, statements: list[ast.AST]) -> list[tuple[str, str | None]]:
    """(module, name or None) of every import; relative ones made absolute."""
    found: list[tuple[str, str | None]] = []
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in statements:
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(module, alias.name) for alias in node.names]
    return found


def layer_of(module: str) -> str:
    part = module.split(".")[1] if "." in module else ""
    return part if part in ("kernels", "train") else "masked_swin"


def all_imports(path: Path) -> list[tuple[str, str | None]]:
    return imported(path, list(ast.walk(ast.parse(path.read_text()))))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = path.relative_to(ROOT).parts[0]
    for module, name in all_imports(path):
        top = module.split(".")[0]
        if top != "masked_swin":
            assert top in sys.stdlib_module_names or top in ALLOWED[own], f"{own} may not import {top}"
            continue
        target = layer_of(module if f"{module}.{name}" not in MODULES else f"{module}.{name}")
        assert LAYERS[target] <= LAYERS[own], f"{own} is below {target}"
        if target == "kernels" and own != "kernels":
            assert module in ("masked_swin.kernels", "masked_swin"), f"{module} is not public"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_backends_are_sealed(path):
    """Only kernels/__init__.py imports backends, and no backend another."""
    _, *folders, file = path.relative_to(ROOT).parts
    if not folders and file == "__init__.py":
        return
    for module, name in all_imports(path):
        full = f"{module}.{name}" if f"{module}.{name}" in MODULES else module
        inside = full.split(".")[2:3] if full.startswith("masked_swin.kernels.") else []
        assert inside in ([], folders[:1]) or inside[0] not in BACKENDS, f"{path.name} imports {full}"


@pytest.mark.parametrize(
    "path", [p for p in sorted((ROOT / "kernels").glob("*.py")) if p.name != "__init__.py"], ids=lambda path: path.name
)
def test_no_contract_names_a_backend(path):
    """Neither in code nor in prose; "cpu" may be the device of PyTorch."""
    text = path.read_text()
    for device_of_pytorch in ('("cuda", "cpu")', '== "cpu"', '", "cpu", autocast)'):
        text = text.replace(device_of_pytorch, "")
    for name in BACKENDS:
        assert f'"{name}"' not in text
        assert not re.search(rf"\.{name}\b|\b{name.capitalize()}\b(?! )|_{name}\b", text)


def test_no_circle_of_imports():
    edges = {}
    for name, path in MODULES.items():
        statements: list[ast.AST] = [*at_import(ast.parse(path.read_text()))]
        targets = set()
        for module, item in imported(path, statements):
            full = f"{module}.{item}" if f"{module}.{item}" in MODULES else module
            if full in MODULES and full != name:
                targets.add(full)
        edges[name] = targets
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_and_benchmarks_stand_on_their_own(path):
    text = path.read_text()
    assert "sys." + "path" not in text
    assert path.name != "__init__.py" or "support/ptxsim" in str(path), "a package of tests may hide another"
    for module, name in all_imports(path):
        names = (module, f"{module}.{name}")
        assert not any(n.startswith("tests.") and n.rpartition(".")[2].startswith("test_") for n in names), module
        assert not (
            module.startswith("tests.") and "benchmarks" in str(path) and not module.startswith("tests.support")
        )
