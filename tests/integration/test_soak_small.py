"""The soak, small: so that the script cannot rot."""

from __future__ import annotations

from tests.soak import Settings, soak


def test_a_small_soak() -> None:
    """Two kills, a disk that fills up where one may be mounted, and a fifth of the answers failing: nothing is lost."""
    figures = soak(
        Settings(rows=300, limit_s=150.0, kill_every=(0.7, 1.0), concurrency=8, disturbances=3, fill_first=True)
    )
    assert not figures.problems, figures.lines()
    assert figures.rows_in_results == 300
    assert figures.kills + figures.disk_full_episodes >= 2
    assert figures.faults_met > 30
