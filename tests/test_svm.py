"""The solver of train_svm.py against libsvm, as scikit-learn's SVC runs it."""

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.svm import SVC

import common
import train_svm
from train_svm import Gram, GramSVC, as_rows


def digits(n: int):
    images, labels = load_digits(return_X_y=True)
    return images[:n] / 16, labels[:n]


def kernel_matrix(svm: GramSVC, a, b):
    if svm.kernel == "rbf":
        return rbf_kernel(a, b, gamma=svm.gamma_)
    return polynomial_kernel(a, b, degree=svm.degree, gamma=svm.gamma_, coef0=svm.coef0)


def libsvm_betas(svc: SVC, n: int) -> list[np.ndarray]:
    """The signed coefficients [n] of each pair, from the layout that libsvm packs them into."""
    betas, starts = [], np.concatenate([[0], np.cumsum(svc.n_support_)])
    if len(svc.classes_) == 2:  # scikit-learn turns the sign
        betas = [np.zeros(n)]
        betas[0][svc.support_] = -svc.dual_coef_[0]
        return betas
    for first, second in combinations(range(len(svc.classes_)), 2):
        beta = np.zeros(n)
        for k, row in ((first, second - 1), (second, first)):
            part = slice(starts[k], starts[k + 1])
            beta[svc.support_[part]] = svc.dual_coef_[row, part]
        betas.append(beta)
    return betas


def our_betas(svm: GramSVC, n: int) -> list[np.ndarray]:
    betas = np.zeros((n, svm.pair_coef_.shape[1]))
    betas[svm.support_] = svm.pair_coef_
    return list(betas.T)


def objective(kernel, beta) -> float:
    return beta @ kernel @ beta / 2 - np.abs(beta).sum()


def violation(kernel, beta, signs, C: float) -> float:
    """By how much a two-class solution violates optimality, computed anew."""
    gradient = signs - kernel @ beta
    low, high = np.minimum(0, C * signs), np.maximum(0, C * signs)
    assert (beta >= low).all()
    assert (beta <= high).all()
    assert beta.sum() == pytest.approx(0, abs=1e-9 * max(1, np.abs(beta).sum()))
    rising, falling = gradient[beta < high], gradient[beta > low]
    return rising.max(initial=-np.inf) - falling.min(initial=np.inf)


def assert_same_machine(X, y, X_test, **parameters) -> None:
    """Each pair's dual objective is libsvm's to tol / 10, our solution is optimal to tol, and
    labels differ only where a pair decides by less than tol allows."""
    ours, reference = GramSVC(**parameters).fit(X, y), SVC(**parameters, cache_size=500).fit(X, y)
    assert ours.gamma_ == pytest.approx(reference._gamma)
    kernel, classes = kernel_matrix(ours, X, X), ours.classes_
    n, tol = len(X), parameters.get("tol", 1e-3)
    pairs = combinations(range(len(classes)), 2)
    for pair, beta, expected in zip(
        pairs, our_betas(ours, n), libsvm_betas(reference, n), strict=True
    ):
        assert objective(kernel, beta) == pytest.approx(objective(kernel, expected), rel=tol / 10)
        rows = np.isin(y, classes[list(pair)])
        signs = np.where(y[rows] == classes[pair[0]], 1.0, -1.0)
        found = violation(kernel[np.ix_(rows, rows)], beta[rows], signs, ours.C)
        assert found <= tol * 1.001 + 1e-12 * kernel.max()
    differ = ours.predict(X_test) != reference.predict(X_test)
    if differ.any():
        assert (np.abs(ours._pair_decisions(X_test[differ])).min(1) <= 3 * tol).all()


SETTINGS = [
    {"kernel": "rbf"},
    {"kernel": "rbf", "C": 0.01},
    {"kernel": "rbf", "C": 1e3},
    {"kernel": "rbf", "gamma": "auto", "C": 10},
    {"kernel": "rbf", "gamma": 50.0},
    {"kernel": "rbf", "gamma": 1e-6},
    {"kernel": "rbf", "gamma": 1e-4, "C": 1e3},
    {"kernel": "rbf", "tol": 1e-5},
    {"kernel": "rbf", "tol": 0.1},
    {"kernel": "poly"},
    {"kernel": "poly", "degree": 2, "coef0": 1.0},
    {"kernel": "poly", "degree": 1, "C": 0.1},
    {"kernel": "poly", "degree": 5, "coef0": 0.5, "gamma": 0.1},
    {"kernel": "poly", "degree": 3, "coef0": 1.0, "gamma": 1.0, "C": 100},
    {"kernel": "poly", "degree": 3, "coef0": -1.0, "C": 0.1},
    {"kernel": "poly", "degree": 2, "gamma": 1e-4},
    {"kernel": "poly", "tol": 1e-6, "C": 0.5},
]


