"""What the command line turns into one line of text and exit code 2."""


class UsageError(Exception):
    """Input that cannot work. Its text is one line, meant for the person who typed the command."""


def one_line(error):
    """An exception's text in one line, without what gin adds: pointers, and the calls that it went through."""
    lines = [line.strip() for line in str(error).partition("\n  In call to configurable")[0].splitlines()]
    return " ".join(line for line in lines if line.strip("^ ")) or type(error).__name__
