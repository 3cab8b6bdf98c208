"""Train support vector machines on pixels / 255; several values of a flag make a grid.

    python train_svm.py --dataset mnist fashion
    python train_svm.py --kernel rbf --C 1 10 --gamma scale 0.01
    python train_svm.py --kernel rbf --C 1 --gamma scale --solver sklearn

Without flags it runs 24 settings: C 0.1 and 1, gamma scale, auto, 0.01 and 0.1, and for poly degree
2 and 3. Each setting is one row of results/svm.csv; finished rows are skipped. train_time_ms is the
time of the fit alone, predict_time_ms that of all test images' predictions. training_flops is
2 x features x kernel values computed in the fit, plus the FLOPs of its Cholesky factors.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, count, pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC
from sklearn.utils.multiclass import _ovr_decision_function, check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

import common

# --- kernels -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Rows of X for kernels, which use products, square_distances and numbers only.

    values [n, features], whose squared lengths are squares [n], are X, float64. Or X * unit holds
    bytes x (unit is 1 or 255), and values are x - 128, int8 or float32, whose inner products are
    exact. Then adding the offsets [n] of both rows gives the product of bytes: x y =
    (x - 128) (y - 128) + offset_x + offset_y, offset_x = 128 sum(x) - 128^2 features / 2."""

    values: Tensor
    squares: Tensor
    offsets: Tensor
    unit: int = 1

    def __getitem__(self, at: Tensor | slice) -> "Rows":
        return Rows(self.values[at], self.squares[at], self.offsets[at], self.unit)

    def _multiply(self, others: "Rows") -> Tensor:
        """Inner products of the values [rows, others], of bytes int32."""
        if self.values.dtype == torch.int8:
            return torch._int_mm(self.values, others.values.T)
        # A part stays in the cache; of all rows at once, packing takes as long as multiplying.
        parts = [self.values @ part.T for part in others.values.split(1000)]
        products = torch.cat(parts, 1)
        return products.int() if products.dtype == torch.float32 else products

    def _times(self, products: Tensor, factor: float) -> Tensor:
        """Products of values, times a factor, in units of X, float64."""
        return products.mul(torch.tensor(factor / self.unit**2, dtype=torch.float64))

    def products(self, others: "Rows", factor: float = 1.0) -> Tensor:
        """factor a b of all rows a and others b of X, float64 [rows, others]."""
        products = self._multiply(others).add_(self.offsets[:, None]).add_(others.offsets)
        return self._times(products, factor)

    def square_distances(self, others: "Rows", factor: float = 1.0) -> Tensor:
        """factor |a - b|^2 of all rows a and others b of X, float64 [rows, others]."""
        products = self._multiply(others)
        torch.add(others.squares, products, alpha=-2, out=products)
        return self._times(products.add_(self.squares[:, None]).clamp_(min=0), factor)

    def numbers(self) -> Tensor:
        """X itself, float64 [n, features]."""
        is_float = self.values.dtype == torch.float64
        return self.values if is_float else (self.values.double() + 128) / self.unit


def rbf(rows: Rows, others: Rows, svm) -> Tensor:
    """exp(-gamma |a - b|^2) of all rows a and others b, float64 [rows, others]."""
    return rows.square_distances(others, -svm.gamma_ / math.log(2)).exp2_()  # exp_ is slower


def poly(rows: Rows, others: Rows, svm) -> Tensor:
    """(gamma a b + coef0)^degree of all rows a and others b, float64 [rows, others]."""
    return rows.products(others, svm.gamma_).add_(svm.coef0).pow_(svm.degree)


# A function of two sets of rows and the GramSVC, and the parameters that are its own: degree, coef0
# or none. gamma and C belong to all.
KERNELS = {"poly": (poly, ("degree", "coef0")), "rbf": (rbf, ())}