def described(parameters: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())


@pytest.mark.parametrize("parameters", SETTINGS, ids=described)
def test_digits_give_libsvms_machines(parameters):
    X, y = digits(1797)
    assert_same_machine(X[:700], y[:700], X[700:], **parameters)


@pytest.mark.parametrize("name", ["mnist", "fashion"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"kernel": "rbf"},
        {"kernel": "rbf", "gamma": 0.1},
        {"kernel": "poly", "coef0": 1.0},
        {"kernel": "poly", "coef0": 1.0, "degree": 2, "gamma": 0.1},
    ],
    ids=described,
)
def test_real_images_give_libsvms_machines(real_data, name, parameters):
    split = common.load_split(name, real_data, split_seed=0, limit=2500)
    train, test = (train_svm.inputs(part, "sklearn") for part in (split.train, split.test))
    assert_same_machine(train, split.train.labels.numpy(), test, **parameters)


@pytest.mark.parametrize("sizes", [(4, 8, 0), (10, 40, 30), (10**4, 10**4, 10**4)], ids=str)
@pytest.mark.parametrize("parameters", [SETTINGS[3], SETTINGS[4], SETTINGS[10]], ids=described)
def test_any_size_of_working_set_gives_libsvms_machines(monkeypatch, parameters, sizes):
    """Also where far more variables are between the bounds than the largest may hold."""
    for name, size in zip(("VIOLATING", "LARGEST", "NEWTON_SIZE"), sizes, strict=True):
        monkeypatch.setattr(train_svm, name, size)
    X, y = digits(500)
    assert_same_machine(X[:300], y[:300], X[300:], **parameters)


def hard_cases() -> dict:
    generator = np.random.default_rng(0)
    X, y = digits(400)
    noise = generator.normal(size=(300, 20))
    blobs, kinds = make_blobs(400, centers=3, cluster_std=6.0, random_state=0)
    return {
        "duplicated rows": (np.repeat(X[:150], 3, 0), np.repeat(y[:150], 3)),
        "equal rows of both classes": (np.repeat(X[:100], 2, 0), np.tile([0, 1], 100)),
        "a class with two images": (X, np.where(np.arange(400) < 2, 10, y)),
        "unbalanced": (X[np.argsort(y == 0)][:370], y[np.argsort(y == 0)][:370]),
        "two classes": (X[y < 2], y[y < 2]),
        "constant features": (np.hstack([X, np.ones((400, 30))]), y),
        "all features constant": (np.ones((40, 3)), np.arange(40) % 2),
        "labels of pure noise": (noise, generator.integers(3, size=300)),
        "one feature": (X[:, 20:21], y % 3),
        "far from the origin": (blobs + 1000, kinds),
        "overlapping blobs": (blobs, kinds),
        "two rows": (X[:2], y[:2]),
    }


@pytest.mark.parametrize("C", [0.5, 1e3])
@pytest.mark.parametrize("case", hard_cases())
def test_hard_cases_give_libsvms_machines(case, C):
    X, y = hard_cases()[case]
    assert_same_machine(X, y, X, kernel="rbf", C=C)


def test_labels_may_be_words_and_decisions_are_scikit_learns():
    X, y = digits(900)
    for labels in (np.array(list("abcdefghij"))[y], np.where(y < 5, "low", "high")):
        for shape in ("ovr", "ovo"):
            ours = GramSVC(decision_function_shape=shape, tol=1e-6).fit(X[:600], labels[:600])
            svc = SVC(decision_function_shape=shape, tol=1e-6).fit(X[:600], labels[:600])
            assert (ours.predict(X[600:]) == svc.predict(X[600:])).all()
            found, expected = (svm.decision_function(X[600:]) for svm in (ours, svc))
            assert found == pytest.approx(expected, abs=1e-4)


