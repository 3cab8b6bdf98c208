"""Statistics: those of published examples or of simulation, and verdicts that follow from rows."""

import math
import random
import re
from itertools import product

import numpy as np
import pytest
from rows import device, errors, resnet, seeded, study, svm
from scipy import stats

import make_tables
from make_tables import CLAIMS, CONTRADICTED, MISSING, SUPPORTED, UNRESOLVED, Difference

# --- statistics ----------------------------------------------------------------------------------


def mcnemar_p(only_first: int, only_second: int) -> float:
    return make_tables.paired(only_first, only_second, 1000).p


def test_mcnemar_of_the_example_of_fagerland_lydersen_and_laake():
    """Airway hyper-responsiveness before and after stem cell transplantation: 1 and 7, p 0.039."""
    assert mcnemar_p(1, 7) == pytest.approx(0.039, abs=5e-4)
    assert mcnemar_p(7, 1) == mcnemar_p(1, 7)
    assert [mcnemar_p(n, n) for n in (0, 3)] == pytest.approx([1, 1])


def test_over_seeds_is_the_paired_t_test_but_for_the_share_of_the_test_images():
    """And equal differences are as uncertain as the number of images leaves them."""
    first, second = np.array([0.91, 0.93, 0.92, 0.95]), np.array([0.90, 0.915, 0.93, 0.93])
    plain = stats.ttest_rel(first, second)
    found = make_tables.over_seeds(first - second, [0.0], {"n_test": 0, "n_train": 7})
    assert found.p == pytest.approx(plain.pvalue)
    assert found.interval() == pytest.approx(tuple(plain.confidence_interval()))
    corrected = make_tables.over_seeds(first - second, [0.0], {"n_test": 2, "n_train": 7})
    assert corrected.error / found.error == pytest.approx(math.sqrt((1 / 4 + 2 / 7) / (1 / 4)))
    equal = make_tables.over_seeds(np.full(3, 0.001), [0.002] * 3, {"n_test": 2, "n_train": 7})
    assert equal.error == pytest.approx(0.002 * math.sqrt(1 / 3 + 2 / 7))


def made_settings(rng, gain: float) -> list[tuple]:
    """Eight settings of a model on three seeds, each beside the best of another model, whose
    accuracy is lower by a gain. Seeds change some settings more than others, and all of a model in
    common. Splits overlap as Nadeau and Bengio take it: a setting's runs correlate by 2/9."""

    def draws(spread):
        apart, together = rng.standard_normal(3), rng.standard_normal()
        return spread * (math.sqrt(7 / 9) * apart + math.sqrt(2 / 9) * together)

    def setting(model, lr, values):
        facts = {"dataset": "mnist", "model": model, "codes": None, "n_test": 2e8, "n_train": 7e8}
        return make_tables.Setting({"lr": lr}, {
            seed: facts | {"split_id": seed, "test_accuracy": value}
            for seed, value in enumerate(0.9 + values)
        })  # fmt: skip

    best, common = setting("b", 0, draws(1e-3)), draws(7e-4)
    spreads = 1e-3 * np.exp(0.5 * rng.standard_normal(8))
    return [(setting("a", lr, gain + common + draws(spread)), best)
            for lr, spread in enumerate(spreads)]  # fmt: skip


def test_settings_of_one_model_learn_from_each_other_how_much_seeds_differ():
    """Equal settings: in at most 5 % of 200 tables one of them differs. Settings that are seven
    deviations better: most are found, few from each setting's own deviation."""
    rng, wrong, found, alone = np.random.default_rng(0), 0, 0, 0
    for _ in range(200):
        wrong += any(gap.sign() for gap in make_tables.compare_all(made_settings(rng, 0)))
    for _ in range(25):
        pairs = made_settings(rng, 0.007)
        found += sum(gap.sign() for gap in make_tables.compare_all(pairs))
        one_by_one = [make_tables.compare(*pair) for pair in pairs]
        alone += sum(gap.sign() for gap in make_tables.holm(one_by_one))
    assert wrong <= 10
    assert found > 100 > 60 > alone


