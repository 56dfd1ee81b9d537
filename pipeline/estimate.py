"""How long, how much disk and how many GPU hours a run will take, from what earlier runs took."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pipeline.jobs import Job, Run
from pipeline.runfile import ExecutorConfig, demands
from pipeline.standing import Standing, records_in
from siambench.config import read_yaml
from siambench.errors import UserError
from siambench.jobs import state_path
from siambench.record import Record


@dataclass(frozen=True)
class Estimate:
    """Of one job.

    Attributes:
        seconds: of its trials that are left, one after the other; None where nothing like it was
            timed.
        gpus: that it takes.
        disk_bytes: that its backbone, checkpoints and curves will take.
    """

    seconds: float | None
    gpus: int
    disk_bytes: int


class Earlier:
    """What is known of earlier runs: those in the folder beside the run's, and its own."""

    def __init__(self, run: Run) -> None:
        self._run = run
        beside = sorted(p for p in run.root.parent.glob("*") if (p / "records").is_dir())
        self._records = records_in(beside)
        self._pretrained = [p for d in beside for p in d.glob("pretrain/*/monitor.jsonl")]
        self._gpu = _has_gpu(run.file.executor)
        self._archs = {job.backbone: _arch(job) for job in reversed(run.jobs) if _arch(job)}

    def estimate(self, job: Job, standing: Standing) -> Estimate:
        """Time, GPUs and disk of what is left of ``job``."""
        executor = self._run.file.executor
        wanted = demands(executor, job.verb)
        if executor.kind == "here":
            gpus = int(self._gpu and job.verb != "convert")
        else:
            gpus = int(wanted["gpus"] * wanted["nodes"])
        arch = self._archs.get(job.backbone, "")
        if not standing.left:
            return Estimate(0.0, gpus, 0)
        if job.verb == "convert":
            return Estimate(2.0, 0, _bytes(arch))
        if job.verb == "pretrain":  # weights and momentum, the last two kept
            return Estimate(self._pretraining(job), gpus, 4 * _bytes(arch))
        per_trial = self._per_trial(job, arch)
        seconds = None if per_trial is None else standing.left * per_trial
        return Estimate(seconds, gpus, 0)

    def _per_trial(self, job: Job, arch: str) -> float | None:
        """Median seconds of the records most like the job: benchmark, then settings and architecture."""

        def like(record: Record) -> tuple[bool, bool]:
            same = {k: v for k, v in record.protocol.items() if k in job.values}
            return all(job.values[k] == v for k, v in same.items()), record.backbone["arch"] == arch

        alike = [
            (like(r), r.seconds)
            for r in self._records
            if r.benchmark == job.benchmark and ("gpu" in r.hardware) == self._gpu
        ]
        alike = [(how, seconds) for how, seconds in alike if how[1] or not arch]
        if not alike:
            return None
        most = max(how for how, _ in alike)
        return median(seconds for how, seconds in alike if how == most)

    def _pretraining(self, job: Job) -> float | None:
        """From this run's own epochs, or those of an earlier run with the same settings but for the epochs."""
        from reports.collect import read_monitor

        own = Path(job.config.out) / "monitor.jsonl"
        named = [p for p in self._pretrained if p.parent.name == job.backbone and _alike(p, job)]
        for path in [own, *named]:
            if path.is_file() and (epochs := read_monitor(path)):
                done = epochs[-1]["epoch"] if path == own else 0
                each = median(float(e.get("seconds", 0.0)) for e in epochs)
                return each * (job.config.epochs - done)
        return None


def _alike(monitor: Path, job: Job) -> bool:
    """Whether the pre-training that wrote ``monitor`` has the job's settings, as its run folder kept them."""
    root = monitor.parent.parent.parent
    try:
        made = read_yaml(state_path(root, job.name).with_suffix(".yaml"))
    except UserError:
        return False
    free = {"out", "data", "device", "workers", "epochs"}
    return isinstance(made, dict) and {k: v for k, v in made.items() if k not in free} == {
        k: v for k, v in job.values.items() if k not in free
    }


def _has_gpu(executor: ExecutorConfig) -> bool:
    if executor.kind == "slurm":
        return executor.gpus > 0
    import torch

    return torch.cuda.is_available()


def _arch(job: Job) -> str:
    """The architecture of a job's backbone, as far as its settings or its file say."""
    from siambench.backbone import read_meta

    if job.verb == "pretrain":
        return str(job.config.arch)
    if job.verb == "convert":
        kind, _, name = job.config.source.partition(":")
        return name if kind in ("random", "torchvision") else ""
    try:
        return read_meta(job.config.backbone).arch
    except (UserError, OSError):
        return ""


def _bytes(arch: str) -> int:
    """Bytes of a backbone's weights; 0 where the architecture is not known."""
    from siambench.resnet import expected_shapes

    try:
        shapes = expected_shapes(arch).values()
    except UserError:
        return 0
    return sum(4 * _product(shape) for shape in shapes)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
