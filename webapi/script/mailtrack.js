/*! mailtrack: visit-relay, Apache-2.0 */
(function (c) {
  "use strict";
  var w = window, d = document, own = w.mailtrack || {};
  if (own.refresh || !w.fetch || !w.AbortController || !w.MutationObserver) return;

  var map = {}, back = {}, asked = {}, due = 0, busy = false, timer, watch;
  var mt = (w.mailtrack = { enabled: own.enabled !== false, visit: null, addresses: map, refresh: refresh });
  var rs = (w.roistat = w.roistat || {});
  rs.emailtracking = rs.emailtracking || { enabled: true };

  function quote(s) { return s.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&"); }
  var some = c.targets.map(quote);
  if (c.domains.length) some.push("[\\w.%+-]+@(?:" + c.domains.map(quote).join("|") + ")");
  var find = new RegExp("(^|[^\\w.%+-])(" + some.join("|") + ")(?![\\w-]|\\.\\w)", "gi");
  var keep = "script,style,noscript,textarea,input,select,[data-mailtrack-ignore]";

  function on() { return mt.enabled && rs.emailtracking.enabled !== false; }

  function call(f) { try { if (typeof f === "function") f(); } catch (e) {} }

  function cookie(name) {
    var m = d.cookie.match("(?:^|; )" + name + "=(\\d{1,20})(?:;|$)");
    return m ? m[1] : null;
  }

  function save(name, value, days) {
    d.cookie = name + "=" + value + "; path=/; max-age=" + days * 86400 + "; SameSite=Lax" +
      (location.protocol === "https:" ? "; Secure" : "");
  }

  // What stands in the text: each address is noted in seen, and given as it is to be shown.
  function swapped(text, seen) {
    return text.replace(find, function (all, before, address) {
      var key = address.toLowerCase();
      key = back[key] || key;
      seen[key] = 1;
      var shown = map[key] || address;
      return before + (address === address.toUpperCase() ? shown.toUpperCase() : shown);
    });
  }

  function ignored(el) { return !el || el.isContentEditable || el.closest(keep); }

  // Go over the page, put in what is known, and note what stands there.
  function scan() {
    var seen = {}, n, text, i, links, href, m, path;
    if (!d.body) return seen;
    var walk = d.createTreeWalker(d.body, 4);
    while ((n = walk.nextNode())) {
      if (n.data.indexOf("@") < 0 || ignored(n.parentElement)) continue;
      text = swapped(n.data, seen);
      if (text !== n.data) n.data = text;
    }
    links = d.querySelectorAll("a[href]");
    for (i = 0; i < links.length; i++) {
      href = links[i].getAttribute("href");
      m = /^(\s*mailto:)([^?]*)/i.exec(href);
      if (!m || ignored(links[i])) continue;
      path = m[2];
      try { path = decodeURIComponent(path); } catch (e) {}
      text = swapped(path, seen);
      if (text === path) continue;
      text = encodeURI(text).replace(/[?#]/g, encodeURIComponent);
      links[i].setAttribute("href", m[1] + text + href.slice(m[0].length));
    }
    return seen;
  }

  function look() {
    if (!on()) return;
    for (var key in scan()) if (!asked[key]) return refresh();
  }

  function later() {
    clearTimeout(timer);
    timer = setTimeout(function () { if (!d.hidden) refresh(); }, Math.max(1000, due - Date.now()));
  }

  function refresh() {
    if (busy || !on()) return;
    busy = true;
    var list = Object.keys(scan()), stop = new AbortController(), ga, wait;
    list.forEach(function (key) { asked[key] = 1; });
    ga = d.cookie.match(/(?:^|; )_ga=GA\d\.\d+\.(\d+\.\d+)/);
    due = Date.now() + 60000;
    wait = setTimeout(function () { stop.abort(); }, 3000);
    fetch(c.api, {
      method: "POST",
      credentials: "omit",
      signal: stop.signal,
      body: JSON.stringify({
        site: c.site,
        visit: cookie("roistat_visit") || cookie("mailtrack_visit"),
        first_visit: cookie("mailtrack_first"),
        page: location.href.split("#")[0].slice(0, 4000),
        referrer: d.referrer.slice(0, 4000),
        addresses: list.slice(0, 50),
        google_client_id: ga ? ga[1] : null,
        webdriver: navigator.webdriver === true
      })
    }).then(function (r) { return r.ok ? r.json() : Promise.reject(); }).then(function (a) {
      if (!on()) return;
      due = Date.now() + a.lease * 500;
      mt.visit = a.visit;
      save("mailtrack_visit", a.visit, 14);
      if (a.first_visit) save("mailtrack_first", a.first_visit, 365);
      for (var key in a.addresses) {
        map[key] = a.addresses[key];
        back[map[key].toLowerCase()] = key;
      }
    }).catch(function () {}).then(function () {
      clearTimeout(wait);
      busy = false;
      look();
      later();
    });
  }

  function start() {
    call(w.onRoistatModuleLoaded);
    call(w.onMailtrackLoaded);
    if (!on()) return;
    refresh();
    new MutationObserver(function () {
      clearTimeout(watch);
      watch = setTimeout(look, 30);
    }).observe(d.documentElement, { childList: true, characterData: true, subtree: true, attributeFilter: ["href"] });
    d.addEventListener("visibilitychange", function () { if (!d.hidden && Date.now() >= due) refresh(); });
  }

  if (d.prerendering) d.addEventListener("prerenderingchange", start, { once: true });
  else if (d.readyState === "loading") d.addEventListener("DOMContentLoaded", start);
  else start();
})(__MAILTRACK__);
