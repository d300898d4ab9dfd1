"""Proofs of exactness for authors of cells."""

from keras_rtrl.testing.proofs import check_rtrl_cell

__all__ = ["check_rtrl_cell"]
