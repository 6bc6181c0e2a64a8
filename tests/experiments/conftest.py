"""What holds for all tests of the loop: their programs run for moments, and are compiled for that."""

import pytest

from tests.experiments import corridor


@pytest.fixture(scope="package", autouse=True)
def quick():
    with corridor.quick_compilation():
        yield
