"""The tests; shared pieces are imported as `tests.support.parity` and `tests.support.cases`."""
