"""What the pipeline's own verbs take."""

from dataclasses import dataclass


@dataclass
class RunConfig:
    """How to do a run.

    Args:
        file: a run file (FILE.yaml), or the name of a shipped one: demo, quick-check, simsiam-paper,
            mmselfsup-page, ablate-stopgrad, relatives-demo.
        root: folder for everything the run makes; "runs/NAME" by default.
        data: where the data sets are; overrides the run file's.
        device: auto, cpu, cuda or cuda:N.
        workers: loader processes; -1 for a quarter of the cores on a CPU, one per core (at most 16)
            beside a GPU.
    """

    file: str
    root: str = ""
    data: str = ""
    device: str = "auto"
    workers: int = -1


@dataclass
class StatusConfig:
    """How a run stands.

    Args:
        dir: the run folder.
        watch: look again every few seconds until it ends (or Ctrl-C); by default on a terminal.
    """

    dir: str
    watch: bool | None = None


@dataclass
class DoctorConfig:
    """What this machine can do.

    Args:
        data: folder of data sets; each that is found there is named and its images counted.
    """

    data: str = ""
