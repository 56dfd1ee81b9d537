"""What several tests of detection need."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(scenes: Path, tmp_path: Path) -> Path:
    """A copy of VOC2007 and COCO that a test may spoil."""
    shutil.copytree(scenes / "VOCdevkit" / "VOC2007", tmp_path / "VOCdevkit" / "VOC2007")
    shutil.copytree(scenes / "coco", tmp_path / "coco")
    return tmp_path
