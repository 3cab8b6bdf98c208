"""Train support vector machines on pixels / 255; several values of a flag make a grid.

    python train_svm.py --dataset mnist fashion
    python train_svm.py --kernel rbf --C 1 10 --gamma scale 0.01 --train-size 10000
    python train_svm.py --kernel rbf --C 1 --gamma scale --solver sklearn

Writes a row for each setting to results/svm.csv; what is there is not run again. Without flags it
runs 24 settings: C 0.1 and 1, gamma scale, auto, 0.01 and 0.1, and for poly degree 2 and 3.
fit_time_ms and predict_time_ms (all test images) cover nothing but fit and predict. shared_time_ms
is that of the inner products of the training images, computed once for all settings of a data set
if there are more than a few: such a row's setting took shared_time_ms + fit_time_ms by itself.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import combinations, combinations_with_replacement
from numbers import Real
from pathlib import Path
from statistics import median

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

import common
from common import say

KERNELS = {"poly": ("C", "gamma", "degree", "coef0"), "rbf": ("C", "gamma")}
SOLVERS = ("gram", "sklearn")
ROWS = 1000  # images whose kernel values are computed at once
VIOLATING = 600  # variables in a working set, if no more than half as many are between the bounds
LARGEST = 3000  # working set: its kernel matrix takes 72 MB in each thread
AT_ONCE = 100  # columns of the kernel matrix computed in one go: more would leave the cache
SMO_STEPS = 10  # at most, for each variable of a working set
NEWTON_SIZE, NEWTON_STEPS = 1500, 3  # variables and steps at most, in one round
MAX_ROUNDS = 10_000
STORE_ABOVE = 3  # settings of one data set that share inner products: fewer do not gain by storing


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
# Only columns of the kernel matrix whose variable has changed are ever computed in full.


@dataclass(frozen=True)
class Rows:
    """Rows of float32 or float64 numbers [n, features]; or of bytes x as int8, x - 128, with int32
    offsets [n] that make inner products whole again:
    x y = (x - 128) (y - 128) + offset_x + offset_y, offset_x = 128 sum(x) - 128^2 features / 2."""

    values: Tensor
    offsets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, at: Tensor | slice) -> "Rows":
        return Rows(self.values[at], None if self.offsets is None else self.offsets[at])

    def floats(self) -> Tensor:
        return self.values if self.offsets is None else self.values.float() + 128

    def products(self, others: "Rows") -> Tensor:
        """Inner products [rows, others], of bytes int32."""
        if self.offsets is not None and others.offsets is not None:
            products = torch._int_mm(self.values, others.values.T)
            return products.add_(self.offsets[:, None]).add_(others.offsets)
        mine, theirs = self.floats(), others.floats()
        exact = torch.promote_types(mine.dtype, theirs.dtype)
        return mine.to(exact) @ theirs.to(exact).T

    def square_norms(self) -> Tensor:
        """Squared length of each row, float64."""
        parts = (self[start : start + ROWS] for start in range(0, len(self), ROWS))
        return torch.cat([part.floats().double().square().sum(1) for part in parts])


def multiplies_bytes(device: str) -> bool:
    """Whether PyTorch multiplies int8 on this device faster than floats, and right: a CPU with
    AVX512-VNNI does (4 times as fast as float32, where it was measured)."""
    return torch.device(device).type == "cpu" and torch.cpu._is_vnni_supported()


def as_rows(X: np.ndarray, device: str = "cpu") -> Rows:
    """X as bytes, if it holds nothing else and the device is good at them; as float32 if it holds
    integers up to 256 in magnitude only; else as float64."""
    whole = X.dtype == np.uint8 or (np.round(X) == X).all()
    if whole and X.min() >= 0 and X.max() <= 255 and multiplies_bytes(device):
        pixels, features = torch.from_numpy(X.astype(np.uint8)), X.shape[1]
        # PyTorch 2.11 multiplies a single column wrong; more than the upper bound may overflow.
        if 2 <= features < 2**31 / 255**2:
            offsets = 128 * pixels.sum(1, dtype=torch.int32) - 2**13 * features
            return Rows((pixels ^ 128).view(torch.int8), offsets)
    small = whole and np.abs(X).max() <= 256
    return Rows(torch.from_numpy(X.astype(np.float32 if small else np.float64)).to(device))


class Gram:
    """Training rows sorted by class, and their inner products: all of them are stored if they take
    no more than memory_limit bytes (half of what is free by default), else they are computed where
    they are needed. So they are for a single fit (not shared) to bytes, which is then done sooner.

    X is [n, features] of any number type, y any n labels. Products of bytes are exact int32
    numbers; those of integers up to 256 in magnitude are summed in float32, which is exact up to
    2^24; all else is float64."""

    def __init__(
        self, X, y, *, device: str = "cpu", memory_limit: float | None = None, shared: bool = True
    ):
        self.classes, labels = np.unique(y, return_inverse=True)
        self.order = np.argsort(labels, kind="stable")
        self.starts = np.searchsorted(labels[self.order], np.arange(len(self.classes) + 1))
        self.rows = as_rows(np.asarray(X)[self.order], device)
        self.squares = self.rows.square_norms()
        limit = free_memory(device) / 2 if memory_limit is None else memory_limit
        self.bytes = len(self.rows) ** 2 * self.rows[:0].floats().element_size()
        stored = self.bytes <= limit and (shared or self.rows.offsets is None)
        self.matrix = symmetric_product(self.rows) if stored else None

    def products(self, rows: Tensor, columns: Tensor | slice) -> Tensor:
        """Inner products of some rows with others, float64 [rows, columns]."""
        if self.matrix is None:
            return self.rows[rows].products(self.rows[columns]).double()
        if isinstance(columns, slice):
            return self.matrix[:, columns][rows].double()
        return self.matrix[rows[:, None], columns].double()


def symmetric_product(rows: Rows) -> Tensor:
    """The inner products of all rows, of which half are computed and half copied."""
    matrix = rows[:1].products(rows[:1]).new_empty(len(rows), len(rows))
    blocks = [slice(start, start + ROWS) for start in range(0, len(rows), ROWS)]
    for first, second in combinations_with_replacement(blocks, 2):
        products = rows[first].products(rows[second])
        matrix[first, second], matrix[second, first] = products, products.T
    return matrix


def free_memory(device: str) -> float:
    """Bytes that can be had on a GPU, or in this process on Linux and in its container; elsewhere
    half of what the machine has."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvail"))
        limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
        if limit.exists() and limit.read_text().strip() != "max":
            free = min(free, int(limit.read_text()) - int(used.read_text()))
        return free
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def rbf(products: Tensor, row_squares: Tensor, column_squares: Tensor, svm) -> Tensor:
    """exp(-gamma |a - b|^2) of all rows a and b, in place of their inner products."""
    negative = products.mul_(2).sub_(row_squares[:, None]).sub_(column_squares).clamp_(max=0)
    return negative.mul_(svm.gamma_).exp_()


