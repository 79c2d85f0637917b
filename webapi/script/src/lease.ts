/** Which address stands for which, until when, and which of them are on the page. */
import { api, on } from "./api";
import { pattern, replacer } from "./swap";

/** A set of addresses. */
export type Addresses = { [address: string]: unknown };
/** By address: what is shown instead. */
export type Shown = { [address: string]: string };

/** In lower case. */
export const targets = new Set<string>();
let addresses: RegExp;

/** When what is shown (api.addresses, for the page to read) runs out, in milliseconds since 1970. */
let end: number | undefined;
/** The way back, for every substitute that this page ever showed. */
const real: Shown = {};
/** What the last bind asked for. */
let asked: Addresses = {};

const enum Most {
  Targets = 1000,
}

// What a walk over the page finds:
/** targets, and substitutes whose target only the server knows; */
export let onPage: Addresses = {};
/** whether the last bind did not ask for one of them; */
export let fresh = false;
/** whether there is a substitute of ours; */
let touched = false;
/** and the last one that stood in the last text: what is about to be swapped did not. */
export let lastShown = "";

export function startFinding() {
  onPage = {};
  fresh = false;
  touched = false;
}

const live = () => on() && Date.now() < end!;
/** Something of ours stands on the page that should not any more. */
export const lapsed = () => touched && !live();

/** When something of ours has to go from the page. */
export const ends = () => (touched ? end! : Infinity);

/** Whether one of these was new. So many in all: a page may be full of what its visitors have written. */
export function addTargets(list: string[]) {
  const before = targets.size;
  for (const address of list) {
    const lower = address.toLowerCase();
    if (lower.includes("@") && targets.size < Most.Targets) targets.add(lower);
  }
  if (targets.size > before || !addresses) addresses = pattern([...targets], SETTINGS.domains);
  return targets.size > before;
}

/** The element in which everything of ours is put back just now. */
export const returning: { to?: Element } = {};

const put = replacer((address) => {
  const origin = real[address] || address;
  onPage[origin] = 1;
  if (!asked[origin]) fresh = true;
  const shown = api.addresses[origin];
  if (!shown || !live() || returning.to) return origin;
  touched = true;
  if (shown === address) lastShown = shown;
  return shown;
});

/** The text as it is to be shown now: nothing past its lease, and nothing of ours while we are off. */
export function swapped(text: string) {
  lastShown = "";
  return text.replace(addresses, put);
}

/** Shows these instead of the addresses that were asked for, until then; what has none stays as it is. */
export function lease(wanted: Addresses, shown?: Shown, until?: number) {
  const addresses: Shown = {};
  for (const address in shown) {
    const substitute = (addresses[address] = shown![address].toLowerCase());
    // An old substitute in a cached page is answered like its target, which is the better way back.
    if (!real[substitute] || targets.has(address)) real[substitute] = address;
  }
  api.addresses = addresses;
  asked = wanted;
  end = until;
}
