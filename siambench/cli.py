"""Running one verb as a command: arguments, exit codes, one clear line for what the user can mend."""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout

from siambench.config import Verb, parse_args
from siambench.errors import (
    EXIT_DONE,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_USER,
    UserError,
)
from siambench.progress import quieted
from siambench.signals import stopped_by_schedulers


def run_verb(verb: Verb, arguments: Sequence[str] | None = None) -> int:
    """Parse ``arguments`` (default: the command line's), run ``verb``, return the exit code.

    ``--quiet`` silences progress; ``--json`` prints what the verb returns as JSON on standard
    output and implies ``--quiet``.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    as_json = _take(arguments, "--json")
    quiet = _take(arguments, "--quiet") or as_json
    logging.captureWarnings(True)  # library chatter does not belong between progress lines
    try:
        with quieted(quiet), stopped_by_schedulers():
            config = parse_args(verb, arguments)
            with redirect_stdout(sys.stderr) if as_json else nullcontext():
                result = verb(config)  # what it prints for people must not mix with the JSON
        if as_json and first:
            print(_to_json(result))
        return result if isinstance(result, int) else EXIT_DONE
    except UserError as error:
        lines = error.details if len(error.details) > 1 else ()  # one is in the error's own line
        for line in (*lines, f"siambench: error: {error}"):
            print(line, file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        if first:
            print("siambench: interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `siambench ... | head`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return EXIT_DONE
    except Exception:
        traceback.print_exc()
        return EXIT_FAULT


def _take(arguments: list[str], flag: str) -> bool:
    if flag in arguments:
        arguments.remove(flag)
        return True
    return False


def _to_json(result: object) -> str:
    import json
    from dataclasses import asdict, is_dataclass

    def plain(value: object) -> object:
        if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        return str(value)

    return json.dumps(result, default=plain, indent=1)
