"""What the daemon counts and measures, for Prometheus and for `sev top`.

    sevd.metrics.model     a metric with its samples, as values
    sevd.metrics.tally     what is counted while calls and commands run
    sevd.metrics.collect   all metrics of a daemon, made when somebody asks
    sevd.metrics.serving   GET /metrics, on a socket of its own

Nothing here names a caller, a guest or a secret.
"""