def test_bytes_and_pixels_give_one_machine():
    """The 1/255 of the pixels is in gamma, so that products of bytes serve."""
    split = common.load_split("digits", Path("data"), split_seed=0)
    y = split.train.labels.numpy()
    bytes_, test = (train_svm.inputs(part, "gram") for part in (split.train, split.test))
    assert bytes_.dtype == np.uint8
    ours = GramSVC(kernel="poly", gamma=0.01 / 255**2, coef0=1.0).fit(bytes_, y)
    pixels = GramSVC(kernel="poly", gamma=0.01, coef0=1.0).fit(bytes_ / 255, y)
    assert ours._support_rows.values.dtype != pixels._support_rows.values.dtype
    assert (ours.support_ == pixels.support_).all()
    assert ours._pair_decisions(test) == pytest.approx(pixels._pair_decisions(test / 255), abs=1e-5)


def test_without_memory_for_all_products_and_with_shared_ones_the_machine_is_the_same():
    X, y = digits(600)
    gram = Gram(X, y)
    machines = [
        GramSVC().fit(X, y),
        GramSVC(memory_limit=0).fit(X, y),
        GramSVC().fit(X, y, gram),
        GramSVC().fit(X, y, gram),
    ]
    assert gram.matrix is not None
    assert Gram(X, y, memory_limit=0).matrix is None
    assert Gram(X, y, shared=False).matrix is not None, "these are fractions, not bytes"
    for machine in machines[1:]:
        assert (machine.support_ == machines[0].support_).all()
        assert machine.pair_coef_ == pytest.approx(machines[0].pair_coef_, abs=1e-4)
    assert (machines[2].pair_coef_ == machines[3].pair_coef_).all()


@pytest.mark.parametrize("kernel", ["poly", "rbf"])
def test_bytes_give_the_same_bits_whether_products_are_stored_or_not(monkeypatch, kernel):
    """Of bright images, whose inner products are beyond 2^24, where float32 would round them."""
    monkeypatch.setattr(train_svm, "multiplies_bytes", lambda device: True)
    X, y = digits(600)
    noise = np.random.default_rng(0).integers(256, size=(600, 99))  # without it, multiples of 8
    X = np.hstack([np.tile(255 - 255 * X, 8).round(), noise]).astype(np.uint8)
    gram = Gram(X, y)
    assert gram.matrix.max() > 2**24
    shared, alone = (GramSVC(kernel=kernel).fit(X, y, each) for each in (gram, None))
    assert (shared.n_iter_ == alone.n_iter_).all()
    assert (shared.pair_coef_ == alone.pair_coef_).all()


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("features", [1, 200, 785])
def test_products_of_bytes_are_exact(monkeypatch, int8, features):
    """Also across the edges of the parts that they come in, and where they are not stored."""
    monkeypatch.setattr(train_svm, "ROWS", 7)
    monkeypatch.setattr(train_svm, "multiplies_bytes", lambda device: int8)
    X = np.random.default_rng(0).integers(256, size=(50, features), dtype=np.uint8)
    X[:2] = 255
    gram = Gram(X, np.arange(50) % 3)
    assert (gram.rows.offsets is not None) == (int8 and features > 1)
    whole = X[gram.order].astype(np.int64)
    exact = whole @ whole.T
    error = 0 if int8 else 1e-6  # floats are exact up to 2^24 only
    assert gram.matrix.numpy() == pytest.approx(exact, rel=error)
    assert (gram.squares.numpy() == (whole**2).sum(1)).all()
    gram.matrix = None
    some = torch.tensor([3, 1, 49])
    for columns in (slice(5, 44), torch.tensor([7, 7, 0])):
        found = gram.products(some, columns).numpy()
        assert found == pytest.approx(exact[some][:, columns], rel=error)


def test_rows_of_two_kinds_multiply_exactly():
    """A machine of bytes may be asked about fractions, negative numbers and larger ones."""
    generator = np.random.default_rng(0)
    kinds = [generator.integers(low, high, (5, 40)) for low, high in [(0, 256), (-256, 257)]]
    kinds += [generator.integers(0, 9999, (5, 40)), generator.random((5, 40))]
    for first, second in product(kinds, kinds):
        rows, others = (as_rows(X.astype(np.float64)) for X in (first, second))
        assert rows.products(others).numpy() == pytest.approx(first @ second.T, rel=1e-15)


