"""What kind of file system a path lies on: SQLite's WAL needs memory shared by all who have it open.

A network file system does not share it between machines, and the locks of some are only for show, so
the journal must not lie on one. Linux only: where there is no /proc, nothing is known and nothing refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from cbatch.errors import JournalError

MOUNTINFO = Path("/proc/self/mountinfo")

# Also those of virtual machines, whose folders are another machine's, and of clusters. A FUSE file system
# that is not named here counts as local: most are (mergerfs, gocryptfs, the overlays of rootless containers).
_NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "9p", "afs", "auristorfs", "coda", "davfs",
    "ceph", "lustre", "glusterfs", "beegfs", "gpfs", "panfs", "pvfs2", "orangefs", "wekafs", "gfs2", "ocfs2",
    "vboxsf", "vmhgfs", "prl_fs",
})  # fmt: skip
_NETWORK_FUSE = frozenset({
    "alluxio-fuse", "blobfuse", "blobfuse2", "ceph", "ceph-fuse", "curlftpfs", "davfs", "dbfs", "drive", "gcsfuse",
    "glusterfs", "goofys", "google-drive-ocamlfuse", "gvfsd-fuse", "hdfs", "juicefs", "mfs", "mount-s3",
    "mountpoint-s3", "objectivefs", "onedriver", "quobyte", "rclone", "s3backer", "s3fs", "seaweedfs", "smbnetfs",
    "sshfs", "vmhgfs-fuse",
})  # fmt: skip


class _Mount(NamedTuple):
    id: str
    parent: str
    point: Path
    kind: str


def kind_of(path: Path) -> str | None:
    """The file system type of the mount that `path` lies on, or will lie on; None where that is unknown."""
    try:
        text = MOUNTINFO.read_text("utf-8", "surrogateescape")  # as Python decodes the names of files
        return kind_in(text, path.resolve())
    except OSError:
        return None


def kind_in(mountinfo: str, path: Path) -> str | None:
    """The same from the text of /proc/self/mountinfo, for a path without links.

    Follows the path as the kernel does, from mount to mount: the longest mount point alone would
    also find one that was mounted earlier, further down, and lies hidden since.
    """
    mounts = [m for m in _mounts(mountinfo) if path.is_relative_to(m.point)]
    ids = {m.id for m in mounts}
    step = [m for m in mounts if m.parent == m.id or m.parent not in ids]
    here = max(step, key=_depth, default=None)
    while here is not None:
        # Of several at one point the last line is the newest.
        step = [m for m in reversed(mounts) if m.parent == here.id != m.id]
        mounts = [m for m in mounts if m.id != here.id]  # an end, whatever the text says
        if not step:
            return here.kind
        here = min(step, key=_depth)
    return None


def _depth(mount: _Mount) -> int:
    return len(mount.point.parts)


def _mounts(mountinfo: str) -> list[_Mount]:
    # id parent major:minor root point options [optional fields] - type source options: proc(5). A bind
    # mount stands there with the type of what it shows.
    found = []
    for line in mountinfo.split("\n"):
        before, separator, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if separator and len(fields) >= 5:
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
            found.append(_Mount(fields[0], fields[1], Path(point), kinds[0]))
    return found


def is_network(kind: str | None) -> bool:
    """Whether a file system type is that of another machine's files."""
    return kind is not None and (kind in _NETWORK or kind.removeprefix("fuse.") in _NETWORK_FUSE)


def require_local(folder: Path) -> None:
    """Raise JournalError if `folder`, the journal's, which may not exist yet, lies on a network file system."""
    kind = kind_of(folder)
    if is_network(kind):
        raise JournalError(
            f"{folder}: on a network file system ({kind}), where a journal is not safe",
            hint="--state-dir DIR puts the journal into a local folder; the results stay in the run directory",
        )
