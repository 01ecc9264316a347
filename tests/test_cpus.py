"""The CPUs that cgroups grant, by the files that the kernel shows in each kind of system."""

import pytest

from lnorm import _cpus

INF = float("inf")

# name: what /proc/self/cgroup says, the files below /sys/fs/cgroup, the CPUs granted.
SYSTEMS = {
    "no cgroups": ("", {}, INF),
    "v2, the root group, which has no cpu.max": (
        "0::/\n",
        {"cgroup.controllers": "cpuset cpu io memory pids\n"},
        INF,
    ),
    "v2, a desktop's session": (
        "0::/user.slice/user-1000.slice/session-2.scope\n",
        {"user.slice/cpu.max": "max 100000\n", "user.slice/user-1000.slice/cpu.max": "max 100000\n"},
        INF,
    ),
    "v2, a systemd service with CPUQuota=150%": (
        "0::/system.slice/app.service\n",
        {"system.slice/cpu.max": "max 100000\n", "system.slice/app.service/cpu.max": "150000 100000\n"},
        1.5,
    ),
    "v2, a slice above grants less than the service": (
        "0::/machine.slice/app.service\n",
        {"machine.slice/cpu.max": "200000 100000\n", "machine.slice/app.service/cpu.max": "400000 100000\n"},
        2,
    ),
    "v2, a container with its own cgroup namespace": ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
    "v2, a container that sees the host's path": (
        "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope\n",
        {"cpu.max": "50000 100000\n"},
        0.5,
    ),
    "v2, a group above the namespace's root": ("0::/../../other\n", {"cpu.max": "max 100000\n"}, INF),
    "v1, Docker with --cpus=1.5": (
        "12:hugetlb:/docker/4c01\n4:cpu,cpuacct:/docker/4c01\n1:name=systemd:/docker/4c01\n0::/system.slice/docker.service\n",
        {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        1.5,
    ),
    "v1, on the host, where the group has the path": (
        "4:cpu,cpuacct:/batch/job7\n",
        {
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "cpu/batch/cpu.cfs_quota_us": "-1\n",
            "cpu/batch/cpu.cfs_period_us": "100000\n",
            "cpu/batch/job7/cpu.cfs_quota_us": "300000\n",
            "cpu/batch/job7/cpu.cfs_period_us": "50000\n",
        },
        6,
    ),
    "v1, no limit": (
        "5:cpuacct,cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        INF,
    ),
    "v1, cpuset and cpuacct are not cpu": (
        "3:cpuset:/a\n2:cpuacct:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "100000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        INF,
    ),
    "hybrid: v1 has the controller, v2 only the groups": (
        "1:cpu:/job\n0::/\n",
        {"cpu/job/cpu.cfs_quota_us": "100000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
        1,
    ),
    "a name with a colon, and bytes that are no UTF-8": (
        "0::/a:b/\udcff\n",
        {"a:b/\udcff/cpu.max": "100000 100000\n"},
        1,
    ),
    "files that say nothing sensible": ("0::/x\n", {"cpu.max": "", "x/cpu.max": "100000 0\n"}, INF),
    "a line without its three fields": ("nonsense\n\n0::/x\n", {"x/cpu.max": "200000 100000\n"}, 2),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_quota_is_that_of_the_group_or_of_one_above_it(system, tmp_path):
    cgroup, files, cpus = SYSTEMS[system]
    (tmp_path / "proc").write_text(cgroup, errors="surrogateescape")
    for name, content in files.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert _cpus.quota(str(tmp_path / "proc"), str(tmp_path / "sys")) == cpus


@pytest.mark.parametrize(("cpus", "whole"), [(0.1, 1), (1, 1), (1.9, 1), (2, 2), (2.5, 2), (INF, 0x7FFF)])
def test_a_part_of_a_cpu_is_not_one_more_thread(cpus, whole):
    assert _cpus.whole(cpus) == whole