def test_bytes_whose_products_could_be_too_large_for_integers_are_floats(monkeypatch):
    monkeypatch.setattr(train_svm, "multiplies_bytes", lambda device: True)
    assert as_rows(np.full((2, 33_026), 255)).offsets is None
    assert as_rows(np.full((2, 33_025), 255)).offsets is not None
    wide = as_rows(np.full((2, 33_025), 255))
    assert (wide.products(wide) == 255**2 * 33_025).all()


@pytest.mark.parametrize("int8", [True, False])
def test_with_and_without_int8_the_machine_is_libsvms(monkeypatch, int8):
    monkeypatch.setattr(train_svm, "multiplies_bytes", lambda device: int8)
    split = common.load_split("digits", Path("data"), split_seed=0, limit=900)
    X, test = (train_svm.inputs(part, "gram") for part in (split.train, split.test))
    y = split.train.labels.numpy()
    for kernel in ("rbf", "poly"):
        assert_same_machine(X, y, test, kernel=kernel, gamma=0.01 / 255**2, coef0=1.0)


def test_parameters_are_scikit_learns():
    svm = GramSVC(C=2.0, kernel="poly")
    assert clone(svm).get_params() == svm.get_params()
    shared = set(SVC().get_params()) & set(svm.get_params())
    assert {name: SVC().get_params()[name] for name in shared} == {
        name: GramSVC().get_params()[name] for name in shared
    }
    X, y = digits(200)
    assert svm.fit(X, y).score(X, y) == SVC(C=2.0, kernel="poly").fit(X, y).score(X, y)
    assert svm.n_iter_.shape == svm.intercept_.shape == (45,)


X, Y = digits(60)
BAD_DATA = [
    (np.where(np.eye(*X.shape) > 0, np.nan, X), Y),
    (np.where(np.eye(*X.shape) > 0, np.inf, X), Y),
    (X, Y[:-1]),
    (X[0], Y),
    (X[:0], Y[:0]),
    (X, np.zeros_like(Y)),
    (X, Y + 0.5),
    (np.full(X.shape, "a"), Y),
    (X, None),
]


@pytest.mark.parametrize("data", BAD_DATA)
def test_bad_data_is_refused_as_by_scikit_learn(data):
    for svm in (SVC(), GramSVC()):
        with pytest.raises(ValueError, match=r".+"):
            svm.fit(*data)


BAD_PARAMETERS = [
    {"C": 0}, {"C": -1}, {"C": np.nan}, {"C": "1"}, {"gamma": -1}, {"gamma": "wide"},
    {"gamma": None}, {"degree": -1}, {"tol": 0}, {"coef0": np.inf}, {"kernel": "gauss"},
    {"decision_function_shape": "all"},
]  # fmt: skip


@pytest.mark.parametrize("parameters", BAD_PARAMETERS, ids=described)
def test_bad_parameters_are_refused_as_by_scikit_learn(parameters):
    for svm in (SVC(**parameters), GramSVC(**parameters)):
        with pytest.raises(ValueError, match=r".+"):
            svm.fit(X, Y)


def test_predicting_is_refused_before_the_fit_and_for_other_features():
    with pytest.raises(NotFittedError):
        GramSVC().predict(X)
    with pytest.raises(ValueError, match="features"):
        GramSVC().fit(X, Y).predict(X[:, 1:])


def test_projection_is_the_nearest_point():
    """No feasible point is nearer to the target: the optimality condition of a projection."""
    generator = np.random.default_rng(0)
    for _ in range(100):
        n = generator.integers(2, 30)
        signs = generator.choice([-1.0, 1.0], n)
        low, high = np.minimum(0, signs), np.maximum(0, signs)
        inside = generator.uniform(low, high)
        target = 10 ** generator.uniform(-3, 3) * generator.normal(size=n)
        point = train_svm.project(target, low, high, inside.sum())
        assert ((low <= point) & (point <= high)).all()
        assert point.sum() == pytest.approx(inside.sum(), abs=1e-9)
        assert (target - point) @ (inside - point) <= 1e-6 * np.abs(target).max()
