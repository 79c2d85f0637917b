/**
 * The website script of visit-relay, as a page sees it.
 *
 * ```html
 * <script>window.mailtrack = window.mailtrack || { q: [] }; mailtrack.q.push(["add", "info@example.com"]);</script>
 * <script async src="https://track.example.com/mailtrack.js?site=pk_example"></script>
 * ```
 */

/** What a bind was answered. */
export interface Answer {
  /** Number of the visit. */
  visit: string;
  /** Number of this browser's first visit. */
  first_visit: string | null;
  /** Seconds for which the addresses are this visit's. */
  lease: number;
  /** What was sent → what is shown instead. An address that is missing stays as it is on the page. */
  addresses: Record<string, string>;
  /** There is an address for this visit as soon as somebody interacts with the page. */
  reserved?: true;
  /** Mails of this visit that have been received. */
  mails?: number;
}

/** What `on` listens to, and what its listeners get. */
export interface Events {
  /** The server has answered. */
  bind: Answer;
  /** Mails of this visit have come in; how many there are now. */
  mail: number;
  /** A mailto link with a substitute was followed; the last substitute in it. */
  click: string;
  /** A text with a substitute was copied; the last substitute in it. */
  copy: string;
}

/** `params` of a visit: five free values, as in the reference's `roistat_param_1` … `5`. */
export type Params = Partial<Record<"1" | "2" | "3" | "4" | "5", string | null>>;

/** A call by name, or a function that gets the API. Pushed before the script is there, it runs when it is. */
export type QueueEntry =
  | ((mailtrack: Mailtrack) => void)
  | ["add", ...string[]]
  | ["consent", boolean]
  | ["on", keyof Events, (what: never) => void]
  | ["refresh"];

export interface Mailtrack {
  /**
   * False stops everything at the next occasion: no request, and the real addresses come back. `refresh()` makes that
   * occasion; true and `refresh()` start again. May be set before the script is there: `mailtrack = {enabled: false}`.
   */
  enabled: boolean;
  /** Number of the visit; null until it is known. */
  readonly visit: string | null;
  /** Real address → what is shown instead of it. */
  readonly addresses: { readonly [address: string]: string };
  /** Sent with each bind. Set it before the script is there, or call `refresh()` afterwards. */
  params?: Params;
  /** Binds now, or a second after the last bind, or a minute after one that failed. */
  refresh(): void;
  /**
   * With `data-consent="required"` on the script tag nothing is read, kept or sent before `consent(true)`.
   * `consent(false)` puts the real addresses back, deletes our cookies and the session's entries, and stops.
   */
  consent(given: boolean): void;
  /** Calls `listener` each time; its errors are swallowed. */
  on<Name extends keyof Events>(event: Name, listener: (what: Events[Name]) => void): void;
  /** Real addresses to replace besides the site's targets; as `data-mailtrack-add="a@…, b@…"` on any element. */
  add(...addresses: string[]): void;
  /** Before the script is there an array; then `push` runs what it gets at once. */
  q: { push(...entries: QueueEntry[]): void };
}

/** What a page may set up before the script is there. */
export interface MailtrackStub {
  q?: QueueEntry[];
  enabled?: boolean;
  params?: Params;
}

declare global {
  interface Window {
    mailtrack?: Mailtrack | MailtrackStub;
    /** Called once, when `mailtrack` is there and before it does anything. */
    onMailtrackLoaded?: () => void;
    /** The reference's name for the same, for pages written for it; left alone where its own counter is announced. */
    onRoistatModuleLoaded?: () => void;
    /** Set by the reference's counter. */
    roistatProjectId?: unknown;
    /** The reference's object; `enabled = false` is honoured at any time, `refresh` is `mailtrack`'s. */
    roistat?: { emailtracking?: { enabled?: boolean; refresh?: () => void } };
  }
}
