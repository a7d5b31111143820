"""The file system of a path, from the text of /proc/self/mountinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbatch import filesystem
from cbatch.errors import JournalError
from cbatch.filesystem import is_network, kind_in, kind_of, require_local

MOUNTS = r"""
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 27 0:21 / /proc rw,relatime - proc proc rw
40 27 0:40 / /home rw,relatime shared:7 master:2 - autofs systemd-1 rw,fd=51
41 40 0:41 / /home rw,relatime shared:8 - nfs4 server:/home rw,vers=4.2
42 41 254:1 / /home/me/scratch rw - xfs /dev/vdb rw
50 27 0:50 / /mnt/big\040disk\134x rw - cifs //server/share rw
51 27 0:41 /team /srv/team rw - nfs4 server:/home rw,vers=4.2
52 27 254:0 /var/data /data rw - ext4 /dev/vda rw
60 27 254:9 / /a/b rw - ext4 /dev/vdc rw
61 27 0:61 / /a rw - fuse.sshfs me@host:/a rw
70 27 0:70 / /café rw - 9p share rw
80 27 0:80 / /no-source rw - tmpfs  rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        pytest.param("/", "ext4", id="the root"),
        pytest.param("/var/tmp/not/there/yet", "ext4", id="a folder that is still to be made"),
        pytest.param("/home/me/runs/x", "nfs4", id="of two mounts on one point the upper one counts"),
        pytest.param("/home/me/scratch/x", "xfs", id="a local disk inside a network home"),
        pytest.param("/home/me/scratch2/x", "nfs4", id="a name that only begins like a mount point"),
        pytest.param("/homes", "ext4", id="a name that only begins like another"),
        pytest.param("/mnt/big disk\\x/run", "cifs", id="spaces and backslashes are written in octal"),
        pytest.param("/srv/team/run", "nfs4", id="a bind mount of a network folder"),
        pytest.param("/data/run", "ext4", id="a bind mount of a local folder"),
        pytest.param("/a/b/run", "fuse.sshfs", id="a mount that was covered later does not count"),
        pytest.param("/café/run", "9p", id="letters beyond ASCII"),
        pytest.param("/no-source/x", "tmpfs", id="a mount whose source has no name"),
    ],
)
def test_the_mount_that_a_path_lies_on(path: str, kind: str) -> None:
    assert kind_in(MOUNTS, Path(path)) == kind


@pytest.mark.parametrize(
    "text", ["", "27 1 254:0", "27 1 254:0 / / rw - ", "no mounts here\n\n - \n", "1 2 3 4 /x - a"]
)
def test_a_text_that_says_nothing_is_not_an_error(text: str) -> None:
    assert not is_network(kind_in(text, Path("/tmp")))


def test_mounts_that_go_round_in_a_circle_end() -> None:
    """A mount that is its own parent, as the first one of a machine is, and one that is its grandparent."""
    assert kind_in("1 1 0:2 / / rw - rootfs none rw\n27 1 8:1 / / rw - ext4 /dev/a rw\n", Path("/x")) == "ext4"
    assert kind_in("1 2 0:2 / / rw - ext4 a rw\n2 1 0:2 / / rw - ext4 a rw\n", Path("/x")) is None


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "lustre", "fuse.sshfs", "fuse.s3fs", "vboxsf"])
def test_network(kind: str) -> None:
    assert is_network(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuse.mergerfs", "fuseblk", None])
def test_local(kind: str | None) -> None:
    assert not is_network(kind)


def test_this_machine_says_something_and_one_without_proc_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is known, nothing is refused."""
    assert kind_of(Path("/proc/self")) == "proc"
    monkeypatch.setattr(filesystem, "MOUNTINFO", tmp_path / "missing")
    assert kind_of(tmp_path) is None
    require_local(tmp_path)


def test_a_link_to_a_network_folder_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is where the files will be, and the message names the folder as the user does."""
    (tmp_path / "info").write_text(f"1 0 8:1 / / rw - ext4 a rw\n2 1 0:9 / {tmp_path}/net rw - nfs4 s:/ rw\n")
    monkeypatch.setattr(filesystem, "MOUNTINFO", tmp_path / "info")
    (tmp_path / "link").symlink_to(tmp_path / "net")
    require_local(tmp_path / "run")
    with pytest.raises(JournalError, match=r"link/run: on a network file system \(nfs4\)") as caught:
        require_local(tmp_path / "link" / "run")
    assert "--state-dir DIR" in str(caught.value.hint)
