"""Text as LaTeX prints it with its own fonts, whatever stands in it."""

import re
import unicodedata

_NAMED = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{c: f"{{{c}}}" for c in "[]*"},  # which \\ at a line's end would take for its own
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\`{}",
    '"': "''",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "√": r"$\surd$",
    "·": r"$\cdot$",
    "²": "$^2$",
    "≥": r"$\ge$",
    "→": r"$\to$",
    "…": r"\dots{}",
    "⚠": "$^{!}$",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "ø": r"\o{}",
    "å": r"\aa{}",
}
_ACCENTS = {
    **{"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u"},
    **{"\u0307": ".", "\u0308": '"', "\u030b": "H", "\u030c": "v", "\u0327": "c"},
}


def escape(text: str) -> str:
    """``text`` as LaTeX, with no package. A letter that its own fonts lack is named by its code point."""
    text = "".join(map(_letter, text.replace("--", "-\0-")))
    return re.sub(r"^-(?=\d)", "$-$", text.replace("\0", "{}"))


def _letter(letter: str) -> str:
    if letter in _NAMED:
        return _NAMED[letter]
    if letter.isascii():
        return letter
    base, *marks = unicodedata.normalize("NFD", letter)
    if len(marks) == 1 and marks[0] in _ACCENTS and base.isascii():
        return f"\\{_ACCENTS[marks[0]]}{{{base}}}"
    return f"U+{ord(letter):04X}"