def test_a_collapsed_run_makes_no_ties_of_other_settings():
    """And is no lead of its own setting, nor of the others: at most 5 % of 200 tables are wrong."""

    def collapsed(gain):
        pairs = made_settings(rng, gain)
        pairs[0][0].runs[2]["test_accuracy"] -= 0.05
        return [gap.sign() for gap in make_tables.compare_all(pairs)]

    rng = np.random.default_rng(0)
    assert sum(any(collapsed(0)) for _ in range(200)) <= 10
    found = [collapsed(0.007) for _ in range(25)]
    assert sum(each[0] for each in found) == 0
    assert sum(sum(each) for each in found) > 90


def test_the_pooled_deviation_is_that_of_an_analysis_of_variance():
    """Cotton of W. G. Cochran and G. M. Cox (Experimental Designs, table 4.5): five treatments in
    three blocks; mean squares 0.04856 of blocks with 2 and 0.04370 of the rest with 8 degrees."""
    cotton = [[7.62, 8.00, 7.93], [8.14, 8.15, 7.87], [7.76, 7.73, 7.74], [7.17, 7.57, 7.80],
              [7.46, 7.68, 7.21]]  # fmt: skip

    def setting(lr, values):
        runs = {
            seed: {"dataset": "", "model": "", "split_id": seed, "test_accuracy": value}
            for seed, value in enumerate(values)
        }
        return make_tables.Setting({"lr": lr}, runs)

    zero = setting(-1, [0, 0, 0])
    pairs = [(setting(lr, values), zero) for lr, values in enumerate(cotton)]
    blocks, rest = 0.04856 / 5, 0.04370 * 4 / 5
    deviation, freedom = make_tables.pooled(pairs)
    assert deviation**2 == pytest.approx(blocks + rest, rel=1e-3)
    assert freedom == pytest.approx((blocks + rest) ** 2 / (blocks**2 / 2 + rest**2 / 8), rel=1e-3)
    assert make_tables.pooled(pairs[:1]) == ()


def test_epochs_of_one_training_add_no_freedom(tmp_path):
    """3 and 5 epochs of one training on three seeds are compared as if they stood alone."""
    for seed, epochs in product(range(3), (3, 5)):
        resnet(tmp_path, **seeded(seed), **errors(*range(seed * epochs)), epochs=epochs)
        svm(tmp_path, **seeded(seed), **errors(), val_accuracy=0.99)
    found = study(tmp_path)
    pairs = [(each, found.best("mnist")) for each in found.of("mnist", "ResNet-18")]
    assert make_tables.pooled(pairs) == ()
    assert [gap.freedom for gap in make_tables.compare_all(pairs)] == [2, 2]


def differences(*values: float) -> list[Difference]:
    return [Difference(0.01, 0.01, math.inf, p) for p in values]


def test_holm_is_the_one_of_r():
    """p.adjust of 0.01, 0.02, 0.03, 0.04 gives 0.04, 0.06, 0.06, 0.06, in any order; of 0.01, 0.01,
    0.6, 0.9 it gives 0.04, 0.04, 1, 1."""
    found = make_tables.holm([*differences(0.03, 0.01), None, *differences(0.04, 0.02)])
    assert found[2] is None
    assert [f.p for f in found if f] == pytest.approx([0.06, 0.04, 0.06, 0.06])
    found = make_tables.holm(differences(0.01, 0.01, 0.6, 0.9))
    assert [f.p for f in found] == pytest.approx([0.04, 0.04, 1, 1])


def test_a_difference_of_proportions_is_near_that_of_scipy():
    """Agresti and Caffo's is close to the plain test where both are far from 0 and 1."""
    rows = [{"split_id": value, "n_test": 14000, "test_accuracy": value} for value in (0.9, 0.89)]
    expected = stats.chi2_contingency([[12600, 1400], [12460, 1540]], correction=False).pvalue
    assert make_tables.on_one_split(*rows).p == pytest.approx(expected, rel=0.01)


