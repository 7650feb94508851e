"""The limits of keeping models, for `tests.support.limits_page`."""

KEEPING = [
    ("data shares of a stripe", "{}", "p2pinfer.core.stripes", "DATA_SHARES"),
    ("parity shares", "{}", "p2pinfer.core.stripes", "PARITY_SHARES"),
    ("stripes whose rows go together", "{}", "p2pinfer.core.stripes", "GROUP_STRIPES"),
    ("a storage plan", "{}", "p2pinfer.core.stripes", "PLAN_BYTES_MAX"),
    ("least disk to lend", "{}", "p2pinfer.cli.space", "SPACE_BYTES_MIN"),
    ("a keeper looks who is there every", "{}", "peers.parts.keeper", "ROUND_S"),
    ("and asks what they hold every", "{}", "peers.parts.keeper", "ASK_AGAIN_S"),
    ("peers asked in one survey", "{}", "peers.parts.survey", "SURVEYED_MAX"),
    ("a silent peer is gone after", "{}", "scheduler.keeping", "GONE_S"),
    ("a group is short for, before it is rebuilt", "{}", "scheduler.keeping", "SHORT_S"),
    ("a liar's words are ignored for", "{}", "peers.parts.census", "DISTRUST_S"),
    ("spot checks failed before that", "{}", "peers.parts.census", "LACKED_MAX"),
    ("plans of one model looked at", "{}", "peers.parts.survey", "PLANS_TRIED_MAX"),
    ("questioners about keeping", "{}", "peers.parts.keep_server", "CHANNELS_MAX"),
]
