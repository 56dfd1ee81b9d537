"""``siambench VERB ...``: find the verb and run it."""

import sys
from collections.abc import Sequence

from pipeline.verbs import VERBS
from siambench import __version__
from siambench.cli import run_verb
from siambench.errors import EXIT_DONE, EXIT_USER


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code (0 done, 1 our fault, 2 the user's, 130 stopped)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in ([], ["-h"], ["--help"]):
        print(_help())
        return EXIT_DONE if words else EXIT_USER
    if words == ["--version"]:
        print(f"siambench {__version__}")
        return EXIT_DONE
    for length in (3, 2, 1):  # the longest verb first: `data make digit-scenes`
        verb = VERBS.get(" ".join(words[:length]))
        if verb is not None and len(words) >= length:
            return run_verb(verb, words[length:])
    longer = [name for name in VERBS if name.split()[0] == words[0]]
    known = " and ".join(f"`siambench {name}`" for name in longer)
    hint = f"there is {known}" if longer else "`siambench --help` lists them"
    print(f"siambench: error: no verb {words[0]!r}; {hint}", file=sys.stderr)
    return EXIT_USER


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name.ljust(width)}  {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: siambench VERB [--config FILE.yaml] [--key value ...] [--quiet] [--json]",
            "",
            "How good is this backbone? SimSiam pre-training, conversion and transfer benchmarks.",
            "",
            *lines,
            "",
            "`siambench VERB --help` explains a verb's options; --print_config shows what would run.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
