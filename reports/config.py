"""What ``siambench report`` takes."""

from dataclasses import dataclass, field


@dataclass
class ReportConfig:
    """A report over run folders.

    Args:
        dirs: run folders: records are read from DIR/records, training curves from DIR/pretrain.
        out: the file to write; plots go beside it, and every format has its own ending. Default is
            report.md in the first DIR.
        format: what to write, of md, html, csv and latex, with commas between.
        order: backbone names in the order of the rows; those not named follow by name.
        compare: two backbone names, A B: a table of their differences, with intervals and tests.
    """

    dirs: list[str]
    out: str = ""
    format: list[str] = field(default_factory=lambda: ["md", "html"])
    order: list[str] = field(default_factory=list)
    compare: tuple[str, str] = ("", "")
