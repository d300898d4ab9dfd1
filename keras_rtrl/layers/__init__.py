"""Keras layers: `RTRL(cell)`, thin names for it, and stacks of them."""

from keras_rtrl.layers.egru import EGRU
from keras_rtrl.layers.elstm import ELSTM
from keras_rtrl.layers.lru import LRU
from keras_rtrl.layers.mingru import MinGRU
from keras_rtrl.layers.rtrl import RTRL
from keras_rtrl.layers.rtu import RTU
from keras_rtrl.layers.stack import RTRLStack

__all__ = ["EGRU", "ELSTM", "LRU", "RTRL", "RTU", "MinGRU", "RTRLStack"]
