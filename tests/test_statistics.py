"""Statistics: those of scipy or of published examples, and verdicts that follow from rows alone."""

import json
import math
import random

import pytest
from scipy import stats
from test_tables import device, errors, resnet, svm

import compare_devices
import make_tables
from make_tables import CONTRADICTED, SUPPORTED, UNMEASURED, UNRESOLVED


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (9, 10), (13860, 14000), (14000, 14000)])
def test_wilson_interval_is_scipys(hits, total):
    expected = stats.binomtest(hits, total).proportion_ci(method="wilson")
    assert make_tables.wilson_interval(hits / total, total) == pytest.approx(
        tuple(expected), abs=1e-6
    )


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (3, 3), (40, 61), (900, 1100)])
def test_mcnemar_is_scipys_binomial_test_less_half_of_what_was_seen(first, second):
    total = first + second
    exact = stats.binomtest(first, total).pvalue if total else 1.0
    # The exact p of a tie is cut at 1, where both tails hold the middle.
    tails = 2 * stats.binom.cdf(min(first, second), total, 0.5)
    assert exact == pytest.approx(min(1, tails))
    expected = tails - stats.binom.pmf(first, total, 0.5)
    assert make_tables.mcnemar_p(first, second) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_of_the_example_of_fagerland_lydersen_and_laake():
    """Airway hyper-responsiveness before and after stem cell transplantation: 1 and 7, p 0.039."""
    assert make_tables.mcnemar_p(1, 7) == pytest.approx(0.039, abs=5e-4)
    assert make_tables.mcnemar_p(7, 1) == make_tables.mcnemar_p(1, 7)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 127])
@pytest.mark.parametrize("t", [0.0, 0.1, -1.0, 2.5, 12.7, 300.0])
def test_students_p_is_scipys(t, freedom):
    expected = 2 * stats.t.sf(abs(t), freedom)
    assert make_tables.student_p(t, freedom) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 9, math.inf])
def test_students_bound_is_scipys(freedom):
    expected = stats.t.ppf(0.975, freedom)
    assert make_tables.student_bound(freedom) == pytest.approx(expected, rel=1e-9)


def test_over_seeds_is_the_paired_t_test_but_for_the_share_of_the_test_images():
    first, second = [0.91, 0.93, 0.92, 0.95], [0.90, 0.915, 0.93, 0.93]
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    plain = stats.ttest_rel(first, second)
    found = make_tables.over_seeds(gaps, share=0.0)
    assert found.p == pytest.approx(plain.pvalue)
    assert found.interval() == pytest.approx(tuple(plain.confidence_interval()))
    corrected = make_tables.over_seeds(gaps, share=2 / 7)
    assert corrected.error / found.error == pytest.approx(math.sqrt((1 / 4 + 2 / 7) / (1 / 4)))
    assert corrected.p > found.p


def test_equal_differences_over_seeds_prove_nothing():
    assert make_tables.over_seeds([0.001, 0.001], share=0.3).p == 1


def test_holm_is_its_definition_and_the_example_of_r():
    """p.adjust of 0.01, 0.02, 0.03, 0.04 gives 0.04, 0.06, 0.06, 0.06, in any order."""
    assert make_tables.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert make_tables.holm([]) == []
    rng = random.Random(0)
    for _ in range(50):
        values = [rng.choice([rng.random(), 0.01]) for _ in range(rng.randint(1, 9))]
        rejected = set()
        for rank, place in enumerate(sorted(range(len(values)), key=lambda k: (values[k], k))):
            if values[place] * (len(values) - rank) >= 0.05:
                break
            rejected.add(place)
        assert {k for k, p in enumerate(make_tables.holm(values)) if p < 0.05} == rejected


def test_a_difference_of_proportions_is_near_that_of_scipy():
    """Agresti and Caffo's is close to the plain test where both are far from 0 and 1."""
    first, second = (
        {"n_test": 14000, "test_accuracy": 0.9},
        {"n_test": 14000, "test_accuracy": 0.89},
    )
    found = make_tables.independent(first, second)
    table = [[12600, 1400], [12460, 1540]]
    assert found.p == pytest.approx(
        stats.chi2_contingency(table, correction=False).pvalue, rel=0.01
    )


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


def read(folder):
    return make_tables.load([folder])[0]


