"""Side by side with Postfix, in one run: `python -m benchmarks`. docs/performance.md says what is measured and why."""
