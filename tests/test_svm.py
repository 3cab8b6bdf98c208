"""The solver of train_svm.py against libsvm, as scikit-learn's SVC runs it."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics.pairwise import laplacian_kernel, linear_kernel, pairwise_kernels
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import estimator_checks_generator

import common
import train_svm
from train_svm import KERNELS, GramSVC, byte_rows, to_bytes


def some_digits(n: int):
    images, labels = load_digits(return_X_y=True)
    return images[:n] / 16, labels[:n]


def objective(kernel, beta) -> float:
    return beta @ kernel @ beta / 2 - np.abs(beta).sum()


def assert_same_machine(X, y, X_test, **parameters) -> None:
    """Each pair's dual objective is libsvm's to tol / 10, our solution is optimal to tol, and
    labels differ only where a pair decides by less than tol allows."""
    ours, reference = GramSVC(**parameters).fit(X, y), SVC(**parameters, cache_size=500).fit(X, y)
    assert ours.gamma_ == pytest.approx(reference._gamma)
    tol, parameters = parameters.get("tol", 1e-3), parameters | {"gamma": ours.gamma_}
    for column, pair in enumerate(combinations(ours.classes_, 2)):
        rows, beta = np.isin(y, pair), np.zeros(len(X))
        beta[ours.support_] = ours.pair_coef_[:, column]
        assert not beta[~rows].any()
        own = {name: getattr(ours, name) for name in ("degree", "coef0")}
        own = own if ours.kernel == "poly" else {}
        kernel = pairwise_kernels(X[rows], metric=ours.kernel, gamma=ours.gamma_, **own)
        beta = beta[rows]
        svc, expected = SVC(**parameters).fit(X[rows], y[rows]), np.zeros(len(beta))
        expected[svc.support_] = svc.dual_coef_[0]
        assert objective(kernel, beta) == pytest.approx(objective(kernel, expected), rel=tol / 10)
        gradient, signs = kernel @ beta, np.where(y[rows] == pair[0], 1.0, -1.0)
        rise, fall = (
            (signs - gradient)[beta * sign < ours.C * (sign * signs > 0)] for sign in (1, -1)
        )
        violation = rise.max(initial=-np.inf) - fall.min(initial=np.inf)
        assert violation <= tol * 1.001 + 1e-12 * kernel.max()
    differ = ours.predict(X_test) != reference.predict(X_test)
    if differ.any():
        assert (np.abs(ours._pair_decisions(X_test[differ])).min(1) <= 3 * tol).all()


SETTINGS = [
    {"kernel": "rbf"}, {"kernel": "rbf", "C": 0.01}, {"kernel": "rbf", "C": 1e3},
    {"kernel": "rbf", "gamma": "auto", "C": 10}, {"kernel": "rbf", "gamma": 50.0},
    {"kernel": "rbf", "gamma": 1e-6}, {"kernel": "rbf", "gamma": 1e-4, "C": 1e3},
    {"kernel": "rbf", "tol": 1e-5}, {"kernel": "rbf", "tol": 0.1}, {"kernel": "poly"},
    {"kernel": "poly", "degree": 2, "coef0": 1.0}, {"kernel": "poly", "degree": 1, "C": 0.1},
    {"kernel": "poly", "degree": 5, "coef0": 0.5, "gamma": 0.1},
    {"kernel": "poly", "degree": 3, "coef0": 1.0, "gamma": 1.0, "C": 100},
    {"kernel": "poly", "degree": 3, "coef0": -1.0, "C": 0.1}, {"kernel": "poly", "tol": 1e-6},
]  # fmt: skip


def described(parameters: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())


@pytest.mark.parametrize("parameters", SETTINGS, ids=described)
def test_digits_give_libsvms_machines(parameters):
    X, y = some_digits(1797)
    assert_same_machine(X[:600], y[:600], X[600:], **parameters)


REAL = [{"kernel": "rbf"}, {"kernel": "poly", "coef0": 1.0, "degree": 2, "gamma": 0.1}]


@pytest.mark.parametrize("parameters", REAL, ids=described)
@pytest.mark.parametrize(("name", "classes"), [("mnist", [4, 7, 9]), ("fashion", [0, 2, 6])])
def test_real_images_give_libsvms_machines(real_data, name, classes, parameters):
    """Of three classes that are hard to tell apart, with more images than a working set holds."""
    split, parts = common.load_split(name, real_data, split_seed=0, limit=5000), []
    for part in (split.train, split.test):
        labels = part.labels.numpy()
        chosen = np.isin(labels, classes)
        parts += [train_svm.inputs(part)[chosen], labels[chosen]]
    assert_same_machine(*parts[:3], **parameters)


def hard_cases() -> dict:
    generator = np.random.default_rng(0)
    X, y = some_digits(400)
    noise = generator.normal(size=(300, 20))
    blobs, kinds = make_blobs(400, centers=3, cluster_std=6.0, random_state=0)
    return {
        "duplicated rows": (np.repeat(X[:150], 3, 0), np.repeat(y[:150], 3)),
        "equal rows of both classes": (np.repeat(X[:100], 2, 0), np.tile([0, 1], 100)),
        "a class with two images": (X, np.where(np.arange(400) < 2, 10, y)),
        "unbalanced": (X[np.argsort(y == 0)][:370], y[np.argsort(y == 0)][:370]),
        "two classes": (X[y < 2], y[y < 2]),
        "all features constant": (np.ones((40, 3)), np.arange(40) % 2),
        "labels of pure noise": (noise, generator.integers(3, size=300)),
        "one feature": (X[:, 20:21], y % 3),
        "overlapping blobs": (blobs, kinds),
    }


@pytest.mark.parametrize("C", [0.5, 1e3])
@pytest.mark.parametrize("case", hard_cases())
def test_hard_cases_give_libsvms_machines(case, C):
    X, y = hard_cases()[case]
    assert_same_machine(X, y, X, kernel="rbf", C=C)


# --- products of bytes ---------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["int8", "float32"])
def int8(request, monkeypatch) -> bool:
    """Whether bytes are multiplied as int8 or as float32."""
    monkeypatch.setattr(train_svm, "multiplies_bytes", lambda: request.param)
    return request.param


@pytest.mark.parametrize("unit", [1, 255])
@pytest.mark.parametrize("features", [2, 200, 785])
def test_products_and_distances_of_bytes_are_exact(int8, features, unit):
    """Those of bright rows, which are beyond 2^24, too; as pixels / 255 but for one rounding."""
    whole = np.random.default_rng(0).integers(256, size=(50, features))
    whole[:2], whole[2] = 255, 0
    rows = byte_rows(*to_bytes(whole / unit))
    assert (rows.unit, rows.values.dtype) == (unit, torch.int8 if int8 else torch.float32)
    assert (rows.numbers().numpy() == whole / unit).all()
    for at in (slice(5, 44), torch.tensor([7, 0, 2])):
        products, distances = whole @ whole[at].T, ((whole[:, None] - whole[at]) ** 2).sum(-1)
        assert (rows.products(rows[at]).numpy() == products * (1 / unit**2)).all()
        assert (rows.square_distances(rows[at]).numpy() == distances * (1 / unit**2)).all()


def test_other_numbers_single_columns_and_rows_too_wide_for_exact_sums_are_no_bytes(int8):
    """2^31 / 255^2 features with int8; with float32, which is exact to 2^24, 2^24 / 128^2."""
    for row in ([-1, 0], [0, 256], [0.5, 2], [0.5, 1], [1], [np.nextafter(1 / 255, 1), 0]):
        assert to_bytes(np.array([row])) is None
    widest = 33_025 if int8 else 1023
    assert to_bytes(np.full((2, widest + 1), 255)) is None
    rows = byte_rows(*to_bytes(np.repeat([[0], [255]], widest, axis=1)))
    assert (rows.products(rows).diagonal().numpy() == [0, 255**2 * widest]).all()
    assert rows.square_distances(rows)[0, 1] == 255**2 * widest


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_machine_of_bytes_decides_about_any_numbers(digits, kernel):
    """Fractions, negative numbers and larger ones among the rows do not change the others'."""
    X, test = (train_svm.inputs(part)[:400] for part in (digits.train, digits.test))
    ours, theirs = (
        make(kernel=kernel).fit(X, digits.train.labels[:400].numpy())
        for make in (GramSVC, lambda kernel: SVC(kernel=kernel, decision_function_shape="ovo"))
    )
    mixed = np.vstack([test, test * 1.5 - 0.03])
    found = ours._pair_decisions(mixed)
    assert found[: len(test)] == pytest.approx(ours._pair_decisions(test), abs=1e-9)
    assert found == pytest.approx(theirs.decision_function(mixed), abs=0.02)


