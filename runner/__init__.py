"""vecrun: plan and apply for vector databases."""

__version__ = "0.1.0"
