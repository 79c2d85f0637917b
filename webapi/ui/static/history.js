// New mail appears by itself, and what is on its way changes as it goes. Without this the page is as it was when loaded.
"use strict";

(() => {
  const list = document.getElementById("list");
  const live = document.getElementById("live");

  // Fields that are empty have no business in the address.
  document.querySelector(".filters form").addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    event.preventDefault();
    document.querySelector(".filters input[type=search]").focus();
  });
  if (!list.dataset.events) return;

  // What a row says, apart from the hints that the script of all pages adds to times.
  const said = (row) => {
    const copy = row.cloneNode(true);
    for (const time of copy.querySelectorAll("time")) {
      time.removeAttribute("title");
    }
    return copy.innerHTML;
  };
  const hinted = (part) => {
    for (const time of part.querySelectorAll("time[datetime]")) time.title = new Date(time.dateTime).toLocaleString() + " here";
  };

  // Rows that stay are left alone, so that nobody's place, selection or focus is lost.
  const merge = (now, then) => {
    const wanted = [...then.children];
    const ids = new Set(wanted.map((row) => row.id));
    for (const row of [...now.children]) if (!ids.has(row.id) && !row.contains(document.activeElement)) row.remove();
    let fresh = 0;
    let before = null;
    for (const row of wanted) {
      const shown = document.getElementById(row.id);
      if (!shown) {
        row.classList.add("fresh");
        hinted(row);
        if (before) before.after(row); else now.prepend(row);
        before = row;
        fresh += 1;
      } else {
        if (said(shown) !== said(row) && !shown.contains(document.activeElement)) {
          hinted(row);
          shown.replaceWith(row);
          before = row;
        } else {
          before = shown;
        }
      }
    }
    return fresh;
  };

  let asking = false;
  let again = false;
  const refresh = async () => {
    if (asking) { again = true; return; }
    asking = true;
    try {
      const answer = await fetch(location.href, {headers: {"HX-Request": "true"}});
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) return;
      const then = new DOMParser().parseFromString(await answer.text(), "text/html");
      const rows = [document.getElementById("letters"), then.getElementById("letters")];
      let fresh = 0;
      if (rows[0] && rows[1]) {
        fresh = merge(rows[0], rows[1]);
        document.getElementById("figures").replaceWith(then.getElementById("figures"));
      } else if (rows[1]) {
        fresh = rows[1].children.length;
        list.replaceChildren(...then.body.childNodes);
        hinted(list);
      }
      if (fresh) tell(fresh === 1 ? "1 new letter" : fresh + " new letters");
    } catch {
      // the stream says when the daemon is back
    } finally {
      asking = false;
      if (again) { again = false; refresh(); }
    }
  };

  // Many pages may hear of the same letter: none asks more often than every three seconds, nor all at once.
  const GAP = 3000;
  let asked = 0;
  let due = 0;
  const refreshSoon = () => {
    if (due) return;
    const pause = Math.max(0, asked + GAP - Date.now()) + Math.random() * 700;
    due = setTimeout(async () => {
      due = 0;
      asked = Date.now();
      await refresh();
      follow(1000);
    }, pause);
  };

  // What is on its way is looked at again, less and less often.
  let pause = 1000;
  let timer = 0;
  const follow = (from) => {
    pause = from;
    clearTimeout(timer);
    timer = setTimeout(async () => {
      if (document.hidden || !list.querySelector("[data-moving]")) return;
      await refresh();
      if (pause < 60000) follow(pause * 2);
    }, pause);
  };

  const tell = (words, on = true) => {
    live.hidden = false;
    live.classList.toggle("off", !on);
    if (live.textContent !== words) live.textContent = words;
  };

  // One connection a visible page: a browser has few of them for one server.
  let stream = null;
  const close = () => { if (stream) stream.close(); stream = null; };
  const open = () => {
    if (stream || document.hidden) return;
    stream = new EventSource(list.dataset.events);
    stream.addEventListener("open", () => tell("New letters appear by themselves"));
    stream.addEventListener("mail", (event) => {
      list.dataset.events = "/ui/history/events?after=" + event.data;
      refreshSoon();
    });
    stream.addEventListener("end", () => { close(); location.reload(); });
    stream.addEventListener("error", () => {
      tell("Not connected: new letters appear when you reload", false);
      if (stream && stream.readyState === EventSource.CLOSED) { close(); setTimeout(open, 60000); }
    });
  };
  document.addEventListener("visibilitychange", () => { if (document.hidden) close(); else open(); });
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
  follow(1000);
})();
