"""The limits of encrypted sums, for `limits_page`."""

_PARAMETERS, _MEMBER = "p2pinfer.core.sums.parameters", "p2pinfer.core.sums.member"

SUMS = [
    ("members of a sum", "{}", _PARAMETERS, "MEMBERS_MAX"),
    ("what each one adds to a number", "{}", _PARAMETERS, "NUMBER_MAX"),
    ("numbers", "{}", _MEMBER, "NUMBERS_MAX"),
    ("noise of a share", "2^{}", _PARAMETERS, "SMUDGING_BITS"),
    ("room for noise that is left", "{} bits", _PARAMETERS, "MARGIN_BITS_MIN"),
    ("sets of sharers, one after the other", "{}", _MEMBER, "SETS_MAX"),
]