def test_one_split_is_compared_by_image_and_several_by_seed(tmp_path):
    resnet(tmp_path, **errors(1, 2, 3))
    svm(tmp_path, **errors(3, 4, 5, 6, 7))
    (first,), (second,) = (
        make_tables.settings(read(tmp_path), "mnist", name) for name in ("ResNet-18", "SVM")
    )
    found = make_tables.compare(first, second)
    assert found.size == pytest.approx(0.002)
    assert found.p == make_tables.mcnemar_p(2, 4)
    for seed in (1, 2):
        facts = {"seed": seed, "split_seed": seed, "split_id": f"id{seed}"}
        resnet(tmp_path, **errors(*range(20, 21 + seed)), **facts)
        svm(tmp_path, **errors(1, 2, 3, 4), **facts)
    (first,), (second,) = (
        make_tables.settings(read(tmp_path), "mnist", name) for name in ("ResNet-18", "SVM")
    )
    found = make_tables.compare(first, second)
    assert found.freedom == 2
    assert found.size == pytest.approx((0.002 + 0.002 + 0.001) / 3)


def test_runs_without_a_split_in_common_are_not_compared(tmp_path):
    resnet(tmp_path, **errors(1))
    svm(tmp_path, **errors(2), seed=1, split_seed=1, split_id="other")
    results = read(tmp_path)
    assert make_tables.compare(*make_tables.settings(results, "mnist")) is None


def test_runs_without_test_errors_are_compared_more_carefully(tmp_path):
    wrong = range(0, 400, 2)
    resnet(tmp_path, **errors(*wrong))
    svm(tmp_path, **errors(*wrong, *range(1, 40, 2)))
    pair = make_tables.settings(read(tmp_path), "mnist")
    by_image = make_tables.compare(*pair)
    for row in pair[0]:
        row["wrong"] = None
    unpaired = make_tables.compare(*pair)
    assert unpaired.size == pytest.approx(by_image.size)
    assert unpaired.p > by_image.p


def test_what_is_not_shown_to_be_worse_stays_beside_the_best(tmp_path):
    """The best is chosen on validation; one with a better test, and a near one, are in, one far
    behind is out."""
    resnet(tmp_path, epochs=1, val_accuracy=0.99, **errors(*range(20)))
    resnet(tmp_path, epochs=2, val_accuracy=0.98, **errors(*range(2, 24)))
    resnet(tmp_path, epochs=3, val_accuracy=0.97, **errors())
    resnet(tmp_path, epochs=4, val_accuracy=0.96, **errors(*range(60)))
    found = make_tables.top(make_tables.settings(read(tmp_path), "mnist"))
    assert [rows[0]["epochs"] for rows in found] == [1, 2, 3]


def test_many_comparisons_need_more_than_one_does(tmp_path):
    """A difference with p 0.03 counts alone, and does not among ten."""
    resnet(tmp_path, epochs=100, val_accuracy=0.99, **errors())
    resnet(tmp_path, epochs=1, **errors(*range(6)))
    assert 0.01 < make_tables.mcnemar_p(0, 6) < 0.05
    assert len(make_tables.top(make_tables.settings(read(tmp_path), "mnist"))) == 1
    for epochs in range(2, 11):
        resnet(tmp_path, epochs=epochs, **errors(epochs))
    assert len(make_tables.top(make_tables.settings(read(tmp_path), "mnist"))) == 11


def test_pinned_and_pageable_runs_are_one_setting(tmp_path):
    for pin_memory in ("true", "false"):
        resnet(tmp_path, device="cuda", pin_memory=pin_memory)
    ((row,),) = make_tables.settings(read(tmp_path), "mnist")
    assert row["pin_memory"] == "true"


def test_a_shared_gram_matrix_counts_in_the_training_time(tmp_path):
    svm(tmp_path)
    path = tmp_path / "svm.csv"
    header, line = path.read_text().splitlines()
    path.write_text(f"{header},shared_time_ms\n{line},700\n")
    ((row,),) = make_tables.settings(read(tmp_path), "mnist")
    assert row["train_ms"] == 5700
    path.write_text(f"{header},shared_time_ms\n{line},\n")
    assert make_tables.settings(read(tmp_path), "mnist")[0][0]["train_ms"] == 5000


