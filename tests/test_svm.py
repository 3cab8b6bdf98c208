"""The solver of train_svm.py against libsvm, as scikit-learn's SVC runs it."""

import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import estimator_checks_generator

import common
import train_svm
from train_svm import KERNELS, GramSVC, are_bytes, make_rows


def some_digits(n: int):
    images, labels = load_digits(return_X_y=True)
    return images[:n] / 16, labels[:n]


def kernel_matrix(svm: GramSVC, a, b):
    if svm.kernel == "rbf":
        return rbf_kernel(a, b, gamma=svm.gamma_)
    return polynomial_kernel(a, b, degree=svm.degree, gamma=svm.gamma_, coef0=svm.coef0)


def libsvm_betas(svc: SVC, n: int) -> list[np.ndarray]:
    """The signed coefficients [n] of each pair, from the layout that libsvm packs them into."""
    betas, starts = [], np.concatenate([[0], np.cumsum(svc.n_support_)])
    sign = -1 if len(svc.classes_) == 2 else 1  # scikit-learn turns that of two classes
    for first, second in combinations(range(len(svc.classes_)), 2):
        beta = np.zeros(n)
        for k, row in ((first, second - 1), (second, first)):
            part = slice(starts[k], starts[k + 1])
            beta[svc.support_[part]] = sign * svc.dual_coef_[row, part]
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
    assert ((low <= beta) & (beta <= high)).all()
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
        ours.decision_function_shape = "ovo"
        decisions = ours.decision_function(X_test[differ]).reshape(differ.sum(), -1)
        assert (np.abs(decisions).min(1) <= 3 * tol).all()


SETTINGS = [
    {"kernel": "rbf"}, {"kernel": "rbf", "C": 0.01}, {"kernel": "rbf", "C": 1e3},
    {"kernel": "rbf", "gamma": "auto", "C": 10}, {"kernel": "rbf", "gamma": 50.0},
    {"kernel": "rbf", "gamma": 1e-6}, {"kernel": "rbf", "gamma": 1e-4, "C": 1e3},
    {"kernel": "rbf", "tol": 1e-5}, {"kernel": "rbf", "tol": 0.1}, {"kernel": "poly"},
    {"kernel": "poly", "degree": 2, "coef0": 1.0}, {"kernel": "poly", "degree": 1, "C": 0.1},
    {"kernel": "poly", "degree": 5, "coef0": 0.5, "gamma": 0.1},
    {"kernel": "poly", "degree": 3, "coef0": 1.0, "gamma": 1.0, "C": 100},
    {"kernel": "poly", "degree": 3, "coef0": -1.0, "C": 0.1},
    {"kernel": "poly", "degree": 2, "gamma": 1e-4}, {"kernel": "poly", "tol": 1e-6, "C": 0.5},
]  # fmt: skip


def described(parameters: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())


@pytest.mark.parametrize("parameters", SETTINGS, ids=described)
def test_digits_give_libsvms_machines(parameters):
    X, y = some_digits(1797)
    assert_same_machine(X[:600], y[:600], X[600:], **parameters)


