"""Runs untrusted programs in isolation. This package does not depend on any model."""
