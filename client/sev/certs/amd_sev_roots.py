"""AMD's root identities for SEV, by number: the keys of ARK and ASK in the form that predates X.509.

Taken from the files that AMD's key distribution service serves; `sha256` is the digest of the whole file, so anybody
can compare. From Milan on the keys are those of the X.509 certificates (sev.certs.amd_roots), so only their
identifiers stand here. All have exponent 65537. Each link of an ASK to its ARK was checked when these were taken.
"""

from __future__ import annotations

IDENTIFIERS: tuple[tuple[str, str, str, str], ...] = (
    # product, kind, identifier of the key, SHA-256 of the file
    (
        "naples",
        "ark",
        "1bb987c359494606b174945601c9ea5b",
        "dedabca561e1dece8cc00b7bda864cf5f20b95017864408cfe18eaee0dce24b9",
    ),
    (
        "naples",
        "ask",
        "e139970cfc464377ae61b289e2f9e96e",
        "c6f30cf923f526c3bcd5c8c221db51e0db65911782f046de17a6603131cdfd7f",
    ),
    (
        "rome",
        "ark",
        "e6002122fb58419399d15fee7b131351",
        "865977b268c16d5b27772b00aaefb4e737ba9499e818ed8e9f65b0cecefbc529",
    ),
    (
        "rome",
        "ask",
        "c6cbcf145b3146f498e40ecb4ad4fded",
        "7754a69407d25540fe3a695be6b02c58a53bffd12594f5c30793d6cb62875706",
    ),
    (
        "milan",
        "ark",
        "94c38e4177d0479292a7ae671d083fb6",
        "1246469862b78a7a8625579b0378d1f8e975eb8b82a1623b579d7968a5969888",
    ),
    (
        "milan",
        "ask",
        "73478c05cc174bfeb06e718fa75dc3c8",
        "c7c73765561c58003a3d09adb2c76993027dd3a1ec4e9be876024c035e015cec",
    ),
    (
        "genoa",
        "ark",
        "9f9d4a8fe761456599f6946c4c010f3a",
        "8f4e3fd36589c23f1fe0c8338465bac7e2e066d97fc92f228bbee4fd356fb674",
    ),
    (
        "genoa",
        "ask",
        "acbb4ad21acc436fb3e932f812cd01b0",
        "c30307e4f594fb6c51fd753ab758eb78ad4bb70d9e4d96690e51c0621901031d",
    ),
    (
        "turin",
        "ark",
        "d05c3a8bde484904b49552422ceb3942",
        "f6405e5096a6eee1eb7d5df75c49f9b9f7c8357a31c7fff150149d68588a7bf7",
    ),
    (
        "turin",
        "ask",
        "15051693f7304d65a527b4a7f3f7cb77",
        "2ee285477f0d5eb94a69029197f4cf58ca82d8e1b9a276da1ac45b0db3f4be56",
    ),
)
"""Every authority, the root of a line first."""

