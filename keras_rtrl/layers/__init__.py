"""Keras layers: `RTRL(cell)`, and thin names for it."""

from keras_rtrl.layers.egru import EGRU
from keras_rtrl.layers.elstm import ELSTM
from keras_rtrl.layers.lru import LRU
from keras_rtrl.layers.mingru import MinGRU
from keras_rtrl.layers.rtrl import RTRL
from keras_rtrl.layers.rtu import RTU

__all__ = ["EGRU", "ELSTM", "LRU", "RTRL", "RTU", "MinGRU"]
