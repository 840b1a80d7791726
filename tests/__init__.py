"""Tests of stacker. They need neither network nor data."""
