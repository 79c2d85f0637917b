/** window.mailtrack, and whether we may do anything at all. */
import type { Mailtrack } from "../mailtrack";
import type {} from "./settings";

type Writable<T> = { -readonly [Key in keyof T]: T[Key] };

/** The page's own object, if it made one before us: a queue, params, or {enabled: false}. */
export const api = (window.mailtrack = window.mailtrack || {}) as Writable<Mailtrack>;

/** Global Privacy Control: no consent undoes it. */
export const refused = SETTINGS.gpc && navigator.globalPrivacyControl;

const REQUIRED = "required";
export const consent = {
  given:
    !SETTINGS.consent &&
    document.currentScript?.dataset.consent !== REQUIRED &&
    // A module does not know its own tag.
    !document.querySelector(`[data-consent="${REQUIRED}"][src*="${SETTINGS.site}"]`),
};

/** Asked each time: pages switch these when they like, and another counter may bring its object after us. */
export const on = () =>
  consent.given &&
  !refused &&
  !document.prerendering &&
  api.enabled &&
  window.roistat?.emailtracking?.enabled !== false;

/** The reference's hook, which may switch us off, is still to be called: whoever calls it makes the object before. */
export const undecided = () => window.onRoistatModuleLoaded && !window.roistat;