def test_the_interval_of_a_paired_difference_holds_the_truth_at_its_rate():
    """400 test sets of 1,000 images, of which one model has 6 % and the other 4 % wrong: 95 % in
    the interval, and p below 0.05 exactly where the interval leaves out 0, but for 3 %."""
    rng = random.Random(0)
    held = agreed = 0
    for _ in range(400):
        draws = rng.choices("ab-", weights=(0.04, 0.02, 0.94), k=1000)
        found = make_tables.paired(draws.count("a"), draws.count("b"), 1000)
        low, high = found.interval()
        held += low <= -0.02 <= high
        agreed += (found.p < 0.05) == (high < 0 or low > 0)
    assert 0.92 <= held / 400 <= 0.98
    assert agreed / 400 >= 0.97


# --- comparisons of rows -------------------------------------------------------------------------


def compared(folder) -> Difference | None:
    found = study(folder)
    return make_tables.compare(*(found.best("mnist", name) for name in ("ResNet-18", "SVM")))


def test_one_split_is_compared_by_image_and_several_by_seed(tmp_path):
    resnet(tmp_path, **seeded(0), **errors(1, 2, 3))
    svm(tmp_path, **seeded(0), **errors(3, 4, 5, 6, 7))
    assert compared(tmp_path).size == pytest.approx(0.002)
    assert compared(tmp_path).p == mcnemar_p(2, 4)
    for seed in (1, 2):
        resnet(tmp_path, **seeded(seed), **errors(*range(20, 21 + seed)))
        svm(tmp_path, **seeded(seed), **errors(1, 2, 3, 4))
    found = compared(tmp_path)
    assert (found.freedom, found.seeds) == (2, 3)
    assert found.size == pytest.approx((0.002 + 0.002 + 0.001) / 3)


def test_runs_without_test_errors_are_compared_more_carefully(tmp_path):
    wrong = range(0, 400, 2)
    resnet(tmp_path, **errors(*wrong))
    svm(tmp_path, **errors(*wrong, *range(1, 40, 2)))
    by_image = compared(tmp_path)
    resnet(tmp_path, **errors(*wrong) | {"test_errors": None})
    assert compared(tmp_path).size == pytest.approx(by_image.size)
    assert compared(tmp_path).p > by_image.p


def test_many_comparisons_need_more_than_one_does(tmp_path):
    """A difference with p 0.016 counts alone, and does not among ten."""
    resnet(tmp_path, val_accuracy=0.99, **errors())
    svm(tmp_path, C=1, **errors(*range(6)))
    assert 0.01 < mcnemar_p(0, 6) < 0.05
    (first,) = make_tables.settings_tables(study(tmp_path), svm=True)
    assert "] | worse, p = 0.016 |" in first
    for C in range(2, 11):
        svm(tmp_path, C=C, **errors(C))
    (table,) = make_tables.settings_tables(study(tmp_path), svm=True)
    assert len(re.findall(r"\| not significant, p = ", table, re.MULTILINE)) == 10


def test_headline_comparisons_are_one_family(tmp_path):
    """p of six comparisons is adjusted for six."""
    for dataset in ("mnist", "fashion"):
        for model, wrong in ((svm, 0), (resnet, 6)):
            model(tmp_path, dataset=dataset, split_id=dataset, **errors(*range(wrong)))
        resnet(tmp_path, dataset=dataset, split_id=dataset, arch="resnet50", **errors(7))
    gaps = make_tables.headline(study(tmp_path))
    assert len(gaps) == 6
    assert min(gap.p for gap in gaps.values()) == pytest.approx(6 * mcnemar_p(0, 6))


# --- verdicts ------------------------------------------------------------------------------------

