"""Helpers of the tests; fixtures are in conftest.py."""

import pytest

# pytest explains the failed asserts of these modules, as it does those of test modules.
pytest.register_assert_rewrite("support.archives", "support.images", "support.server")
