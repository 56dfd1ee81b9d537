"""The one exception for what the user can put right, and the exit codes of every command."""

from collections.abc import Sequence

EXIT_DONE = 0
EXIT_FAULT = 1  # ours: the traceback is shown
EXIT_USER = 2  # the user's input: one line says what, where and what to do
EXIT_INTERRUPTED = 130  # Ctrl-C; everything finished so far is on disk


class UserError(Exception):
    """The user's input is wrong. The text is one line: what is wrong, where, and what to do.

    Commands print it as ``siambench: error: TEXT`` and exit with 2. Raised in a loader's worker
    process, it reaches the parent as the text of a traceback, of which only the last line is kept.

    Attributes:
        details: where several things are wrong, each in a line of its own; commands print them first.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        text = " ".join(message.split("errors.UserError: ")[-1].split())
        super().__init__(printable(text, len(text)))
        self.details = tuple(printable(line, len(line)) for line in details)


class Diverged(UserError):
    """Training ended in a loss or a weight that is not finite; raised in every process alike."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none: for one-line messages."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def printable(text: str, most: int = 200) -> str:
    """A stranger's text as part of one line: nothing that steers a terminal, ``most`` characters."""
    short = text if len(text) <= most else f"{text[:most]}..."
    return "".join(letter if letter.isprintable() else " " for letter in short)
