"""Section 10 of rtrl-math.md for every cell, in eager, graph and XLA."""

import pytest

from keras_rtrl.testing import check_rtrl_cell, proofs


@pytest.mark.parametrize("mode", ["graph", "xla"])  # eagerly, check_rtrl_cell runs them
@pytest.mark.parametrize("proof", proofs.PROOFS, ids=lambda p: p.__name__)
def test_proof(cell, proof, mode):
    proof(proofs.Case(cell), proofs.MODES[mode])


def test_cell(cell):
    check_rtrl_cell(cell, seed=3)


def test_variant(variant):
    check_rtrl_cell(variant)
