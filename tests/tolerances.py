"""The one table of tolerances: absolute, for values of order one."""

GOLDEN_VALUE = 1e-5
"""Against values measured on the released modules in float32."""
GOLDEN_GRADIENT = 1e-4
RERANKED_DISTANCE = 1e-4
"""Against the field's code, which adds up in half precision."""
EXACT_FLOAT64 = 1e-9
"""Two ways to compute the same thing in float64."""
ROUNDING_FLOAT32 = 2e-5
"""Two orders of summation in float32."""
