"""How the demonstration speaks: steps with a title, what they are about, and what they found."""

from __future__ import annotations

import textwrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.cli.demo_firmware import Image
    from sev.cli.output import Output

WIDTH = 92


class Story:
    """Tells the steps: as text while they happen, or with --json as one document at the end."""

    def __init__(self, out: Output) -> None:
        self.out = out
        self.steps: list[dict[str, object]] = []
        self.product = ""

    def say(self, text: str = "") -> None:
        """Lines of text; nothing with --json."""
        if not self.out.json:
            self.out.text(text)
            self.out.flush()

    def about(self, text: str) -> None:
        """A paragraph that explains."""
        self.say(textwrap.fill(" ".join(text.split()), WIDTH, initial_indent="   ", subsequent_indent="   "))
        self.say()

    def step(self, name: str, title: str, about: str) -> None:
        """Opens the next step."""
        self.steps.append({"id": name, "title": title})
        self.say(f"\n{len(self.steps)}. {title}")
        self.about(about)

    def shows(self, text: str, **facts: object) -> None:
        """What the open step found: text for people, facts for the document."""
        self.say(textwrap.indent(text, "     "))
        self.steps[-1].update(facts)

    def opening(self, product: str) -> None:
        """What this is."""
        self.product = product
        self.say(f"A confidential guest, from launch to proof, on a simulated {product.capitalize()} host.")
        self.say("")
        self.about(
            """The daemon, the protocol, the firmware's commands and the cryptography are those of real AMD hardware;
            only the chip is a program, so nothing here protects anything. This command is an ordinary client: it has
            a socket and no device."""
        )

    def closing(self, product: str, image: Image, seconds: float) -> None:
        """The end: what to try next, or the document."""
        if self.out.json:
            document = {
                "simulated": True,
                "product": product,
                "firmware_image": image.path or None,
                "steps": self.steps,
                "seconds": round(seconds, 3),
            }
            self.out.result(document, "")
            return
        firmware = image.path or "OVMF.fd"
        self.say(f"\nThat was all of it, in {seconds:.1f} s; the simulated host is gone again. What to try next:")
        self.say("")
        tries = (
            (f"sevd --simulate={product} --socket /tmp/sevd.sock --state-dir /tmp/sevd &", "a host to keep"),
            ("export SEVD_SOCKET=/tmp/sevd.sock", ""),
            ("sev host show", "what it is"),
            (f"sev guest launch --firmware {firmware} --vcpus 2", "launch a guest yourself"),
            ("sev guest report ID --out report.bin --certs-out certs", "its report"),
            ("sev report verify report.bin --certs certs --roots certs/ark.pem", "is it genuine?"),
            (f"sev measure snp --ovmf {firmware} --vcpu-type EPYC-v4 --explain", "every measured page"),
            ("sev --help", "everything else"),
        )
        for command, meaning in tries:
            if meaning:
                self.say(f"     # {meaning}")
            self.say(f"     {command}")
