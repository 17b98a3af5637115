"""Metrics of generated text, `(hypotheses, references of each) -> float`, and the suites that papers report.

`suites` is the way in: `suites.compute('e2e', hypotheses, references)`. Nothing here imports JAX or TensorFlow.
"""