GOOD, FAIR, BAD = errors(*range(10)), errors(*range(14)), errors(*range(80))
SMALL_GAP, AWFUL = errors(*range(40)), errors(*range(120))
ADAM, SGD = {"optimizer": "adam", "lr": 1e-3}, {"optimizer": "sgd", "lr": 1e-3}


def runs(folder, svms=None, eighteen=None, fifty=None, datasets=("mnist", "fashion")) -> None:
    """A setting of each model that is not None, on each data set."""
    for name in datasets:
        facts = {"dataset": name, "split_id": name}
        if svms is not None:
            svm(folder, **facts | svms)
        for arch, values in (("resnet18", eighteen), ("resnet50", fifty)):
            if values is not None:
                resnet(folder, **facts | {"arch": arch} | values)


def lines(folder, eighteen: dict, fifty: dict, number: int = 8) -> None:
    for at in make_tables.GRID[:number]:
        runs(folder, eighteen=at | eighteen, fifty=at | fifty, datasets=["mnist"])


def timed(folder, svm_ms: float, resnet_ms: float, **facts) -> None:
    runs(folder, {"fit_time_ms": svm_ms, **facts}, *[{"train_time_ms": resnet_ms}] * 2)


def work(folder, flops: float, vectors: float = 9000, datasets=("mnist", "fashion")) -> None:
    facts = {"training_flops": flops, "support_vectors": vectors}
    runs(folder, facts, {}, {}, datasets)


def devices(folder, arch: str, gain: float) -> None:
    """A GPU that takes 1 / gain of the CPU's time, and windows of steps within 10 %."""
    for optimizer in ("sgd", "adam"):
        for name, times in (("cpu", 1.0), ("cuda", 1 / gain)):
            steps = {"step_ms_min": 20 * times, "step_ms": 20 * times, "step_ms_max": 22 * times}
            device(folder, arch=arch, optimizer=optimizer, device=name, device_name=name,
                   train_time_ms=7e4 * times, **steps)  # fmt: skip


def pins(folder, factor: float, spread: float = 1.0, **values) -> None:
    """Pairs of GPU runs, the pageable one slower by a factor, in four settings."""
    for epochs in range(1, 5):
        facts = {"device": "cuda", "epochs": epochs, "weights_sha256": "same", **GOOD}
        resnet(folder, pin_memory="true", **facts, train_time_ms=1000.0)
        slower = 1000 * factor * (spread if epochs % 2 else 1 / spread)
        resnet(folder, pin_memory="false", **facts | {"train_time_ms": slower} | values)


