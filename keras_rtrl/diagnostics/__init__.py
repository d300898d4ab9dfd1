"""What a recurrent layer does while it trains: a callback for `model.fit`, and the figures that it writes."""

from keras_rtrl.diagnostics.callback import RTRLDiagnostics
from keras_rtrl.diagnostics.figures import MEMORY_CAP, decay, jacobians, memory_length, trace_norms

__all__ = ["MEMORY_CAP", "RTRLDiagnostics", "decay", "jacobians", "memory_length", "trace_norms"]
