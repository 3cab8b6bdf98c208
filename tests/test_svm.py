"""The solver of train_svm.py against libsvm, as scikit-learn's SVC runs it."""

from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import finish, start
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


def assert_same_machine(X, y, X_test, **parameters) -> None:
    """Each pair's solution of libsvm's problem is feasible, and optimal to tol. Labels differ from
    libsvm's only where a pair all but ties: by less than 10 tol."""
    ours, reference = GramSVC(**parameters).fit(X, y), SVC(**parameters, cache_size=500).fit(X, y)
    assert ours.gamma_ == pytest.approx(reference._gamma)
    own = {name: getattr(ours, name) for name in KERNELS[ours.kernel][1]}
    for column, pair in enumerate(combinations(ours.classes_, 2)):
        rows, beta = np.isin(y, pair), np.zeros(len(X))
        beta[ours.support_] = ours.pair_coef_[:, column]
        assert not beta[~rows].any()
        beta, signs = beta[rows], np.where(y[rows] == pair[0], 1.0, -1.0)
        assert ((signs * beta >= 0) & (signs * beta <= ours.C)).all()
        assert abs(beta.sum()) <= 1e-9 * ours.C
        kernel = pairwise_kernels(X[rows], metric=ours.kernel, gamma=ours.gamma_, **own)
        gradient = signs - kernel @ beta
        rise, fall = (gradient[beta * way < ours.C * (signs == way)] for way in (1, -1))
        assert rise.max(initial=-np.inf) - fall.min(initial=np.inf) <= 1.01 * ours.tol
    differ = ours.predict(X_test) != reference.predict(X_test)
    assert (np.abs(ours._pair_decisions(X_test)).min(1)[differ] <= 10 * ours.tol).all()


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


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
def test_digits_give_libsvms_machines(parameters):
    X, y = some_digits(1797)
    assert_same_machine(X[:600], y[:600], X[600:], **parameters)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("name", "classes"), [("mnist", [4, 7, 9]), ("fashion", [0, 2, 6])])
def test_real_images_give_libsvms_machines(real_data, name, classes, kernel):
    """Of three classes that are hard to tell apart, with more images than a working set holds."""
    split, parts = common.load_split(name, real_data, seed=0, limit=5000), []
    for part in (split.train, split.test):
        labels = part.labels.numpy()
        chosen = np.isin(labels, classes)
        parts += [train_svm.inputs(part)[chosen], labels[chosen]]
    assert_same_machine(*parts[:3], kernel=kernel, degree=2, coef0=1.0)


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
    if request.param and not train_svm.multiplies_bytes():
        pytest.skip("this CPU has no AVX512-VNNI")
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


def test_bytes_are_multiplied_exactly_where_onednn_may_not_use_vnni(tmp_path):
    code = "from train_svm import *; rows = byte_rows(*to_bytes(np.repeat([[0], [255]], 784, 1)));"
    code += "print(rows.products(rows).tolist())"
    process = start("-c", code, cwd=tmp_path, ONEDNN_MAX_CPU_ISA="AVX2")
    assert finish(process)[1] == f"[[0.0, 0.0], [0.0, {255.0**2 * 784}]]\n"


def test_other_numbers_single_columns_and_rows_too_wide_for_exact_sums_are_no_bytes(int8):
    """float32 is exact to 2^24, which is 128^2 x 1024."""
    for row in ([-1, 0], [0, 256], [0.5, 2], [0.5, 1], [1], [np.nextafter(1 / 255, 1), 0]):
        assert to_bytes(np.array([row])) is None
    assert to_bytes(np.full((2, 1025), 255)) is None
    rows = byte_rows(*to_bytes(np.repeat([[0], [255]], 1024, axis=1)))
    assert (rows.products(rows).diagonal().numpy() == [0, 255**2 * 1024]).all()
    assert rows.square_distances(rows)[0, 1] == 255**2 * 1024


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_machine_of_bytes_decides_about_any_numbers(digits, kernel):
    """Fractions, negative numbers and larger ones among the rows do not change the others'."""
    X, test = (train_svm.inputs(part)[:400] for part in (digits.train, digits.test))
    ours, theirs = GramSVC(kernel=kernel, tol=1e-5), SVC(kernel=kernel, tol=1e-5)
    for svm in (ours, theirs.set_params(decision_function_shape="ovo")):
        svm.fit(X, digits.train.labels[:400].numpy())
    mixed = np.vstack([test, test * 1.5 - 0.03])
    found = ours._pair_decisions(mixed)
    assert found[: len(test)] == pytest.approx(ours._pair_decisions(test), abs=1e-9)
    assert found == pytest.approx(theirs.decision_function(mixed), abs=0.01)


def linear(rows, others, svm):
    return rows.products(others)


def laplacian(rows, others, svm):
    return torch.exp(-svm.gamma_ * torch.cdist(rows.numbers(), others.numbers(), p=1))


OWN = [(linear, linear_kernel), (laplacian, laplacian_kernel)]


@pytest.mark.parametrize("shift", [0, 0.001], ids=["bytes", "fractions"])
@pytest.mark.parametrize(("kernel", "theirs"), OWN)
def test_an_own_kernel_gives_scikit_learns_machine(digits, monkeypatch, kernel, theirs, shift):
    monkeypatch.setitem(KERNELS, "own", (kernel, ()))
    X, test = (train_svm.inputs(part)[:300] + shift for part in (digits.train, digits.test))
    y, options = digits.train.labels[:300].numpy(), {} if kernel is linear else {"gamma": 0.01}
    both = {"tol": 1e-5, "C": 0.01 if kernel is linear else 1.0}
    ours = GramSVC(kernel="own", **both, **options).fit(X, y)
    reference = SVC(kernel=lambda a, b: theirs(a, b, **options), **both).fit(X, y)
    test = test[np.abs(ours._pair_decisions(test)).min(1) > 1e-3]  # 100 tol: no pair all but ties
    assert len(test) > 200
    expected = reference.decision_function(test)
    assert ours.decision_function(test) == pytest.approx(expected, abs=1e-3)


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


def test_threads_share_the_memory_of_kept_columns(monkeypatch):
    """So their number does not raise the total. What is not kept is computed again."""
    monkeypatch.setattr(train_svm, "VIOLATING", 40)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    (X, y), flops = some_digits(900), []
    for threads, kept_bytes in ((4, 4e6), (4, 8e4), (8, 16e4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(train_svm, "KEPT_BYTES", kept_bytes)
        flops.append(GramSVC(C=10).fit(X[:600], y[:600]).training_flops_)
        assert_same_machine(X[:600], y[:600], X[600:], C=10)
    assert flops[0] < flops[1] == flops[2]


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
