"""Every setting of the daemon: default, unit and risk, in one table. `sevd.config` reads them from a file."""

from __future__ import annotations

from pathlib import Path

from sev.records import record
from sevd.logs import FORMATS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sevd.access.identities import Identity

PRODUCTS = ("naples", "rome", "milan", "genoa", "turin")
"""Processor lines that can be simulated."""

TECHNOLOGIES = ("sev", "sev-es", "snp")
"""What a daemon can offer."""


KDS_AUTO = "auto"
"""The key distribution service that suits the host: AMD's for a real one, none for a simulated one."""


@record
class Settings:
    """The values; see SETTINGS for what each means. A path that is None is chosen by `resolved`."""

    state_dir: Path | None = None
    socket: Path | None = None
    monitor_socket: Path | None = None
    admin_socket: Path | None = None
    fd_socket: Path | None = None
    socket_group: str = "sev"
    drain_seconds: int = 10
    log_level: str = "info"
    log_format: str = "auto"
    sev_device: Path = Path("/dev/sev")
    kvm_device: Path = Path("/dev/kvm")
    technologies: tuple[str, ...] = TECHNOLOGIES
    plain_guests: bool = False
    simulate: str = ""
    simulator: Path | None = None
    firmware_version: str = ""
    seed: int | None = None
    admin_users: tuple[str, ...] = ()
    admin_groups: tuple[str, ...] = ()
    launcher_users: tuple[str, ...] = ()
    launcher_groups: tuple[str, ...] = ("sev",)
    viewer_users: tuple[str, ...] = ()
    viewer_groups: tuple[str, ...] = ()
    identities: tuple[Identity, ...] = ()
    connections: int = 2048
    connections_per_identity: int = 256
    calls_per_identity: int = 256
    bytes_in_flight: int = 256 << 20
    launches_per_minute: int = 240
    message_bytes: int = 4 << 20
    guests_per_identity: int = 64
    guest_memory_per_identity: int = 64 << 30
    vcpus_per_guest: int = 512
    watches_per_identity: int = 32
    wanted_tcb: str = ""
    wanted_mask_chip_id: bool | None = None
    wanted_mask_chip_key: bool | None = None
    wanted_vlek: Path | None = None
    certificate_table: Path | None = None
    table_wait_seconds: int = 5
    kds: str = KDS_AUTO
    kds_ca: Path | None = None
    kds_client: Path | None = None
    kds_proxy: str = ""
    kds_retry_seconds: int = 60
    fetch_socket: Path | None = None
    offline: Path | None = None
    expiry_warning_days: int = 30
    audit_file: Path | None = None
    audit_file_bytes: int = 16 << 20
    audit_files: int = 4
    remote_listen: str = ""
    remote_certificate: Path | None = None
    remote_key: Path | None = None
    remote_client_ca: Path | None = None
    remote_crl: Path | None = None
    remote_handshake_seconds: int = 5
    remote_handshakes: int = 256
    metrics_listen: str = ""
    tracing: bool = False
    journal_entries: int = 4096
    journal_entries_per_identity: int = 1024
    journal_seconds: int = 24 * 3600


@record
class Setting:
    """One setting.

    Attributes:
        name: Table and key in the file.
        attribute: Attribute of `Settings`.
        kind: "path", "text", "texts", "number", "switch" or "tcb".
        meaning: What it does.
        unit: Unit of a number; empty otherwise.
        risk: What goes wrong with a bad value.
        least: Smallest number.
        most: Largest number.
        words: The texts that are possible, or that a list of texts may have; none given: any.
        live: A reload applies it; otherwise it takes a restart.
    """

    name: str
    attribute: str
    kind: str
    meaning: str
    risk: str
    unit: str = ""
    least: int = 0
    most: int = 1 << 62
    words: tuple[str, ...] = ()
    live: bool = False


def _access(role: str, whom: str, risk: str) -> Setting:
    meaning = f"{whom} (names or numbers) whose role is {role}."
    return Setting(f"access.{role}_{whom}", f"{role}_{whom}", "texts", meaning, risk, live=True)


