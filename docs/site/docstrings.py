"""Griffe reads two sections of the docstrings in its own way: they are put into words that it renders as written."""

import re
import textwrap

import griffe


class Sections(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is None:
            return
        text = obj.docstring.value
        # A list of arguments, as Keras' docstrings have it.
        text = re.sub(r"^Call arguments:\n", "Other Parameters: Call arguments\n", text, flags=re.MULTILINE)
        # Sentences, in which a colon ends no type.
        obj.docstring.value = re.sub(
            r"^Returns:\n((?:(?:  .*)?(?:\n|\Z))+)", _sentences, text, count=1, flags=re.MULTILINE
        )


def _sentences(match):
    return f"**Returns:** {textwrap.dedent(match[1]).strip()}\n\n"
