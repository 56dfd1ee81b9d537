"""What is wrong with a data set, collected so that all of it is reported at once."""

from siambench.errors import UserError

_MOST_SHOWN = 5


class Problems:
    """Collects problems, each once, over both splits and all stages of reading.

    Attributes:
        skip_bad: leave wrong objects and images out rather than refuse them.
        objects: where the wrong objects are; of each there may be several problems.
    """

    def __init__(self, skip_bad: bool = False) -> None:
        self.skip_bad = skip_bad
        self.objects: set[str] = set()
        self._texts: dict[str, bool] = {}  # each problem, and whether it can be left out

    def object(self, where: str, what: str) -> None:
        """One object's annotation is wrong."""
        self.objects.add(where)
        self._texts[f"{where}: {what}"] = True

    def image(self, where: str, what: str) -> None:
        """A picture cannot be used, or what describes it."""
        self._texts[f"{where}: {what}"] = True

    def file(self, where: str, what: str) -> None:
        """A file makes no sense as a whole: refused whatever ``skip_bad`` says."""
        self._texts[f"{where}: {what}"] = False

    def stop(self, where: str) -> None:
        """Raise UserError if something is wrong that is not left out; all of it is in the details."""
        found = [text for text, can in self._texts.items() if not (can and self.skip_bad)]
        if not found:
            return
        count = "1 problem" if len(found) == 1 else f"{len(found):,} problems"
        more = len(found) - _MOST_SHOWN
        tail = f"; and {more:,} more" if more > 0 else ""
        what = "it" if len(found) == 1 else "them"
        advice = ", or leave what is bad out with --skip_bad" if all(self._texts.values()) else ""
        shown = "; ".join(found[:_MOST_SHOWN])
        raise UserError(f"{count} in {where}: {shown}{tail}; correct {what}{advice}", found)
