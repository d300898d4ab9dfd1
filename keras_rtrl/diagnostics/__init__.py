"""What a recurrent layer does while it trains, and how far back its task's gradient reaches."""

from keras_rtrl.diagnostics.callback import RTRLDiagnostics
from keras_rtrl.diagnostics.figures import MEMORY_CAP, decay, jacobians, memory_length, trace_norms
from keras_rtrl.diagnostics.worth import REACHED, STREAMS, Estimate, GradientWorth, mean_estimates, reach

__all__ = [
    "MEMORY_CAP",
    "REACHED",
    "STREAMS",
    "Estimate",
    "GradientWorth",
    "RTRLDiagnostics",
    "decay",
    "jacobians",
    "mean_estimates",
    "memory_length",
    "reach",
    "trace_norms",
]
