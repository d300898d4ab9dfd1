"""What the command line turns into one line of text and exit code 2."""

import re

_WORD, _LINE = 200, 1200  # letters of a word, and of a line, that are printed whole


class UsageError(Exception):
    """Input that cannot work. Its text is one line, meant for the person who typed the command."""


def one_line(error):
    """An exception's text in one line, without what gin adds: pointers, and the calls that it went through.

    Of a long word, or of a long line, the middle is left out. What would not print is written as Python writes it.
    """
    lines = [line.strip() for line in str(error).partition("\n  In call to configurable")[0].splitlines()]
    text = " ".join(line for line in lines if line.strip("^ ")) or type(error).__name__
    text = re.sub(rf"\S{{{_WORD},}}", lambda word: _short(word[0], _WORD // 2), text)
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= _LINE else _short(text, _LINE)


def _short(text, length):
    return f"{text[: length // 2]}...{text[-length // 2 :]}"
