"""Statuses of SEV and SEV-SNP commands, and the kernel's own.

The rows behind sev.status: number, name, meaning, causes, remedy.
"""

from __future__ import annotations

Row = tuple[int, str, str, tuple[str, ...], str]

ROWS: tuple[Row, ...] = (
    (0x00, "SUCCESS", "The command was carried out.", (), "Nothing to do."),
    (
        0x01,
        "INVALID_PLATFORM_STATE",
        "The platform is not in a state that allows this command.",
        (
            "SEV or SNP is not initialised yet, or is already",
            "guests are running and the command needs an idle platform",
            "SNP is enabled in the BIOS but its memory table (RMP) was never initialised",
        ),
        "Look at the platform state (sev snp status, sev host show); stop guests or initialise the platform first.",
    ),
    (
        0x02,
        "INVALID_GUEST_STATE",
        "The guest is not in a state that allows this command.",
        (
            "a launch step came out of order, such as an update after the finish",
            "the guest was already started or never launched",
        ),
        "Take the launch steps in order: start, update, finish; begin again with a new guest after a failed finish.",
    ),
    (
        0x03,
        "INVALID_CONFIG",
        "The platform configuration given is not valid.",
        (
            "reserved flags were set at initialisation",
            "the persistent area has a wrong size or alignment",
        ),
        "Use the flags that this firmware's version defines; leave the reserved ones zero.",
    ),
    (
        0x04,
        "INVALID_LENGTH",
        "A buffer is too short, too long, or not a multiple of what it must be.",
        (
            "the caller asked for the needed length on purpose (a probe)",
            "a certificate or session file is cut off or has trailing bytes",
        ),
        "Use the length that the firmware wrote back; check the sizes of the files given.",
    ),
    (
        0x05,
        "ALREADY_OWNED",
        "The platform already has an external owner.",
        ("a platform endorsement key signed by an owner was imported before",),
        "Give the platform back to itself first (PEK generation or platform reset), then import again.",
    ),
    (
        0x06,
        "INVALID_CERTIFICATE",
        "A certificate has a wrong form, usage, algorithm or key.",
        (
            "the certificate was made for another purpose or another platform",
            "the PEK was renewed after its signing request was made",
            "the file is damaged or in another format",
        ),
        "Make a new signing request, have it signed, and import the pair that belongs together.",
    ),
    (
        0x07,
        "POLICY_FAILURE",
        "The guest policy forbids this, or this platform cannot honour the policy.",
        (
            "the policy asks for a newer firmware ABI than this one",
            "bit 17 of an SNP policy is zero, or a reserved bit is set",
            "SMT is on and the policy does not allow it",
            "the policy of the ID block differs from that of the launch",
            "a debug or migration command for a guest whose policy excludes it",
        ),
        "Compare the policy with what the host offers (sev host show, sev snp status) and launch with one it can keep.",
    ),
    (
        0x08,
        "INACTIVE",
        "The guest has no address space identifier (ASID) bound to it.",
        (
            "the activation step was left out",
            "the guest was deactivated",
        ),
        "Activate the guest before loading memory into it.",
    ),
    (
        0x09,
        "INVALID_ADDRESS",
        "An address is not aligned, or not usable for this purpose.",
        (
            "the address is not aligned to 16 bytes, 4 KiB or 2 MiB as needed",
            "the address lies outside memory",
        ),
        "Align the buffer as the command requires.",
    ),
    (
        0x0A,
        "BAD_SIGNATURE",
        "A signature does not verify.",
        (
            "the ID block or the ID key was changed after it was signed",
            "it was signed with another key than the one in the ID authentication page",
            "the public key is not a point of curve P-384",
        ),
        "Sign again with the key whose public half goes with it (sev id-block create).",
    ),
    (
        0x0B,
        "BAD_MEASUREMENT",
        "A measurement or an authentication tag does not match.",
        (
            "the ID block expects another launch digest than the one measured",
            "a secret packet or session was made for another launch or another key",
            "a wrapped VLEK was made for another chip, or was damaged on the way",
        ),
        "Recompute the digest for this very firmware, vCPUs, CPU type and command line (sev measure snp --explain).",
    ),
    (
        0x0C,
        "ASID_OWNED",
        "The ASID belongs to another guest.",
        ("two guests were given the same ASID",),
        "Pick a free ASID; with KVM this points to a bug of the kernel.",
    ),
    (
        0x0D,
        "INVALID_ASID",
        "The ASID is out of range for this kind of guest.",
        ("an SEV-ES or SNP guest was given an ASID reserved for SEV guests, or the other way round",),
        "Check how the BIOS splits the ASIDs between SEV and SEV-ES/SNP guests.",
    ),
    (
        0x0E,
        "WBINVD_REQUIRED",
        "Processor caches must be written back first.",
        ("WBINVD did not run on every core since the ASID was last used",),
        "Run WBINVD on all cores, then flush again; the kernel does this by itself.",
    ),
    (
        0x0F,
        "DF_FLUSH_REQUIRED",
        "The data fabric must be flushed before an ASID is used again.",
        (
            "all clean ASIDs are used up",
            "SNP is shut down while guests' ASIDs are not clean",
        ),
        "Issue DF_FLUSH and try again; the kernel does this by itself.",
    ),
    (
        0x10,
        "INVALID_GUEST",
        "There is no such guest.",
        (
            "the guest was decommissioned",
            "the handle or context page is not a guest's",
        ),
        "Use a guest that was created and still exists.",
    ),
    (
        0x11,
        "INVALID_COMMAND",
        "The firmware does not know this command.",
        ("the firmware is older than the feature asked for",),
        "Update the SEV firmware, or do without the feature.",
    ),
    (
        0x12,
        "ACTIVE",
        "The guest is still active, or already active.",
        (
            "the guest was not deactivated before it was removed",
            "a second activation",
        ),
        "Deactivate the guest first.",
    ),
    (
        0x13,
        "HWERROR_PLATFORM",
        "A hardware error occurred; platform and guests can go on.",
        ("a transient fault of the secure processor",),
        "Try again; if it stays, look at the kernel log and have the machine checked.",
    ),
    (
        0x14,
        "HWERROR_UNSAFE",
        "A hardware error occurred; the platform is not safe to use any more.",
        ("a fault of the secure processor or of memory",),
        "Drain the host, power it off and on, and have it checked.",
    ),
    (
        0x15,
        "UNSUPPORTED",
        "This firmware or this configuration does not offer the feature.",
        (
            "SEV-ES was asked for and not enabled at initialisation",
            "a compressed packet, which is not implemented",
        ),
        "Enable the feature in the BIOS or in kvm_amd, or do without it.",
    ),
    (
        0x16,
        "INVALID_PARAM",
        "A parameter has a value that is not allowed.",
        (
            "a reserved bit or field is set",
            "the reported TCB asked for is above the committed one in some component",
            "a CPUID page asks for something this processor does not have",
            "the page type is not known",
        ),
        "Check the values against what this firmware allows; of a refused CPUID page the launch shows the corrections.",
    ),
    (
        0x17,
        "RESOURCE_LIMIT",
        "The firmware has run out of a resource.",
        ("too many guests at once",),
        "Remove guests that are not needed, then try again.",
    ),
    (
        0x18,
        "SECURE_DATA_INVALID",
        "The persistent data of the platform failed its integrity check.",
        (
            "the storage was changed, or comes from another machine",
            "the flash is damaged",
        ),
        "Initialise again: the firmware erases the damaged data and makes new keys; import owner certificates again.",
    ),
    (
        0x19,
        "INVALID_PAGE_SIZE",
        "The page is of another size than the command needs.",
        ("a 2 MiB page where 4 KiB is required, or the reverse",),
        "Use 4 KiB pages for VMSA, secrets and CPUID pages.",
    ),
    (
        0x1A,
        "INVALID_PAGE_STATE",
        "A page is not in the state the command needs.",
        (
            "the page was already added to the guest",
            "the page was not assigned to the guest in the RMP",
        ),
        "Add each page once, after making it private to the guest.",
    ),
    (
        0x1B,
        "INVALID_MDATA_ENTRY",
        "A metadata entry of a swapped page is not valid.",
        ("the entry was changed, or belongs to another page or guest",),
        "Swap pages in with exactly the metadata that swapping them out produced.",
    ),
    (
        0x1C,
        "INVALID_PAGE_OWNER",
        "The page belongs to another guest.",
        ("a page is assigned to another ASID in the RMP",),
        "Give each guest pages of its own.",
    ),
    (
        0x1D,
        "AEAD_OFLOW",
        "The sequence number of an encrypted message is wrong or used up.",
        (
            "a guest message was sent twice, or one was lost",
            "two programs in the guest use the same communication key",
        ),
        "Restart the guest, or use another VMPCK: a sequence that is lost cannot be taken up again.",
    ),
    (
        0x1F,
        "EXIT_RING_BUFFER",
        "The firmware left ring buffer mode.",
        ("a command that cannot run from the ring buffer",),
        "Issue the command through the mailbox; the kernel's affair.",
    ),
    (
        0x20,
        "RMP_INIT_REQUIRED",
        "The reverse map table must be initialised first.",
        (
            "SNP_INIT was asked not to initialise the RMP",
            "the firmware changed since the RMP was initialised",
        ),
        "Initialise SNP with RMP initialisation, usually by a reboot.",
    ),
    (
        0x21,
        "BAD_SVN",
        "A security version does not fit.",
        (
            "the firmware image is older than the committed one",
            "the wrapped VLEK was made for another TCB than the reported one",
        ),
        "Use an image at or above the committed version, or a VLEK made for the TCB reported now (sev snp status).",
    ),
    (
        0x22,
        "BAD_VERSION",
        "A version does not fit.",
        ("the firmware image is older than the committed one",),
        "Use an image at or above the committed version.",
    ),
    (
        0x23,
        "SHUTDOWN_REQUIRED",
        "The platform must be shut down before this command.",
        ("the update cannot be made while SEV or SNP is initialised",),
        "Stop all guests, shut SEV and SNP down, then try again.",
    ),
    (
        0x24,
        "UPDATE_FAILED",
        "The firmware update failed; the previous firmware goes on running.",
        ("the image is damaged or not for this processor",),
        "Check the image against the processor and try again.",
    ),
    (
        0x25,
        "RESTORE_REQUIRED",
        "The firmware update failed and the previous firmware must be loaded again.",
        ("the update was interrupted half way",),
        "Load the committed firmware image again, or power the machine off and on.",
    ),
    (
        0x26,
        "RMP_INITIALIZATION_FAILED",
        "The reverse map table could not be initialised.",
        (
            "the RMP's address or size is not set up rightly by the BIOS",
            "memory is configured with aliases",
        ),
        "Enable SNP memory coverage in the BIOS, update the BIOS, reboot.",
    ),
    (
        0x27,
        "INVALID_KEY",
        "The key asked for may not be used, or is not there.",
        (
            "a VLEK was asked for and none is loaded",
            "the guest was launched with VCEK use disabled",
            "the chip key is masked (mask_chip_key)",
        ),
        "Ask for another key (VCEK or VLEK), load a VLEK, or clear mask_chip_key (sev snp config set).",
    ),
    (
        0x28,
        "SHUTDOWN_INCOMPLETE",
        "The shutdown did not complete.",
        ("pages or guests are still held",),
        "Release what is still held and shut down again.",
    ),
    (
        0xFFFFFFFF,
        "NO_FW_CALL",
        "The firmware was not asked: the kernel refused before it, or could not reach it.",
        (
            "the secure processor timed out earlier and the kernel has given it up",
            "a guest request never reached the firmware",
        ),
        "Look at the errno and at the kernel log (dmesg, lines of ccp and kvm_amd).",
    ),
)
