"""Generated messages and stubs of package sev.v1; `python -m tests.generate` makes them anew."""
