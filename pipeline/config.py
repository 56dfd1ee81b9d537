"""The run command's options, and the run file: what to compare, on which benchmarks."""

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from siambench.config import read_yaml
from siambench.errors import UserError


@dataclass
class RunConfig:
    """How to do a run.

    Args:
        file: a run file (FILE.yaml), or the name of a shipped one: demo, demo-long.
        root: folder for everything the run makes; "runs/NAME" by default.
        data: where the data sets are; overrides the run file's.
        device: auto, cpu, cuda or cuda:N.
        workers: loader processes; -1 for a quarter of the cores on a CPU, one per core (at most 8)
            beside a GPU.
    """

    file: str
    root: str = ""
    data: str = ""
    device: str = "auto"
    workers: int = -1


@dataclass
class RunFile:
    """A run file.

    Attributes:
        name: of the run; its folder is runs/NAME unless --root says otherwise.
        data: folder of the data sets; "" for ROOT/data.
        digit_scenes: arguments of `siambench data make digit-scenes`, made in ``data`` first; or None.
        backbones: name to one of {pretrain: {preset, data, ...}}, {checkpoint: PATH, ...} (anything
            `siambench convert` reads, with its options), {backbone: PATH}.
        benchmarks: each {verb, preset, data, ...}, ``data`` relative to the data folder.
        trials: repetitions of each benchmark that does not say its own.
        path: where the file was read from.
    """

    name: str
    backbones: dict[str, dict[str, Any]]
    benchmarks: list[dict[str, Any]]
    data: str = ""
    digit_scenes: dict[str, Any] | None = None
    trials: int = 1
    path: Path = field(default_factory=Path)


def shipped() -> dict[str, Path]:
    """Run files that come with siambench, by name."""
    folder = Path(str(resources.files("pipeline"))) / "runs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_run_file(name: str) -> RunFile:
    """Read a run file by path or shipped name.

    Raises:
        UserError: there is none, or it is not a run file.
    """
    path = Path(name)
    if not path.is_file():
        if name not in shipped():
            raise UserError(
                f"run file {name!r} does not exist and is not a shipped one ({', '.join(shipped())})"
            )
        path = shipped()[name]
    content = read_yaml(path)
    try:
        run = RunFile(**content, path=path)
    except TypeError as error:
        text = str(error).replace("RunFile.__init__()", "it")
        raise UserError(f"{path} is not a run file: {text}") from None
    for field_name, kind in (("backbones", dict), ("benchmarks", list)):
        if not isinstance(getattr(run, field_name), kind) or not getattr(run, field_name):
            raise UserError(f"{path}: {field_name} must be a non-empty {kind.__name__}")
    return run
