"""`sev demo`: the whole story on a private simulated host."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output

_ABOUT = """\
Shows a confidential guest from launch to proof, and explains each step: a host and its
TCBs, the predicted and the actual launch digest, an attestation report, the chain of
certificates behind it, an appraisal by a policy, and what happens when one bit of the
report is flipped.

It starts a simulated host of its own in a private directory and ends it again. Neither
root nor AMD hardware is needed, and nothing on this machine is changed but a cache of
the simulated chip in ~/.cache/sev (or $XDG_CACHE_HOME/sev).

The firmware image is an installed OVMF with SEV metadata where there is one, else a
small image that is built on the spot.
"""

PRODUCTS = ("milan", "genoa", "turin")


def build(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.description = _ABOUT
    parser.add_argument("--product", choices=PRODUCTS, default="genoa", help="which processor to simulate (genoa)")
    parser.add_argument("--firmware", metavar="FILE", help="launch this firmware image instead")
    examples(
        parser,
        ("sev demo", "watch it"),
        ("sev demo --product turin", "on a simulated Turin, whose TCB has one more component"),
        ("sev demo --json | jq '.steps[].id'", "its steps, as one document"),
        notes='JSON: {"simulated", "product", "firmware_image", "steps": [{"id", "title", ...}], "seconds"}.',
    )
    parser.set_defaults(run=_run)


def _run(args: Namespace, out: Output) -> int:
    from time import monotonic

    from sev.cli.demo_firmware import find
    from sev.cli.demo_steps import tell
    from sev.cli.demo_story import Story
    from sev.cli.private_host import PrivateHost

    begin = monotonic()
    image = find(args.firmware)
    story = Story(out)
    story.opening(args.product)
    with PrivateHost(args.product, out.note) as private, private.connect() as host:
        tell(story, host, image)
    story.closing(args.product, image, monotonic() - begin)
    return 0
