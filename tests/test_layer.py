"""The layer: the numbers it has always printed."""

import numpy as np
import pytest

import fastsoftmax as fsm

X = np.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [0.001, 0.002, 0.0015, 0.003, 10]])
Y = [
    [1.16562310e-02, 3.16849208e-02, 8.61285444e-02, 2.34121657e-01, 6.36408647e-01],
    [6.36408647e-01, 2.34121657e-01, 8.61285444e-02, 3.16849208e-02, 1.16562310e-02],
    [4.54370855e-05, 4.54825454e-05, 4.54598098e-05, 4.55280507e-05, 9.99818093e-01],
]
J0 = [
    [1.15203632e-02, -3.69326755e-04, -1.00393421e-03, -2.72897611e-03, -7.41812617e-03],
    [-3.69326755e-04, 3.06809866e-02, -2.72897611e-03, -7.41812617e-03, -2.01645576e-02],
    [-1.00393421e-03, -2.72897611e-03, 7.87104183e-02, -2.01645576e-02, -5.48129504e-02],
    [-2.72897611e-03, -7.41812617e-03, -2.01645576e-02, 1.79308707e-01, -1.48997047e-01],
    [-7.41812617e-03, -2.01645576e-02, -5.48129504e-02, -1.48997047e-01, 2.31392681e-01],
]


@pytest.mark.parametrize("normalization", [True, False])
def test_the_numbers_it_has_always_printed(normalization: bool) -> None:
    layer = fsm.Softmax()
    y = layer(X, normalization=normalization)
    np.testing.assert_allclose(y, Y, rtol=1e-8)
    np.testing.assert_array_equal(layer.output, y)
    jacobian = layer.backward()
    assert jacobian.shape == (3, 5, 5)
    np.testing.assert_allclose(jacobian[0], J0, rtol=1e-8)
    np.testing.assert_allclose(jacobian[1], np.array(J0)[::-1, ::-1], rtol=1e-8)