def poly(products: Tensor, row_squares: Tensor, column_squares: Tensor, svm) -> Tensor:
    """(gamma a b + coef0)^degree, in place of inner products."""
    return products.mul_(svm.gamma_).add_(svm.coef0).pow_(svm.degree)


KERNEL_FUNCTIONS = {"poly": poly, "rbf": rbf}


def smo(kernel, gradient, beta, low, high, tol: float, limit: int) -> int:
    """Improve beta and gradient in place, two variables a step, until no pair violates optimality
    by more than tol; returns the number of steps, limit at most. All arrays are float64 [n]."""
    diagonal = kernel.diagonal()
    can_rise = np.where(beta < high, gradient, -np.inf)
    can_fall = np.where(beta > low, gradient, np.inf)
    for step in range(limit):
        i = can_rise.argmax()
        violation = can_rise[i] - can_fall
        if violation.max() <= tol:
            return step
        np.maximum(violation, 0, out=violation)
        curvature = diagonal - 2 * kernel[i]
        curvature += diagonal[i]
        np.maximum(curvature, 1e-12, out=curvature)  # libsvm's, for equal images
        j = (violation * violation / curvature).argmax()
        change = min(violation[j] / curvature[j], high[i] - beta[i], beta[j] - low[j])
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


def newton(kernel, gradient, beta, low, high, ridge: float, limit: int) -> int:
    """Improve beta and gradient in place by Newton steps of all variables between their bounds,
    their sum constant; returns the number of steps. A step that would leave the bounds is cut short
    or projected, whichever gains more. All arrays are float64 [n]."""
    kernel = torch.from_numpy(kernel)
    for step in range(limit):
        free = np.flatnonzero((beta > low) & (beta < high))
        if len(free) < 2:
            return step
        inner = kernel[free[:, None], free] if len(free) < len(beta) else kernel
        factor, failed = torch.linalg.cholesky_ex(inner + ridge * torch.eye(len(free)).double())
        if failed:
            return step
        sides = torch.from_numpy(np.stack([gradient[free], np.ones(len(free))], 1))
        wish, one = torch.cholesky_solve(sides, factor).numpy().T
        wish = wish - wish.sum() / one.sum() * one
        here, floor, ceiling = beta[free], low[free], high[free]
        room = np.where(wish > 0, ceiling - here, here - floor) / np.maximum(np.abs(wish), 1e-300)
        whole = room.min() >= 1
        points = [here + min(1.0, room.min()) * wish]
        if not whole:
            points.append(project(here + wish, floor, ceiling, here.sum()))
        moves = [torch.from_numpy(snap(point, floor, ceiling) - here) for point in points]
        slope = torch.from_numpy(gradient[free])
        gains = [(slope @ move - move @ (inner @ move) / 2).item() for move in moves]
        if max(gains) <= 0:
            return step
        move = moves[int(np.argmax(gains))]
        gradient -= (kernel[:, free] @ move).numpy()
        beta[free] = snap(here + move.numpy(), floor, ceiling)
        if whole:
            return step + 1
    return limit


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