def test_confusions_are_counted_from_packed_errors(tmp_path, capsys):
    resnet(tmp_path, **errors(3, 13, 23, 4))
    assert make_tables.main(["--results-dir", str(tmp_path), "--table", "confusion"]) == 0
    text = capsys.readouterr().out
    assert "| 3 | 0 | 0 | 0 | 97 | 3 | 0 | 0 | 0 | 0 | 0 | 97.00 [91.55, 98.97] |" in text
    assert "| 4 | 0 | 0 | 0 | 0 | 99 | 1 |" in text
    assert "Most frequent errors: 3 taken for 4 (3), 4 taken for 5 (1)." in text
    clothes = make_tables.finding_errors({"resnet": [], "svm": []})
    assert clothes == [
        "Most frequent errors of the best, with their number of test images: not measured."
    ]
    resnet(tmp_path, dataset="fashion", **errors(6, 16, 9))
    (line,) = make_tables.finding_errors(read(tmp_path))
    assert "MNIST (seed 0) 3 taken for 4 (3), 4 taken for 5 (1); FashionMNIST (seed" in line


def test_the_solvers_are_compared_on_settings_that_both_have(tmp_path):
    svm(tmp_path, solver="gram", fit_time_ms=4_000.0, shared_time_ms=1_000.0)
    svm(tmp_path, solver="gram", kernel="poly", fit_time_ms=2_000.0)
    assert make_tables.finding_costs(read(tmp_path)) == []
    svm(tmp_path, C=10.0)
    svm(tmp_path, kernel="poly", fit_time_ms=5_000.0, predict_time_ms=30_000.0, threads=1)
    assert make_tables.finding_costs(read(tmp_path)) == []  # other settings, another machine
    svm(tmp_path, fit_time_ms=15_000.0, predict_time_ms=7_000.0)
    (line,) = make_tables.finding_costs(read(tmp_path))
    assert line == (
        "SVMs are fitted by this repository's solver; scikit-learn's takes 15 s to train (3.0 times"
        " as long) and 7.0 s to test (7.0 times as long), in 1 setting timed with both."
    )


def test_the_floor_is_the_share_of_the_largest_class(tmp_path, capsys):
    uneven = errors(1) | {"test_classes": json.dumps([190, 10, *[100] * 8])}
    resnet(tmp_path, **uneven)
    assert make_tables.main(["--results-dir", str(tmp_path), "--table", "answer"]) == 0
    assert "| MNIST | majority class |  |  | 19.00 |" in capsys.readouterr().out


# --- verdicts ------------------------------------------------------------------------------------

GOOD, FAIR, BAD = errors(*range(10)), errors(*range(14)), errors(*range(80))
SMALL_GAP = errors(*range(40))
ALL = [(dataset, model) for dataset in ("mnist", "fashion") for model in make_tables.COMPARED]
DEPTHS = {"ResNet-18": "resnet18", "ResNet-50": "resnet50"}


def runs(folder, what: dict) -> None:
    """Rows of the best setting of each model, {(dataset, model): columns}."""
    for (dataset, model), values in what.items():
        values = {"dataset": dataset, "split_id": dataset, **values}
        if model == "SVM":
            svm(folder, **values)
        else:
            resnet(folder, arch=DEPTHS[model], **values)


def lines(folder, eighteen: dict, fifty: dict, number: int = 8) -> None:
    for batch_size, optimizer, lr in make_tables.GRID[:number]:
        for arch, values in (("resnet18", eighteen), ("resnet50", fifty)):
            resnet(
                folder, arch=arch, batch_size=int(batch_size), optimizer=optimizer, lr=lr, **values
            )


def devices(folder, arch: str, gain: float) -> None:
    """A GPU that takes 1 / gain of the CPU's time, and windows of steps within 10 %."""
    for name, times in (("cpu", 1.0), ("cuda", 1 / gain)):
        steps = {"step_ms_min": 20 * times, "step_ms": 20 * times, "step_ms_max": 22 * times}
        facts = {"arch": arch, "device": name, "device_name": name, "train_time_ms": 7e4 * times}
        device(folder, **compare_devices.costs(arch), **facts, **steps)


def pins(folder, seconds: dict[str, float], **values) -> None:
    """Pairs of GPU runs with pinned memory and without, in each of four settings."""
    for epochs in range(1, 5):
        for pin_memory, time in seconds.items():
            facts = {"device": "cuda", "pin_memory": pin_memory, "epochs": epochs}
            facts |= {"train_time_ms": time * (1000 + epochs), "weights_sha256": "same"}
            resnet(folder, **facts | (values if pin_memory == "false" else {}))


