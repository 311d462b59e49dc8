"""The choice of a device, an ISA and a number of threads, and the errors for those that are not available."""

import pickle

import backends
import numpy as np
import pytest

import fastinfer

cpu = pytest.importorskip("fastinfer.backends.cpu", reason="the compiled module is not built")


def test_the_baseline_is_always_there():
    assert "portable" in cpu.isas()
    assert "numpy" in backends.ALL
    assert fastinfer.backends.get("auto").device == f"cpu:{cpu.default_isa()}"


def test_auto_takes_a_gpu_first(monkeypatch):
    monkeypatch.setattr(fastinfer.backends, "AUTO", ("cuda", "cpu", "numpy"))
    assert fastinfer.backends.get("auto").device == ("cuda:0" if "cuda" in backends.ALL else f"cpu:{cpu.default_isa()}")


@pytest.mark.parametrize("here", [["avx512_bf16", "avx512_vnni", "avx2", "portable"], ["neon_bf16", "neon_i8mm", "neon", "portable"]])
def test_dot_instructions_that_are_slow_are_passed_over(monkeypatch, here):
    monkeypatch.setattr(cpu, "isas", lambda: here)
    for time, chosen in ((0.9, here[0]), (2.0, here[1])):
        monkeypatch.setattr(cpu, "dot_time", lambda isa, time=time: time)
        assert cpu.default_isa() == chosen
        assert f"{time:.1f} times an FMA" in cpu.choose_isa()[1]
    here.insert(0, "avx512_amx")
    assert cpu.choose_isa() == ("avx512_amx", "the first that this CPU has")
    monkeypatch.setenv("FASTINFER_ISA", here[1])
    assert cpu.choose_isa() == (here[1], "FASTINFER_ISA names it")


def test_the_time_of_dot_instructions_is_measured():
    for isa in cpu.isas():
        time = cpu.dot_time(isa)
        assert time is None if f"cpu:{isa}" not in backends.BFLOAT16_DOTS else 0.2 < time < 50


def test_every_isa_can_be_forced(monkeypatch):
    for isa in cpu.isas():
        assert fastinfer.backends.get(f"cpu:{isa}").device == f"cpu:{isa}"
        monkeypatch.setenv("FASTINFER_ISA", isa)
        assert fastinfer.backends.get("cpu").device == f"cpu:{isa}"


@pytest.mark.parametrize("device", ["cpu:quantum", "gpu", "numpy:2", "auto:1", "", *(["cuda", "cuda:1"] * ("cuda" not in backends.ALL))])
def test_a_device_that_cannot_be_had(device):
    with pytest.raises(fastinfer.BackendError) as error:
        fastinfer.backends.get(device)
    assert repr(device) in str(error.value)
    assert "Available here: numpy, cpu" in str(error.value)


def test_an_environment_isa_that_cannot_be_had(monkeypatch):
    monkeypatch.setenv("FASTINFER_ISA", "quantum")
    with pytest.raises(fastinfer.BackendError, match=r"FASTINFER_ISA is 'quantum', but this CPU has only .*portable"):
        fastinfer.backends.get("cpu")


@pytest.mark.parametrize("device", [None, 3])
def test_a_device_that_is_no_string(device):
    with pytest.raises(fastinfer.BackendError, match="expected a string"):
        fastinfer.backends.get(device)


def test_dtypes():
    with pytest.raises(fastinfer.BackendError, match="dtype is 'float8', expected one of float32"):
        fastinfer.backends.get("numpy", dtype="float8")
    with pytest.raises(fastinfer.BackendError, match=r"'int8' was asked for, but device 'numpy' computes in float32"):
        fastinfer.backends.get("numpy", dtype="int8")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 10**6])
def test_threads_that_cannot_be(threads):
    with pytest.raises(fastinfer.BackendError, match=r"threads is .*, expected an integer from 1"):
        fastinfer.backends.get("cpu", threads=threads)


def test_threads_default_to_what_the_process_may_use(monkeypatch):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda pid: {0, 3, 5, 7}, raising=False)
    monkeypatch.setattr(cpu, "_core", str)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for quota, threads in ((None, 4), (2.5, 2), (0.3, 1), (64.0, 4)):
        monkeypatch.setattr(cpu, "cgroup_quota", lambda quota=quota: quota)
        assert cpu.default_threads() == threads


