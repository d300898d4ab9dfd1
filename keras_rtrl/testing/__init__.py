"""Proofs of exactness for authors of cells, and exact RTRL across two layers."""

from keras_rtrl.testing.cell import check_rtrl_cell
from keras_rtrl.testing.two_layer import TwoLayerRTRL

__all__ = ["TwoLayerRTRL", "check_rtrl_cell"]
