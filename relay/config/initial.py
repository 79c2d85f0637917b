"""The configuration that ``relay init`` writes: what nearly everybody sets, and where to read about the rest."""

INITIAL = """\
# visit-relay. Every key with its meaning and default: docs/configuration.md; a full example: relay.toml there.
# Check this file and everything round it with `relay check`.

hostname = {hostname}           # the name of this server: EHLO, Received
operator = {operator}           # postmaster and abuse mail; required to listen beyond loopback
data_dir = "var"                # database, large bodies, keys; relative to this file

[smtp]
listen = ["127.0.0.1:2525"]     # for mail from outside: ["0.0.0.0:25", "[::]:25"], or "systemd"

[http]
listen = ["127.0.0.1:8080"]     # behind a web server that speaks HTTPS
public_url = "http://127.0.0.1:8080"
trusted_proxies = ["127.0.0.1/32"]   # it, believed about who its clients are; "::1/128" where it connects from [::1]

[forward]
next_hop = ""                   # your mail server: "smtps://user:password@mail.example.com:465"; empty: by MX

# A website. Its substitute addresses lie in a domain whose MX is this server.
# [[site]]
# name = "example"
# key = "pk_example"
# origins = ["https://www.example.com"]
#
# [[site.target]]
# address = "sales@example.com"
# domain = "track.example.com"
# pool_size = 30
#
# [[site.webhook]]
# url = "https://crm.example.com/hook"
# secret = {secret}
"""