REAL = [
    {"kernel": "rbf"}, {"kernel": "rbf", "gamma": 0.1}, {"kernel": "poly", "coef0": 1.0},
    {"kernel": "poly", "coef0": 1.0, "degree": 2, "gamma": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("parameters", REAL, ids=described)
@pytest.mark.parametrize(("name", "classes"), [("mnist", [4, 7, 9]), ("fashion", [0, 2, 6])])
def test_real_images_give_libsvms_machines(real_data, name, classes, parameters):
    """Of three classes that are hard to tell apart, with more images than a working set holds."""
    split, parts = common.load_split(name, real_data, split_seed=0, limit=5000), []
    for part in (split.train, split.test):
        labels = part.labels.numpy()
        chosen = np.isin(labels, classes)
        parts += [train_svm.inputs(part, "sklearn")[chosen], labels[chosen]]
    assert_same_machine(*parts[:3], **parameters)


@pytest.mark.parametrize("sizes", [(4, 8, 0), (10, 40, 30), (10**4, 10**4, 10**4)], ids=str)
@pytest.mark.parametrize("parameters", [SETTINGS[3], SETTINGS[4], SETTINGS[10]], ids=described)
def test_any_size_of_working_set_gives_libsvms_machines(monkeypatch, parameters, sizes):
    for name, size in zip(("VIOLATING", "LARGEST", "NEWTON_SIZE"), sizes, strict=True):
        monkeypatch.setattr(train_svm, name, size)
    X, y = some_digits(500)
    assert_same_machine(X[:250], y[:250], X[250:], **parameters)


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


@pytest.mark.parametrize("shape", ["ovr", "ovo"])
@pytest.mark.parametrize("words", ["abcdefghij", "hhhhhlllll"])
def test_labels_may_be_words_and_decisions_are_scikit_learns(words, shape):
    X, y = some_digits(900)
    labels = np.array(list(words))[y]
    ours, svc = (
        make(decision_function_shape=shape, tol=1e-6).fit(X[:600], labels[:600])
        for make in (GramSVC, SVC)
    )
    assert (ours.predict(X[600:]) == svc.predict(X[600:])).all()
    found, expected = (svm.decision_function(X[600:]) for svm in (ours, svc))
    assert found == pytest.approx(expected, abs=1e-4)


# --- products of bytes ---------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["int8", "float32"])
def int8(request, monkeypatch) -> bool:
    """Whether bytes are multiplied as int8 or as float32."""
    monkeypatch.setattr(train_svm, "multiplies_bytes", lambda: request.param)
    return request.param


@pytest.mark.parametrize("features", [2, 200, 785])
def test_products_and_distances_of_bytes_are_exact(int8, features):
    """Those of bright rows, which are beyond 2^24, too."""
    X = np.random.default_rng(0).integers(256, size=(50, features), dtype=np.uint8)
    X[:2], X[2] = 255, 0
    assert are_bytes(X)
    rows, whole = make_rows(X, None), X.astype(np.int64)
    assert rows.values.dtype == (torch.int8 if int8 else torch.float32)
    for at in (slice(5, 44), torch.tensor([7, 0, 2])):
        assert (rows.products(rows[at]).numpy() == whole @ whole[at].T).all()
        distances = ((whole[:, None] - whole[at]) ** 2).sum(-1)
        assert (rows.square_distances(rows[at]).numpy() == distances).all()


def test_other_numbers_single_columns_and_rows_too_wide_for_exact_sums_are_no_bytes(int8):
    """2^31 / 255^2 features with int8; with float32, which is exact to 2^24, 2^24 / 128^2."""
    assert not any(are_bytes(np.array([row])) for row in ([-1, 0], [0, 256], [0.5, 1], [1]))
    widest = 33_025 if int8 else 1023
    assert not are_bytes(np.full((2, widest + 1), 255))
    extremes = np.repeat([[0], [255]], widest, axis=1)
    assert are_bytes(extremes)
    rows = make_rows(extremes, None)
    assert (rows.products(rows).diagonal().numpy() == [0, 255**2 * widest]).all()
    assert rows.square_distances(rows)[0, 1] == 255**2 * widest


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_and_without_int8_the_machine_is_libsvms_and_the_same(digits, monkeypatch, kernel):
    X, y = train_svm.inputs(digits.train, "gram")[:600], digits.train.labels[:600].numpy()
    parameters, machines = {"kernel": kernel, "gamma": 0.01 / 255**2, "coef0": 1.0}, []
    for int8 in (True, False):
        monkeypatch.setattr(train_svm, "multiplies_bytes", lambda int8=int8: int8)
        machines.append(GramSVC(**parameters).fit(X, y))
    assert (machines[0].n_iter_ == machines[1].n_iter_).all()
    assert (machines[0].pair_coef_ == machines[1].pair_coef_).all()
    assert_same_machine(X, y, train_svm.inputs(digits.test, "gram"), **parameters)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_machine_of_bytes_decides_about_any_numbers(digits, kernel):
    """Fractions, negative numbers and larger ones among the rows do not change the others'."""
    X, test = (train_svm.inputs(part, "gram")[:400] for part in (digits.train, digits.test))
    ours, theirs = (
        make(kernel=kernel, decision_function_shape="ovo").fit(X, digits.train.labels[:400].numpy())
        for make in (GramSVC, SVC)
    )
    mixed = np.vstack([test, test * 1.5 - 9.0])
    found = ours.decision_function(mixed)
    assert found[: len(test)] == pytest.approx(ours.decision_function(test), abs=1e-9)
    assert found == pytest.approx(theirs.decision_function(mixed), abs=0.02)


# --- numbers of any size -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [np.float16, lambda X: (1e20 * X).astype(np.float32), lambda X: 1e150 * X, lambda X: 1e8 + X],
    ids=["float16", "float32 of 1e20", "float64 of 1e150", "far from the origin"],
)
def test_neither_scale_nor_shift_changes_the_accuracy(change):
    """Of rbf with gamma scale; far from the origin libsvm itself loses half of it."""
    X, y = some_digits(1797)
    expected = SVC().fit(X[:600], y[:600]).score(X[600:], y[600:])
    X = change(X)
    assert GramSVC().fit(X[:600], y[:600]).score(X[600:], y[600:]) == pytest.approx(expected)


def test_a_row_that_overflows_outside_the_first_working_set_raises():
    """Its column makes the gradient inf - inf, which no comparison sees."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(1500, 5))
    y = X[:, 0] + generator.normal(size=1500) > 0
    X[100] *= 1e200
    with pytest.raises(FloatingPointError, match="not finite"):
        GramSVC(kernel="poly", degree=2, gamma=1.0, coef0=1.0).fit(X, y)


def test_an_ill_conditioned_kernel_ends_with_a_solution_or_a_warning():
    generator = np.random.default_rng(0)
    X, y = generator.normal(loc=100, size=(100, 2)), generator.integers(2, size=100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        svm = GramSVC(kernel="poly").fit(X, y)
    if not any(issubclass(each.category, ConvergenceWarning) for each in caught):
        (beta,), signs = our_betas(svm, 100), np.where(y == 0, 1.0, -1.0)
        assert violation(kernel_matrix(svm, X, X), beta, signs, 1.0) <= 1.001e-3


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


def test_parameters_and_their_defaults_are_scikit_learns():
    theirs, ours = SVC().get_params(), GramSVC().get_params()
    assert {name: theirs[name] for name in ours} == ours


BAD_PARAMETERS = [
    {"C": 0}, {"C": -1}, {"C": np.nan}, {"C": "1"}, {"gamma": -1}, {"gamma": "wide"},
    {"gamma": None}, {"degree": -1}, {"tol": 0}, {"coef0": np.inf}, {"kernel": "gauss"},
    {"decision_function_shape": "all"},
]  # fmt: skip


@pytest.mark.parametrize("parameters", BAD_PARAMETERS, ids=described)
def test_bad_parameters_are_refused_as_by_scikit_learn(parameters):
    for svm in (SVC(**parameters), GramSVC(**parameters)):
        with pytest.raises(ValueError, match=r".+"):
            svm.fit(*some_digits(60))


def test_an_interrupted_fit_leaves_no_machine(monkeypatch):
    """Not even the former one."""

    def interrupt(*_):
        raise KeyboardInterrupt

    X, y = some_digits(100)
    svm = GramSVC().fit(X, y)
    monkeypatch.setattr(train_svm, "solve", interrupt)
    with pytest.raises(KeyboardInterrupt):
        svm.fit(X, y)
    with pytest.raises(NotFittedError):
        svm.predict(X)


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
    with monkeypatch.context() as patch:
        patch.setattr(train_svm, "NEWTON_SIZE", 0)
        assert GramSVC(kernel=name).fit(X, y).training_flops_ == 2 * 64 * sum(counts) > 0
    counts.clear()
    assert GramSVC(kernel=name).fit(X, y).training_flops_ > 2 * 64 * sum(counts)
