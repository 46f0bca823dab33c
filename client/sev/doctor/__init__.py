"""What is known of a host, its daemon and its kernel, gathered for a report of a bug: without secrets, without names.

`gather` asks everything that can be asked, `Redactor` takes out what must not leave the machine, `bundle` packs it.
"""
