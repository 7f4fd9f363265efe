"""Time and peak memory of the ops beside other implementations; `python -m benchmarks.<op>`, see README.md."""
