"""Cells: one element-wise recurrence a file, as `RTRLCell` defines it."""

from keras_rtrl.cells.egru import EGRUCell
from keras_rtrl.cells.elstm import ELSTMCell
from keras_rtrl.cells.lru import LRUCell
from keras_rtrl.cells.mingru import MinGRUCell
from keras_rtrl.cells.rtu import RTUCell
from keras_rtrl.engine.cell import Local, Parameter, RTRLCell

__all__ = ["EGRUCell", "ELSTMCell", "LRUCell", "Local", "MinGRUCell", "Parameter", "RTRLCell", "RTUCell"]