def linear(rows, others, svm):
    return rows.products(others)


def laplacian(rows, others, svm):
    return torch.exp(-svm.gamma_ * torch.cdist(rows.numbers(), others.numbers(), p=1))


@pytest.mark.parametrize("shift", [0, 0.001], ids=["bytes", "fractions"])
@pytest.mark.parametrize(
    ("kernel", "theirs"), [(linear, linear_kernel), (laplacian, laplacian_kernel)]
)
def test_a_kernel_of_ones_own_gives_scikit_learns_machine(
    digits, monkeypatch, kernel, theirs, shift
):
    monkeypatch.setitem(KERNELS, "own", (kernel, ()))
    X, test = (train_svm.inputs(part)[:300] + shift for part in (digits.train, digits.test))
    y, options = digits.train.labels[:300].numpy(), {} if kernel is linear else {"gamma": 0.01}
    both = {"tol": 1e-5, "C": 0.01 if kernel is linear else 1.0}
    ours = GramSVC(kernel="own", **both, **options).fit(X, y)
    reference = SVC(kernel=lambda a, b: theirs(a, b, **options), **both).fit(X, y)
    assert (ours.predict(test) == reference.predict(test)).all()
    found, expected = (svm.decision_function(test) for svm in (ours, reference))
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_row_that_overflows_outside_the_first_working_set_raises():
    """Its column makes the gradient inf - inf, which no comparison sees."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(1500, 5))
    y = X[:, 0] + generator.normal(size=1500) > 0
    X[100] *= 1e200
    with pytest.raises(FloatingPointError, match="not finite"):
        GramSVC(kernel="poly", degree=2, gamma=1.0, coef0=1.0).fit(X, y)


# --- the estimator -------------------------------------------------------------------------------

ESTIMATOR_CHECKS = [
    pytest.param(svm, check, id=f"{kernel} {check.func.__name__}")
    for kernel in KERNELS
    for svm, check in estimator_checks_generator(GramSVC(kernel=kernel))
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("svm", "check"), ESTIMATOR_CHECKS)
def test_it_is_a_scikit_learn_estimator(monkeypatch, svm, check):
    monkeypatch.setattr(train_svm, "PATIENCE", 10)  # some checks' data are ill-conditioned
    check(svm)


BAD = {"C": (0, np.nan, np.inf, "1"), "gamma": (-1, "wide", None), "degree": (-1,), "tol": (0,),
       "coef0": (np.inf,), "kernel": ("gauss",)}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, v) for name in BAD for v in BAD[name]])
def test_bad_parameters_are_refused(name, value):
    with pytest.raises(ValueError, match=r".+"):
        GramSVC(**{name: value}).fit(*some_digits(60))


def test_columns_that_are_not_kept_are_computed_again(monkeypatch):
    monkeypatch.setattr(train_svm, "VIOLATING", 40)
    X, y = some_digits(600)
    kept = GramSVC(C=10).fit(X, y)
    monkeypatch.setattr(train_svm, "KEPT_BYTES", 0)
    again = GramSVC(C=10).fit(X, y)
    assert again.pair_coef_ == pytest.approx(kept.pair_coef_, abs=1e-6)
    assert again.training_flops_ > kept.training_flops_


@pytest.mark.parametrize("name", KERNELS)
def test_training_flops_are_two_for_each_feature_of_each_kernel_value(monkeypatch, name):
    """And those of the Cholesky factors of Newton's steps, if there are any."""
    counts, (kernel, own) = [], KERNELS[name]

    def counted(rows, others, svm):
        values = kernel(rows, others, svm)
        counts.append(values.numel())
        return values

    monkeypatch.setitem(KERNELS, name, (counted, own))
    monkeypatch.setattr(train_svm, "VIOLATING", 40)  # so that whole columns are needed as well
    X, y = some_digits(400)
    assert GramSVC(kernel=name).fit(X, y).training_flops_ > 2 * 64 * sum(counts)
    counts.clear()
    monkeypatch.setattr(train_svm, "NEWTON_SIZE", 0)
    assert GramSVC(kernel=name).fit(X, y).training_flops_ == 2 * 64 * sum(counts) > 0