@cache
def multiplies_bytes() -> bool:
    """Whether this CPU has AVX512-VNNI, which multiplies int8 4 times as fast as float32, and
    oneDNN uses it; else (ONEDNN_MAX_CPU_ISA, some hypervisors) its large products are wrong."""
    extremes = torch.tensor([[-128], [127]], dtype=torch.int8).repeat(1, 64)
    exact = extremes.int() @ extremes.int().T
    return torch.cpu._is_vnni_supported() and torch._int_mm(extremes, extremes.T).equal(exact)


def to_bytes(X: np.ndarray, unit: int | None = None) -> tuple[np.ndarray, int] | None:
    """X * unit as bytes, and the unit (1 or 255); None if X holds other numbers or is too wide."""
    # float32 is exact to 2^24. PyTorch 2.11 multiplies a single column wrong.
    if not 2 <= X.shape[1] <= 2**24 / 128**2:
        return None
    unit = unit or (1 if X.max() > 1 else 255)
    whole = np.empty(X.shape, np.uint8)
    for start in range(0, len(X), 500):  # few enough to stay in the cache
        part = X[start : start + 500]
        rounded = np.rint(part * float(unit))
        if rounded.min() < 0 or rounded.max() > 255 or (rounded / unit != part).any():
            return None
        whole[start : start + 500] = rounded
    return whole, unit


def byte_rows(pixels: np.ndarray, unit: int) -> Rows:
    """Rows of bytes."""
    pixels = torch.from_numpy(pixels)
    values = (pixels ^ 128).view(torch.int8)
    squares = torch.cat([part.int().square().sum(1) for part in values.split(1000)]).int()
    offsets = 128 * pixels.sum(1, dtype=torch.int32) - 2**13 * pixels.shape[1]
    return Rows(values if multiplies_bytes() else values.float(), squares, offsets, unit)


def float_rows(X: np.ndarray) -> Rows:
    """Rows of any numbers."""
    values = torch.from_numpy(X.astype(np.float64))
    return Rows(values, values.square().sum(1), torch.zeros(len(values)))


# --- the solver ----------------------------------------------------------------------------------
#
# A support vector machine of k classes is k (k - 1) / 2 of two classes. Each maximises
#     sum_i y_i beta_i - 1/2 beta' K beta,   sum_i beta_i = 0,   0 <= y_i beta_i <= C,   y_i = +-1
# (the dual of libsvm, Chang and Lin, ACM TIST 2011, with beta_i = y_i alpha_i). Its gradient is
# y - K beta. beta may rise where it is below its upper bound and fall where it is above its lower;
# it is optimal when no gradient of the first kind exceeds one of the second, and libsvm stops
# when none does by more than tol. Rounds of three steps get there:
#   1. A working set is chosen: the variables that violate this most, and those between the bounds
#      (Joachims, Advances in Kernel Methods 1999; at least libsvm's pair, so that it converges).
#   2. Sequential minimal optimisation on its kernel matrix, two variables at a time, chosen by
#      second order as in libsvm (Fan, Chen and Lin, JMLR 2005). It is fast at finding out which
#      variables are at a bound.
#   3. Newton steps for the variables between the bounds. They end what would take SMO most of its
#      steps, where the kernel matrix is ill-conditioned.
# A column of the kernel matrix is computed in full when its variable has changed, and kept.

VIOLATING = 600  # variables in a working set, if no more than half as many are between the bounds
LARGEST = 3000  # working set: its kernel matrix takes 72 MB in each thread
AT_ONCE = 100  # columns of the kernel matrix computed in one go: more would leave the cache
KEPT_BYTES = 2**31  # of columns, in all threads together; one thread takes a quarter
SMO_STEPS = 10  # at most, for each variable of a working set
NEWTON_SIZE, NEWTON_STEPS = 1500, 3  # variables and steps at most, in one round
PATIENCE = 100  # rounds for the objective to grow by 1e-4: huge kernel values may never reach tol


