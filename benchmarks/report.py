"""The report of many records: seconds and memory of `siambench report` in a fresh process.

Usage: OMP_NUM_THREADS=1 python benchmarks/report.py [RECORDS [BACKBONES]]. Linux only. By default
10,000 records of 40 backbones in three run folders, made in a temporary folder: every verb's real
metrics (20 classes of VOC, 80 of COCO, 8 numbers of shots with 5 samples, a sweep of 10 rates), as many
trials as it takes. One uncounted round, then the whole command three times: median seconds and the
highest resident set of its largest process; then once more in a process that times its phases.

Goals: report.md and report.html under 5 s, under 1 GB. Expected, before the first measurement on two
Zen 4 cores: about 90 MB of JSON, of which parsing takes 1 s, the digest 1.5 s (the canonical JSON has to
be written again), making the metrics 1 s; text and plots 3 s; 0.8 GB. So the goal of 5 s is missed by
2 s at first.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder
sys.path.append(str(Path(sys.path[0]) / "tests" / "reports"))

import made_records as made

from siambench.record import Metric

ROUNDS = 3
BENCHMARKS: dict[str, Callable[[np.random.Generator], list[Metric]]] = {
    "in1k-linear-lars-90e": lambda rng: made.linear(rng, rates=tuple(2.0**i for i in range(10))),
    "in1k-knn": made.knn,
    "voc07-svm": lambda rng: made.svm(rng, classes=20),
    "voc07-lowshot": made.lowshot,
    "voc07-frcnn-c4": lambda rng: made.voc(rng, classes=20),
    "coco-mrcnn-c4-1x": lambda rng: made.coco(rng, classes=80),
    "voc12aug-fcn-20k": lambda rng: made.segment(rng, classes=21),
}


def fill(folder: Path, records: int, backbones: int) -> list[Path]:
    """Write ``records`` records and a few training curves into three run folders; the folders."""
    rng = np.random.default_rng(0)
    folders = [folder / name for name in ("one", "two", "three")]
    names = ["supervised", "random", *(f"simsiam-{i}" for i in range(backbones - 2))]
    for number in range(records):
        rest, which = divmod(number, backbones)
        trial, of_benchmark = divmod(rest, len(BENCHMARKS))
        benchmark = list(BENCHMARKS)[of_benchmark]
        metrics = BENCHMARKS[benchmark](rng)
        rec = made.record(benchmark, names[which], metrics, trial=trial)
        made.save(folders[which % 3], rec)
    for name in names[:4]:
        made.monitor(folders[0], name, epochs=100)
    return folders


def measured(command: list[str]) -> tuple[float, float]:
    """Wall seconds of a command, and the highest resident set of all children so far, in GB."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=sys.path[0])
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9


def phases(folders: list[str], out: str) -> dict[str, float]:
    """Seconds of each phase of a report in this process."""
    import cProfile
    import pstats

    start = time.perf_counter()
    from reports import report as room

    taken = {"import": time.perf_counter() - start}
    names = ("collect", "_laid_out", "_plots", "_markdown", "page", "write_text")
    for name in (name for name in names if hasattr(room, name)):
        setattr(room, name, _timed(getattr(room, name), name.strip("_"), taken))
    start = time.perf_counter()
    room.write_report([Path(folder) for folder in folders], Path(out))
    taken["all of write_report"] = time.perf_counter() - start
    if "--profile" in sys.argv:
        profile = cProfile.Profile()
        profile.runcall(room.write_report, [Path(folder) for folder in folders], Path(out))
        pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(45)
    return taken


def _timed(function: Callable[..., Any], name: str, taken: dict[str, float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        taken[name] = taken.get(name, 0.0) + time.perf_counter() - start
        return result

    return timed


def main(records: int, backbones: int) -> None:
    """Make the records, measure, print."""
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        folders = [str(folder) for folder in fill(Path(name), records, backbones)]
        files = [f.stat().st_size for f in Path(name).rglob("records/*.json")]
        size = sum(files) / 1e6
        print(f"{len(files):,} records, {size:.0f} MB, made in {time.perf_counter() - start:.0f} s")
        out = str(Path(name) / "report.md")
        command = [sys.executable, "-m", "pipeline", "report", *folders, "--out", out]
        rounds = [measured(command) for _ in range(ROUNDS + 1)][1:]
        seconds = [taken for taken, _ in rounds]
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"siambench report: {statistics.median(seconds):.2f} s ({spread})")
        print(f"highest resident set: {rounds[-1][1]:.2f} GB")
        for path in sorted(Path(name).glob("report.*")):
            print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
        own = [sys.executable, __file__, "--phases", *folders, out]
        done = subprocess.run(own, check=True, capture_output=True, text=True)
        for phase, taken in json.loads(done.stdout).items():
            print(f"  {phase:20} {taken:.2f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--phases"]:
        *given, where = [argument for argument in sys.argv[2:] if argument != "--profile"]
        print(json.dumps(phases(given, where)))
    else:
        counts = [int(argument) for argument in sys.argv[1:3]]
        main(*counts, *(10_000, 40)[len(counts) :])
