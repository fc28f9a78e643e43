import subprocess
import sys

import pytest

from experiments import benchmark
from experiments.benchmarks import data_parallel_benchmark, shaped_network
from experiments.benchmarks.shaped_network import address
from experiments.experiment_config import ConfigError

LISTEN = f"""
import socket
with socket.create_server(({address(0)!r}, 8000)) as server:
    print("listening", flush=True)
    connection, _ = server.accept()
    connection.sendall(b"hello")
"""
READ = f"import socket; print(socket.create_connection(({address(0)!r}, 8000)).recv(5).decode())"


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def hosts():
    """Commands before those that run on two hosts."""
    try:
        with shaped_network.shaped_network(2, "1gbit") as hosts:
            yield hosts
    except ConfigError as error:
        pytest.skip(str(error))


def test_hosts_reach_each_other_through_links_of_the_rate_and_nothing_else(hosts):
    first, second = hosts
    with subprocess.Popen(
        [*first, sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout.readline() == "listening\n"
        assert output(*second, sys.executable, "-c", READ) == "hello\n"
    for host in hosts:
        assert "tbf" in output(*host, "tc", "qdisc", "show", "dev", "eth0")
        assert "rate 1Gbit" in output(*host, "tc", "qdisc", "show", "dev", "eth0")
        assert "default" not in output(*host, "ip", "route")


def test_hosts_are_gone_at_the_end():
    try:
        with shaped_network.shaped_network(1, None) as [host]:
            assert host[-1] in output("ip", "netns", "list")
    except ConfigError as error:
        pytest.skip(str(error))
    assert host[-1] not in output("ip", "netns", "list")


def test_hosts_of_another_call_are_left_alone(hosts):
    switch = hosts[0][-1].replace("-0", "-switch")
    assert switch in output("ip", "netns", "list")
    with pytest.raises(ConfigError, match=r"need root on Linux: ip netns add .*File exists"):
        shaped_network.shaped_network(0, None).__enter__()
    assert switch in output("ip", "netns", "list")


def test_machine_without_such_hosts_is_told_what_they_need(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(data_parallel_benchmark, "WORKER_BYTES", 0)
    assert benchmark.main(["data-parallel", "--repeats", "1"]) == 2
    assert capsys.readouterr().err.endswith("error: ip is not installed (Debian: iproute2)\n")


def test_report_has_the_overlap_the_shares_of_the_small_parts_and_the_speed_of_two(monkeypatch):
    def measure(workers, rate, repeats):
        if rate is None:
            return {"step": [10.0 if workers == 1 else 12.5] * repeats}
        parts = {"step": 6.0 * workers, "compute": 5.0 * workers, "exchange": 4.0 * workers}
        parts |= {"gathers": 0.03 * workers, "norm of the gradients": 0.06 * workers}
        return {part: [seconds] * repeats for part, seconds in parts.items()}

    monkeypatch.setattr(data_parallel_benchmark, "WORKER_BYTES", 0)
    monkeypatch.setattr(data_parallel_benchmark, "_measure", measure)
    found = {result.variant: result for result in data_parallel_benchmark.data_parallel(1).results}
    for workers in (2, 4):
        step = found[f"step, {workers} workers, 1gbit"]
        assert (step.ratio, step.ratio_to) == (pytest.approx(1.2), f"compute alone, {workers} workers")
        assert step.overlap == step.ratio
        shares = (("gathers", 0.005), ("norm of the gradients", 0.01))
        for part, share in shares:
            measured = found[f"{part}, {workers} workers, 1gbit"]
            assert (measured.ratio, measured.ratio_to) == (pytest.approx(share), step.variant)
    assert found["step, 2 workers, no limit"].times_faster == pytest.approx(1.6)
