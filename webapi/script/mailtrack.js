/* visit-relay: shows each visitor substitute addresses, so that the mail they write can be told which visit it came
   from. Only text is edited, nodes are never replaced, and whatever fails leaves the real address where it is. */
(function (settings) {
  "use strict";
  var w = window, d = document, targets = settings.targets;
  if (w.mailtrack && w.mailtrack.loaded) return;

  var api = w.mailtrack = w.mailtrack || {};
  api.loaded = true;
  if (api.enabled === undefined) api.enabled = true;
  api.visit = null;
  api.addresses = {};
  api.refresh = refresh;

  var shown = {};      // address as it stands on the page, lower case -> what to show instead
  var asked = {};      // addresses that were sent and are waiting for an answer
  var timer, waiting;

  function cookie(name) {
    var match = d.cookie.match("(?:^|; )" + name + "=(\\d{1,20})(?:;|$)");
    return match ? match[1] : null;
  }
  function remember(name, value, days) {
    d.cookie = name + "=" + value + ";path=/;max-age=" + days * 86400 + ";samesite=lax" +
      (location.protocol === "https:" ? ";secure" : "");
  }
  function off() {
    var roistat = w.roistat && w.roistat.emailtracking;
    return !api.enabled || (roistat && roistat.enabled === false);
  }

  /* An address is bounded by what can't belong to one: presales@… is not sales@…, and a.sales@… is not either. */
  var atext = "[\\w!#$%&'*+/=?^`{|}~.-]";
  function pattern(addresses) {
    return new RegExp("(^|[^\\w!#$%&'*+/=?^`{|}~.-])(" + addresses.map(function (address) {
      return address.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    }).join("|") + ")(?!" + atext.replace(".", "") + "|\\.\\w)", "gi");
  }
  function swap(text) {
    var known = Object.keys(shown);
    if (!known.length || text.indexOf("@") < 0) return text;
    return text.replace(pattern(known), function (all, before, address) {
      var substitute = shown[address.toLowerCase()];
      return before + (address === address.toUpperCase() ? substitute.toUpperCase() : substitute);
    });
  }
  function swapLink(href) {
    var query = href.indexOf("?"), path = query < 0 ? href : href.slice(0, query);
    return swap(path.replace(/%40/g, "@")) + (query < 0 ? "" : href.slice(query));
  }

  var SKIP = /^(SCRIPT|STYLE|TEXTAREA|INPUT|SELECT|NOSCRIPT|TEMPLATE)$/;
  function skipped(node) {
    for (var e = node.nodeType === 1 ? node : node.parentNode; e && e.nodeType === 1; e = e.parentNode)
      if (SKIP.test(e.tagName) || e.isContentEditable || e.hasAttribute("data-mailtrack-ignore")) return true;
    return false;
  }
  /* Calls text(node) for every text with an @ and link(node) for every mailto: below root. */
  function walk(root, text, link) {
    if (root.nodeType === 3) {
      if (root.nodeValue.indexOf("@") > 0 && !skipped(root)) text(root);
      return;
    }
    if (root.nodeType !== 1 && root.nodeType !== 9) return;
    if (root.nodeType === 1 && skipped(root)) return;
    var walker = d.createTreeWalker(root, 5, { acceptNode: function (node) {
      if (node.nodeType === 3) return node.nodeValue.indexOf("@") > 0 ? 1 : 3;
      return SKIP.test(node.tagName) || node.isContentEditable || node.hasAttribute("data-mailtrack-ignore") ? 2 : 1;
    } });
    for (var node = walker.currentNode; node; node = walker.nextNode()) {
      if (node.nodeType === 3) text(node);
      else if (node.nodeType === 1 && /^mailto:/i.test(node.getAttribute("href") || "")) link(node);
    }
  }

  function apply(root) {
    if (off()) return;
    walk(root, function (node) {
      var text = swap(node.nodeValue);
      if (text !== node.nodeValue) node.nodeValue = text;
    }, function (node) {
      var href = node.getAttribute("href"), swapped = swapLink(href);
      if (swapped !== href) node.setAttribute("href", swapped);
    });
  }
  /* The addresses below root that we should ask about: targets, and substitutes that a cached page brought along. */
  function find(root) {
    var found = {};
    function look(text) {
      var at = text.match(/[\w!#$%&'*+/=?^`{|}~.-]+@[\w.-]*\w/g) || [];
      at.forEach(function (address) {
        var key = address.toLowerCase(), domain = key.slice(key.indexOf("@") + 1);
        if (targets.indexOf(key) >= 0 || settings.domains.indexOf(domain) >= 0) found[key] = 1;
      });
    }
    walk(root, function (node) { look(node.nodeValue); }, function (node) {
      look(node.getAttribute("href").split("?")[0].slice(7).replace(/%40/g, "@"));
    });
    return Object.keys(found);
  }

  function bind(addresses) {
    if (off()) return;
    addresses.forEach(function (address) { asked[address] = 1; });
    var abort = w.AbortController && new AbortController();
    var late = setTimeout(function () { if (abort) abort.abort(); }, 3000);
    fetch(settings.url + "/v1/bind", {
      method: "POST", credentials: "omit", keepalive: true, signal: abort ? abort.signal : undefined,
      headers: { "Content-Type": "text/plain" },
      body: JSON.stringify({
        site: settings.key,
        visit: cookie("roistat_visit") || cookie("mailtrack_visit"),
        first_visit: cookie("mailtrack_first"),
        page: location.href, referrer: d.referrer || null, addresses: addresses,
        webdriver: navigator.webdriver === true
      })
    }).then(function (answer) { return answer.ok ? answer.json() : null; }).then(function (bound) {
      if (!bound) return;
      api.visit = bound.visit;
      if (!cookie("roistat_visit")) remember("mailtrack_visit", bound.visit, 14);
      if (bound.first_visit && !cookie("mailtrack_first")) remember("mailtrack_first", bound.first_visit, 365);
      for (var address in bound.addresses) {
        var substitute = bound.addresses[address];
        if (address !== substitute.toLowerCase()) shown[address] = substitute;
        api.addresses[address] = substitute;
      }
      apply(d);
      clearTimeout(timer);
      timer = setTimeout(renew, Math.max(30, bound.lease - 60) * 1000);
    }).catch(function () { /* the real address stays */ }).then(function () { clearTimeout(late); });
  }
  function renew() {
    if (d.visibilityState === "hidden") { waiting = true; return; }
    waiting = false;
    bind(Object.keys(asked));
  }
  /* What is new on the page: known addresses are swapped at once, unknown ones asked about. */
  function refresh() {
    apply(d);
    var fresh = find(d).filter(function (address) { return !asked[address] && !isShown(address); });
    if (fresh.length) bind(Object.keys(asked).concat(fresh));
  }
  function isShown(address) {
    for (var key in shown) if (shown[key].toLowerCase() === address) return true;
    return false;
  }

  function start() {
    if (typeof w.onMailtrackLoaded === "function") w.onMailtrackLoaded();
    if (typeof w.onRoistatModuleLoaded === "function" && !w.roistat) {
      w.roistat = { emailtracking: { enabled: true, refresh: refresh } };
      w.onRoistatModuleLoaded();
    }
    if (off()) return;
    bind(find(d));
    var scheduled;
    new MutationObserver(function () {
      if (scheduled) return;
      scheduled = true;
      (w.requestAnimationFrame || setTimeout)(function () { scheduled = false; refresh(); });
    }).observe(d.documentElement, { childList: true, subtree: true, characterData: true });
    d.addEventListener("visibilitychange", function () { if (waiting) renew(); });
    w.addEventListener("pageshow", function (event) { if (event.persisted) renew(); });
  }
  if (d.readyState === "loading") d.addEventListener("DOMContentLoaded", start); else start();
})(/*settings*/);
