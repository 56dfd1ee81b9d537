"""Conversion: any known checkpoint in, a backbone file out; a backbone in, other libraries' files out.

In memory, without files: ``convert.read_checkpoint(path)`` and ``convert.to_detectron2(state)``.
"""

from typing import Any

from siambench.config import Verb

VERBS = {
    "convert": Verb(
        name="convert",
        help="Turn any checkpoint into a backbone file, or into torchvision, timm or detectron2 weights",
        config="convert.config:ConvertConfig",
        run="convert.run:run",
        positional=("source",),
    )
}


def __getattr__(name: str) -> Any:
    if name == "read_checkpoint":
        from siambench.checkpoints.source import read_checkpoint

        return read_checkpoint
    if name == "to_detectron2":
        from siambench.checkpoints.names import to_detectron2

        return to_detectron2
    raise AttributeError(f"module 'convert' has no attribute {name!r}")
