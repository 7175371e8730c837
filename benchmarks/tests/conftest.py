"""Child processes import the tree under test, when these tests are run without those of tests/ too."""

from helpers.tree_under_test import pytest_configure  # noqa: F401 - a hook
