"""Griffe: the section "Call arguments:", which Keras' docstrings have, is a list of arguments too."""

import re

import griffe


class CallArguments(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Call arguments:\n", "Other Parameters: Call arguments\n", obj.docstring.value, flags=re.MULTILINE
            )
