"""What the machine says about itself without any SEV command: processor, kernel, ASIDs."""

from __future__ import annotations

from sev.host.facts import KernelFacts
from sev.records import record


@record
class HostFacts:
    """Facts of one host, real or simulated.

    Attributes:
        product: Product line in lower case (sev.products); empty if the processor is none of them.
        cpu_family: Combined family.
        cpu_model: Combined model.
        cpu_stepping: Stepping.
        kernel: Kernel release, as uname tells it.
        technologies: What KVM can launch here: "sev", "sev-es", "sev-snp".
        offers: What else the kernel offers.
    """

    product: str
    cpu_family: int
    cpu_model: int
    cpu_stepping: int
    kernel: str
    technologies: tuple[str, ...] = ()
    offers: KernelFacts = KernelFacts()
