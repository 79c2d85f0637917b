"""The tables, stated once. Migrations are frozen copies; a test compares the two.

Conventions: times are floats (seconds since the epoch, UTC), flags are 0 or 1, lists and maps are JSON text. Ids are
never used twice. Partial indexes hold only what still waits, so the queues stay small however long the history is.
Statements run through compiled Core expressions (engine.py), so type processors do not run: columns hold plain values.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _flag(name: str, default: int = 0) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text(str(default)))


def _id() -> Column[int]:
    return Column("id", Integer, primary_key=True)


def _ref(name: str, column: str, *, nullable: bool = False, cascade: bool = True) -> Column[int]:
    return Column(name, Integer, ForeignKey(column, ondelete="CASCADE" if cascade else "SET NULL"), nullable=nullable)


sites = Table(
    "sites",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("key", Text, nullable=False, unique=True),
    Column("origins", Text, nullable=False),  # JSON list
    _flag("tracking"),
    _flag("send_to_crm"),
    Column("bots", Text, nullable=False),
    Column("visit_timeout", Float, nullable=False),
    Column("conditions", Text, nullable=False),  # JSON map, core/conditions.py
    Column("settings", Text, nullable=False, server_default=text("'{}'")),  # JSON map, core/site.py
    _flag("declared"),  # defined in relay.toml
    Column("declared_switches", Text),  # JSON: the switches relay.toml last asked for
    Column("created_at", Float, nullable=False),
    Column("removed_at", Float),
    sqlite_autoincrement=True,
)

targets = Table(
    "targets",
    metadata,
    _id(),
    _ref("site_id", "sites.id"),
    Column("address", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("domain", Text),  # where its substitutes are minted; NULL for a pool of listed addresses only
    Column("lease", Float, nullable=False),
    Column("forward_to", Text),
    Column("next_hop", Text),  # sealed with the instance key, since it may hold a login
    _flag("additional"),  # shown only on pages that name it
    Column("created_at", Float, nullable=False),
    Column("removed_at", Float),
    sqlite_autoincrement=True,
)
Index("ix_targets_site_id", targets.c.site_id)

visits = Table(
    "visits",
    metadata,
    _id(),
    _ref("site_id", "sites.id"),
    Column("number", Text, nullable=False),
    _flag("own"),  # 1: our number, unique per instance; 0: another counter's, unique per site
    Column("first_visit", Text),
    Column("started_at", Float, nullable=False),
    Column("last_seen_at", Float, nullable=False),
    Column("referrer", Text),
    Column("landing_page", Text),
    Column("domain", Text),
    Column("mark", Text),  # the marker that the landing page's own address carries
    Column("marker", Text),  # the visit's source, from whatever said it
    Column("channel", Text),  # core/channel.py; NULL: counted before there were channels
    Column("utm_source", Text),
    Column("utm_medium", Text),
    Column("utm_campaign", Text),
    Column("utm_term", Text),
    Column("utm_content", Text),
    Column("params", Text),  # JSON map "1".."5"
    Column("google_client_id", Text),
    Column("ym_uid", Text),
    Column("ip", Text),
    Column("city", Text),
    Column("country", Text),
    Column("user_agent", Text),
    Column("device", Text),  # relay/agents.py
    Column("browser", Text),
    Column("os", Text),
    Column("first_id", Integer),  # the browser's first visit, and its last one that was not direct: NULL for this one
    Column("touch_id", Integer),  # no foreign keys: who looks finds them gone, and states this visit's own source
    Column("erased_at", Float),  # all that is left is that somebody held its addresses: else the others would be exact
    UniqueConstraint("number", "site_id"),  # in this order it finds a number at any site, too
    sqlite_autoincrement=True,
)
Index(
    "uq_visits_own_number", visits.c.number, unique=True, sqlite_where=text("own = 1"), postgresql_where=text("own = 1")
)
Index("ix_visits_started_at", visits.c.started_at)
Index("ix_visits_site_id_started_at", visits.c.site_id, visits.c.started_at)
_RETURNED = text("first_id IS NOT NULL")
Index("ix_visits_first_id", visits.c.first_id, sqlite_where=_RETURNED, postgresql_where=_RETURNED)
#: Visits that still name their visitor's address or browser.
TRACED = text("(ip IS NOT NULL OR user_agent IS NOT NULL)")
Index("ix_visits_traced", visits.c.started_at, sqlite_where=TRACED, postgresql_where=TRACED)

routes = Table(
    "routes",
    metadata,
    _id(),
    Column("domain", Text, nullable=False),
    Column("local", Text, nullable=False),  # ASCII letters folded
    _ref("site_id", "sites.id"),
    _ref("target_id", "targets.id"),
    Column("kind", Text, nullable=False),  # core/model.py RouteKind
    Column("label", Text),
    Column("leased_until", Float, nullable=False, server_default=text("0")),
    Column("binding_id", Integer),  # the binding that holds, or held last
    _flag("defined"),  # named in its site's definition, so retired when that names it no more
    Column("created_at", Float, nullable=False),
    Column("retired_at", Float),  # forwards without attribution until retention ends it
    UniqueConstraint("domain", "local"),
    sqlite_autoincrement=True,
)
_LEASABLE = text("kind = 'pool' AND retired_at IS NULL")
Index(
    "ix_routes_leasable",
    routes.c.target_id,
    routes.c.leased_until,
    sqlite_where=_LEASABLE,
    postgresql_where=_LEASABLE,
)
_DEFINED = text("defined = 1 AND retired_at IS NULL")
Index("ix_routes_defined", routes.c.target_id, sqlite_where=_DEFINED, postgresql_where=_DEFINED)
LISTED = text("kind IN ('pool', 'static')")  # not the one of every visit, of which there is no end
Index("ix_routes_listed", routes.c.target_id, routes.c.id, sqlite_where=LISTED, postgresql_where=LISTED)
_RETIRED = text("retired_at IS NOT NULL")
Index("ix_routes_retired_at", routes.c.retired_at, sqlite_where=_RETIRED, postgresql_where=_RETIRED)

bindings = Table(
    "bindings",
    metadata,
    _id(),
    _ref("route_id", "routes.id"),
    _ref("target_id", "targets.id"),
    _ref("visit_id", "visits.id"),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float, nullable=False),  # lease end, moved on by renewals
    sqlite_autoincrement=True,
)
Index("ix_bindings_route_id_started_at", bindings.c.route_id, bindings.c.started_at)
Index("ix_bindings_visit_id_target_id", bindings.c.visit_id, bindings.c.target_id)

messages = Table(
    "messages",
    metadata,
    _id(),
    Column("received_at", Float, nullable=False),
    Column("written_at", Float, nullable=False),
    Column("mail_from", Text, nullable=False),  # reverse-path, "" for the null sender
    Column("sender", Text, nullable=False),  # bare address of From, folded; the reverse-path where there is none
    Column("subject", Text),
    Column("message_id", Text),
    Column("in_reply_to", Text),
    Column("references", Text),  # JSON list
    Column("size", Integer, nullable=False),  # octets as received
    Column("stored_size", Integer, nullable=False),  # octets in wire form
    Column("body_file", Text),  # NULL: in table bodies, or gone
    Column("cut", Text),  # JSON spans of the head that are not forwarded
    Column("digest", LargeBinary, nullable=False),
    Column("ip", Text, nullable=False),
    Column("helo", Text, nullable=False),
    Column("tls", Text),
    _flag("esmtp", 1),  # its client greeted with EHLO, not HELO; 1 where that was not noted yet
    Column("automatic", Text),  # why it is automatic mail, or NULL
    _flag("bounce"),
    Column("bare_lf", Integer, nullable=False, server_default=text("0")),
    Column("state", Text, nullable=False),
    Column("extraction", Text, nullable=False),  # waiting | done | partial
    Column("attachments", Text),  # JSON list of core/mime.py Part
    Column("raw_removed_at", Float),
    Column("thread_id", Integer),  # the first known message of its thread; NULL: nothing known is referred to
    sqlite_autoincrement=True,
)
Index("ix_messages_digest", messages.c.digest)
Index("ix_messages_sender", messages.c.sender)
Index("ix_messages_received_at", messages.c.received_at)
_NAMED = text("message_id IS NOT NULL")
Index("ix_messages_message_id", messages.c.message_id, sqlite_where=_NAMED, postgresql_where=_NAMED)
_THREADED = text("thread_id IS NOT NULL")
Index("ix_messages_thread_id", messages.c.thread_id, sqlite_where=_THREADED, postgresql_where=_THREADED)
_WITH_RAW = text("raw_removed_at IS NULL")
Index("ix_messages_with_raw", messages.c.received_at, sqlite_where=_WITH_RAW, postgresql_where=_WITH_RAW)
_FILED = text("body_file IS NOT NULL")
Index("ix_messages_body_file", messages.c.body_file, sqlite_where=_FILED, postgresql_where=_FILED)
_UNEXTRACTED = text("extraction = 'waiting'")
Index("ix_messages_unextracted", messages.c.id, sqlite_where=_UNEXTRACTED, postgresql_where=_UNEXTRACTED)
_UNFINISHED = text("state <> 'forwarded'")
Index("ix_messages_unfinished", messages.c.state, messages.c.id, sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED)

bodies = Table(
    "bodies",
    metadata,
    Column(
        "message_id",
        Integer,
        ForeignKey("messages.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("data", LargeBinary, nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    _id(),
    _ref("message_id", "messages.id"),
    _ref("site_id", "sites.id", nullable=True),  # NULL: postmaster and abuse, to the operator
    _ref("target_id", "targets.id", nullable=True),
    Column("route_id", Integer),  # no foreign key: it may outlive the route, and an index for that alone costs more
    Column("recipient", Text, nullable=False),  # the substitute it was sent to
    Column("forward_to", Text, nullable=False),
    Column("destination", Text, nullable=False),  # what shares connections and back-off
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("claim", Text),  # who works on it
    Column("claimed_until", Float, nullable=False, server_default=text("0")),
    Column("code", Integer),
    Column("answer", Text),
    Column("host", Text),
    _flag("possibly_repeated"),
    Column("joined_id", Integer),  # another site's delivery to the same real address, which carries the bytes
    Column("attribution", Text, nullable=False),
    Column("attribution_method", Text, nullable=False),
    _ref("visit_id", "visits.id", nullable=True, cascade=False),
    Column("claimed_number", Text),
    Column("candidates", Text),  # JSON [[visit id, probability], …]
    Column("label", Text),  # of a static substitute, as it was then: its route may get another, and ends
    Column("finished_at", Float),
    sqlite_autoincrement=True,
)
Index("ix_deliveries_message_id", deliveries.c.message_id)
Index("ix_deliveries_site_id_message_id", deliveries.c.site_id, deliveries.c.message_id)
_VISITED = text("visit_id IS NOT NULL")
Index("ix_deliveries_visit_id", deliveries.c.visit_id, sqlite_where=_VISITED, postgresql_where=_VISITED)
_CLAIMED = text("claimed_number IS NOT NULL")
Index("ix_deliveries_claimed_number", deliveries.c.claimed_number, sqlite_where=_CLAIMED, postgresql_where=_CLAIMED)
_OPEN = "state IN ('queued', 'deferred')"
#: Deliveries that wait for their next attempt, or for the end of the one under way.
OPEN = text(f"deliveries.{_OPEN}")  # messages have a state, too; text: a reader's constants would be parameters
# Of both, the last columns let the queue be listed and counted, for one site too, without a look at its rows.
Index(
    "ix_deliveries_open",
    deliveries.c.destination,
    deliveries.c.next_at,
    deliveries.c.site_id,
    deliveries.c.joined_id,
    deliveries.c.state,
    sqlite_where=text(_OPEN),
    postgresql_where=text(_OPEN),
)
_HELD = text("state = 'failed'")
Index(
    "ix_deliveries_held",
    deliveries.c.next_at,
    deliveries.c.destination,
    deliveries.c.site_id,
    deliveries.c.joined_id,
    deliveries.c.state,
    sqlite_where=_HELD,
    postgresql_where=_HELD,
)

paths = Table(
    "paths",
    metadata,
    _id(),
    _ref("message_id", "messages.id"),
    Column("delivery_id", Integer),  # no foreign key: both go with their message
    Column("recipient", Text, nullable=False),
    Column("kind", Text, nullable=False),  # first | repeat | loop
    Column("received_at", Float, nullable=False),
    Column("ip", Text, nullable=False),
    sqlite_autoincrement=True,
)
Index("ix_paths_message_id", paths.c.message_id)

attempts = Table(
    "attempts",
    metadata,
    _id(),
    _ref("delivery_id", "deliveries.id"),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("code", Integer),
    Column("answer", Text, nullable=False),
    Column("host", Text, nullable=False),
    sqlite_autoincrement=True,
)
Index("ix_attempts_delivery_id", attempts.c.delivery_id)

events = Table(
    "events",
    metadata,
    _id(),
    Column("uid", Text, nullable=False, unique=True),  # webhook-id, stable over retries and replays
    _ref("message_id", "messages.id"),
    _ref("site_id", "sites.id"),
    Column("delivery_id", Integer, nullable=False),  # the best-attributed; no foreign key: both go with their message
    Column("type", Text, nullable=False),
    Column("state", Text, nullable=False),  # waiting (for extraction) | posted | withheld
    Column("reason", Text),  # why withheld
    Column("created_at", Float, nullable=False),
    Column("deal_id", Text),  # the CRM's number, of the event message.received
    Column("deal_url", Text),
    Column("data", Text),  # JSON: what events of other types are about
    sqlite_autoincrement=True,
)
Index("ix_events_message_id", events.c.message_id)
_DEALT = text("deal_id IS NOT NULL")
Index("ix_events_dealt", events.c.message_id, sqlite_where=_DEALT, postgresql_where=_DEALT)
Index(
    "ix_events_deal",  # the first letter that has a deal
    *(events.c.site_id, events.c.deal_id, events.c.message_id),
    sqlite_where=_DEALT,
    postgresql_where=_DEALT,
)

webhooks = Table(
    "webhooks",
    metadata,
    _id(),
    _ref("site_id", "sites.id"),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),  # sealed with the instance key
    Column("fill", Text, nullable=False),
    _flag("enabled", 1),
    Column("disabled_reason", Text),
    _flag("declared"),
    Column("created_at", Float, nullable=False),
    Column("removed_at", Float),
    Column("settings", Text, nullable=False, server_default=text("'{}'")),  # JSON map, core/hook.py HookSettings
    Column("access", Text),  # JSON map, core/hook.py Access; sealed
    Column("previous_secret", Text),  # signs as well, until …; sealed
    Column("previous_until", Float),  # NULL: as long as relay.toml names it
    sqlite_autoincrement=True,
)
Index("ix_webhooks_site_id", webhooks.c.site_id)

posts = Table(
    "posts",
    metadata,
    _id(),
    _ref("event_id", "events.id"),
    _ref("webhook_id", "webhooks.id"),
    Column("state", Text, nullable=False),  # waiting | delivered | failed | withheld
    Column("attempts", Integer, nullable=False),
    Column("next_at", Float, nullable=False),
    Column("claim", Text),
    Column("claimed_until", Float, nullable=False, server_default=text("0")),
    Column("status", Integer),
    Column("answer", Text),  # the receiver's, or why there is none
    Column("finished_at", Float),
    sqlite_autoincrement=True,
)
_WAITING = text("state = 'waiting'")
Index("ix_posts_waiting", posts.c.webhook_id, posts.c.next_at, sqlite_where=_WAITING, postgresql_where=_WAITING)
Index("ix_posts_event_id_webhook_id", posts.c.event_id, posts.c.webhook_id)
Index("ix_posts_webhook_id_id", posts.c.webhook_id, posts.c.id)
_LOST = text("state = 'failed'")
Index("ix_posts_failed", posts.c.webhook_id, posts.c.id, sqlite_where=_LOST, postgresql_where=_LOST)

post_attempts = Table(
    "post_attempts",
    metadata,
    _id(),
    _ref("post_id", "posts.id"),
    Column("started_at", Float, nullable=False),
    Column("duration", Float, nullable=False),
    Column("status", Integer),
    Column("answer", Text, nullable=False),
    Column("digest", LargeBinary),  # SHA-256 of the body that was sent: it is composed again when somebody asks for it
    Column("size", Integer),  # octets of that body
    sqlite_autoincrement=True,
)
Index("ix_post_attempts_post_id", post_attempts.c.post_id)

texts = Table(
    "texts",
    metadata,
    Column(
        "message_id",
        Integer,
        ForeignKey("messages.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("subject", Text, nullable=False),
    Column("addresses", Text, nullable=False),
    Column("head", Text, nullable=False),  # the first 8 KiB, which are searched
    Column("rest", Text),
    _flag("indexed"),
    Column("html", Text),  # only where a webhook asks for it
)
_UNINDEXED = text("indexed = 0")
Index("ix_texts_unindexed", texts.c.message_id, sqlite_where=_UNINDEXED, postgresql_where=_UNINDEXED)

tokens = Table(
    "tokens",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("hash", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),  # admin | manager | viewer
    Column("sites", Text),  # JSON list of names; NULL: all
    Column("created_at", Float, nullable=False),
    sqlite_autoincrement=True,
)

users = Table(
    "users",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),  # folded
    Column("password", Text),  # Argon2id, PHC string; NULL: not chosen yet
    Column("role", Text, nullable=False),  # as of tokens
    Column("sites", Text),  # JSON list of names; NULL: all
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float),  # last logged in
    sqlite_autoincrement=True,
)

sessions = Table(
    "sessions",
    metadata,
    _id(),
    Column("hash", Text, nullable=False, unique=True),
    _ref("user_id", "users.id"),
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("ip", Text, nullable=False),
    Column("user_agent", Text, nullable=False),
    sqlite_autoincrement=True,
)
Index("ix_sessions_user_id", sessions.c.user_id)
Index("ix_sessions_seen_at", sessions.c.seen_at)

invitations = Table(
    "invitations",
    metadata,
    _id(),
    Column("hash", Text, nullable=False, unique=True),
    _ref("user_id", "users.id", nullable=True),  # whose password it sets; NULL: makes the first administrator
    Column("expires_at", Float, nullable=False),
    sqlite_autoincrement=True,
)
Index("ix_invitations_user_id", invitations.c.user_id)

#: Who changed what: the log of every change by the API, the pages and the command line.
changes = Table(
    "changes",
    metadata,
    _id(),
    Column("at", Float, nullable=False),
    Column("kind", Text, nullable=False),  # user | token | command
    Column("name", Text, nullable=False),  # of the user or token; the account that ran the command
    Column("action", Text, nullable=False),  # the operation, "PATCH /v1/sites/{name}", or the command, "token.create"
    Column("site_id", Integer),  # no foreign key: it outlives the site
    Column("subject", Text),  # what was changed: "shop, sales@example.com"
    Column("details", Text),  # JSON map: the fields that were given, without secrets
    sqlite_autoincrement=True,
)
Index("ix_changes_at", changes.c.at)
Index("ix_changes_site_id_id", changes.c.site_id, changes.c.id)

blocked_senders = Table(
    "blocked_senders",
    metadata,
    _ref("site_id", "sites.id"),
    Column("address", Text, nullable=False),  # by address.sender_key; "@example.com" for a whole domain
    Column("created_at", Float, nullable=False),
    PrimaryKeyConstraint("site_id", "address"),
)

counters = Table(
    "counters",
    metadata,
    _ref("site_id", "sites.id"),
    Column("day", Text, nullable=False),  # 2026-01-31, UTC
    Column("name", Text, nullable=False),
    Column("count", Integer, nullable=False),
    PrimaryKeyConstraint("site_id", "day", "name"),
)

#: What the clock said: in row 1 when a daemon ran last, in row 2 when it was doubted last (store/clock.py).
clock = Table("clock", metadata, _id(), Column("noted_at", Float, nullable=False))

#: Full-text search lives beside the metadata: SQLite's FTS5 has no Core construct. Its content is table texts.
SEARCH_DDL = (
    "CREATE VIRTUAL TABLE message_search USING fts5(subject, addresses, head, content='texts', "
    "content_rowid='message_id', tokenize='unicode61 remove_diacritics 2')"
)