def each(**values) -> dict:
    """These columns for each model on both data sets: svm, eighteen and fifty."""
    names = dict(zip(make_tables.COMPARED, ("svm", "eighteen", "fifty"), strict=True))
    return {
        (dataset, model): values[names[model]] for dataset, model in ALL if names[model] in values
    }


def timed(svm_ms: float, resnet_ms: float, **facts) -> dict:
    resnets = {"train_time_ms": resnet_ms, "predict_time_ms": resnet_ms}
    return each(
        svm={"fit_time_ms": svm_ms, "predict_time_ms": svm_ms, **facts},
        eighteen=resnets,
        fifty=resnets,
    )


ADAM = {"optimizer": "adam", "lr": 1e-3}
SGD = {"optimizer": "sgd", "lr": 1e-3}
NOTHING = lambda folder: None  # noqa: E731
CASES = [
    ("1a", SUPPORTED, lambda folder: lines(folder, GOOD, BAD)),
    ("1a", CONTRADICTED, lambda folder: lines(folder, BAD, GOOD)),
    ("1a", UNRESOLVED, lambda folder: lines(folder, GOOD, FAIR)),
    ("1a", UNRESOLVED, lambda folder: lines(folder, GOOD, BAD, number=4)),
    ("1a", UNRESOLVED, lambda folder: lines(folder, BAD, GOOD, number=3)),
    ("1a", UNMEASURED, lambda folder: resnet(folder)),
    ("1b", SUPPORTED, lambda folder: resnet(folder, test_accuracy=0.9950)),
    ("1b", CONTRADICTED, lambda folder: resnet(folder, test_accuracy=0.9910)),
    ("1b", UNRESOLVED, lambda folder: resnet(folder, test_accuracy=0.9925)),
    ("1b", UNMEASURED, lambda folder: resnet(folder, arch="resnet50")),
    ("2", SUPPORTED, lambda folder: runs(folder, each(eighteen=GOOD, fifty=BAD))),
    ("2", CONTRADICTED, lambda folder: runs(folder, each(eighteen=BAD, fifty=GOOD))),
    ("2", UNRESOLVED, lambda folder: runs(folder, each(eighteen=GOOD, fifty=FAIR))),
    ("2", UNMEASURED, lambda folder: runs(folder, each(eighteen=GOOD))),
    ("3", SUPPORTED, lambda folder: runs(folder, each(svm=GOOD) | {("fashion", "SVM"): BAD})),
    ("3", CONTRADICTED, lambda folder: runs(folder, each(svm=BAD) | {("fashion", "SVM"): GOOD})),
    ("3", UNRESOLVED, lambda folder: runs(folder, each(svm=GOOD) | {("fashion", "SVM"): FAIR})),
    ("3", UNMEASURED, lambda folder: runs(folder, {("mnist", "SVM"): GOOD})),
    ("4a", SUPPORTED, lambda folder: runs(folder, timed(1e4, 2e4))),
    ("4a", CONTRADICTED, lambda folder: runs(folder, timed(2e4, 1e4))),
    ("4a", UNRESOLVED, lambda folder: runs(folder, timed(1e4, 1.2e4))),
    ("4a", UNMEASURED, lambda folder: runs(folder, timed(1e4, 2e4, threads=64))),
    ("5a", SUPPORTED, lambda folder: runs(folder, each(svm=BAD, eighteen=GOOD, fifty=GOOD))),
    ("5a", CONTRADICTED, lambda folder: runs(folder, each(svm=GOOD, eighteen=BAD, fifty=BAD))),
    ("5a", UNRESOLVED, lambda folder: runs(folder, each(svm=GOOD, eighteen=FAIR))),
    ("5a", UNMEASURED, lambda folder: runs(folder, each(svm=GOOD))),
    ("5b", SUPPORTED, lambda folder: runs(
        folder, each(svm=BAD, eighteen=GOOD) | {("fashion", "SVM"): SMALL_GAP})),
    ("5b", CONTRADICTED, lambda folder: runs(
        folder, each(svm=SMALL_GAP, eighteen=GOOD) | {("fashion", "SVM"): BAD})),
    ("5b", UNRESOLVED, lambda folder: runs(folder, each(svm=BAD, eighteen=GOOD))),
    ("5b", UNMEASURED, lambda folder: runs(
        folder, {("mnist", "SVM"): BAD, ("mnist", "ResNet-18"): GOOD})),
    ("6", SUPPORTED, lambda folder: devices(folder, "resnet50", 10)),
    ("6", CONTRADICTED, lambda folder: devices(folder, "resnet50", 1.5)),
    ("6", UNRESOLVED, lambda folder: devices(folder, "resnet50", 2.1)),
    ("6", UNMEASURED, lambda folder: devices(folder, "resnet18", 10)),
    ("7", SUPPORTED, lambda folder: devices(folder, "resnet18", 1.5)),
    ("7", CONTRADICTED, lambda folder: devices(folder, "resnet18", 10)),
    ("7", UNRESOLVED, lambda folder: devices(folder, "resnet18", 2.1)),
    ("7", UNMEASURED, lambda folder: device(folder)),
    ("8", SUPPORTED, lambda folder: runs(
        folder, each(svm=BAD, eighteen=GOOD | ADAM | {"val_accuracy": 0.99}, fifty=BAD))),
    ("8", UNRESOLVED, lambda folder: runs(
        folder, each(svm=BAD, eighteen=GOOD | ADAM | {"val_accuracy": 0.99}))),
    ("8", CONTRADICTED, lambda folder: runs(
        folder, each(svm=GOOD | {"val_accuracy": 0.99}, eighteen=BAD | ADAM))),
    ("8", UNRESOLVED, lambda folder: runs(
        folder, each(svm=GOOD | {"val_accuracy": 0.99}, eighteen=FAIR | ADAM))),
    ("8", UNMEASURED, lambda folder: runs(folder, each(svm=GOOD, eighteen=GOOD | SGD))),
    ("9a", SUPPORTED, lambda folder: pins(folder, {"true": 1.0, "false": 1.0}, **GOOD)),
    ("9a", CONTRADICTED, lambda folder: pins(
        folder, {"true": 1.0, "false": 1.0}, **BAD, weights_sha256="other")),
    ("9a", UNRESOLVED, lambda folder: pins(
        folder, {"true": 1.0, "false": 1.0}, test_accuracy=0.9701, weights_sha256="other")),
    ("9a", UNMEASURED, lambda folder: pins(folder, {"true": 1.0})),
    ("9b", SUPPORTED, lambda folder: pins(folder, {"true": 1.0, "false": 1.01})),
    ("9b", CONTRADICTED, lambda folder: pins(folder, {"true": 1.0, "false": 1.5})),
    ("9b", UNMEASURED, lambda folder: pins(folder, {"false": 1.0})),
    *((claim.number, UNMEASURED, NOTHING) for claim in make_tables.CLAIMS),
]  # fmt: skip
RULES = {claim.number: claim.rule for claim in make_tables.CLAIMS}


