"""Fixtures of every test file."""

import numpy as np
import pytest

import fastsoftmax


def pytest_report_header() -> str:
    native = fastsoftmax._native
    return f"fastsoftmax: instruction set {native.isa()} of {', '.join(native.available_isas())}"


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20250101)
