"""The old name of `keras_rtrl.data`."""

raise ImportError("keras_rtrl.utils is keras_rtrl.data now.")
