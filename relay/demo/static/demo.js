// The demo page: sends the letter, follows /events, and shows what comes. No innerHTML: all of it is strangers' text.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity));
    return node;
  };

  // Narrow columns may break an address behind its "@", and nowhere else if they can help it.
  const asText = (text) =>
    String(text ?? "").split(/(?<=@)/).flatMap((part, index) => (index ? [make("wbr"), part] : [part]));
  const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
  const span = (from, to) => {
    const ms = Math.max(0, (to - from) * 1000);
    return ms < 10_000 ? `${Math.round(ms)} ms` : `${Math.round(ms / 1000)} s`;
  };
  const bytes = (size) => (size < 1024 ? `${size} B` : size < 1 << 20 ? `${Math.round(size / 1024)} kB` : `${(size / (1 << 20)).toFixed(1)} MB`);

  const letters = new Map(), mails = new Map(), items = new Map(), deals = new Map(); // by message
  const KEPT = 50;

  // ── the website ───────────────────────────────────────────────────────────────────────────────────────────────

  const anchors = [...document.querySelectorAll("#contacts a")];
  const choice = byId("to");

  function showAddresses() {
    const choices = anchors.map((anchor) => [anchor.textContent.trim(), anchor.dataset.name]);
    const picked = Math.max(choice.selectedIndex, 0);
    choice.replaceChildren(...choices.map(([address, name]) => make("option", { value: address }, `${address} (${name})`)));
    choice.selectedIndex = picked;
    byId("visit").textContent = window.mailtrack?.visit ? `This is visit ${window.mailtrack.visit}.` : "";
    showCommand();
  }

  function showCommand() {
    const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
    byId("swaks").textContent =
      `swaks --server ${document.body.dataset.smtp} --from ann@visitor.example --to ${choice.value} ` +
      `--header ${quote(`Subject: ${byId("subject").value}`)}`;
  }

  function showArrival() {
    byId("location").textContent = `larkfield.example${location.pathname}${location.search}`;
    for (const link of document.querySelectorAll(".chip")) {
      if (link.getAttribute("href") === location.search) link.setAttribute("aria-current", "page");
    }
  }

  new MutationObserver(showAddresses).observe(byId("contacts"), { subtree: true, characterData: true, childList: true });
  choice.addEventListener("change", showCommand);
  byId("subject").addEventListener("input", showCommand);
  byId("copy").addEventListener("click", async (event) => {
    await navigator.clipboard.writeText(byId("swaks").textContent);
    event.target.textContent = "Copied";
  });

  // ── the letter ────────────────────────────────────────────────────────────────────────────────────────────────

  const form = byId("letter"), outcome = byId("outcome"), button = byId("send");
  let last = null; // the message this page sent last

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true";
    for (const field of form.elements) field.removeAttribute("aria-invalid");
    last = null; // what comes in before the answer must not bring back the last letter's times
    outcome.className = "";
    outcome.textContent = "Sending";
    try {
      const answer = await fetch("/send", { method: "POST", body: new FormData(form) });
      const result = await answer.json();
      if (!answer.ok) return refuse(result.error, result.field);
      last = result.message;
      letters.set(last, result);
      byId("file").value = "";
      showJourney();
    } catch {
      refuse("The demo does not answer. Is it still running?");
    } finally {
      button.ariaDisabled = "false";
    }
  });

  function refuse(text, name) {
    const field = name && form.elements[name];
    outcome.className = "refused";
    outcome.replaceChildren(...asText(field ? `${field.labels[0].textContent}: ${text}` : text));
    if (field) {
      field.setAttribute("aria-invalid", "true");
      field.focus();
    }
  }

  function showJourney() {
    const letter = letters.get(last);
    if (!letter) return;
    const stop = (name, at) => make("li", {}, name, " ", make("b", {}, at ? span(letter.started_at, at) : "…"));
    const to = (id, name) => make("a", { href: `#${id}` }, name);
    const stops = [
      stop("accepted", letter.accepted_at),
      stop(to("mailbox", "mailbox"), mails.get(last)?.at),
      stop(to("crm", "CRM"), deals.get(last)?.at),
    ];
    outcome.replaceChildren(make("ol", { class: "journey", title: letter.reply }, stops));
  }

  // ── what the company sees ─────────────────────────────────────────────────────────────────────────────────────

  const PILLS = { exact: "good", forwarded: "good", collected: "good", failed: "bad", looped: "bad", none: "", dropped: "" };
  const pill = (word) => make("span", { class: `pill ${PILLS[word] ?? "wait"}` }, word);

  // Newest first; what is there is replaced. Only the newest stays open.
  function place(list, node) {
    const old = byId(node.id);
    if (old) {
      const focused = old.contains(document.activeElement);
      if (old.open !== undefined) node.open = old.open;
      old.replaceWith(node);
      if (focused) node.querySelector("button, summary").focus();
      return;
    }
    const older = [...list.children].find((one) => Number(one.dataset.at) <= Number(node.dataset.at)) ?? null;
    if (older === list.firstElementChild) {
      for (const one of list.children) one.open = false;
    } else {
      node.open = false;
    }
    node.classList.add("fresh");
    list.insertBefore(node, older);
    while (list.children.length > KEPT) list.lastElementChild.remove();
    (list.closest(".scroll") ?? list).classList.add("filled");
  }

  function showRow(item) {
    items.set(item.id, item);
    const cell = (label, ...content) => make("td", { "data-label": label }, make("span", {}, content));
    const open = make("button", { type: "button", class: "plain" }, asText(item.subject || "(no subject)"));
    open.addEventListener("click", () => openMessage(item.id));
    const { state, method, candidates } = item.attribution;
    const mark = pill(state);
    mark.title = [method, ...candidates.map((one) => `${one.visit} ${Math.round(one.probability * 100)} %`)].join("\n");
    const row = make("tr", { id: `item-${item.id}`, "data-at": received(item) },
      cell("Date", clock(received(item))),
      cell("Sender", asText(item.sender)),
      cell("Receivers", asText(item.receivers.join(", "))),
      cell("Visit", item.visit ?? "–"),
      cell("Deal", item.deal.id ? dealLink(item.deal) : "–"),
      cell("Subject", open),
      cell("Attribution", mark),
      cell("State", pill(item.state), notSent(item)));
    row.children[0].classList.add("one-line");
    place(byId("history-rows"), row);
    showTook(item.id);
  }

  // Why the CRM did not get it, where it did not.
  function notSent(item) {
    const why = item.posting.find((one) => one.state === "withheld")?.reason;
    return why ? make("span", { class: "quiet" }, asText(` not sent: ${why}`)) : "";
  }

  const received = (item) => Date.parse(item.received_at) / 1000;

  function dealLink(deal) {
    const url = deal.url?.startsWith(`${location.origin}/#`) ? deal.url.slice(location.origin.length + 1) : deal.url;
    return url ? make("a", { href: url }, deal.id) : deal.id;
  }

  function openMessage(message) {
    for (const list of ["mails", "deals"]) {
      for (const entry of byId(list).children) entry.open = entry.dataset.message === message;
    }
    byId("mails").querySelector("[open]")?.scrollIntoView({ block: "nearest" });
  }

  const lines = (pairs) =>
    make("dl", { class: "lines" }, pairs.filter(([, value]) => value).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, asText(value))]));

  function showMail(mail) {
    mails.set(mail.message, mail);
    const files = mail.attachments.map((file) => make("li", {}, asText(`${file.name}, ${bytes(file.size)}`)));
    const raw = mail.fields.flatMap((field) => {
      const line = [...asText(`${field.name}: ${field.value}`)];
      return [field.ours ? make("mark", {}, line) : make("span", {}, line), "\n"];
    });
    place(byId("mails"), make("details", { class: "entry", id: `mail-${mail.id}`, "data-at": mail.at, "data-message": mail.message, open: true },
      make("summary", {}, make("strong", {}, asText(mail.subject || "(no subject)")), make("span", { class: "quiet" }, clock(mail.at))),
      lines([["From", mail.from], ["To", mail.to], ["Date", mail.date], ["Delivered to", mail.delivered_to.join(", ")]]),
      make("p", { class: "text" }, asText(mail.text)),
      files.length ? make("ul", { class: "files", "aria-label": "Attachments" }, files) : "",
      make("details", {},
        make("summary", {}, `Header fields (${mail.fields.length})`),
        make("div", { class: "raw" }, make("p", {}, asText(`envelope from <${mail.return_path}>`)), raw))));
    showJourney();
  }

  const OF_VISIT = /^(visit_id|first_visit|referrer|marker|city|country|ip|domain|landing_page|utm_.*|roistat_param_.|google_client_id|source_level_.)$/;

  function json(payload) {
    const value = (entry) => {
      if (entry === null) return make("span", { class: "null" }, "null");
      const links = /^https?:\/\/127\.0\.0\.1:\d+\//.test(entry);
      return links ? make("a", { href: entry }, JSON.stringify(entry)) : make("span", {}, asText(JSON.stringify(entry)));
    };
    const list = (files) => files.flatMap((file, index) =>
      [index ? ", " : "", '{"name": ', value(file.name), ', "url": ', value(file.url), "}"]);
    const rows = Object.entries(payload).map(([key, entry], index, all) => {
      const shown = Array.isArray(entry) ? ["[", ...list(entry), "]"] : [value(entry)];
      const pair = [`"${key}": `, ...shown];
      const known = OF_VISIT.test(key) && entry !== null;
      return make("span", { class: entry === null ? "null" : null }, "  ", known ? make("mark", {}, pair) : pair, index + 1 < all.length ? ",\n" : "\n");
    });
    return make("pre", { class: "json" }, "{\n", rows, "}");
  }

  function showDeal(deal) {
    deals.set(deal.message, deal);
    place(byId("deals"), make("details", { class: "entry", id: `deal-${deal.answer.deal_id}`, "data-at": deal.at, "data-message": deal.message, open: true },
      make("summary", {}, make("strong", {}, `Deal ${deal.answer.deal_id}`), make("span", { class: "in-time" })),
      make("p", { class: "quiet" }, `signature verified, answered {"deal_id": "${deal.answer.deal_id}"}`, deal.posted > 1 ? `, posted ${deal.posted} times` : ""),
      json(deal.payload)));
    showTook(deal.message);
    showJourney();
  }

  function showTook(message) {
    const deal = deals.get(message), letter = letters.get(message), item = items.get(message);
    if (!deal || !(letter || item)) return;
    byId(`deal-${deal.answer.deal_id}`).querySelector(".in-time").textContent = letter
      ? `${span(letter.started_at, deal.at)} after Send`
      : `${span(received(item), deal.at)} after receipt`;
  }

  function openDeal() {
    const entry = /^#deal-\d+$/.test(location.hash) && byId(location.hash.slice(1));
    if (!entry) return;
    openMessage(entry.dataset.message);
    entry.scrollIntoView({ block: "nearest" });
  }

  // ── /events ───────────────────────────────────────────────────────────────────────────────────────────────────

  function follow() {
    const link = byId("link");
    const source = new EventSource("/events");
    const on = (kind, show) => source.addEventListener(kind, (event) => show(JSON.parse(event.data)));
    source.addEventListener("error", () => {
      link.className = "link-state";
      link.textContent = "not connected";
    });
    on("hello", ({ instance }) => {
      if (instance !== document.body.dataset.instance) return location.reload(); // another demo has taken this one's place
      link.className = "link-state live";
      link.textContent = "live";
    });
    on("letter", (letter) => {
      letters.set(letter.message, letter);
      showTook(letter.message);
      showJourney();
    });
    on("mail", showMail);
    on("history", showRow);
    on("crm", showDeal);
  }

  addEventListener("hashchange", openDeal);
  showArrival();
  showAddresses();
  follow();
})();
