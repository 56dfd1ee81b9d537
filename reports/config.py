"""What ``siambench report`` takes."""

from dataclasses import dataclass, field


@dataclass
class ReportConfig:
    """A report over run folders.

    Args:
        dirs: run folders: records are read from DIR/records, training curves from DIR/pretrain.
        out: the Markdown file to write; plots go beside it. Default is report.md in the first DIR.
        order: backbone names in the order of the rows; those not named follow by name.
    """

    dirs: list[str]
    out: str = ""
    order: list[str] = field(default_factory=list)
