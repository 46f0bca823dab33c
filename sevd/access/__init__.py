"""Who is calling, what they may do, and the sockets they come through."""
