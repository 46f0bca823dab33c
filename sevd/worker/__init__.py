"""One process for each hosted guest: it creates the VM in its own address space, holds its memory and its vCPUs, runs
the launch, and is the only thing that ends if the guest goes wrong. The daemon asks it over one socket.

Nothing here imports grpc, asyncio or cryptography: a worker starts in the time of an interpreter, and stays small.
"""