BEST, LATER = {"val_accuracy": 0.99}, {"val_accuracy": 0.97}
DEAR = {"training_flops": 3e13}
CASES = [
    ("1a", SUPPORTED, lambda folder: lines(folder, GOOD, BAD)),
    ("1a", CONTRADICTED, lambda folder: lines(folder, BAD, GOOD)),
    ("1a", UNRESOLVED, lambda folder: lines(folder, GOOD, FAIR)),
    ("1a", UNRESOLVED, lambda folder: lines(folder, GOOD, BAD, number=4)),
    ("1b", SUPPORTED, lambda folder: resnet(folder, test_accuracy=0.9935)),
    ("1b", UNRESOLVED, lambda folder: resnet(folder, test_accuracy=0.9925)),
    ("1b", CONTRADICTED, lambda folder: resnet(folder, test_accuracy=0.9900)),
    ("1b", CONTRADICTED, lambda folder: resnet(folder, test_accuracy=0.9960)),
    ("2", SUPPORTED, lambda folder: runs(folder, None, GOOD, FAIR | DEAR)),
    ("2", CONTRADICTED, lambda folder: runs(folder, None, BAD, GOOD | DEAR)),
    ("2", CONTRADICTED, lambda folder: runs(folder, None, GOOD, FAIR)),
    ("2", UNRESOLVED, lambda folder: runs(folder, None, FAIR, errors() | DEAR)),
    ("2", UNRESOLVED, lambda folder: runs(folder, None, GOOD, FAIR | DEAR, datasets=["mnist"])),
    ("3", SUPPORTED, lambda folder: (
        runs(folder, GOOD, datasets=["mnist"]), runs(folder, BAD, datasets=["fashion"]))),
    ("3", CONTRADICTED, lambda folder: (
        runs(folder, BAD, datasets=["mnist"]), runs(folder, GOOD, datasets=["fashion"]))),
    ("3", UNRESOLVED, lambda folder: runs(folder, GOOD)),
    ("4a", SUPPORTED, lambda folder: timed(folder, 1e4, 3e4)),
    ("4a", CONTRADICTED, lambda folder: timed(folder, 3e4, 1e4)),
    ("4a", UNRESOLVED, lambda folder: timed(folder, 1e4, 1.2e4)),
    ("4a", MISSING, lambda folder: timed(folder, 1e4, 2e4, threads=64)),
    ("4a'", SUPPORTED, lambda folder: timed(folder, 1e4, 3e4, solver="sklearn")),
    ("4a'", CONTRADICTED, lambda folder: (
        timed(folder, 1e3, 2e4), timed(folder, 1e5, 2e4, solver="sklearn", threads=2))),
    ("4a'", UNRESOLVED, lambda folder: timed(folder, 1e4, 1e4, solver="sklearn")),
    ("4a'", MISSING, lambda folder: timed(folder, 1e4, 2e4)),
    ("4b", SUPPORTED, lambda folder: work(folder, 9e12)),
    ("4b", CONTRADICTED, lambda folder: work(folder, 2e13)),
    ("4b", UNRESOLVED, lambda folder: work(folder, 9e12, datasets=["mnist"])),
    ("4b", MISSING, lambda folder: work(folder, None)),
    ("4b'", SUPPORTED, lambda folder: work(folder, 9e12, vectors=41_000)),
    ("4b'", CONTRADICTED, lambda folder: work(folder, 9e12, vectors=45_000)),
    ("4b'", UNRESOLVED, lambda folder: runs(folder, {}, {})),
    ("5a", SUPPORTED, lambda folder: runs(folder, BAD, GOOD, GOOD)),
    ("5a", CONTRADICTED, lambda folder: runs(folder, SMALL_GAP, GOOD, BAD)),
    ("5a", UNRESOLVED, lambda folder: runs(folder, BAD, GOOD, BAD)),
    ("5a", MISSING, lambda folder: runs(folder, GOOD)),
    ("5b", SUPPORTED, lambda folder: (
        runs(folder, BAD, GOOD, datasets=["mnist"]),
        runs(folder, SMALL_GAP, GOOD, datasets=["fashion"]))),
    ("5b", CONTRADICTED, lambda folder: (
        runs(folder, SMALL_GAP, GOOD, datasets=["mnist"]),
        runs(folder, BAD, GOOD, datasets=["fashion"]))),
    ("5b", UNRESOLVED, lambda folder: runs(folder, BAD, GOOD)),
    ("5b", MISSING, lambda folder: runs(folder, BAD, GOOD, datasets=["mnist"])),
    ("6", SUPPORTED, lambda folder: devices(folder, "resnet50", 10)),
    ("6", CONTRADICTED, lambda folder: devices(folder, "resnet50", 1.5)),
    ("6", UNRESOLVED, lambda folder: devices(folder, "resnet50", 2.1)),
    ("6", MISSING, lambda folder: devices(folder, "resnet18", 10)),
    ("6", MISSING, lambda folder: (  # another number of epochs is no match for the CPU's
        device(folder, arch="resnet50"),
        device(folder, arch="resnet50", device="cuda", device_name="GPU", epochs=1))),
    ("6", MISSING, lambda folder: (  # another machine
        device(folder, arch="resnet50"),
        device(folder, arch="resnet50", device="cuda", device_name="GPU", threads=1))),
    ("7", SUPPORTED, lambda folder: devices(folder, "resnet18", 1.5)),
    ("7", CONTRADICTED, lambda folder: devices(folder, "resnet18", 10)),
    ("7", UNRESOLVED, lambda folder: devices(folder, "resnet18", 2.1)),
    ("8", SUPPORTED, lambda folder: runs(folder, FAIR, GOOD | ADAM | BEST)),
    ("8", CONTRADICTED, lambda folder: runs(folder, GOOD | BEST, BAD | ADAM)),
    ("8", UNRESOLVED, lambda folder: runs(folder, GOOD | BEST, FAIR | ADAM)),
    ("8", MISSING, lambda folder: runs(folder, GOOD, GOOD | SGD)),
    ("9a", SUPPORTED, lambda folder: pins(folder, 1.0)),
    ("9a", CONTRADICTED, lambda folder: pins(folder, 1.0, weights_sha256="other", **BAD)),
    ("9a", UNRESOLVED, lambda folder: pins(folder, 1.0, weights_sha256="other", **FAIR)),
    ("9b", SUPPORTED, lambda folder: pins(folder, 1.01)),
    ("9b", CONTRADICTED, lambda folder: pins(folder, 1.5)),
    ("9b", UNRESOLVED, lambda folder: pins(folder, 1.0, spread=1.3)),
    *((number, MISSING, lambda folder: None) for number in CLAIMS),
]  # fmt: skip


