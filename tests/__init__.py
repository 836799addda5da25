"""The tests; shared pieces are imported as `tests.parity` and `tests.cases`."""
