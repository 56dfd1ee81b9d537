"""Start-up: seconds of `siambench --help` and of a verb's help, against a bare interpreter.

Usage: python benchmarks/startup.py [RUNS]. Prints the median of whole-process wall times and the ratio
to `python -c pass`, taken in turn in one run.
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "siambench --help": ["-m", "pipeline", "--help"],
    "siambench detect --help": ["-m", "pipeline", "detect", "--help"],
}


def main(runs: int) -> None:
    """Time each command ``runs`` times, interleaved, after one uncounted round."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(runs + 1):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    bare = statistics.median(seconds["python -c pass"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(
            f"{name:26} {median:.3f} s  x{median / bare:.1f}  ({min(taken):.3f} to {max(taken):.3f})"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
