/** The request that says which visit this is and which addresses it shows: when, what, and what its answer means. */
import type { Answer } from "../mailtrack";
import { api, consent, on, undecided } from "./api";
import { tell } from "./events";
import { ends, fresh, lapsed, lease, onPage, targets } from "./lease";
import { scan } from "./page";
import { arrival, forget, keep, keptMapping, known, leads, renumbered, type Mapping } from "./visit";

const enum Milliseconds {
  Patience = 3000,
  Retry = 60000,
  AtMostEvery = 1000,
}
const enum Most {
  Addresses = 50,
}

let busy = false;
/** When the next bind is due; and before when there is none, whatever appears on the page: 0 until the first begins. */
let due = 0;
export let soonest = 0;
let timer: number;
/** A person has moved, typed or scrolled: not a machine that only loads pages. */
let interacted: true | undefined;
/** There is an address for us as soon as a person shows. */
let reserved: unknown;
/** Mails of this visit, if it is known. */
let mails: number;

/**
 * A page view begins, or something has been switched: shows what the tab remembers of this visit, or nothing when we
 * are off, and binds as soon as may be.
 */
export function refresh() {
  const mapping: Partial<Mapping> = (on() && !undecided() && keptMapping()) || {};
  api.visit = mapping.visit || null;
  mails = mapping.mails!;
  lease({}, mapping.shown, mapping.end);
  if (mapping.visit) scan();
  due = 0;
  check();
}

/** Puts back what has run out, and plans the next bind. Called whenever something may have changed, `person` by one. */
export function check(person?: boolean) {
  if (person) {
    interacted = true;
    if (reserved) reserved = due = 0;
    // It may be a tap on a link, before there was a bind.
    if (!soonest && on() && !undecided()) arrival();
  }
  if (lapsed()) scan();
  clearTimeout(timer);
  const early = document.readyState === "loading" || (SETTINGS.lazy && !interacted);
  const unseen = document.hidden && soonest; // a page that opens in the background is bound once
  if (busy || early || unseen || !on()) return;
  // Another counter's number comes late: its visit began on this page, which only a bind from here can say.
  const next = Math.max(soonest, fresh || renumbered() ? 0 : due);
  // While the API fails, the lease may end before.
  timer = setTimeout(ends() < next ? check : bind, Math.min(ends(), next) - Date.now());
}

/** JSON.stringify leaves out what is undefined. */
const question = (addresses: string[]) =>
  JSON.stringify({
    site: SETTINGS.site,
    ...known(),
    ...arrival(),
    // Targets first: at their domain there may be a whole staff, on a page that names all of them.
    addresses: addresses.sort((a, b) => +targets.has(b) - +targets.has(a)).slice(0, Most.Addresses),
    params: api.params,
    interacted,
    webdriver: navigator.webdriver,
  });

async function bind() {
  if (!on()) return;
  busy = true;
  const now = Date.now(); // the lease counts from then at the latest; an answer may be read after a sleep
  soonest = due = now + Milliseconds.Retry; // unless it is answered
  try {
    scan();
    const asked = { ...onPage }; // what appears meanwhile is another question
    const stop = new AbortController();
    setTimeout(() => stop.abort(), Milliseconds.Patience);
    const response = await fetch(SETTINGS.api, {
      method: "POST",
      // Without them the browser takes no cookies of the answer: they would go back to this tab's earlier visit.
      credentials: (leads() && SETTINGS.credentials) || "omit",
      signal: stop.signal,
      // A string goes as text/plain, for which no browser sends a preflight.
      body: question(Object.keys(asked)),
    });
    const answer: Answer = await response.json();
    if (!consent.given) forget(); // the server may have set cookies after the visitor has refused
    const { visit, lease: seconds } = answer;
    if (response.ok && on() && seconds > 0 && +visit > 0) {
      const end = now + seconds * 1000;
      reserved = answer.reserved;
      lease(asked, answer.addresses, end);
      soonest = now + Milliseconds.AtMostEvery;
      due &&= now + seconds * 500; // 0: refreshed meanwhile
      const renewed = visit === api.visit;
      const before = renewed ? mails : Infinity; // of a visit that is new to us no mail is new
      api.visit = visit;
      mails = answer.mails || 0;
      keep({ visit, mails, shown: api.addresses, end }, answer.first_visit, renewed);
      tell("bind", answer);
      if (mails > before) tell("mail", mails, "emailtracking");
    }
  } catch {
    // Down, slow, blocked or talking nonsense: the page keeps its real addresses.
  }
  busy = false;
  scan();
  check();
}
