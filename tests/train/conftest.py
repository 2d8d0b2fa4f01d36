"""What the tests of the trainer and its commands share."""

from pathlib import Path

import pytest
import torch

from tests.support.image_files import write_photos


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")
