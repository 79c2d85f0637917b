/** What the browser remembers of the visit: two cookies of ours, another counter's, and this tab's mapping. */
import { api } from "./api";
import { attempt } from "./attempt";
import type { Shown } from "./lease";

/** Name of the cookie, and of the mapping in the session's storage. */
const VISIT = "mailtrack_visit";
const FIRST = "mailtrack_first";
/** Name of the arrival in the session's storage. */
const ARRIVAL = "mailtrack_arrival";
// Seconds.
const FORTNIGHT = 1209600;
const YEAR = 31536000;
// Characters.
const URL_LENGTH = 4000;

const NUMBER = "(\\d{1,20})";

/** What later pages of the session show before their first bind answers. */
export interface Mapping {
  visit: string;
  shown: Shown;
  /** When its lease ends, in milliseconds since 1970. */
  end: number;
  /** Mails of this visit that the server had received. */
  mails: number;
}

/** The part of a cookie's value that is the group of `value`; undefined if there is no such cookie. */
export function cookie(name: string | undefined, value: string): string | undefined {
  return name && `; ${document.cookie};`.match(`; ${name}=${value};`)?.[1];
}

const own = () => cookie(VISIT, NUMBER);
const other = () => cookie(SETTINGS.cookie, NUMBER);
const current = () => other() || own();
/** Whether no other tab has begun a later visit, which the cookie is of then. */
export const leads = () => !api.visit || own() === api.visit;

/** The other counter's number, as the last bind said it. */
let said: string | undefined;
export const renumbered = () => other() !== said;

/** What a bind says about the browser; JSON leaves out what is not known. */
export function known() {
  said = other();
  return {
    // Another tab may have begun another visit meanwhile; this one goes on with its own.
    visit: said || api.visit || own(),
    ours: !said,
    first_visit: cookie(FIRST, NUMBER),
    google_client_id: cookie("_ga", "[^;]+\\.(\\d+\\.\\d+)"),
    ym_uid: cookie("_ym_uid", "(\\d+)"),
    marker: cookie(SETTINGS.marker, "([^;]+)"),
  };
}

/** Whether this page lies within the cookies' domain: a site may have pages elsewhere, too. */
const home = () => ("." + location.hostname).endsWith("." + SETTINGS.domain);

function write(name: string, value: string, seconds: number, domain?: string) {
  // One from before the site had a cookie domain would be read first.
  if (domain) write(name, "", 0);
  document.cookie =
    `${name}=${value}; path=/; max-age=${seconds}; SameSite=Lax` +
    (location.protocol === "https:" ? "; Secure" : "") +
    // Elsewhere the browser would refuse the cookie.
    (domain && home() ? "; Domain=" + domain : "");
}

/**
 * `renewed`: the page's own visit goes on, and the cookie may name a later one of another tab. What the server's answer
 * has set is left alone: written once more by a script it would live for a week in some browsers.
 */
export function keep(mapping: Mapping, first: string | null, renewed?: boolean) {
  if (own() === mapping.visit ? !(SETTINGS.credentials && home()) : !renewed) {
    write(VISIT, mapping.visit, FORTNIGHT, SETTINGS.domain);
    if (first) write(FIRST, first, YEAR, SETTINGS.domain);
  }
  // Where storage is blocked or full, the next page waits for its bind.
  attempt(() => delete sessionStorage[ARRIVAL] && (sessionStorage[VISIT] = JSON.stringify(mapping)));
}

/** The mapping of this tab, if it is of the visit that the cookie says. */
export const keptMapping = () =>
  attempt<Mapping | undefined>(() => {
    const mapping: Mapping = JSON.parse(sessionStorage[VISIT]);
    if (mapping.visit === current()) return mapping;
  });

let arrived = false;

/**
 * Address and referrer of the page that the visitor came to. They are kept until an answer has counted them: on the next
 * page, to which somebody may go on before that, nothing else says where the visitor came from. Whoever comes from
 * elsewhere arrives anew; so from what is kept only links of this site lead to here, and it needs no age of its own.
 */
export function arrival() {
  // A space stands in neither. No browser sends more than 4096 characters of a referrer.
  const here = location.href.split("#")[0].slice(0, URL_LENGTH) + " " + document.referrer;
  const inner = arrived || document.referrer.split("/")[2] === location.host;
  arrived = true;
  // Where storage is blocked or full, each page speaks for itself.
  const text: string = attempt(() => (sessionStorage[ARRIVAL] = (inner && sessionStorage[ARRIVAL]) || here)) || here;
  const [page, referrer] = text.split(" ");
  return { page, referrer };
}

export function forget() {
  for (const name of [VISIT, FIRST]) write(name, "", 0, SETTINGS.domain);
  attempt(() => delete sessionStorage[VISIT] && delete sessionStorage[ARRIVAL]);
}
