"""The order in which files of tests begin: a pytest plugin.

Each file is one worker's. The longest begin first, so that at the end no worker is left alone with one of them.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Seconds of the files that take longest, about; those of the others matter little.
SECONDS = {
    "tests/examples/test_examples.py": 98,
    "tests/client/test_chaos.py": 76,
    "tests/tools/test_serving.py": 60,
    "tests/server/test_peers.py": 58,
    "tests/study/test_study_run.py": 60,
    "tests/reference/test_frozen_towers.py": 50,
    "tests/study/test_own_data.py": 45,
    "tests/export/test_hub.py": 45,
    "tests/weights/test_staleness.py": 45,
    "tests/weights/test_faults.py": 45,
    "tests/server/test_manners.py": 45,
    "tests/export/test_transformers.py": 42,
    "tests/demo/test_run.py": 40,
    "tests/export/test_activation.py": 40,
    "tests/weights/test_sync.py": 40,
    "tests/server/test_groups_that_fail.py": 40,
    "tests/export/test_open_clip.py": 38,
    "tests/test_package.py": 35,
    "tests/server/test_process.py": 35,
    "tests/fuzz/test_fuzz.py": 35,
    "tests/monitoring/test_files.py": 33,
    "tests/weights/test_reports.py": 32,
    "tests/client/test_resume.py": 30,
    "tests/server/test_sample_ids.py": 30,
    "tests/reference/test_validation.py": 30,
    "tests/datasets/test_icons.py": 30,
    "tests/weights/test_protocol.py": 29,
    "tests/tools/test_bench_weights.py": 28,
    "tests/tools/test_bench_load.py": 26,
    "tests/weights/test_host_share.py": 25,
    "tests/client/test_bad_links.py": 25,
    "tests/sampling/test_kernel.py": 25,
    "tests/client/test_ranks.py": 24,
    "tests/weights/test_killed.py": 24,
    "tests/weights/test_models_as_they_are.py": 24,
    "tests/weights/test_news.py": 23,
    "tests/weights/test_many_swaps.py": 22,
    "tests/client/test_transport.py": 20,
    "tests/server/test_overload.py": 20,
    "tests/server/test_untrusted_bundles.py": 20,
    "tests/weights/test_admin.py": 20,
    "tests/weights/test_links.py": 20,
    "tests/weights/test_bad_versions.py": 20,
    "tests/reference/test_fit.py": 18,
    "tests/weights/test_under_requests.py": 18,
    "tests/encoding/test_micro_batch.py": 18,
    "tests/weights/test_sharded_publish.py": 16,
    "tests/export/test_own.py": 15,
    "tests/tools/test_bench_faults.py": 14,
    "tests/skew/test_skew.py": 12,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Other files, and the tests of each file, stay in their order."""
    items.sort(key=lambda item: -SECONDS.get(item.nodeid.partition("::")[0], 0))