@pytest.mark.parametrize(
    ("number", "verdict", "rows"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES]
)
def test_a_verdict_follows_from_rows(tmp_path, number, verdict, rows):
    rows(tmp_path)
    found, numbers = RULES[number](read(tmp_path))
    assert found == verdict, numbers
    assert numbers or found == UNMEASURED


def test_each_claim_can_have_each_verdict():
    seen = {(number, verdict) for number, verdict, _ in CASES}
    everything = {(number, verdict) for number in RULES for verdict in make_tables.VERDICTS}
    apart = {("4b", verdict) for verdict in make_tables.VERDICTS} | {("9b", UNRESOLVED)}
    assert everything - seen <= apart  # which have tests of their own


def needs(folder, time: float, vectors: float):
    """The verdict on ResNets that predict in 1,000 ms beside an SVM of this time and size."""
    runs(folder, each(
        svm={"predict_time_ms": time, "support_vectors": vectors}, eighteen={}, fifty={}
    ))  # fmt: skip
    for arch in ("resnet18", "resnet50"):
        device(folder, arch=arch, **compare_devices.costs(arch))
    return RULES["4b"](read(folder))[0]


@pytest.mark.parametrize(
    ("time", "vectors", "verdict"),
    [
        (100.0, 1000, SUPPORTED),
        (5000.0, 1000, CONTRADICTED),
        (100.0, 41_000, SUPPORTED),
        (100.0, 45_000, CONTRADICTED),  # FLOPs; in bytes it is smaller
        (100.0, 100_000, CONTRADICTED),
        (900.0, 1000, UNRESOLVED),
        (500.0, 1000, UNRESOLVED),  # testing times repeat no better
    ],
)
def test_an_svm_needs_less_only_if_time_and_size_say_so(tmp_path, time, vectors, verdict):
    assert needs(tmp_path, time, vectors) == verdict


