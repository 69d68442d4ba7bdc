"""The examples of Lightning and of transformers' Trainer."""

import pytest
from support.examples import LIBRARIES, trained


@pytest.mark.timeout(300)
@pytest.mark.parametrize("program", LIBRARIES)
def test_an_example_of_a_library_trains_on_what_the_sidecar_picks(
    program, shared_folder, sidecar, redis_url, run_name, tmp_path
):
    said = trained(program, shared_folder, sidecar, redis_url, run_name, tmp_path)
    assert "not installed" not in said
