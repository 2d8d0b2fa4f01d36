"""The trainer runs without the packages of the command line."""

import subprocess
import sys
from pathlib import Path

BLOCKED = ("jsonargparse", "tqdm", "PIL", "pyvips", "yaml", "jinja2", "skimage", "matplotlib", "deepinv", "spandrel")

SCRIPT = """
import sys

sys.modules |= dict.fromkeys(BLOCKED)  # importing one raises ModuleNotFoundError
import numpy as np
from masked_swin.train import data
from masked_swin.train.config import TrainConfig
from masked_swin.train.loop import Trainer

images = [np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)]
import masked_swin.train.run_data as run_data, masked_swin.train.loop as loop
"""

TRAINING = """
import types
kinds = types.SimpleNamespace
held = kinds(images=images, names=["random"], notes=[], skipped=[], checksum="1 image", storage="memory")
loop.load_data = lambda config, folder: run_data.RunData(held, held, ["images of a script"])
config = TrainConfig(output=sys.argv[1], system="dncnn", options={"features": 4, "depth": 3}, patch_size=16,
                     batch_size=2, iterations=3, device="cpu", noise="speckle:2,gaussian:sigma=5-25")
trainer = Trainer(config)
assert trainer.run() == "finished"
assert trainer.best["step"] == 3
print(*sorted(path.name for path in trainer.folder.iterdir()))
"""


def run(script: str, *arguments: str) -> str:
    code = f"BLOCKED = {BLOCKED!r}\n{script}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_trainer_imports_and_trains_without_them(tmp_path: Path) -> None:
    """Images come from a script here: to read files takes some of these packages."""
    files = run(SCRIPT + TRAINING, str(tmp_path / "run"))
    assert files.split() == ["best.pth", "config.yaml", "latest.pt", "log.jsonl", "run.lock", "weights.pth"]
    assert '"system": "dncnn"' in (tmp_path / "run" / "config.yaml").read_text()  # JSON, which YAML programs read
