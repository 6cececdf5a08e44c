"""Linear probes: what a linear classifier finds in frozen features (Radford et al. 2021, 3.2)."""

import dataclasses

import numpy as np

from multimodal.errors import UserError
from multimodal.evals.classification import class_scores, label_scores
from multimodal.evals.records import features
from multimodal.evals.registry import register

GRID = (1e-4, 1e-3, 1e-2, 1e-1)  # l2, chosen on a tenth of the training rows
STEPS = 100  # of L-BFGS while it is chosen


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear classifier on standardised features.

    Attributes:
      mean, deviation: [D] of the features; weight: [D, C]; bias: [C].
    """

    mean: np.ndarray
    deviation: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def logits(self, x) -> np.ndarray:
        """[N, C] of features [N, D]."""
        return (np.asarray(x, np.float64) - self.mean) / self.deviation @ self.weight + self.bias

    def predict(self, x) -> np.ndarray:
        """[N] most likely class."""
        return self.logits(x).argmax(1)


def logistic_regression(x, y, classes, l2, steps=300) -> Linear:
    """Multinomial logistic regression: minimises the mean cross-entropy + l2 / 2 |weight|^2.

    The features are standardised, the bias is not penalised; L-BFGS in float64 from zero, so the
    result is a function of the arguments alone.

    Args:
      x: [N, D]; y: int [N] in 0..classes-1; steps: at most.
    """
    # Here: half a second of the time to the first step of every run, also of those without probes.
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    x, y = np.asarray(x, np.float64), np.asarray(y)
    mean, deviation = x.mean(0), x.std(0)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    x = (x - mean) / deviation
    wanted = np.eye(classes)[y]

    def loss(theta):
        theta = theta.reshape(x.shape[1] + 1, classes)
        weight, logits = theta[:-1], x @ theta[:-1] + theta[-1]
        value = -(wanted * log_softmax(logits, 1)).sum() / len(x) + l2 / 2 * np.square(weight).sum()
        error = (softmax(logits, 1) - wanted) / len(x)
        return value, np.concatenate([x.T @ error + l2 * weight, error.sum(0)[None]]).ravel()

    start = np.zeros((x.shape[1] + 1) * classes)
    options = {"maxiter": steps, "ftol": 1e-10, "gtol": 1e-6}
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    theta = theta.reshape(x.shape[1] + 1, classes)
    return Linear(mean, deviation, theta[:-1], theta[-1])


@register("probe")
def probe(net, data, cfg, mesh=None) -> dict[str, float]:
    """Linear probes on frozen pooled features of each modality, and of 'joint' where there is one.

    Fitted on the training split, for every label key. Metrics are
    `SPLIT/probe/MODALITY/LABEL/...`: accuracy, mean_per_class, majority, count and l2, its weight
    of regularisation; of several labels at once, each of which has a probe, f1_micro, f1_macro and
    exact instead of the first three.

    Args:
      cfg: `batch_size`.
    Raises: UserError without a training split or labels.
    """
    train = data.train()
    keys = [key for key in data.targets if key in train.targets]
    if not keys:
        raise UserError(
            f"{data.name}: probes need labels: a source whose examples have 'label' or 'label_...'"
        )
    fit, test = (features(net, d, cfg["batch_size"], mesh) for d in (train, data))
    metrics = {}
    for m in test.pooled:
        for key in keys:
            sides = [_known(d, f, m, key) for d, f in ((train, fit), (data, test))]
            if min(len(y) for _, y in sides) < 2:
                continue  # a modality that no labelled example has
            for name, value in _probe(*sides[0], *sides[1]).items():
                metrics[f"{data.name}/probe/{m}/{key}/{name}"] = value
    if not metrics:
        raise UserError(f"{data.name}: no example that has a label could be read")
    return metrics


def _known(data, found, modality, key):
    """Features and labels of the records that have both."""
    y = data.targets[key][found.numbers]
    rows = found.present[modality] & (y >= 0 if y.ndim == 1 else (y >= 0).all(1))
    return found.pooled[modality][rows], y[rows]


def _probe(x, y, x_test, y_test):
    if y.ndim == 1:
        classes = int(max(y.max(), y_test.max())) + 1
        l2, model = fit_probe(x, y, classes)
        return class_scores(model.predict(x_test), y_test, classes) | {"l2": l2}
    fitted = [fit_probe(x, column, 2) for column in y.T]
    predicted = np.stack([model.predict(x_test) == 1 for _, model in fitted], 1)
    return label_scores(predicted, y_test)


def fit_probe(x, y, classes, grid=GRID, seed=0):
    """(l2, the model fitted on all rows with it): the l2 that is best on a held-out tenth.

    Of equally good ones the largest, and that of the grid where fewer than 20 rows are too few to
    choose on.
    """
    l2 = max(grid)
    if len(y) >= 20:
        order = np.random.default_rng(seed).permutation(len(y))
        held, rest = order[: len(y) // 10], order[len(y) // 10 :]

        def right(value):
            model = logistic_regression(x[rest], y[rest], classes, value, STEPS)
            return np.mean(model.predict(x[held]) == y[held])

        l2 = max(sorted(grid, reverse=True), key=right)
    return l2, logistic_regression(x, y, classes, l2)