def working_set(gradient, beta, low, high):
    """Sorted indices, LARGEST at most: all variables between their bounds, and as many, but not
    fewer than VIOLATING, of which half should rise most and half should fall most."""
    can_rise = np.where(beta < high, gradient, -np.inf)
    can_fall = np.where(beta > low, gradient, np.inf)
    top, bottom = can_rise.max(), can_fall.min()
    free = np.flatnonzero((beta > low) & (beta < high))
    half = min(max(VIOLATING // 2, len(free)), LARGEST // 4, len(beta))
    rising = np.argpartition(-can_rise, half - 1)[:half]
    falling = np.argpartition(can_fall, half - 1)[:half]
    violating = np.union1d(rising[can_rise[rising] > bottom], falling[can_fall[falling] < top])
    room = LARGEST - len(violating)
    if len(free) > room:
        far = np.abs(gradient[free] - (top + bottom) / 2)
        free = free[np.argpartition(-far, room - 1)[:room]]
    return np.union1d(violating, free)


@dataclass(frozen=True)
class Solution:
    """Of one two-class problem: signed coefficients float64 [n], intercept, steps taken, and by how
    much optimality is still violated."""

    beta: np.ndarray
    intercept: float
    steps: int
    violation: float


def solve(matrix: Callable, product: Callable, signs, C: float, tol: float) -> Solution:
    """Solve a two-class problem. signs is +-1, float64 [n]; matrix(w) is the kernel matrix of the
    variables w, and product(w, values) [n] the kernel's columns w times values."""
    beta, gradient, steps = np.zeros(len(signs)), signs.copy(), 0
    low, high = np.minimum(0, C * signs), np.maximum(0, C * signs)

    def improve(w, method: Callable, *limits) -> int:
        part = [values[w] for values in (gradient, beta, low, high)]
        count = method(matrix(w), *part, *limits)
        change = part[1] - beta[w]
        moved = change != 0
        if len(w) < len(signs):
            gradient[:] -= product(w[moved], change[moved])
        gradient[w], beta[w] = part[:2]
        return count

    for _ in range(MAX_ROUNDS):
        top = gradient[beta < high].max(initial=-math.inf)
        bottom = gradient[beta > low].min(initial=math.inf)
        if top - bottom <= tol:
            break
        w = working_set(gradient, beta, low, high)
        goal = tol / 2 if len(w) == len(signs) else max((top - bottom) / 10, tol / 2)
        steps += improve(w, smo, goal, SMO_STEPS * len(w))
        free = np.flatnonzero((beta > low) & (beta < high))
        if 1 < len(free) <= NEWTON_SIZE:
            # This ridge changes no gradient by more than a hundredth of tol.
            steps += improve(free, newton, tol / (100 * C), NEWTON_STEPS)
    free = (beta > low) & (beta < high)
    intercept = gradient[free].mean() if free.any() else (top + bottom) / 2
    return Solution(beta, intercept, steps, top - bottom)


def in_threads(function: Callable, items: list) -> list:
    """function of each item, in as many threads as PyTorch uses, each of which uses one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


class GramSVC(ClassifierMixin, BaseEstimator):
    """C-support vector classification, as sklearn.svm.SVC: its parameters, its one-against-one
    votes and their ties, libsvm's stopping rule. memory_limit is the bytes that inner products of
    the training rows may take, where they are stored (see Gram); device is PyTorch's.

    After fit: classes_, support_ (indices of training rows), pair_coef_ [support vectors, pairs]
    (libsvm's y alpha), intercept_ and n_iter_ [pairs]; pairs of classes are in the order 01, 02,
    ..., 12, ..., the first of them positive."""

    def __init__(
        self, *, C=1.0, kernel="rbf", degree=3, gamma="scale", coef0=0.0, tol=1e-3,
        decision_function_shape="ovr", device="cpu", memory_limit=None,
    ):  # fmt: skip
        self.C, self.kernel, self.degree, self.gamma, self.coef0 = C, kernel, degree, gamma, coef0
        self.tol, self.decision_function_shape = tol, decision_function_shape
        self.device, self.memory_limit = device, memory_limit

    def _check_parameters(self) -> None:
        numbers = (self.C, self.tol, self.coef0, self.degree)
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, not {self.kernel!r}")
        if not all(isinstance(value, Real) and math.isfinite(value) for value in numbers):
            raise ValueError(f"C, tol, coef0 and degree must be finite numbers, not {numbers}")
        if not (self.C > 0 and self.tol > 0 and self.degree >= 0):
            raise ValueError("C and tol must be above 0, degree must not be below 0")
        if self.gamma not in ("scale", "auto") and not (
            isinstance(self.gamma, Real) and 0 <= self.gamma < math.inf
        ):
            raise ValueError(f"gamma must be scale, auto or a number from 0, not {self.gamma!r}")
        if self.decision_function_shape not in ("ovr", "ovo"):
            raise ValueError("decision_function_shape must be ovr or ovo")

    def fit(self, X, y, gram: Gram | None = None):
        """Fit to X [n, features] and y [n] labels of any kind. gram, if given, is Gram(X, y), so
        that several fits may share it."""
        self._check_parameters()
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        if gram is None:
            limit = self.memory_limit
            gram = Gram(X, y, device=self.device, memory_limit=limit, shared=False)
        self.classes_ = gram.classes
        if len(self.classes_) < 2:
            raise ValueError("The number of classes has to be greater than one; got 1 class")
        self.gamma_ = gamma_value(self.gamma, X)
        pairs = list(combinations(range(len(self.classes_)), 2))
        solutions = in_threads(lambda pair: self._solve_pair(gram, *pair), pairs)
        coef = np.zeros((len(y), len(pairs)))
        for column, (pair, solution) in enumerate(zip(pairs, solutions, strict=True)):
            coef[pair_places(gram, *pair), column] = solution.beta
        support = np.flatnonzero(coef.any(axis=1))
        self.support_ = gram.order[support]
        self.pair_coef_ = coef[support]
        self.intercept_ = np.array([solution.intercept for solution in solutions])
        self.n_iter_ = np.array([solution.steps for solution in solutions])
        self._support_rows = gram.rows[support]
        if max(solution.violation for solution in solutions) > self.tol:
            warnings.warn("tol was not reached", ConvergenceWarning, stacklevel=2)
        return self

    def _solve_pair(self, gram: Gram, first: int, second: int) -> Solution:
        """Solve the problem of two classes, on the rows of the first, then those of the other."""
        slices = [slice(*gram.starts[label : label + 2]) for label in (first, second)]
        places = torch.from_numpy(pair_places(gram, first, second)).to(gram.squares.device)
        squares, function = gram.squares[places], KERNEL_FUNCTIONS[self.kernel]
        sizes = [part.stop - part.start for part in slices]

        def matrix(w):
            at = places[w]
            values = gram.products(at, at)
            return function(values, squares[w], squares[w], self).cpu().numpy()

        def product(w, values):
            sums = np.zeros(len(places))
            for part, own in zip(slices, (slice(sizes[0]), slice(sizes[0], None)), strict=True):
                for at in np.array_split(np.arange(len(w)), len(w) // AT_ONCE + 1):
                    columns = gram.products(places[w[at]], part)
                    columns = function(columns, squares[w[at]], squares[own], self)
                    sums[own] += (torch.from_numpy(values[at]).to(columns) @ columns).cpu().numpy()
            return sums

        return solve(matrix, product, np.repeat([1.0, -1.0], sizes), self.C, self.tol)

    def _pair_decisions(self, X) -> np.ndarray:
        """Decision values of each pair of classes, float64 [n, pairs]; positive for its first."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        support, squares = self._support_rows, self._support_rows.square_norms()
        coef = torch.from_numpy(self.pair_coef_).to(squares.device)
        parts, every = [], as_rows(X, squares.device)
        for start in range(0, len(every), ROWS):
            rows = every[start : start + ROWS]
            products = rows.products(support).double()
            values = KERNEL_FUNCTIONS[self.kernel](products, rows.square_norms(), squares, self)
            parts.append((values @ coef).cpu().numpy() + self.intercept_)
        return np.concatenate(parts)

    def predict(self, X) -> np.ndarray:
        """Labels [n] by the pairs' votes; of equal votes the first class."""
        votes, _ = count_votes(self._pair_decisions(X), len(self.classes_))
        return self.classes_[votes.argmax(1)]

    def decision_function(self, X) -> np.ndarray:
        """As scikit-learn's: for two classes [n], positive for the second; else each pair's values
        (ovo), or votes with the pairs' values to break ties (ovr, [n, classes])."""
        decisions = self._pair_decisions(X)
        if len(self.classes_) == 2:
            return -decisions[:, 0]
        if self.decision_function_shape == "ovo":
            return decisions
        votes, sums = count_votes(decisions, len(self.classes_))
        return votes + sums / (3 * (np.abs(sums) + 1))


def pair_places(gram: Gram, first: int, second: int) -> np.ndarray:
    """Where the rows of two classes lie in a Gram."""
    return np.concatenate([np.arange(*gram.starts[k : k + 2]) for k in (first, second)])


def count_votes(decisions, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Each class's votes and the sum of its decision values, both [n, classes]."""
    votes, sums = np.zeros((2, len(decisions), n_classes))
    for column, (first, second) in enumerate(combinations(range(n_classes), 2)):
        value = decisions[:, column]
        votes[:, first] += value > 0
        votes[:, second] += value <= 0
        sums[:, first] += value
        sums[:, second] -= value
    return votes, sums


def gamma_value(gamma: float | str, X) -> float:
    """What scale, 1 / (features * variance), or auto, 1 / features, comes to."""
    if gamma == "auto":
        return 1 / X.shape[1]
    if gamma == "scale":
        return 1 / (X.shape[1] * variance) if (variance := X.var()) else 1.0
    return float(gamma)


# --- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One SVM. Its fields are the row's key columns."""

    dataset: str
    limit: int | None
    train_size: int | None  # None: the whole training part
    kernel: str
    C: float
    gamma: float | str  # a number, scale: 1 / (features * variance), or auto: 1 / features
    degree: int | None  # None: the kernel has none
    coef0: float | None
    solver: str
    device: str
    seed: int
    split_seed: int

    def __str__(self) -> str:
        factors = " ".join(f"{name}={getattr(self, name)}" for name in KERNELS[self.kernel])
        return f"{self.dataset} {self.kernel} {factors} seed={self.seed}"


KEY = tuple(field.name for field in fields(Setting))
COLUMNS = (
    "status", "reason", *KEY, "n_train", "n_val", "n_test", "split_id", "gamma_value",
    "val_accuracy", "test_accuracy", "support_vectors", "iterations", "fit_time_ms",
    "predict_time_ms", "shared_time_ms", "test_classes", "test_errors", *common.ENVIRONMENT,
)  # fmt: skip


def subset(part: common.Part, size: int | None, seed: int) -> common.Part:
    """A stratified choice of size images; all of them for None."""
    if size is None:
        return part
    chosen, _ = train_test_split(
        range(len(part.labels)), train_size=size, stratify=part.labels, random_state=seed
    )
    chosen = torch.tensor(sorted(chosen))
    return common.Part(part.images[chosen], part.labels[chosen], part.indices[chosen])


def cache_mib(labels: torch.Tensor) -> int:
    """MiB that hold the float32 kernel matrix of the two largest classes, libsvm's hardest pair."""
    pair = labels.bincount().sort().values[-2:].sum().item()
    return math.ceil(4 * pair**2 / 2**20) + 1


def inputs(part: common.Part, solver: str) -> np.ndarray:
    """Images [n, 784]: pixels / 255 for scikit-learn; for ours bytes, and 1 / 255^2 is in gamma."""
    images = part.images.flatten(1).numpy()
    return images / 255 if solver == "sklearn" else images


def make_svm(setting: Setting, images: np.ndarray, labels: Tensor) -> GramSVC | SVC:
    """The estimator of a setting, not fitted yet; images and labels are those to fit."""
    gamma = gamma_value(setting.gamma, images)
    names = ("kernel", "C", "degree", "coef0")
    factors = {name: getattr(setting, name) for name in names if getattr(setting, name) is not None}
    if setting.solver == "sklearn":
        return SVC(**factors, gamma=gamma, cache_size=cache_mib(labels))
    return GramSVC(**factors, gamma=gamma if setting.gamma == "scale" else gamma / 255**2)


def train(setting: Setting, split: common.Split, share: Callable) -> dict:
    """Fit one SVM, measure it, and return its row. share(part) is a Gram of the part's images and
    the time that it took, in ms."""
    part = subset(split.train, setting.train_size, setting.split_seed)
    labels, cpu = part.labels.numpy(), torch.device("cpu")
    images, val_images, test_images = (
        inputs(each, setting.solver) for each in (part, split.val, split.test)
    )
    gram, shared_time_ms = share(part) if setting.solver == "gram" else (None, 0.0)
    start = common.clock(cpu)
    svm = make_svm(setting, images, part.labels)
    svm.fit(images, labels, gram)
    fitted = common.clock(cpu)
    predictions = svm.predict(test_images)
    predicted = common.clock(cpu)
    return asdict(setting) | {
        "n_train": len(labels),
        "n_val": len(split.val.labels),
        "n_test": len(split.test.labels),
        "split_id": split.split_id,
        "gamma_value": svm._gamma if setting.solver == "sklearn" else svm.gamma_ * 255**2,
        "val_accuracy": svm.score(val_images, split.val.labels.numpy()),
        **common.outcome(torch.from_numpy(predictions), split.test.labels),
        "support_vectors": len(svm.support_),
        "iterations": int(svm.n_iter_.sum()),
        "fit_time_ms": 1e3 * (fitted - start),
        "predict_time_ms": 1e3 * (predicted - fitted),
        "shared_time_ms": shared_time_ms,
    }


def sharing(device: str, memory_limit: float | None, *, several: bool) -> Callable:
    """A function that makes the Gram of a part of a split, which several settings may share, and
    keeps the last one."""
    kept = {}

    def share(part: common.Part) -> tuple[Gram, float]:
        key = common.sha256(part.indices, part.labels, part.images)
        if key not in kept:
            kept.clear()  # first, because there may be no room for two
            images = inputs(part, "gram")
            start = common.clock(torch.device(device))
            gram = Gram(
                images,
                part.labels.numpy(),
                device=device,
                memory_limit=memory_limit,
                shared=several,
            )
            kept[key] = gram, 1e3 * (common.clock(torch.device(device)) - start)
            state = "stored" if gram.matrix is not None else "computed where they are needed"
            say(f"  inner products of the training images: {gram.bytes / 2**30:.1f} GiB, {state}")
        return kept[key]

    return share


def grid(args) -> list[Setting]:
    """All SVMs that the flags ask for; each kernel varies only the factors that it has. An SVM has
    no randomness but its split, so its seed is the split's."""
    seeds = args.seed if args.split_seed is None else [args.split_seed]
    settings = []
    for kernel in dict.fromkeys(args.kernel):
        factors = {name: getattr(args, name) for name in KERNELS[kernel]}
        settings += [
            Setting(
                **{"degree": None, "coef0": None} | values,
                kernel=kernel,
                limit=args.limit,
                train_size=args.train_size,
                solver=args.solver,
                device=args.device,
                split_seed=values["seed"],
            )
            for values in common.combinations(dataset=args.dataset, seed=seeds, **factors)
        ]
    return sorted(settings, key=lambda setting: args.dataset.index(setting.dataset))


def estimate_seconds(setting: Setting, finished: list[dict[str, str]]) -> float | None:
    """Median time of this CPU's rows of the kernel, in proportion to the training size squared."""
    rates = [
        (float(row["fit_time_ms"]) + float(row["predict_time_ms"])) / int(row["n_train"]) ** 2
        for row in finished
        if (row["dataset"], row["kernel"], row["solver"], row["device"], row["cpu_name"])
        == (setting.dataset, setting.kernel, setting.solver, setting.device, common.cpu_name())
    ]
    n_train, _, _ = common.part_sizes(setting.limit or common.DATASETS[setting.dataset].size)
    return median(rates) / 1e3 * (setting.train_size or n_train) ** 2 if rates else None


def gamma(text: str) -> float | str:
    """scale, auto, or a number above 0."""
    return text if text in ("scale", "auto") else common.number(float, low=0, above=True)(text)


def parse_args(argv: list[str] | None = None):
    parser = common.make_parser(__doc__)
    # fmt: off
    group = parser.add_argument_group("factors, each with one or more values")
    group.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    group.add_argument("--C", nargs="+", default=[0.1, 1.0], metavar="C",
                       type=common.number(float, low=0, above=True))
    group.add_argument("--gamma", nargs="+", default=["scale", "auto", 0.01, 0.1], metavar="GAMMA",
                       type=gamma, help="numbers above 0, scale or auto")
    group.add_argument("--degree", nargs="+", type=common.number(int, low=1), default=[2, 3],
                       metavar="N", help="of poly")
    group.add_argument("--coef0", nargs="+", type=common.number(float, low=0), default=[1.0],
                       metavar="COEF0", help="of poly")
    parser.add_argument("--train-size", type=common.number(int, low=common.CLASSES), metavar="N",
                        help="train on a stratified choice of N training images")
    parser.add_argument("--solver", choices=SOLVERS, default="gram",
                        help="ours (default), or scikit-learn's SVC for reference")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                        help="of our solver's products and kernels; cuda has not been tried yet")
    parser.add_argument("--memory-limit", type=common.number(float, low=0), metavar="GIB",
                        help="for the inner products of all training images, computed in parts if"
                        " they take more (default: half of what is free)")
    # fmt: on
    args = common.parse(parser, argv)
    if args.solver == "sklearn" and args.device != "cpu":
        common.fail("--solver sklearn runs on the CPU only; use --device cpu or --solver gram")
    for name in args.dataset:
        n_train, _, _ = common.part_sizes(args.limit or common.DATASETS[name].size)
        if args.train_size is not None and args.train_size > n_train - common.CLASSES:
            common.fail(f"--train-size {args.train_size}: {name} has {n_train} training images")
    return args


def summary(row: dict) -> str:
    return (
        f"  validation {row['val_accuracy']:.2%}, test {row['test_accuracy']:.2%}, fitted in"
        f" {common.format_time(row['fit_time_ms'] / 1e3)} (after the shared"
        f" {common.format_time(row['shared_time_ms'] / 1e3)}), test predicted in"
        f" {common.format_time(row['predict_time_ms'] / 1e3)}"
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    common.pick_device(args.device)
    limit = None if args.memory_limit is None else args.memory_limit * 2**30
    settings = grid(args)
    splits = {(setting.dataset, setting.split_seed) for setting in settings}
    share = sharing(args.device, limit, several=len(settings) > STORE_ABOVE * len(splits))
    path = args.results_dir / "svm.csv"
    finished = [row for row in common.load_rows(path, COLUMNS) if row["status"] == "ok"]

    def job(setting: Setting) -> common.Job:
        def run(rows: list[dict]) -> Iterator[dict]:
            yield train(setting, common.split_of(setting, args.data_dir), share)

        return common.Job(
            name=str(setting),
            rows=[asdict(setting)],
            estimate=lambda rows: estimate_seconds(setting, finished),
            run=run,
        )

    return common.run_jobs(
        args, [job(setting) for setting in settings], path,
        columns=COLUMNS, key=KEY, summary=summary, main=main,
    )  # fmt: skip


if __name__ == "__main__":
    common.run_main(main)
