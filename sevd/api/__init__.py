"""The gRPC face: one dispatcher, one error table, and a thin skin per service."""
