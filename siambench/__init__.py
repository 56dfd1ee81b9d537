"""The ground floor: what two rooms or more need (backbones, records, data sets, progress, errors).

Importing this package is cheap: torch is loaded only when something that needs it is called.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_backbone"]


def __getattr__(name: str) -> Any:
    if name == "load_backbone":
        from siambench.checkpoints.source import load_backbone

        return load_backbone
    raise AttributeError(f"module 'siambench' has no attribute {name!r}")
