"""AMD's root identities for SEV, the signatures: with them the keys of `sev.certs.amd_sev_roots` are AMD's very files.

Verifying needs none of them: roots are trusted by key. They are for who hands a whole chain on. `sha256` of the files
that they complete stands beside the keys.
"""

from __future__ import annotations

SIGNATURES: dict[tuple[str, str], str] = {
    ("naples", "ark"): (
        "VXxCNdb+ORYsnqT3A1BqNcw28lt/iWgEDi93rhpdO2IQd5hb64OjjeoJfc4bSTxnTYBUdGnA+YcmjVqtmgB1Po17E891jmpz6VawjbShRRBw"
        "sKQa3uu7IcD++8vt9n+/3wBWtnMX029tRhjW8Xx768u9H2yTDx6F0QeUK0y8INHeDrCkhyLUwdAXikrlv4qsksAZkZUpU9FwkXtUUM9V0nix"
        "Y67jVLkh9LFMf5edWZGG1A+aZ5rReMeWLJCJG3Pf1zAVZMCq/aoBzLfjlUT2ynQRHkNTI1kXKUJ2/UFZaMIjE7yYYayD1xHdWobRpK9x+Lnz"
        "ZUHw9LBL8Ky4jK3lgg=="
    ),
    ("naples", "ask"): (
        "zh/k7aK6VBZQWhQt23X7/RDJBEGpwAQzqCNT0iX03NXiDdRfvf/55Ueh9HdXRXgLdFs5fGUHbhu/th3XkEmwkD45oQ65yYEpJYi0ijVhOMQT"
        "riACbDHZt9DS/PgQ6Iz4bgMXIXUW+YKlfcMWTkFTsv6PCPrhNe1ypXdNgRJmXBMo/JmszT3od9DmnLwFhOh/VR45F7Ks24fLrYpyPWUAgYLM"
        "GbWDLcQhyiSOOliXANRLTrJDIJK2mBoyjDRUlKR02+onH1OtqsvpyO7+Unyv+05Poux0ZXqiNYs9CuBS0dfj80GvS3scZ1YanHtjgnHSp5Sc"
        "6HPlwk+7LF8ErL0UZA=="
    ),
    ("rome", "ark"): (
        "VGHkVU89nr4N1Vwtje1Gmnd9GE5A6dOrwaFCXel0slCnOYhxLz/rjhPfEqNuztKDjDWfPyNIvSAyvZVfMosI3WcWkW+G0/LRa49wZMYL8MeD"
        "TPgDZXVsxt3C9ZDeGXpzODpQvKCZ0Whpq62d5i9WjhFZgp0Y23RstSuj9/FXLAueI505ui3jcqYzZ+QbpZ3qPf1+uPI2LtuWv2+StGytcgkx"
        "lE1K2jBGaN8WDWmciPVjO/WMGQfXncWp5P+z3pUX8Pfh9Vm/lIEUFNkesnWOovSHYngZFbAKsRdUQKWf5WrxrlneXqNFeuqBbNzZdZ5un4cJ"
        "Ot+fT+YTJhgsA/RMGjMnMP0/W12XBcY3qwODjmst/CXZHsgtFLF0tr1WoLaUJCnR3jFX2hvMZTmWnqU+L36Onw32MHQPWzb+H2LZME8kg6hD"
        "sGef/QXa9kFeicJTlxhHWggXdAdC4PVmYSbOhrkiRUKwYQr20lmUryK2+sm+vbAfBPCfCO2ezJRSp4vggZLofyYHahEhDO4URgouJyzK3Rwv"
        "B+213DZ9OYl61GoO9y4dO2+w0rxUsn8iTrakOYr8J28QI6zjI4NHK661RN5mnkrOq4fej/cZNOWJDXfHIxJ1IdSei1RsjmcnQBKHmxzqlXM6"
        "mEPhueBIgTcEJ7gV6X7P6dQ7/Ayi094Pr1g="
    ),
    ("rome", "ask"): (
        "gZpb/nkSNQTVGqbh3EAf/2FiTiMJFeCqLns9azc/iFW1mYJDu7O/7bO3nAqmka5oKoUuyTLRusoCpXn7ZSv1DKbkZXcnhNtztv4l0DV7b86r"
        "qzqA0N2FVRy8y0QQpl7IxmSskRgWNuBuEMdf6YIE4nc6zJXs3pYJ3+1fpL9nq+p0h21FVTtL2YbK/LetpdL2YLTWOsecua+qTppfqRsk3dIf"
        "zKHMX0yR5QCMP1x9IOdRO2l9Q5E+2g7sDnBfOI7kOfCujNdH4XOfHz0HIm2R1aIHSBAu5l8mqFULnNEX+MyQyvlkyh4Ww4l+HGjXZHpWrqEJ"
        "SZyyt6mn/JSrlGbu1FFbOT77gbhM3+MdOiGaBONjytzHv0Rnaup8vxcolwtP7vUG1OU9AsIVNYEM3OEqGXJrHHqOCk3e1wkxcqIkatp/l3fM"
        "T0Qr5p2tTXlM3uvVlgaeNXGZGmN0/UTyhhwmaT3MrU4fY2IA0Gey8Xe4FQDzZFsMnksVKLQB/DYbCG3HIPCyBjUvldGlYVQHHPKv5v8Xd/hG"
        "wpWlmVN99LCANqnaNT76pEfLOt9NWWa+9sqpmbzZk5RMUeEJ9bUIWE6ngkkGhkHfTfK5+BeKI+fZtUs+hydr68i/SgD2cPBfZ6hmXeBZiByy"
        "tJO/B20kgIlIprFHQf4BbBf1LoXytg1lnmM="
    ),
    ("milan", "ark"): (
        "q8ypBhRhBh9MQnzAHsgtiTu9nK6Q0QeNfy9pClOtTHO6OYXxqH9kg4maIDO/Gjc2fN6BEFJhj1DfWe5uYYlmH2dyO0m6bbAqWCynmkSaBKOT"
        "WMAsG0Y5Iv5a9AvMff9xlaVLumTkuTZ5KVaLWu9sMqOmnnjl678kF3d1qXHmrMHnL8M8guE2L73V4j+cv3UHf2P0gbK/ETM0ygdxvCDaTAuW"
        "8R+y948YQ2JivPw6LWuzJZlaYa73CScUjGkVhFBlJP9CWGdIkRSmxh/iakJP16uT/5PSAL6rD+brS6KjwHcsX2o4igSnPnJ+3ghZTik88dEo"
        "T771UKgP1atFqn/B3YvlNA9msZ5asw+Drbwb8vJN2U5TvuB8OUVeDPY1HSeudHpAcq4nXHq0N5Ju2qATkzgoaG5d5uVdSWjCOmOmpkFFI+q6"
        "9qGsIfi2g6eJGenuYsh33qOnD8EFM2G9Uw6a3etpauhdvsExi+Y1brXhkCIPN/aH2Ro29Lil6KZcCi8J3K3EPV+56PhJG0Px++wWE2mPPsVI"
        "9mziqQ96Q9UotJZCOpq9PAUjyw9/Gky3Ajf8L0rxVZON2GnBB5yq+3VBlP2YJR209EHO2YA0lPTKf1i4ir5FSzb1HSQ+1juJqzYN+WhZ9jgi"
        "OQqpqV9DhnYeO10Zxwh2Y52rrAjTsVJKmB0="
    ),
    ("milan", "ask"): (
        "AKX7l8AT0YRMx5RcXXLjPSPeXlowCHX+ypywI0OHaaX2hwr7WDBDgVw7MM+OksTn+XmHjU1aamw6ANE1cgXCVkmvx084jon4E1SEXaSj1aCq"
        "rVqmMnnVTDC/K8xxKHvvzLCT1+vqyDrwFHyHYDX6Rsy1hJEDONZSqFuvLGExznyomS/FuiBunRrRcYITKYPLYLAyOidcvkv3Ktt8U8R1a16V"
        "whKZTl7mpUGzhilwmQmrv+xq00IDQFgEZ77IcKLH2QP5PwwJ5f1gXAlCzmzuXBV2CSL56M8IvET4ONXL1GyX/68sMm/D/Kudzhp7nUJNa91J"
        "jpQrqYgNi1lbi9FGbduxL8Io1Epn4fq3S6+URAmlFijuG7y/3LnsMH6hsYkOrZkW0Hu4orVtHH8dqzjxtheQLJTOz1sTZ3wc85aYmvWDR9+s"
        "6xAVCGNJD9a7+/OxcI3ZVTakOoZs4P0RloFJmUipfLAXDP2jVsQqN33dNGe7Lk7ZV2Q6Kq0uDGmpKjoXy9U9giRiXor0enj2lM3RYQ1VZvSE"
        "V6bbqbW8MqlIjF4PMRQeHmEmgZnWckYFOIV+Wgd7+dqd8XcahVkF90Kq4iLTnIK6sAT4AX/HMzdnDGWX1GG49aOo9vGLMvb7+t9j8W1YOpfw"
        "1saWd9hHbe50WfwNSdV2/MzMorjpKkyIuR0="
    ),
    ("genoa", "ark"): (
        "Fh9WtTzOuJhqbkzWSBnZehVocIS59e4rQvCbdYTRbJPqYIAjJSU7WjNuieFzjzOK1J9FpoZeem14tG8SCk4BIabEEDjNPv9XWalw4wkgufgX"
        "hoAmQQXtc2E2l94laZxhPnF5o86BXV0ss7BcAoSr0dw287Y2B3/TCYgeyvKh+H7NY8VXx2GMPc8Zw7uAbLgVDNb5GELBSJXrQT9mAgI3kbZh"
        "jQwW9cuo9EKNTv0lkUJv4CArSUHGYIWfUtq8Ap3FtlrnN6ZdoKVFcvM485nT78VAr9uCW6xWJpS8ITDVODoPHNqitAEGwNglGdauhidfig5t"
        "x8ZMzT3LNKk/FNjEZTnHMOxHYfpA/CeWtqNkcciKf73dMfKF6vzg1U3XIQISMgB9cyadWA/jZTISDVMfr2u4B4UGX6AMEyhA1reZODa2MbrV"
        "19VGscsNhdakY2Gorp22w+6nz9LJanjMiKUBAATHTnWiQPkR8GPW2e3Uj1obpuoinrdO7V16yPXMErlqlqkmVkTwbZItIdmFS/cQdhNVmx4y"
        "eJtQ9c1EUnGn7BNgl3VaRt7tc9L/DWqXnoVU+l8uKyGSqr/tPE0oaT/2oYqhUgpj3SHiR8dUay9ClBIYvSQ4yevEYfu+/wG8WzYZs6iBZfQI"
        "mHl4/ZErkUeV/FjvxTKOt9ZSaAOYabaCkkc="
    ),
    ("genoa", "ask"): (
        "MVyQDzzJX1095WqiEnKwgIDcHYpKiXC0tJ1ls/nmXK2GnS15n9ZYcaP4u8OtkQaNQtdI4Rw5A94t07dsQOi0sEEux9ZQOEyNV7IpnFqwVsh/"
        "Jf54BZo3ga4bh0Y5h7NGqKHc5z39QgkLt7hIlRp7DqCM3rdR/K3EP8GnFoowOFaZ7D7UhXpIMbM8h3Qw1igwxciBdYeAIw+I9pAIPZTiMW3v"
        "gmdlQNyGEH4raisehJprdxm7Fg9lj6gWFlAl7pipB4hnU01tuAjmohl0izkz1B1Nb2nWd24wYKp0NIoo59lkVmJ7bvhvxbEsGDU6QwDMQxi2"
        "f12BT7XQ0ddSgv5fiL2xx5mIM0dPrVdQdLrscYzue/bfjVDs2aLE1AppcIl6kmSxIKc7KnIKJuiXx4x9YRAduQZWdfdxCIlZI8AwtpAIt6l6"
        "4uXB/HDgHleEILM2zILXP37/eX/mvkdivQI97lu1UIWuf4/bMNQqSn3dYPJcZr/oOUFn8eYvczkgNFn6doeJCPhvy6H8yRUu10Yo9a47L1mY"
        "8LLU2e9zbBdrdfiBTtdpXROcywqX2U0qv/oZd/zNQRd7TUdiGZb6AFPhY7v0x59vTJGFr7c0q3e5QtSYXCN2WDRIayTUMrD6GWnmSOPTSskS"
        "MZZJbOks3H9axVdL7d49S0Z+AJQnzg7YnKQ="
    ),
    ("turin", "ark"): (
        "OZ3up5+2d86xii5tdVVCWhJMYIBG1uFnXNZI7sDUttwE0AAG6UT7MNwrwWxzUd3gjt0nFEgcO6wGOoNitgbZCJzMxsbRf4aJZZl1LE/FOz1U"
        "yrkWKXIl4V1OAQc9EAq3NtibgOoMJaoShAj0qB6w6QuzUd24vtjRwc9oDHtniyUhOu0T0BcsJCFuQ/HDLFlQUNccfLEIetBpdp1WC14Avgke"
        "b+l0JLz88Nc5ndqupJunO4gXlqBYbSzcUcAhL02T1S8ETRqsH9CzNi78BEca9qFgnOEOpjy0kF1nIFx4H4r04GxqeN5S2VaLWXc796i4VBs+"
        "N+7WUm5GFqjTkoYMXfvnPT/+hIKvHK0EImLe7z9aJBaBm3zKsrHG9NFbNUlgbqLvoBYAsLzwUg/hXw266EOSJthGOLVhLprNkUMk3UhqwuUW"
        "FlzaIC2bzLk8khxk3cHobKwWSkgk4Hp/j6m23c3Z4/nlVoLjxbmFSYShtci5+25a7JlUdSkua6kmch5ZGLiKeq/Fh9dmC0/WwbXMlM8dyFCj"
        "0wRd/VyZLMLXSdgdAtAkiAFmgwUEdnzcYFs/JCJTF4rT0MmVWhORe0Y9jyYjOdxT+LXgFFJSHusuojtrL+Nhlx5v7lktXrdujih90WJzWGzi"
        "YzkebkNantGSIklVMoqsTReNP6x9ahWrab8="
    ),
    ("turin", "ask"): (
        "NvhmHvcmH0+69TWLxYjG8GSSC1qxrZnZ4JE60Uw/22Bezn85YNNcHa1eP3VMmAkd5RcCHpw6AL8qCliv3ImYiwh2dWYTvycR4lQzNOMeuQxY"
        "cYVGAgBZnMG0PCnjkSW4Wo5UrlFthETwqnHvEKMvAEOg5WHSheV7BOjSuNeUi7O34QlFgxYoT/FQkrN4r8O4zjN4iuWddQkDR8EYYOSTRcnN"
        "eiExA0QpcYWHk3RNHzC3jcSNuZeDBAlsE4+IeW59UMcuu/aYeGu0yoaCZ/JNz0vZdy4OJEjHaVOvomK0BtmxHaU8kx2AacXxCMvtVZ6oHAg3"
        "eiwOmMplThsPJiA14m/4+C60rHpa0sYGcp5V4h+KB6Nf7RRGMyizAw5gaaup3sP9oW9MV+yTIqaj/K55dMokEaWRnM1lnj/CHAY6zXqNTGJ8"
        "9tW2WOMJ0XdXJFuFMEUO5v5EAarm+Gtj8mHUkzdr/OojOlFejwqpZCG9ZFbmewUPG3E7nGfyR7nkUchgYtxg5boq7lNeQ7KCLHWBZlSQnQzg"
        "QdYQtGXwSI5sHdx+fjQ4KwJIp86k1idteErXkG5NpSyHlIV4WSw9KFkspDHvLxF+ILbb9h23wCGp3uMrcerFNdo8weh7l4oc5Y7qojdw7vFp"
        "+JOWkzQSbPA51nTgaL6O51Sc32mCTsAbhRw="
    ),
}
"""Signatures of the ARK, big-endian in base64: PSS with SHA-256 for Naples, SHA-384 for the others."""
