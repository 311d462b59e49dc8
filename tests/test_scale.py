"""tools/scale.py: its queues against formulas that it does not use, and the figures and tables of docs/scale.md."""

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "tools").is_dir(), reason="tools/ is not beside the tests")
sys.path.insert(0, str(ROOT / "tools"))
scale = pytest.importorskip("scale") if (ROOT / "tools").is_dir() else None


feed = pytest.importorskip("feed") if (ROOT / "tools").is_dir() else None


def test_portions_are_counted_by_their_share():
    assert feed.portions_by([0.0, 1.0, 2.5, 4.5], 2.0) == pytest.approx(1 + 1.0 / 1.5)
    assert feed.portions_by([0.0, 8.0], 2.0) == pytest.approx(0.25)
    assert feed.portions_by([0.0, 1.0, 2.0], 2.0) == 2


def test_a_process_that_fails_is_told_of(tmp_path):
    """Not waited for. Each runs in a new process, which cannot load this model."""
    (tmp_path / "texts.txt").write_text("a text\n")
    with pytest.raises(SystemExit, match=r"feed: a process failed: .*missing"):
        feed.main(["--texts", str(tmp_path / "texts.txt"), "-m", str(tmp_path / "missing"), "--device", "cpu", "--workers", "2"])


@pytest.fixture
def rng():
    return np.random.default_rng()


@pytest.mark.parametrize("workers", [1, 2, 5, 17, 40])
def test_a_closed_queue_of_exponential_times(workers, rng):
    """Against the states of a birth and death process: k of the workers are at the GPU."""
    core, gpu = rng.uniform(0.5, 5), rng.uniform(0.05, 0.5)
    weights = [math.perm(workers, k) * (gpu / core) ** k for k in range(workers + 1)]
    want = (1 - weights[0] / sum(weights)) / gpu
    assert scale.exact(workers, core, gpu) == pytest.approx(want, rel=1e-9)
    assert scale.simulate(workers, core, gpu, 1.0, rng) == pytest.approx(want, rel=0.06)
    assert scale.exact(workers, core, gpu) <= scale.limit(workers, core, gpu) * (1 + 1e-9)


@pytest.mark.parametrize(("workers", "want"), [(1, 1 / 3.5), (4, 4 / 3.5), (7, 2), (20, 2)])
def test_a_queue_whose_times_are_equal_reaches_its_limit(workers, want, rng):
    assert scale.simulate(workers, 3.0, 0.5, 0.0, rng) == pytest.approx(want, rel=1e-3)
    assert scale.limit(workers, 3.0, 0.5) == pytest.approx(want)


def test_times_have_their_mean_and_spread(rng):
    times = scale.drawn(3.0, 0.5, (200_000,), rng)
    assert times.min() > 0
    assert times.mean() == pytest.approx(3.0, rel=0.02)
    assert times.std() == pytest.approx(1.5, rel=0.04)


def test_workers_that_are_lost(rng):
    assert scale.farm(101, 10, 2.0, 0.0, 0.0, 9.0, rng) == (22.0, 0)
    portions, workers, mean, lost, restart = 20_000, 8, 1.0, 0.02, 5.0
    end, losses = scale.farm(portions, workers, mean, 0.2, lost, restart, rng)
    work = portions * mean / workers
    assert losses == pytest.approx(portions * mean * lost, rel=0.3)
    assert end / work - 1 == pytest.approx(scale.expected_loss(portions, workers, mean, lost, restart), abs=0.04)


def test_what_saturates_first_changes_with_the_rates():
    def first(**rates):
        found = scale.capacities(scale.Rates(**rates), scale.Assumed())
        return min(found, key=found.get)

    assert first() == "tokenising, all cores"
    assert first(gpu=1e5) == "the GPU"
    assert first(gpu=1e6, tokenise=1e6) == "writing .parquet, one core"


def test_the_figure_and_the_tables_are_those_of_the_script():
    lines = (ROOT / "docs" / "figures" / "scale.csv").read_text().splitlines()
    rows = [(row["series"], int(row["x"]), int(row["y"])) for row in csv.DictReader(line for line in lines if not line.startswith("#"))]
    made = scale.figure(scale.Rates(), scale.Assumed())
    assert [row[:2] for row in rows] == [row[:2] for row in made]
    assert [row[2] for row in rows] == pytest.approx([row[2] for row in made], rel=0.02)
    page = (ROOT / "docs" / "scale.md").read_text()
    for name, rate in scale.capacities(scale.Rates(), scale.Assumed()).items():
        assert f"{rate:,.0f}" in page, name


def test_wrong_options(capsys):
    with pytest.raises(SystemExit):
        scale.main(["--cpu", "0"])
    assert "--cpu is 0, expected a number above 0" in capsys.readouterr().err
