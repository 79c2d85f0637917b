/** Text in, text out: where an address begins and ends, and what stands there instead. */
import { attempt } from "./attempt";

// What an address goes on with. Letters of every alphabet: "почтаsales@example.com" is another address.
const WORD = "\\p{L}\\p{M}\\p{N}_";
const LOCAL = WORD + ".%+-";

const either = (texts: string[]) => texts.map((text) => text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&")).join("|") || "(?!)";

/**
 * Finds the targets and every address at the domains, as group 2. A full stop or hyphen behind the address belongs to
 * the sentence unless a word goes on behind it. Group 1 is the character before: a lookbehind would be an error in
 * Safari before 16.4.
 */
export const pattern = (targets: string[], domains: string[]) =>
  RegExp(`(^|[^${LOCAL}])(${either(targets)}|[${LOCAL}]+@(?:${either(domains)}))(?![.-]?[${WORD}])`, "giu");

/**
 * For String.replace with a pattern: each address as `shown` says (lower case in, lower case out); what is in capitals
 * stays in capitals.
 */
export const replacer = (shown: (address: string) => string) => (_: string, before: string, address: string) => {
  const lower = address.toLowerCase();
  const instead = shown(lower);
  return before + (instead === lower ? address : address === address.toUpperCase() ? instead.toUpperCase() : instead);
};

/** For mailto links: swaps their recipients by `swapped`; subject, body and what else they carry stay byte for byte. */
export const linkSwapper = (swapped: (text: string) => string) => (href: string) =>
  /^\s*mailto:/i.test(href)
    ? // Path, recipients in the query, or (group 1 empty) another field, taken whole: it may contain anything.
      href.replace(/(^\s*mailto:|[?&](?:b?cc|to)=)([^?&#]*)|[?&][^&]*/gi, (all, head?: string, list?: string) => {
        // As it is if it has a stray "%".
        const before = attempt(() => decodeURIComponent(list!)) || list!;
        const after = head ? swapped(before) : before;
        return after === before ? all : head + encodeURI(after).replace(/[?&#]/g, encodeURIComponent);
      })
    : href;