def test_one_pair_with_the_same_weights_does_not_speak_for_the_others(tmp_path):
    pins(tmp_path, {"true": 1.0, "false": 1.0}, weights_sha256="other")
    resnet(tmp_path, epochs=9, device="cuda", pin_memory="true", weights_sha256="same")
    resnet(tmp_path, epochs=9, device="cuda", pin_memory="false", weights_sha256="same")
    verdict, numbers = RULES["9a"](read(tmp_path))
    assert verdict == UNRESOLVED
    assert numbers == "1 of 5 pairs with the same weights"


def test_pinning_that_varies_too_much_is_not_resolved(tmp_path):
    for epochs, factor in ((1, 0.8), (2, 1.3)):
        for pin_memory, time in (("true", 1000.0), ("false", 1000.0 * factor)):
            facts = {"device": "cuda", "pin_memory": pin_memory, "epochs": epochs}
            resnet(tmp_path, **facts, train_time_ms=time)
    assert RULES["9b"](read(tmp_path))[0] == UNRESOLVED


def test_a_claim_on_both_data_sets_is_not_shown_by_one(tmp_path):
    runs(tmp_path, {("mnist", "ResNet-18"): GOOD, ("mnist", "ResNet-50"): BAD})
    assert RULES["2"](read(tmp_path))[0] == UNRESOLVED


def test_models_of_unequal_training_parts_do_not_judge_a_claim(tmp_path):
    runs(tmp_path, each(svm={**BAD, "n_train": 10_000}, eighteen=GOOD))
    assert RULES["5a"](read(tmp_path))[0] == UNMEASURED


def test_two_gaps_are_as_sure_as_the_one_with_fewer_seeds(tmp_path):
    """Three seeds on MNIST, one on FashionMNIST: with the normal distribution it would be shown."""
    runs(tmp_path, {
        ("fashion", "ResNet-18"): errors(*range(10)), ("fashion", "SVM"): errors(*range(40)),
    })  # fmt: skip
    for seed, wrong in enumerate((56, 60, 64)):
        facts = {"seed": seed, "split_seed": seed, "split_id": f"mnist{seed}", "n_train": 3500}
        resnet(tmp_path, **facts, **errors(*range(10)))
        svm(tmp_path, **facts, **errors(*range(wrong)))
    results = read(tmp_path)
    first, second = make_tables.versus(results, ("ResNet-18",), ("SVM",)).values()
    t = (first.size - second.size) / math.hypot(first.error, second.error)
    assert make_tables.student_p(t, math.inf) < 0.05 < make_tables.student_p(t, 2)
    assert RULES["5b"](results)[0] == UNRESOLVED


def test_times_of_different_machines_give_no_ratio(tmp_path):
    runs(tmp_path, each(eighteen=GOOD, fifty=BAD))
    assert "times as long" in RULES["2"](read(tmp_path))[1]
    runs(tmp_path, each(fifty={**BAD, "threads": 64}))
    assert "times as long" not in RULES["2"](read(tmp_path))[1]


def test_a_gpu_is_compared_on_the_same_work(tmp_path):
    """Rows of another number of epochs on the GPU are no match for the CPU's."""
    device(tmp_path, arch="resnet50", train_time_ms=9e4)
    device(tmp_path, arch="resnet50", device="cuda", device_name="GPU", epochs=1, train_time_ms=1e3)
    assert RULES["6"](read(tmp_path))[0] == UNMEASURED


def test_three_seeds_resolve_a_large_difference_and_no_small_one(tmp_path):
    for seed in range(3):
        facts = {"seed": seed, "split_seed": seed, "n_train": 3500}
        for dataset in ("mnist", "fashion"):
            split = {**facts, "split_id": f"{dataset}{seed}", "dataset": dataset}
            resnet(tmp_path, **split, **errors(*range(10 + seed)))
            svm(tmp_path, **split, **errors(*range(200 + 3 * seed)))
            resnet(tmp_path, **split, arch="resnet50", **errors(*range(12 - 2 * seed)))
    results = read(tmp_path)
    assert RULES["5a"](results)[0] == SUPPORTED
    assert RULES["2"](results)[0] == UNRESOLVED
    assert make_tables.accuracy_interval(
        make_tables.best_of(results, "mnist", "SVM")
    ) == pytest.approx((0.797 - 0.01016, 0.797 + 0.01016), abs=1e-4)
