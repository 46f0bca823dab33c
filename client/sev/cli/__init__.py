"""The `sev` command: thin over the library, one module per noun."""