_SOCKET_RISK = "Who may connect can reach the accept loop; its directory must not be writable by others."
_PER = "Too low refuses honest callers; too high lets one caller use the host up."

SETTINGS: tuple[Setting, ...] = (
    Setting("daemon.state_dir", "state_dir", "path", "Where state is kept: the journal, the audit trail, endorsements, "
            "a simulated chip.", "Whoever can write there is the daemon."),
    Setting("daemon.socket", "socket", "path", "The socket of clients. Alone (without the two below) it serves "
            "everybody.", _SOCKET_RISK),
    Setting("daemon.monitor_socket", "monitor_socket", "path", "A socket on which everybody is a viewer at most.",
            _SOCKET_RISK),
    Setting("daemon.admin_socket", "admin_socket", "path", "A socket that admits admins alone.", _SOCKET_RISK),
    Setting("daemon.fd_socket", "fd_socket", "path", "A socket that passes guests' memory to their owners on this "
            "machine; beside the others if it is not named.", _SOCKET_RISK),
    Setting("daemon.socket_group", "socket_group", "text", "The group that may connect to the sockets of clients and "
            "monitors, where the daemon runs as root and the group exists.", "Its members can reach the accept loop."),
    Setting("daemon.drain_seconds", "drain_seconds", "number", "How long a stop waits for calls that run.",
            "Too short cuts calls off; longer than systemd's TimeoutStopSec= is cut off by it.", "s", 0, 3600),
    Setting("daemon.log_level", "log_level", "text", "The least level that is logged.",
            "Debug lines name guests and callers.", words=("debug", "info", "warning", "error"), live=True),
    Setting("devices.sev", "sev_device", "path", "The SEV device.", "The daemon issues ioctls to whatever this is."),
    Setting("devices.kvm", "kvm_device", "path", "The KVM device.", "The daemon issues ioctls to whatever this is."),
    Setting("guests.technologies", "technologies", "texts", "What is offered, of what the host has: guests of these "
            "technologies, and their platform.", "A technology that is left out is refused to everybody, admins "
            "included.", words=TECHNOLOGIES),
    Setting("guests.plain", "plain_guests", "switch", "Admit plain guests: ordinary VMs, for machines without SEV.",
            "Nothing protects them from this host, and the caller asks for it by name alone."),
    Setting("simulation.directory", "simulator", "path", "Use a running sevd-simulator through its files in this "
            "directory instead of the real devices.", "Nothing on a simulated host is protected."),
    Setting("simulation.product", "simulate", "text", "Simulate a host of this processor line in the daemon itself; "
            "empty: the real devices.", "Nothing on a simulated host is protected.", words=("", *PRODUCTS)),
    Setting("simulation.firmware_version", "firmware_version", "text", "Firmware of the simulated chip, such as "
            "1.55.40; empty: what its state says.", "None beyond the simulation."),
    Setting("simulation.seed", "seed", "number", "Makes a new simulated chip repeatable.", "Its keys can be guessed."),
    _access("admin", "users", "They can commit firmware for good and see everybody's guests."),
    _access("admin", "groups", "They can commit firmware for good and see everybody's guests."),
    _access("launcher", "users", "They can use up ASIDs and memory, within limits."),
    _access("launcher", "groups", "They can use up ASIDs and memory, within limits."),
    _access("viewer", "users", "They can see what this host is."),
    _access("viewer", "groups", "They can see what this host is."),
    Setting("limits.connections", "connections", "number", "Connections in all.",
            "Each costs up to eight descriptors and some memory.", "connections", 1, 1 << 16, live=True),
    Setting("limits.connections_per_identity", "connections_per_identity", "number", "Connections of one identity.",
            _PER, "connections", 1, 1 << 16, live=True),
    Setting("limits.calls_per_identity", "calls_per_identity", "number", "Calls in flight of one identity, streams "
            "included.", _PER, "calls", 1, 1 << 16, live=True),
    Setting("limits.bytes_in_flight", "bytes_in_flight", "number", "Bytes of requests of one identity that were "
            "received and are not done with.", _PER, "bytes", 1 << 20, 1 << 40, live=True),
    Setting("limits.launches_per_minute", "launches_per_minute", "number", "Guests that one identity may create within "
            "a minute; admins have no limit.", _PER, "launches", 1, 1 << 16, live=True),
    Setting("limits.message_bytes", "message_bytes", "number", "Largest message that is received.",
            "Below 3 MiB memory uploads fail; each call may hold so much memory.", "bytes", 64 << 10, 64 << 20),
    Setting("limits.guests_per_identity", "guests_per_identity", "number", "Guests of one identity; admins have no "
            "limit.", _PER, "guests", 1, 1 << 16, live=True),
    Setting("limits.guest_memory_per_identity", "guest_memory_per_identity", "number", "Guest memory of one identity.",
            _PER, "bytes", 1 << 20, live=True),
    Setting("limits.vcpus_per_guest", "vcpus_per_guest", "number", "vCPUs of one guest.", _PER, "vCPUs", 1, 4096,
            live=True),
    Setting("limits.watches_per_identity", "watches_per_identity", "number", "Watch streams of one identity.",
            _PER, "streams", 1, 1 << 16, live=True),
    Setting("platform.reported_tcb", "wanted_tcb", "tcb", "The reported TCB that the daemon sets at start and after "
            "firmware events: \"committed\", components such as \"snp=23\", \"BOOTLOADER TEE SNP MICROCODE [FMC]\" or "
            "16 hexadecimal digits; empty: none.", "It selects the VCEK: without its certificate guests get none.",
            live=True),
    Setting("platform.mask_chip_id", "wanted_mask_chip_id", "switch", "Whether CHIP_ID in reports is to be zero; not "
            "named: as it is.", "Masked, verifiers cannot tell the machine; shown, guests can.", live=True),
    Setting("platform.mask_chip_key", "wanted_mask_chip_key", "switch", "Whether the VCEK is to be forbidden; not "
            "named: as it is.", "Without a VLEK reports then have no signature.", live=True),
    Setting("platform.vlek", "wanted_vlek", "path", "File of the wrapped VLEK hash stick (432 bytes) that is to be "
            "loaded.", "It is for one chip and one reported TCB; another is not loaded.", live=True),
    Setting("endorsements.certificate_table", "certificate_table", "path", "The certificate table that VMMs hand to "
            "guests.", "VMMs read it under a lock; on a file system without OFD locks it cannot be kept."),
    Setting("endorsements.table_wait_seconds", "table_wait_seconds", "number", "How long a change of the platform "
            "waits for readers of the table.", "Too long lets one hanging VMM hold up the platform.", "s", 0, 600),
    Setting("endorsements.kds", "kds", "text", "The key distribution service: an address, such as an internal "
            "mirror's; \"auto\": AMD's for a real host, none for a simulated one; empty: none.", "It learns this "
            "chip's identifier and TCB; what it answers counts only if AMD signed it."),
    Setting("endorsements.kds_ca", "kds_ca", "path", "PEM of the authorities by which the service's TLS certificate "
            "is trusted; not set: the system's.", "They can withhold certificates, and forge none."),
    Setting("endorsements.kds_client", "kds_client", "path", "PEM of a cloud provider's certificate and key, for "
            "VLEKs; under systemd the credential kds-client is taken instead.", "Who can read the key can have this "
            "provider's VLEKs."),
    Setting("endorsements.kds_proxy", "kds_proxy", "text", "The proxy before the service: its address; \"none\"; "
            "empty: the environment's (HTTPS_PROXY, NO_PROXY).", "A proxy can withhold certificates, and forge none."),
    Setting("endorsements.kds_retry_seconds", "kds_retry_seconds", "number", "The first pause after a service failed; "
            "it doubles up to six hours, and is what Retry-After says where that is longer.", "Too short gets this "
            "host throttled.", "s", 1, 86400),
    Setting("endorsements.fetch_socket", "fetch_socket", "path", "Where sevd-fetch answers, which alone has a network; "
            "where nobody does, the daemon starts a process of its own.", "Who answers there can withhold "
            "certificates, and forge none."),
    Setting("endorsements.offline", "offline", "path", "A directory whose certificates and lists are taken before any "
            "service is asked, and watched.", "None: each is checked as if it came from a service."),
    Setting("endorsements.expiry_warning_days", "expiry_warning_days", "number", "How long before a certificate runs "
            "out is warned of it; of revocation lists three days at most.", "Too short leaves no time to act.",
            "days", 0, 3650),
    Setting("logs.format", "log_format", "text", "How logs are written to stderr. auto: as fields where it is the "
            "system's journal, as text on a terminal, as JSON lines elsewhere.", "None.",
            words=FORMATS),
    Setting("audit.file", "audit_file", "path", "The file of the audit trail; records go to the log as well.",
            "Whoever can write there can change the trail from then on."),
    Setting("audit.file_bytes", "audit_file_bytes", "number", "Size at which an audit file is put aside.",
            "Records are lost when the last file goes.", "bytes", 4096),
    Setting("audit.files", "audit_files", "number", "Audit files kept.", "Records are lost when the last file goes.",
            "files", 1, 1000),
    Setting("remote.listen", "remote_listen", "text", "Where callers from other machines are served: HOST:PORT, such "
            "as 192.0.2.7:7443; empty: nowhere. systemd may pass a socket instead.",
            "Whoever can reach the port can ask for handshakes; nobody gets in without a certificate that an "
            "[[identity]] names."),
    Setting("remote.certificate", "remote_certificate", "path", "PEM of the daemon's certificate, and those between it "
            "and its authority.", "Callers trust whoever has its key.", live=True),
    Setting("remote.key", "remote_key", "path", "PEM of its private key, for its owner alone (mode 0600); under "
            "systemd the credential sevd-tls.key is taken instead.", "Who can read it can pass for this daemon.",
            live=True),
    Setting("remote.client_ca", "remote_client_ca", "path", "PEM of the authorities that issue callers' certificates.",
            "They can pass for every caller.", live=True),
    Setting("remote.crl", "remote_crl", "path", "PEM of their revocation lists, one for each that issues callers' "
            "certificates; not set: none is asked for.", "Without lists a stolen certificate is good until it ends; "
            "with one that is out of date nobody gets in.", live=True),
    Setting("remote.handshake_seconds", "remote_handshake_seconds", "number", "How long a TLS handshake may take.",
            "Too short refuses callers far away.", "s", 1, 60, live=True),
    Setting("remote.handshakes", "remote_handshakes", "number", "TLS handshakes under way at once; beyond, the oldest "
            "is ended.", "Each costs a descriptor and some memory.", "handshakes", 1, 4096, live=True),
    Setting("metrics.listen", "metrics_listen", "text", "Where Prometheus finds /metrics: an address and a port of the "
            "loopback interface, such as 127.0.0.1:9463; empty: nowhere. systemd may pass a socket instead.",
            "Everybody on this machine may read them there. They name no caller and no guest."),
    Setting("tracing.enabled", "tracing", "switch", "Write OpenTelemetry spans of calls and of their device work; "
            "where to is OpenTelemetry's own configuration (OTEL_TRACES_EXPORTER).",
            "Spans tell methods, request ids and times to whoever collects them."),
    Setting("journal.entries", "journal_entries", "number", "Request ids kept in all.",
            "A retry whose id was forgotten acts again.", "entries", 16, 1 << 20),
    Setting("journal.entries_per_identity", "journal_entries_per_identity", "number", "Request ids kept of one "
            "identity.", "A retry whose id was forgotten acts again.", "entries", 16, 1 << 20),
    Setting("journal.seconds", "journal_seconds", "number", "Age at which a request id is forgotten.",
            "A retry whose id was forgotten acts again.", "s", 60, 30 * 24 * 3600),
)  # fmt: skip
"""Every setting."""
