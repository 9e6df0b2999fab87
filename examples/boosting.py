"""Multi-class boosting with an objective of one's own, against the objective that is built in.

    python examples/boosting.py                 needs XGBoost or LightGBM, or both

Both ask an objective for the gradient and the diagonal of the Hessian of the loss with respect to
the scores, one for each class: `cross_entropy` and `cross_entropy_hessian_diagonal`. Each library
is trained twice on two thirds of scikit-learn's digits, its own objective against ours, and tested
on the others. XGBoost doubles the diagonal, LightGBM multiplies it by n / (n - 1) for n classes, so
the objectives here do as well; what is left is float32 rounding.
"""

import numpy as np
from sklearn.datasets import load_digits

import fastsoftmax as fsm

CLASSES = 10
ROUNDS = 30


def split(test=600):
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    images, labels = digits.data[order], digits.target[order]
    return images[test:], labels[test:], images[:test], labels[:test]


def objective(scores, labels, factor):
    """The gradient and the scaled diagonal of the Hessian of the summed loss, rows x classes."""
    _, gradient = fsm.cross_entropy(scores, labels, reduction="sum", return_grad=True)
    hessian = fsm.cross_entropy_hessian_diagonal(scores, labels, reduction="sum")
    return gradient, np.maximum(factor * hessian, 1e-16)


def by_xgboost(images, labels, test_images, own):
    """Scores of the test images."""
    import xgboost

    def ours(scores, data):
        return objective(scores.reshape(-1, CLASSES), data.get_label().astype(int), 2.0)

    data = xgboost.DMatrix(images, labels)
    options = {"num_class": CLASSES, "max_depth": 4, "eta": 0.3, "base_score": 0.5, "nthread": 2}
    options |= {"objective": "multi:softprob"}
    if own:
        options["disable_default_eval_metric"] = True
    model = xgboost.train(options, data, ROUNDS, obj=ours if own else None)
    return model.predict(xgboost.DMatrix(test_images), output_margin=True)


def by_lightgbm(images, labels, test_images, own):
    """Scores of the test images."""
    import lightgbm

    def ours(scores, data):
        return objective(
            scores.reshape(-1, CLASSES), data.get_label().astype(int), CLASSES / (CLASSES - 1)
        )

    options = {"num_class": CLASSES, "num_leaves": 15, "verbose": -1, "num_threads": 2}
    options |= {"boost_from_average": False, "deterministic": True, "seed": 0}
    options["objective"] = ours if own else "multiclass"
    model = lightgbm.train(options, lightgbm.Dataset(images, labels), ROUNDS)
    return model.predict(test_images, raw_score=True)


def scores(library):
    """(accuracy, cross-entropy) on the test digits, of its own objective and of ours."""
    images, labels, test_images, test_labels = split()
    results = {}
    for name, own in (("built in", False), ("fastsoftmax", True)):
        found = library(images, labels, test_images, own)
        accuracy = (found.argmax(axis=1) == test_labels).mean()
        results[name] = accuracy, fsm.cross_entropy(found, test_labels)
    return results


def main():
    for library in (by_xgboost, by_lightgbm):
        try:
            results = scores(library)
        except ImportError:
            print(f"{library.__name__}: not installed")
            continue
        for name, (accuracy, loss) in results.items():
            print(
                f"{library.__name__}, {name:11}: accuracy {accuracy:.2%}, cross-entropy {loss:.4f}"
            )


if __name__ == "__main__":
    main()
