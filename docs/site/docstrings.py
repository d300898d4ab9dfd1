"""Rewrites parts of docstrings that Griffe and Markdown would render wrongly."""

import re
import textwrap

import griffe


class Sections(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is None:
            return
        text = obj.docstring.value
        # A list of arguments, as in Keras' docstrings.
        text = re.sub(r"^Call arguments:\n", "Other Parameters: Call arguments\n", text, flags=re.MULTILINE)
        # Examples: Markdown would render them as quotations.
        text = re.sub(r"(?:^(?:>>>|\.\.\.).*(?:\n|\Z))+", _code, text, flags=re.MULTILINE)
        # Sentences: Griffe would read the text before a colon as a type.
        obj.docstring.value = re.sub(
            r"^Returns:\n((?:(?:  .*)?(?:\n|\Z))+)", _sentences, text, count=1, flags=re.MULTILINE
        )


def _code(match):
    return f"```pycon\n{match[0].rstrip()}\n```\n"


def _sentences(match):
    return f"**Returns:** {textwrap.dedent(match[1]).strip()}\n\n"
