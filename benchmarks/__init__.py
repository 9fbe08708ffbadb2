"""Benchmark suites (run with pytest), their shared helpers, and the report that turns results into a table."""
