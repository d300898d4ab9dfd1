"""Section 10 of rtrl-math.md for every cell, in eager, graph and XLA."""

import pytest

from keras_rtrl.testing import proofs


@pytest.fixture(scope="module")
def case(cell):
    return proofs.Case(cell)


def test_derivatives(case):
    proofs.check_derivatives(case)


def test_streams(case):
    proofs.check_streams(case)


@pytest.mark.parametrize("mode", proofs.MODES)
@pytest.mark.parametrize("proof", proofs.PROOFS, ids=lambda p: p.__name__)
def test_proof(case, proof, mode):
    proof(case, proofs.MODES[mode])
