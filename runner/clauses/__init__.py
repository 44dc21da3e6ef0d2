"""Clauses that specs of several kinds share, and the steps they become."""
