"""Measurements before and after: tables of values by example, and what may be concluded from them."""
