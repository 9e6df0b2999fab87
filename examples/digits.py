"""A network for handwritten digits, by hand: NumPy and the SoftmaxCrossEntropy layer.

    python examples/digits.py [--save src/fastsoftmax/data/digits.npz]

Trains on two thirds of scikit-learn's bundled digits and tests on the others. With --save, the
logits of the test digits go to the file that `fastsoftmax demo` shows.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

import fastsoftmax as fsm

rng = np.random.default_rng(0)


def split(test=600):
    """Images of 64 pixels from 0 to 1, and labels: for training, then for testing."""
    digits = load_digits()
    order = rng.permutation(len(digits.data))
    images = (digits.data[order] / 16).astype(np.float32)
    labels = digits.target[order]
    return images[test:], labels[test:], images[:test], labels[:test]


def initial(inputs, outputs):
    scale = np.sqrt(2 / inputs)
    weights = (scale * rng.standard_normal((inputs, outputs))).astype(np.float32)
    return [weights, np.zeros(outputs, np.float32)]


class Network:
    """64 pixels -> 64 rectified units -> 10 logits -> softmax and cross-entropy."""

    def __init__(self):
        self.parameters = initial(64, 64) + initial(64, 10)
        self.loss = fsm.SoftmaxCrossEntropy()

    def logits(self, images):
        w1, b1, w2, b2 = self.parameters
        self.images = images
        self.hidden = np.maximum(images @ w1 + b1, 0)
        return self.hidden @ w2 + b2

    def gradients(self, images, labels):
        """Of the mean cross-entropy, back through the last layer and both others."""
        self.loss(self.logits(images), labels)
        dlogits = self.loss.backward()
        dhidden = (dlogits @ self.parameters[2].T) * (self.hidden > 0)
        return [
            self.images.T @ dhidden,
            dhidden.sum(axis=0),
            self.hidden.T @ dlogits,
            dlogits.sum(axis=0),
        ]


def train(network, images, labels, epochs=40, batch=50, rate=0.1, momentum=0.9):
    velocity = [np.zeros_like(p) for p in network.parameters]
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            gradients = network.gradients(images[some], labels[some])
            for k, g in enumerate(gradients):
                velocity[k] = momentum * velocity[k] - rate * g
                network.parameters[k] += velocity[k]


def main():
    parser = argparse.ArgumentParser(description="Trains a small network on handwritten digits.")
    parser.add_argument("--save", metavar="FILE", help="write the logits of the test digits")
    options = parser.parse_args()

    images, labels, test_images, test_labels = split()
    network = Network()
    train(network, images, labels)
    logits = network.logits(test_images)
    accuracy = (logits.argmax(axis=1) == test_labels).mean()
    loss = fsm.cross_entropy(logits, test_labels)
    print(f"{len(images)} digits to learn from, {len(logits)} to test on")
    print(f"accuracy {accuracy:.1%}, cross-entropy {loss:.3f}")
    if options.save:
        np.savez_compressed(
            options.save,
            logits=logits,
            labels=test_labels.astype(np.uint8),
            images=(test_images * 16).astype(np.uint8).reshape(-1, 8, 8),
        )
    return accuracy


if __name__ == "__main__":
    main()
