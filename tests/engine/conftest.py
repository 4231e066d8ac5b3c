"""One house for all tests of what decides what."""

import pytest

from tests.engine.house import House, hashes


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="package")
def base(house: House) -> dict[str, str]:
    return hashes(house.tree())
