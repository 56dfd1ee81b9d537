"""A Slurm of one machine for tests: sbatch, srun, squeue and scontrol that do what they say.

Called by the name of one of them, it is that command; ``work`` in the test's process then runs what
was submitted, in order, as far as the dependencies allow. Its queue lies in $FAKE_SLURM.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ENDED = ("done", "failed", "cancelled")


def install(folder: Path) -> dict[str, str]:
    """Put the commands in ``folder``/bin; the environment in which they are found."""
    (folder / "bin").mkdir(parents=True)
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        script.chmod(0o755)
    return {"FAKE_SLURM": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def scripts(folder: Path) -> dict[str, str]:
    """What was submitted: number to sbatch file."""
    found = sorted(folder.glob("*.sh"), key=lambda path: int(path.stem))
    return {path.stem: path.read_text() for path in found}


def option(script: str, name: str) -> str:
    """The value of an ``#SBATCH --name=value`` line; ``""`` where there is none."""
    found = re.search(rf"^#SBATCH --{name}=(.*)$", script, re.M)
    return found[1].strip("'") if found else ""


def tasks(number: str, script: str) -> list[str]:
    """A job's elements as squeue numbers them."""
    if array := option(script, "array"):
        first, last = map(int, array.split("%")[0].split("-"))
        return [f"{number}_{i}" for i in range(first, last + 1)]
    return [number]


def ends(folder: Path) -> dict[str, str]:
    """How each element ended that did."""
    path = folder / "ends.json"
    return json.loads(path.read_text()) if path.exists() else {}


def end(folder: Path, element: str, how: str) -> None:
    """Note how an element ended."""
    (folder / "ends.json").write_text(json.dumps({**ends(folder), element: how}))


def start(folder: Path, number: str, element: str, env: dict[str, str]) -> subprocess.Popen:
    """The element's batch script, begun."""
    nodes = option(scripts(folder)[number], "nodes") or "1"
    told = {"SLURM_JOB_ID": number, "SLURM_JOB_NUM_NODES": nodes, "SLURM_NTASKS": nodes}
    told["SLURM_JOB_NODELIST"] = "127.0.0.1"
    if "_" in element:
        told |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": element.split("_")[1]}
    return subprocess.Popen(["bash", folder / f"{number}.sh"], env={**os.environ, **env, **told})


def work(folder: Path, env: dict[str, str]) -> dict[str, str]:
    """Run all that waits; how each element of the queue ended."""
    for number, script in scripts(folder).items():
        condition, _, after = option(script, "dependency").partition(":")
        before = [ends(folder)[element] for element in after.split(":") if element]
        for element in tasks(number, script):
            if element in ends(folder):
                continue
            if condition == "afterok" and set(before) - {"done"}:
                assert option(script, "kill-on-invalid-dep") == "yes"
                end(folder, element, "cancelled")
                continue
            code = start(folder, number, element, env).wait()
            end(folder, element, "failed" if code else "done")
    return ends(folder)


def main(name: str, words: list[str]) -> int:
    """One of the commands."""
    folder = Path(os.environ["FAKE_SLURM"])
    if name == "sbatch":
        number = len(scripts(folder)) + 101
        shutil.copy(words[-1], folder / f"{number}.sh")
        print(f"Submitted batch job {number}")
    elif name == "squeue":
        ended = ends(folder)
        every = [e for number, script in scripts(folder).items() for e in tasks(number, script)]
        print("\n".join(e for e in every if e not in ended))
    elif name == "scontrol" and words[0] == "requeue":
        (folder / "requeued").write_text(words[1])
    elif name == "srun":
        while words[0].startswith("--"):
            words = words[1 if "=" in words[0] or words[0] == "--unbuffered" else 2 :]
        children = []
        for node in range(int(os.environ["SLURM_JOB_NUM_NODES"])):
            told = {"SLURM_NODEID": str(node), "SLURM_PROCID": str(node), "SLURM_LOCALID": "0"}
            children.append(subprocess.Popen(words, env={**os.environ, **told}))
        return max(child.wait() for child in children)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
