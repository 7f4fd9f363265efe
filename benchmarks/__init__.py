"""Time and peak memory of the ops, next to other implementations; `python -m benchmarks.<op>`, see README.md."""
