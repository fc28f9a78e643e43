"""The two hosts themselves: what they share, and what they do not."""


def write(machine, file, environment):
    return machine.start("sh", "-c", f"echo {machine.name} > {file}", environment=environment).communicate()


def test_hosts_have_disks_of_their_own_and_write_nowhere_else(hosts, tmp_path):
    for machine in (hosts.first, hosts.second):
        write(machine, "name", hosts.environment)
    assert [machine.path("name").read_text() for machine in (hosts.first, hosts.second)] == [
        "first\n",
        "second\n",
    ]
    assert not list(hosts.disk.iterdir())
    _, errors = write(hosts.first, tmp_path / "name", hosts.environment)
    assert "Read-only file system" in errors
    hosts.recover()
    assert not hosts.first.files() + hosts.second.files()


def test_folder_that_both_hosts_mount_is_shared(hosts, tmp_path):
    for machine, where in ((hosts.first, "here"), (hosts.second, "there")):
        machine.mount(tmp_path, where)
    try:
        write(hosts.first, "here/name", hosts.environment)
        assert hosts.second.path("there/name").read_text() == "first\n"
    finally:
        hosts.first.unmount("here")
        hosts.second.unmount("there")
