"""Section 10 of rtrl-math.md for every cell, in eager, graph and XLA."""

from keras_rtrl.testing import check_rtrl_cell, proofs


def test_proof(cell, proof, mode):
    proof(proofs.Case(cell), proofs.MODES[mode])


def test_cell(cell):
    check_rtrl_cell(cell, seed=3)


def test_variant(variant):
    check_rtrl_cell(variant)