def smo(kernel, gradient, beta, low, high, tol: float, limit: int) -> int:
    """Improve beta and gradient in place, two variables a step, until no pair violates optimality
    by more than tol; returns the number of steps, limit at most. All arrays are float64 [n]."""
    half = kernel.diagonal() / 2
    can_rise = np.where(beta < high, gradient, -np.inf)
    can_fall = np.where(beta > low, gradient, np.inf)
    for step in range(limit):
        i, lowest = can_rise.argmax(), can_fall.argmin()
        if can_rise[i] - can_fall[lowest] <= tol:
            return step
        violation = np.maximum(can_rise[i] - can_fall, 0)
        curvature = half - kernel[i]
        curvature += half[i]
        np.maximum(curvature, 5e-13, out=curvature)  # libsvm's, for equal images
        j = (violation * violation / curvature).argmax()
        change = min(violation[j] / (2 * curvature[j]), high[i] - beta[i], beta[j] - low[j])
        beta[i] = high[i] if change == high[i] - beta[i] else beta[i] + change
        beta[j] = low[j] if change == beta[j] - low[j] else beta[j] - change
        moved = kernel[i] - kernel[j]
        moved *= change
        for values in (gradient, can_rise, can_fall):
            values -= moved
        for k in (i, j):
            can_rise[k] = gradient[k] if beta[k] < high[k] else -np.inf
            can_fall[k] = gradient[k] if beta[k] > low[k] else np.inf
    return limit


def newton(kernel, gradient, beta, low, high, ridge: float) -> list[int]:
    """Improve beta and gradient in place by Newton steps of all variables between their bounds,
    their sum constant; returns the number of variables of each step. A step that would leave the
    bounds is cut short or projected, whichever gains more. All arrays are float64 [n]."""
    sizes, room = [], 0.0
    while room < 1 and len(sizes) < NEWTON_STEPS:
        free = np.flatnonzero((beta > low) & (beta < high))
        if not 2 <= len(free) <= NEWTON_SIZE:
            break
        columns = torch.from_numpy(kernel[free])
        inner, slope = columns[:, free], torch.from_numpy(gradient[free])
        # Below the second ridge, rounding would make the factor of an ill-conditioned matrix fail.
        ridge = max(ridge, 1e-15 * len(beta) * inner.diagonal().max().item())
        factor, failed = torch.linalg.cholesky_ex(inner + ridge * torch.eye(len(free)).double())
        sides = torch.stack([slope, torch.ones_like(slope)], 1)
        wish, one = torch.cholesky_solve(sides, factor).numpy().T
        wish = wish - wish.sum() / one.sum() * one
        here, floor, ceiling = beta[free], low[free], high[free]
        limit = np.where(wish > 0, ceiling - here, here - floor)
        room = (limit / np.maximum(np.abs(wish), 1e-300)).min()
        points = [here + min(1.0, room) * wish]
        if room < 1:
            points.append(project(here + wish, floor, ceiling, here.sum()))
        points = [snap(point, floor, ceiling) for point in points]
        moves = [torch.from_numpy(point - here) for point in points]
        gains = [(slope @ move - move @ (inner @ move) / 2).item() for move in moves]
        best = int(np.argmax(gains))
        if failed or not gains[best] > 0:
            break
        gradient -= (moves[best] @ columns).numpy()
        beta[free] = points[best]
        sizes.append(len(free))
    return sizes


def snap(point, low, high):
    """point with what has reached a bound, but for rounding, put on it."""
    margin = 1e-12 * (high - low)
    return np.where(point <= low + margin, low, np.where(point >= high - margin, high, point))


def project(target, low, high, total: float):
    """The point within the bounds and of this sum that is nearest to target: clip(target - shift),
    whose shift is found by Newton's method between two ends."""
    left, right, shift = (target - high).min(), (target - low).max(), 0.0
    for _ in range(100):
        point = np.clip(target - shift, low, high)
        excess = point.sum() - total
        if abs(excess) <= 1e-13 * np.abs(point).sum():
            break
        left, right = (shift, right) if excess > 0 else (left, shift)
        inside = np.count_nonzero((point > low) & (point < high))
        shift = shift + excess / inside if inside else math.inf
        if not left < shift < right:
            shift = (left + right) / 2
    return point