def test_hyper_threads_of_a_core_are_one_thread(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.setattr(cpu, "cgroup_quota", lambda: None)
    for one, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{one}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{one}" / "topology" / "thread_siblings_list").write_text(siblings + "\n")
    core = cpu._core
    monkeypatch.setattr(cpu, "_core", lambda one: core(one, str(tmp_path)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cpu.default_threads() == 3  # CPU 4 has no file


@pytest.mark.parametrize(("said", "threads"), [("2", 2), (" 1 ", 1), ("3,2", 3), ("9", 4), ("0", 4), ("", 4), ("-1", 4), ("many", 4)])
def test_threads_default_to_those_of_openmp(monkeypatch, said, threads):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cpu, "cgroup_quota", lambda: None)
    monkeypatch.setattr(cpu, "_core", str)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert cpu.default_threads() == threads
    assert fastinfer.backends.get("cpu", threads=4).threads == 4


def test_quota_of_control_groups(tmp_path):
    own = tmp_path / "cgroup"
    root = tmp_path / "fs"
    (root / "a" / "b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert cpu.cgroup_quota(str(root), str(own)) is None
    (root / "a" / "cpu.max").write_text("150000 100000\n")
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert cpu.cgroup_quota(str(root), str(own)) == 1.5
    (root / "cpu.max").write_text("rubbish\n")
    assert cpu.cgroup_quota(str(root), str(own)) == 1.5

    own.write_text("4:memory:/x\n3:cpu,cpuacct:/c\n")
    (root / "cpu" / "c").mkdir(parents=True)
    (root / "cpu" / "c" / "cpu.cfs_quota_us").write_text("50000\n")
    (root / "cpu" / "c" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu.cgroup_quota(str(root), str(own)) == 0.5
    (root / "cpu" / "c" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpu.cgroup_quota(str(root), str(own)) is None
    assert cpu.cgroup_quota(str(root), str(tmp_path / "absent")) is None


def test_info():
    info = fastinfer.info()
    assert info["version"] == fastinfer.__version__
    assert info["devices"]["numpy"] is None
    assert ("cuda" in backends.ALL) == (info["devices"]["cuda"] is None) == bool(info["gpus"])
    assert set(info["isas"]["usable"]) <= set(info["isas"]["compiled"])
    assert info["isas"]["chosen"] in info["isas"]["usable"]
    assert info["isas"]["why"] == cpu.choose_isa()[1]
    assert info["threads"] >= 1


def test_without_the_compiled_module(monkeypatch):
    monkeypatch.setattr(fastinfer.backends, "_why_no_cpu", lambda: "the compiled module is missing")
    with pytest.warns(fastinfer.BackendWarning, match="computing with NumPy, .*: the compiled module is missing"):
        assert fastinfer.backends.get("auto").device == "numpy"
    assert fastinfer.info()["isas"] is None
    with pytest.raises(fastinfer.BackendError, match=r"(?s)'cpu'.*compiled module is missing.*Available here: numpy(, cuda)?\."):
        fastinfer.backends.get("cpu")


@pytest.mark.parametrize("device", ["auto", "cpu", "numpy"])
def test_float16_without_a_gpu_is_float32_with_one_warning(device, random_model):
    if fastinfer.backends.available().get(device) is not None:
        pytest.skip(f"{device} is not available here")
    want = fastinfer.load(random_model, device=device, dtype="float32").embed("ada lived")
    with pytest.warns(fastinfer.BackendWarning, match=f"dtype 'float16' needs a GPU, and device '{device}' is none") as caught:
        model = fastinfer.load(random_model, device=device, dtype="float16")
    assert [warning.filename for warning in caught] == [__file__]
    np.testing.assert_array_equal(model.embed("ada lived"), want)
    with pytest.warns(fastinfer.BackendWarning):
        assert pickle.loads(pickle.dumps(model))._origin.how.dtype == "float16"  # it may be used on a machine with a GPU
    w, x = np.ones((1, 3, 8), np.float32), np.ones((2, 8), np.float32)
    with pytest.warns(fastinfer.BackendWarning) as caught:
        layer = fastinfer.FFF(w, None, w, depth=1, dtype="float16", device=device)
    assert (len(caught), layer.dtype) == (1, "float32")
    np.testing.assert_array_equal(layer(x), fastinfer.FFF(w, None, w, depth=1, device=device)(x))
