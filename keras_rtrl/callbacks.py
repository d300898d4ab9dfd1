"""An old name in `keras_rtrl.diagnostics`."""

raise ImportError("keras_rtrl.callbacks is keras_rtrl.diagnostics now.")
