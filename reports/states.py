"""Why a cell is empty: how the jobs of the run folders stand."""

from collections.abc import Sequence

from reports.markdown import MISSING, code, escape
from siambench.jobs import JobState

# Of several jobs for one cell (several run folders) the one that says most.
_TELLING = ("running", "failed", "lost", "interrupted", "queued", "waiting", "done")
_BROKEN = ("failed", "lost", "interrupted")


class States:
    """The jobs, by what they are for, and the footnotes that tell why some broke.

    Args:
        jobs: of all run folders.
    """

    def __init__(self, jobs: Sequence[JobState]) -> None:
        order = {state: i for i, state in enumerate(_TELLING)}
        known = sorted(
            (job for job in jobs if job.backbone), key=lambda j: order.get(j.state, len(order))
        )
        self._jobs: dict[tuple[str, str], JobState] = {}
        for job in known:
            self._jobs.setdefault((job.benchmark, job.backbone), job)
        self.backbones = list(dict.fromkeys(job.backbone for job in jobs if job.backbone))
        self.benchmarks = list(dict.fromkeys(job.benchmark for job in jobs if job.benchmark))
        self._notes: dict[JobState, int] = {}

    def of(self, benchmark: str, backbone: str) -> JobState | None:
        """The job whose state explains a cell without a record; None where there is none.

        What waits for a backbone that could not be made has the reason of that.
        """
        own = self._jobs.get((benchmark, backbone))
        made_by = self._jobs.get(("", backbone))
        begun = own is not None and own.state not in ("waiting", "queued")
        return made_by if made_by and made_by.state in _BROKEN and not begun else own

    def cell(self, benchmark: str, backbone: str) -> str:
        """The text of a cell without a record; a broken job's has a footnote."""
        job = self.of(benchmark, backbone)
        if job is None:
            return "not run" if backbone in self.backbones else MISSING
        if job.state == "done":  # its record is of another section, or gone
            return MISSING
        if job.state not in _BROKEN:
            return escape(job.state)
        return f"{escape(job.state)} <sup>{self._notes.setdefault(job, len(self._notes) + 1)}</sup>"

    def footnotes(self) -> list[str]:
        """The lines below the table: why each broke, and the command that tries it again."""
        lines = [f"<sup>{n}</sup> {told(job)}  " for job, n in self._notes.items()]
        return [*lines, ""] if lines else []


def told(job: JobState) -> str:
    """``knn in1k-knn simsiam failed: no such folder. Again: `siambench …` ``"""
    reason = f": {escape(job.reason).rstrip('.')}" if job.reason else ""
    retry = f" Again: {code(job.retry)}" if job.retry else ""
    return f"{escape(job.name)} {escape(job.state)}{reason}.{retry}"