MODULI: dict[tuple[str, str], str] = {
    ("naples", "ark"): (
        "276RZVRYssDJkKYRJGxQ0NFW/jpAxq0ZddpJmwoDJbtU34vH9dihu0oM/b7lWKv0eSeBsMOo/jA2XDMrWcmi3zFvOAN/llooA5ACIYcuUc2U"
        "P2VVYlY6R6mh1mmT8UT/WjVukCfbvG6kPjP99VVoS/79gxs6dGY+9CAVB4wQWX5BqVNnNx400QIE1sLnyx+8HWthRbRY8pwQGeMXpkNqi+i3"
        "Md+sGGG6tSI9oDzJCgJy1SMR6xng+FaPLR6IVhWp2MYji2VqBoNo7gr7aovS7/ldN+rjQn9ANF01qCe5f06QEuBWYKyftIZ33oTUlJgm/eRc"
        "JDqmVescgwAKzmBsuQ=="
    ),
    ("naples", "ask"): (
        "04LslGkilmvlBO8iBdpErjGboKfOmGdFVB5VThjuTsgOnffL8Rk72af4HOQacjbxGDiIm2EKcFmOQiqwuuBTiOaUP/ptuPJOGF0ijGXDnScN"
        "6PssTrO9yuwtQet+TEJSor2tkYtpd2YVB9HltUNYo91YbVEqr0J+pW7YLLPmxAYJn/VyHUFElLc8MuKuGfAxVGs2NerYOwjmIoBTEaLJz4sV"
        "72AqgZE6JtqIvtXvSCXB7brR8bDN2eTLS84O11eGsvlJ8IYKuq7m+WFlCugDNahaO7xtyoPAfnpd1/t5o94V8PQRme6uExQkEjUKkiJNQ9Ui"
        "KVnGLioinfAEZwiBHw=="
    ),
    ("rome", "ark"): (
        "3HUO8bppxfQnPwBLgRxIpoPC7KwN6pb0sqBqVzr2UCNdHwibfGxqjv/5EDNE59+ixogbXvYZMoGePaw9oX/kSjI9Ut6jZtqGGZRwDYGsXpMW"
        "pT0xAcooo0QnxeVg+XoMAF85hn5MpEY94gGfjtMomPNeSxq5A7f1viQkbRh6sqQGPFLBzb6KcdPGgfUM5SAgAZ5hQ+ZeJCZbJLl0f/s7v9wQ"
        "MaYowQry4RA7k0LlGjxcRhW4wzJ+UXGLAibmyJQoAU+b0VLdGRpBAgKHydI9jDmbBL99QXhkfVHodFQPFxUwCHjKyXEv1Lc/ObL/Y4E3nECJ"
        "WhJwMzWaepZe4yCwfAchlZ1kPrzhPEAQMFcEYGbrbWM0hq0QT/AtaLfgcSoL1Ddh5QNKycZN/UbucIzWRiNUkfvQmJ9aEhzJyyhj5WKv7h1D"
        "OI6HI6ni1BvHawP+aMcnu4DqXEZ24MvSwwOQPpeZo2SoHGBEP5tWlvctfcOkk058zwHVPj13n/PZ5vK0slASYG9T+LgmPA+DTcQoWdbkCigb"
        "HQ2xFok4X5L3OJ22mbjY2nmqiUFyaN/4fmAuBqcsbv+ht79jD5fOeQb2FcNDbSiIGW2rUjzqfbR2DHF5N0vKLS+ZL73sEzoK6zJ/VgTc3qQ7"
        "Dq2mjje33DfC6Fwg6aWrGfI/RIXXAF6VGKs="
    ),
    ("rome", "ask"): (
        "uJpqz7vOWo97MxUMU85aJB53cm54l+TkblqTWk2hmdaItW4pxLObORMVTsa5Ta15+axCf9gJqjCnO6zrnolXS7GoKn0mY8F1944Yn8WTDZMG"
        "sEVCAHgZU8ux7LTVbURYSkvwTJA1DuR3W8MBUr+7b0ixmsfLD4tdLueLEnGLN6w++kjMYHW35Qm8l4MciScSqJtHs6ON0g+Fg61dKXt+t0i8"
        "0YPO21qD7Lq6jgL4JM+gzVCSWNPFIk1yRtudIuF25Hm6PNHpbuk/unyVrqcQfVBN+Yxp3PQM4sNY02uRPOVK97l5EDPMMw59AgpiV/LAcI1X"
        "i5B44Ch9wVbAhjSQKCsk3UXBphf+scN9hNuCWnGk8s7ZaFFyKmfpwksu2HPHmrRm2ZOA53prvN5lGXP8dGJZvuXdjup94oyTpeAJViTNrVSP"
        "+Rqv8UjM/+dukoaTwJbJN+lcKTX1S7AtEVWt5g+7tz+HD/a4p3ptaalnvY2XPPe5YjKjlXBz7EaB/mHM84rSN8fRdcxNQrRuclyVZrWLh9cX"
        "Kbhws6IZECmz29Dioi/eaG0JJ6NwORWo8LAuKwVoSjTWROHeSlYHok82gzTWrw/d5uf1Ep7lL5dnVQ7V4PYDyYRZe/6q8A85Ra5pBfL5xAnv"
        "lWJ5OeHc0HKYXjaBCLq2iOjeziNDdae5lws="
    ),
}
"""Moduli, big-endian in base64, of the lines that have no X.509 certificates."""