def judged(folder, number: str) -> tuple[str, str]:
    return make_tables.verdict(CLAIMS[number][1](study(folder)))


@pytest.mark.parametrize(
    ("number", "verdict", "rows"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES]
)
def test_a_verdict_follows_from_rows(tmp_path, number, verdict, rows):
    rows(tmp_path)
    found, figures = judged(tmp_path, number)
    assert found == verdict, figures
    assert bool(figures) == (found != MISSING)


def test_a_peak_is_one_more_run_beside_the_best_of_all_runs_of_its_model(tmp_path):
    for seed, accuracy in enumerate((0.989, 0.991, 0.993)):
        resnet(tmp_path, **seeded(seed), test_accuracy=accuracy, **BEST)
        resnet(tmp_path, **seeded(seed), lr=1e-4, test_accuracy=0.992, **LATER)
        resnet(tmp_path, **seeded(seed), arch="resnet50", test_accuracy=0.999)
    half = 100 * stats.t.ppf(0.975, 2) * 0.002 * math.sqrt(1 + 1 / 3 + 14 / 49)
    assert judged(tmp_path, "1b")[1] == (
        f"mean 99.10; one more run would lie within [{99.1 - half:.2f}, {99.1 + half:.2f}];"
        " 99.30 in the best of 6 single runs"
    )


def test_the_best_configuration_is_decided_in_words(tmp_path):
    runs(tmp_path, GOOD | BEST, FAIR | ADAM)
    part = (
        "best on validation is the SVM (rbf, C 1, gamma scale); ResNet-18 (Adam, lr 0.001, batch"
        " 32, 3 epochs) is not significantly different, -0.40 ["
    )
    assert judged(tmp_path, "8")[1].count(part) == 2


def test_two_gaps_are_as_sure_as_the_one_with_fewer_seeds(tmp_path):
    """Three seeds on MNIST, one on FashionMNIST: with the normal distribution it would be shown."""
    runs(tmp_path, SMALL_GAP, GOOD, datasets=["fashion"])
    for seed, wrong in enumerate((56, 60, 64)):
        resnet(tmp_path, **seeded(seed), n_train=3500, **errors(*range(10)))
        svm(tmp_path, **seeded(seed), n_train=3500, **errors(*range(wrong)))
    found = study(tmp_path)
    first, second = (
        make_tables.compare(found.best(name, "ResNet-18"), found.best(name, "SVM"))
        for name in ("mnist", "fashion")
    )
    t = (first.size - second.size) / math.hypot(first.error, second.error)
    assert 2 * stats.norm.sf(t) < 0.05 < 2 * stats.t.sf(t, 2)
    assert judged(tmp_path, "5b")[0] == UNRESOLVED