def working_set(can_rise, can_fall):
    """Sorted indices, LARGEST at most: all variables between their bounds, and as many, but not
    fewer than VIOLATING, of which half should rise most and half should fall most. can_rise [n] is
    the gradient, -inf where a variable cannot rise, can_fall likewise inf."""
    top, bottom = can_rise.max(), can_fall.min()
    free = np.flatnonzero(np.isfinite(can_rise - can_fall))
    half = min(max(VIOLATING // 2, len(free)), LARGEST // 4, len(can_rise))
    rising = np.argpartition(-can_rise, half - 1)[:half]
    falling = np.argpartition(can_fall, half - 1)[:half]
    violating = np.union1d(rising[can_rise[rising] > bottom], falling[can_fall[falling] < top])
    room = LARGEST - len(violating)
    if len(free) > room:
        far = np.abs(can_rise[free] - (top + bottom) / 2)
        free = free[np.argpartition(-far, room - 1)[:room]]
    return np.union1d(violating, free)


class KernelMatrix:
    """The kernel matrix of n rows. Only what is asked for is computed; flops counts it. Columns are
    kept, up to `room` bytes."""

    def __init__(self, kernel: Callable, rows: Rows, room: float):
        self.kernel, self.rows, self.room, self.flops = kernel, rows, room, 0
        self.kept, self.is_kept = [], np.zeros(len(rows.values), bool)

    def compute(self, rows: Rows, others: Rows) -> Tensor:
        """Its values for some of the rows and others, float64 [rows, others]."""
        self.flops += 2 * len(rows.values) * others.values.numel()
        return self.kernel(rows, others)

    def product(self, vector):
        """The matrix times a vector, float64 [n]; most of the vector is zero."""
        total, coef = np.zeros(len(vector)), torch.from_numpy(vector)
        for w, columns in self.kept:
            at = np.flatnonzero(vector[w])
            total += (coef[w[at]] @ columns[at]).numpy()
        new = np.flatnonzero((vector != 0) & ~self.is_kept)
        for start in range(0, len(new), AT_ONCE):
            w = new[start : start + AT_ONCE]
            columns = self.compute(self.rows[w], self.rows)
            total += (coef[w] @ columns).numpy()
            if total.nbytes * (self.is_kept.sum() + len(w)) <= self.room:
                self.kept.append((w, columns))
                self.is_kept[w] = True
        return total


def solve(kernel: KernelMatrix, signs, C: float, tol: float) -> tuple:
    """Solve a two-class problem. signs is +-1, float64 [n]. Raises FloatingPointError if kernel
    values are not finite. Returns beta [n], the intercept, steps, the violation of optimality that
    is left, and FLOPs."""
    beta, gradient = np.zeros(len(signs)), signs.copy()
    low, high = np.minimum(0, C * signs), np.maximum(0, C * signs)
    steps, flops, last = 0, 0, -math.inf
    for number in count():
        can_rise = np.where(beta < high, gradient, -np.inf)
        can_fall = np.where(beta > low, gradient, np.inf)
        top, bottom = can_rise.max(), can_fall.min()
        objective = beta @ (signs + gradient) / 2
        stuck = number % PATIENCE == 0 and objective <= 1.0001 * last
        if top - bottom <= tol or stuck:
            break
        last = objective if number % PATIENCE == 0 else last
        w = working_set(can_rise, can_fall)
        rows = kernel.rows[w]
        block = kernel.compute(rows, rows).numpy()
        if not math.isfinite(block.sum() + gradient.sum()):
            raise FloatingPointError("kernel values are not finite; use a smaller gamma or degree")
        part = [values[w] for values in (gradient, beta, low, high)]
        goal = tol / 2 if len(w) == len(signs) else max((top - bottom) / 10, tol / 2)
        steps += smo(block, *part, goal, SMO_STEPS * len(w))
        # This ridge changes no gradient by more than a hundredth of tol.
        sizes = newton(block, *part, tol / (100 * C))
        steps += len(sizes)
        flops += sum(size**3 / 3 for size in sizes)
        if len(w) < len(signs):
            change = np.zeros(len(signs))
            change[w] = part[1] - beta[w]
            gradient -= kernel.product(change)
        gradient[w], beta[w] = part[:2]
    free = (beta > low) & (beta < high)
    intercept = gradient[free].mean() if free.any() else (top + bottom) / 2
    return beta, intercept, steps, top - bottom, flops + kernel.flops


def in_threads(function: Callable, items) -> list:
    """Apply function to each item, in as many threads as PyTorch uses, each of which uses one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


class GramSVC(ClassifierMixin, BaseEstimator):
    """C-support vector classification, as sklearn.svm.SVC: its parameters, its one-against-one
    votes and their ties, libsvm's stopping rule. A kernel must be positive semi-definite, else the
    solution differs from libsvm's. It is fast where X or X * 255 holds bytes.

    After fit: classes_, support_ (indices of training rows), support_vectors_, pair_coef_ [support
    vectors, pairs] (libsvm's y alpha), intercept_ and n_iter_ [pairs], gamma_ and training_flops_.
    Pairs of classes are in the order 01, 02, ..., 12, ..., the first of them positive. Raises
    FloatingPointError if kernel values are not finite. After a fit with several threads a forked
    process cannot fit: OpenMP's threads do not survive a fork, and it would wait for ever."""

    def __init__(self, *, C=1.0, kernel="rbf", degree=3, gamma="scale", coef0=0.0, tol=1e-3):
        self.C, self.kernel, self.degree, self.gamma, self.coef0 = C, kernel, degree, gamma, coef0
        self.tol = tol

    def fit(self, X, y):
        """Fit to X [n, features] of any number type and y [n] labels of any kind."""
        if self.kernel not in KERNELS or self.C in (np.inf,):
            raise ValueError(f"GramSVC takes no kernel {self.kernel!r} with C {self.C!r}")
        # SVC refuses all other bad parameters, for two rows as for many.
        SVC(**self.get_params() | {"kernel": "rbf"}).fit([[0], [1]], [0, 1])
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError("The number of classes has to be greater than one; got 1 class")
        vars(self).pop("support_", None)  # an interrupted fit leaves no machine
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], np.arange(len(classes) + 1))
        if found := to_bytes(X):
            pixels, self._unit = found
            self.gamma_ = gamma_value(self.gamma, pixels, self._unit)
            rows = byte_rows(pixels[order], self._unit)
        else:
            self.gamma_, self._unit = gamma_value(self.gamma, X), None
            rows = float_rows(X[order])
        pairs = list(combinations([slice(*ends) for ends in pairwise(starts)], 2))
        # A share for each thread: first come, first served would make results depend on timing.
        room = KEPT_BYTES / max(4, torch.get_num_threads())
        solutions = in_threads(partial(self._solve_pair, rows, room), pairs)
        betas, intercepts, steps, violations, flops = zip(*solutions, strict=True)
        coef = np.zeros((len(y), len(pairs)))
        for column, (pair, beta) in enumerate(zip(pairs, betas, strict=True)):
            coef[np.r_[pair], column] = beta
        support = np.flatnonzero(coef.any(axis=1))
        if max(violations) > self.tol:
            warnings.warn("tol was not reached", ConvergenceWarning, stacklevel=2)
        self.intercept_, self.n_iter_ = np.array(intercepts), np.array(steps)
        self.training_flops_ = sum(flops)
        self.classes_, self._starts = classes, np.searchsorted(support, starts)
        self.pair_coef_, self.support_vectors_ = coef[support], X[order[support]]
        self.support_ = order[support]
        return self

    def _solve_pair(self, rows: Rows, room: float, pair: tuple[slice, slice]) -> tuple:
        """Solve the problem of two classes, each a slice of the rows, the first one positive."""
        (kernel, _), places = KERNELS[self.kernel], torch.from_numpy(np.r_[pair])
        matrix = KernelMatrix(lambda *both: kernel(*both, self), rows[places], room)
        signs = np.where(places < pair[0].stop, 1.0, -1.0)
        return solve(matrix, signs, self.C, self.tol)

    def _rows_to_decide(self, X: np.ndarray) -> tuple[Rows, Rows]:
        """The support vectors and X in one unit; as floats if one of them is not bytes."""
        if self._unit and (found := to_bytes(X, self._unit)):
            support, _ = to_bytes(self.support_vectors_, self._unit)
            return byte_rows(support, self._unit), byte_rows(*found)
        return float_rows(self.support_vectors_), float_rows(X)

    def _pair_decisions(self, X) -> np.ndarray:
        """Decision values of each pair of classes, float64 [n, pairs]; positive for its first."""
        check_is_fitted(self, "support_")
        X = validate_data(self, X, reset=False)
        (support, rows), (kernel, _) = self._rows_to_decide(X), KERNELS[self.kernel]
        pairs = np.array(list(combinations(range(len(self.classes_)), 2)))

        def decide(start: int) -> np.ndarray:
            part = rows[start : start + AT_ONCE]
            decisions = np.tile(self.intercept_, (len(part.values), 1))
            for k in range(len(self.classes_)):  # a class has coefficients in its own pairs only
                own, mine = slice(*self._starts[k : k + 2]), (pairs == k).any(1)
                coef = torch.from_numpy(self.pair_coef_[own][:, mine])
                decisions[:, mine] += (kernel(part, support[own], self) @ coef).numpy()
            return decisions

        return np.concatenate(in_threads(decide, range(0, len(X), AT_ONCE)))

    def _votes(self, decisions: np.ndarray) -> np.ndarray:
        """The pairs' votes for each class, and less than a half for the sum of its decision values
        [n, classes]."""
        return _ovr_decision_function(decisions <= 0, -decisions, len(self.classes_))

    def predict(self, X) -> np.ndarray:
        """Labels [n] by the pairs' votes; of equal votes the first class."""
        decisions = self._pair_decisions(X)
        return self.classes_[self._votes(decisions).round().argmax(1)]

    def decision_function(self, X) -> np.ndarray:
        """As scikit-learn's: votes, with the pairs' values to break ties [n, classes]; for two
        classes the pair's value [n], positive for the second."""
        decisions = self._pair_decisions(X)
        return -decisions[:, 0] if len(self.classes_) == 2 else self._votes(decisions)


def gamma_value(gamma: float | str, X: np.ndarray, unit: int = 1) -> float:
    """The number that scale, 1 / (features * variance), and auto, 1 / features, stand for, of
    X / unit."""
    if gamma == "auto":
        return 1 / X.shape[1]
    if gamma == "scale":
        variance = X.var(dtype=np.float64)
        return 1 / (X.shape[1] * variance) * unit**2 if variance else 1.0
    return float(gamma)


# --- rows ----------------------------------------------------------------------------------------


def inputs(part: common.Part) -> np.ndarray:
    """Images [n, 784]: pixels / 255, float64."""
    return part.images.flatten(1).numpy() / 255


def make_svm(row: dict) -> GramSVC | SVC:
    """The estimator of a row, not fitted yet."""
    factors = {name: row[name] for name in ("kernel", "C", "gamma", *KERNELS[row["kernel"]][1])}
    if row["solver"] == "gram":
        return GramSVC(**factors)
    return SVC(**factors, cache_size=1000)  # MiB: a pair's kernel matrix takes half


def train(rows: list[dict], scratch: Path, *, data_dir: Path) -> Iterator[dict]:
    """Fit the SVM of each row, measure it, and yield the row completed."""
    for row in rows:
        split = common.load_split(row["dataset"], data_dir, seed=row["seed"], limit=row["limit"])
        parts = (split.train, split.val, split.test)
        images, val_images, test_images = map(inputs, parts)
        labels, val_labels, test_labels = (part.labels.numpy() for part in parts)
        svm = make_svm(row)
        start = time.perf_counter()
        svm.fit(images, labels)
        fitted = time.perf_counter()
        predictions = svm.predict(test_images)
        predicted = time.perf_counter()
        yield row | split.columns | {
            "val_accuracy": svm.score(val_images, val_labels),
            "test_accuracy": np.mean(predictions == test_labels).item(),
            "train_time_ms": 1e3 * (fitted - start),
            "predict_time_ms": 1e3 * (predicted - fitted),
            "training_flops": getattr(svm, "training_flops_", None),  # scikit-learn counts none
            "support_vectors": len(svm.support_),
            "iterations": int(svm.n_iter_.sum()),
            "gamma_value": gamma_value(row["gamma"], images),
        }  # fmt: skip


@cache
def quick_fit_seconds(kernel: str, solver: str) -> float:
    """Time of a fit on the embedded digits, at 8 positions each, for one image squared."""
    part = common.load_split("digits", None, seed=0).train
    images = torch.cat([part.images.roll((k % 3 - 1, k // 3 - 1), (1, 2)) for k in range(8)])
    part = common.Part(images, part.labels.repeat(8))
    row = {"kernel": kernel, "solver": solver, "C": 1.0, "gamma": 0.01, "degree": 3, "coef0": 1.0}
    start = time.perf_counter()
    make_svm(row).fit(inputs(part), part.labels.numpy())
    return (time.perf_counter() - start) / len(images) ** 2


def estimate_seconds(rows: list[dict]) -> float:
    """About how long a fit and its predictions take, from a quick fit on this machine."""
    row = rows[0]  # no two SVMs share a fit
    n_train, *_ = common.part_sizes(row["limit"] or common.DATASETS[row["dataset"]][0])
    return quick_fit_seconds(row["kernel"], row["solver"]) * n_train**2


# --- command line --------------------------------------------------------------------------------


def grid(args) -> list[dict]:
    """The rows of all SVMs that the flags ask for; each kernel varies only its own factors."""
    names, rows = ("dataset", "seed", "kernel", "C", "gamma", "degree", "coef0"), []
    for row in common.combinations(**{name: getattr(args, name) for name in names}):
        row |= dict.fromkeys({"degree", "coef0"} - {*KERNELS[row["kernel"]][1]})
        row |= {"limit": args.limit, "solver": args.solver}
        if row not in rows:
            rows.append(row)
    return rows


def gamma(text: str) -> float | str:
    """scale, auto, or a number above 0."""
    if text in ("scale", "auto"):
        return text
    return common.number(float, 1e-30, 1e10)(text)


def parse_args(argv: list[str] | None = None):
    parser, number = common.make_grid_parser(__doc__), common.number
    add = parser.add_argument_group("factors, each with one or more values").add_argument
    # fmt: off
    add("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS), help="poly, rbf or both")
    add("--C", nargs="+", type=number(float, 1e-30, 1e10), default=[0.1, 1.0], metavar="C",
        help="weight of training errors")
    add("--gamma", nargs="+", type=gamma, default=["scale", "auto", 0.01, 0.1], metavar="GAMMA",
        help="numbers above 0; scale is 1 / (784 x variance), auto 1 / 784")
    add("--degree", nargs="+", type=number(int, 1, 100), default=[2, 3], metavar="N",
        help="degree of poly")
    add("--coef0", nargs="+", type=number(float, 0, 1e10), default=[1.0], metavar="COEF0",
        help="constant of poly")
    parser.add_argument("--solver", choices=["gram", "sklearn"], default="gram",
                        help="gram is GramSVC of this script, sklearn is scikit-learn's SVC")
    # fmt: on
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return common.run_grid(
        args.results_dir / "svm.csv", grid(args), partial(train, data_dir=args.data_dir),
        estimate_seconds, dry_run=args.dry_run, again=lambda row: args.force,
    )  # fmt: skip


if __name__ == "__main__":
    common.run_main(main)
